//! Against the real engine, in a directory of its own.

use bitmesh_core::channel::ChannelId;

use super::*;

fn id(byte: u8) -> ChannelId {
    hex::encode([byte; 32]).parse().unwrap()
}

fn event(channel: u8, body: &str) -> Entry<String> {
    Entry::Channel { channel: id(channel), event: body.into() }
}

fn block(height: u32) -> Entry<String> {
    Entry::Block {
        height,
        hash: BlockHash::from_byte_array([u8::try_from(height % 256).unwrap(); 32]),
    }
}

async fn open(directory: &Path) -> Result<Store, StoreError> {
    Store::open(directory, StoreRole::Provider, Network::Regtest).await
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let station: Station = "02:00:00:00:00:01/7".parse().unwrap();
    let up = Counts { octets: Octets(u64::MAX), frames: 1, ..Counts::default() };
    let down = Counts { refused_octets: Octets(2), refused_frames: 3, ..Counts::default() };
    let usage = Usage { up, down };
    let entries = vec![
        event(1, "opened"),
        event(2, "opened"),
        event(1, "paid"),
        block(10),
        Entry::Usage { station, usage },
    ];
    let mut store = open(directory.path()).await.unwrap();
    assert!(store.load::<String>().await.unwrap().is_empty());
    store.commit(&entries, Some("{}")).await.unwrap();
    store.set("budget", "5").await.unwrap();
    drop(store);
    let mut store = open(directory.path()).await.unwrap();
    assert_eq!(store.load::<String>().await.unwrap(), entries);
    assert_eq!(store.wallet_changes().await.unwrap(), ["{}"]);
    assert_eq!(store.setting("budget").await.unwrap().as_deref(), Some("5"));
    store.commit(&[event(3, "more")], None).await.unwrap();
    assert_eq!(store.load::<String>().await.unwrap().len(), 6);
}

#[tokio::test]
async fn only_the_newest_blocks_are_kept_and_a_reorganisation_drops_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path()).await.unwrap();
    let blocks: Vec<_> = (1..=150).map(block).collect();
    store.commit(&blocks, None).await.unwrap();
    assert_eq!(store.load::<String>().await.unwrap(), blocks[50..]);
    store.commit(&[Entry::<String>::BlockGone { height: 150 }], None).await.unwrap();
    assert_eq!(store.load::<String>().await.unwrap(), blocks[50..149]);
}

#[tokio::test]
async fn a_failed_batch_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path()).await.unwrap();
    store.commit(&[block(1)], None).await.unwrap();
    assert!(store.commit(&[event(1, "lost"), block(1)], None).await.is_err());
    drop(store);
    let mut store = open(directory.path()).await.unwrap();
    assert_eq!(store.load::<String>().await.unwrap(), [block(1)]);
}

#[tokio::test]
async fn p15_a_changed_or_missing_row_is_noticed() {
    for damage in [
        "UPDATE events SET body = '\"paid more\"' WHERE seq = 2",
        "UPDATE events SET channel = '0101010101010101010101010101010101010101010101010101010101010101' WHERE seq = 2",
        "DELETE FROM events WHERE seq = 2",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut store = open(directory.path()).await.unwrap();
        let entries = [event(1, "opened"), event(2, "paid"), event(3, "closed")];
        store.commit(&entries, None).await.unwrap();
        sqlx::query(damage).execute(&mut store.connection).await.unwrap();
        let error = store.load::<String>().await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{damage}: {error}");
    }
}

#[tokio::test]
async fn p15_a_file_of_garbage_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).await.unwrap().close().await.unwrap();
    std::fs::write(directory.path().join(FILE), [0x5a; 8_192]).unwrap();
    let error = open(directory.path()).await.unwrap_err().to_string();
    assert!(error.contains("database"), "{error}");
}

#[tokio::test]
async fn a_directory_has_one_daemon_of_one_role_on_one_chain() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    assert!(matches!(open(directory.path()).await, Err(StoreError::Locked(_))));
    drop(store);
    let role = Store::open(directory.path(), StoreRole::Subscriber, Network::Regtest).await;
    assert!(matches!(role, Err(StoreError::Foreign { .. })));
    let network = Store::open(directory.path(), StoreRole::Provider, Network::Bitcoin).await;
    assert!(matches!(network, Err(StoreError::Foreign { .. })));
}
