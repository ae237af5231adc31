//! The API under attack, A1 to A5 and A7: whoever pays is answered within a second all the while, and
//! the daemon's memory and disk stay within bounds.
//!
//! What a station without credit can send at all is bounded by the kernel first (32 KiB a second and
//! MAC): 100,000 openings take half an hour to get through. That many are put to the rules themselves
//! in `api::gate` and in the core's controller; here comes what gets through.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
        process::CommandExt as _,
    },
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Amount,
    secp256k1::{PublicKey, Secp256k1, SecretKey},
};
use bitmesh_core::{channel::PROTOCOL_VERSION, wire::ErrorBody};
use bitmesh_tests::{
    daemon::bitmesh,
    netns::Namespace,
    stalls::Stalls,
    topology::{EDGE_FREELOADER_V4, EDGE_V4, FREELOADER_LAN, INTERNET_V4, Topology, UPLINK},
    traffic::{Direction, Server, Transfer},
    world::{Trade, World, ask},
};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream as AsyncStream},
};

const COINS: Amount = Amount::from_sat(200_000);
const API_PORT: u16 = 8_434;
/// What a payer waits for an answer at most.
const WORST: Duration = Duration::from_secs(1);
/// Bounds of the daemon's own count of how long payments took, in seconds: the first one holds unless the machine stood
/// still for longer than it takes to see that.
const BOUNDS: [(&str, Duration); 3] = [
    ("1", Duration::from_millis(1_050)),
    ("2.5", Duration::from_millis(2_500)),
    ("10", Duration::from_secs(10)),
];
/// How long a handshake is waited for in a flood.
const SOON: Duration = Duration::from_secs(1);
/// Answers that a payer is to get at least, and how much longer than the attack it may ask for them.
const ANSWERS: u32 = 20;
const LONGER: Duration = Duration::from_secs(10);
/// What an attack may cost the daemon in memory, in KiB.
const MEMORY_GROWTH_KIB: u64 = 48 << 10;
const NOBODY: u32 = 65_534;
/// A group that every Debian has, and whose members have no rights by it.
const GROUP: &str = "users";
/// Stations that an attacker pretends to be, and connections of each.
const STATIONS: u16 = 125;
const SOCKETS_OF_EACH: u16 = 16;
const _: () = assert!(STATIONS * SOCKETS_OF_EACH >= 2_000);
/// Connections that a station may have.
const KEPT: usize = 32;
/// Time in which slow sockets are all shut.
const SHUT: Duration = Duration::from_secs(10);
/// Time in which connections that give way are shut: they have five seconds for a head themselves.
const GIVEN_WAY: Duration = Duration::from_secs(3);

/// A provider with a subscriber that pays for a download all the time.
struct Trial<'a> {
    world: World<'a>,
    _server: Server,
    _download: Transfer,
}

impl<'a> Trial<'a> {
    fn begin(topology: &'a Topology) -> Result<Self> {
        let mut world = World::new(topology, &Trade::default())?;
        let server = Server::start(&topology.internet)?;
        world.open_channel(COINS)?;
        // A quarter of a second between frames would be too few ticks to see anything by.
        let download =
            Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 2_000, 200)?;
        Ok(Self { world, _server: server, _download: download })
    }

    /// Attacks, and asks from the payer's station all the while.
    fn endures(
        &self,
        topology: &Topology,
        attack: impl FnOnce() -> Result<()> + Send,
    ) -> Result<()> {
        let before = self.world.channel()?.1.commitments;
        let memory = self.memory_kib()?;
        let before_it: Vec<_> =
            BOUNDS.iter().map(|(name, _)| self.slower(name)).collect::<Result<_>>()?;
        let (over, stalls) = (AtomicBool::new(false), Stalls::watch());
        let (worst, asked) = thread::scope(|scope| -> Result<_> {
            let probe = scope.spawn(|| probe(&topology.subscriber, &over));
            let attacked = attack();
            over.store(true, Ordering::Relaxed);
            let probed = probe.join().ok().context("the payer's thread")?;
            attacked?;
            probed
        })?;
        let (logs, stalled) = (|| self.world.logs(), stalls.longest());
        ensure!(asked >= ANSWERS, "only {asked} answers: {}", logs());
        ensure!(
            worst < WORST + stalled,
            "an answer took {worst:?} of {asked}, stalled for {stalled:?}: {}",
            logs()
        );
        let grown = self.memory_kib()?.saturating_sub(memory);
        ensure!(grown < MEMORY_GROWTH_KIB, "memory grew by {grown} KiB");
        let paid = self.world.channel()?.1.commitments;
        ensure!(paid > before, "no payment was taken meanwhile: {}", logs());
        let mut bounds = BOUNDS.iter().zip(before_it);
        let fits = bounds.find(|((_, bound), _)| *bound >= WORST + stalled);
        let ((bound, _), earlier) = fits.context("a machine that stood still for long")?;
        let slow = self.slower(bound)? - earlier;
        ensure!(slow == 0, "{slow} payments took more than {bound} s, stalled for {stalled:?}");
        eprintln!(
            "{asked} answers, the worst {worst:?}; {} payments; {grown} KiB; stalled for {stalled:?}",
            paid - before
        );
        Ok(())
    }

    fn memory_kib(&self) -> Result<u64> {
        let pid = self.world.provider.pid().context("a running provider")?;
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.context("its memory")
    }

    /// Payments whose answer took longer than one of the daemon's bounds, in seconds, by its own count.
    fn slower(&self, bound: &str) -> Result<u64> {
        let text = self.admin("GET /metrics HTTP/1.0\r\n\r\n")?;
        let value = |start: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(start));
            line.and_then(|line| line.trim().parse::<u64>().ok()).with_context(|| start.to_owned())
        };
        let all = value("bitmesh_api_request_seconds_count{route=\"pay\"}")?;
        let within = format!("bitmesh_api_request_seconds_bucket{{route=\"pay\",le=\"{bound}\"}}");
        Ok(all - value(&within)?)
    }

    fn admin(&self, request: &str) -> Result<String> {
        let path = self.world.provider.directory().join("admin.sock");
        let mut socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(request.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Asks again and again, and for a while longer where answers are few; the longest time that an answer
/// took, and how many there were.
fn probe(from: &Namespace, over: &AtomicBool) -> Result<(Duration, u32)> {
    from.run(|| {
        let (mut worst, mut asked, mut ended) = (Duration::ZERO, 0, None);
        loop {
            let since = Instant::now();
            if over.load(Ordering::Relaxed) {
                let longer = *ended.get_or_insert(since);
                if asked >= ANSWERS || since.duration_since(longer) > LONGER {
                    return Ok((worst, asked));
                }
            }
            let mut stream = TcpStream::connect((EDGE_V4, API_PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET /v1/account HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("HTTP/1.0 200"), "{answer}");
            worst = worst.max(since.elapsed());
            asked += 1;
            thread::sleep(Duration::from_millis(50));
        }
    })
}

/// Sends octets from the station that never pays, and gives the answer's status, 0 when there is none.
fn send(from: &Namespace, octets: &[u8]) -> Result<(u16, String)> {
    from.run(|| {
        let mut stream = TcpStream::connect((EDGE_FREELOADER_V4, API_PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(8)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        // It may be refused before it is all sent.
        let _ = stream.write_all(octets);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if !matches!(error.kind(), ErrorKind::ConnectionReset) => {
                return Err(error.into());
            }
            _ => {}
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body =
            text.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned());
        Ok((status, body))
    })
}

/// Gives the attacker addresses that the edge takes for so many stations' with a MAC each, and has
/// frames to these MACs arrive where they were sent from.
fn pretend_stations(topology: &Topology) -> Result<Vec<Ipv6Addr>> {
    let own = topology.freeloader.mac(UPLINK)?;
    let own: Vec<_> = own.iter().map(|octet| format!("{octet:02x}")).collect();
    let rules = format!(
        "add table netdev many\n\
         add chain netdev many in {{ type filter hook ingress device {UPLINK} priority 0; }}\n\
         add rule netdev many in ether daddr set {} meta pkttype set unicast\n",
        own.join(":")
    );
    let mut nft =
        topology.freeloader.command("nft")?.arg("-f").arg("-").stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("nft's input")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft takes the rules");
    let mut addresses = Vec::new();
    let mut neighbours = Vec::new();
    for number in 0..STATIONS {
        let address = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0xbad, number);
        topology.freeloader.address(UPLINK, &address.to_string(), 64)?;
        let [high, low] = number.to_be_bytes();
        neighbours.push((IpAddr::V6(address), [2, 0xba, 0xd0, 0, high, low]));
        addresses.push(address);
    }
    topology.edge.neighbours(FREELOADER_LAN, &neighbours)?;
    Ok(addresses)
}

/// Waits until at most so many connections are open: how many are.
async fn at_most(connections: &[AsyncStream], most: usize, within: Duration) -> usize {
    let is_open = |stream: &&AsyncStream| {
        let mut octets = [0; 1_024];
        loop {
            match stream.try_read(&mut octets) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    };
    let deadline = Instant::now() + within;
    loop {
        let is_last = Instant::now() > deadline;
        let open = connections.iter().filter(is_open).count();
        if open <= most || is_last {
            return open;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect_from(address: Ipv6Addr) -> Result<AsyncStream> {
    let socket = TcpSocket::new_v6()?;
    socket.bind(SocketAddr::V6(SocketAddrV6::new(address, 0, 0, 0)))?;
    let edge: SocketAddr = format!("[fd77:1::1]:{API_PORT}").parse()?;
    Ok(tokio::time::timeout(Duration::from_secs(5), socket.connect(edge)).await??)
}

#[test]
fn a1_two_thousand_slow_sockets_keep_no_payer_waiting() -> Result<()> {
    let topology = Topology::edge()?;
    let trial = Trial::begin(&topology)?;
    let addresses = pretend_stations(&topology)?;
    trial.endures(&topology, || {
        topology.freeloader.block_on(async || {
            let mut open = Vec::new();
            for socket in 0..SOCKETS_OF_EACH {
                for address in &addresses {
                    let mut stream = connect_from(*address).await?;
                    let start: &[u8] = if socket % 2 == 0 {
                        b"GET /v1/offer HTTP/1.1\r\nX: "
                    } else {
                        b"POST /v1/channels HTTP/1.1\r\nContent-Length: 16000\r\n\r\n"
                    };
                    stream.write_all(start).await?;
                    open.push(stream);
                }
            }
            // None outlives its deadline, though it is never silent: every one is shut from the other side.
            let began = Instant::now();
            loop {
                for stream in &open {
                    // Those that are shut by now are out of patience's reach.
                    let _ = stream.try_write(b"y");
                }
                let left = at_most(&open, 0, Duration::from_secs(1)).await;
                if left == 0 {
                    return Ok(());
                }
                ensure!(began.elapsed() < SHUT, "{left} slow sockets are still open");
            }
        })
    })?;
    // With many addresses one is still one station: its newest connections take the others' places.
    let kept = topology.freeloader.block_on(async || {
        let mut open = Vec::new();
        for number in 0..4u16 {
            let address = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0xadd, number);
            topology.freeloader.address(UPLINK, &address.to_string(), 64)?;
            for _ in 0..SOCKETS_OF_EACH {
                open.push(connect_from(address).await?);
            }
        }
        Ok(at_most(&open, KEPT, GIVEN_WAY).await)
    })?;
    ensure!(kept == KEPT, "{kept} of 64 connections of one station were kept");
    Ok(())
}

#[test]
fn a2_huge_heads_and_bodies_are_refused_and_take_no_memory() -> Result<()> {
    let topology = Topology::edge()?;
    let trial = Trial::begin(&topology)?;
    let piece = vec![b'x'; 256 << 10];
    let huge = |head: &str| [head.as_bytes(), &piece].concat();
    let chunk = format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(&piece));
    let cases = [
        (huge("POST /v1/channels HTTP/1.1\r\nContent-Length: 1073741824\r\n\r\n"), 413),
        (
            [b"POST /v1/channels HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", chunk.as_bytes()]
                .concat(),
            413,
        ),
        (huge("GET /v1/offer HTTP/1.1\r\nX: "), 431),
        (huge("GET /v1/offer?"), 414),
    ];
    trial.endures(&topology, || {
        for (octets, status) in &cases {
            let (got, _) = send(&topology.freeloader, octets)?;
            let start = String::from_utf8_lossy(&octets[..40]).into_owned();
            // A first line without an end is a head without one.
            ensure!(got == *status || (*status == 414 && got == 431), "{start}: {got}");
        }
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })
}

#[test]
fn a3_malformed_requests_are_answered_with_a_reason_and_break_nothing() -> Result<()> {
    let topology = Topology::edge()?;
    let trial = Trial::begin(&topology)?;
    let id = trial.world.channel()?.1.channel;
    let paths = [
        "/v1/channels".to_owned(),
        format!("/v1/channels/{id}/payments"),
        format!("/v1/channels/{id}/close"),
        format!("/v1/channels/{id}/funding"),
    ];
    let bodies: Vec<Vec<u8>> = [
        "[".repeat(8_000),
        "{\"a\":".repeat(2_500),
        "{}".into(),
        "null".into(),
        "[[],{}]".into(),
        "{\"paid_sat\":1e999,\"signature\":\"\"}".into(),
        "{\"paid_sat\":-1,\"signature\":7}".into(),
        "{\"paid_sat\":\"1\",\"signature\":\"zz\"}".into(),
        "{\"version\":2,\"version\":2}".into(),
        "{\"version\":99999999999999999999}".into(),
        "{\"tx\":\"00\"}".into(),
        "{\"tx\":\"\u{202e}\"}".into(),
        "\u{0}".into(),
        "<script>alert(1)</script>".into(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .chain([vec![0xff, 0xfe, 0x80], Vec::new()])
    .collect();
    trial.endures(&topology, || {
        let mut rng = fastrand::Rng::with_seed(3);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            for (path, body) in paths.iter().flat_map(|p| bodies.iter().map(move |b| (p, b))) {
                let head =
                    format!("POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
                let (status, answer) = send(&topology.freeloader, &[head.as_bytes(), body].concat())?;
                ensure!((400..500).contains(&status), "{path} {status} {answer}");
                let error: ErrorBody = serde_json::from_str(&answer).with_context(|| answer.clone())?;
                ensure!(!error.message.is_empty() && !error.r#try.is_empty(), "{path} {answer}");
            }
        }
        for _ in 0..100 {
            let garbage: Vec<u8> = (0..rng.usize(1..300)).map(|_| rng.u8(..)).chain(*b"\r\n\r\n").collect();
            let (status, _) = send(&topology.freeloader, &garbage)?;
            ensure!(status == 0 || (400..500).contains(&status), "garbage: {status}");
        }
        Ok(())
    })
}

#[test]
fn a4_openings_without_funds_are_paced_and_bounded() -> Result<()> {
    let topology = Topology::edge()?;
    let trial = Trial::begin(&topology)?;
    let addresses = pretend_stations(&topology)?;
    let offer = trial.world.provider_status()?.offer.context("an offer")?;
    let size = || -> Result<u64> {
        let files = fs::read_dir(trial.world.provider.directory())?.flatten();
        Ok(files.filter_map(|file| Some(file.metadata().ok()?.len())).sum())
    };
    let before = size()?;
    let secp = Secp256k1::new();
    let opening = |number: u32, last: bool| {
        let mut secret = [7; 32];
        secret[..4].copy_from_slice(&number.to_be_bytes());
        let secret = SecretKey::from_slice(&secret).expect("a key");
        let body = json!({
            "version": PROTOCOL_VERSION,
            "offer": offer.offer.id(),
            "subscriber": PublicKey::from_secret_key(&secp, &secret),
            "capacity_sat": 50_000,
            "expiry_height": offer.offer.height + 500,
            "remainder_script": format!("0014{}", "11".repeat(20)),
        })
        .to_string();
        let end = if last { "Connection: close\r\n" } else { "" };
        let length = body.len();
        format!("POST /v1/channels HTTP/1.1\r\n{end}Content-Length: {length}\r\n\r\n{body}")
    };
    let sent = AtomicU64::new(0);
    let began = Instant::now();
    trial.endures(&topology, || {
        // From one station: its own pace, then a number of channels that it may leave unfunded.
        let many: String = (0..400).map(|number| opening(number, number == 399)).collect();
        let (_, answers) = send(&topology.freeloader, many.as_bytes())?;
        let refused = answers.matches("too-many-opens").count();
        ensure!(refused >= 380, "{refused}");
        // From many.
        let mut number = 1_000;
        let until = Instant::now() + Duration::from_secs(8);
        while Instant::now() < until {
            topology.freeloader.block_on(async || {
                for address in &addresses {
                    if Instant::now() > until {
                        break;
                    }
                    // Its handshake may be beyond what is free.
                    let connecting = connect_from(*address);
                    let Ok(Ok(mut stream)) = tokio::time::timeout(SOON, connecting).await else {
                        continue;
                    };
                    for _ in 0..8 {
                        let written = stream.write_all(opening(number, false).as_bytes()).await;
                        number += 1;
                        sent.fetch_add(u64::from(written.is_ok()), Ordering::Relaxed);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    })?;
    let channels = trial.world.provider_status()?.channels;
    // Fifty at once and ten a second, on one port, and the payer's own.
    let most = 50 + (began.elapsed() + Duration::from_secs(1)).as_secs() * 10 + 1;
    let sent = sent.into_inner();
    println!("{channels} channels of {sent} openings, at most {most}");
    ensure!(sent > most, "{sent} openings are too few to be bounded by {most}");
    ensure!((50..=most).contains(&channels), "{channels} channels, at most {most}");
    let grown = size()?.saturating_sub(before);
    ensure!(grown < 8 << 20, "the data directory grew by {grown} octets");
    let (status, _) = ask(&topology, &Method::GET, "/v1/account", None)?;
    ensure!(status.is_success());
    Ok(())
}

/// Nothing of the operator's is on the LAN.
fn lan_is_shut(topology: &Topology) -> Result<()> {
    for path in ["/v1/status", "/v1/wallet", "/v1/stations", "/v1/refunds", "/metrics", "/health"] {
        let (status, _) = ask(topology, &Method::GET, path, None)?;
        ensure!(status.as_u16() == 404, "{path}: {status}");
    }
    Ok(())
}

/// What `bitmesh status` gives to a user of one group and of no other.
fn status_as(world: &World<'_>, uid: u32, gid: u32) -> Result<std::process::Output> {
    let program = world.data().join("bitmesh");
    if !program.exists() {
        fs::copy(bitmesh()?, &program)?;
    }
    let mut command = std::process::Command::new(program);
    // Who changes its user as root loses root's other groups, too.
    command.args(["status", "--data-dir"]).arg(world.provider.directory()).uid(uid).gid(gid);
    Ok(command.output()?)
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

#[test]
fn a5_nobody_else_administers() -> Result<()> {
    let topology = Topology::edge()?;
    let world = World::new(&topology, &Trade::default())?;
    lan_is_shut(&topology)?;
    // Another user doesn't get to the socket, and is known when the way is left open.
    let directory = world.provider.directory().to_owned();
    let socket = directory.join("admin.sock");
    ensure!(mode(&socket)? == 0o600 && mode(&directory)? == 0o700);
    let said = status_as(&world, NOBODY, NOBODY)?.stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(said.contains("no bitmesh runs") || said.contains("did not answer"), "{said}");
    is_not_admitted_by_an_open_way(&world)?;
    // Root does, and who runs the daemon.
    world.provider_status()?;
    Ok(())
}

/// Whoever gets to the socket all the same is known there.
fn is_not_admitted_by_an_open_way(world: &World<'_>) -> Result<()> {
    let directory = world.provider.directory();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711))?;
    fs::set_permissions(directory.join("admin.sock"), fs::Permissions::from_mode(0o666))?;
    let output = status_as(world, NOBODY, NOBODY)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("not-admitted"), "{said}");
    ensure!(said.contains("--admin-group"), "{said}");
    Ok(())
}

#[test]
fn a5_members_of_the_admin_group_administer_and_others_do_not() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { sell: &["--admin-group", GROUP], ..Trade::default() };
    let world = World::new(&topology, &trade)?;
    lan_is_shut(&topology)?;
    let directory = world.provider.directory().to_owned();
    let socket = directory.join("admin.sock");
    let group = fs::metadata(&socket)?.gid();
    ensure!(group == fs::metadata(&directory)?.gid() && ![0, NOBODY].contains(&group), "{group}");
    ensure!(mode(&socket)? == 0o660 && mode(&directory)? == 0o710);
    let member = status_as(&world, NOBODY, group)?;
    let said = String::from_utf8_lossy(&member.stderr).into_owned();
    ensure!(member.status.success(), "{said}");
    ensure!(String::from_utf8_lossy(&member.stdout).contains("regtest"));
    // Its way leads to the socket, and to nothing else there; the log is this test's own.
    for file in fs::read_dir(&directory)?.flatten() {
        let path = file.path();
        ensure!(path == socket || mode(&path)? % 0o100 == 0 || path.ends_with("log"), "{path:?}");
    }
    let stranger = status_as(&world, NOBODY, NOBODY)?;
    ensure!(!stranger.status.success(), "who is no member got in");
    is_not_admitted_by_an_open_way(&world)?;
    lan_is_shut(&topology)?;
    world.provider_status()?;
    Ok(())
}

#[test]
fn a7_the_daemon_has_no_right_that_it_does_not_need_and_takes_payments() -> Result<()> {
    let topology = Topology::edge()?;
    let trial = Trial::begin(&topology)?;
    let pid = trial.world.provider.pid().context("a running provider")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).map(ToOwned::to_owned).with_context(|| name.to_owned())
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(u64::from_str_radix(&field(set)?, 16)? == 0, "{set} {}", field(set)?);
    }
    ensure!(field("NoNewPrivs:")? == "1");
    ensure!(field("Uid:")?.split_whitespace().all(|uid| uid != "0"), "{}", field("Uid:")?);
    ensure!(field("Gid:")?.split_whitespace().all(|gid| gid != "0"), "{}", field("Gid:")?);
    ensure!(field("Groups:")?.is_empty(), "{}", field("Groups:")?);
    // The guard has three, and none of them opens the way to others.
    let guard = trial.world.provider_status()?.guard.pid;
    let guards = fs::read_to_string(format!("/proc/{guard}/status"))?;
    let bounding =
        guards.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("CapBnd")?;
    let bounding = u64::from_str_radix(bounding.trim(), 16)?;
    let (net_admin, dac_read_search, bpf) = (1 << 12, 1 << 2, 1u64 << 39);
    ensure!(bounding & !(net_admin | dac_read_search | bpf) == 0, "{bounding:x}");
    trial.endures(&topology, || {
        thread::sleep(Duration::from_secs(3));
        Ok(())
    })
}
