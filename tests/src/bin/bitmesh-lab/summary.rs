//! Every figure beside one that was got without it.

use anyhow::Result;
use bitcoin::Amount;
use bitmesh_tests::{counters, world::World};
use bitmesh_user::bench::{self, Scale, figure};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

use crate::scene::{Freeloader, Scene, Settlement};

/// A figure of ours, and the one that it has to equal.
struct Line {
    what: &'static str,
    ours: String,
    other: String,
    from: &'static str,
}

/// What the play came to.
pub struct Summary {
    lines: Vec<Line>,
    facts: Vec<(String, String)>,
}

impl Summary {
    pub fn new(
        scene: &Scene<'_>,
        world: &World<'_>,
        freeloader: &Freeloader,
        settlement: &Settlement,
    ) -> Result<Self> {
        let hosts = [&scene.topology.subscriber, &scene.topology.internet];
        let (account, [subscriber, internet]) = counters::at_rest(hosts, || world.account())?;
        let usage = account.usage;
        let own = world.subscriber_status()?.counted_octets;
        let (ours, theirs) = world.channel()?;
        let outputs = &settlement.claim.output;
        let value = |index: usize| outputs.get(index).map_or(Amount::ZERO, |output| output.value);
        let unpaid = scene.unpaid.max(usage.billed().0.saturating_sub(account.bought_octets.0));

        let line = |what, ours: u64, other: u64, from| Line {
            what,
            ours: ours.to_string(),
            other: other.to_string(),
            from,
        };
        let lines = vec![
            line(
                "octets billed, download",
                usage.down.octets.0,
                subscriber.received,
                "nft, subscriber",
            ),
            line(
                "octets billed, upload",
                usage.up.octets.0,
                internet.received,
                "nft, internet host",
            ),
            line(
                "octets billed, upload refused",
                usage.billed().saturating_add(usage.up.refused_octets).0,
                own.0,
                "subscriber's own count",
            ),
            line("sat paid", theirs.paid.to_sat(), ours.paid.to_sat(), "subscriber's ledger"),
            line("ticks", theirs.commitments, ours.commitments, "subscriber's ledger"),
            line(
                "claim pays provider, sat",
                (theirs.paid - settlement.fee).to_sat(),
                value(1).to_sat(),
                "transaction in a block",
            ),
            line(
                "claim pays back, sat",
                (theirs.params.capacity - theirs.paid).to_sat(),
                value(0).to_sat(),
                "transaction in a block",
            ),
            line(
                "provider's balance, sat",
                (theirs.paid - settlement.fee).to_sat(),
                settlement.provider.to_sat(),
                "provider's wallet",
            ),
            line("unpaid octets forwarded", unpaid, 0, "what must be"),
            line(
                "unpaid datagrams forwarded",
                u64::try_from(freeloader.arrived)?,
                0,
                "what must be",
            ),
            line("offer read without paying", u64::from(freeloader.offer), 1, "what must be"),
        ];
        let mut facts = vec![
            ("fee of the claim".to_owned(), format!("{} sat", settlement.fee.to_sat())),
            ("octets refused".to_owned(), usage.refused().0.to_string()),
        ];
        for measure in bench::frames(Scale::QUICK, Vec::new(), &|_| {})?.1 {
            let of =
                |value: Option<f64>| value.map_or_else(String::new, |v| figure(v, measure.unit));
            let (ours, empty) = (of(measure.ours), of(measure.reference));
            facts.push((measure.name, format!("{ours}; an empty program: {empty}")));
        }
        Ok(Self { lines, facts })
    }

    /// Shows it; true when every figure is what it has to be.
    pub fn print(&self) -> bool {
        let mut table = Table::new();
        table
            .load_preset(presets::UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(["", "BitMesh", "independent", "by", ""]);
        for line in &self.lines {
            let agrees = line.ours == line.other;
            let verdict = if agrees { "agrees" } else { "DIFFERS" };
            let color = if agrees { Color::Green } else { Color::Red };
            table.add_row([
                Cell::new(line.what),
                Cell::new(&line.ours),
                Cell::new(&line.other),
                Cell::new(line.from),
                Cell::new(verdict).fg(color),
            ]);
        }
        println!("\n{table}\n");
        for (what, figure) in &self.facts {
            println!("   {what:<42} {figure}");
        }
        let good = self.lines.iter().all(|line| line.ours == line.other);
        println!("\n{}", if good { "Every figure agrees." } else { "Some figures DIFFER." });
        good
    }
}
