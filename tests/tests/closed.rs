//! Nothing unpaid passes, whatever happens to ports, programs and processes. Named after the rows
//! of the project's list of faults.

use std::{
    fs,
    io::Write as _,
    net::UdpSocket,
    os::unix::fs::{MetadataExt as _, PermissionsExt},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::ProgramInfo,
};
use bitcoin::Amount;
use bitmesh_common::NEWCOMERS_MAP;
use bitmesh_core::offer::SignedOffer;
use bitmesh_tests::{
    alone::Alone,
    counters,
    daemon::{Daemon, bitmesh, eventually},
    flood::{FLOOD_PAUSE, FLOOD_PORT, flooded, socket},
    netns::Namespace,
    regtest::{PASSWORD, USER},
    sabotage::{detach_link, interface_index, of_threads, pins_of, recreate_with_index, run},
    stalls::Stalls,
    sweep::own_name,
    topology::{
        EDGE_FREELOADER_V4, FREELOADER_LAN, INTERNET_V4, LAN, NODE_FOR_EDGE, Topology, UPLINK,
    },
    traffic::{Direction, Server, Transfer, transfer},
    world::{Trade, World},
};
use bitmesh_user::{
    dataplane::{self, TcHook},
    http,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const COINS: Amount = Amount::from_sat(200_000);
const MIB: u64 = 1 << 20;
/// Time in which a port has to be metered again.
const AGAIN: Duration = Duration::from_secs(1);
/// Time that is waited for that, to tell late from never.
const SEEN: Duration = Duration::from_secs(5);
/// What it takes to ask for the status once.
const ASKED: Duration = Duration::from_millis(300);

/// Waits until the guard told that it put something back since it had done so `before` times.
fn put_back(world: &World<'_>, before: u64) -> Result<()> {
    eventually("put back", SEEN, || {
        Ok((world.provider_status()?.guard.put_back > before).then_some(()))
    })
    .with_context(|| world.logs())
}

/// The same, within a second of an instant: when it was seen.
fn put_back_again(world: &World<'_>, before: u64, since: Instant) -> Result<Duration> {
    let stalls = Stalls::watch();
    put_back(world, before)?;
    in_time(since, &stalls)
}

/// What was just seen happened within a second of an instant, as far as this machine let it: when it was seen.
fn in_time(since: Instant, stalls: &Stalls) -> Result<Duration> {
    let (took, stalled) = (since.elapsed(), stalls.longest());
    ensure!(took < AGAIN + ASKED + stalled, "{took:?}, stalled for {stalled:?}");
    Ok(took)
}

#[test]
fn d16_a_port_that_is_recreated_is_metered_again_within_a_second() -> Result<()> {
    let topology = Topology::edge()?;
    let world = World::new(&topology, &Trade::default())?;
    flooded(&topology, |heard| {
        for round in 0..4 {
            topology.recreate_freeloader_port()?;
            let since = Instant::now();
            let index = interface_index(&topology.edge, FREELOADER_LAN)?;
            let told = format!("{FREELOADER_LAN} is back as interface {index}");
            let stalls = Stalls::watch();
            eventually("a port that is back", SEEN, || {
                let status = world.provider_status()?;
                let events = &status.guard.recent;
                let metered = status.hooks.iter().filter(|hook| hook.interface == FREELOADER_LAN);
                let back = events.iter().any(|event| event.what.starts_with(&told));
                Ok((back && metered.count() == 2).then_some(()))
            })
            .with_context(|| world.logs())?;
            println!("round {round}: seen in status after {:?}", in_time(since, &stalls)?);
            assert_eq!(heard.during(Duration::from_millis(300)), (0, 0));
        }
        assert_eq!(heard.both(), (0, 0), "something unpaid passed");
        Ok(())
    })?;
    let told = world.provider.cli(&["status"])?;
    println!("{}", String::from_utf8_lossy(&told.stdout));
    // What answers on the port has followed it.
    let offer = eventually("the offer", Duration::from_secs(10), || {
        topology.freeloader.block_on(async || {
            let url = format!("http://{EDGE_FREELOADER_V4}:8434/v1/offer");
            let client = http::plain().timeout(Duration::from_secs(1)).build()?;
            Ok(Some(client.get(url).send().await?.json::<SignedOffer>().await?))
        })
    })?;
    offer.offer.validate()?;
    let pins = fs::read_dir(pins_of(world.instance()))?.flatten();
    let links = pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("tcx_"));
    assert_eq!(links.count(), 4, "pins of interfaces that are gone stay");
    Ok(())
}

#[test]
fn d16_flaps_and_new_names_lose_no_count() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    let mib = || transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 2, 100);
    mib()?;
    for _ in 0..3 {
        topology.edge.set_up(LAN, false)?;
        topology.edge.set_up(LAN, true)?;
    }
    mib()?;
    topology.edge.rename(LAN, "other0")?;
    mib()?;
    eventually("the new name", SEEN, || {
        let hooks = world.provider_status()?.hooks;
        Ok((hooks.iter().filter(|hook| hook.interface == "other0").count() == 2).then_some(()))
    })
    .with_context(|| world.logs())?;
    // Another that takes the old name is a port, too.
    let before = world.provider_status()?.guard.put_back;
    topology.edge.connect(LAN, &topology.freeloader, "more0")?;
    put_back(&world, before)?;
    topology.edge.delete(LAN)?;
    topology.edge.rename("other0", LAN)?;
    mib()?;
    let usage = world.usage_as_counted(&topology)?;
    assert!(usage.down.octets.0 > 8 * MIB);
    Ok(())
}

#[test]
fn d15_a_port_that_is_recreated_while_no_controller_runs_forwards_nothing() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let guard = world.provider_status()?.guard.pid;
    let index = interface_index(&topology.edge, FREELOADER_LAN)?;
    world.provider.kill();
    eventually("a guard that ends with its daemon", Duration::from_secs(10), || {
        let stat = fs::read_to_string(format!("/proc/{guard}/stat")).unwrap_or_default();
        Ok((stat.is_empty() || stat.contains(") Z ")).then_some(()))
    })?;
    let table = format!("bitmesh_{}", world.instance());
    flooded(&topology, |heard| {
        topology.recreate_freeloader_port()?;
        assert_eq!(heard.during(Duration::from_secs(1)), (0, 0));
        // Its old index does not make it the old one.
        recreate_with_index(&topology, index)?;
        assert_eq!(heard.during(Duration::from_secs(1)), (0, 0));
        // It is the belt that holds: without it, both directions pass.
        ensure!(run(&topology.edge, "nft", &["delete", "table", "inet", &table])?);
        let (up, down) = heard.during(Duration::from_secs(1));
        assert!(up > 100 && down > 100, "{up} up, {down} down");
        world.provider.start()?;
        heard.drain();
        let (up, down) = heard.during(Duration::from_millis(500));
        assert_eq!((up, down), (0, 0), "a controller that is back meters what is there");
        world.provider.stop()?;
        topology.recreate_freeloader_port()?;
        assert_eq!(heard.during(Duration::from_secs(1)), (0, 0));
        // Who lets a port go lets it go whole.
        let detach = ["sell", "--detach", "--instance", world.instance()];
        let output = topology.edge.command(bitmesh()?)?.args(detach).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (up, down) = heard.during(Duration::from_secs(1));
        assert!(up > 100 && down > 100, "{up} up, {down} down");
        ensure!(!run(&topology.edge, "nft", &["list", "table", "inet", &table])?);
        ensure!(!run(&topology.edge, "nft", &["list", "table", "bridge", &table])?);
        Ok(())
    })
}

#[test]
fn d15_a_guard_that_is_killed_ends_the_daemon_and_everything_holds() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let guard = world.provider_status()?.guard.pid;
    kill_process(Pid::from_raw(guard.try_into()?).context("a guard")?, Signal::KILL)?;
    let said = world.provider.wait_for_failure()?;
    assert!(said.contains("the guard has ended"), "{said}");
    flooded(&topology, |heard| {
        assert_eq!(heard.during(Duration::from_millis(500)), (0, 0));
        topology.recreate_freeloader_port()?;
        assert_eq!(heard.during(Duration::from_millis(500)), (0, 0));
        world.provider.start()
    })
}

#[test]
fn d15_a_start_that_fails_after_a_boot_keeps_the_ports_shut() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    world.provider.stop()?;
    // A boot leaves nothing of the kernel's.
    dataplane::purge(world.instance())?;
    let ledger = world.provider.directory().join("bitmesh.sqlite");
    let whole = fs::read(&ledger)?;
    fs::write(&ledger, "no ledger")?;
    flooded(&topology, |heard| {
        let (up, down) = heard.during(Duration::from_millis(300));
        ensure!(up > 0 && down > 0, "nothing passes without programs: {up}, {down}");
        world.provider.spawn()?;
        let told = world.provider.wait_for_failure()?;
        ensure!(
            told.contains("not a database") && told.contains("also if this start fails"),
            "{told}"
        );
        heard.drain();
        assert_eq!(heard.during(Duration::from_millis(500)), (0, 0), "unpaid frames pass");
        fs::write(&ledger, &whole)?;
        world.provider.start()?;
        assert_eq!(heard.during(Duration::from_millis(300)), (0, 0), "unpaid frames pass");
        Ok(())
    })
}

#[test]
fn d15_programs_and_rules_that_somebody_takes_away_are_back_within_a_second() -> Result<()> {
    let topology = Topology::edge()?;
    let world =
        World::new(&topology, &Trade { sell: &["--upload-hook", "xdp"], ..Trade::default() })?;
    let refused = |args: &[&str]| Ok::<_, anyhow::Error>(!run(&topology.edge, "ip", args)?);
    assert!(refused(&["link", "set", "dev", FREELOADER_LAN, "xdp", "off"])?);
    // There is no clsact to delete: the programs are held by links.
    assert!(!run(&topology.edge, "tc", &["qdisc", "del", "dev", FREELOADER_LAN, "clsact"])?);

    let index = interface_index(&topology.edge, FREELOADER_LAN)?;
    let pins = pins_of(world.instance());
    let pin = |hook: &str| {
        let found = fs::read_dir(&pins)?.flatten().find(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(hook) && name.ends_with(&format!("_{index}"))
        });
        Ok::<_, anyhow::Error>(found.context("a pin")?.path())
    };
    flooded(&topology, |heard| {
        for hook in ["xdp_ingress", "tcx_egress"] {
            for unpin in [false, true] {
                let before = world.provider_status()?.guard.put_back;
                if unpin {
                    fs::remove_file(pin(hook)?)?;
                } else {
                    detach_link(&pin(hook)?)?;
                }
                let since = Instant::now();
                let leaked = heard.both();
                let told = put_back_again(&world, before, since).with_context(|| hook)?;
                heard.drain();
                let now = heard.both();
                let leaked = (now.0 - leaked.0, now.1 - leaked.1);
                println!(
                    "{hook} (unpinned: {unpin}): back and told after {told:?}, {leaked:?} frames \
                    passed meanwhile"
                );
                assert_eq!(heard.during(Duration::from_millis(300)), (0, 0), "{hook}");
            }
        }
        Ok(())
    })?;
    let (before, since) = (world.provider_status()?.guard.put_back, Instant::now());
    ensure!(run(&topology.edge, "nft", &["flush", "ruleset"])?);
    put_back_again(&world, before, since).context("rules")?;
    let table = format!("bitmesh_{}", world.instance());
    ensure!(run(&topology.edge, "nft", &["list", "table", "inet", &table])?);
    Ok(())
}

#[test]
fn d15_filters_of_clsact_that_somebody_deletes_are_back_within_a_second() -> Result<()> {
    let topology = Topology::edge()?;
    let instance = own_name("clsact");
    let mut alone = Alone::over(&topology.edge, FREELOADER_LAN, &instance, TcHook::Clsact)?;
    let done = flooded(&topology, |heard| {
        assert_eq!(heard.during(Duration::from_millis(200)), (0, 0));
        let (since, stalls) = (Instant::now(), Stalls::watch());
        ensure!(run(&topology.edge, "tc", &["qdisc", "del", "dev", FREELOADER_LAN, "clsact"])?);
        for _ in 0..2 {
            let line = alone.told.next().context("a change")??;
            assert!(line.contains("restored") && line.contains("clsact"), "{line}");
        }
        let (took, stalled) = (since.elapsed(), stalls.longest());
        heard.drain();
        println!("clsact: back after {took:?}, {:?} frames passed meanwhile", heard.both());
        ensure!(took < AGAIN + stalled, "{took:?}, stalled for {stalled:?}");
        assert_eq!(heard.during(Duration::from_millis(500)), (0, 0));
        Ok(())
    });
    // The guard takes single octets; others, and what is more than one, end it without harm.
    (&alone.ours).write_all(b"/etc/shadow\n")?;
    assert!(!alone.process.wait()?.success());
    alone.detach(&topology.edge)?;
    done
}

#[test]
fn d15_a_bridge_port_that_is_recreated_bridges_nothing() -> Result<()> {
    let topology = Topology::edge()?;
    let Topology { edge, freeloader, subscriber, .. } = &topology;
    let ip = |namespace: &Namespace, args: &str| {
        let args: Vec<_> = args.split(' ').collect();
        ensure!(run(namespace, "ip", &args)?, "{args:?}");
        Ok(())
    };
    ip(edge, "link add br0 type bridge")?;
    ip(edge, "link set br0 up")?;
    let connect = |station: &Namespace, port: &str, address: &str| {
        station.connect("bridged0", edge, port)?;
        station.address("bridged0", address, 24)?;
        ip(edge, &format!("link set {port} master br0"))
    };
    connect(subscriber, "port0", "10.80.0.2")?;
    connect(freeloader, "port1", "10.80.0.3")?;
    let heard_of = |what: &str| {
        let to = subscriber.run(|| Ok(UdpSocket::bind("10.80.0.2:9000")?))?;
        let from = freeloader.run(|| Ok(UdpSocket::bind("10.80.0.3:0")?))?;
        to.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut heard = 0;
        for _ in 0..20 {
            // While nobody answers for the address it is told as unreachable.
            let _ = from.send_to(&[0; 100], "10.80.0.2:9000");
            heard += u32::from(to.recv_from(&mut [0; 128]).is_ok());
        }
        println!("{what}: {heard} of 20 bridged");
        Ok::<_, anyhow::Error>(heard)
    };
    let is_bridged = |what: &str| {
        // An address is asked for each second only.
        eventually(what, Duration::from_secs(10), || Ok((heard_of(what)? > 0).then_some(())))
    };
    is_bridged("nothing metered")?;
    let instance = own_name("bridge");
    let mut alone = Alone::over(edge, "port1", &instance, TcHook::Auto)?;
    assert_eq!(heard_of("metered, unpaid")?, 0);
    alone.ours.shutdown(std::net::Shutdown::Both)?;
    alone.process.wait()?;

    edge.delete("port1")?;
    connect(freeloader, "port1", "10.80.0.3")?;
    assert_eq!(heard_of("recreated, no guard")?, 0);
    let table = format!("bitmesh_{instance}");
    ensure!(run(edge, "nft", &["delete", "table", "bridge", &table])?);
    is_bridged("without the belt").context("it is the belt that holds")?;
    alone.detach(edge)
}

/// Places of strangers that the programs have told of.
fn newcomers(world: &World<'_>) -> Result<usize> {
    let program = ProgramInfo::from_pin(pins_of(world.instance()).join("program_upload_tc"))?;
    for id in program.map_ids()?.context("ids of maps")? {
        if MapInfo::from_id(id)?.name_as_str() == Some(NEWCOMERS_MAP) {
            let map = Array::<_, u64>::try_from(Map::Array(MapData::from_id(id)?))?;
            let told = map.iter().collect::<Result<Vec<_>, _>>()?;
            return Ok(told.into_iter().filter(|whom| *whom != 0).count());
        }
    }
    bail!("no map of newcomers")
}

#[test]
fn d13_replacing_programs_under_load_loses_no_count_and_leaks_nothing() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    let program = pins_of(world.instance()).join("program_download_tc");
    let mut programs = vec![ProgramInfo::from_pin(&program)?.id()];
    let object = pins_of(world.instance()).join("object");
    flooded(&topology, |heard| {
        let stop = AtomicBool::new(false);
        let sender = socket(&topology.subscriber, "0.0.0.0")?;
        let running =
            Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 36, 80)?;
        thread::scope(|scope| {
            // Paid for: datagrams upwards, beside TCP downwards.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = sender.send_to(&[0; 400], (INTERNET_V4, FLOOD_PORT + 1));
                    thread::sleep(FLOOD_PAUSE);
                }
            });
            let replaced = (0..5).try_for_each(|_| {
                world.provider.stop()?;
                // As where an earlier version's object was loaded.
                fs::remove_file(&object)?;
                world.provider.start()?;
                programs.push(ProgramInfo::from_pin(&program)?.id());
                Ok::<_, anyhow::Error>(())
            });
            stop.store(true, Ordering::Relaxed);
            replaced
        })?;
        running.finish(Duration::from_mins(3)).with_context(|| world.logs())?;
        assert_eq!(heard.both(), (0, 0), "something unpaid passed");
        Ok(())
    })?;
    programs.dedup();
    assert_eq!(programs.len(), 6, "each start puts its own programs on: {programs:?}");
    // Who buys nothing is told of once, and again to each controller.
    socket(&topology.freeloader, "0.0.0.0")?.send_to(b"?", (INTERNET_V4, 9))?;
    eventually("a stranger that was told of", Duration::from_secs(5), || {
        Ok((newcomers(&world)? > 0).then_some(()))
    })?;
    world.provider.stop()?;
    // It says nothing more.
    ensure!(
        run(&topology.freeloader, "ip", &["link", "set", UPLINK, "down"])?,
        "a port that is shut"
    );
    world.provider.start()?;
    let kept = ProgramInfo::from_pin(&program)?.id();
    assert_eq!(programs.last(), Some(&kept), "programs of the same object stay");
    assert_eq!(newcomers(&world)?, 0);
    let usage = world.usage_as_counted(&topology)?;
    println!(
        "{} octets down, {} up, 5 replacements: difference 0",
        usage.down.octets, usage.up.octets
    );
    Ok(())
}

#[test]
fn a7_the_daemon_has_no_rights_and_takes_payments() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    let before = world.account()?.bought_octets;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 16, 200)?;
    assert!(world.account()?.bought_octets > before, "a payment raises the limit");

    let pid = world.provider.pid().context("a provider")?;
    assert!(of_threads(pid, "Uid:")?.len() > 1, "more than one thread is looked at");
    for field in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
        for value in of_threads(pid, field)? {
            assert_eq!(u64::from_str_radix(&value, 16)?, 0, "{field}");
        }
    }
    assert!(of_threads(pid, "NoNewPrivs:")?.iter().all(|value| value == "1"));
    assert!(of_threads(pid, "Groups:")?.iter().all(String::is_empty));
    let mut users = of_threads(pid, "Uid:")?;
    users.dedup();
    let [user] = &users[..] else { anyhow::bail!("threads of several users: {users:?}") };
    let ids: Vec<u32> = user.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    assert!(ids.len() == 4 && ids.iter().all(|id| *id == ids[0] && *id != 0), "{user}");
    for file in ["", "seed", "bitmesh.sqlite", "admin.sock"] {
        let found = fs::metadata(world.provider.directory().join(file))?;
        assert_eq!((found.uid(), found.mode() & 0o077), (ids[0], 0), "{file}");
    }

    // The guard has what it needs, and no more.
    let guard = world.provider_status()?.guard.pid;
    assert!(of_threads(guard, "NoNewPrivs:")?.iter().all(|value| value == "1"));
    for value in of_threads(guard, "CapEff:")? {
        // CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_BPF.
        assert_eq!(u64::from_str_radix(&value, 16)?, 1 << 2 | 1 << 12 | 1 << 39);
    }

    // Started again as root, it finds its way back to the same user and to its data.
    world.provider.stop()?;
    world.provider.start()?;
    let pid = world.provider.pid().context("a provider")?;
    assert!(of_threads(pid, "Uid:")?.iter().all(|again| again == user));
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 200)?;
    Ok(())
}

#[test]
fn a7_a_cookie_that_only_root_can_read_is_followed_when_the_node_changes_it() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    world.provider.stop()?;
    let cookie = world.data().join("cookie");
    let write = |text: &str| {
        fs::write(&cookie, text)?;
        fs::set_permissions(&cookie, PermissionsExt::from_mode(0o600))
    };
    write(&format!("{USER}:{PASSWORD}"))?;
    let url = world.node.url(NODE_FOR_EDGE);
    let path = cookie.to_str().context("a path")?;
    let args = ["sell", "--lan", LAN, "--lan", FREELOADER_LAN, "--instance", world.instance()];
    let args =
        [&args[..], &["--network", "regtest", "--node", &url, "--node-cookie", path]].concat();
    let mut provider = Daemon::new(&topology.edge, world.provider.directory(), &args)?;
    provider.start()?;
    let synced = |wanted: bool| {
        eventually(&format!("synced: {wanted}"), Duration::from_secs(15), || {
            let status: Value = provider.json(&["status"])?;
            Ok((status.get("synced") == Some(&Value::Bool(wanted))).then_some(()))
        })
        .with_context(|| provider.log())
    };
    synced(true)?;
    write("__cookie__:of-another-start")?;
    synced(false)?;
    write(&format!("{USER}:{PASSWORD}"))?;
    synced(true)
}

#[test]
fn a_flag_for_the_user_is_heeded_or_refused_with_a_reason() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world =
        World::new(&topology, &Trade { sell: &["--user", "nobody"], ..Trade::default() })?;
    let pid = world.provider.pid().context("a provider")?;
    assert!(of_threads(pid, "Uid:")?.iter().all(|ids| ids.starts_with("65534")));
    world.provider.stop()?;
    let data = world.data().join("other");
    let url = world.node.url(NODE_FOR_EDGE);
    let base = ["sell", "--lan", LAN, "--instance", world.instance(), "--network", "regtest"];
    let base =
        [&base[..], &["--node", &url, "--node-user", USER, "--node-password", PASSWORD]].concat();
    let closed = world.data().join("closed");
    fs::create_dir(&closed)?;
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o700))?;
    for (directory, more, told) in [
        (&data, ["--user", "nosuchuser"], "useradd"),
        (&data, ["--user", "root"], "without privileges"),
        (&data, ["--api-port", "80"], "ip_unprivileged_port_start"),
        (&closed.join("data"), ["--api-port", "8434"], "chmod o+x"),
    ] {
        let args = [&base[..], &more].concat();
        let mut daemon = Daemon::new(&topology.edge, directory, &args)?;
        daemon.spawn()?;
        let said = daemon.wait_for_failure()?;
        assert!(said.contains(told), "{more:?}: {said}");
    }
    Ok(())
}
