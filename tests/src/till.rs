//! A provider that sells to raw payers alone: no subscriber, no wallet, real calls that fail.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::station::Station;
use tempfile::TempDir;

use crate::{
    faults::Faults,
    ledgers::Ledger,
    payers::{Payer, Stand},
    pinned::{Honoured, Pinned},
    sabotage::pins_of,
    topology::Topology,
    world::{Trade, World},
};

/// The provider's port.
pub const API_PORT: u16 = 8_434;
/// Price at which a satoshi buys a KiB, so that every payment matters, in msat per MiB.
pub const DEAR: u64 = 1_024_000;
/// A frame that two CPUs can let through beyond a limit, in octets.
pub const FRAME: u64 = 1_500;
/// What raw payers put into their channels.
const CAPACITY: Amount = Amount::from_sat(500_000);

/// A provider and one payer on each stand.
pub struct Till<'a> {
    /// The processes.
    pub world: World<'a>,
    /// What fails in the provider.
    pub faults: Faults,
    /// Who pays, in the order of the stands.
    pub payers: Vec<Payer<'a>>,
    /// The kernel's table.
    pub kernel: Pinned,
    scratch: TempDir,
}

impl<'a> Till<'a> {
    /// Opens it, with a funded channel for each stand.
    pub fn open(topology: &'a Topology, stands: &'a [Stand]) -> Result<Self> {
        let sell: Vec<_> = stands.iter().flat_map(|stand| ["--lan", &stand.lan]).collect();
        let mut world =
            World::new(topology, &Trade { price: DEAR, sell: &sell, ..Trade::default() })?;
        world.provider.stop()?;
        let faults = Faults::prepare(&mut world.provider, API_PORT)?;
        world.provider.start()?;
        let mut payers = Vec::new();
        for (number, stand) in (0u8..).zip(stands) {
            let payer = Payer::open(stand, API_PORT, &world.node, number, CAPACITY);
            payers.push(payer.with_context(|| world.provider.log())?);
        }
        let kernel = Pinned::open(&pins_of(world.instance()))?;
        let scratch = tempfile::tempdir()?;
        Ok(Self { world, faults, payers, kernel, scratch })
    }

    /// A payer.
    pub fn payer(&self, number: usize) -> Result<&Payer<'a>> {
        self.payers.get(number).context("a payer of that number")
    }

    /// What the kernel has of a payer's station.
    pub fn honoured(&self, number: usize) -> Result<Honoured> {
        let station = self.payer(number)?.station()?;
        self.kernel.station(station.key()).context("a station in the kernel's table")
    }

    /// What a power cut at this moment would leave.
    pub fn after_a_power_cut(&self) -> Result<Ledger> {
        self.faults.power_cut(self.scratch.path())?;
        Ledger::of(self.scratch.path())
    }

    /// Holds what is in force and was said against what a power cut would leave ([`check_durable`]).
    /// Nothing may change meanwhile.
    pub fn check_durable(&self) -> Result<()> {
        let honoured = self.kernel.stations();
        check_durable(honoured, &self.payers, &self.after_a_power_cut()?)
    }

    /// Payers rest: the kernel honours what was acknowledged, once.
    pub fn check_credited_once(&self) -> Result<()> {
        for number in 0..self.payers.len() {
            let (honoured, payer) = (self.honoured(number)?, self.payer(number)?);
            let bought = payer.acknowledged().to_sat() << 10;
            ensure!(honoured.limit == bought, "{honoured:?}, {bought} acknowledged");
        }
        Ok(())
    }
}

/// Nothing that is in force or was said is more than what is durable, and nothing of that is more than
/// what was signed.
pub fn check_durable(
    honoured: impl IntoIterator<Item = Honoured>,
    payers: &[Payer<'_>],
    ledger: &Ledger,
) -> Result<()> {
    for honoured in honoured {
        let bought = ledger.bought(Station::from(honoured.key)).0;
        ensure!(honoured.limit <= bought, "{honoured:?} is in force, {bought} is durable");
        ensure!(honoured.used <= honoured.limit + FRAME, "{honoured:?} was overrun");
    }
    for payer in payers {
        let (paid, channel) = (ledger.paid(&payer.channel())?, payer.channel());
        // An answer that left before a crash may be read after it.
        let (acknowledged, signed) = (payer.acknowledged(), payer.signed());
        ensure!(acknowledged <= paid, "{channel}: {acknowledged} acknowledged, {paid} durable");
        ensure!(paid <= signed, "{channel}: {paid} is known, {signed} was signed");
    }
    Ok(())
}
