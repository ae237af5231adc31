//! Hands a transaction to a peer and sees what becomes of it there.
//!
//! A peer never says that it refused a transaction. But it hands out what is in its mempool: what
//! can be fetched back a while after it was sent was taken.

use std::{net::SocketAddr, time::Duration};

use bitcoin::{
    Network, Transaction, Txid, Wtxid,
    consensus::{deserialize, serialize},
    p2p::{
        Address, Magic, ServiceFlags,
        message::{NetworkMessage, RawNetworkMessage},
        message_blockdata::Inventory,
        message_network::VersionMessage,
    },
};
use bitmesh_core::bitcoin;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, interval_at, timeout},
};

/// Time that a peer has to take a connection, and to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Time that it has to take the transaction. Bitcoin Core asks for what it is offered after 2 s, and
/// hands it out after the next round of announcements, 5 s apart on average: one of 90,000 that it took
/// is given up.
const TAKE_DEADLINE: Duration = Duration::from_mins(1);
/// How often the transaction is asked back.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest message that is read. A transaction has up to 400 kB, announcements
/// up to 1.8 MB.
const MESSAGE_MAX_OCTETS: usize = 2 << 20;
/// Octets before a message's payload: magic, command, length, checksum.
const HEADER_OCTETS: usize = 24;
/// From which version on announcements are by wtxid (BIP 339).
const PROTOCOL: u32 = 70_016;

/// What became of a transaction at a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is in its mempool.
    Taken,
    /// It had the chance to take it and does not have it.
    NotTaken,
}

/// Offers `tx` to the peer at `address`. Errs when nothing is known of what became of it.
pub(super) async fn deliver(
    address: SocketAddr,
    network: Network,
    tx: &Transaction,
) -> Result<Fate, String> {
    let connected = timeout(HELLO_DEADLINE, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| "it does not answer")?.map_err(|error| error.to_string())?;
    let mut peer = Peer { stream, magic: network.magic(), buffer: Vec::new() };
    timeout(HELLO_DEADLINE, peer.greet(address)).await.map_err(|_| "it says nothing")??;
    peer.offer(tx).await
}

struct Peer {
    stream: TcpStream,
    magic: Magic,
    /// Read, and not a whole message yet.
    buffer: Vec<u8>,
}

impl Peer {
    async fn greet(&mut self, address: SocketAddr) -> Result<(), String> {
        let nobody = Address::new(&SocketAddr::from(([0, 0, 0, 0], 0)), ServiceFlags::NONE);
        let hello = VersionMessage {
            version: PROTOCOL,
            services: ServiceFlags::NONE,
            timestamp: 0,
            receiver: Address::new(&address, ServiceFlags::NONE),
            sender: nobody,
            nonce: 0,
            user_agent: concat!("/bitmesh:", env!("CARGO_PKG_VERSION"), "/").into(),
            start_height: 0,
            relay: true,
        };
        self.send(NetworkMessage::Version(hello)).await?;
        loop {
            match self.receive().await? {
                NetworkMessage::Version(hello) if !hello.relay => {
                    return Err("it takes no transactions".into());
                }
                NetworkMessage::Version(hello) if hello.version < PROTOCOL => {
                    return Err("it is too old".into());
                }
                NetworkMessage::Version(_) => {
                    self.send(NetworkMessage::WtxidRelay).await?;
                    self.send(NetworkMessage::Verack).await?;
                }
                NetworkMessage::Verack => return Ok(()),
                _ => {}
            }
        }
    }

    async fn offer(&mut self, tx: &Transaction) -> Result<Fate, String> {
        let (txid, wtxid) = (tx.compute_txid(), tx.compute_wtxid());
        self.send(NetworkMessage::Inv(vec![Inventory::WTx(wtxid)])).await?;
        let end = Instant::now() + TAKE_DEADLINE;
        let mut ask = interval_at(Instant::now() + ASK_INTERVAL, ASK_INTERVAL);
        let mut denied = false;
        loop {
            let message = tokio::select! {
                message = self.receive() => message?,
                _ = ask.tick() => {
                    self.send(NetworkMessage::GetData(vec![Inventory::WTx(wtxid)])).await?;
                    continue;
                }
                () = tokio::time::sleep_until(end) => break,
            };
            match message {
                NetworkMessage::GetData(wanted) if names(&wanted, txid, wtxid) => {
                    self.send(NetworkMessage::Tx(tx.clone())).await?;
                }
                NetworkMessage::Tx(had) if had.compute_wtxid() == wtxid => return Ok(Fate::Taken),
                NetworkMessage::Inv(has) if names(&has, txid, wtxid) => return Ok(Fate::Taken),
                NetworkMessage::NotFound(lacks) => denied |= names(&lacks, txid, wtxid),
                NetworkMessage::Ping(nonce) => self.send(NetworkMessage::Pong(nonce)).await?,
                _ => {}
            }
        }
        if denied { Ok(Fate::NotTaken) } else { Err("it does not say what it has".into()) }
    }

    async fn send(&mut self, message: NetworkMessage) -> Result<(), String> {
        let octets = serialize(&RawNetworkMessage::new(self.magic, message));
        self.stream.write_all(&octets).await.map_err(|error| error.to_string())
    }

    /// The next message that is understood. Nothing is lost when this is dropped while it waits.
    async fn receive(&mut self) -> Result<NetworkMessage, String> {
        loop {
            while let Some(octets) = self.whole()? {
                if let Ok(message) = deserialize::<RawNetworkMessage>(&octets) {
                    return Ok(message.into_payload());
                }
            }
            let read = self.stream.read_buf(&mut self.buffer).await;
            if read.map_err(|error| error.to_string())? == 0 {
                return Err("it hung up".into());
            }
        }
    }

    /// The first whole message in the buffer.
    fn whole(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Some(header) = self.buffer.first_chunk::<HEADER_OCTETS>() else { return Ok(None) };
        if !header.starts_with(&self.magic.to_bytes()) {
            return Err("it speaks of another chain".into());
        }
        let [.., a, b, c, d, _, _, _, _] = *header;
        let length = u32::from_le_bytes([a, b, c, d]);
        let end = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(HEADER_OCTETS);
        if end > MESSAGE_MAX_OCTETS {
            return Err("it sends more than was asked for".into());
        }
        if self.buffer.len() < end {
            return Ok(None);
        }
        Ok(Some(self.buffer.drain(..end).collect()))
    }
}

fn names(inventory: &[Inventory], txid: Txid, wtxid: Wtxid) -> bool {
    inventory.iter().any(|item| match item {
        Inventory::WTx(id) => *id == wtxid,
        Inventory::Transaction(id) | Inventory::WitnessTransaction(id) => *id == txid,
        _ => false,
    })
}
