//! A real Bitcoin node on a chain of its own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bitcoin::{Address, Amount, BlockHash, Network, Transaction, Txid, consensus::encode};
use bitmesh_user::http;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{netns::Namespace, sweep::own_name};

/// User of the node's RPC.
pub const USER: &str = "lab";
/// Password of the node's RPC, which only namespaces of the run reach.
pub const PASSWORD: &str = "lab";
/// Port of the node's RPC.
const PORT: u16 = 18_443;
/// How far above it is the port for peers.
const PEER_PORT_ABOVE: u16 = 1_000;
/// Time that a node has to start.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// Methods of ours that ask a wallet.
const WALLET_METHODS: [&str; 3] = ["getnewaddress", "gettransaction", "sendtoaddress"];
/// Blocks of a new chain. A reward can be spent 100 blocks after its own. And wallets lock one payment
/// of ten until a height of up to 99 blocks ago, against fee sniping: Knots takes a payment that is locked
/// until height 21 for a parasite (`parasite-cat21`), and hands it to nobody. With room for reorganisations.
const FIRST_BLOCKS: u32 = 140;

/// The node's program: `BITCOIND`, then `PATH`, then what `cargo xtask setup` fetched.
pub fn bitcoind() -> Result<PathBuf> {
    if let Some(named) = env::var_os("BITCOIND") {
        return Ok(named.into());
    }
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| {
        env::split_paths(&path).map(|folder| folder.join("bitcoind")).collect::<Vec<_>>()
    });
    let home = env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from);
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    on_path
        .chain([cache.join("bitmesh/bin/bitcoind")])
        .find(|program| program.is_file())
        .context("no bitcoind; run `cargo xtask setup`, or set BITCOIND to one")
}

/// A running node with a wallet that holds coins. Killed when dropped.
pub struct Node<'a> {
    namespace: &'a Namespace,
    program: PathBuf,
    directory: TempDir,
    process: Option<Child>,
    port: u16,
}

/// Two nodes may share a namespace.
static NEXT_PORT: AtomicU16 = AtomicU16::new(PORT);

impl<'a> Node<'a> {
    /// A new chain, whose first rewards can be spent.
    pub fn start(namespace: &'a Namespace) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(&own_name("node-")).tempdir()?;
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let program = bitcoind()?;
        let mut node = Self { namespace, program, directory, process: None, port };
        node.launch()?;
        node.call::<Value>("createwallet", json!(["lab"]))?;
        node.mine(FIRST_BLOCKS)?;
        Ok(node)
    }

    /// Starts the process again, on the chain that it had.
    pub fn launch(&mut self) -> Result<()> {
        self.launch_with(&[])
    }

    /// The same, with more settings.
    pub fn launch_with(&mut self, settings: &[&str]) -> Result<()> {
        let log = fs::File::create(self.directory.path().join("out.log"))?;
        let mut command = self.namespace.command(&self.program)?;
        command
            .arg("-regtest")
            .arg(format!("-datadir={}", self.directory.path().display()))
            .args([
                "-listen=1",
                "-listenonion=0",
                "-blockfilterindex=1",
                "-peerblockfilters=1",
                "-dnsseed=0",
                "-fixedseeds=0",
                "-discover=0",
                "-natpmp=0",
                "-server=1",
                "-rpcbind=0.0.0.0",
                "-rpcallowip=10.79.0.0/16",
                "-rpcallowip=127.0.0.1",
                "-fallbackfee=0.00002",
                "-dbcache=16",
                "-maxmempool=5",
                "-printtoconsole=0",
                "-persistmempool=1",
            ])
            .args(settings)
            .arg(format!("-rpcport={}", self.port))
            .arg(format!("-bind=0.0.0.0:{}", self.port + PEER_PORT_ABOVE))
            .arg(format!("-rpcuser={USER}"))
            .arg(format!("-rpcpassword={PASSWORD}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let known = self.process.is_some();
        self.process = Some(command.spawn().with_context(|| {
            format!("starting {}; run `cargo xtask setup`", self.program.display())
        })?);
        let deadline = Instant::now() + START_DEADLINE;
        while let Err(error) = self.call::<Value>("getblockchaininfo", json!([])) {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok()?);
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.directory.path().join("out.log"));
                bail!("the node did not start: {error:#}\n{}", log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if known {
            // Loaded by itself only if it was told to be.
            let _ = self.call::<Value>("loadwallet", json!(["lab"]));
        }
        Ok(())
    }

    /// Where the RPC is for who reaches the node at `address`.
    pub fn url(&self, address: &str) -> String {
        format!("http://{address}:{}", self.port)
    }

    /// Where peers connect to who reach the node at `address`.
    pub fn peer(&self, address: &str) -> String {
        format!("{address}:{}", self.port + PEER_PORT_ABOVE)
    }

    /// Where the chain is kept.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Asks the node.
    #[expect(clippy::needless_pass_by_value, reason = "it is made where it is passed")]
    pub fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T> {
        // Named, for methods of a wallet: a test may have made a second one.
        let path = if WALLET_METHODS.contains(&method) { "/wallet/lab" } else { "" };
        self.ask(path, method, &params)
    }

    /// Asks one of the node's wallets.
    pub fn in_wallet<T: DeserializeOwned>(
        &self,
        wallet: &str,
        method: &str,
        params: &Value,
    ) -> Result<T> {
        self.ask(&format!("/wallet/{wallet}"), method, params)
    }

    fn ask<T: DeserializeOwned>(&self, path: &str, method: &str, params: &Value) -> Result<T> {
        let answer = self.answer(path, method, params)?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            bail!("{method}: {error}");
        }
        let result = answer.get("result").cloned().unwrap_or(Value::Null);
        serde_json::from_value(result).with_context(|| format!("the answer to {method}"))
    }

    fn answer(&self, path: &str, method: &str, params: &Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "1.0", "id": "lab", "method": method, "params": params });
        let url = self.url("127.0.0.1") + path;
        self.namespace.block_on(async || {
            let client = http::plain().timeout(Duration::from_mins(1)).build()?;
            let request = client.post(&url).basic_auth(USER, Some(PASSWORD)).json(&body);
            Ok(request.send().await?.json().await?)
        })
    }

    /// Mines blocks to the node's own wallet.
    pub fn mine(&self, blocks: u32) -> Result<()> {
        let address: String = self.call("getnewaddress", json!([]))?;
        self.call::<Value>("generatetoaddress", json!([blocks, address])).map(drop)
    }

    /// Mines blocks that hold none of the waiting transactions.
    pub fn mine_empty(&self, blocks: u32) -> Result<()> {
        let address: String = self.call("getnewaddress", json!([]))?;
        for _ in 0..blocks {
            self.call::<Value>("generateblock", json!([address, []]))?;
        }
        Ok(())
    }

    /// Sends money from the node's own wallet.
    pub fn send(&self, address: &str, amount: Amount) -> Result<Txid> {
        let address: Address<_> = address.parse()?;
        let address = address.require_network(Network::Regtest)?;
        let txid: Txid = self.call("sendtoaddress", json!([address, amount.to_btc()]))?;
        // The wallet has paid, whatever the node makes of that.
        if !self.mempool()?.contains(&txid) {
            let sent: Value = self.call("gettransaction", json!([txid]))?;
            let hex = sent.get("hex").and_then(Value::as_str).context("a transaction")?;
            let reason = self.refuses(&encode::deserialize_hex(hex)?)?;
            bail!("the node doesn't take its own wallet's {txid}: {reason:?}");
        }
        Ok(txid)
    }

    /// Height of the tip.
    pub fn height(&self) -> Result<u32> {
        self.call("getblockcount", json!([]))
    }

    /// Transactions that wait for a block.
    pub fn mempool(&self) -> Result<Vec<Txid>> {
        self.call("getrawmempool", json!([]))
    }

    /// A transaction in the mempool, or in the block that is named.
    pub fn transaction(&self, txid: Txid, block: Option<BlockHash>) -> Result<Transaction> {
        let hex: String = self.call("getrawtransaction", json!([txid, false, block]))?;
        Ok(encode::deserialize_hex(&hex)?)
    }

    /// Hash of the block at a height.
    pub fn hash_at(&self, height: u32) -> Result<BlockHash> {
        self.call("getblockhash", json!([height]))
    }

    /// Whether the node would take a transaction: `None`, or its reason not to.
    pub fn refuses(&self, tx: &Transaction) -> Result<Option<String>> {
        let hex = encode::serialize_hex(tx);
        let answer: Vec<Value> = self.call("testmempoolaccept", json!([[hex]]))?;
        let answer = answer.first().context("testmempoolaccept gives one answer each")?;
        if answer.get("allowed").and_then(Value::as_bool) == Some(true) {
            return Ok(None);
        }
        let reason = answer.get("reject-reason").and_then(Value::as_str);
        Ok(Some(reason.unwrap_or("no reason").to_owned()))
    }

    /// Hands a transaction to the node.
    pub fn broadcast(&self, tx: &Transaction) -> Result<Txid> {
        self.call("sendrawtransaction", json!([encode::serialize_hex(tx)]))
    }

    /// Takes blocks from the tip down to the one at `height` out of the chain.
    pub fn invalidate_from(&self, height: u32) -> Result<BlockHash> {
        let hash = self.hash_at(height)?;
        self.call::<Value>("invalidateblock", json!([hash]))?;
        Ok(hash)
    }

    /// Asks the process to end, and waits: what it knows is on the disk then.
    pub fn stop(&mut self) -> Result<()> {
        self.call::<Value>("stop", json!([]))?;
        if let Some(process) = &mut self.process {
            process.wait()?;
        }
        Ok(())
    }

    /// Ends the process at once. It forgets blocks that it had not written yet.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}
