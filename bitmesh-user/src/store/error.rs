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
    /// The layout is older than this program writes, and is not changed now.
    #[error(
        "{place} has layout {found}; the next start of `bitmesh` brings it forward and checks it then"
    )]
    OldLayout {
        /// Which database.
        place: String,
        /// Its layout.
        found: i64,
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
    /// An old copy was put in the place of the ledger.
    #[error(
        "{place} is older than what was written last: it has commit {found}, and commit {last} was \
         made. Payments since then are not in it, and stations would get for them what they had \
         already. Put the newest one back: `bitmesh store restore FILE`. If it is lost: `bitmesh store \
         accept` goes on from what is there"
    )]
    RolledBack {
        /// Which database.
        place: String,
        /// Its last commit.
        found: i64,
        /// The last that was made.
        last: i64,
    },
    /// A file that is to be made is there.
    #[error("{} is there already; name another file, or remove it first", .0.display())]
    Present(PathBuf),
    /// No ledger.
    #[error("there is no ledger in {}: name another place with --role or --data-dir", .0.display())]
    Missing(PathBuf),
    /// A backup that is older than what is there.
    #[error(
        "{} has commit {found}, and the ledger that is there is whole and has commit {present}: what \
         came between would be forgotten; --older restores it all the same", file.display()
    )]
    Older {
        /// The backup.
        file: PathBuf,
        /// Its last commit.
        found: i64,
        /// That of the ledger that is there.
        present: i64,
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
    /// No server of a fleet's database answers.
    #[error(
        "{place} can't be used: {why}; nothing was acknowledged since. Start the server, or name in \
         --store one that runs"
    )]
    Unreachable {
        /// Which database.
        place: String,
        /// What each host said.
        why: String,
    },
    /// All servers of a fleet's database only read.
    #[error(
        "{place} takes no writes: {why}; promote a standby, or name the primary in --store, too"
    )]
    ReadOnly {
        /// Which database.
        place: String,
        /// What each host said.
        why: String,
    },
    /// The server does not let us in.
    #[error(
        "{place} refuses {user}: {why}; put the password into a file of mode 0600 that \
         --store-password-file names (or into ~/.pgpass, a line HOST:PORT:DATABASE:USER:PASSWORD), and check \
         what the user may do"
    )]
    Credentials {
        /// Which database.
        place: String,
        /// Who we said we were.
        user: String,
        /// What the server said.
        why: String,
    },
    /// The server does not show that it is the one that is meant.
    #[error(
        "{place} does not show who it is: {why}; nothing was said to it. `sslrootcert` in --store names the \
         file with the certificates that vouch for its servers, which --store names as these do; the \
         server needs `ssl = on`"
    )]
    Unverified {
        /// Which database.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no such database.
    #[error("{place} does not exist; make it at the server: createdb --owner={user} {name}")]
    NoDatabase {
        /// Which database.
        place: String,
        /// Who we are.
        user: String,
        /// Its name.
        name: String,
    },
    /// The server lacks what was acknowledged.
    #[error(
        "{place} has {theirs} commits of this edge, and {ours} were acknowledged: it is an older copy, \
         of a standby that was not synchronous or from a backup. Start the server that has them, \
         or name it in --store; if they are lost for good: `bitmesh store accept --store ...`, and what was \
         paid since is forgotten until subscribers send their next sums"
    )]
    Behind {
        /// Which database.
        place: String,
        /// What it has.
        theirs: i64,
        /// What it has to have.
        ours: i64,
    },
    /// The server can't be the one that has what was acknowledged.
    #[error(
        "{place} is not the server that has what was acknowledged: {why}. Stop the servers that were \
         replaced, and name in --store the one that was promoted last. If the ledger was moved to another \
         cluster on purpose, by a copy that lacks nothing: `bitmesh store accept --store ...`"
    )]
    OtherServer {
        /// Which database.
        place: String,
        /// What each host is.
        why: String,
    },
    /// Another seed's database.
    #[error(
        "{0} is of a fleet with another seed; all edges of a fleet have the same words: restore those \
         here, or choose another database in --store"
    )]
    OtherFleet(String),
    /// Two edges with one name.
    #[error(
        "another edge that is called {0} is alive; stop that one, or give this one a name of its own \
         with --edge"
    )]
    EdgeTaken(String),
    /// No number is left for an edge.
    #[error(
        "every number of this fleet is taken, by edges or by the keys of their channels; start under the \
         name of an edge that is gone, or set up a fleet with another seed"
    )]
    FleetFull,
    /// An account is at another edge.
    #[error("the account is at another edge of the fleet; it comes here once it is asked for")]
    Elsewhere,
    /// The database's own tools do that.
    #[error("{0} is backed up by its own tools: pg_dump --format=custom --file=FILE DATABASE")]
    BackUpByItself(String),
    /// A lone box's ledger is where an edge of a fleet wants to start.
    #[error(
        "{0} has the ledger of a lone box: its channels would be out of sight in a fleet. `bitmesh store \
         move` with the same --store and --edge takes it along"
    )]
    Lone(PathBuf),
    /// An edge's directory is where a lone box wants to start.
    #[error(
        "{0} is of an edge of a fleet, whose ledger is in the fleet's database: name that with --store, or \
         choose another --data-dir"
    )]
    OfFleet(PathBuf),
    /// A lone box's ledger was moved, or was about to be.
    #[error(
        "{place} was moved to {to} as edge {edge}, or is about to be, and is not written any more: `bitmesh \
         store move` with that --store and --edge finishes it, and with --abandon gives it up where \
         nothing has come of it. Then start with, or without, --store"
    )]
    Moving {
        /// The file.
        place: String,
        /// Which database.
        to: String,
        /// The edge's name.
        edge: String,
    },
    /// A ledger can't be moved as it is.
    #[error("this ledger can't be moved: {0}")]
    Unmovable(String),
    /// A lone edge was asked for what only a fleet has.
    #[error(
        "this ledger is one edge's alone; a fleet's is named by --store postgres://USER@HOST/DATABASE"
    )]
    NoFleet,
}
