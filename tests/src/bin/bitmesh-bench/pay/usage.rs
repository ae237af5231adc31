//! What the counters of many busy stations cost: they are read ten times a second, and written down
//! once.

use std::cell::RefCell;

use anyhow::Result;
use bitmesh_user::bench::{Better, Contender, Group, Measure};

use super::{Volume, ledger::Ledger};

const TAKEN_IN: &str = "taken in";
const WRITTEN: &str = "written down";

/// Milliseconds in which the loop does nothing else, with all stations busy.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<(Group, Vec<Measure>)> {
    let ledger = RefCell::new(Ledger::in_file(volume.stations, 0)?);
    let contenders = vec![
        Contender::new(TAKEN_IN, || ledger.borrow_mut().read_usage()),
        Contender::new(WRITTEN, || ledger.borrow_mut().write_usage()),
    ];
    let title = format!("counters of {} busy stations", volume.stations);
    // One more than elsewhere: the first writes rows that later ones find.
    let rounds = volume.rounds + 1;
    let group = Group::race(title, ("ms", Better::Lower), rounds, contenders, before)?;
    let measures = [TAKEN_IN, WRITTEN].map(|name| group.alone(name, None)).into();
    Ok((group, measures))
}
