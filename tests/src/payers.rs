//! Payers without a wallet or a store: they sign the next sum as fast as the last is answered, and
//! the same again while it is not. What they signed and what was acknowledged is known at any time.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Amount, OutPoint, ScriptBuf, WPubkeyHash,
    hashes::Hash as _,
    secp256k1::{All, Secp256k1, SecretKey},
};
use bitmesh_core::{
    channel::{ChannelId, ChannelParams, ChannelStatus, PROTOCOL_VERSION, payment_sighash},
    station::Station,
    wire::{OpenRequest, PaymentReply, PaymentRequest},
};
use bitmesh_user::{
    api::{ClientError, Provider},
    dataplane::{Mac, StationKey},
};

use crate::{
    daemon::eventually,
    netns::Namespace,
    regtest::Node,
    topology::{INTERNET_V4, Topology, UPLINK},
};

/// Blocks that a channel lives for.
const LIFETIME_BLOCKS: u32 = 400;
/// Time that a funding in a block takes to be known.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// Pause after a payment that was not answered.
const RETRY: Duration = Duration::from_millis(5);
/// Octets of a datagram's content: 500 on the wire.
const DATAGRAM: usize = 472;
/// Pause between datagrams.
const DATAGRAM_PAUSE: Duration = Duration::from_micros(700);

/// A station on a port of its own.
pub struct Stand {
    /// Where it is.
    pub namespace: Namespace,
    /// The edge's port that it is on.
    pub lan: String,
    /// The edge's address there.
    pub edge: String,
    number: u8,
    far: String,
}

impl Stand {
    /// The `number`th of some, up to 100.
    pub fn new(topology: &Topology, number: u8) -> Result<Self> {
        let lan = format!("lan{}", number + 2);
        Self::at(&topology.edge, number, lan, INTERNET_V4)
    }

    /// The same on a port of any edge, by which `far` is reached.
    pub fn at(edge: &Namespace, number: u8, lan: String, far: &str) -> Result<Self> {
        let namespace = Namespace::create(&format!("payer{number}"))?;
        namespace.connect(UPLINK, edge, &lan)?;
        let gateway = host(number, 1).to_string();
        edge.address(&lan, &gateway, 24)?;
        namespace.address(UPLINK, &host(number, 2).to_string(), 24)?;
        namespace.default_route(&gateway)?;
        Ok(Self { namespace, lan, edge: gateway, number, far: far.to_owned() })
    }

    /// Its own address, and more that it may take.
    pub fn address(&self, number: u8) -> IpAddr {
        host(self.number, 2 + number).into()
    }

    /// The station.
    pub fn key(&self) -> Result<StationKey> {
        StationKey::new(Mac::new(self.namespace.mac(UPLINK)?), 0).context("a station's address")
    }

    /// Sends datagrams to the internet until it is over.
    pub fn send(&self, over: &AtomicBool) -> Result<()> {
        self.namespace.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            while !over.load(Ordering::Relaxed) {
                let to = (self.far.as_str(), 9);
                let _refused_for_want_of_credit = socket.send_to(&[0; DATAGRAM], to);
                std::thread::sleep(DATAGRAM_PAUSE);
            }
            Ok(())
        })
    }
}

fn host(stand: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 100 + stand, host)
}

/// A funded channel and who pays on it.
pub struct Payer<'a> {
    stand: &'a Stand,
    url: String,
    secp: Secp256k1<All>,
    key: SecretKey,
    params: ChannelParams,
    outpoint: OutPoint,
    signed: AtomicU64,
    acknowledged: AtomicU64,
    waits: AtomicBool,
    rests: AtomicBool,
}

impl<'a> Payer<'a> {
    /// Opens a channel from a stand and funds it from the node's own wallet. Keys are told apart by
    /// `number`.
    pub fn open(
        stand: &'a Stand,
        port: u16,
        node: &Node<'_>,
        number: u8,
        capacity: Amount,
    ) -> Result<Self> {
        let secp = Secp256k1::new();
        let key = SecretKey::from_slice(&[number.saturating_add(1); 32])?;
        let url = format!("http://{}:{port}", stand.edge);
        let open = async |offer: bitmesh_core::offer::SignedOffer| {
            let request = OpenRequest {
                version: PROTOCOL_VERSION,
                offer: offer.offer.id(),
                subscriber: key.public_key(&secp),
                capacity,
                expiry_height: offer.offer.height + LIFETIME_BLOCKS,
                remainder_script: ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(&[number])),
            };
            Provider::new(&url)?.open(&request).await
        };
        // A provider that has just started may not have followed the chain yet.
        let opened = eventually("an open channel", OPEN_DEADLINE, || {
            stand.namespace.block_on(async || {
                let offer = Provider::new(&url)?.offer().await?;
                Ok(Some(open(offer).await?))
            })
        })?;
        node.send(&opened.address, capacity)?;
        node.mine(1)?;
        let outpoint = eventually("a channel that takes payments", OPEN_DEADLINE, || {
            let report = stand
                .namespace
                .block_on(async || Ok(Provider::new(&url)?.channel(opened.channel).await?))?;
            Ok(report.funding.filter(|_| report.status == ChannelStatus::Open))
        })?;
        Ok(Self {
            stand,
            url,
            secp: Secp256k1::new(),
            key,
            params: opened.params,
            outpoint,
            signed: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            rests: AtomicBool::new(false),
        })
    }

    /// Where the provider is, from its stand.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The channel.
    pub fn channel(&self) -> ChannelId {
        self.params.id()
    }

    /// The station that pays.
    pub fn station(&self) -> Result<Station> {
        Ok(self.stand.key()?.into())
    }

    /// The largest sum that was signed.
    pub fn signed(&self) -> Amount {
        Amount::from_sat(self.signed.load(Ordering::SeqCst))
    }

    /// The largest sum that the provider said it has.
    pub fn acknowledged(&self) -> Amount {
        Amount::from_sat(self.acknowledged.load(Ordering::SeqCst))
    }

    /// Pays one satoshi more, or what was not acknowledged yet, once.
    pub fn pay(&self) -> Result<Result<PaymentReply, ClientError>> {
        self.pay_to(self.acknowledged() + Amount::ONE_SAT)
    }

    /// Pays until all payments come to `paid`.
    pub fn pay_to(&self, paid: Amount) -> Result<Result<PaymentReply, ClientError>> {
        self.stand.namespace.block_on(async || self.pay_by(&Provider::new(&self.url)?, paid).await)
    }

    /// The payment of a sum, octet by octet as it was and will be sent.
    pub fn payment(&self, paid: Amount) -> Result<PaymentRequest> {
        let message = payment_sighash(&self.params, self.outpoint, paid);
        let message = message.context("a channel that is spent")?;
        self.signed.fetch_max(paid.to_sat(), Ordering::SeqCst);
        Ok(PaymentRequest { paid, signature: self.secp.sign_ecdsa(&message, &self.key) })
    }

    async fn pay_by(
        &self,
        provider: &Provider,
        paid: Amount,
    ) -> Result<Result<PaymentReply, ClientError>> {
        let answer = provider.pay(self.channel(), &self.payment(paid)?).await;
        if let Ok(reply) = &answer {
            // A payment that the provider had already is answered like a new one.
            ensure!(reply.paid == paid, "{paid} was paid, {} is known", reply.paid);
            self.acknowledged.store(paid.to_sat(), Ordering::SeqCst);
        }
        Ok(answer)
    }

    /// Pays over one connection until it is over, and rests on demand.
    pub fn run(&self, over: &AtomicBool) -> Result<()> {
        self.stand.namespace.block_on(async || {
            let provider = Provider::new(&self.url)?;
            while !over.load(Ordering::SeqCst) {
                let waits = self.waits.load(Ordering::SeqCst);
                self.rests.store(waits, Ordering::SeqCst);
                let next = self.acknowledged() + Amount::ONE_SAT;
                if waits || self.pay_by(&provider, next).await?.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            }
            Ok(())
        })
    }

    /// Has it rest, when the payment under way is answered, or go on.
    pub fn rest(&self, waits: bool, within: Duration) -> Result<()> {
        self.waits.store(waits, Ordering::SeqCst);
        let deadline = Instant::now() + within;
        while waits && !self.rests.load(Ordering::SeqCst) {
            ensure!(Instant::now() < deadline, "a payer that does not rest within {within:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
