//! What people and hostile peers get wrong: each gets a clear answer, and nothing changes.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode},
};
use bitcoin::{Amount, Network};
use bitmesh_core::wire::ErrorBody;
use bitmesh_tests::{
    daemon::{Daemon, bitmesh, eventually},
    netns::Namespace,
    postgres::{self, Server},
    regtest::{Node, PASSWORD, USER},
    sabotage::pins_of,
    sweep::{own_name, sweep},
    topology::{EDGE_V4, LAN, Topology},
    world::{Trade, World, ask, instance},
};
use bitmesh_user::{
    dataplane,
    wallet::{Seed, Words, seed},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

const COINS: Amount = Amount::from_sat(200_000);
const NOBODY: u32 = 65_534;

/// `bitmesh sell` in a namespace with a node of its own; gives what it says when it fails.
fn sell_fails(namespace: &Namespace, args: &[&str]) -> Result<String> {
    let data = tempfile::tempdir()?;
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711))?;
    let args = [&["sell"], args].concat();
    let mut daemon = Daemon::new(namespace, &data.path().join("sell"), &args)?;
    daemon.spawn()?;
    daemon.wait_for_failure()
}

#[test]
fn what_is_wrong_with_a_box_is_said_with_what_to_do() -> Result<()> {
    sweep();
    let namespace = Namespace::create("misuse")?;
    let peer = Namespace::create("peer")?;
    namespace.connect(LAN, &peer, LAN)?;
    namespace.address(LAN, EDGE_V4, 24)?;
    let node = Node::start(&namespace)?;
    let url = node.url("127.0.0.1");
    let dead = "http://127.0.0.1:1";
    let instance = instance();
    let common = ["--node-user", USER, "--node-password", PASSWORD, "--instance", &instance];
    let good = [&common[..], &["--network", "regtest", "--node", &url, "--lan", LAN]].concat();
    let with = |more: &[&'static str]| [&good[..], more].concat();
    let cases: &[(Vec<&str>, &[&str])] = &[
        (common.to_vec(), &["--lan is missing", "ip link"]),
        (
            [&common[..], &["--network", "regtest", "--node", dead, "--lan", LAN]].concat(),
            &["no answer from the node", "--node"],
        ),
        (
            [&common[..], &["--network", "signet", "--node", &url, "--lan", LAN]].concat(),
            &["is on regtest", "--network"],
        ),
        (
            [&common[..], &["--network", "regtest", "--node", &url, "--lan", "nope0"]].concat(),
            &["no interface nope0", "ip link"],
        ),
        (with(&["--wan", LAN]), &["same port"]),
        (with(&["--price", "0"]), &["--price"]),
        (with(&["--table-slots", "1000"]), &["power of two"]),
        (with(&["--config", "/nonexistent.toml"]), &["/nonexistent.toml"]),
    ];
    for (args, told) in cases {
        let said = sell_fails(&namespace, args)?;
        for text in *told {
            assert!(said.contains(text), "{args:?}: {said}");
        }
        assert!(said.contains("error: "), "{args:?}: {said}");
    }

    // That it was tried before makes it none that sold.
    let data = tempfile::tempdir()?;
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711))?;
    let chain = ["--network", "regtest", "--node", dead, "--lan", LAN];
    let args = [&["sell"], &common[..], &chain].concat();
    let mut daemon = Daemon::new(&namespace, &data.path().join("sell"), &args)?;
    for _ in 0..2 {
        daemon.spawn()?;
        assert!(daemon.wait_for_failure()?.contains("no answer from the node"));
        // The guard ends after the daemon.
        eventually("nothing that a start which failed left", Duration::from_secs(5), || {
            Ok((!pins_of(&instance).exists()).then_some(()))
        })?;
    }

    let mut object = EbpfLoader::new().btf(None).load(dataplane::OBJECT)?;
    let other: &mut Xdp = object.program_mut("empty_xdp").context("the program")?.try_into()?;
    other.load()?;
    namespace.run(|| Ok(other.attach(LAN, XdpMode::Driver).map(drop)?))?;
    let said = sell_fails(&namespace, &with(&["--upload-hook", "xdp"]))?;
    assert!(said.contains("already carries XDP program") && said.contains("xdp off"), "{said}");
    assert!(!dataplane::purge(&instance)?, "a start that failed left something behind");
    Ok(())
}

#[test]
fn a_wrong_login_a_taken_port_and_a_missing_right_are_told_apart() -> Result<()> {
    sweep();
    let namespace = Namespace::create("misuse2")?;
    let peer = Namespace::create("peer2")?;
    namespace.connect(LAN, &peer, LAN)?;
    namespace.address(LAN, EDGE_V4, 24)?;
    let node = Node::start(&namespace)?;
    let url = node.url("127.0.0.1");
    let instance = instance();
    let base = ["--network", "regtest", "--node", &url, "--lan", LAN, "--instance", &instance];
    let wrong = [&base[..], &["--node-user", USER, "--node-password", "wrong"]].concat();
    let said = sell_fails(&namespace, &wrong)?;
    assert!(said.contains("refuses the login"), "{said}");

    let login = ["--node-user", USER, "--node-password", PASSWORD];
    let listener = namespace.run(|| Ok(std::net::TcpListener::bind("[::]:8434")?))?;
    let said = sell_fails(&namespace, &[&base[..], &login].concat())?;
    assert!(said.contains("port 8434") && said.contains("--api-port"), "{said}");
    drop(listener);
    let _ = dataplane::purge(&instance);

    let data = tempfile::tempdir()?;
    chown(data.path(), Some(NOBODY), Some(NOBODY))?;
    // The build's folders may be closed to others.
    let program = data.path().join("bitmesh");
    fs::copy(bitmesh()?, &program)?;
    let mut command = namespace.command(&program)?;
    command.arg("sell").args(base).args(login).arg("--data-dir").arg(data.path().join("sell"));
    // After the namespace is entered, which takes root: `Command::uid` would come before.
    // SAFETY: three system calls without memory of ours, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let done = libc::setgroups(0, std::ptr::null()) == 0
                && libc::setgid(NOBODY) == 0
                && libc::setuid(NOBODY) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("root") && said.contains("CAP_BPF"), "{said}");
    Ok(())
}

#[test]
fn another_seed_or_a_second_daemon_does_not_touch_the_data() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let mut second = topology.edge.command(bitmesh()?)?;
    second.args(["sell", "--lan", LAN, "--network", "regtest", "--node", "http://127.0.0.1:1"]);
    let output = second.arg("--data-dir").arg(world.provider.directory()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("in use by another bitmesh"), "{said}");

    world.provider.stop()?;
    let directory = world.provider.directory().to_owned();
    let files = ["seed", "seed.key"].map(|name| directory.join(name));
    let own = [fs::read(&files[0])?, fs::read(&files[1])?];
    let other = tempfile::tempdir()?;
    Seed::new(Words::generate()?, None)?.keep(other.path(), Network::Regtest, 0)?;
    for (name, file) in ["seed", "seed.key"].iter().zip(&files) {
        fs::copy(other.path().join(name), file)?;
    }
    world.provider.spawn()?;
    let said = world.provider.wait_for_failure()?;
    assert!(said.contains("seed words are not those"), "{said}");
    for file in &files {
        fs::remove_file(file)?;
    }
    world.provider.spawn()?;
    let said = world.provider.wait_for_failure()?;
    assert!(said.contains("seed is missing") && said.contains("wallet restore"), "{said}");
    for (file, content) in files.iter().zip(&own) {
        fs::write(file, content)?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    }
    world.provider.start()
}

/// The server speaks TLS from now on, with a certificate of its own for this address, which is given.
fn certify(server: &Server<'_>, address: &str) -> Result<PathBuf> {
    let file = |name: &str| server.socket().join(name);
    let (key, certificate) = (file("server.key"), file("server.crt"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt"]);
    openssl.args(["ec_paramgen_curve:P-256", "-days", "2", "-subj", "/CN=database"]);
    openssl.args(["-addext", &format!("subjectAltName=IP:{address}")]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    let made = openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    chown(&key, Some(NOBODY), Some(NOBODY))?;
    for (setting, file) in [("ssl_key_file", &key), ("ssl_cert_file", &certificate)] {
        let change = format!("ALTER SYSTEM SET {setting} = '{}'", file.display());
        server.sql("postgres", &change)?;
    }
    server.sql("postgres", "ALTER SYSTEM SET ssl = on")?;
    server.sql("postgres", "SELECT pg_reload_conf()")?;
    Ok(certificate)
}

#[test]
fn a_database_that_a_fleet_cant_use_is_said_with_what_to_do() -> Result<()> {
    sweep();
    let namespace = Namespace::create("misuse3")?;
    let edges = [Namespace::create("misuse3-a")?, Namespace::create("misuse3-b")?];
    let peer = Namespace::create("peer3")?;
    for (i, edge) in edges.iter().enumerate() {
        edge.connect(LAN, &peer, &format!("lan{i}"))?;
        edge.address(LAN, EDGE_V4, 24)?;
        namespace.connect(&format!("edge{i}"), edge, "node0")?;
        namespace.address(&format!("edge{i}"), &format!("10.79.{i}.1"), 30)?;
        edge.address("node0", &format!("10.79.{i}.2"), 30)?;
    }
    namespace.address("edge1", "fd79::1", 64)?;
    edges[1].address("node0", "fd79::2", 64)?;
    let node = Node::start(&namespace)?;
    let launch = Box::new(|program: &Path| namespace.command(program));
    let database = Server::start(&own_name("misuse3-"), launch, "10.79.0.1,10.79.1.1,fd79::1")?;
    database.create("ledger")?;
    let seed = tempfile::tempdir()?;
    Seed::new(Words::generate()?, None)?.keep(seed.path(), Network::Regtest, 0)?;
    // `login` and `place` are what is before and after the host.
    let edge = |at: usize, name: &str, login: &str, place: &str, seed: Option<&Path>| {
        let host = format!("10.79.{at}.1");
        let (store, url) = (format!("{login}@{host}{place}"), node.url(&host));
        let data = tempfile::tempdir()?;
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711))?;
        let source = ["--node", &url, "--node-user", USER, "--node-password", PASSWORD];
        let instance = instance();
        let own = ["sell", "--network", "regtest", "--lan", LAN, "--instance", &instance];
        let args = [&own[..], &source, &["--store", &store, "--edge", name]].concat();
        let directory = data.path().join("sell");
        let daemon = Daemon::new(edges.get(at).context("an edge")?, &directory, &args)?;
        for from in seed.iter().flat_map(|seed| seed::FILES.map(|file| seed.join(file))) {
            if let Some(name) = from.file_name().filter(|_| from.exists()) {
                fs::copy(&from, directory.join(name))?;
            }
        }
        anyhow::Ok((data, daemon))
    };
    let refused = |name: &str, login: &str, place: &str, seed: Option<&Path>, told: &[&str]| {
        let (_data, mut daemon) = edge(1, name, login, place, seed)?;
        daemon.spawn()?;
        let said = daemon.wait_for_failure()?;
        for text in told {
            assert!(said.contains(text), "{login} {place}: {said}");
        }
        assert!(!said.contains(postgres::PASSWORD), "a password was told: {said}");
        anyhow::Ok(said)
    };
    let good = format!("postgres://{}:{}", postgres::USER, postgres::PASSWORD);
    let wrong = format!("postgres://{}:wrong", postgres::USER);
    let mysql = good.replace("postgres", "mysql");
    let seed = Some(seed.path());
    refused("b", &mysql, "/ledger", None, &["--store", "postgres://"])?;
    refused("b", &good, ":1/ledger", None, &["can't be used", "Start the server"])?;
    refused("b", &wrong, "/ledger", None, &["refuses bitmesh", "password"])?;
    refused("b", &good, "/nowhere", None, &["does not exist", "createdb"])?;

    let certificates = tempfile::tempdir()?;
    fs::set_permissions(certificates.path(), fs::Permissions::from_mode(0o755))?;
    let kept = certificates.path().join("databases.crt");
    let place = format!("/ledger?sslmode=verify-full&sslrootcert={}", kept.display());
    let unverified = |told: &[&str]| {
        let told = [&["does not show who it is", "sslrootcert"], told].concat();
        refused("b", &good, &place, None, &told)
    };
    unverified(&["databases.crt: No such file"])?;
    fs::write(&kept, "")?;
    unverified(&["does not support TLS", "ssl = on"])?;
    fs::copy(certify(&database, "10.79.0.1")?, &kept)?;
    unverified(&["10.79.1.1: ", "not valid for name"])?;
    let certificate = certify(&database, "10.79.1.1")?;
    let said = unverified(&["10.79.1.1: ", "invalid peer certificate"])?;
    assert!(!said.contains("not valid for name"), "{said}");
    fs::copy(certificate, &kept)?;
    let (_data, mut verified) = edge(1, "b", &good, &place, seed)?;
    verified.start()?;
    let secret = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                  WHERE application_name = 'bitmesh'";
    assert_eq!(database.sql("postgres", secret)?, "t");
    let warning = "need not show who they are";
    let said = verified.log();
    assert!(!said.contains(warning), "{said}");
    verified.stop()?;
    let (_data, mut sixth) = edge(1, "c", &good, ":1,[fd79::1]/ledger", seed)?;
    sixth.start()?;
    sixth.stop()?;

    let (_data, mut first) = edge(0, "a", &good, "/ledger", seed)?;
    first.start()?;
    refused("a", &good, "/ledger", seed, &["another edge that is called a", "--edge"])?;
    refused("b", &good, "/ledger", None, &["another seed", "--store"])?;
    let status = first.cli(&["status"])?;
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(said.contains(warning) && said.contains("10.79.0.1"), "{said}");
    first.stop()?;
    database.sql("ledger", "UPDATE layout SET number = 99")?;
    refused("b", &good, "/ledger", seed, &["has layout 99", "newer"]).map(drop)
}

#[test]
fn hostile_requests_get_an_answer_and_change_nothing() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    world.open_channel(COINS)?;
    let before = world.channel()?.1;
    let payments = format!("/v1/channels/{}/payments", before.channel);
    let close = format!("/v1/channels/{}/close", before.channel);
    let unknown = format!("/v1/channels/{}/payments", "00".repeat(32));
    let junk = json!({"paid_sat": 1_000, "signature": "11".repeat(64)});
    let cases = [
        (&payments, junk.clone(), 403, "wrong-signature"),
        (&payments, json!({"paid_sat": 0, "signature": "11".repeat(64)}), 409, "stale-payment"),
        (
            &payments,
            json!({"paid_sat": u64::MAX, "signature": "11".repeat(64)}),
            422,
            "payment-too-large",
        ),
        (&payments, json!({"paid_sat": 1.5, "signature": "11".repeat(64)}), 400, "json"),
        (&payments, json!({"paid_sat": 1_000}), 400, "json"),
        (&payments, json!([junk]), 400, "json"),
        (&unknown, junk.clone(), 404, "unknown-channel"),
        (&close, json!({"signature": "11".repeat(64)}), 403, "wrong-signature"),
        (&"/v1/channels".to_owned(), json!({"offer": "00".repeat(32)}), 400, "json"),
    ];
    for (path, body, status, code) in cases {
        let (got, answer) = ask(&topology, &Method::POST, path, Some(&body))?;
        let error: ErrorBody = serde_json::from_value(answer).context("an error's body")?;
        assert_eq!((got.as_u16(), error.error.as_str()), (status, code), "{path} {body}");
        assert!(!error.r#try.is_empty());
    }

    // A head that never ends, and one that is too long.
    let slow = topology.subscriber.run(|| {
        let mut stream = TcpStream::connect((EDGE_V4, 8_434))?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        stream.write_all(b"GET /v1/offer HTTP/1.1\r\nHost: x\r\n")?;
        let mut answer = Vec::new();
        Ok(std::io::Read::read_to_end(&mut stream, &mut answer).map(|_| answer))
    })?;
    assert!(slow.is_ok(), "a slow client is let go within its deadline");
    let long = topology.subscriber.run(|| {
        let mut stream = TcpStream::connect((EDGE_V4, 8_434))?;
        stream.set_read_timeout(Some(Duration::from_secs(15)))?;
        let head = format!("GET /v1/offer HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
        // It may be refused before it is all sent.
        let _ = stream.write_all(head.as_bytes());
        let mut answer = [0; 12];
        let read = std::io::Read::read_exact(&mut stream, &mut answer);
        Ok(read.map(|()| String::from_utf8_lossy(&answer).into_owned()))
    })?;
    // What is cut off may lose its answer.
    let is_reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(long.as_ref().map_or_else(is_reset, |head| head == "HTTP/1.1 431"), "{long:?}");

    let after = world.channel()?.1;
    assert_eq!((before.status, before.commitments), (after.status, after.commitments));
    assert_eq!(ask(&topology, &Method::GET, "/v1/offer", None)?.0, StatusCode::OK);
    Ok(())
}
