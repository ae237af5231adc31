//! What the counters of many busy stations cost: they are read ten times a second, and written down
//! once.

use std::cell::RefCell;

use anyhow::Result;
use bitmesh_user::bench::{Better, Contender, Group, Measure};

use super::{
    Volume,
    ledger::{Ledger, no_postgres},
};

const TAKEN_IN: &str = "taken in";
const SQLITE: &str = "written down, SQLite";
const POSTGRES: &str = "written down, PostgreSQL";

/// Milliseconds in which the loop does nothing else, with all stations busy.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<(Group, Vec<Measure>)> {
    let in_file = RefCell::new(Ledger::in_file(volume.stations, 0)?);
    let missing = no_postgres(POSTGRES);
    let in_database = match missing {
        None => Some(RefCell::new(Ledger::in_database(volume.stations, 0)?)),
        Some(_) => None,
    };
    let mut contenders = vec![
        Contender::new(TAKEN_IN, || in_file.borrow_mut().read_usage()),
        Contender::new(SQLITE, || in_file.borrow_mut().write_usage()),
    ];
    if let Some(ledger) = &in_database {
        contenders.push(Contender::new(POSTGRES, || ledger.borrow_mut().write_usage()));
    }
    let title = format!("counters of {} busy stations", volume.stations);
    // One more than elsewhere: the first writes rows that later ones find.
    let rounds = volume.rounds + 1;
    let mut group = Group::race(title, ("ms", Better::Lower), rounds, contenders, before)?;
    group.missing.extend(missing);
    let names = [TAKEN_IN, SQLITE, POSTGRES];
    let measures = names.iter().map(|name| group.alone(name, None)).collect();
    Ok((group, measures))
}
