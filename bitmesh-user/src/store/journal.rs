//! Digests: of each channel's journal, and of everything that is stored.

use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use bitmesh_core::bitcoin;

use super::engine::{ChannelRow, UsageRow};

/// SHA256, or an id of 32 octets.
pub(super) type Digest = [u8; 32];

pub(super) fn sha256(parts: &[&[u8]]) -> Digest {
    let mut engine = sha256::Hash::engine();
    for part in parts {
        engine.input(part);
    }
    sha256::Hash::from_engine(engine).to_byte_array()
}

/// The end of a channel's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// Events so far.
    pub n: u32,
    /// Of the last one and all before it; the channel's id before the first.
    pub digest: Digest,
}

impl Tail {
    /// Before the first event.
    pub(super) fn start(channel: &Digest) -> Self {
        Self { n: 0, digest: *channel }
    }

    /// After one more. `None` after as many events as no channel has.
    pub(super) fn after(self, body: &[u8]) -> Option<Self> {
        let digest = link(&self.digest, body);
        Some(Self { n: self.n.checked_add(1)?, digest })
    }
}

/// The digest of an event that follows one of `previous`.
pub(super) fn link(previous: &Digest, body: &[u8]) -> Digest {
    sha256(&[previous, body])
}

/// The digest of a folded journal's row.
pub(super) fn seal(row: &ChannelRow) -> Digest {
    sha256(&[b"channel", &row.channel, &row.n.to_be_bytes(), &row.digest, row.body.as_bytes()])
}

pub(super) fn usage_digest(row: &UsageRow) -> Digest {
    let mut octets = [0; size_of::<UsageRow>()];
    for (to, value) in octets.chunks_exact_mut(size_of::<i64>()).zip(row) {
        to.copy_from_slice(&value.to_be_bytes());
    }
    sha256(&[b"usage", &octets])
}

pub(super) fn block_digest(height: i64, hash: &Digest) -> Digest {
    sha256(&[b"block", &height.to_be_bytes(), hash])
}

pub(super) fn wallet_digest(number: i64, body: &str) -> Digest {
    sha256(&[b"wallet", &number.to_be_bytes(), body.as_bytes()])
}

pub(super) fn setting_digest(name: &str, value: &str) -> Digest {
    sha256(&[b"setting", name.as_bytes(), &[0], value.as_bytes()])
}

/// A sum over digests in any order: of every channel's tail, and of every other row. It is kept
/// along with each commit, so that a row that is lost, old or too many is noticed. It guards against accidents: who can
/// write the database can make a sum, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum(pub Digest);

impl Sum {
    /// Adds what is not in it; takes out what is.
    pub(super) fn toggle(&mut self, digest: &Digest) {
        for (octet, other) in self.0.iter_mut().zip(digest) {
            *octet ^= other;
        }
    }

    /// Adds a channel's journal, or takes it out.
    pub(super) fn toggle_tail(&mut self, tail: &Tail) {
        if tail.n > 0 {
            self.toggle(&tail.digest);
        }
    }
}
