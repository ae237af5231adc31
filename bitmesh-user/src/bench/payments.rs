//! What a payment costs beside the signature in it, at both ends.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use bitmesh_core::{
    bitcoin::{
        Amount, OutPoint, Transaction, TxOut,
        absolute::LockTime,
        secp256k1::{All, Keypair, Message, Secp256k1, SecretKey, ecdsa::Signature},
        transaction::Version,
    },
    channel::{
        ChannelParams, Funding, ProviderChannel, ProviderEvent, SubscriberChannel, SubscriberEvent,
        funding_outpoint, payment_sighash,
    },
    ledger::Usage,
    station::Station,
};

use super::{
    Better, Contender, Group, Measure, Scale, Target,
    terms::{CAPACITY, terms},
};

/// Payments that one figure is the mean of.
const PAYMENTS: u32 = 2_000;
/// A payment that is verified and applied may take so many times what verifying a signature does.
const VERIFY_RATIO: f64 = 1.25;
/// The same of one that is decided and signed.
const SIGN_RATIO: f64 = 1.5;

const HEIGHT: u32 = 100;
const EXPIRY: u32 = 2_000;

/// A funded channel, seen from both ends, and payments on it.
struct Bench {
    secp: Secp256k1<All>,
    subscriber: Keypair,
    provider: ProviderChannel,
    payer: SubscriberChannel,
    payments: Vec<(Amount, Message, Signature)>,
}

impl Bench {
    fn new() -> Result<Self> {
        let secp = Secp256k1::new();
        let key = |octet| -> Result<_> {
            Ok(Keypair::from_secret_key(&secp, &SecretKey::from_slice(&[octet; 32])?))
        };
        let (subscriber, seller) = (key(1)?, key(2)?);
        let params = terms(subscriber.public_key(), seller.public_key(), EXPIRY);
        let output = TxOut { value: CAPACITY, script_pubkey: params.funding_script() };
        let tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: Vec::new(),
            output: vec![output],
        };
        let outpoint = funding_outpoint(&params, &tx).context("the funding")?;
        let funding = Funding { outpoint, height: HEIGHT };
        let mut provider = ProviderChannel::open(&ProviderEvent::Opened {
            params: Arc::new(params.clone()),
            key_index: 0,
            station: "02:00:00:00:00:01".parse::<Station>()?,
            height: HEIGHT,
            used: Usage::default(),
        })?;
        provider.apply(&ProviderEvent::Funded(funding))?;
        let mut payer = SubscriberChannel::open(&SubscriberEvent::Negotiated {
            params: Box::new(params.clone()),
            key_index: 0,
            provider: seller.x_only_public_key().0,
            url: String::new(),
            height: HEIGHT,
        })?;
        payer.apply(&SubscriberEvent::FundingSigned { tx, height: 0 })?;
        payer.apply(&SubscriberEvent::Funded(funding))?;
        let payments = signed(&secp, &subscriber, &params, outpoint)?;
        Ok(Self { secp, subscriber, provider, payer, payments })
    }

    fn verify_alone(&self) -> Result<()> {
        let key = self.subscriber.public_key();
        for (_, message, signature) in &self.payments {
            self.secp.verify_ecdsa(message, signature, &key)?;
        }
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        let mut channel = self.provider.clone();
        for (paid, _, signature) in &self.payments {
            let event = channel.pay(&self.secp, *paid, signature, None, HEIGHT)?;
            channel.apply(&event.context("a payment that changes nothing")?)?;
        }
        ensure!(channel.commitments() == u64::from(PAYMENTS), "payments were not applied");
        Ok(())
    }

    fn sign_alone(&self) {
        let key = self.subscriber.secret_key();
        for (_, message, _) in &self.payments {
            std::hint::black_box(self.secp.sign_ecdsa(message, &key));
        }
    }

    fn sign(&self) -> Result<()> {
        let (mut channel, key) = (self.payer.clone(), self.subscriber.secret_key());
        for (paid, ..) in &self.payments {
            let message = channel.payment(*paid, HEIGHT)?;
            let signature = self.secp.sign_ecdsa(&message, &key);
            channel.apply(&SubscriberEvent::PaymentSigned {
                paid: *paid,
                signature,
                earlier: 0,
            })?;
        }
        ensure!(channel.commitments() == u64::from(PAYMENTS), "payments were not signed");
        Ok(())
    }
}

fn signed(
    secp: &Secp256k1<All>,
    subscriber: &Keypair,
    params: &ChannelParams,
    outpoint: OutPoint,
) -> Result<Vec<(Amount, Message, Signature)>> {
    let sums = (1..=PAYMENTS).map(|sum| Amount::from_sat(u64::from(sum)));
    sums.map(|paid| {
        let message = payment_sighash(params, outpoint, paid).context("a sum over the capacity")?;
        Ok((paid, message, secp.sign_ecdsa(&message, &subscriber.secret_key())))
    })
    .collect()
}

/// Microseconds of a payment, in the core: without the store, the kernel and the network.
pub fn payments(scale: Scale, before: &dyn Fn(&str)) -> Result<(Group, Vec<Measure>)> {
    let bench = &Bench::new()?;
    let timed = |run: &dyn Fn() -> Result<()>| {
        let started = Instant::now();
        run()?;
        Ok(started.elapsed().as_secs_f64() * 1e6 / f64::from(PAYMENTS))
    };
    let contenders = vec![
        Contender::new("bare verification", move || timed(&|| bench.verify_alone())),
        Contender::new("verify and apply", move || timed(&|| bench.verify())),
        Contender::new("bare signature", move || {
            timed(&|| {
                bench.sign_alone();
                Ok(())
            })
        }),
        Contender::new("decide and sign", move || timed(&|| bench.sign())),
    ];
    let group = Group::race("one payment", ("us", Better::Lower), scale.few(), contenders, before)?;
    let at_most = |ratio| Some(Target::RatioAtMost(ratio));
    let measures = vec![
        group.compare("verify and apply", "bare verification", at_most(VERIFY_RATIO)),
        group.compare("decide and sign", "bare signature", at_most(SIGN_RATIO)),
    ];
    Ok((group, measures))
}
