//! What a channel's course on chain is, the same at both ends: funded, spent, final, or undone by a
//! reorganisation.

use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Transaction};
use serde::{Deserialize, Serialize};

use super::{
    CLAIM_MARGIN_BLOCKS, ChannelParams, FINAL_DEPTH_BLOCKS, Funding, InvalidEvent, SpendKind, Spent,
};
use crate::pricing::Schedules;

/// What a person wants to know of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ChannelStatus {
    /// Waiting for the funding.
    Unfunded,
    /// Waiting for confirmations.
    Confirming {
        /// Blocks so far.
        have: u32,
        /// Blocks needed.
        need: u32,
    },
    /// Takes payments.
    Open,
    /// Takes no more payments; not settled in a block.
    Closing,
    /// Settled in a block.
    Settled {
        /// By claim or refund.
        kind: SpendKind,
        /// Blocks on it, its own included.
        depth: u32,
    },
    /// Settled for good.
    Closed {
        /// By claim or refund; none when it was never funded.
        kind: Option<SpendKind>,
    },
}

/// What a reorganisation took away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// The funding, and what spent it.
    Funding,
    /// What spent the funding.
    Spend,
}

/// The part of a channel's state that follows from terms, blocks and the wish to close.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Course {
    /// Shared with what is verified on other threads.
    pub(super) params: Arc<ChannelParams>,
    pub(super) funding: Option<Funding>,
    pub(super) close_requested: bool,
    /// Of few channels: kept apart.
    spent: Option<Box<Spent>>,
    pub(super) finished: bool,
}

impl Course {
    /// Of terms from a journal.
    pub(super) fn new(params: Arc<ChannelParams>) -> Result<Self, InvalidEvent> {
        params.validate_again().map_err(|_| InvalidEvent("a channel with impossible terms"))?;
        Ok(Self { params, funding: None, close_requested: false, spent: None, finished: false })
    }

    /// Makes the terms anew, and gives those that they were: what was read lies where it was read. What
    /// was verified against them is verified again.
    pub(super) fn pack(&mut self, schedules: &mut Schedules) -> Arc<ChannelParams> {
        let schedule = schedules.share(&self.params.schedule);
        let params = ChannelParams { schedule, ..ChannelParams::clone(&self.params) };
        std::mem::replace(&mut self.params, Arc::new(params))
    }

    /// The script that the funding pays.
    pub(super) fn script(&self) -> ScriptBuf {
        self.params.funding_script()
    }

    /// What spent the funding, in a block.
    pub(super) fn spent(&self) -> Option<Spent> {
        self.spent.as_deref().copied()
    }

    pub(super) fn fund(&mut self, funding: Funding) -> Result<(), InvalidEvent> {
        if self.funding.is_some() {
            return Err(InvalidEvent("a channel funded twice"));
        }
        self.funding = Some(funding);
        Ok(())
    }

    pub(super) fn undo(&mut self, gone: Gone) -> Result<(), InvalidEvent> {
        let spent = self.spent.take().map(drop);
        match gone {
            Gone::Spend => spent.ok_or(InvalidEvent("no spend to take back")),
            Gone::Funding => {
                self.funding.take().map(drop).ok_or(InvalidEvent("no funding to take away"))
            }
        }
    }

    pub(super) fn spend(&mut self, spent: Spent) -> Result<(), InvalidEvent> {
        if self.funding.is_none() || self.spent.is_some() {
            return Err(InvalidEvent("a spend without funding, or a second one"));
        }
        self.spent = Some(Box::new(spent));
        Ok(())
    }

    /// How `tx`, in a block at `height`, spends the funding.
    pub(super) fn spend_in(&self, tx: &Transaction, height: u32) -> Option<Spent> {
        if self.finished || self.spent.is_some() {
            return None;
        }
        Spent::find(tx, &self.funding?.outpoint, height)
    }

    /// What goes when the block at `height` is no longer part of the chain.
    pub(super) fn gone_with(&self, height: u32) -> Option<Gone> {
        let funding = self.funding.is_some_and(|funding| funding.height == height);
        let spend = self.spent().is_some_and(|spent| spent.height == height);
        match (self.finished, funding, spend) {
            (true, ..) | (_, false, false) => None,
            (_, true, _) => Some(Gone::Funding),
            (_, false, true) => Some(Gone::Spend),
        }
    }

    /// Whether an output in a block could still be the funding.
    pub(super) fn awaits_funding(&self) -> bool {
        self.funding.is_none() && !self.finished
    }

    /// Whether the spend is too deep for any reorganisation that is survived.
    pub(super) fn settled(&self, tip: u32) -> bool {
        self.spent().is_some_and(|spent| depth(spent.height, tip) >= FINAL_DEPTH_BLOCKS)
    }

    /// Whether blocks alone can end it.
    pub(super) fn may_finish(&self) -> bool {
        !self.finished && (self.spent.is_some() || self.funding.is_none())
    }

    pub(super) fn outpoint(&self) -> Option<OutPoint> {
        self.funding.map(|funding| funding.outpoint)
    }

    /// Whether the funding has the blocks on it that the terms ask for.
    pub(super) fn is_confirmed(&self, tip: u32) -> bool {
        self.funding.is_some_and(|funding| depth(funding.height, tip) >= self.params.confirmations)
    }

    pub(super) fn status(&self, tip: u32) -> ChannelStatus {
        if self.finished {
            return ChannelStatus::Closed { kind: self.spent().map(|spent| spent.kind) };
        }
        if let Some(spent) = self.spent() {
            return ChannelStatus::Settled { kind: spent.kind, depth: depth(spent.height, tip) };
        }
        let expiring = tip.saturating_add(CLAIM_MARGIN_BLOCKS) >= self.params.expiry_height;
        if self.close_requested || expiring {
            return ChannelStatus::Closing;
        }
        match self.funding.map(|funding| depth(funding.height, tip)) {
            None => ChannelStatus::Unfunded,
            Some(have) if have < self.params.confirmations => {
                ChannelStatus::Confirming { have, need: self.params.confirmations }
            }
            Some(_) => ChannelStatus::Open,
        }
    }
}

/// Blocks on top of and including the one at `height`.
fn depth(height: u32, tip: u32) -> u32 {
    tip.saturating_add(1).saturating_sub(height)
}
