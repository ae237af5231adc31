//! The ledger on one box: what a daemon does when it was changed or is an old copy, and how it is
//! checked, copied and put back.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::alarm::{Alarm, Kind};
use bitmesh_tests::{
    daemon::{Daemon, eventually},
    topology::{INTERNET_V4, Topology},
    traffic::{Direction, Server, Transfer, transfer},
    world::{Trade, World},
};
use bitmesh_user::{
    runloop::{Audit, status::Phase},
    store::Restored,
};

const COINS: Amount = Amount::from_sat(200_000);
const LEDGER: &str = "bitmesh.sqlite";

/// What `bitmesh store` prints for a daemon's directory.
fn store<T: serde::de::DeserializeOwned>(daemon: &Daemon<'_>, args: &[&str]) -> Result<T> {
    daemon.json(&[&["store"], args].concat())
}

/// What a command says that has to fail.
fn fails(daemon: &Daemon<'_>, args: &[&str]) -> Result<String> {
    let output = daemon.cli(args)?;
    ensure!(!output.status.success(), "{args:?} went well");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A start that has to fail: what it says.
fn refuses_to_start(daemon: &mut Daemon<'_>) -> Result<String> {
    daemon.spawn()?;
    daemon.wait_for_failure()
}

fn ledger(daemon: &Daemon<'_>) -> PathBuf {
    daemon.directory().join(LEDGER)
}

/// Changes one octet of the newest payment's sum.
fn forge(path: &Path, paid: Amount) -> Result<()> {
    let content = fs::read(path)?;
    let sum = format!("\"paid_sat\":{}", paid.to_sat());
    let found = content.windows(sum.len()).rposition(|part| part == sum.as_bytes());
    let at = found.context("the sum in the ledger")? + sum.len() - 1;
    let last = content.get(at).context("its last digit")?;
    let other = if *last == b'9' { b'8' } else { last + 1 };
    fs::File::options().write(true).open(path)?.write_all_at(&[other], at as u64)?;
    Ok(())
}

#[test]
fn p15_a_changed_ledger_is_refused_with_what_to_do_and_a_backup_goes_on() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    let backup = world.data().join("backup");
    let backup = backup.to_str().context("a name")?;

    // A copy in the middle of a download, which goes on.
    let running = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 24, 20)?;
    eventually("payments", Duration::from_secs(20), || {
        Ok((world.channel()?.1.commitments > 2).then_some(()))
    })?;
    let copied: Audit = store(&world.provider, &["backup", backup])?;
    ensure!(copied.problems.is_empty() && copied.payments > 2, "{copied:?}");
    let said = fails(&world.provider, &["store", "backup", backup])?;
    assert!(said.contains("is there already"), "{said}");
    running.finish(Duration::from_mins(1)).with_context(|| world.logs())?;
    let said = fails(&world.provider, &["store", "restore", "--older", backup])?;
    assert!(said.contains("in use by another bitmesh"), "{said}");

    world.usage_at_rest()?;
    world.subscriber.stop()?;
    world.provider.stop()?;
    let whole: Audit = store(&world.provider, &["check"])?;
    ensure!(whole.problems.is_empty() && whole.payments > copied.payments, "{whole:?}");
    let ours: Audit = store(&world.subscriber, &["check", "--role", "buy"])?;
    assert_eq!((ours.paid, ours.payments), (whole.paid, whole.payments));

    forge(&ledger(&world.provider), whole.paid)?;
    let said = refuses_to_start(&mut world.provider)?;
    assert!(said.contains("is damaged") && said.contains("bitmesh store restore"), "{said}");
    let said = fails(&world.provider, &["store", "check"])?;
    assert!(said.contains("is damaged") && said.contains("was changed"), "{said}");

    let restored: Restored = store(&world.provider, &["restore", backup])?;
    ensure!(restored.aside.as_ref().is_some_and(|aside| aside.exists()), "{restored:?}");
    // The kernel honours what was paid since, and counted what was used of it: that is taken over, and
    // what is not known to be paid is taken back.
    let used = whole.used_octets;
    world.provider.start()?;
    let status = world.provider_status()?;
    let told = |alarm: &&Alarm| alarm.kind == Kind::WentBack && alarm.message.contains("goes on");
    ensure!(status.alarms.iter().any(|alarm| told(&alarm)), "{:?}", status.alarms);
    ensure!(world.provider.log().contains("the ledger goes on from"), "{}", world.logs());
    world.subscriber.start()?;
    world.wait_for(Phase::Buying)?;
    // The subscriber's next sum brings back what the backup did not have.
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 60)
        .with_context(|| world.logs())?;
    eventually("ledgers that agree", Duration::from_secs(20), || {
        let (ours, theirs) = world.channel()?;
        Ok((ours.paid == theirs.paid && ours.paid >= whole.paid).then_some(()))
    })
    .with_context(|| world.logs())?;
    world.usage_at_rest()?;
    world.subscriber.stop()?;
    world.provider.stop()?;
    // All that ever passed was bought, and what passed after the backup counts.
    let end: Audit = store(&world.provider, &["check"])?;
    ensure!(end.problems.is_empty(), "{end:?}");
    ensure!(end.used_octets.0 >= used.0 + (8 << 20), "{used} before, {} now", end.used_octets);
    ensure!(end.used_octets <= end.bought_octets, "{end:?}");
    Ok(())
}

#[test]
fn p15_an_older_copy_of_the_ledger_is_refused_until_it_is_accepted() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 60)?;
    world.provider.stop()?;
    let path = ledger(&world.provider);
    let older = fs::read(&path)?;
    world.provider.start()?;
    world.wait_for(Phase::Buying)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 60)?;
    world.usage_at_rest()?;
    let paid = world.channel()?.1.paid;
    world.provider.stop()?;

    let newest = fs::read(&path)?;
    fs::write(&path, &older)?;
    let said = refuses_to_start(&mut world.provider)?;
    assert!(said.contains("older than what was written last"), "{said}");
    assert!(said.contains("bitmesh store accept"), "{said}");
    let said = fails(&world.provider, &["store", "check"])?;
    assert!(said.contains("not as it was written"), "{said}");

    // The newest back: all is well.
    fs::write(&path, &newest)?;
    let whole: Audit = store(&world.provider, &["check"])?;
    ensure!(whole.problems.is_empty() && whole.paid == paid, "{whole:?}");
    world.provider.start()?;
    world.wait_for(Phase::Buying)?;
    assert_eq!(world.channel()?.1.paid, paid);
    Ok(())
}
