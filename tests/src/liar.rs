//! A peer between a client and a node that changes what the node says.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use bitcoin::{
    Network,
    consensus::{deserialize, serialize},
    p2p::message::{NetworkMessage, RawNetworkMessage},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::AbortHandle,
};

/// Octets before a message's payload: magic, command, length, checksum.
const HEADER_OCTETS: usize = 24;

/// Changes what the node says.
pub type Lie = Box<dyn FnMut(&mut NetworkMessage) + Send>;

/// A peer, until it is dropped. Made and used in one runtime.
pub struct Liar {
    address: SocketAddr,
    said: Arc<Said>,
    task: AbortHandle,
}

/// What it changes, and how many messages it did change and pass on.
#[derive(Default)]
struct Said {
    lie: Mutex<Option<Lie>>,
    changed: AtomicU64,
}

impl Liar {
    /// In front of the node whose peers connect to `node`.
    pub async fn before(node: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let said = Arc::new(Said::default());
        let shared = said.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (node, shared) = (node.clone(), shared.clone());
                // Who hangs up in the middle has its reasons.
                tokio::spawn(async move { pass_on(client, &node, &shared).await });
            }
        });
        Ok(Self { address, said, task: task.abort_handle() })
    }

    /// Where it is.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Has everything changed that the node says from now on.
    pub fn lie(&self, lie: Option<Lie>) {
        let mut told = self.said.lie.lock().unwrap_or_else(PoisonError::into_inner);
        *told = lie;
        self.said.changed.store(0, Ordering::SeqCst);
    }

    /// How many messages were changed since then, and are on their way.
    pub fn changed(&self) -> u64 {
        self.said.changed.load(Ordering::SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(client: TcpStream, node: &str, said: &Said) -> Result<()> {
    let (mut from_client, to_client) = client.into_split();
    let (from_node, mut to_node) = TcpStream::connect(node).await?.into_split();
    tokio::select! {
        copied = tokio::io::copy(&mut from_client, &mut to_node) => copied.map(drop)?,
        told = tell(from_node, to_client, said) => told?,
    }
    Ok(())
}

async fn tell(mut node: OwnedReadHalf, mut client: OwnedWriteHalf, said: &Said) -> Result<()> {
    loop {
        let mut octets = vec![0; HEADER_OCTETS];
        node.read_exact(&mut octets).await?;
        let length = octets.get(16..20).context("a length")?.try_into().map(u32::from_le_bytes)?;
        let mut payload = vec![0; length.try_into()?];
        node.read_exact(&mut payload).await?;
        octets.extend(payload);
        let mut changed = false;
        if let Some(lie) = &mut *said.lie.lock().unwrap_or_else(PoisonError::into_inner)
            && let Ok(message) = deserialize::<RawNetworkMessage>(&octets)
        {
            let mut message = message.into_payload();
            let truth = message.clone();
            lie(&mut message);
            changed = message != truth;
            octets = serialize(&RawNetworkMessage::new(Network::Regtest.magic(), message));
        }
        client.write_all(&octets).await?;
        said.changed.fetch_add(changed.into(), Ordering::SeqCst);
    }
}
