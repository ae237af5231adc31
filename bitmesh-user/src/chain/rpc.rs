//! Bitcoin Core's (and Knots') JSON-RPC, as much of it as is needed.

use std::{error::Error as _, time::Duration};

use bitcoin::{
    Block, BlockHash, FeeRate, Network, Transaction,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use bitmesh_core::bitcoin;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Broadcast, ChainError, ChainSource};
use crate::config::NodeLogin;

/// Time that the node has to answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Largest answer that is read: a block of 4 MB in hexadecimal, with room.
const ANSWER_MAX_OCTETS: usize = 10_000_000;
/// `RPC_IN_WARMUP`.
const IN_WARMUP: i64 = -28;
/// `RPC_VERIFY_ALREADY_IN_UTXO_SET`.
const ALREADY_IN_CHAIN: i64 = -27;

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

impl NodeRpc {
    /// The node at `http://host:port`; nothing is asked yet.
    pub fn new(url: &str, login: NodeLogin, network: Network) -> Result<Self, ChainError> {
        let url = url.trim_end_matches('/').to_owned();
        let http = Client::builder().timeout(DEADLINE).no_proxy().build().map_err(|error| {
            ChainError::Unreachable { url: url.clone(), reason: error.to_string() }
        })?;
        Ok(Self { http, url, login, network })
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
    ) -> Result<T, ChainError> {
        let (user, password) = self.credentials()?;
        let body = json!({ "jsonrpc": "1.0", "id": "bitmesh", "method": method, "params": params });
        let request = self.http.post(&self.url).basic_auth(user, Some(password)).json(&body);
        let mut answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.login_refused());
        }
        let broken = |reason: String| ChainError::Broken { method, reason };
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
                IN_WARMUP => ChainError::NotReady(message),
                _ => ChainError::Refused { method, code, message },
            });
        }
        let result = answer.result.unwrap_or(Value::Null);
        serde_json::from_value(result).map_err(|error| broken(error.to_string()))
    }

    /// The cookie is read each time: the node writes a new one at each start.
    fn credentials(&self) -> Result<(String, String), ChainError> {
        match &self.login {
            NodeLogin::Password { user, password } => Ok((user.clone(), password.clone())),
            NodeLogin::Cookie(path) => {
                let unreadable = |reason: String| ChainError::Login {
                    url: self.url.clone(),
                    login: format!("cookie {}: {reason}", path.display()),
                };
                let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
                let (user, password) =
                    text.trim().split_once(':').ok_or_else(|| unreadable("no cookie".into()))?;
                Ok((user.to_owned(), password.to_owned()))
            }
        }
    }

    fn login_refused(&self) -> ChainError {
        let login = match &self.login {
            NodeLogin::Cookie(path) => format!("cookie {}", path.display()),
            NodeLogin::Password { user, .. } => format!("user {user}"),
        };
        ChainError::Login { url: self.url.clone(), login }
    }

    fn unreachable(&self, error: &reqwest::Error) -> ChainError {
        let mut reason: &dyn std::error::Error = error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        debug_assert!(error.source().is_some() || error.is_timeout(), "{error:?}");
        ChainError::Unreachable { url: self.url.clone(), reason: reason.to_string() }
    }

    async fn info(&self) -> Result<ChainInfo, ChainError> {
        self.call("getblockchaininfo", json!([])).await
    }
}

impl ChainSource for NodeRpc {
    fn check(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            let info = self.info().await?;
            if info.chain != self.network.to_core_arg() {
                let found = Network::from_core_arg(&info.chain)
                    .map_or(info.chain, |network| network.to_string());
                return Err(ChainError::WrongChain { found, wanted: self.network });
            }
            // A regtest node believes to be behind until somebody mines.
            if info.initialblockdownload && self.network != Network::Regtest {
                return Err(ChainError::NotReady(format!("at block {}", info.blocks)));
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

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        Box::pin(async move {
            let method = "getblock";
            let hex: String = self.call(method, json!([hash, 0])).await?;
            deserialize_hex(&hex)
                .map_err(|error| ChainError::Broken { method, reason: error.to_string() })
        })
    }

    fn fee_rate(&self, blocks: u16) -> Answer<'_, FeeRate> {
        Box::pin(async move {
            let method = "estimatesmartfee";
            let estimate: FeeEstimate = self.call(method, json!([blocks])).await?;
            let nonsense = |reason: &str| ChainError::Broken { method, reason: reason.into() };
            let btc_per_kvb = estimate.feerate.ok_or_else(|| nonsense("it has no estimate"))?;
            let per_kvb = bitcoin::Amount::from_btc(btc_per_kvb)
                .map_err(|_| nonsense("a fee that is no amount"))?;
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
                Err(ChainError::Refused { message, .. }) => Broadcast::Rejected { reason: message },
                Err(error) => Broadcast::Unreachable { reason: error.to_string() },
            }
        })
    }
}

/// No estimate makes us pay more: 1,000 sat/vB.
const FEE_RATE_MAX: FeeRate = FeeRate::from_sat_per_vb_u32(1_000);
