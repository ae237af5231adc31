//! The words of the file by which a test tells the library what is to fail, and is told what did.
//! Both sides include this file; each word is an atomic of 64 bits.

/// Names the file, in the daemon's environment.
pub const VARIABLE: &str = "BITMESH_FAULTS";
/// Names of the images beside it: what a power cut would leave of the database and of its
/// write-ahead log.
pub const IMAGES: [&str; 2] = [".database", ".log"];
/// What the database is called, and its write-ahead log.
pub const FILES: [&str; 2] = ["bitmesh.sqlite", "bitmesh.sqlite-wal"];

/// Words in all.
pub const WORDS: usize = 8_192;
/// Word of the API's port: only sockets of it count.
pub const API_PORT: usize = 0;

/// Where a daemon can be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before something is written to the write-ahead log.
    LogWrite,
    /// Before the log is synced.
    LogSync,
    /// When it has been: durable, nothing else.
    LogSynced,
    /// Before something is written to the database itself: a checkpoint.
    DatabaseWrite,
    /// Before the database itself is synced.
    DatabaseSync,
    /// Before something leaves through a socket of the API.
    Answer,
    /// When it has left.
    Answered,
    /// Before something is written to a copy of the database: a backup that is made or put back.
    CopyWrite,
    /// Before a copy, or a directory, is synced.
    CopySync,
    /// Before a file gets, changes or loses a name.
    Name,
}

/// Every one.
pub const POINTS: [Point; 10] = [
    Point::LogWrite,
    Point::LogSync,
    Point::LogSynced,
    Point::DatabaseWrite,
    Point::DatabaseSync,
    Point::Answer,
    Point::Answered,
    Point::CopyWrite,
    Point::CopySync,
    Point::Name,
];

/// What happens there, from the call on that is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing.
    Nothing = 0,
    /// The process kills itself.
    Kill = 1,
    /// The call fails with an error number.
    Fail = 2,
    /// The call waits for some milliseconds first.
    Delay = 3,
}

/// Words of one point.
pub const POINT_WORDS: usize = 8;
/// Of these: the [`Deed`], the number of the first call that it happens to, its value, calls since
/// it was armed, calls that it happened to, calls in all.
pub const DEED: usize = 0;
/// See [`DEED`].
pub const FIRST: usize = 1;
/// See [`DEED`].
pub const VALUE: usize = 2;
/// See [`DEED`].
pub const SEEN: usize = 3;
/// See [`DEED`].
pub const DONE: usize = 4;
/// See [`DEED`].
pub const TOTAL: usize = 5;

/// First word of a point.
pub const fn point(point: Point) -> usize {
    POINT_WORDS * (1 + point as usize)
}

/// First word of what was written to a file and not synced: a count, then ranges of two words,
/// offset and length. It outlives the process, as pages do in the kernel.
pub const fn dirty(file: usize) -> usize {
    128 + file * DIRTY_WORDS
}

/// Words of one file's ranges.
pub const DIRTY_WORDS: usize = 4_000;

const _: () = assert!(point(Point::Name) + POINT_WORDS <= dirty(0));
const _: () = assert!(dirty(FILES.len()) <= WORDS);
