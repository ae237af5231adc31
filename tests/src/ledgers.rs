//! What a data directory says, opened as its daemon would open it at its next start.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use bitcoin::{Amount, Network};
use bitmesh_core::{
    channel::{Book, ChannelId, Entry, ProviderEvent, SubscriberChannel, SubscriberEvent},
    controller::Controller,
    fleet::FleetEntry,
    station::Station,
    units::{Msat, Octets},
    wire::PaymentRequest,
};
use bitmesh_user::store::{Place, Store, StoreRole};

/// A provider's.
pub struct Ledger(Controller);

impl Ledger {
    /// Of a directory that no daemon has open.
    pub fn of(directory: &Path) -> Result<Self> {
        Self::at(&Place::file(directory))
    }

    /// At a place that no daemon has open: an edge's part, where it is a fleet's.
    pub fn at(place: &Place) -> Result<Self> {
        let mut controller = Controller::new(Network::Regtest, Vec::new());
        let entries = in_a_runtime(async {
            let mut store = Store::open(place, StoreRole::Provider, Network::Regtest).await?;
            let entries = store.load::<ProviderEvent>().await?;
            if place.fleet.is_some() {
                controller.join(store.edge()?, store.next_key_index().await?);
            }
            store.close().await?;
            Ok(entries)
        })?;
        for entry in &entries {
            controller.replay(entry)?;
        }
        for report in controller.channels() {
            let paid = Msat::from_amount(report.paid).context("a sum")?;
            let bought = report.params.schedule.octets_for(paid);
            anyhow::ensure!(bought == Some(report.bought_octets), "credited otherwise: {report:?}");
        }
        Ok(Self(controller))
    }

    /// Whether it has a channel.
    pub fn knows(&self, channel: &ChannelId) -> bool {
        self.0.channel(channel).is_ok()
    }

    /// Sum of all payments on a channel.
    pub fn paid(&self, channel: &ChannelId) -> Result<Amount> {
        Ok(self.0.channel(channel)?.paid)
    }

    /// What the account bought that a station belongs to.
    pub fn bought(&self, station: Station) -> Octets {
        self.0.account(station).bought_octets
    }
}

/// Sums that a subscriber signed, by channel.
pub fn signed(directory: &Path) -> Result<Vec<(ChannelId, Amount)>> {
    let entries = in_a_runtime(async {
        let mut store =
            Store::open(&Place::file(directory), StoreRole::Subscriber, Network::Regtest).await?;
        let entries = store.load::<SubscriberEvent>().await?;
        store.close().await?;
        Ok(entries)
    })?;
    let mut book = Book::<SubscriberChannel>::default();
    for entry in &entries {
        book.apply(entry)?;
    }
    Ok(book.iter().map(|(id, channel)| (*id, channel.paid())).collect())
}

/// Appends payments to a provider's ledger that no daemon has open: from the first of two to the last,
/// a satoshi more each, in a row of its own each. Those between have a signature that is not theirs, and
/// stand for nothing once the last is there.
pub fn append(directory: &Path, channel: ChannelId, payments: &[PaymentRequest; 2]) -> Result<()> {
    let [first, last] = payments;
    let sums = first.paid.to_sat()..=last.paid.to_sat();
    // What is synced there is synced at once.
    let fast = tempfile::tempdir_in("/dev/shm")?;
    copy_files(directory, fast.path())?;
    in_a_runtime(async {
        let place = Place::file(fast.path());
        let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await?;
        store.load::<ProviderEvent>().await?;
        for paid in sums.map(Amount::from_sat) {
            let signature = if paid < last.paid { first.signature } else { last.signature };
            let event = ProviderEvent::Paid { paid, signature, earlier: 0 };
            // No payment, so that the next is not written over this one; in a file, nothing.
            let apart = Entry::Fleet(FleetEntry::KeyIndex { next: 0 });
            store.commit(&[Entry::Channel { channel, event }, apart], None).await?;
        }
        Ok(store.close().await?)
    })?;
    copy_files(fast.path(), directory)
}

/// Copies the files of a directory; who owns those that are there already keeps them.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for file in fs::read_dir(from)?.flatten() {
        if file.file_type()?.is_file() {
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
    }
    Ok(())
}

fn in_a_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
