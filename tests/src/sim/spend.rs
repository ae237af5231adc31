//! Whether a transaction may spend what it spends: scripts, signatures and lock times, for real.

use std::sync::OnceLock;

use bitmesh_core::bitcoin::{
    Transaction, TxOut,
    absolute::LockTime,
    secp256k1::{All, Secp256k1},
    sighash::Prevouts,
};
use miniscript::interpreter::Interpreter;

/// An input whose witness does not satisfy its script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Which input.
    pub input: usize,
    /// What is wrong with it.
    pub why: String,
}

/// The one context of this process.
pub fn secp() -> &'static Secp256k1<All> {
    static SECP: OnceLock<Secp256k1<All>> = OnceLock::new();
    SECP.get_or_init(Secp256k1::new)
}

/// Whether the lock time has come for a block at `height` (BIP65, by height alone: nothing here
/// locks by time).
pub fn is_final(tx: &Transaction, height: u32) -> bool {
    let enforced = tx.input.iter().any(|input| input.sequence.enables_absolute_lock_time());
    match tx.lock_time {
        LockTime::Blocks(lock) => !enforced || lock.to_consensus_u32() < height,
        LockTime::Seconds(_) => false,
    }
}

/// Runs each input's script with its witness.
pub fn verify(tx: &Transaction, prevouts: &[TxOut]) -> Result<(), Invalid> {
    let all = Prevouts::All(prevouts);
    for (index, (input, prevout)) in tx.input.iter().zip(prevouts).enumerate() {
        let invalid =
            |error: &dyn std::fmt::Display| Invalid { input: index, why: error.to_string() };
        let lock_time =
            if input.sequence.enables_absolute_lock_time() { tx.lock_time } else { LockTime::ZERO };
        let interpreter = Interpreter::from_txdata(
            &prevout.script_pubkey,
            &input.script_sig,
            &input.witness,
            input.sequence,
            lock_time,
        )
        .map_err(|error| invalid(&error))?;
        for satisfied in interpreter.iter(secp(), tx, index, &all) {
            satisfied.map_err(|error| invalid(&error))?;
        }
    }
    Ok(())
}
