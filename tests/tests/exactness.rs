//! Octets billed are octets on the wire: faults D3 to D6, D10 and D20, and leases that end. Real
//! packets through the real programs on veth ports, counted by nftables on the far side. As root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that can't go on fails"
)]

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    edge::{Edge, PLENTY, station, station_on, tell_of_drops, udp_socket},
    raw::{Raw, ethernet, udp},
    topology::{
        FREELOADER_LAN, INTERNET_V4, INTERNET_V6, LAN, Offload, SUBSCRIBER_V4, SUBSCRIBER_V6,
        Topology, UPLINK, WAN,
    },
    traffic::{Direction, Server, transfer},
};
use bitmesh_user::dataplane::{
    Cause, Mac, StationKey, StationUsage, Terms, UploadHook, since_boot,
};

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const IPV4: u16 = 0x0800;
/// Time in which what was sent is counted.
const COUNTED: Duration = Duration::from_secs(5);
/// In which all is sent, however often a port's ring is full.
const SENT: Duration = Duration::from_secs(30);
const BOTH: [UploadHook; 2] = [UploadHook::XdpNative, UploadHook::Tc];

/// Octets that came to the internet host and to the subscriber so far.
fn arrived(topology: &Topology) -> Result<[u64; 2]> {
    Ok([
        counters::read(&topology.internet)?.received,
        counters::read(&topology.subscriber)?.received,
    ])
}

/// What was billed, which must be what the far sides counted since: uploads where they arrive,
/// downloads where they arrive. A connection's last frames may come long after it was closed.
fn billed(topology: &Topology, edge: &Edge, since: [u64; 2]) -> Result<StationUsage> {
    let payer = station(&topology.subscriber)?;
    let hosts = [&topology.internet, &topology.subscriber];
    let (usage, counted) = counters::at_rest(hosts, || edge.usage(payer))?;
    let [up, down] = [0, 1].map(|i: usize| counted[i].received - since[i]);
    let hook = edge.options.upload_hook;
    assert_eq!((usage.up.octets, usage.down.octets), (up, down), "billed and arrived, {hook:?}");
    Ok(usage)
}

#[test]
fn d3_tagged_frames_are_charged_to_the_station_on_that_vlan_and_unexpected_tags_drop() -> Result<()>
{
    const FRAMES: u64 = 20;
    let topology = Topology::edge()?;
    let (mac, gateway) = (topology.subscriber.mac(UPLINK)?, topology.edge.mac(LAN)?);
    let packet = udp([10, 77, 0, 2], [10, 78, 0, 2], (9, 9), 100);
    for hook in BOTH {
        let mut edge = Edge::open(&topology, |options| {
            options.upload_hook = hook;
            options.service_vlan = Some(7);
        })?;
        let stations = [0, 42, 43].map(|vlan| station_on(&topology.subscriber, vlan).unwrap());
        for station in stations {
            edge.allow(station, PLENTY)?;
        }
        let raw = Raw::open(&topology.subscriber, UPLINK)?;
        for tags in
            [&[][..], &[(VLAN, 42)], &[(SERVICE_VLAN, 7), (VLAN, 43)], &[(VLAN, 8), (VLAN, 43)]]
        {
            let frame = ethernet(gateway, mac, tags, IPV4, &packet);
            for _ in 0..FRAMES {
                raw.send(&frame)?;
            }
        }
        for station in stations {
            let up = edge.usage(station)?.up;
            assert_eq!((up.octets, up.frames), (FRAMES * 128, FRAMES), "{station}, {hook:?}");
        }
        assert_eq!(edge.cause(Cause::Vlan)?, FRAMES, "{hook:?}");
    }
    Ok(())
}

#[test]
fn d4_fragments_are_counted_and_garbage_is_counted_or_dropped() -> Result<()> {
    const FRAMES: u64 = 20_000;
    let topology = Topology::edge()?;
    counters::start_far_sides(&topology)?;
    for hook in BOTH {
        let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        let payer = station(&topology.subscriber)?;
        edge.allow(payer, PLENTY)?;
        let before = arrived(&topology)?;
        let socket = udp_socket(&topology.subscriber, "0.0.0.0:0")?;
        for _ in 0..200 {
            socket.send_to(&[0; 6_000], (INTERNET_V4, 9))?;
        }
        let up = billed(&topology, &edge, before)?.up;
        assert!(up.octets >= 200 * 6_000, "{up:?}, {hook:?}");

        // Every frame is billed, passes free or drops with a cause: none is lost track of.
        let seen = |edge: &Edge| -> Result<u64> {
            let causes: Result<Vec<u64>> =
                Cause::ALL.iter().map(|cause| edge.cause(*cause)).collect();
            let up = edge.usage(payer)?.up;
            Ok(causes?.iter().sum::<u64>() + up.frames)
        };
        let start = seen(&edge)?;
        let raw = Raw::open(&topology.subscriber, UPLINK)?;
        let (mac, gateway) = (topology.subscriber.mac(UPLINK)?, topology.edge.mac(LAN)?);
        let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
        for i in 0..FRAMES {
            let mut content: Vec<u8> = (0..(i % 90))
                .map(|_| {
                    chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    chance.to_be_bytes()[0]
                })
                .collect();
            if let Some(first) = content.first_mut() {
                *first = if i % 2 == 0 { 0x45 } else { 0x60 };
            }
            let kind = if i % 2 == 0 { IPV4 } else { 0x86dd };
            raw.send(&ethernet(gateway, mac, &[], kind, &content))?;
        }
        let counted = || Ok(Some(seen(&edge)? - start).filter(|told| *told >= FRAMES));
        let told = eventually("every frame to be counted", COUNTED, counted)?;
        assert!((FRAMES..=FRAMES + 200).contains(&told), "{told} of {FRAMES}, {hook:?}");
    }
    Ok(())
}

#[test]
fn d5_jumbo_frames_count_in_full_length_in_several_buffers() -> Result<()> {
    let topology = Topology::edge()?;
    for (namespace, port) in [
        (&topology.subscriber, UPLINK),
        (&topology.edge, LAN),
        (&topology.edge, WAN),
        (&topology.internet, UPLINK),
    ] {
        namespace.set_mtu(port, 9_000)?;
    }
    counters::start_far_sides(&topology)?;
    for hook in BOTH {
        let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        let payer = station(&topology.subscriber)?;
        edge.allow(payer, PLENTY)?;
        let before = arrived(&topology)?;
        let socket = udp_socket(&topology.subscriber, "0.0.0.0:0")?;
        tell_of_drops(&socket)?;
        let until = Instant::now() + SENT;
        for length in (1_000..=8_972).step_by(4) {
            // What does not fit into the port's ring is sent again.
            while let Err(error) = socket.send_to(&vec![0; length], (INTERNET_V4, 9)) {
                // The second is what the far side said to an earlier one: its port is closed.
                let again = [libc::ENOBUFS, libc::ECONNREFUSED].map(Some);
                let again = again.contains(&error.raw_os_error()) && Instant::now() < until;
                ensure!(again, "{length} octets: {error}");
                std::thread::yield_now();
            }
        }
        let up = billed(&topology, &edge, before)?.up;
        assert_eq!(up.frames, 1_994, "not fragmented, {hook:?}");
    }
    Ok(())
}

#[test]
fn d6_what_offloads_merge_and_split_is_billed_as_on_the_wire() -> Result<()> {
    let topology = Topology::edge()?;
    topology.subscriber.offloads_on(UPLINK, &[Offload::Gso, Offload::Tso])?;
    topology.edge.offloads_off(WAN, &[Offload::Tso, Offload::Gso])?;
    counters::start_far_sides(&topology)?;
    let _server = Server::start(&topology.internet)?;
    let mut edge = Edge::open(&topology, |options| options.upload_hook = UploadHook::Tc)?;
    let payer = station(&topology.subscriber)?;
    edge.allow(payer, PLENTY)?;
    let (start, mut before) = (arrived(&topology)?, edge.usage(payer)?);
    for (host, direction) in [
        (INTERNET_V4, Direction::Download),
        (INTERNET_V4, Direction::Upload),
        (INTERNET_V6, Direction::Download),
        (INTERNET_V6, Direction::Upload),
    ] {
        transfer(&topology.subscriber, host, direction, 48, 2_000)?;
        let usage = billed(&topology, &edge, start)?;
        assert!(usage.up.octets > 0 && usage.down.octets > 0, "{usage:?}");
        let (after, before) = match direction {
            Direction::Download => (usage.down, std::mem::replace(&mut before, usage).down),
            Direction::Upload => (usage.up, std::mem::replace(&mut before, usage).up),
        };
        let mean = (after.octets - before.octets) / (after.frames - before.frames);
        println!("{direction:?}, {host}: {mean} octets a frame");
        assert!(mean > 2_000, "nothing was merged: {before:?}, {after:?}");
    }
    Ok(())
}

#[test]
fn a_transparent_bridge_bills_what_it_passes_and_passes_nothing_unpaid() -> Result<()> {
    let topology = Topology::edge()?;
    topology.edge.bridge("br0", &[LAN, FREELOADER_LAN, WAN])?;
    // Stations and the internet host are neighbours: the edge routes nothing.
    topology.subscriber.address(UPLINK, "10.78.0.5", 24)?;
    topology.freeloader.address(UPLINK, "10.78.0.6", 24)?;
    let _server = Server::start(&topology.internet)?;
    let unpaid = udp_socket(&topology.internet, "0.0.0.0:9")?;
    unpaid.set_read_timeout(Some(Duration::from_millis(300)))?;
    counters::start_far_sides(&topology)?;
    for hook in BOTH {
        let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        let payer = station(&topology.subscriber)?;
        edge.allow(payer, PLENTY)?;
        let before = arrived(&topology)?;
        transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 400)?;
        transfer(&topology.subscriber, INTERNET_V4, Direction::Upload, 8, 400)?;
        let usage = billed(&topology, &edge, before)?;
        assert!(usage.up.octets > 8 << 20 && usage.down.octets > 8 << 20, "{usage:?}");

        let freeloader = udp_socket(&topology.freeloader, "10.78.0.6:0")?;
        let dropped = edge.cause(Cause::Unknown)?;
        freeloader.send_to(&[0; 100], (INTERNET_V4, 9))?;
        assert!(unpaid.recv(&mut [0; 200]).is_err(), "unpaid octets passed, {hook:?}");
        assert!(edge.cause(Cause::Unknown)? > dropped, "nothing came to the meter, {hook:?}");
    }
    Ok(())
}

#[test]
fn d10_ipv6_is_billed_as_ipv4_is() -> Result<()> {
    let topology = Topology::edge()?;
    counters::start_far_sides(&topology)?;
    let _server = Server::start(&topology.internet)?;
    for hook in BOTH {
        let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        let payer = station(&topology.subscriber)?;
        edge.allow(payer, PLENTY)?;
        let before = arrived(&topology)?;
        transfer(&topology.subscriber, INTERNET_V6, Direction::Download, 16, 400)?;
        transfer(&topology.subscriber, INTERNET_V6, Direction::Upload, 16, 400)?;
        let usage = billed(&topology, &edge, before)?;
        assert!(usage.up.octets > 16 << 20 && usage.down.octets > 16 << 20, "{usage:?}, {hook:?}");
    }
    Ok(())
}

#[test]
fn d10_a_rogue_router_advertisement_drops() -> Result<()> {
    let topology = Topology::edge()?;
    for hook in BOTH {
        let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        edge.allow(station(&topology.subscriber)?, PLENTY)?;
        let mac = topology.subscriber.mac(UPLINK)?;
        let mut packet = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
        packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        let raw = Raw::open(&topology.subscriber, UPLINK)?;
        raw.send(&ethernet([0x33, 0x33, 0, 0, 0, 1], mac, &[], 0x86dd, &packet))?;
        let dropped = || Ok((edge.cause(Cause::RogueRouter)? == 1).then_some(()));
        eventually("a drop with its cause", COUNTED, dropped)
            .with_context(|| format!("{hook:?}"))?;
    }
    Ok(())
}

#[test]
fn d20_top_ups_that_race_the_meter_lose_and_invent_nothing() -> Result<()> {
    const STEP: u64 = 700;
    const STEPS: u64 = 40_000;
    let topology = Topology::edge()?;
    counters::start_far_sides(&topology)?;
    let mut edge = Edge::open(&topology, |options| options.upload_hook = UploadHook::XdpNative)?;
    let payer = station(&topology.subscriber)?;
    edge.allow(payer, 0)?;
    let before = arrived(&topology)?;
    let done = AtomicBool::new(false);
    let sockets = [
        udp_socket(&topology.subscriber, "0.0.0.0:0")?,
        udp_socket(&topology.subscriber, "0.0.0.0:0")?,
    ];
    // Of what the port drops the programs see nothing.
    sockets.iter().try_for_each(tell_of_drops)?;
    let sent: u64 = std::thread::scope(|scope| {
        let senders = sockets.map(|socket| {
            let done = &done;
            scope.spawn(move || {
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    sent += u64::from(socket.send_to(&[0; 472], (INTERNET_V4, 9)).is_ok());
                }
                sent
            })
        });
        for step in 1..=STEPS {
            edge.dataplane().unwrap().set_bought(payer, step * STEP).unwrap();
            if step % 64 == 0 {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let used = |edge: &mut Edge| edge.dataplane().unwrap().usage(payer).unwrap().octets();
        while used(&mut edge) + 500 <= STEP * STEPS && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
        senders.into_iter().map(|sender| sender.join().unwrap()).sum()
    });
    let usage = billed(&topology, &edge, before)?;
    let bought = STEP * STEPS;
    // Spent to less than a frame, and over by at most one a CPU. What comes back is errors of the
    // far side, whose port is closed.
    let used = usage.octets();
    assert!(used > bought - 500 && used <= bought + 2 * 528, "{used} of {bought}");
    assert_eq!(usage.up.frames + usage.up.refused_frames, sent, "every frame is accounted for");
    Ok(())
}

#[test]
fn a_lease_ends_at_its_time_whatever_credit_is_left() -> Result<()> {
    let topology = Topology::edge()?;
    let mut edge = Edge::open(&topology, |_| {})?;
    let payer = station(&topology.subscriber)?;
    edge.allow(payer, PLENTY)?;
    let ends = since_boot() + Duration::from_secs(3);
    edge.dataplane()?.set_terms(payer, &Terms { ends: Some(ends), ..Terms::default() })?;
    let socket = udp_socket(&topology.subscriber, "0.0.0.0:0")?;
    let passes = |edge: &Edge| -> Result<bool> {
        let before = edge.usage(payer)?.up.frames;
        socket.send_to(&[0; 100], (INTERNET_V4, 9))?;
        Ok(edge.usage(payer)?.up.frames > before)
    };
    assert!(passes(&edge)?, "before its end");
    std::thread::sleep(ends.saturating_sub(since_boot()) + Duration::from_millis(20));
    assert!(!passes(&edge)?, "after its end");
    assert!(edge.cause(Cause::Expired)? > 0);
    edge.dataplane()?.set_terms(payer, &Terms::default())?;
    assert!(passes(&edge)?, "a lease without an end");
    Ok(())
}

#[test]
fn a_speed_that_was_sold_is_kept_within_two_percent_in_both_directions() -> Result<()> {
    const SPEED: u64 = 2_500_000;
    const SECONDS: u64 = 6;
    const BURST: Duration = Duration::from_millis(50);
    let topology = Topology::edge()?;
    for (hook, ipv6) in [(UploadHook::XdpNative, false), (UploadHook::Tc, true)] {
        let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        let payer = station(&topology.subscriber)?;
        edge.allow(payer, PLENTY)?;
        let terms = Terms { up: Some(SPEED), down: Some(SPEED), ..Terms::default() };
        edge.dataplane()?.set_terms(payer, &terms)?;
        let (near, far) =
            if ipv6 { (SUBSCRIBER_V6, INTERNET_V6) } else { (SUBSCRIBER_V4, INTERNET_V4) };
        let any = if ipv6 { "[::]:0" } else { "0.0.0.0:0" };
        let up = udp_socket(&topology.subscriber, any)?;
        let down = udp_socket(&topology.internet, any)?;
        // How long nothing came beyond what may come at once later: that is lost for good.
        let offer = |seconds: u64| {
            // Twice as much as was sold, in both directions.
            let (start, mut sent) = (Instant::now(), 0u64);
            let (mut turn, mut lost) = (start, Duration::ZERO);
            while start.elapsed() < Duration::from_secs(seconds) {
                let now = Instant::now();
                lost += now.duration_since(turn).saturating_sub(BURST);
                turn = now;
                let due =
                    2 * SPEED * u64::try_from(start.elapsed().as_micros()).unwrap() / 1_000_000;
                while sent < due {
                    let _ = up.send_to(&[0; 1_200], (far, 9));
                    let _ = down.send_to(&[0; 1_200], (near, 9));
                    sent += 1_228;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            lost + turn.elapsed().saturating_sub(BURST)
        };
        // What may come at once is not part of the speed.
        offer(1);
        let (before, start) = (edge.dataplane()?.usage(payer).unwrap(), Instant::now());
        let lost = offer(SECONDS);
        let (after, elapsed) = (edge.dataplane()?.usage(payer).unwrap(), start.elapsed());
        for (direction, octets) in [
            ("up", after.up.octets - before.up.octets),
            ("down", after.down.octets - before.down.octets),
        ] {
            let per_mille = |time: Duration| {
                u128::from(octets) * 1_000_000 / (u128::from(SPEED) * time.as_millis())
            };
            let (least, most) = (per_mille(elapsed.saturating_sub(lost)), per_mille(elapsed));
            println!("{direction}, {hook:?}: {most} per mille, {least} without {lost:?}");
            assert!(
                least >= 980 && most <= 1_020,
                "{direction}, {hook:?}: {most} per mille, {least} without {lost:?}"
            );
        }
        assert!(edge.cause(Cause::TooFast)? > 1_000);
    }
    Ok(())
}

#[test]
fn stations_that_come_and_go_while_frames_flow_lose_and_invent_nothing() -> Result<()> {
    const STATIONS: u32 = 64;
    const FRAME: u64 = 128;
    const ROUNDS: u32 = 6_000;
    let topology = Topology::edge()?;
    counters::start_far_sides(&topology)?;
    let mut edge = Edge::open(&topology, |options| {
        (options.upload_hook, options.table_slots) = (UploadHook::XdpNative, 1 << 21);
    })?;
    let gateway = topology.edge.mac(LAN)?;
    let key = |n: u32| StationKey::new(Mac::from_parts(0x0277, n), 0).unwrap();
    let frame = |n: u32| {
        let packet = udp([10, 77, 0, 2], [10, 78, 0, 2], (9, 9), 100);
        ethernet(gateway, key(n).mac().octets(), &[], IPV4, &packet)
    };
    let frames: Vec<_> = (0..STATIONS).map(frame).collect();
    let done = AtomicBool::new(false);
    // What a plain map would have: octets bought and used in a station's life.
    let mut model: HashMap<u32, (u64, StationUsage)> = HashMap::new();
    let (mut inserts, mut removals) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        for half in [0, STATIONS / 2] {
            let raw = Raw::open(&topology.subscriber, UPLINK)?;
            let (frames, done) = (&frames, &done);
            scope.spawn(move || {
                let own = half..half + STATIONS / 2;
                while !done.load(Ordering::Relaxed) {
                    own.clone().for_each(|n| raw.send(&frames[n as usize]).unwrap());
                }
            });
        }
        let mut chance = 0x5eed_u64;
        for _ in 0..ROUNDS {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let n = u32::try_from(chance >> 40)? % STATIONS;
            let known = edge.dataplane()?.usage(key(n)).is_some();
            let (bought, used) = model.entry(n).or_default();
            *bought += FRAME * (chance >> 33 & 0xf);
            if !known {
                // A slot may still rest; then the station stays outside for now.
                inserts += u32::from(edge.dataplane()?.insert(key(n), *used, *bought).is_ok());
            } else if (chance >> 37).is_multiple_of(4) {
                // No frame is in hand any more when the counters are read.
                edge.dataplane()?.set_limit(key(n), 0)?;
                std::thread::sleep(Duration::from_micros(200));
                *used = edge.dataplane()?.remove(key(n)).unwrap();
                removals += 1;
            } else {
                edge.dataplane()?.set_bought(key(n), *bought)?;
            }
        }
        done.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    let (billed, [counted]) = counters::at_rest([&topology.internet], || {
        let mut billed = 0;
        for (n, (bought, used)) in &model {
            let now = edge.dataplane()?.usage(key(*n)).unwrap_or(*used);
            assert!(now.octets() <= bought + FRAME, "station {n} used {now:?} of {bought}");
            billed += now.up.octets;
        }
        Ok(billed)
    })?;
    assert!(inserts > 100 && removals > 100, "{inserts} inserts, {removals} removals");
    assert!(billed > 100_000, "{billed} octets");
    assert_eq!(billed, counted.received, "billed and arrived");
    Ok(())
}
