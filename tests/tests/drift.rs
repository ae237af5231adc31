//! Reconciliation: limits and counts that somebody changes behind the daemon's back are put right,
//! counted and shown; no octet is lost or invented by that. As root.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    payers::Stand,
    till::Till,
    topology::{EDGE_OWN, INTERNET_V4, Topology, UPLINK},
};
use bitmesh_user::dataplane::{Mac, StationKey};

/// All of the table is seen within this, and once more where one thing led to another.
const SEEN: Duration = Duration::from_secs(25);
/// Payments of each payer: as many KiB.
const PAYMENTS: u32 = 100;

fn found(till: &Till<'_>, kind: &str) -> Result<u64> {
    Ok(till.world.provider_status()?.drift.get(kind).copied().unwrap_or(0))
}

/// Waits until every limit is what was paid for.
fn put_right(till: &Till<'_>) -> Result<()> {
    eventually("limits of the ledger", SEEN, || Ok(till.check_credited_once().ok()))
        .with_context(|| till.world.provider.log())
}

/// A few datagrams from a stand; what is billed for them.
fn use_some(stand: &Stand) -> Result<u64> {
    const DATAGRAMS: u64 = 20;
    stand.namespace.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..DATAGRAMS {
            socket.send_to(&[0; 472], (INTERNET_V4, 9))?;
        }
        Ok(())
    })?;
    Ok(DATAGRAMS * 500)
}

#[test]
fn d20_what_somebody_changes_in_the_kernels_table_is_put_right_counted_and_shown() -> Result<()> {
    let topology = Topology::edge()?;
    let stands: Vec<_> =
        (0..4).map(|number| Stand::new(&topology, number)).collect::<Result<_>>()?;
    let mut till = Till::open(&topology, &stands)?;
    counters::start(&topology.internet, UPLINK, &EDGE_OWN)?;
    let mut sent = 0;
    for (payer, stand) in till.payers.iter().zip(&stands) {
        for _ in 0..PAYMENTS {
            payer.pay()??;
        }
        sent += use_some(stand)?;
    }
    till.check_credited_once()?;
    eventually("a count that the daemon has read", Duration::from_secs(10), || {
        let used: u64 = till.kernel.stations().iter().map(|honoured| honoured.used).sum();
        let read = till.world.provider_status()?.billed_octets.0;
        Ok((read == used && used >= sent).then_some(()))
    })?;
    ensure!(till.world.provider_status()?.drift.values().all(|times| *times == 0));

    let used = till.honoured(3)?.used;
    till.kernel.change_limit(till.honoured(0)?, 50_000);
    till.kernel.change_limit(till.honoured(1)?, -20_000);
    till.kernel.remove(till.honoured(2)?);
    till.kernel.change_base(till.honoured(3)?, -5_000);
    put_right(&till)?;
    for kind in ["over", "under", "missing", "behind"] {
        ensure!(found(&till, kind)? == 1, "{kind}: {}", till.world.provider.log());
    }
    ensure!(till.honoured(3)?.used == used, "what was used could be used again");

    let stranger = StationKey::new(Mac::new([2, 0, 0, 0, 0, 0x77]), 0).context("a station")?;
    till.kernel.rename(till.honoured(1)?, stranger);
    put_right(&till)?;
    ensure!(till.kernel.station(stranger).is_none(), "somebody who never paid is in the table");
    ensure!((found(&till, "stray")?, found(&till, "missing")?) == (1, 2));
    let shown = till.world.provider.cli(&["status"])?.stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    ensure!(shown.contains("1 stray") && shown.contains("2 missing"), "{shown}");

    // Everybody can use what is left, to the octet.
    for stand in &stands {
        sent += use_some(stand)?;
    }
    eventually("a count of all that was sent", Duration::from_secs(10), || {
        let used: u64 = till.kernel.stations().iter().map(|honoured| honoured.used).sum();
        let passed = counters::read(&topology.internet)?.received;
        Ok((passed == sent && used >= sent).then_some(()))
    })?;

    // At rest: less is put right by the next start; more is not distinguishable from a ledger that
    // was rolled back, and refused.
    till.world.provider.stop()?;
    till.kernel.change_limit(till.honoured(0)?, -20_000);
    till.kernel.remove(till.honoured(1)?);
    till.world.provider.start()?;
    put_right(&till)?;
    till.world.provider.stop()?;
    till.kernel.change_limit(till.honoured(0)?, 1);
    till.world.provider.spawn()?;
    let log = till.world.provider.wait_for_failure()?;
    ensure!(log.contains("the kernel honours") && log.contains("--detach"), "{log}");
    Ok(())
}
