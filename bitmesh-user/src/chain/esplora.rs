//! Esplora's HTTP, as much of it as is needed. The server is asked for whole blocks, so that it does
//! not learn what they are looked through for; only what is broadcast tells it who asks.

use std::{collections::BTreeMap, time::Duration};

use bitcoin::{
    Block, BlockHash, FeeRate, Network, Transaction,
    block::Header,
    consensus::{
        deserialize,
        encode::{deserialize_hex, serialize_hex},
    },
    constants::genesis_block,
};
use bitmesh_core::bitcoin;
use reqwest::{Client, RequestBuilder, StatusCode, Url};

use super::{Answer, Broadcast, Cause, ChainError, ChainSource, FEE_RATE_MAX, Kind};
use crate::http::{self, root_cause};

/// Time that the server has to answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time that it has to take a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Largest block that is read.
const BLOCK_MAX_OCTETS: usize = 4_000_000;
/// Largest of all other answers that is read.
const ANSWER_MAX_OCTETS: usize = 16 * 1_024;
/// Longest reason of the server's that is passed on, in characters.
const REASON_MAX: usize = 300;
/// What a refused transaction's answer has in it when the transaction is in the mempool.
const IN_MEMPOOL: [&str; 2] = ["already in mempool", "txn-already-known"];
/// The same when it is in a block: Bitcoin Core's `RPC_VERIFY_ALREADY_IN_UTXO_SET`, in its words.
const IN_CHAIN: [&str; 3] =
    ["already in block chain", "already in utxo set", "outputs already in utxo"];

/// An Esplora server.
#[derive(Clone)]
pub struct Esplora {
    http: Client,
    url: String,
    network: Network,
}

impl Esplora {
    /// The server whose paths start at `url`; nothing is asked yet.
    pub fn new(url: &str, network: Network) -> Result<Self, ChainError> {
        let url = url.trim_end_matches('/').to_owned();
        let wrong = |reason: String| ChainError::Address {
            kind: Kind::Esplora,
            address: url.clone(),
            reason,
        };
        let parsed = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
        let builder = match parsed.scheme() {
            "http" => http::plain(),
            "https" => http::secure(),
            _ => {
                return Err(wrong("it starts with something else than https:// or http://".into()));
            }
        };
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong("it has more than a path".into()));
        }
        let http = builder.timeout(DEADLINE).connect_timeout(CONNECT_DEADLINE).build();
        let http = http.map_err(|error| wrong(root_cause(&error)))?;
        Ok(Self { http, url, network })
    }

    async fn get(
        &self,
        method: &'static str,
        path: String,
        octets_max: usize,
    ) -> Result<Vec<u8>, ChainError> {
        let request = self.http.get(format!("{}{path}", self.url));
        match self.ask(method, request, octets_max).await? {
            (StatusCode::OK, body) => Ok(body),
            (StatusCode::NOT_FOUND, _) => Err(ChainError::NotReady {
                kind: Kind::Esplora,
                reason: format!("{path} is not there"),
            }),
            (status, body) => Err(ChainError::Refused {
                kind: Kind::Esplora,
                method,
                code: status.as_u16().into(),
                message: reason(&body),
            }),
        }
    }

    async fn ask(
        &self,
        method: &'static str,
        request: RequestBuilder,
        octets_max: usize,
    ) -> Result<(StatusCode, Vec<u8>), ChainError> {
        let mut answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(ChainError::NotReady {
                kind: Kind::Esplora,
                reason: format!("it answers {status}"),
            });
        }
        let mut octets = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            if octets.len() + chunk.len() > octets_max {
                return Err(broken(method, "it is too long"));
            }
            octets.extend_from_slice(&chunk);
        }
        Ok((status, octets))
    }

    /// A short answer that is one word.
    async fn word<T: std::str::FromStr>(
        &self,
        method: &'static str,
        path: String,
    ) -> Result<T, ChainError> {
        let octets = self.get(method, path, ANSWER_MAX_OCTETS).await?;
        let text = std::str::from_utf8(&octets).map_err(|_| broken(method, "it is no text"))?;
        text.trim().parse().map_err(|_| broken(method, "it is something else"))
    }

    fn unreachable(&self, error: &reqwest::Error) -> ChainError {
        let (kind, at) = (Kind::Esplora, self.name());
        ChainError::Unreachable { kind, at, reason: root_cause(error) }
    }
}

fn broken(method: &'static str, reason: &str) -> ChainError {
    ChainError::Broken { kind: Kind::Esplora, method, reason: reason.into() }
}

/// What a server said, cut and without what could steer a terminal.
fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect()
}

impl ChainSource for Esplora {
    fn kind(&self) -> Kind {
        Kind::Esplora
    }

    fn name(&self) -> String {
        format!("the Esplora server at {}", self.url)
    }

    fn network(&self) -> Network {
        self.network
    }

    /// It does not name its chain; the first block does.
    fn check(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            let first = self.hash_at(0).await?;
            if first == genesis_block(self.network).block_hash() {
                return Ok(());
            }
            let networks = [Network::Bitcoin, Network::Testnet4, Network::Signet, Network::Regtest];
            let found = networks.iter().find(|known| genesis_block(**known).block_hash() == first);
            let found = found.map_or_else(|| "another chain".into(), ToString::to_string);
            Err(ChainError::WrongChain { kind: Kind::Esplora, found, wanted: self.network })
        })
    }

    /// Height and hash are two answers, between which the chain may have grown.
    fn tip(&self) -> Answer<'_, (u32, BlockHash)> {
        Box::pin(async move {
            let height = self.word("blocks/tip/height", "/blocks/tip/height".into()).await?;
            Ok((height, self.hash_at(height).await?))
        })
    }

    fn hash_at(&self, height: u32) -> Answer<'_, BlockHash> {
        Box::pin(self.word("block-height", format!("/block-height/{height}")))
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, Header> {
        Box::pin(async move {
            let method = "block/header";
            let hex: String = self.word(method, format!("/block/{hash}/header")).await?;
            deserialize_hex(&hex).map_err(|error| broken(method, &error.to_string()))
        })
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        Box::pin(async move {
            let method = "block/raw";
            let octets = self.get(method, format!("/block/{hash}/raw"), BLOCK_MAX_OCTETS).await?;
            deserialize(&octets).map_err(|error| broken(method, &error.to_string()))
        })
    }

    /// The estimate for the longest time that is no longer than asked for; the least that nodes
    /// relay when there is none.
    fn fee_rate(&self, blocks: u16) -> Answer<'_, FeeRate> {
        Box::pin(async move {
            let method = "fee-estimates";
            let octets = self.get(method, "/fee-estimates".into(), ANSWER_MAX_OCTETS).await?;
            let estimates: BTreeMap<u16, f64> = serde_json::from_slice(&octets)
                .map_err(|error| broken(method, &error.to_string()))?;
            let within = estimates.range(..=blocks).next_back().or(estimates.first_key_value());
            let Some((_, per_vb)) = within else { return Ok(FeeRate::BROADCAST_MIN) };
            let most = f64::from(u16::MAX);
            if !per_vb.is_finite() || *per_vb < 0.0 || *per_vb > most {
                return Err(broken(method, "it is no rate"));
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it was just checked to be in range"
            )]
            let per_kwu = (per_vb * 250.0).ceil() as u64;
            Ok(FeeRate::from_sat_per_kwu(per_kwu).clamp(FeeRate::BROADCAST_MIN, FEE_RATE_MAX))
        })
    }

    fn broadcast<'a>(
        &'a self,
        tx: &'a Transaction,
    ) -> std::pin::Pin<Box<dyn Future<Output = Broadcast> + Send + 'a>> {
        Box::pin(async move {
            let request = self.http.post(format!("{}/tx", self.url)).body(serialize_hex(tx));
            let (status, body) = match self.ask("tx", request, ANSWER_MAX_OCTETS).await {
                Ok(answer) => answer,
                Err(error) => return Broadcast::Unreachable { reason: error.to_string() },
            };
            let said = reason(&body);
            let says = |signs: &[&str]| {
                let said = said.to_lowercase();
                signs.iter().any(|sign| said.contains(sign))
            };
            match status {
                StatusCode::OK => Broadcast::Accepted,
                StatusCode::BAD_REQUEST if says(&IN_MEMPOOL) => Broadcast::Accepted,
                StatusCode::BAD_REQUEST if says(&IN_CHAIN) => Broadcast::Known,
                StatusCode::BAD_REQUEST => {
                    Broadcast::Rejected { cause: Cause::of(&said), reason: said }
                }
                status => Broadcast::Unreachable { reason: format!("{status}: {said}") },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_refused_before_it_is_used() {
        for url in ["", "blocks.example", "ftp://blocks.example", "https://", "http://x/api?a=b"] {
            let made = Esplora::new(url, Network::Bitcoin).err();
            assert!(matches!(made, Some(ChainError::Address { .. })), "{url}: {made:?}");
        }
        assert!(Esplora::new("http://[::1]:3000/api/", Network::Bitcoin).is_ok());
        assert!(Esplora::new("https://blocks.example/signet/api", Network::Signet).is_ok());
    }

    #[test]
    fn what_a_server_says_can_not_steer_a_terminal() {
        assert_eq!(reason(b"no\x1b[2J\n"), "no[2J");
        assert_eq!(reason(&[b'a'; 5_000]).len(), REASON_MAX);
    }
}
