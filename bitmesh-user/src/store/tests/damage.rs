//! P15: a file in which any octet is another is refused, or comes to what it was.

use std::{fs, path::Path};

use bitmesh_core::channel::{Entry, ProviderEvent};
use tempfile::TempDir;

use super::{Network, Place, Store, StoreError, StoreRole};
use crate::store::{Look, Restore, accept, sqlite, witness};

const FIXTURE: &[u8] = include_bytes!("../fixtures/layout-1-provider.sqlite");
/// Octets from one that is changed to the next: coprime to the pages' size, so that every part of a
/// page has its turn.
const STRIDE: usize = 127;

/// All that is loaded.
type Loaded = (Vec<Entry<ProviderEvent>>, Vec<String>);

async fn open(directory: &Path) -> Result<Store, StoreError> {
    Store::open(&Place::file(directory), StoreRole::Provider, Network::Regtest).await
}

async fn load(directory: &Path) -> Result<Loaded, StoreError> {
    let mut store = open(directory).await?;
    let loaded =
        async { Ok((store.load::<ProviderEvent>().await?, store.wallet_changes().await?)) };
    let loaded = loaded.await;
    let _ = store.close().await;
    loaded
}

/// A ledger with channels, some of them folded, usage, blocks and a wallet.
async fn ledger() -> (TempDir, Loaded) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(sqlite::FILE), FIXTURE).unwrap();
    let mut store = open(directory.path()).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    store.tidy_beyond::<ProviderEvent>(12, |_| false).await.unwrap();
    store.close().await.unwrap();
    // Without the room that the first layout's tables took.
    let compact = directory.path().join("compact");
    let mut look = Look::open(&Place::file(directory.path())).await.unwrap();
    look.back_up(&compact).await.unwrap();
    look.close().await.unwrap();
    fs::rename(compact, directory.path().join(sqlite::FILE)).unwrap();
    let loaded = load(directory.path()).await.unwrap();
    (directory, loaded)
}

fn copy(from: &Path, files: &[&str]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(from.join(file), directory.path().join(file)).unwrap();
    }
    directory
}

/// Says what to do, or at least where.
fn is_clear(error: &StoreError) -> bool {
    let told = error.to_string();
    ["bitmesh store", "the database", "choose another", "newer"]
        .iter()
        .any(|part| told.contains(part))
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_file_with_any_octet_changed_is_refused_or_comes_to_the_same() {
    let (home, whole) = ledger().await;
    let octets = fs::read(home.path().join(sqlite::FILE)).unwrap();
    let (mut refused, mut same) = (0, 0);
    for at in (0..octets.len()).step_by(STRIDE) {
        let copy = copy(home.path(), &[witness::FILE]);
        let mut changed = octets.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(copy.path().join(sqlite::FILE), changed).unwrap();
        match load(copy.path()).await {
            Ok(loaded) => {
                assert!(loaded == whole, "octet {at} makes a difference that nobody noticed");
                same += 1;
            }
            Err(error) => {
                assert!(is_clear(&error), "octet {at}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > octets.len() / STRIDE / 8, "{refused} refused, {same} the same");
    assert!(same > 0, "free room was changed, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_changed_write_ahead_log_is_refused_or_comes_to_the_same() {
    let (home, _) = ledger().await;
    let mut store = open(home.path()).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    for number in 0..5 {
        store.commit::<ProviderEvent>(&[], Some(&format!("{{\"n\":{number}}}"))).await.unwrap();
    }
    // As a kill leaves it: what was committed is in the log alone.
    let log = format!("{}-wal", sqlite::FILE);
    let files = [sqlite::FILE, witness::FILE, &log];
    let killed = copy(home.path(), &files);
    drop(store);
    let octets = fs::read(killed.path().join(&log)).unwrap();
    let whole = load(copy(killed.path(), &files).path()).await.unwrap();
    let mut refused = 0;
    for at in (0..octets.len()).step_by(STRIDE * 4) {
        let copy = copy(killed.path(), &files);
        let mut changed = octets.clone();
        changed[at] ^= 1 << (at % 8);
        fs::write(copy.path().join(&log), changed).unwrap();
        match load(copy.path()).await {
            Ok(loaded) => assert!(loaded == whole, "octet {at} of the log"),
            Err(error) => {
                assert!(is_clear(&error), "octet {at}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn p15_an_older_copy_is_refused_until_it_is_accepted() {
    let (home, whole) = ledger().await;
    let older = fs::read(home.path().join(sqlite::FILE)).unwrap();
    let mut store = open(home.path()).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    store.commit::<ProviderEvent>(&[], Some("{}")).await.unwrap();
    store.close().await.unwrap();
    fs::write(home.path().join(sqlite::FILE), older).unwrap();
    let error = load(home.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::RolledBack { .. }), "{error}");
    assert!(error.to_string().contains("bitmesh store accept"), "{error}");
    let place = Place::file(home.path());
    accept(&place).await.unwrap();
    let mut store = open(home.path()).await.unwrap();
    assert!(store.load::<ProviderEvent>().await.unwrap() == whole.0);
    assert!(store.went_back().is_some_and(|from| from.contains("accepted")));
    store.close().await.unwrap();
    // Until it was done, however often it is started.
    let mut store = open(home.path()).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    assert!(store.went_back().is_some() && store.gone_on_from().is_none());
    store.goes_on(1_234).await.unwrap();
    store.goes_on(5_678).await.unwrap();
    store.close().await.unwrap();
    let mut store = open(home.path()).await.unwrap();
    assert!(store.load::<ProviderEvent>().await.unwrap() == whole.0);
    assert_eq!(store.went_back(), None);
    assert!(
        store
            .gone_on_from()
            .is_some_and(|(since, from)| since == 1_234 && from.contains("accepted"))
    );
    store.close().await.unwrap();
    load(home.path()).await.unwrap();
    // Gone altogether is older, too.
    fs::remove_file(home.path().join(sqlite::FILE)).unwrap();
    let error = load(home.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::RolledBack { found: 0, .. }), "{error}");
}

#[tokio::test]
async fn a_witness_that_lags_or_is_garbage_keeps_nobody_out() {
    let (home, whole) = ledger().await;
    let lagging = fs::read(home.path().join(witness::FILE)).unwrap();
    let mut store = open(home.path()).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    store.set("name", "value").await.unwrap();
    store.close().await.unwrap();
    for said in [lagging, vec![0x5a; 72], Vec::new()] {
        fs::write(home.path().join(witness::FILE), said).unwrap();
        assert!(load(home.path()).await.unwrap() == whole);
    }
}

#[tokio::test]
async fn a_copy_is_put_back_and_what_was_there_is_kept() {
    let (home, whole) = ledger().await;
    let place = Place::file(home.path());
    let backup = home.path().join("backup");
    let mut store = open(home.path()).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    // While the ledger is in use.
    let mut look = Look::open(&place).await.unwrap();
    look.entries::<ProviderEvent>().await.unwrap();
    look.back_up(&backup).await.unwrap();
    look.close().await.unwrap();
    store.commit::<ProviderEvent>(&[], Some("{\"later\":1}")).await.unwrap();
    let error = Restore::prepare(&place, &backup, true).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    store.close().await.unwrap();

    let error = Restore::prepare(&place, &backup, false).await.unwrap_err();
    assert!(matches!(error, StoreError::Older { .. }), "{error}");
    let restored = Restore::prepare(&place, &backup, true).await.unwrap().put().await.unwrap();
    assert!(load(home.path()).await.unwrap() == whole);
    let aside = restored.aside.unwrap();
    let mut look = Look::file(&aside).await.unwrap();
    assert!(look.entries::<ProviderEvent>().await.unwrap().1.wallet_changes > 17);
    look.close().await.unwrap();

    fs::write(&backup, [0x5a; 8_192]).unwrap();
    assert!(Restore::prepare(&place, &backup, true).await.is_err());
    assert!(load(home.path()).await.unwrap() == whole, "nothing was changed");
}

/// A kill after any step of a restore leaves the old ledger or the new one, with what was in the log.
#[tokio::test]
async fn p15_a_restore_that_ends_early_leaves_the_old_ledger_or_the_new_one() {
    let (home, whole) = ledger().await;
    let place = Place::file(home.path());
    let backup = home.path().join("backup");
    let mut look = Look::open(&place).await.unwrap();
    look.back_up(&backup).await.unwrap();
    look.close().await.unwrap();
    let mut store = open(home.path()).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    store.commit::<ProviderEvent>(&[], Some("{\"later\":1}")).await.unwrap();
    // As a kill leaves it.
    let log = format!("{}-wal", sqlite::FILE);
    let files = [sqlite::FILE, witness::FILE, &log, "backup"];
    let killed = copy(home.path(), &files);
    drop(store);
    let newest = load(copy(killed.path(), &files).path()).await.unwrap();
    assert!(newest != whole);
    for steps in 0..3 {
        let copy = copy(killed.path(), &files);
        let place = Place::file(copy.path());
        let restore = Restore::prepare(&place, &copy.path().join("backup"), true).await.unwrap();
        if steps > 0 {
            let aside = restore.set_aside().await.unwrap().unwrap();
            let (mut aside, purpose) = (Look::file(&aside).await.unwrap(), "of the newest");
            let kept = aside.entries::<ProviderEvent>().await.unwrap();
            assert!(kept.1.wallet_changes > 17, "{purpose}");
            aside.close().await.unwrap();
        }
        if steps > 1 {
            restore.take_place().unwrap();
        }
        drop(restore);
        let found = load(copy.path()).await.unwrap();
        assert!(found == if steps > 1 { whole.clone() } else { newest.clone() }, "{steps} steps");
        // And it can be done again.
        let restore = Restore::prepare(&place, &copy.path().join("backup"), true).await.unwrap();
        restore.put().await.unwrap();
        assert!(load(copy.path()).await.unwrap() == whole);
    }
}
