//! The belt behind the programs: rules of nftables that forward nothing to or from an interface
//! which bears a LAN port's name and is not the one that is metered.
//!
//! A metered interface is put into a group of the instance's own. A port that is recreated has its
//! old name, perhaps its old index, and no group: until programs are on it the rules hold, with or
//! without a controller. They stay when the controller stops, as the programs do.

use std::{collections::BTreeSet, io};

use nftables::helper::{
    DEFAULT_ARGS, DEFAULT_NFT, NftablesError, apply_ruleset_raw, get_current_ruleset_raw,
};
use serde_json::{Value, json};

use super::{
    DataplaneError,
    ports::{self, Port},
};

/// The upper half of every group of ours, the letters `bm`; the lower half is the instance's.
const GROUPS: u32 = 0x626d_0000;
/// Before what an operator's own rules count or log.
const PRIORITY: i32 = -10;
/// Bridged frames don't pass `inet`. Both families get a table of the same name.
const FAMILIES: [Family; 2] = [
    Family { name: "inet", input: "forward", output: "forward" },
    Family { name: "bridge", input: "prerouting", output: "postrouting" },
];

struct Family {
    name: &'static str,
    /// Where a frame's way in is looked at.
    input: &'static str,
    /// Where its way out is.
    output: &'static str,
}

/// Who may be forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Belt {
    /// Names of LAN ports.
    pub(super) names: BTreeSet<String>,
    /// Indexes of interfaces that are metered both ways and in a group that is not ours to change.
    pub(super) metered: BTreeSet<u32>,
}

/// Marks an interface that is metered both ways. One that the operator has grouped stays so, and is
/// to be told by its index; true then.
pub(super) fn mark(instance: &str, port: &mut Port) -> Result<bool, DataplaneError> {
    let ours = group(instance);
    if port.group == 0 {
        ports::set_group(port.index, ours)?;
        port.group = ours;
    }
    Ok(port.group != ours)
}

/// Takes the mark away, if it is there.
pub(super) fn unmark(instance: &str, index: u32) -> Result<(), DataplaneError> {
    let Some(name) = ports::name_of(index)? else { return Ok(()) };
    match Port::find(&name) {
        Ok(port) if port.index == index && port.group == group(instance) => {
            ports::set_group(index, 0)
        }
        Ok(_) | Err(DataplaneError::NoInterface { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// FNV-1a, folded: the same for an instance on every start.
fn group(instance: &str) -> u32 {
    let hash = instance
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
    GROUPS | ((hash >> 16) ^ (hash & 0xffff))
}

impl Belt {
    /// Puts the rules in place of those that were there, in one step.
    pub(super) fn apply(&self, instance: &str) -> Result<(), DataplaneError> {
        for family in &FAMILIES {
            let commands =
                [&replacing(family, instance)[..], &self.rules(family, instance)].concat();
            run(&commands).map_err(|source| DataplaneError::NoBelt { source: source.into() })?;
        }
        Ok(())
    }

    /// Whether the rules are there: whoever reloads a firewall may have flushed them.
    pub(super) fn holds(&self, instance: &str) -> bool {
        FAMILIES.iter().all(|family| {
            let wanted = self.rules(family, instance).len();
            listed(family, instance).is_some_and(|found| found == wanted)
        })
    }

    fn rules(&self, family: &Family, instance: &str) -> Vec<Value> {
        let table = table(instance);
        let chain = |name: &str| {
            json!({"add": {"chain": {
                "family": family.name, "table": table, "name": name,
                "type": "filter", "hook": name, "prio": PRIORITY, "policy": "accept",
            }}})
        };
        let rule = |chain: &str, key: &str, right: Value, verdict: &str| {
            json!({"add": {"rule": {
                "family": family.name, "table": table, "chain": chain, "expr": [
                    {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}},
                    {verdict: null},
                ],
            }}})
        };
        let mut commands = vec![chain(family.input)];
        if family.input != family.output {
            commands.push(chain(family.output));
        }
        // Metered frames first: one comparison for an upload, two for a download.
        for (chain, key) in [(family.input, "iifgroup"), (family.output, "oifgroup")] {
            commands.push(rule(chain, key, json!(group(instance)), "accept"));
        }
        for (chain, key) in [(family.input, "iif"), (family.output, "oif")] {
            if !self.metered.is_empty() {
                commands.push(rule(chain, key, json!({"set": self.metered}), "accept"));
            }
        }
        for (chain, key) in [(family.input, "iifname"), (family.output, "oifname")] {
            commands.push(rule(chain, key, json!({"set": self.names}), "drop"));
        }
        commands
    }
}

/// Takes the rules away. Returns whether there were any.
pub(super) fn remove(instance: &str) -> Result<bool, DataplaneError> {
    let mut any = false;
    for family in &FAMILIES {
        if listed(family, instance).is_none() {
            continue;
        }
        let [_, delete, _] = replacing(family, instance);
        run(&[delete]).map_err(|source| DataplaneError::StaleBelt {
            table: table(instance),
            source: source.into(),
        })?;
        any = true;
    }
    Ok(any)
}

/// The table, empty, whatever was in it.
fn replacing(family: &Family, instance: &str) -> [Value; 3] {
    let named = json!({"table": {"family": family.name, "name": table(instance)}});
    [json!({"add": named}), json!({"delete": named}), json!({"add": named})]
}

fn table(instance: &str) -> String {
    format!("bitmesh_{instance}")
}

/// Chains and rules of the table; `None` where there is no table, or no nftables.
fn listed(family: &Family, instance: &str) -> Option<usize> {
    let table = table(instance);
    let args = ["-j", "list", "table", family.name, &table];
    let text = get_current_ruleset_raw(DEFAULT_NFT, args).ok()?;
    let listed: Value = serde_json::from_str(&text).ok()?;
    let objects = listed.get("nftables")?.as_array()?.iter();
    Some(objects.filter(|o| o.get("chain").is_some() || o.get("rule").is_some()).count())
}

fn run(commands: &[Value]) -> io::Result<()> {
    let ruleset = json!({ "nftables": commands }).to_string();
    apply_ruleset_raw(&ruleset, DEFAULT_NFT, DEFAULT_ARGS).map(drop).map_err(|error| match error {
        NftablesError::NftExecution { inner, .. } => inner,
        NftablesError::NftFailed { stderr, .. } => io::Error::other(stderr.trim().to_owned()),
        other => io::Error::other(other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belt(metered: &[u32]) -> Belt {
        Belt { names: ["lan0".to_owned()].into(), metered: metered.iter().copied().collect() }
    }

    #[test]
    fn what_is_metered_is_accepted_before_what_bears_the_name_is_dropped() {
        for (indexes, rules) in [(&[][..], 5), (&[7], 7)] {
            let text: Vec<String> =
                belt(indexes).rules(&FAMILIES[0], "sell").iter().map(Value::to_string).collect();
            assert_eq!(text.len(), rules, "{text:?}");
            assert!(text[1].contains("iifgroup") && text[1].contains("accept"), "{}", text[1]);
            let last = &text[rules - 2..];
            assert!(last.iter().all(|rule| rule.contains("lan0") && rule.contains("drop")));
        }
    }

    #[test]
    fn an_instance_has_a_group_of_its_own() {
        assert_ne!(group("sell"), group("other"));
        assert_eq!(group("sell") & 0xffff_0000, GROUPS);
    }
}
