//! Bitcoin Core's (and Knots') JSON-RPC, as much of it as is needed.

use std::time::Duration;

use bitcoin::{
    Amount, Block, BlockHash, FeeRate, Network, Transaction,
    block::Header,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use bitmesh_core::bitcoin;
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Broadcast, Cause, ChainError, ChainSource, FEE_RATE_MAX, Kind};
use crate::{
    config::NodeLogin,
    http::{self, root_cause},
};

/// Time that the node has to answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Largest answer that is read: a block of 4 MB in hexadecimal, with room.
const ANSWER_MAX_OCTETS: usize = 10_000_000;
/// `RPC_IN_WARMUP`.
const IN_WARMUP: i64 = -28;
/// `RPC_VERIFY_ALREADY_IN_UTXO_SET`.
const ALREADY_IN_CHAIN: i64 = -27;
/// `RPC_MISC_ERROR`: from `getblock`, that the block's file is gone.
const MISC: i64 = -1;

/// A node's RPC.
#[derive(Clone)]
pub struct NodeRpc {
    http: Client,
    url: String,
    login: NodeLogin,
    network: Network,
}

#[derive(Deserialize)]
struct RpcAnswer {
    result: Option<Value>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    code: i64,
    message: String,
}

#[derive(Deserialize)]
struct ChainInfo {
    chain: String,
    blocks: u32,
    bestblockhash: BlockHash,
    initialblockdownload: bool,
}

#[derive(Deserialize)]
struct FeeEstimate {
    feerate: Option<f64>,
}

#[derive(Deserialize)]
struct MempoolInfo {
    mempoolminfee: f64,
    minrelaytxfee: f64,
}

impl NodeRpc {
    /// The node at `http://host:port`; nothing is asked yet.
    pub fn new(url: &str, login: NodeLogin, network: Network) -> Result<Self, ChainError> {
        let url = url.trim_end_matches('/').to_owned();
        let kind = Kind::Node;
        let wrong = |reason: String| ChainError::Address { kind, address: url.clone(), reason };
        let parsed = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
        if parsed.scheme() != "http" {
            return Err(wrong("it starts with something else than http://".into()));
        }
        let http = http::plain().timeout(DEADLINE).build();
        let http = http.map_err(|error| wrong(error.to_string()))?;
        Ok(Self { http, url, login, network })
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
    ) -> Result<T, ChainError> {
        let (user, password) = self.credentials().await?;
        let body = json!({ "jsonrpc": "1.0", "id": "bitmesh", "method": method, "params": params });
        let request = self.http.post(&self.url).basic_auth(user, Some(password)).json(&body);
        let mut answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => return Err(self.login_refused()),
            StatusCode::FORBIDDEN => return Err(ChainError::Forbidden { url: self.url.clone() }),
            StatusCode::SERVICE_UNAVAILABLE => {
                return Err(not_ready("it has too much to do".into()));
            }
            _ => {}
        }
        let broken = |reason: String| broken(method, reason);
        let mut octets = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            if octets.len() + chunk.len() > ANSWER_MAX_OCTETS {
                return Err(broken("it is too long".into()));
            }
            octets.extend_from_slice(&chunk);
        }
        let answer: RpcAnswer =
            serde_json::from_slice(&octets).map_err(|error| broken(error.to_string()))?;
        if let Some(RpcError { code, message }) = answer.error {
            return Err(match code {
                IN_WARMUP => not_ready(message),
                _ => ChainError::Refused { kind: Kind::Node, method, code, message },
            });
        }
        let result = answer.result.unwrap_or(Value::Null);
        serde_json::from_value(result).map_err(|error| broken(error.to_string()))
    }

    /// The cookie is read each time: the node writes a new one at each start.
    async fn credentials(&self) -> Result<(String, String), ChainError> {
        let (path, text) = match &self.login {
            NodeLogin::Password { user, password } => return Ok((user.clone(), password.clone())),
            NodeLogin::Cookie(path) => {
                (path, std::fs::read_to_string(path).map_err(|error| error.to_string()))
            }
            NodeLogin::Guarded { path, cookies } => (path, cookies.read().await),
        };
        let unreadable = |reason: String| ChainError::Login {
            url: self.url.clone(),
            login: format!("cookie {}: {reason}", path.display()),
        };
        let text = text.map_err(unreadable)?;
        let (user, password) =
            text.trim().split_once(':').ok_or_else(|| unreadable("no cookie".into()))?;
        Ok((user.to_owned(), password.to_owned()))
    }

    fn login_refused(&self) -> ChainError {
        let login = match &self.login {
            NodeLogin::Cookie(path) | NodeLogin::Guarded { path, .. } => {
                format!("cookie {}", path.display())
            }
            NodeLogin::Password { user, .. } => format!("user {user}"),
        };
        ChainError::Login { url: self.url.clone(), login }
    }

    fn unreachable(&self, error: &reqwest::Error) -> ChainError {
        let (kind, at) = (Kind::Node, self.name());
        ChainError::Unreachable { kind, at, reason: root_cause(error) }
    }

    async fn info(&self) -> Result<ChainInfo, ChainError> {
        self.call("getblockchaininfo", json!([])).await
    }
}

fn not_ready(reason: String) -> ChainError {
    ChainError::NotReady { kind: Kind::Node, reason }
}

fn broken(method: &'static str, reason: String) -> ChainError {
    ChainError::Broken { kind: Kind::Node, method, reason }
}

impl ChainSource for NodeRpc {
    fn kind(&self) -> Kind {
        Kind::Node
    }

    fn name(&self) -> String {
        format!("the node at {}", self.url)
    }

    fn network(&self) -> Network {
        self.network
    }

    fn check(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            let info = self.info().await?;
            if info.chain != self.network.to_core_arg() {
                let found = Network::from_core_arg(&info.chain)
                    .map_or(info.chain, |network| network.to_string());
                return Err(ChainError::WrongChain {
                    kind: Kind::Node,
                    found,
                    wanted: self.network,
                });
            }
            // A regtest node believes to be behind until somebody mines.
            if info.initialblockdownload && self.network != Network::Regtest {
                return Err(not_ready(format!("at block {}", info.blocks)));
            }
            Ok(())
        })
    }

    fn tip(&self) -> Answer<'_, (u32, BlockHash)> {
        Box::pin(async move {
            let info = self.info().await?;
            Ok((info.blocks, info.bestblockhash))
        })
    }

    fn hash_at(&self, height: u32) -> Answer<'_, BlockHash> {
        Box::pin(self.call("getblockhash", json!([height])))
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, Header> {
        Box::pin(async move {
            let method = "getblockheader";
            let hex: String = self.call(method, json!([hash, false])).await?;
            deserialize_hex(&hex).map_err(|error| broken(method, error.to_string()))
        })
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        Box::pin(async move {
            let method = "getblock";
            let hex = self.call::<String>(method, json!([hash, 0])).await;
            let hex = hex.map_err(|error| match error {
                ChainError::Refused { code: MISC, message, .. } if message.contains("pruned") => {
                    ChainError::Pruned(hash)
                }
                error => error,
            })?;
            deserialize_hex(&hex).map_err(|error| broken(method, error.to_string()))
        })
    }

    /// The mempool's own minimum while the node has too little to estimate from.
    fn fee_rate(&self, blocks: u16) -> Answer<'_, FeeRate> {
        Box::pin(async move {
            let mut method = "estimatesmartfee";
            let estimate: FeeEstimate = self.call(method, json!([blocks])).await?;
            let btc_per_kvb = if let Some(estimate) = estimate.feerate {
                estimate
            } else {
                method = "getmempoolinfo";
                let info: MempoolInfo = self.call(method, json!([])).await?;
                info.mempoolminfee.max(info.minrelaytxfee)
            };
            let per_kvb =
                Amount::from_btc(btc_per_kvb).map_err(|error| broken(method, error.to_string()))?;
            let rate = FeeRate::from_sat_per_kwu(per_kvb.to_sat().div_ceil(4));
            Ok(rate.clamp(FeeRate::BROADCAST_MIN, FEE_RATE_MAX))
        })
    }

    fn broadcast<'a>(
        &'a self,
        tx: &'a Transaction,
    ) -> std::pin::Pin<Box<dyn Future<Output = Broadcast> + Send + 'a>> {
        Box::pin(async move {
            let sent = self.call::<Value>("sendrawtransaction", json!([serialize_hex(tx)])).await;
            match sent {
                Ok(_) => Broadcast::Accepted,
                Err(ChainError::Refused { code: ALREADY_IN_CHAIN, .. }) => Broadcast::Known,
                Err(ChainError::Refused { message, .. }) => {
                    Broadcast::Rejected { cause: Cause::of(&message), reason: message }
                }
                Err(error) => Broadcast::Unreachable { reason: error.to_string() },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// What `tip` makes of an answer that no real node gives on demand.
    async fn tip_from(head: &str, body: &[u8], repeat: usize) -> ChainError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let length = body.len() * repeat;
        let head =
            format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        let serve = async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 4_096];
            assert_ne!(client.read(&mut request).await.unwrap(), 0);
            client.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..repeat {
                if client.write_all(body).await.is_err() {
                    return; // it has heard enough
                }
            }
            let _ = client.shutdown().await;
        };
        let login = NodeLogin::Password { user: "user".into(), password: "password".into() };
        let source = NodeRpc::new(&url, login, Network::Regtest).unwrap();
        let (answer, ()) = tokio::join!(source.tip(), serve);
        answer.unwrap_err()
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_told_apart() {
        let error = tip_from("200 OK", b"<html>", 1).await;
        assert!(matches!(error, ChainError::Broken { .. }), "{error}");
        let error = tip_from("200 OK", b"{\"result\": null}", 1).await;
        assert!(matches!(error, ChainError::Broken { .. }), "{error}");
        let error = tip_from("503 Busy", b"Work queue depth exceeded", 1).await;
        assert!(matches!(error, ChainError::NotReady { .. }), "{error}");
        let error = tip_from("403 Forbidden", b"", 1).await;
        assert!(matches!(error, ChainError::Forbidden { .. }), "{error}");
        let warm_up = br#"{"result": null, "error": {"code": -28, "message": "Verifying blocks"}}"#;
        let error = tip_from("500 Internal Server Error", warm_up, 1).await;
        assert!(error.to_string().contains("Verifying blocks"), "{error}");
        let error = tip_from("302 Found\r\nLocation: http://127.0.0.1:1/", b"", 1).await;
        assert!(matches!(error, ChainError::Broken { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_to_it() {
        let error = tip_from("200 OK", &vec![b' '; 1 << 20], 1_000).await;
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn an_address_that_is_none_is_refused_before_it_is_used() {
        let login = NodeLogin::Cookie("/cookie".into());
        for url in ["", "127.0.0.1:8332", "localhost:8332", "https://127.0.0.1", "http://"] {
            let made = NodeRpc::new(url, login.clone(), Network::Bitcoin).err();
            assert!(matches!(made, Some(ChainError::Address { .. })), "{url}: {made:?}");
        }
        assert!(NodeRpc::new("http://[::1]:8332/", login, Network::Bitcoin).is_ok());
    }
}
