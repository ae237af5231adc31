//! The core's payment step without HTTP: verified on all cores, decided, durable. Beside bare
//! verifications on all cores, and in each kind of ledger.

use std::cell::RefCell;

use anyhow::Result;
use bitmesh_user::bench::{Better, Contender, Group, Measure, Target};

use super::{
    Volume,
    ledger::{Ledger, no_postgres},
};

/// Least that the step does of bare verifications.
const STEP_SHARE: f64 = 0.7;
/// Least that PostgreSQL on the same machine does of what SQLite does.
const POSTGRES_SHARE: f64 = 0.6;
/// What makes the comparison a bad one.
const ELSEWHERE: &str = "the two are on different file systems: set TMPDIR to one beside target";
/// Accounts, all of which pay in turn.
const ACCOUNTS: u32 = 1_000;

const BARE: &str = "bare verifications";
const SQLITE: &str = "durable, SQLite";
const POSTGRES: &str = "durable, PostgreSQL";

/// The step in both ledgers, and bare verifications.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<(Group, Vec<Measure>)> {
    let in_file = RefCell::new(Ledger::in_file(ACCOUNTS, ACCOUNTS)?);
    let count = volume.step_payments;
    let missing = no_postgres(POSTGRES);
    let in_database = match missing {
        None => Some(RefCell::new(Ledger::in_database(ACCOUNTS, ACCOUNTS)?)),
        Some(_) => None,
    };
    let mut contenders = vec![
        Contender::new(SQLITE, || in_file.borrow_mut().pay(count)),
        Contender::new(BARE, || in_file.borrow_mut().verify(count)),
    ];
    if let Some(ledger) = &in_database {
        contenders.push(Contender::new(POSTGRES, || ledger.borrow_mut().pay(count)));
    }
    let unit = ("payments/s", Better::Higher);
    let mut step = Group::race("the payment step", unit, volume.rounds, contenders, before)?;
    step.missing.extend(missing);
    let at_least = |share| Some(Target::RatioAtLeast(share));
    let mut measures = [
        step.compare(SQLITE, BARE, at_least(STEP_SHARE)),
        step.compare(POSTGRES, SQLITE, at_least(POSTGRES_SHARE)),
    ];
    let [of_file, of_database] = &mut measures;
    in_file.borrow_mut().explain(std::slice::from_mut(of_file), count)?;
    if let Some(ledger) = &in_database {
        ledger.borrow_mut().explain(std::slice::from_mut(of_database), count)?;
        if !ledger.borrow().is_beside_files()? {
            let said = of_database.note.take().map_or(String::new(), |note| format!("{note}; "));
            of_database.note = Some(said + ELSEWHERE);
        }
    }
    Ok((step, measures.into()))
}
