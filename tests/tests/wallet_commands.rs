//! `bitmesh wallet` as somebody uses it who has never seen it: on a terminal, in scripts, with
//! mistakes, and by the document.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_tests::{
    commands::Desk,
    daemon::{Daemon, eventually},
    netns::Namespace,
    regtest::{Node, PASSWORD, USER},
    sweep::own_name,
    terminal::Session,
    topology::{LAN, NODE_FOR_EDGE, Topology},
};
use bitmesh_user::{
    api::{AddressReport, PastKind, PastReport, SendReport, SendState},
    dataplane,
    runloop::status::WalletStatus,
    wallet::{Passphrase, Sealed, Words},
};
use serde_json::{Value, json};

const LOCALHOST: &str = "127.0.0.1";
const COINS: Amount = Amount::from_sat(200_000);
const PASSPHRASE: &str = "a horse, a battery, a staple";

fn with_desk(
    name: &str,
    test: impl FnOnce(&Desk<'_>, &Node<'_>, &Path) -> Result<()>,
) -> Result<()> {
    let namespace = Namespace::create(name)?;
    let node = Node::start(&namespace)?;
    let folder = tempfile::tempdir()?;
    let desk = Desk::new(&namespace, &node, LOCALHOST, &folder.path().join("buy"));
    test(&desk, &node, folder.path())
}

fn private_file(path: &Path, text: &str) -> Result<String> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(path.display().to_string())
}

fn receive(desk: &Desk<'_>, node: &Node<'_>) -> Result<()> {
    let AddressReport { address } = desk.json(&["wallet", "address"])?;
    node.send(&address, COINS)?;
    node.mine(1)
}

#[test]
fn a_wallet_is_made_paid_and_spent_from() -> Result<()> {
    with_desk("newuser", |desk, node, folder| {
        assert!(desk.fails(&["wallet"])?.contains("bitmesh wallet create"));
        let words = folder.join("words.txt").display().to_string();
        assert!(desk.fails(&["wallet", "create"])?.contains("--words-file"));
        let made: Value = desk.json(&["wallet", "create", "--words-file", &words])?;
        assert_eq!(made["network"], "regtest");
        assert_eq!(fs::metadata(&words)?.permissions().mode() & 0o777, 0o600);
        Words::parse(&fs::read_to_string(&words)?)?;
        assert!(desk.fails(&["wallet", "create"])?.contains("is there already"));

        let asked = ["wallet", "address", "--amount", "50000", "--label", "for internet"];
        let uri = desk.run(&asked)?;
        assert!(uri.starts_with("bitcoin:bcrt1q") && uri.contains("amount=0.0005"), "{uri}");
        assert!(uri.contains("label=for%20internet"), "{uri}");
        assert!(desk.run(&["wallet", "history"])?.contains("nothing has come"));
        receive(desk, node)?;
        let status: WalletStatus = desk.json(&["wallet", "balance"])?;
        assert_eq!((status.confirmed_sat, status.pending_sat), (COINS.to_sat(), 0));
        assert_eq!(Value::from(status.fingerprint), made["fingerprint"]);

        let to: String = node.call("getnewaddress", json!([]))?;
        let pay = ["wallet", "send", &to, "50000"];
        assert!(desk.fails(&pay)?.contains("--yes"));
        let sent: SendReport = desk.json(&[&pay[..], &["--yes", "--fee-rate", "3"]].concat())?;
        assert_eq!((sent.amount_sat, sent.state), (50_000, SendState::Sent));
        assert_eq!(sent.amount_sat + sent.fee_sat + sent.change_sat, COINS.to_sat());
        assert!((sent.vbytes * 3..sent.vbytes * 3 + 8).contains(&sent.fee_sat), "{}", sent.fee_sat);
        let txid = sent.txid.context("a transaction")?;
        assert_eq!(node.mempool()?, [txid]);
        assert!(node.transaction(txid, None)?.is_explicitly_rbf());
        node.mine(1)?;
        let history: Vec<PastReport> = desk.json(&["wallet", "history"])?;
        let told: Vec<_> = history.iter().map(|past| (past.kind, past.amount_sat)).collect();
        let came = i64::try_from(COINS.to_sat())?;
        assert_eq!(told, [(PastKind::Sent, -50_000), (PastKind::Received, came)]);
        assert!(history.iter().all(|past| past.height.is_some()));

        let all = ["wallet", "send", &to, "all", "--yes", "--fee", "slow"];
        let sent: SendReport = desk.json(&all)?;
        assert_eq!(sent.change_sat, 0);
        node.mine(1)?;
        let status: WalletStatus = desk.json(&["wallet"])?;
        assert_eq!((status.confirmed_sat, status.pending_sat), (0, 0));
        Ok(())
    })
}

#[test]
fn what_is_wrong_with_a_payment_is_said_and_nothing_is_sent() -> Result<()> {
    with_desk("wrongpay", |desk, node, folder| {
        let words = folder.join("words.txt").display().to_string();
        desk.run(&["wallet", "create", "--words-file", &words])?;
        receive(desk, node)?;
        let to: String = node.call("getnewaddress", json!([]))?;
        let main = "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu";
        let cases: [(&[&str], &str); 7] = [
            (&[main, "5000"], "is an address on bitcoin, and this wallet is on regtest"),
            (&["bogus", "5000"], "no address"),
            (&[&to, "100"], "dust"),
            (&[&to, "200000"], "200000 sat are in confirmed outputs"),
            (&[&to, "5.5"], "a number of satoshi"),
            (&[&to, "5000", "--fee-rate", "0"], "--fee-rate"),
            (&[&to, "5000", "--fee-rate", "5001"], "--fee-rate"),
        ];
        for (args, told) in cases {
            let said = desk.fails(&[&["wallet", "send", "--yes"], args].concat())?;
            assert!(said.contains(told), "{args:?}: {said}");
        }
        assert!(node.mempool()?.is_empty());
        let status: WalletStatus = desk.json(&["wallet"])?;
        assert_eq!(status.confirmed_sat, COINS.to_sat());
        let said = desk.fails(&["wallet", "--network", "signet"])?;
        assert!(said.contains("is for a wallet on regtest, not on signet"), "{said}");
        Ok(())
    })
}

#[test]
fn words_come_back_however_they_are_spelled_and_typos_are_named() -> Result<()> {
    with_desk("restore", |desk, node, folder| {
        let words = folder.join("words.txt");
        let file = words.display().to_string();
        let made: Value = desk.json(&["wallet", "create", "--words-file", &file])?;
        receive(desk, node)?;
        let text = fs::read_to_string(&words)?;
        let mut listed: Vec<_> = text.split_whitespace().map(ToOwned::to_owned).collect();
        let restore = |name: &str, text: &str| -> Result<Command> {
            let file = private_file(&folder.join("typed.txt"), text)?;
            let to = folder.join(name).display().to_string();
            let mut command = desk.bitmesh(&["wallet", "restore", "--json", "--data-dir", &to])?;
            command.args(["--words-file", &file]);
            Ok(command)
        };
        let fails = |name: &str, text: &str| -> Result<String> {
            let output = restore(name, text)?.output()?;
            ensure!(!output.status.success(), "{name}");
            Ok(String::from_utf8(output.stderr)?)
        };

        let right = listed[2].clone();
        listed[2] = format!("{right}x");
        let said = fails("typo", &listed.join(" "))?;
        assert!(said.contains("word 3 is not on BIP39's English list"), "{said}");
        assert!(said.contains(&right), "{said}");
        listed[2] = right;
        let said = fails("short", &listed[..11].join(" "))?;
        assert!(said.contains("these are 11"), "{said}");
        assert!(!folder.join("short/seed").exists(), "nothing is kept of what was wrong");

        let lines = (1..).zip(&listed).map(|(number, word)| format!("{number}. {word}"));
        let typed = lines.collect::<Vec<_>>().join("\n").to_uppercase();
        let output = restore("again", &typed)?.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let status: WalletStatus = serde_json::from_slice(&output.stdout)?;
        assert_eq!(status.confirmed_sat, COINS.to_sat());
        assert_eq!(Value::from(status.fingerprint), made["fingerprint"]);
        Ok(())
    })
}

#[test]
fn on_a_terminal_words_are_shown_once_and_the_passphrase_is_asked_for() -> Result<()> {
    with_desk("terminal", |desk, _, folder| {
        let mut session = Session::start(desk.bitmesh(&["wallet", "create"])?)?;
        session.expect("New passphrase: ")?;
        session.say_hidden("short")?;
        session.expect("8 characters or more")?;
        session.expect("New passphrase: ")?;
        session.say_hidden(PASSPHRASE)?;
        session.expect("The same again: ")?;
        session.say_hidden("another passphrase")?;
        session.expect("two different ones")?;
        session.expect("New passphrase: ")?;
        session.say_hidden(PASSPHRASE)?;
        session.expect("The same again: ")?;
        session.say_hidden(PASSPHRASE)?;
        session.expect("Press Enter once they are on paper")?;
        session.say("")?;
        let (succeeded, said) = session.end()?;
        ensure!(succeeded, "{said}");
        assert!(!said.contains(PASSPHRASE), "it is not shown while it is typed");
        assert!(said.contains("Birthday: block ") && said.contains("\x1b[2J"), "{said}");
        assert!(Sealed::read(&folder.join("buy"))?.takes_passphrase());

        let mut session = Session::start(desk.bitmesh(&["wallet", "words"])?)?;
        session.expect("Passphrase of the wallet: ")?;
        session.say_hidden("a horse, a battery, a stable")?;
        session.expect("try again")?;
        session.expect("Passphrase of the wallet: ")?;
        session.say_hidden(PASSPHRASE)?;
        session.expect("Press Enter once they are on paper")?;
        session.say("")?;
        let (succeeded, again) = session.end()?;
        ensure!(succeeded, "{again}");
        let listed = |said: &str| -> Vec<String> {
            let shown = said.split("Birthday").next().unwrap_or_default();
            let shown = shown.split("has the money.").last().unwrap_or_default();
            shown.split_whitespace().map(ToOwned::to_owned).collect()
        };
        assert_eq!(listed(&said), listed(&again));
        Words::parse(&listed(&said).join(" "))?;

        let mut session = Session::start(desk.bitmesh(&["wallet", "balance"])?)?;
        for _ in 0..3 {
            session.expect("Passphrase of the wallet: ")?;
            session.say_hidden("never right")?;
        }
        let (succeeded, said) = session.end()?;
        ensure!(!succeeded && said.contains("not opened by this passphrase"), "{said}");

        let mut session = Session::start(desk.bitmesh(&["wallet", "address"])?)?;
        session.expect("Passphrase of the wallet: ")?;
        session.say_hidden(PASSPHRASE)?;
        let (succeeded, said) = session.end()?;
        ensure!(succeeded && said.contains('█') && said.contains("bitcoin:bcrt1q"), "{said}");

        // Without a terminal: from a file, or not at all.
        assert!(desk.fails(&["wallet"])?.contains("--passphrase-file"));
        let wrong = private_file(&folder.join("wrong"), "never right\n")?;
        let said = desk.fails(&["wallet", "--passphrase-file", &wrong])?;
        assert!(said.contains("not opened by this passphrase"), "{said}");
        let right = private_file(&folder.join("right"), &format!("{PASSPHRASE}\n"))?;
        desk.run(&["wallet", "--passphrase-file", &right])?;

        // And changed: to none, and back.
        let new = private_file(&folder.join("new"), "another passphrase")?;
        let change = ["wallet", "passphrase", "--passphrase-file"];
        desk.run(&[&change[..], &[&right, "--new-passphrase-file", &new]].concat())?;
        assert!(desk.fails(&["wallet", "--passphrase-file", &right])?.contains("not opened"));
        desk.run(&["wallet", "--passphrase-file", &new])?;
        Ok(())
    })
}

#[test]
fn a_daemon_opens_its_seed_with_a_credential_and_logs_no_secret() -> Result<()> {
    let topology = Topology::edge()?;
    let node = Node::start(&topology.chain)?;
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    let passphrase = private_file(&folder.path().join("passphrase"), PASSPHRASE)?;
    let (url, home) = (node.url(NODE_FOR_EDGE), folder.path().join("sell"));
    let instance = own_name("credential");
    let args = ["sell", "--lan", LAN, "--network", "regtest", "--instance", &instance];
    let chain = ["--node", &url, "--node-user", USER, "--node-password", PASSWORD];
    let args = [&args[..], &chain, &["--passphrase-file", &passphrase]].concat();
    let mut daemon = Daemon::new(&topology.edge, &home, &args)?;
    daemon.start()?;

    let desk = Desk::new(&topology.edge, &node, NODE_FOR_EDGE, &home);
    receive(&desk, &node)?;
    let to: String = node.call("getnewaddress", json!([]))?;
    eventually("money", Duration::from_secs(20), || {
        let status: WalletStatus = desk.json(&["wallet"])?;
        Ok((status.confirmed_sat > 0).then_some(()))
    })?;
    let sent: SendReport = desk.json(&["wallet", "send", &to, "30000", "--yes"])?;
    assert_eq!(sent.state, SendState::Sent);
    assert_eq!(node.mempool()?, sent.txid.into_iter().collect::<Vec<_>>());
    assert!(desk.fails(&["channels", "export-refund"])?.contains("a provider has no refunds"));

    daemon.stop()?;
    assert!(!home.join("seed.key").exists());
    let seed = Sealed::read(&home)?.open(Some(&Passphrase::new(PASSPHRASE.into())))?;
    let log = daemon.log();
    assert!(log.contains("new seed words are sealed in"), "{log}");
    let words: Vec<_> = seed.words().iter().collect();
    for pair in words.windows(2) {
        assert!(!log.contains(&pair.join(" ")), "words are in the log");
    }
    assert!(!log.contains(PASSPHRASE), "the passphrase is in the log");
    let database = fs::read(home.join("bitmesh.sqlite"))?;
    let held = String::from_utf8_lossy(&database).into_owned();
    assert!(!held.contains(&words.join(" ")) && !held.contains("tprv"), "the database holds keys");

    // The same as a service gets it.
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials)?;
    private_file(&credentials.join("bitmesh-passphrase"), PASSPHRASE)?;
    let status: WalletStatus = {
        let mut command = desk.bitmesh(&["wallet", "--json"])?;
        let output = command.env("CREDENTIALS_DIRECTORY", &credentials).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout)?
    };
    assert!(status.confirmed_sat + status.pending_sat > 0);
    daemon.spawn()?;
    daemon.stop()?;
    let _ = dataplane::purge(&instance);
    Ok(())
}

#[test]
fn the_commands_of_the_document_do_what_it_says() -> Result<()> {
    with_desk("document", |desk, node, folder| {
        let document =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/WALLET.md"))?;
        let mut ran = 0;
        for block in document.split("\n```sh\n").skip(1) {
            let script = block.split("\n```").next().context("an end of the block")?;
            let output = desk.script(folder, node, script)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{script}\n{said}");
            ran += 1;
            if desk.run(&["wallet", "--passphrase-file", &passphrase(folder)]).is_ok() {
                fund(desk, node, folder)?;
            }
        }
        ensure!(ran >= 5, "{ran} blocks");
        Ok(())
    })
}

fn passphrase(folder: &Path) -> String {
    folder.join("passphrase.txt").display().to_string()
}

fn fund(desk: &Desk<'_>, node: &Node<'_>, folder: &Path) -> Result<()> {
    let file = passphrase(folder);
    let AddressReport { address } =
        desk.json(&["wallet", "address", "--passphrase-file", &file])?;
    node.send(&address, COINS)?;
    node.mine(1)
}
