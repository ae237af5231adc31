//! Files of the first layout, as the program that was released wrote them: both ends of two channels,
//! the first of which is claimed.

use std::path::Path;

use bitmesh_core::{
    bitcoin::Amount,
    buyer::Buyer,
    channel::{ProviderEvent, SubscriberEvent},
    controller::Controller,
    wire::ChannelReport,
};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;

use super::{Network, Place, Store, StoreError, StoreRole};
use crate::store::sqlite::{FILE, options};

const PROVIDER: &[u8] = include_bytes!("../fixtures/layout-1-provider.sqlite");
const SUBSCRIBER: &[u8] = include_bytes!("../fixtures/layout-1-subscriber.sqlite");
const ASIDE: &str = "bitmesh.sqlite.layout-1";

fn directory(file: &[u8]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(FILE), file).unwrap();
    directory
}

async fn open(directory: &Path, role: StoreRole) -> Result<Store, StoreError> {
    Store::open(&Place::file(directory), role, Network::Regtest).await
}

/// Sum and number of payments, and whether it is spent, of each channel.
fn money(reports: impl Iterator<Item = ChannelReport>) -> Vec<(u64, u64, bool)> {
    let of = |report: ChannelReport| {
        (report.paid.to_sat(), report.commitments, report.settled_txid.is_some())
    };
    let mut all: Vec<_> = reports.map(of).collect();
    all.sort_unstable();
    all
}

/// What the program that wrote them had: 2,408 sat in 2 payments, and 5,670 in 16, claimed.
const MONEY: [(u64, u64, bool); 2] = [(2_408, 2, false), (5_670, 16, true)];

async fn provider(store: &mut Store) -> Controller {
    let mut controller = Controller::new(Network::Regtest, Vec::new());
    for entry in store.load::<ProviderEvent>().await.unwrap() {
        controller.replay(&entry).unwrap();
    }
    controller
}

#[tokio::test]
async fn a_provider_of_the_first_layout_has_what_it_had() {
    let directory = directory(PROVIDER);
    for _ in 0..2 {
        let mut store = open(directory.path(), StoreRole::Provider).await.unwrap();
        let controller = provider(&mut store).await;
        assert_eq!(money(controller.channels()), MONEY);
        assert_eq!(controller.billed().0, 29_087 + 5_915_864);
        assert_eq!(controller.next_key_index(), 2);
        assert_eq!(controller.book().tip(), 104);
        assert_eq!(store.wallet_changes().await.unwrap().len(), 17);
        // Folded it comes to the same, too.
        store.tidy_beyond::<ProviderEvent>(3, |_| false).await.unwrap();
        store.close().await.unwrap();
    }
    let aside = std::fs::read(directory.path().join(ASIDE)).unwrap();
    let kept = self::directory(&aside);
    assert!(!directory.path().join(format!("{ASIDE}.2")).exists());
    let mut store = open(kept.path(), StoreRole::Provider).await.unwrap();
    assert_eq!(money(provider(&mut store).await.channels()), MONEY);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_subscriber_of_the_first_layout_has_what_it_had() {
    let directory = directory(SUBSCRIBER);
    let mut store = open(directory.path(), StoreRole::Subscriber).await.unwrap();
    let mut buyer = Buyer::new(Network::Regtest);
    for entry in store.load::<SubscriberEvent>().await.unwrap() {
        buyer.replay(&entry).unwrap();
    }
    assert_eq!(money(buyer.channels()), MONEY);
    let paid: Amount = buyer.book().iter().map(|(_, channel)| channel.promised()).sum();
    assert_eq!(paid.to_sat(), 5_670 + 2_408);
    assert_eq!(store.setting("budget_sat").await.unwrap().as_deref(), Some("18000"));
    assert_eq!(store.wallet_changes().await.unwrap().len(), 19);
    store.close().await.unwrap();
}

#[tokio::test]
async fn p15_a_damaged_file_of_the_first_layout_is_left_as_it_is() {
    let directory = directory(PROVIDER);
    let path = directory.path().join(FILE);
    let mut connection = SqliteConnection::connect_with(&options(&path)).await.unwrap();
    let damage = "UPDATE events SET body = replace(body, '5670', '9670') WHERE body LIKE '%5670%'";
    let done = sqlx::query(damage).execute(&mut connection).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    connection.close().await.unwrap();
    // Left by an earlier try that was killed.
    std::fs::write(directory.path().join(format!("{ASIDE}.part")), [0x5a; 64]).unwrap();
    for _ in 0..3 {
        let error = open(directory.path(), StoreRole::Provider).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
    // One copy, however often it was tried.
    let names = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name());
    let copies: Vec<_> = names.filter(|name| name.to_string_lossy().contains("layout")).collect();
    assert_eq!(copies, [ASIDE]);
    let mut connection = SqliteConnection::connect_with(&options(&path)).await.unwrap();
    let query = sqlx::query("SELECT count(*) FROM events");
    let events: i64 = query.fetch_one(&mut connection).await.unwrap().try_get(0).unwrap();
    assert_eq!(events, 25);
    connection.close().await.unwrap();
}

/// The program that was released looks here, and says that a newer one has to be used.
#[tokio::test]
async fn the_first_layouts_program_refuses_what_is_newer() {
    let directory = directory(PROVIDER);
    let store = open(directory.path(), StoreRole::Provider).await.unwrap();
    store.close().await.unwrap();
    let path = directory.path().join(FILE);
    let mut connection = SqliteConnection::connect_with(&options(&path)).await.unwrap();
    let query = sqlx::query("SELECT max(version) FROM _sqlx_migrations");
    let newest: i64 = query.fetch_one(&mut connection).await.unwrap().try_get(0).unwrap();
    assert_eq!(newest, 2);
    connection.close().await.unwrap();
}
