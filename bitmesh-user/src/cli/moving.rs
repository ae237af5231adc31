//! `bitmesh store move`: from one box to a fleet.

use anyhow::{Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{print, show::facts, store::spinner, wallet::Place};
use crate::{
    api::value,
    bench::grouped,
    config::{FleetArgs, FleetConfig},
    runloop::{Step, abandon_move, move_ledger, unlock},
    store::Moved,
};

#[derive(Args, Clone, Debug)]
pub(super) struct MoveArgs {
    /// Check everything and write it, but commit nothing: the database gets its tables, the box stays as
    /// it is
    #[arg(long, conflicts_with = "abandon")]
    dry_run: bool,
    /// Give up a move that was begun and could not be finished, if nothing of it is in the database
    #[arg(long)]
    abandon: bool,
    #[command(flatten)]
    fleet: FleetArgs,
    #[command(flatten)]
    place: Place,
}

impl MoveArgs {
    pub(super) async fn run(self) -> Result<()> {
        let json = self.place.json;
        let Some(fleet) = self.fleet.with_file(self.place.config())?.resolve()? else {
            bail!("name the fleet's database with --store postgres://USER@HOST/DATABASE");
        };
        let common = self.place.provider().await?;
        if !self.abandon {
            // Else nobody could start it afterwards.
            FleetConfig::check_source(&common.source)?;
        }
        let seed = unlock(&common)?;
        let place = fleet.ledger(&common, &seed);
        if self.abandon {
            abandon_move(&place, common.network).await?;
            let told = "the box goes on by itself: start it without --store";
            return print(json, &json!({"abandoned": true}), &told, |told| (*told).to_owned());
        }
        let bar = spinner();
        let moved =
            move_ledger(&place, common.network, self.dry_run, |step| show(&bar, step)).await;
        bar.finish_and_clear();
        let moved = moved?;
        print(json, &value(&moved), &moved, table)
    }
}

fn show(bar: &ProgressBar, step: Step) {
    match step {
        Step::Checking => bar.set_message("reading and checking every entry"),
        Step::Copying(rows, all) => {
            let template = "copying {bar:30} row {pos} of {len}, {eta} left";
            if bar.length() != Some(all)
                && let Ok(style) = ProgressStyle::with_template(template)
            {
                bar.set_style(style);
                bar.set_length(all);
            }
            bar.set_position(rows);
        }
        Step::Concluding => {
            bar.set_style(ProgressStyle::default_spinner());
            bar.set_message("waiting for the database to have it on its disks");
        }
    }
}

fn table(moved: &Moved) -> String {
    let mut rows = vec![("database", moved.to.clone())];
    if moved.number == 0 {
        rows.push(("edge", moved.edge.clone()));
        rows.push(("moved", "everything was there: the move is finished".to_owned()));
    } else {
        rows.push(("edge", format!("{}, number {}", moved.edge, moved.number)));
        rows.push(("accounts", grouped(moved.accounts)));
        rows.push(("channels", grouped(moved.channels)));
        rows.push(("left behind", format!("{} that nothing came of", grouped(moved.forgotten))));
        rows.push(("stations", grouped(moved.stations)));
        rows.push(("rows", grouped(moved.rows)));
    }
    match &moved.aside {
        Some(aside) => {
            rows.push(("kept", format!("the file as it was: {}", aside.display())));
            rows.push(("next", format!("start it with --store and --edge {}", moved.edge)));
        }
        None => rows.push(("dry run", "everything fits; nothing was changed".to_owned())),
    }
    facts(&rows)
}
