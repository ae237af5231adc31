//! What a ledger comes to, by the rules that wrote it: every event is followed again.

use bitmesh_core::{
    bitcoin::{Amount, Network},
    buyer::Buyer,
    channel::{ChannelStatus, Compact, Entry, InvalidEvent, ProviderEvent, SubscriberEvent},
    controller::Controller,
    units::Octets,
    wire::ChannelReport,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::{Facts, FleetLook, Look, StoreError, StoreRole};

/// What was found in a ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Audit {
    /// What it says of itself.
    #[serde(flatten)]
    pub facts: Facts,
    /// Whose it is.
    pub role: StoreRole,
    /// Of which chain.
    pub network: Network,
    /// Events of channels, after folding.
    pub events: usize,
    /// The newest block that was followed.
    pub height: u32,
    /// Channels that are not over.
    pub channels_open: usize,
    /// What was paid on all channels.
    #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
    pub paid: Amount,
    /// How often.
    pub payments: u64,
    /// What was bought with it.
    pub bought_octets: Octets,
    /// What stations used; a subscriber's ledger does not know.
    pub used_octets: Octets,
    /// What is wrong: nothing, if all is well.
    pub problems: Vec<String>,
}

/// Checks all that can be: every page, every digest, every event. `progress` is told what is being
/// done.
pub async fn audit(look: &mut Look, progress: impl Fn(&'static str)) -> Result<Audit, StoreError> {
    progress("checking every page");
    let mut problems = look.integrity().await?;
    let (role, network) = look.purpose().await?;
    progress("reading every entry");
    let mut audit = match role {
        StoreRole::Provider => {
            let mut controller = Controller::new(network, Vec::new());
            let follow = |entry: &Entry<ProviderEvent>| controller.replay(entry);
            let read = read(look, follow, &progress, &mut problems).await?;
            let reports: Vec<_> = controller.channels().collect();
            let used = controller.billed();
            Audit { used_octets: used, ..sum(read, role, network, &reports) }
        }
        StoreRole::Subscriber => {
            let mut buyer = Buyer::new(network);
            let follow = |entry: &Entry<SubscriberEvent>| buyer.replay(entry);
            let read = read(look, follow, &progress, &mut problems).await?;
            let reports: Vec<_> = buyer.channels().collect();
            sum(read, role, network, &reports)
        }
    };
    if !audit.facts.newest {
        problems.push(format!(
            "it is older than what was written last, which was commit {}",
            audit.facts.witness.unwrap_or_default()
        ));
    }
    audit.problems = problems;
    Ok(audit)
}

/// The same of a fleet's database: what each edge has. What is wrong with the database as a whole stands with
/// the first.
pub async fn audit_fleet(
    look: &mut FleetLook,
    progress: impl Fn(&'static str),
) -> Result<Vec<Audit>, StoreError> {
    let (role, network) = look.purpose().await?;
    progress("checking every row of all edges");
    let mut problems = look.problems::<ProviderEvent>().await?;
    let mut audits = Vec::new();
    for edge in look.edges().await? {
        let mut controller = Controller::new(network, Vec::new());
        controller.join(edge.number, 0);
        progress("reading every entry");
        let read = look.entries(&edge).await?;
        let follow = |entry: &Entry<ProviderEvent>| controller.replay(entry);
        let read = follow_all(read, follow, &progress, &mut problems);
        let reports: Vec<_> = controller.channels().collect();
        let used = controller.billed();
        let audit = Audit { used_octets: used, ..sum(read, role, network, &reports) };
        audits.push(Audit { problems: std::mem::take(&mut problems), ..audit });
    }
    match problems.first() {
        Some(_) => Err(look.damaged(problems.join("; "))),
        None => Ok(audits),
    }
}

/// What was read: of itself, how many events, and the newest block.
type Read = (Facts, usize, u32);

async fn read<E>(
    look: &mut Look,
    follow: impl FnMut(&Entry<E>) -> Result<(), InvalidEvent>,
    progress: impl Fn(&'static str),
    problems: &mut Vec<String>,
) -> Result<Read, StoreError>
where
    E: DeserializeOwned + Compact + Send + 'static,
{
    Ok(follow_all(look.entries::<E>().await?, follow, progress, problems))
}

fn follow_all<E>(
    (entries, facts): (Vec<Entry<E>>, Facts),
    mut follow: impl FnMut(&Entry<E>) -> Result<(), InvalidEvent>,
    progress: impl Fn(&'static str),
    problems: &mut Vec<String>,
) -> Read {
    progress("following every entry");
    let (mut events, mut height) = (0, 0);
    for entry in &entries {
        match entry {
            Entry::Channel { .. } => events += 1,
            Entry::Block { height: at, .. } => height = *at,
            Entry::BlockGone { .. } | Entry::Usage { .. } | Entry::Fleet(_) => {}
        }
        if let Err(error) = follow(entry) {
            let whose = match entry {
                Entry::Channel { channel, .. } => format!("channel {channel}"),
                _ => "an entry".to_owned(),
            };
            problems.push(format!("{whose}: {error}"));
        }
    }
    (facts, events, height)
}

fn sum(read: Read, role: StoreRole, network: Network, reports: &[ChannelReport]) -> Audit {
    let (facts, events, height) = read;
    let is_open = |report: &&ChannelReport| !matches!(report.status, ChannelStatus::Closed { .. });
    let paid = reports.iter().map(|report| report.paid.to_sat()).fold(0, u64::saturating_add);
    let bought = reports
        .iter()
        .fold(Octets(0), |sum: Octets, report| sum.saturating_add(report.bought_octets));
    Audit {
        facts,
        role,
        network,
        events,
        height,
        channels_open: reports.iter().filter(is_open).count(),
        paid: Amount::from_sat(paid),
        payments: reports.iter().map(|report| report.commitments).fold(0, u64::saturating_add),
        bought_octets: bought,
        used_octets: Octets(0),
        problems: Vec::new(),
    }
}
