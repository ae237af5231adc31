//! What can go wrong with the ledger, and what to do then.

use std::path::PathBuf;

/// What can go wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not readable, not writable, full, or another file system trouble.
    #[error("{path}: {source}; check that the directory is writable and the disk has space", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another daemon has the directory.
    #[error("{} is in use by another bitmesh; stop that one, or choose another --data-dir", .0.display())]
    Locked(PathBuf),
    /// The engine refused.
    #[error("the database: {0}; nothing was acknowledged since; check the disk, then start again")]
    Sql(#[from] sqlx::Error),
    /// Something can't be written down.
    #[error("an entry can't be written down: {0}; please report this, with the log")]
    Encode(serde_json::Error),
    /// The layout is newer than this program.
    #[error(
        "{place} has layout {found}, and this bitmesh knows layouts up to {known}: start the newer \
         bitmesh that wrote it, or bring back a backup from before with `bitmesh store restore`"
    )]
    Newer {
        /// Which database.
        place: String,
        /// Its layout.
        found: i64,
        /// The newest known here.
        known: i64,
    },
    /// What is there doesn't add up.
    #[error(
        "{place} is damaged: {what}; `bitmesh store check` tells more, `bitmesh store restore` brings \
         back a backup"
    )]
    Damaged {
        /// Which database.
        place: String,
        /// What was found.
        what: String,
    },
    /// Somebody else writes this ledger, or took over what is written here: nothing may be granted.
    #[error(
        "{0} was written by another bitmesh meanwhile; nothing more is granted from here. Make sure \
         that only one daemon uses it, then start again"
    )]
    Fenced(String),
    /// Written for something else.
    #[error("this data directory is for {found}, not for {wanted}; choose another --data-dir")]
    Foreign {
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: String,
    },
}
