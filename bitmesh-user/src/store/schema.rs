//! Every statement, and the tables they work on.

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

pub(super) const INSERT_EVENT: &str =
    "INSERT INTO events (channel, body, link) VALUES ($1, $2, $3)";
pub(super) const SELECT_EVENTS: &str = "SELECT seq, channel, body, link FROM events ORDER BY seq";
pub(super) const INSERT_BLOCK: &str = "INSERT INTO blocks (height, hash) VALUES ($1, $2)";
pub(super) const SELECT_BLOCKS: &str = "SELECT height, hash FROM blocks ORDER BY height";
pub(super) const FORGET_BLOCKS: &str = "DELETE FROM blocks WHERE height <= $1";
pub(super) const DELETE_BLOCKS: &str = "DELETE FROM blocks WHERE height >= $1";
pub(super) const UPSERT_USAGE: &str = "INSERT INTO usage (station, up_octets, up_frames, \
    up_refused_octets, up_refused_frames, down_octets, \
    down_frames, down_refused_octets, down_refused_frames) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (station) DO UPDATE SET \
    up_octets = excluded.up_octets, \
    up_frames = excluded.up_frames, \
    up_refused_octets = excluded.up_refused_octets, \
    up_refused_frames = excluded.up_refused_frames, \
    down_octets = excluded.down_octets, \
    down_frames = excluded.down_frames, \
    down_refused_octets = excluded.down_refused_octets, \
    down_refused_frames = excluded.down_refused_frames";
pub(super) const SELECT_USAGE: &str = "SELECT station, up_octets, up_frames, up_refused_octets, \
    up_refused_frames, down_octets, down_frames, \
    down_refused_octets, down_refused_frames \
    FROM usage ORDER BY station";
pub(super) const INSERT_WALLET: &str = "INSERT INTO wallet_changes (body) VALUES ($1)";
pub(super) const SELECT_WALLET: &str = "SELECT body FROM wallet_changes ORDER BY seq";
pub(super) const SELECT_SETTING: &str = "SELECT value FROM settings WHERE name = $1";
pub(super) const UPSERT_SETTING: &str = "INSERT INTO settings (name, value) VALUES ($1, $2) \
    ON CONFLICT (name) DO UPDATE SET value = excluded.value";

/// 64-bit counters are stored by their bits: SQL's integers are signed.
const FIRST: &str = "
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    channel TEXT NOT NULL,
    body TEXT NOT NULL,
    link BLOB NOT NULL
) STRICT;
CREATE TABLE blocks (height INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT;
CREATE TABLE usage (
    station INTEGER PRIMARY KEY,
    up_octets INTEGER NOT NULL,
    up_frames INTEGER NOT NULL,
    up_refused_octets INTEGER NOT NULL,
    up_refused_frames INTEGER NOT NULL,
    down_octets INTEGER NOT NULL,
    down_frames INTEGER NOT NULL,
    down_refused_octets INTEGER NOT NULL,
    down_refused_frames INTEGER NOT NULL
) STRICT;
CREATE TABLE wallet_changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL) STRICT;
";

pub(super) fn migrator() -> Migrator {
    let first =
        Migration::new(1, "first".into(), MigrationType::Simple, FIRST.into_sql_str(), false);
    Migrator::with_migrations(vec![first])
}
