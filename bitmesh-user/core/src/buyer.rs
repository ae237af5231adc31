//! The subscriber's rules around its channels: what is signed is stored before it is sent, and
//! what a vanished provider holds comes back at the expiry.

use bitcoin::{
    Address, Amount, Block, FeeRate, Network, OutPoint, Script, Transaction,
    secp256k1::{Secp256k1, XOnlyPublicKey, ecdsa::Signature},
};

use crate::{
    channel::{
        Batch, Book, ChannelId, ChannelParams, Close, CloseError, Entry, InvalidEvent,
        SubscriberChannel, SubscriberEvent,
    },
    payer::Dispute,
    wire::{ChannelReport, CloseProposal, ClosedByBoth, DisputeReport},
};

/// What to do, once its cause is durable.
#[derive(Clone, Debug)]
pub enum Action {
    /// Hand a transaction to the network.
    Broadcast(Transaction),
    /// Send a payment.
    Pay(ChannelId, Amount, Signature),
    /// Ask for a close, and propose it.
    Close(ChannelId, CloseProposal),
}

/// A channel whose money is to be fetched back now.
#[derive(Clone, Debug)]
pub struct DueRefund {
    /// Its name.
    pub channel: ChannelId,
    /// Its funding.
    pub outpoint: OutPoint,
    /// Index of the key that signs.
    pub key_index: u32,
}

type Out = Batch<SubscriberEvent, Action>;

/// The state of a subscriber.
#[derive(Debug)]
pub struct Buyer {
    network: Network,
    book: Book<SubscriberChannel>,
    next_key_index: u32,
}

impl Buyer {
    /// An empty subscriber on `network`.
    pub fn new(network: Network) -> Self {
        Self { network, book: Book::default(), next_key_index: 0 }
    }

    /// Follows an entry read back from the store, before anything else is put in.
    pub fn replay(&mut self, entry: &Entry<SubscriberEvent>) -> Result<(), InvalidEvent> {
        self.book.apply(entry)?;
        if let Entry::Channel {
            event:
                SubscriberEvent::Negotiated { key_index, .. }
                | SubscriberEvent::Restored { key_index, .. },
            ..
        } = entry
        {
            self.next_key_index = self.next_key_index.max(key_index.saturating_add(1));
        }
        Ok(())
    }

    /// What a restart has to do again: [`Self::unconfirmed`], and the newest payment, which may have
    /// been signed and never sent.
    pub fn resume(&self) -> Out {
        let mut out = Out::default();
        for tx in self.unconfirmed() {
            out.act(Action::Broadcast(tx));
        }
        for (id, channel) in self.book.iter().filter(|(_, channel)| !channel.finished()) {
            let counts = channel.payable(self.book.tip()) > Amount::ZERO;
            if let Some((paid, signature)) = channel.best().filter(|_| counts) {
                out.act(Action::Pay(*id, paid, signature));
            }
        }
        out
    }

    /// Fundings, closes and refunds that no block holds: to be broadcast again, a node may have refused or
    /// forgotten them.
    pub fn unconfirmed(&self) -> Vec<Transaction> {
        let channels = self.book.iter().map(|(_, channel)| channel);
        let waiting = channels.filter(|channel| !channel.finished()).flat_map(|channel| {
            let funding = channel.funding_waits(self.book.tip());
            let close = channel.closed_by_both().map(|close| &close.tx);
            let out = channel.refund_tx().or(close).filter(|_| channel.spent().is_none());
            [funding, out]
        });
        waiting.flatten().cloned().collect()
    }

    /// Both sides agreed on terms when the chain was at `height`: the own tip, or what the provider
    /// told while the chain is not seen.
    pub fn negotiated(
        &mut self,
        params: ChannelParams,
        provider: XOnlyPublicKey,
        url: String,
        height: u32,
        out: &mut Out,
    ) -> ChannelId {
        let channel = params.id();
        let key_index = self.next_key_index;
        self.next_key_index += 1;
        let params = Box::new(params);
        let height = height.max(self.book.tip());
        let event = SubscriberEvent::Negotiated { params, key_index, provider, url, height };
        self.book.record(channel, event, out);
        channel
    }

    /// A channel of this wallet's was found by what its funding carries, in the block that is to be
    /// connected next. False, and nothing done, when it is known.
    pub fn restored(&mut self, params: ChannelParams, key_index: u32, out: &mut Out) -> bool {
        let channel = params.id();
        if self.book.get(&channel).is_some() || params.validate().is_err() {
            return false;
        }
        self.next_key_index = self.next_key_index.max(key_index.saturating_add(1));
        let (params, height) = (Box::new(params), self.book.tip());
        self.book.record(channel, SubscriberEvent::Restored { params, key_index, height }, out);
        true
    }

    /// A funding was signed, the first one or a replacement. False, and nothing done, when it
    /// doesn't fund the channel, or could confirm beside one before it.
    pub fn funding_signed(&mut self, channel: ChannelId, tx: Transaction, out: &mut Out) -> bool {
        let known = self.book.get(&channel);
        let known = known.filter(|known| !known.finished() && known.is_fundable_by(&tx));
        let Some(known) = known else { return false };
        // The own tip is old while the chain is not seen.
        let height = self.book.tip().max(known.agreed_height());
        self.book.record(channel, SubscriberEvent::FundingSigned { tx: tx.clone(), height }, out);
        out.act(Action::Broadcast(tx));
        true
    }

    /// The provider says that it counts on this funding before it is in a block.
    pub fn funding_taken(&mut self, channel: ChannelId, outpoint: OutPoint, out: &mut Out) {
        let known = self.book.get(&channel);
        if let Some(event) = known.and_then(|known| known.funding_taken(outpoint)) {
            self.book.record(channel, event, out);
        }
    }

    /// A payment was signed: it is stored, then sent.
    pub fn payment_signed(
        &mut self,
        channel: ChannelId,
        paid: Amount,
        signature: Signature,
        out: &mut Out,
    ) {
        let event = SubscriberEvent::PaymentSigned { paid, signature, earlier: 0 };
        self.book.record(channel, event, out);
        out.act(Action::Pay(channel, paid, signature));
    }

    /// The provider bills what was not counted.
    pub fn disputed(&mut self, channel: ChannelId, dispute: Dispute, out: &mut Out) {
        if !self.is_live(&channel) {
            return;
        }
        let (reported_octets, counted_octets) = (dispute.reported, dispute.counted);
        let event = SubscriberEvent::Disputed { reported_octets, counted_octets };
        self.book.record(channel, event, out);
    }

    /// Leave. Nothing more is signed on the channel.
    pub fn close(&mut self, channel: ChannelId, out: &mut Out) {
        if !self.is_live(&channel) {
            return;
        }
        let height = self.book.tip();
        self.book.record(channel, SubscriberEvent::CloseRequested { height }, out);
    }

    /// The provider refused a payment, with this code. True, and the channel is left, when it will
    /// never take one on it again: it closed the channel, lost it, or has another payment than the
    /// journal here.
    pub fn payment_refused(&mut self, channel: ChannelId, code: &str, out: &mut Out) -> bool {
        let gone = matches!(code, "closed" | "unknown-channel" | "stale-payment");
        if gone {
            self.close(channel, out);
        }
        gone
    }

    /// The close to sign and propose now ([`SubscriberChannel::close_due`]).
    pub fn close_due(
        &self,
        channel: &ChannelId,
        payout_script: &Script,
        fee_rate: FeeRate,
    ) -> Result<Option<Close>, CloseError> {
        let tip = self.book.tip();
        let known = self.book.get(channel);
        known.map_or(Ok(None), |known| known.close_due(payout_script, fee_rate, tip))
    }

    /// A close was signed: it is stored, then proposed.
    pub fn close_signed(
        &mut self,
        channel: ChannelId,
        close: Close,
        signature: Signature,
        out: &mut Out,
    ) {
        let close = close.proposed(signature, self.book.tip());
        let proposal = CloseProposal::from(&close);
        self.book.record(channel, SubscriberEvent::CloseSigned(close), out);
        out.act(Action::Close(channel, proposal));
    }

    /// The provider answered a wish to close with a transaction. It is kept and broadcast when it
    /// is the close that was proposed, with the provider's signature.
    pub fn close_answered(&mut self, channel: ChannelId, tx: Transaction, out: &mut Out) {
        let secp = Secp256k1::verification_only();
        let known = self.book.get(&channel).filter(|known| !known.finished());
        if let Some(event) = known.and_then(|known| known.close_answered(&secp, &tx)) {
            self.book.record(channel, event, out);
            out.act(Action::Broadcast(tx));
        }
    }

    /// A refund was signed, unless the channel was settled meanwhile.
    pub fn refund_signed(&mut self, channel: ChannelId, tx: Transaction, out: &mut Out) {
        let tip = self.book.tip();
        if self.book.get(&channel).and_then(|known| known.refund_due(tip)).is_none() {
            return;
        }
        let event = SubscriberEvent::RefundSigned { tx: tx.clone(), height: self.book.tip() };
        self.book.record(channel, event, out);
        out.act(Action::Broadcast(tx));
    }

    /// A block on the tip.
    pub fn connect(&mut self, height: u32, block: &Block, out: &mut Out) {
        self.book.connect(height, block.block_hash(), &block.txdata, out);
    }

    /// The tip left the chain.
    pub fn disconnect(&mut self, height: u32, out: &mut Out) {
        self.book.disconnect(height, out);
    }

    /// Channels past their expiry that nobody settled.
    pub fn refunds_due(&self) -> Vec<DueRefund> {
        let tip = self.book.tip();
        self.book
            .iter()
            .filter_map(|(id, channel)| {
                let outpoint = channel.refund_due(tip)?;
                Some(DueRefund { channel: *id, outpoint, key_index: channel.key_index() })
            })
            .collect()
    }

    fn is_live(&self, channel: &ChannelId) -> bool {
        self.book.get(channel).is_some_and(|known| !known.finished())
    }

    /// Whether a channel's journal may be forgotten, if its key index is not needed to know the next.
    pub fn may_forget(&self, channel: &ChannelId) -> bool {
        self.book.get(channel).is_none_or(SubscriberChannel::forgettable)
    }

    /// Index of the wallet key that the next channel uses.
    pub fn next_key_index(&self) -> u32 {
        self.next_key_index
    }

    /// The channels and the chain as this side knows it.
    pub fn book(&self) -> &Book<SubscriberChannel> {
        &self.book
    }

    /// Every channel.
    pub fn channels(&self) -> impl Iterator<Item = ChannelReport> + '_ {
        self.book.iter().map(|(id, channel)| {
            let params = channel.params().clone();
            let address = Address::from_script(&channel.funding_script(), self.network);
            ChannelReport {
                channel: *id,
                status: channel.status(self.book.tip()),
                descriptor: params.descriptor().map(|it| it.to_string()).unwrap_or_default(),
                address: address.map(|address| address.to_string()).unwrap_or_default(),
                params,
                station: None,
                account: None,
                funding: channel.funding().map(|funding| funding.outpoint),
                offered: channel.taken().filter(|_| channel.funding().is_none()),
                payable: channel.payable(self.book.tip()),
                paid: channel.paid(),
                commitments: channel.commitments(),
                bought_octets: channel.bought(),
                closing_txid: channel
                    .refund_tx()
                    .or(channel.closed_by_both().map(|close| &close.tx))
                    .map(Transaction::compute_txid),
                closing_fee_sat: None,
                payout_script: None,
                closed_by_both: channel
                    .closed_by_both()
                    .map(|close| ClosedByBoth { tx: close.tx.clone() }),
                settled_txid: channel.spent().map(|spent| spent.txid),
                dispute: channel.disputed().map(|(reported_octets, counted_octets)| {
                    DisputeReport { reported_octets, counted_octets }
                }),
            }
        })
    }
}
