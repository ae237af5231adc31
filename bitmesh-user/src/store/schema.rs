//! The tables, and the statements that every engine takes as they are.

use std::{fmt::Write as _, sync::LazyLock};

/// The layout that this program writes. 1 was the first, in SQLite alone.
pub(super) const LAYOUT: i64 = 2;

pub(super) const SELECT_LAYOUT: &str = "SELECT number FROM layout";
pub(super) const INSERT_LAYOUT: &str = "INSERT INTO layout (number) VALUES ($1)";

pub(super) const SELECT_SETTINGS: &str = "SELECT name, value FROM settings ORDER BY name";
pub(super) const SELECT_SETTING: &str = "SELECT value FROM settings WHERE name = $1";
pub(super) const UPSERT_SETTING: &str = "INSERT INTO settings (name, value) VALUES ($1, $2) \
    ON CONFLICT (name) DO UPDATE SET value = excluded.value";
pub(super) const DELETE_SETTING: &str = "DELETE FROM settings WHERE name = $1";

pub(super) const SELECT_BLOCKS: &str =
    "SELECT height, hash FROM blocks WHERE edge = $1 ORDER BY height";
pub(super) const INSERT_BLOCK: &str = "INSERT INTO blocks (edge, height, hash) VALUES ($1, $2, $3)";
pub(super) const FORGET_BLOCKS: &str = "DELETE FROM blocks WHERE edge = $1 AND height <= $2";
pub(super) const DELETE_BLOCKS: &str = "DELETE FROM blocks WHERE edge = $1 AND height >= $2";

pub(super) const SELECT_WALLET: &str =
    "SELECT number, body FROM wallet_changes WHERE edge = $1 ORDER BY number";
pub(super) const INSERT_WALLET: &str =
    "INSERT INTO wallet_changes (edge, number, body) VALUES ($1, $2, $3)";
pub(super) const DELETE_WALLET: &str = "DELETE FROM wallet_changes WHERE edge = $1";

pub(super) const DELETE_CHANNEL: &str = "DELETE FROM channels WHERE channel = $1";

const USAGE_COLUMNS: [&str; 9] = [
    "station",
    "up_octets",
    "up_frames",
    "up_refused_octets",
    "up_refused_frames",
    "down_octets",
    "down_frames",
    "down_refused_octets",
    "down_refused_frames",
];

pub(super) static SELECT_USAGE: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {} FROM usage ORDER BY station", USAGE_COLUMNS.join(", ")));

/// Rows that one statement writes: few sizes, so that few statements stay prepared.
const CHUNKS: [usize; 3] = [128, 16, 1];

/// A statement about several rows, by how many.
pub(super) struct Rows {
    sizes: [(usize, String); CHUNKS.len()],
}

impl Rows {
    fn new(of: impl Fn(usize) -> String) -> Self {
        Self { sizes: CHUNKS.map(|rows| (rows, of(rows))) }
    }

    /// Cuts rows into what one statement takes, and gives that with each.
    pub(super) fn cut<'a, T>(
        &'static self,
        mut rows: &'a [T],
    ) -> impl Iterator<Item = (&'static str, &'a [T])> {
        std::iter::from_fn(move || {
            let (size, statement) = self.sizes.iter().find(|(size, _)| *size <= rows.len())?;
            let (now, later) = rows.split_at_checked(*size)?;
            rows = later;
            Some((statement.as_str(), now))
        })
    }
}

/// So many placeholders. The engine binds those without a name fastest.
fn placeholders(count: usize) -> String {
    vec!["?"; count].join(", ")
}

fn insert(table: &str, columns: &[&str], rows: usize, conflict: Option<&str>) -> String {
    let mut sql = format!("INSERT INTO {table} ({}) VALUES ", columns.join(", "));
    for row in 0..rows {
        let comma = if row == 0 { "" } else { ", " };
        let _ = write!(sql, "{comma}({})", placeholders(columns.len()));
    }
    if let Some(key) = conflict {
        let set = |column: &&str| format!("{column} = excluded.{column}");
        let sets: Vec<_> = columns.iter().filter(|column| **column != key).map(set).collect();
        let _ = write!(sql, " ON CONFLICT ({key}) DO UPDATE SET {}", sets.join(", "));
    }
    sql
}

pub(super) static INSERT_EVENTS: LazyLock<Rows> = LazyLock::new(|| {
    Rows::new(|rows| insert("journal", &["channel", "n", "body", "digest"], rows, None))
});
/// The row is there: what it has is changed only where it is of the same channel and event.
pub(super) static REPLACE_EVENTS: LazyLock<Rows> = LazyLock::new(|| {
    let columns = ["seq", "channel", "n", "body", "digest"];
    Rows::new(|rows| {
        insert("journal", &columns, rows, None)
            + " ON CONFLICT (seq) DO UPDATE SET body = excluded.body, digest = excluded.digest \
               WHERE channel = excluded.channel AND n = excluded.n"
    })
});
pub(super) static UPSERT_USAGE: LazyLock<Rows> =
    LazyLock::new(|| Rows::new(|rows| insert("usage", &USAGE_COLUMNS, rows, Some("station"))));
pub(super) static UPSERT_CHANNELS: LazyLock<Rows> = LazyLock::new(|| {
    let columns = ["channel", "n", "body", "digest", "seal"];
    Rows::new(|rows| insert("channels", &columns, rows, Some("channel")))
});
pub(super) static SELECT_FOLDED: LazyLock<Rows> = LazyLock::new(|| {
    Rows::new(|rows| {
        let channels = placeholders(rows);
        format!("SELECT channel, n, body, digest, seal FROM channels WHERE channel IN ({channels})")
    })
});

/// How an engine calls things.
pub(super) struct Dialect {
    /// The type of 64-bit integers. Counters are stored by their bits: SQL's integers are signed.
    pub integer: &'static str,
    /// The type of octets.
    pub octets: &'static str,
    /// What makes a primary key count up by itself.
    pub serial: &'static str,
    /// What follows a table.
    pub table: &'static str,
    /// The same, of one that is read by its key and whose rows are short.
    pub keyed: &'static str,
}

/// The table of folded journals.
pub(super) fn channels(dialect: &Dialect) -> String {
    let Dialect { integer, octets, table, .. } = dialect;
    format!(
        "CREATE TABLE channels (channel {octets} PRIMARY KEY NOT NULL, n {integer} NOT NULL, \
         body TEXT NOT NULL, digest {octets} NOT NULL, seal {octets} NOT NULL){table}"
    )
}

/// The tables of layout 2.
pub(super) fn tables(dialect: &Dialect) -> Vec<String> {
    let Dialect { integer, octets, serial, table, keyed } = dialect;
    let counters = USAGE_COLUMNS.iter().skip(1).fold(String::new(), |mut sql, name| {
        let _ = write!(sql, ", {name} {integer} NOT NULL");
        sql
    });
    vec![
        format!("CREATE TABLE layout (number {integer} NOT NULL){table}"),
        format!("CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL){table}"),
        format!(
            "CREATE TABLE journal (seq {serial}, channel {octets} NOT NULL, n {integer} NOT NULL, \
             body TEXT NOT NULL, digest {octets} NOT NULL){table}"
        ),
        channels(dialect),
        format!(
            "CREATE TABLE blocks (edge {integer} NOT NULL, height {integer} NOT NULL, \
             hash {octets} NOT NULL, PRIMARY KEY (edge, height)){keyed}"
        ),
        format!("CREATE TABLE usage (station {integer} PRIMARY KEY NOT NULL{counters}){table}"),
        format!(
            "CREATE TABLE wallet_changes (edge {integer} NOT NULL, number {integer} NOT NULL, \
             body TEXT NOT NULL, PRIMARY KEY (edge, number)){table}"
        ),
    ]
}
