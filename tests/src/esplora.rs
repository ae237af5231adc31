//! An Esplora server that answers from a real node, and HTTP as simple as it gets to serve it with.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use bitmesh_user::http;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use crate::regtest::{PASSWORD, USER};

/// Longest body of a request, in octets.
const BODY_MAX_OCTETS: usize = 1 << 20;

/// Changes an answer before it is sent: to what was asked, and what would be answered.
pub type Tamper = Box<dyn FnMut(&str, &mut Vec<u8>) + Send>;

/// A server, until it is dropped. Made and used in one runtime.
pub struct Server {
    address: SocketAddr,
    tamper: Arc<Mutex<Option<Tamper>>>,
    task: AbortHandle,
}

#[derive(Clone, Copy)]
enum Speaks {
    Esplora,
    Rpc,
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

impl Server {
    /// Esplora's API in front of the node whose RPC is at `node`.
    pub async fn esplora(node: String) -> Result<Self> {
        Self::start(node, Speaks::Esplora).await
    }

    /// The RPC of the node at `node`, passed on.
    pub async fn rpc(node: String) -> Result<Self> {
        Self::start(node, Speaks::Rpc).await
    }

    async fn start(node: String, speaks: Speaks) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let tamper = Arc::new(Mutex::new(None));
        let shared = tamper.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (node, shared) = (node.clone(), shared.clone());
                // Who hangs up in the middle has its reasons.
                tokio::spawn(async move { serve(client, &node, speaks, &shared).await });
            }
        });
        Ok(Self { address, tamper, task: task.abort_handle() })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Has every answer changed from now on.
    pub fn tamper(&self, tamper: Option<Tamper>) {
        *self.tamper.lock().unwrap_or_else(PoisonError::into_inner) = tamper;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    client: TcpStream,
    node: &str,
    speaks: Speaks,
    tamper: &Mutex<Option<Tamper>>,
) -> Result<()> {
    let mut client = BufStream::new(client);
    let request = read(&mut client).await?;
    let (asked, status, mut body) = match speaks {
        Speaks::Esplora => {
            let (status, body) = esplora(node, &request).await;
            (request.path, status, body)
        }
        Speaks::Rpc => {
            let asked: Value = serde_json::from_slice(&request.body)?;
            let answer = ask(node, &asked).await?;
            let method = asked.get("method").and_then(Value::as_str).unwrap_or_default();
            (method.to_owned(), 200, serde_json::to_vec(&answer)?)
        }
    };
    if let Some(tamper) = &mut *tamper.lock().unwrap_or_else(PoisonError::into_inner) {
        tamper(&asked, &mut body);
    }
    let head = format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(&body).await?;
    client.flush().await?;
    Ok(())
}

async fn read(client: &mut BufStream<TcpStream>) -> Result<Request> {
    let mut line = String::new();
    client.read_line(&mut line).await?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = words.next().zip(words.next()).context("a request line")?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    if length > BODY_MAX_OCTETS {
        bail!("a body of {length} octets");
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).await?;
    Ok(Request { method, path, body })
}

async fn esplora(node: &str, request: &Request) -> (u16, Vec<u8>) {
    let words: Vec<_> = request.path.split('/').skip(1).collect();
    let answer = match (request.method.as_str(), &words[..]) {
        ("GET", ["blocks", "tip", "height"]) => call(node, "getblockcount", json!([])).await,
        ("GET", ["blocks", "tip", "hash"]) => call(node, "getbestblockhash", json!([])).await,
        ("GET", ["block-height", height]) => {
            call(node, "getblockhash", json!([height.parse::<u32>().unwrap_or(u32::MAX)])).await
        }
        ("GET", ["block", hash, "header"]) => {
            call(node, "getblockheader", json!([hash, false])).await
        }
        ("GET", ["block", hash, "raw"]) => {
            let block = call(node, "getblock", json!([hash, 0])).await;
            return match block.ok().and_then(|hex| hex::decode(hex).ok()) {
                Some(octets) => (200, octets),
                None => (404, b"Block not found".to_vec()),
            };
        }
        // A node that is a minute old has nothing to estimate from.
        ("GET", ["fee-estimates"]) => return (200, br#"{"1": 9.5, "6": 2.25, "144": 1}"#.to_vec()),
        ("POST", ["tx"]) => {
            let hex = String::from_utf8_lossy(&request.body).into_owned();
            let sent = call(node, "sendrawtransaction", json!([hex])).await;
            return match sent {
                Ok(txid) => (200, txid.into_bytes()),
                Err((404, error)) => {
                    (400, format!("sendrawtransaction RPC error: {error}").into_bytes())
                }
                Err((status, error)) => (status, error.into_bytes()),
            };
        }
        _ => return (404, Vec::new()),
    };
    match answer {
        Ok(text) => (200, text.into_bytes()),
        Err((status, error)) => (status, error.into_bytes()),
    }
}

/// The result as text, or the node's error as it is with the status that a server gives it.
async fn call(node: &str, method: &str, params: Value) -> Result<String, (u16, String)> {
    let asked = json!({ "jsonrpc": "1.0", "id": "esplora", "method": method, "params": params });
    let answer = ask(node, &asked).await.map_err(|error| (503, format!("{error:#}")))?;
    match (answer.get("error"), answer.get("result")) {
        (Some(error), _) if !error.is_null() => Err((404, error.to_string())),
        (_, Some(Value::String(text))) => Ok(text.clone()),
        (_, result) => Ok(result.map(ToString::to_string).unwrap_or_default()),
    }
}

async fn ask(node: &str, asked: &Value) -> Result<Value> {
    let request = http::plain().build()?.post(node).basic_auth(USER, Some(PASSWORD)).json(asked);
    Ok(request.send().await?.json().await?)
}
