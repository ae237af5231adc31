//! What a payment costs as accounts become more, and what they take of memory.

use std::cell::RefCell;

use anyhow::Result;
use bitmesh_user::bench::{Better, Contender, Group, Measure, Series, Target};

use super::{Volume, ledger::Ledger, process::memory_octets};

/// Most that a payment may cost with the most accounts, of what it costs with few.
const GROWTH: f64 = 1.5;
/// Few accounts.
const FEW: u32 = 1_000;

/// Payments on many channels beside payments on few. Of the many, as many pay as there are
/// payments: none is on a channel that was just in use.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let count = volume.step_payments;
    let few = RefCell::new(Ledger::in_file(FEW, FEW)?);
    let own = std::process::id();
    let empty = memory_octets(own)?;
    let many = Ledger::in_file(volume.accounts, u32::try_from(count)?)?;
    let each = (memory_octets(own)? - empty) / f64::from(volume.accounts) / 1_024.0;
    let many = RefCell::new(many);

    let micros = |ledger: &RefCell<Ledger>| Ok(1e6 / ledger.borrow_mut().pay(count)?);
    let (most, least) = (format!("{} accounts", volume.accounts), format!("{FEW} accounts"));
    let contenders = vec![
        Contender::new(most.clone(), || micros(&many)),
        Contender::new(least.clone(), || micros(&few)),
    ];
    let unit = ("us", Better::Lower);
    let growth = Group::race("a durable payment", unit, volume.rounds, contenders, before)?;
    let mut grown = [growth.compare(&most, &least, Some(Target::RatioAtMost(GROWTH)))];
    many.borrow_mut().explain(&mut grown, count)?;

    let memory = Group {
        title: "memory of the core and the store".into(),
        unit: "KiB/account",
        better: Better::Lower,
        series: vec![Series { name: most.clone(), rounds: vec![each] }],
        missing: Vec::new(),
    };
    let taken = memory.alone(&most, None);
    Ok(vec![(growth, grown.into()), (memory, vec![taken])])
}
