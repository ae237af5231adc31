//! What stations that have not paid can do, and can't do to those who have: faults D1, D7, D8, D9,
//! D11, D12 and D18. Real packets through the real programs on veth ports. As root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that can't go on fails"
)]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bitmesh_tests::{
    counters,
    edge::{Edge, PLENTY, events, station, udp_socket},
    netns::Namespace,
    raw::{Raw, ethernet, udp},
    topology::{EDGE_FREELOADER_V4, EDGE_OWN, FREELOADER_LAN, INTERNET_V4, LAN, Topology, UPLINK},
    traffic::{Direction, Server, Transfer},
};
use bitmesh_user::dataplane::{
    Budget, Cause, Dataplane, DataplaneError, EventKind, Free, Mac, StationKey, StationUsage,
    Terms, UploadHook,
};

const IPV4: u16 = 0x0800;
const BROADCAST: [u8; 6] = [0xff; 6];
const BOTH: [UploadHook; 2] = [UploadHook::XdpNative, UploadHook::Tc];

fn settle() {
    std::thread::sleep(Duration::from_millis(200));
}

#[test]
fn d1_a_cloned_mac_charges_one_account_and_is_told_or_dropped() -> Result<()> {
    let topology = Topology::edge()?;
    let payer = station(&topology.subscriber)?;
    let port = topology.edge.index(LAN)?;
    topology.freeloader.set_mac(UPLINK, topology.subscriber.mac(UPLINK)?)?;
    let gateway = topology.edge.mac(FREELOADER_LAN)?;
    let packet = udp([10, 77, 1, 2], [10, 78, 0, 2], (9, 9), 100);
    let frame = ethernet(gateway, topology.freeloader.mac(UPLINK)?, &[], IPV4, &packet);
    for hook in BOTH {
        for (strict, passed) in [(false, 10), (true, 0)] {
            let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
            let mut told = edge.dataplane()?.take_events().context("events")?;
            edge.allow(payer, PLENTY)?;
            let terms = Terms { port: Some(port), strict, ..Terms::default() };
            edge.dataplane()?.set_terms(payer, &terms)?;
            // The payer's own traffic is nothing special.
            let own = udp_socket(&topology.subscriber, "0.0.0.0:0")?;
            own.send_to(&[0; 100], (INTERNET_V4, 9))?;
            settle();
            let before = edge.usage(payer)?.up.frames;
            assert_eq!(before, 1, "{hook:?}");
            assert!(events(&mut told).iter().all(|event| event.kind != EventKind::StationMoved));

            let raw = Raw::open(&topology.freeloader, UPLINK)?;
            for _ in 0..10 {
                raw.send(&frame)?;
            }
            settle();
            assert_eq!(edge.usage(payer)?.up.frames - before, passed, "{hook:?}, strict: {strict}");
            assert_eq!(edge.cause(Cause::Moved)?, 10 - passed, "{hook:?}, strict: {strict}");
            let told = events(&mut told);
            let moved = told.iter().find(|event| event.kind == EventKind::StationMoved);
            let moved = moved.context("the clone is told")?;
            assert_eq!(moved.station, payer);
            assert_eq!(moved.port, topology.edge.index(FREELOADER_LAN)?);
            assert_eq!(moved.value, i64::from(u32::from_be_bytes([10, 77, 1, 2])));
        }
    }
    Ok(())
}

#[test]
fn d7_a_broadcast_storm_ends_at_the_edge_and_copies_have_a_cap() -> Result<()> {
    const STORM: u64 = 20_000;
    let topology = Topology::edge()?;
    topology.edge.bridge("br0", &[LAN, FREELOADER_LAN])?;
    let budget = Budget::per_second(10_000, 100_000);
    let free = Free { station: budget, port: budget, ..Free::default() };
    let mut edge = Edge::open(&topology, |options| options.free = free)?;
    edge.allow(station(&topology.subscriber)?, PLENTY)?;
    let mac = topology.freeloader.mac(UPLINK)?;
    let raw = Raw::open(&topology.freeloader, UPLINK)?;
    let seen = Raw::open(&topology.subscriber, UPLINK)?;
    seen.receive(Duration::from_millis(50))?;

    // Of broadcast IP nothing leaves the port; of ARP what the budget holds.
    let data = udp([10, 77, 1, 2], [255, 255, 255, 255], (9, 9), 200);
    let data = ethernet(BROADCAST, mac, &[], IPV4, &data);
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(mac);
    arp.extend([10, 77, 1, 2, 0, 0, 0, 0, 0, 0, 10, 77, 0, 2]);
    let arp = ethernet(BROADCAST, mac, &[], 0x0806, &arp);
    let start = Instant::now();
    for _ in 0..STORM {
        raw.send(&data)?;
        raw.send(&arp)?;
    }
    let took = start.elapsed();
    let copies = seen.receive(Duration::from_millis(300))?;
    let copies = copies.iter().filter(|frame| frame.get(6..12) == Some(&mac[..]));
    let (ip, arps): (Vec<_>, Vec<_>) = copies.partition(|frame| frame.get(12..14) == Some(&[8, 0]));
    assert_eq!(ip.len(), 0, "copies of broadcast IP");
    let held = 100_000 + 10_000 * (took.as_secs() + 2);
    let octets = u64::try_from(arps.len())? * 46;
    assert!(octets > 40_000 && octets <= held, "{octets} of at most {held} octets of ARP");
    assert!(edge.cause(Cause::Group)? >= STORM);
    assert!(edge.cause(Cause::FreeSpent)? > STORM / 2);
    Ok(())
}

/// Answers on the edge: DNS on UDP and the API's port on TCP.
fn services(topology: &Topology) -> Result<(UdpSocket, TcpListener)> {
    let dns = udp_socket(&topology.edge, "0.0.0.0:53")?;
    let api = topology.edge.run(|| Ok(TcpListener::bind("0.0.0.0:8434")?))?;
    let (answering, accepting) = (dns.try_clone()?, api.try_clone()?);
    std::thread::spawn(move || {
        let mut query = [0; 2_048];
        while let Ok((length, from)) = answering.recv_from(&mut query) {
            if length == 0 {
                break;
            }
            let _ = answering.send_to(query.get(..length).unwrap_or_default(), from);
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = accepting.accept() {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() || byte == [0] {
                break;
            }
            let _ = stream.write_all(b"here");
        }
    });
    Ok((dns, api))
}

fn ping(namespace: &Namespace, host: &str) -> Result<bool> {
    let mut command = namespace.command("ping")?;
    Ok(command.args(["-c", "1", "-W", "1", host]).output()?.status.success())
}

fn asks(dns: &UdpSocket, host: &str, length: usize) -> Result<bool> {
    dns.send_to(&vec![1; length], (host, 53))?;
    let mut answer = [0; 2_048];
    Ok(dns.recv(&mut answer).is_ok_and(|got| got == length))
}

fn reaches_api(namespace: &Namespace, host: &str) -> Result<bool> {
    let address = format!("{host}:8434").parse()?;
    namespace.run(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            return Ok(false);
        };
        stream.write_all(&[1])?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut answer = [0; 4];
        Ok(stream.read_exact(&mut answer).is_ok())
    })
}

#[test]
fn d8_what_a_station_needs_before_it_pays_works_until_its_budget_is_used_up() -> Result<()> {
    let topology = Topology::edge()?;
    let (_dns, _api) = services(&topology)?;
    for hook in BOTH {
        let edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        let dns = udp_socket(&topology.freeloader, "0.0.0.0:0")?;
        dns.set_read_timeout(Some(Duration::from_millis(500)))?;
        assert!(ping(&topology.freeloader, EDGE_FREELOADER_V4)?, "ARP and an echo, {hook:?}");
        assert!(asks(&dns, EDGE_FREELOADER_V4, 60)?, "DNS, {hook:?}");
        assert!(reaches_api(&topology.freeloader, EDGE_FREELOADER_V4)?, "the API, {hook:?}");
        assert!(!ping(&topology.freeloader, INTERNET_V4)?, "the internet, {hook:?}");
        drop(edge);

        // All ports together hold what one station asks for here; then strangers wait, a payer
        // does not.
        let total = Budget::per_second(10, 20_000);
        let free = Free { total, ..Free::default() };
        let mut edge = Edge::open(&topology, |options| {
            (options.upload_hook, options.free) = (hook, free);
        })?;
        edge.allow(station(&topology.subscriber)?, PLENTY)?;
        for length in [1_200, 1_200, 1_200, 1_200, 1_200, 1_200, 1_200, 1_200, 300, 300, 300, 20] {
            while asks(&dns, EDGE_FREELOADER_V4, length)? {}
        }
        assert!(!reaches_api(&topology.freeloader, EDGE_FREELOADER_V4)?, "{hook:?}");
        assert!(reaches_api(&topology.subscriber, "10.77.0.1")?, "the payer's API, {hook:?}");
    }
    Ok(())
}

#[test]
fn d9_tunnels_through_the_unpaid_path_get_the_budget_of_the_edges_resolver_and_no_more()
-> Result<()> {
    let topology = Topology::edge()?;
    let (_dns, _api) = services(&topology)?;
    counters::start(&topology.internet, UPLINK, &EDGE_OWN)?;
    for hook in BOTH {
        let edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        let socket = udp_socket(&topology.freeloader, "0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        // Other resolvers, NTP, QUIC, and echoes to elsewhere.
        for port in [53, 123, 443, 853] {
            socket.send_to(&[0; 200], (INTERNET_V4, port))?;
        }
        ping(&topology.freeloader, INTERNET_V4)?;
        // 1.2 MB of long queries to the edge's own.
        let (start, mut tunnelled) = (Instant::now(), 0u64);
        for _ in 0..1_000 {
            if asks(&socket, EDGE_FREELOADER_V4, 1_200)? {
                tunnelled += 1_228;
            }
            if start.elapsed() > Duration::from_secs(4) {
                break;
            }
        }
        let most = (64 << 10) + (1 << 10) * (start.elapsed().as_secs() + 1);
        assert!(tunnelled > 10_000 && 2 * tunnelled <= most, "{tunnelled} octets, {hook:?}");
        assert!(edge.cause(Cause::FreeSpent)? > 0);
    }
    assert_eq!(counters::read(&topology.internet)?.received, 0, "unpaid octets at the far side");
    Ok(())
}

#[test]
fn d9_strangers_that_spend_every_budget_leave_a_payer_its_own() -> Result<()> {
    const STRANGERS: u32 = 60_000;
    const QUERIES: usize = 200;
    let topology = Topology::edge()?;
    let (_dns, _api) = services(&topology)?;
    for hook in BOTH {
        let mut edge = Edge::open(&topology, |options| options.upload_hook = hook)?;
        edge.allow(station(&topology.subscriber)?, PLENTY)?;
        let raw = Raw::open(&topology.freeloader, UPLINK)?;
        let gateway = topology.edge.mac(FREELOADER_LAN)?;
        let query = udp([10, 77, 1, 2], [10, 77, 1, 1], (9, 53), 1_400);
        let mut frame = ethernet(gateway, [0; 6], &[], IPV4, &query);
        for n in 0..STRANGERS {
            let [a, b, c, d] = n.to_be_bytes();
            frame[6..12].copy_from_slice(&[0x0a, 0x66, a, b, c, d]);
            raw.send(&frame)?;
        }
        assert!(edge.cause(Cause::FreeSpent)? > u64::from(STRANGERS) / 2, "{hook:?}");
        let dns = udp_socket(&topology.subscriber, "0.0.0.0:0")?;
        dns.set_read_timeout(Some(Duration::from_millis(500)))?;
        // More than a stranger's DNS in a minute.
        let mut answered = 0;
        for _ in 0..QUERIES {
            answered += usize::from(asks(&dns, "10.77.0.1", 1_200)?);
        }
        assert!(answered >= QUERIES - 2, "{answered} of {QUERIES}, {hook:?}");
        assert!(reaches_api(&topology.subscriber, "10.77.0.1")?, "{hook:?}");
    }
    Ok(())
}

#[test]
fn a_station_bound_to_a_port_that_is_gone_is_free_to_come_by_its_successor() -> Result<()> {
    let topology = Topology::edge()?;
    let mut edge = Edge::open(&topology, |_| {})?;
    let payer = station(&topology.freeloader)?;
    edge.allow(payer, PLENTY)?;
    let old = topology.edge.index(FREELOADER_LAN)?;
    let terms = Terms { port: Some(old), strict: true, up: Some(1_000_000), ..Terms::default() };
    edge.dataplane()?.set_terms(payer, &terms)?;
    assert_eq!(edge.dataplane()?.bound(payer).0, Some(old));
    // No controller runs while the port is replaced.
    let mac = topology.freeloader.mac(UPLINK)?;
    drop(edge.dataplane.take());
    topology.edge.delete(FREELOADER_LAN)?;
    topology.internet.connect("spare", &topology.chain, "spare")?;
    topology.freeloader.connect(UPLINK, &topology.edge, FREELOADER_LAN)?;
    topology.freeloader.set_mac(UPLINK, mac)?;
    assert_ne!(topology.edge.index(FREELOADER_LAN)?, old);
    let options = edge.options.clone();
    edge.dataplane = Some(topology.edge.run(|| Ok(Dataplane::open(&options)?))?);
    let now = topology.edge.index(FREELOADER_LAN)?;
    let bound = edge.dataplane()?.bound(payer).0;
    assert!(bound.is_none() || bound == Some(now), "bound to {bound:?}, the port is {now}");
    let packet = udp([10, 77, 1, 2], [10, 78, 0, 2], (9, 9), 100);
    let frame = ethernet(topology.edge.mac(FREELOADER_LAN)?, mac, &[], IPV4, &packet);
    Raw::open(&topology.freeloader, UPLINK)?.send(&frame)?;
    assert_eq!(edge.usage(payer)?.up.frames, 1);
    Ok(())
}

#[test]
fn d11_station_to_station_is_paid_by_both_or_not_at_all() -> Result<()> {
    let topology = Topology::edge()?;
    topology.edge.bridge("br0", &[LAN, FREELOADER_LAN])?;
    let (a, b) = (topology.subscriber.mac(UPLINK)?, topology.freeloader.mac(UPLINK)?);
    let packet = udp([10, 77, 0, 2], [10, 77, 0, 9], (9, 9), 100);
    let frame = ethernet(b, a, &[], IPV4, &packet);
    let key = |mac| StationKey::new(Mac::new(mac), 0).unwrap();
    for hook in BOTH {
        for (isolate, pays, arrives) in [(false, false, 0), (false, true, 5), (true, true, 0)] {
            let mut edge = Edge::open(&topology, |options| {
                (options.upload_hook, options.isolate) = (hook, isolate);
            })?;
            edge.allow(key(a), PLENTY)?;
            if pays {
                edge.allow(key(b), PLENTY)?;
            }
            let (from, to) = (
                Raw::open(&topology.subscriber, UPLINK)?,
                Raw::open(&topology.freeloader, UPLINK)?,
            );
            to.receive(Duration::from_millis(50))?;
            for _ in 0..5 {
                from.send(&frame)?;
            }
            let got = to.receive(Duration::from_millis(200))?;
            let got = got.iter().filter(|got| got.get(6..12) == Some(&a[..])).count();
            let case = format!("{hook:?}, isolate: {isolate}, the receiver pays: {pays}");
            assert_eq!(got, arrives, "{case}");
            assert_eq!(edge.usage(key(a))?.up.frames, 5, "the sender pays, {case}");
            if pays {
                let down = edge.usage(key(b))?.down.frames;
                assert_eq!(down, u64::try_from(arrives)?, "the receiver pays, {case}");
            }
        }
    }
    Ok(())
}

#[test]
fn d12_a_million_macs_keep_no_payer_from_its_octets_and_newcomers_are_refused_with_a_reason()
-> Result<()> {
    const MACS: u32 = 1_000_000;
    let topology = Topology::edge()?;
    counters::start(&topology.subscriber, UPLINK, &EDGE_OWN)?;
    let _server = Server::start(&topology.internet)?;
    let mut edge = Edge::open(&topology, |options| options.upload_hook = UploadHook::XdpNative)?;
    let payer = station(&topology.subscriber)?;
    edge.allow(payer, PLENTY)?;
    let stranger = |n: u32| StationKey::new(Mac::from_parts(0x0212, n), 0).unwrap();
    let mut taken = 1;
    let refusal = loop {
        match edge.dataplane()?.insert(stranger(taken), StationUsage::default(), 1) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, DataplaneError::TableFull { .. }), "{refusal}");
    assert!(refusal.to_string().contains("station table is full"), "{refusal}");

    let running = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 64, 200)?;
    let raw = Raw::open(&topology.freeloader, UPLINK)?;
    let gateway = topology.edge.mac(FREELOADER_LAN)?;
    let packet = udp([10, 77, 1, 2], [10, 78, 0, 2], (9, 9), 18);
    let mut frame = ethernet(gateway, [0; 6], &[], IPV4, &packet);
    for n in 0..MACS {
        let [.., a, b, c, d] = u64::from(n).to_be_bytes();
        frame[6..12].copy_from_slice(&[0x0a, 0x55, a, b, c, d]);
        raw.send(&frame)?;
    }
    running.finish(Duration::from_mins(1))?;
    let (usage, [counted]) = counters::at_rest([&topology.subscriber], || edge.usage(payer))?;
    assert_eq!(usage.down.octets, counted.received);
    assert!(usage.down.octets > 64 << 20);
    assert!(edge.cause(Cause::Unknown)? >= u64::from(MACS), "each is dropped and counted");
    assert_eq!(edge.dataplane()?.station_count(), usize::try_from(taken)?);
    Ok(())
}

#[test]
fn d18_events_that_nobody_reads_are_counted_as_lost_and_cost_no_octet() -> Result<()> {
    const ROUNDS: u64 = 10_000;
    let topology = Topology::edge()?;
    let mut edge = Edge::open(&topology, |_| {})?;
    let mut told = edge.dataplane()?.take_events().context("events")?;
    let payer = station(&topology.subscriber)?;
    edge.allow(payer, 0)?;
    let terms = Terms { low: Some(1 << 30), ..Terms::default() };
    edge.dataplane()?.set_terms(payer, &terms)?;
    let socket = udp_socket(&topology.subscriber, "0.0.0.0:0")?;
    // A new limit each time, which is low again, and told again.
    for round in 1..=ROUNDS {
        edge.dataplane()?.set_bought(payer, round * 128)?;
        socket.send_to(&[0; 100], (INTERNET_V4, 9))?;
        let passed = |edge: &mut Edge| edge.dataplane().unwrap().usage(payer).unwrap().up.frames;
        let deadline = Instant::now() + Duration::from_secs(5);
        while passed(&mut edge) < round && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(passed(&mut edge), round, "a frame that was paid for passes");
    }
    let lost = told.lost()?.into_iter().find(|(kind, _)| *kind == EventKind::LowCredit);
    let lost = lost.context("the counter")?.1;
    let read = events(&mut told);
    let read = read.iter().filter(|event| event.kind == EventKind::LowCredit).count();
    assert!(lost > 0 && read > 1_000, "{read} read, {lost} lost");
    assert_eq!(u64::try_from(read)? + lost, ROUNDS, "each is read or counted as lost");
    assert_eq!(edge.usage(payer)?.up.octets, ROUNDS * 128);
    // With room again, the next is told.
    edge.dataplane()?.set_bought(payer, (ROUNDS + 1) * 128)?;
    socket.send_to(&[0; 100], (INTERNET_V4, 9))?;
    settle();
    assert!(events(&mut told).iter().any(|event| event.kind == EventKind::LowCredit));
    Ok(())
}
