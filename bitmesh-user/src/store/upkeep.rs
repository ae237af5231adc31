//! Looks at ledgers, copies them, and puts copies back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bitcoin::Network;
use bitmesh_core::{
    bitcoin,
    channel::{Compact, Entry, Tally},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;

use super::{
    PURPOSE, Place, Store, StoreError, StoreRole, Trust, WENT_BACK,
    aside::{self, with},
    engine::{Engine, Mark},
    known::Known,
    load,
    lock::{self, Lock},
    moving, schema,
    sqlite::{self, SqliteEngine},
    witness::{self, Witness},
};

/// Name of a copy in the data directory before it takes the place of the ledger.
const RESTORING: &str = "bitmesh.sqlite.restoring";
/// What SQLite keeps beside a file.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A ledger as it was at one moment. Nothing of it is changed, and a daemon may go on writing.
#[derive(Debug)]
pub struct Look {
    engine: Box<dyn Engine>,
    /// What the witness said before the look began.
    seen: Option<Mark>,
}

/// What is known of a ledger without what its events mean.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// Where it is.
    pub ledger: String,
    /// Its layout.
    pub layout: i64,
    /// How many times something was written.
    pub commits: i64,
    /// What the witness beside it saw last, if there is one.
    pub witness: Option<i64>,
    /// Whether it is at least as new as that.
    pub newest: bool,
    /// Rows of the journal that are not folded.
    pub journal_rows: u64,
    /// Channels in it.
    pub channels: usize,
    /// Changes of the wallet.
    pub wallet_changes: i64,
}

impl Look {
    /// Looks at the ledger at a place.
    pub async fn open(place: &Place) -> Result<Self, StoreError> {
        let path = place.directory.join(sqlite::FILE);
        if !path.exists() {
            let of_fleet = super::is_of_fleet(&place.directory);
            let missing = if of_fleet { StoreError::OfFleet } else { StoreError::Missing };
            return Err(missing(place.directory.clone()));
        }
        // First: a daemon may write in between, and the ledger is then newer than the witness was.
        let seen = witness::said(&place.directory);
        Ok(Self { engine: Box::new(SqliteEngine::look(&path).await?), seen })
    }

    /// Looks at a copy.
    pub async fn file(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { engine: Box::new(SqliteEngine::look(path).await?), seen: None })
    }

    /// What it is for.
    pub async fn purpose(&mut self) -> Result<(StoreRole, Network), StoreError> {
        let settings = self.engine.settings().await?;
        let purpose = settings.into_iter().find(|(name, _)| name == PURPOSE);
        let purpose = purpose.and_then(|(_, purpose)| parse_purpose(&purpose));
        let what = "it does not say what it is for";
        purpose.ok_or_else(|| load::damaged(self.engine.as_ref(), what.into()))
    }

    /// Everything in it, with every digest checked.
    pub async fn entries<E>(&mut self) -> Result<(Vec<Entry<E>>, Facts), StoreError>
    where
        E: DeserializeOwned + Compact + Send + 'static,
    {
        let mut known = Known::default();
        let entries = load::load(self.engine.as_mut(), &mut known).await?;
        let seen = self.seen;
        let facts = Facts {
            ledger: self.engine.place().to_owned(),
            layout: schema::LAYOUT,
            commits: known.mark.committed,
            witness: seen.map(|seen| seen.committed),
            newest: seen.is_none_or(|seen| witness::agrees(&known.mark, &seen)),
            journal_rows: known.journal_rows,
            channels: known.tails.len(),
            wallet_changes: known.wallet.0,
        };
        Ok((entries, facts))
    }

    /// What the engine's own check of every page finds: nothing, if all is well.
    pub async fn integrity(&mut self) -> Result<Vec<String>, StoreError> {
        self.engine.integrity().await
    }

    /// Writes a copy into a new file.
    pub async fn back_up(&mut self, to: &Path) -> Result<(), StoreError> {
        if to.exists() {
            return Err(StoreError::Present(to.to_owned()));
        }
        let part = with(to, ".part");
        remove_all(&part)?;
        self.engine.back_up(&part).await?;
        fs::rename(&part, to).map_err(|source| StoreError::Io { path: to.to_owned(), source })
    }

    /// Lets it go.
    pub async fn close(self) -> Result<(), StoreError> {
        self.engine.close().await
    }
}

pub(super) fn parse_purpose(purpose: &str) -> Option<(StoreRole, Network)> {
    let (role, network) = purpose.split_once(" on ")?;
    let roles = [StoreRole::Provider, StoreRole::Subscriber];
    let role = roles.into_iter().find(|known| known.name() == role)?;
    Some((role, network.parse().ok()?))
}

/// Goes on from the ledger that is there, although its witness saw a newer one. The next start tells
/// so. The number of its last commit.
pub async fn accept(place: &Place) -> Result<i64, StoreError> {
    let _lock = lock::lock(&place.directory)?;
    moving::check_lone(&place.directory).await?;
    if !place.directory.join(sqlite::FILE).exists() {
        return Err(StoreError::Missing(place.directory.clone()));
    }
    let mut engine = super::open_file(&place.directory).await?;
    let found = engine.mark().await?.committed;
    let mark =
        went_back(&mut engine, "what was there when it was accepted", &place.directory).await?;
    Box::new(engine).close().await?;
    note(&place.directory, &mark)?;
    Ok(found)
}

/// Goes on, as an edge of a fleet, with the server that there is, although it lacks what was acknowledged or is
/// another one than was seen last. The next start tells so.
pub async fn accept_server(place: &Place, network: Network) -> Result<i64, StoreError> {
    if !super::is_of_fleet(&place.directory) {
        return Err(StoreError::Missing(place.directory.clone()));
    }
    let mut store = Store::open_as(place, StoreRole::Provider, network, Trust::Server).await?;
    let commits = store.known.mark.committed;
    let what = format!("what {} had when it was accepted", store.kept().place);
    // What was seen before is forgotten once this is durable, not before.
    store.set(WENT_BACK, &what).await?;
    store.database()?.trust()?;
    store.close().await?;
    Ok(commits)
}

/// A copy that was found whole, in the data directory, and can take the place of the ledger.
#[derive(Debug)]
pub struct Restore {
    directory: PathBuf,
    temporary: PathBuf,
    /// Its last commit as a backup, and as it is now.
    found: i64,
    mark: Mark,
    _lock: Lock,
}

/// What was put back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restored {
    /// Its last commit.
    pub commits: i64,
    /// Where the ledger is that was there before.
    pub aside: Option<PathBuf>,
}

impl Restore {
    /// Copies a backup into the data directory of a daemon that does not run, brings it to the
    /// present layout, and checks it. Unless `older`, it has to be as new as a ledger there that is whole.
    pub async fn prepare(place: &Place, file: &Path, older: bool) -> Result<Self, StoreError> {
        let directory = place.directory.clone();
        let lock = lock::lock(&directory)?;
        moving::check_lone(&directory).await?;
        if !file.exists() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(StoreError::Io { path: file.to_owned(), source });
        }
        let temporary = directory.join(RESTORING);
        remove_all(&temporary)?;
        let mut copy = SqliteEngine::look_at_any(file).await?;
        copy.back_up(&temporary).await?;
        Box::new(copy).close().await?;
        let mut restore =
            Self { directory, temporary, found: 0, mark: Mark::default(), _lock: lock };
        let checked = restore.check(file, older).await;
        if checked.is_err() {
            remove_all(&restore.temporary)?;
        }
        checked.map(|()| restore)
    }

    async fn check(&mut self, file: &Path, older: bool) -> Result<(), StoreError> {
        let mut engine = SqliteEngine::open(&self.temporary, false).await?;
        let mut known = Known::default();
        load::load::<Anything>(&mut engine, &mut known).await?;
        let purpose = known.settings.get(PURPOSE).cloned().unwrap_or_default();
        if let Some((present, mark)) = self.present().await {
            if present != purpose {
                return Err(StoreError::Foreign { found: purpose, wanted: present });
            }
            let (found, present) = (known.mark.committed, mark.committed);
            if found < present && !older {
                return Err(StoreError::Older { file: file.to_owned(), found, present });
            }
        }
        let what = format!("commit {} in {}", known.mark.committed, file.display());
        self.found = known.mark.committed;
        self.mark = went_back(&mut engine, &what, &self.directory).await?;
        Box::new(engine).close().await
    }

    /// What the ledger that is there is for, and its last commit, if it is whole.
    async fn present(&self) -> Option<(String, Mark)> {
        let path = self.directory.join(sqlite::FILE);
        if !path.exists() {
            return None;
        }
        let mut engine = SqliteEngine::look(&path).await.ok()?;
        let mut known = Known::default();
        load::load::<Anything>(&mut engine, &mut known).await.ok()?;
        let _ = Box::new(engine).close().await;
        Some((known.settings.get(PURPOSE)?.clone(), known.mark))
    }

    /// The copy, to be looked at.
    pub fn copy(&self) -> &Path {
        &self.temporary
    }

    /// Puts it in the place of the ledger, which is kept aside. Wherever that ends, one of the two is
    /// there and whole.
    pub async fn put(self) -> Result<Restored, StoreError> {
        let aside = self.set_aside().await?;
        self.take_place()?;
        note(&self.directory, &self.mark)?;
        remove_all(&self.temporary)?;
        Ok(Restored { commits: self.found, aside })
    }

    /// Gives the ledger that is there a second name. Its log, which must not be beside another file,
    /// is taken into it first, if it is whole.
    pub(super) async fn set_aside(&self) -> Result<Option<PathBuf>, StoreError> {
        let path = self.directory.join(sqlite::FILE);
        if !path.exists() {
            return Ok(None);
        }
        if let Err(error) = sqlite::merge_log(&self.directory).await {
            warn!("{}: its log could not be taken into it: {error}", path.display());
        }
        let aside = aside::vacant(&path, "before-restore");
        for suffix in [""].into_iter().chain(BESIDE) {
            let (from, to) = (with(&path, suffix), with(&aside, suffix));
            match fs::hard_link(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => {
                    // A file system without second names.
                    let copied = fs::copy(&from, &to).and_then(|_| fs::File::open(&to)?.sync_all());
                    copied.map_err(|source| StoreError::Io { path: to, source })?;
                }
                Ok(()) => {}
            }
        }
        self.sync_directory()?;
        Ok(Some(aside))
    }

    /// The copy gets the ledger's name. What is left beside that is of a ledger that is damaged and has
    /// another name by now.
    pub(super) fn take_place(&self) -> Result<(), StoreError> {
        let path = self.directory.join(sqlite::FILE);
        for suffix in BESIDE {
            remove(&with(&path, suffix))?;
        }
        self.sync_directory()?;
        let renamed = fs::rename(&self.temporary, &path);
        renamed.map_err(|source| StoreError::Io { path, source })?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> Result<(), StoreError> {
        sync_directory(&self.directory)
    }

    /// Gives it up.
    pub fn give_up(self) -> Result<(), StoreError> {
        remove_all(&self.temporary)
    }
}

/// Writes down for the next start that it goes on from an older copy. Its last commit is newer
/// after that than any that the witness in a directory saw, so that it can take the ledger's place before
/// the witness knows.
async fn went_back(
    engine: &mut SqliteEngine,
    what: &str,
    directory: &Path,
) -> Result<Mark, StoreError> {
    if let Some(said) = witness::said(directory) {
        engine.count_from(said.committed).await?;
    }
    let settings = engine.settings().await?.into_iter().collect();
    let known = Known { mark: engine.mark().await?, settings, ..Known::default() };
    let (write, _) = known.set(&[(WENT_BACK, Some(what))]);
    engine.write(&write).await?;
    Ok(write.mark)
}

fn note(directory: &Path, mark: &Mark) -> Result<(), StoreError> {
    let (mut witness, _) = Witness::open(directory)?;
    witness.note(mark);
    let path = directory.join(witness::FILE);
    witness.sync().map_err(|source| StoreError::Io { path, source })
}

/// Has the names in a directory synced.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| StoreError::Io { path: directory.to_owned(), source })
}

fn remove_all(path: &Path) -> Result<(), StoreError> {
    BESIDE.into_iter().chain([""]).try_for_each(|suffix| remove(&with(path, suffix)))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Any event: what it means is not asked.
#[derive(Clone, Deserialize)]
pub(super) struct Anything(
    #[expect(dead_code, reason = "it is read to see that it can be")] serde_json::Value,
);

impl Compact for Anything {
    fn tally(&self) -> Option<Tally> {
        None
    }

    fn stand_for(&mut self, _: Tally) -> bool {
        false
    }

    fn key_index(&self) -> Option<u32> {
        None
    }
}
