//! Every statement of a fleet, and its tables. Nothing but what CockroachDB and YugabyteDB know, too.
//!
//! `seq` orders the events of one account, over all edges that it was at: an edge counts on from
//! the highest that it has seen, so that no sequence of the server's is needed.

use std::time::Duration;

use sqlx::AssertSqlSafe;

/// Tables of the layout that this program writes ([`super::schema::LAYOUT`]), which is the first here.
pub(super) const TABLES: [&str; 22] = [
    "CREATE TABLE layout (one BIGINT PRIMARY KEY, number BIGINT NOT NULL)",
    "CREATE TABLE fleet (one BIGINT PRIMARY KEY, purpose TEXT NOT NULL, seed TEXT NOT NULL)",
    "CREATE TABLE edges (number BIGINT PRIMARY KEY, name TEXT NOT NULL UNIQUE, \
        token BYTEA NOT NULL, epoch BIGINT NOT NULL, beat BIGINT NOT NULL, hold_ms BIGINT NOT NULL, \
        committed BIGINT NOT NULL, seq BIGINT NOT NULL, next_key BIGINT NOT NULL, \
        seized BIGINT NOT NULL)",
    "CREATE TABLE stands (tip BYTEA PRIMARY KEY, height BIGINT NOT NULL, blocks BYTEA NOT NULL)",
    "CREATE TABLE accounts (account BYTEA PRIMARY KEY, edge BIGINT NOT NULL, wanted BIGINT, \
        tip BYTEA REFERENCES stands (tip), seq BIGINT NOT NULL)",
    "CREATE INDEX accounts_of_edge ON accounts (edge)",
    "CREATE INDEX accounts_of_tip ON accounts (tip) WHERE tip IS NOT NULL",
    "CREATE INDEX accounts_wanted ON accounts (edge) WHERE wanted IS NOT NULL",
    "CREATE INDEX accounts_arriving ON accounts (edge) WHERE tip IS NOT NULL",
    "CREATE TABLE channel_members (channel BYTEA PRIMARY KEY, account BYTEA NOT NULL)",
    "CREATE INDEX channels_of_account ON channel_members (account)",
    "CREATE TABLE station_members (station BIGINT PRIMARY KEY, account BYTEA NOT NULL)",
    "CREATE INDEX stations_of_account ON station_members (account)",
    "CREATE TABLE key_ranges (number BIGINT PRIMARY KEY, edge BIGINT NOT NULL)",
    "CREATE TABLE claims (station BIGINT PRIMARY KEY, edge BIGINT NOT NULL, epoch BIGINT NOT NULL, \
        beat BIGINT NOT NULL)",
    "CREATE TABLE late (edge BIGINT NOT NULL, epoch BIGINT NOT NULL, station BIGINT NOT NULL, \
        account BYTEA NOT NULL, written BIGINT NOT NULL, octets BIGINT, \
        PRIMARY KEY (edge, epoch, station))",
    "CREATE INDEX late_of_account ON late (account) WHERE octets IS NOT NULL",
    "CREATE TABLE settings (edge BIGINT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, \
        PRIMARY KEY (edge, name))",
    "CREATE TABLE journal (channel BYTEA NOT NULL, n BIGINT NOT NULL, seq BIGINT NOT NULL, \
        body TEXT NOT NULL, digest BYTEA NOT NULL, PRIMARY KEY (channel, n))",
    "CREATE INDEX journal_in_order ON journal (seq)",
    "CREATE TABLE channels (channel BYTEA PRIMARY KEY, n BIGINT NOT NULL, body TEXT NOT NULL, \
        digest BYTEA NOT NULL, seal BYTEA NOT NULL)",
    "CREATE TABLE usage (station BIGINT PRIMARY KEY, edge BIGINT NOT NULL, up_octets BIGINT NOT NULL, \
        up_frames BIGINT NOT NULL, up_refused_octets BIGINT NOT NULL, up_refused_frames BIGINT NOT NULL, \
        down_octets BIGINT NOT NULL, down_frames BIGINT NOT NULL, down_refused_octets BIGINT NOT NULL, \
        down_refused_frames BIGINT NOT NULL)",
];
/// The same, of what an edge has for itself.
pub(super) const OWN_TABLES: [&str; 2] = [
    "CREATE TABLE blocks (edge BIGINT NOT NULL, height BIGINT NOT NULL, hash BYTEA NOT NULL, \
        PRIMARY KEY (edge, height))",
    "CREATE TABLE wallet_changes (edge BIGINT NOT NULL, number BIGINT NOT NULL, body TEXT NOT NULL, \
        PRIMARY KEY (edge, number))",
];

/// What holds for every connection: nothing waits for longer, and a commit is on the disks of those
/// that the administrator named.
pub(super) const SESSION: &str = "SET statement_timeout = 5000; SET lock_timeout = 5000; \
    SET idle_in_transaction_session_timeout = 10000; SET synchronous_commit = 'on'";
pub(super) const READ_ONLY: &str = "SHOW transaction_read_only";
/// What the server is, and which standbys a commit waits for.
pub(super) const SERVER: &str = "SELECT version(), current_setting('synchronous_standby_names', true), \
    current_setting('fsync', true), current_setting('full_page_writes', true)";
/// Which cluster it is of, and how often one of it was promoted: the name of the log that is written now
/// begins with that, in hexadecimal digits. PostgreSQL's alone: others have no such thing.
pub(super) const HISTORY: &str = "SELECT system_identifier::TEXT, \
    ('x' || lpad(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), 16, '0'))::BIT(64)::BIGINT \
    FROM pg_control_system()";
pub(super) const HAS_LAYOUT: &str = "SELECT COUNT(*) FROM information_schema.tables \
    WHERE table_schema = current_schema() AND table_name = 'layout'";
pub(super) const INSERT_LAYOUT: &str = "INSERT INTO layout (one, number) VALUES (1, $1)";
pub(super) const INSERT_FLEET: &str = "INSERT INTO fleet (one, purpose, seed) VALUES (1, $1, $2) \
    ON CONFLICT (one) DO NOTHING";
pub(super) const SELECT_FLEET: &str = "SELECT purpose, seed FROM fleet";

pub(super) const SELECT_EDGE: &str =
    "SELECT number, token, epoch, beat, hold_ms, seized FROM edges WHERE name = $1";
/// A lone edge is number 0: the keys of its channels are nobody else's. A number is a range of keys, too,
/// and an edge that has used its own up takes another: no number is given twice.
pub(super) const INSERT_EDGE: &str = "WITH fresh AS (INSERT INTO key_ranges (number, edge) \
    SELECT n, n FROM (SELECT COALESCE(MAX(number), 0) + 1 AS n FROM key_ranges) AS next \
    WHERE n < $4 RETURNING number) INSERT INTO edges \
    (number, name, token, epoch, beat, hold_ms, committed, seq, next_key, seized) \
    SELECT number, $1, $2, 1, 0, $3, 0, 0, 0, 0 FROM fresh";
pub(super) const SELECT_KEYS: &str = "SELECT MAX(number) FROM key_ranges WHERE edge = $1";
pub(super) const FRESH_KEYS: &str = "INSERT INTO key_ranges (number, edge) \
    SELECT n, $1 FROM (SELECT COALESCE(MAX(number), 0) + 1 AS n FROM key_ranges) AS next \
    WHERE n < $3 AND EXISTS (SELECT 1 FROM edges WHERE number = $1 AND epoch = $2) \
    ON CONFLICT DO NOTHING RETURNING number";
pub(super) const SELECT_LAST_KEYS: &str = "SELECT COALESCE(MAX(number), 0) FROM key_ranges";
/// What was granted before may last for as long as was said then: [`NOTE_HOLD`] shortens that.
pub(super) const ENTER: &str = "UPDATE edges SET epoch = epoch + 1, beat = beat + 1, token = $1, \
    hold_ms = CASE WHEN hold_ms > $2 THEN hold_ms ELSE $2 END WHERE number = $3 AND epoch = $4 AND beat = $5 RETURNING epoch, committed, seq";
pub(super) const NOTE_HOLD: &str =
    "UPDATE edges SET hold_ms = $3 WHERE number = $1 AND epoch = $2 RETURNING number";
/// Of the lone edge whose ledger was moved here, which is number 0: who it was. There is one at most,
/// since its channels have the keys of that number.
pub(super) const INSERT_LONE: &str =
    "INSERT INTO settings (edge, name, value) VALUES (0, 'lone', $1)";
pub(super) const SELECT_LONE: &str = "SELECT value FROM settings WHERE edge = 0 AND name = 'lone'";
/// A write of our own that waits for the standbys that have to have that row.
pub(super) const TOUCH_LONE: &str =
    "UPDATE settings SET value = value WHERE edge = 0 AND name = 'lone' AND value = $1";
/// Its other end reads from a file in between.
pub(super) const BEGIN_MOVE: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0";
pub(super) const RAISE_EDGE: &str = "UPDATE edges SET committed = $2, seq = $3 WHERE number = $1";
pub(super) const INSERT_JOURNAL: &str = "INSERT INTO journal (channel, n, seq, body, digest) \
    SELECT e.channel, e.n, e.seq, e.body, e.digest FROM \
    UNNEST($1::BYTEA[], $2::BIGINT[], $3::BIGINT[], $4::TEXT[], $5::BYTEA[]) \
    AS e (channel, n, seq, body, digest)";
pub(super) const INSERT_ACCOUNTS: &str = "INSERT INTO accounts (account, edge, seq) \
    SELECT a.account, $1, 0 FROM UNNEST($2::BYTEA[]) AS a (account)";
pub(super) const INSERT_CHANNEL_MEMBERS: &str = "INSERT INTO channel_members (channel, account) \
    SELECT m.channel, m.account FROM UNNEST($1::BYTEA[], $2::BYTEA[]) AS m (channel, account)";
pub(super) const INSERT_STATION_MEMBERS: &str = "INSERT INTO station_members (station, account) \
    SELECT m.station, m.account FROM UNNEST($1::BIGINT[], $2::BYTEA[]) AS m (station, account)";
pub(super) const SELECT_STANDING: &str = "SELECT epoch, committed FROM edges WHERE number = $1";
pub(super) const SELECT_STANDING_OF: &str = "SELECT epoch, committed FROM edges WHERE name = $1";
/// A write of our own that waits for those before it, and for the standbys that have to have them. It is no
/// sign of life: what lasts for some of these does not end with many of it.
pub(super) const TOUCH: &str = "UPDATE edges SET beat = beat WHERE number = $1 AND epoch = $2 \
    RETURNING committed";
pub(super) const SHOW_LIFE: &str = "UPDATE edges SET beat = beat + 1 WHERE number = $1 AND epoch = $2 \
    RETURNING beat";
/// A transaction that ends by itself: none of its statements lasts longer, nor does it wait for longer for its
/// other end.
pub(super) fn bounded(limit: Duration) -> AssertSqlSafe<String> {
    let millis = limit.as_millis();
    AssertSqlSafe(format!(
        "SET LOCAL statement_timeout = {millis}; \
         SET LOCAL idle_in_transaction_session_timeout = {millis}"
    ))
}

/// What every commit begins with.
macro_rules! fence {
    () => {
        "WITH fence AS ( \
    UPDATE edges SET committed = $3, seq = $4 \
    WHERE number = $1 AND epoch = $2 AND committed = $3 - 1 RETURNING number), "
    };
}
/// Events in one statement, which is one transaction where it stands alone: one round
/// trip. Nothing is written unless the edge is who it was, and its last commit the one before.
pub(super) const COMMIT: &str = concat!(
    fence!(),
    "events AS (INSERT INTO journal (channel, n, seq, body, digest) \
    SELECT e.channel, e.n, e.seq, e.body, e.digest FROM fence, \
    UNNEST($5::BYTEA[], $6::BIGINT[], $7::BIGINT[], $8::TEXT[], $9::BYTEA[]) \
    AS e (channel, n, seq, body, digest)) \
    SELECT COUNT(*) FROM fence"
);
/// The same of events in the places of others. Where one of those is gone, it divides by zero: nothing is
/// written. Not one statement with the other: CockroachDB does not both insert into a table and update it.
pub(super) const COMMIT_REPLACED: &str = concat!(
    fence!(),
    "replaced AS (UPDATE journal SET body = r.body, digest = r.digest FROM fence, \
    UNNEST($5::BYTEA[], $6::BIGINT[], $7::TEXT[], $8::BYTEA[]) AS r (channel, n, body, digest) \
    WHERE journal.channel = r.channel AND journal.n = r.n RETURNING 1), \
    counts AS (SELECT (SELECT COUNT(*) FROM fence) AS edges, \
    (SELECT COUNT(*) FROM replaced) AS rows) \
    SELECT CAST(edges / (CASE WHEN edges = 0 OR rows = CARDINALITY($5::BYTEA[]) THEN 1 ELSE 0 END) \
    AS BIGINT) FROM counts"
);
pub(super) const REPLACE: &str = "UPDATE journal SET body = r.body, digest = r.digest FROM \
    UNNEST($1::BYTEA[], $2::BIGINT[], $3::TEXT[], $4::BYTEA[]) AS r (channel, n, body, digest) \
    WHERE journal.channel = r.channel AND journal.n = r.n";
/// Counters of a life only grow, and are read where the station's account is: what an edge says that
/// lags, or does not know that it has moved, takes nothing back.
pub(super) const UPSERT_USAGE: &str = "INSERT INTO usage (station, edge, up_octets, up_frames, \
    up_refused_octets, up_refused_frames, down_octets, down_frames, down_refused_octets, \
    down_refused_frames) SELECT u.s, $1, u.a, u.b, u.c, u.d, u.e, u.f, u.g, u.h FROM \
    UNNEST($2::BIGINT[], $3::BIGINT[], $4::BIGINT[], $5::BIGINT[], $6::BIGINT[], $7::BIGINT[], \
    $8::BIGINT[], $9::BIGINT[], $10::BIGINT[]) AS u (s, a, b, c, d, e, f, g, h) \
    WHERE NOT EXISTS (SELECT 1 FROM station_members m JOIN accounts o ON o.account = m.account \
    WHERE m.station = u.s AND o.edge <> $1) ON CONFLICT (station) DO UPDATE SET edge = excluded.edge, up_octets = GREATEST(usage.up_octets, excluded.up_octets), \
    up_frames = GREATEST(usage.up_frames, excluded.up_frames), up_refused_octets = GREATEST(usage.up_refused_octets, excluded.up_refused_octets), \
    up_refused_frames = GREATEST(usage.up_refused_frames, excluded.up_refused_frames), down_octets = GREATEST(usage.down_octets, excluded.down_octets), \
    down_frames = GREATEST(usage.down_frames, excluded.down_frames), down_refused_octets = GREATEST(usage.down_refused_octets, excluded.down_refused_octets), \
    down_refused_frames = GREATEST(usage.down_refused_frames, excluded.down_refused_frames)";
pub(super) const UPSERT_SETTING: &str = "INSERT INTO settings (edge, name, value) \
    VALUES ($1, $2, $3) ON CONFLICT (edge, name) DO UPDATE SET value = excluded.value";
pub(super) const DELETE_SETTING: &str = "DELETE FROM settings WHERE edge = $1 AND name = $2";
pub(super) const UPSERT_CHANNELS: &str = "INSERT INTO channels (channel, n, body, digest, seal) \
    SELECT c.channel, c.n, c.body, c.digest, c.seal FROM \
    UNNEST($1::BYTEA[], $2::BIGINT[], $3::TEXT[], $4::BYTEA[], $5::BYTEA[]) \
    AS c (channel, n, body, digest, seal) ON CONFLICT (channel) DO UPDATE SET n = excluded.n, \
    body = excluded.body, digest = excluded.digest, seal = excluded.seal";
pub(super) const DELETE_FOLDED: &str = "DELETE FROM journal \
    USING UNNEST($1::BYTEA[], $2::BIGINT[]) AS f (channel, n) \
    WHERE journal.channel = f.channel AND journal.n < f.n";
pub(super) const FORGET: [&str; 3] = [
    "DELETE FROM channels WHERE channel = ANY($1)",
    "DELETE FROM journal WHERE channel = ANY($1)",
    "DELETE FROM channel_members WHERE channel = ANY($1)",
];

pub(super) const INSERT_ACCOUNT: &str = "INSERT INTO accounts (account, edge, seq) \
    VALUES ($1, $2, 0) ON CONFLICT (account) DO NOTHING";
/// Locks it, so that it stays ours until the transaction ends.
pub(super) const OWN_ACCOUNT: &str =
    "SELECT 1 FROM accounts WHERE account = $1 AND edge = $2 FOR UPDATE";
pub(super) const INSERT_CHANNEL_MEMBER: &str = "INSERT INTO channel_members (channel, account) \
    VALUES ($1, $2) ON CONFLICT (channel) DO NOTHING";
pub(super) const INSERT_STATION_MEMBER: &str = "INSERT INTO station_members (station, account) \
    VALUES ($1, $2) ON CONFLICT (station) DO NOTHING";
/// After the insertion, which waits for another edge's: only then its accounts are seen.
pub(super) const UPDATE_STATION_MEMBER: &str = "UPDATE station_members SET account = $2 \
    WHERE station = $1 AND NOT EXISTS (SELECT 1 FROM accounts \
    WHERE accounts.account = station_members.account AND accounts.edge <> $3)";
pub(super) const DELETE_MEMBERS: [&str; 3] = [
    "DELETE FROM late WHERE account = $1",
    "DELETE FROM channel_members WHERE account = $1",
    "DELETE FROM station_members WHERE account = $1",
];
pub(super) const DELETE_ACCOUNT: &str = "DELETE FROM accounts WHERE account = $1 AND edge = $2";
pub(super) const NEXT_KEY: &str =
    "UPDATE edges SET next_key = $2 WHERE number = $1 AND next_key < $2";
pub(super) const HAND_OVER: &str = "UPDATE accounts SET edge = $3, wanted = NULL, tip = $4, \
    seq = $5 WHERE account = $1 AND edge = $2";
pub(super) const CAUGHT_UP: &str =
    "UPDATE accounts SET tip = NULL WHERE account = $1 AND edge = $2";
pub(super) const INSERT_STAND: &str = "INSERT INTO stands (tip, height, blocks) VALUES ($1, $2, $3) \
    ON CONFLICT (tip) DO NOTHING";
/// Long after anybody could come with them. One that is named all the same is kept by the reference.
pub(super) const DELETE_STANDS: &str = "DELETE FROM stands \
    WHERE height < (SELECT MAX(height) FROM stands) - 200 \
    AND NOT EXISTS (SELECT 1 FROM accounts WHERE accounts.tip = stands.tip)";

/// What is ours and follows our blocks.
macro_rules! ours {
    ($columns:literal, $table:literal, $key:literal, $members:literal, $more:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM ",
            $table,
            " t JOIN ",
            $members,
            " m ON m.",
            $key,
            " = t.",
            $key,
            " JOIN accounts a ON a.account = m.account WHERE a.edge = $1 AND a.tip IS NULL ",
            $more
        )
    };
}
pub(super) const SELECT_CHANNELS: &str = ours!(
    "t.channel, t.n, t.body, t.digest, t.seal",
    "channels",
    "channel",
    "channel_members",
    "AND t.channel > $2 ORDER BY t.channel LIMIT $3"
);
pub(super) const SELECT_JOURNAL: &str = ours!(
    "t.seq, t.channel, t.n, t.body, t.digest",
    "journal",
    "channel",
    "channel_members",
    "AND t.seq > $2 ORDER BY t.seq LIMIT $3"
);
pub(super) const COUNT_JOURNAL: &str =
    ours!("COUNT(*)", "journal", "channel", "channel_members", "");
/// Everybody's, also of accounts that are on their way, and what is nobody's.
pub(super) const SELECT_ALL_CHANNELS: &str = "SELECT channel, n, body, digest, seal FROM channels \
    WHERE channel > $1 ORDER BY channel LIMIT $2";
pub(super) const SELECT_ALL_JOURNAL: &str =
    "SELECT seq, channel, n, body, digest FROM journal WHERE seq > $1 ORDER BY seq LIMIT $2";
/// A connection that looks: at one moment, for as long as it takes.
pub(super) const LOOK: &str = "SET idle_in_transaction_session_timeout = 0; \
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// What must not be there, and how much of it is.
pub(super) const LOOSE: [(&str, &str); 5] = [
    (
        "folded journals of channels that are nobody's",
        "SELECT COUNT(*) FROM channels c WHERE NOT EXISTS \
         (SELECT 1 FROM channel_members m WHERE m.channel = c.channel)",
    ),
    (
        "events of channels that are nobody's",
        "SELECT COUNT(*) FROM journal j WHERE NOT EXISTS \
         (SELECT 1 FROM channel_members m WHERE m.channel = j.channel)",
    ),
    (
        "channels of accounts that there are not",
        "SELECT COUNT(*) FROM channel_members m WHERE NOT EXISTS \
         (SELECT 1 FROM accounts a WHERE a.account = m.account)",
    ),
    (
        "stations of accounts that there are not",
        "SELECT COUNT(*) FROM station_members m WHERE NOT EXISTS \
         (SELECT 1 FROM accounts a WHERE a.account = m.account)",
    ),
    (
        "accounts at edges that there are not",
        "SELECT COUNT(*) FROM accounts a WHERE NOT EXISTS \
         (SELECT 1 FROM edges e WHERE e.number = a.edge)",
    ),
];
pub(super) const SELECT_FOLDED: &str = "SELECT channel, n, body, digest, seal FROM channels \
    WHERE channel = ANY($1) ORDER BY channel";
/// Of our accounts' stations, and of those that are nobody's and were here last.
pub(super) const SELECT_USAGE: &str = "SELECT t.station, t.up_octets, t.up_frames, \
    t.up_refused_octets, t.up_refused_frames, t.down_octets, t.down_frames, \
    t.down_refused_octets, t.down_refused_frames FROM usage t \
    LEFT JOIN station_members m ON m.station = t.station \
    LEFT JOIN accounts a ON a.account = m.account \
    WHERE a.edge = $1 AND a.tip IS NULL OR a.account IS NULL AND t.edge = $1 ORDER BY t.station";
pub(super) const SELECT_SETTINGS: &str =
    "SELECT name, value FROM settings WHERE edge = $1 ORDER BY name";
pub(super) const SELECT_NEXT_KEY: &str = "SELECT next_key FROM edges WHERE number = $1";

/// Rows of four kinds: edges (0), accounts of ours that others want (1), and that are on their way here
/// (2); what the stations of ours used at edges that were taken over (3).
pub(super) const RENEW: &str = "WITH fence AS (UPDATE edges SET beat = beat + 1 \
    WHERE number = $1 AND epoch = $2 RETURNING number) \
    SELECT 0::BIGINT, e.number, e.epoch, e.beat, e.hold_ms, e.name, ''::BYTEA FROM fence, edges e \
    UNION ALL (SELECT 1, wanted, 0, 0, 0, '', account FROM accounts \
    WHERE edge = $1 AND wanted IS NOT NULL LIMIT $3) \
    UNION ALL (SELECT 2, edge, 0, 0, 0, '', account FROM accounts \
    WHERE edge = $1 AND tip IS NOT NULL LIMIT $3) \
    UNION ALL (SELECT 3, l.edge, l.epoch, l.station, l.octets, '', l.account FROM late l \
    JOIN accounts a ON a.account = l.account \
    WHERE l.octets IS NOT NULL AND a.edge = $1 AND a.tip IS NULL LIMIT $3)";
pub(super) const SELECT_EDGES: &str =
    "SELECT number, epoch, beat, hold_ms, name FROM edges ORDER BY number";
pub(super) const LOOK_UP_CHANNELS: &str = "SELECT m.channel, m.account, a.edge \
    FROM channel_members m JOIN accounts a ON a.account = m.account WHERE m.channel = ANY($1)";
pub(super) const LOOK_UP_STATIONS: &str = "SELECT m.station, m.account, a.edge \
    FROM station_members m JOIN accounts a ON a.account = m.account WHERE m.station = ANY($1)";
pub(super) const LOOK_UP_USAGE: &str = "SELECT station, up_octets, up_frames, \
    up_refused_octets, up_refused_frames, down_octets, down_frames, down_refused_octets, \
    down_refused_frames FROM usage WHERE station = ANY($1) ORDER BY station";
/// First come, first served: who wants it later waits until it has moved.
pub(super) const WANT: &str = "UPDATE accounts SET wanted = $2 WHERE account = ANY($1) \
    AND edge <> $2 AND wanted IS NULL AND EXISTS (SELECT 1 FROM edges WHERE number = $2 AND epoch = $3)";
pub(super) const TAKE_ACCOUNTS: &str = "SELECT a.account, a.tip, a.seq, s.height, s.blocks \
    FROM accounts a LEFT JOIN stands s ON s.tip = a.tip \
    WHERE a.account = ANY($1) AND a.edge = $2 AND a.tip IS NOT NULL";
pub(super) const TAKE_CHANNELS: &str = "SELECT t.channel, t.n, t.body, t.digest, t.seal, m.account \
    FROM channels t JOIN channel_members m ON m.channel = t.channel WHERE m.account = ANY($1)";
pub(super) const TAKE_JOURNAL: &str = "SELECT t.seq, t.channel, t.n, t.body, t.digest, m.account \
    FROM journal t JOIN channel_members m ON m.channel = t.channel WHERE m.account = ANY($1) \
    ORDER BY t.channel, t.n";
pub(super) const TAKE_USAGE: &str = "SELECT t.station, t.up_octets, t.up_frames, \
    t.up_refused_octets, t.up_refused_frames, t.down_octets, t.down_frames, \
    t.down_refused_octets, t.down_refused_frames, m.account FROM usage t \
    JOIN station_members m ON m.station = t.station WHERE m.account = ANY($1) ORDER BY t.station";
/// Only of an edge that was not heard of since. One that never started (epoch 1) was a lone box until now: what
/// its kernel grants has no end.
pub(super) const FENCE: &str = "UPDATE edges SET epoch = epoch + 1, seized = 1 \
    WHERE number = $1 AND epoch = $2 AND epoch > 1 AND beat = $3";
/// An edge that was fenced and has not begun anew, which raises its beat, too; it does not before this transaction
/// ends.
pub(super) const SEIZABLE: &str = "SELECT seq FROM edges \
    WHERE number = $1 AND epoch = $2 AND beat = $3 AND seized = 1 FOR UPDATE";
/// Some of its accounts, those first that others want; and what it had written down of their stations: what its
/// kernel has beyond that is told when it is back.
pub(super) const SEIZE: &str = "WITH these AS ( \
    (SELECT account, tip FROM accounts WHERE edge = $1 AND wanted IS NOT NULL LIMIT $6) UNION \
    (SELECT account, tip FROM accounts WHERE edge = $1 LIMIT $6)), \
    told AS (INSERT INTO late (edge, epoch, station, account, written) \
    SELECT $1, $2, m.station, m.account, COALESCE(u.up_octets + u.down_octets, 0) \
    FROM these s JOIN station_members m ON m.account = s.account \
    LEFT JOIN usage u ON u.station = m.station WHERE s.tip IS NULL) \
    UPDATE accounts SET edge = $3, wanted = NULL, tip = COALESCE(accounts.tip, $4), \
    seq = CASE WHEN accounts.seq > $5 THEN accounts.seq ELSE $5 END \
    FROM these s WHERE accounts.account = s.account AND accounts.edge = $1";
pub(super) const SELECT_UNTOLD: &str =
    "SELECT epoch, station, written FROM late WHERE edge = $1 AND octets IS NULL";
/// Once: what was told, or is settled already, is not told anew.
pub(super) const TELL_LATE: &str = "UPDATE late SET octets = t.octets \
    FROM UNNEST($2::BIGINT[], $3::BIGINT[], $4::BIGINT[]) AS t (epoch, station, octets) \
    WHERE late.edge = $1 AND late.epoch = t.epoch AND late.station = t.station \
    AND late.octets IS NULL";
pub(super) const DELETE_UNTOLD: &str = "DELETE FROM late WHERE edge = $1 AND octets IS NULL";
pub(super) const DELETE_SETTLED: &str =
    "DELETE FROM late WHERE edge = $1 AND epoch = $2 AND station = $3 AND octets IS NOT NULL";
pub(super) const SEIZURE_OVER: &str =
    "UPDATE edges SET seized = 0 WHERE number = $1 AND epoch = $2";
/// Stations that nobody pays for, for an edge that is about to. A claim ends when its edge has begun
/// anew or given eight signs of life: until then no other edge gets it.
pub(super) const CLAIM: &str = "INSERT INTO claims (station, edge, epoch, beat) \
    SELECT s.station, e.number, e.epoch, e.beat FROM edges e, UNNEST($3::BIGINT[]) AS s (station) \
    WHERE e.number = $1 AND e.epoch = $2 \
    AND NOT EXISTS (SELECT 1 FROM station_members m WHERE m.station = s.station) \
    ON CONFLICT (station) DO UPDATE SET edge = excluded.edge, epoch = excluded.epoch, \
    beat = excluded.beat WHERE claims.edge = excluded.edge OR NOT EXISTS (SELECT 1 FROM edges o \
    WHERE o.number = claims.edge AND o.epoch = claims.epoch AND o.beat < claims.beat + 8) \
    RETURNING station";
pub(super) const DELETE_CLAIMS: &str = "DELETE FROM claims c USING edges e WHERE c.edge = $1 \
    AND e.number = $1 AND (c.epoch <> e.epoch OR c.beat + 8 <= e.beat)";
/// For status: accounts at each edge, those on their way to it included.
pub(super) const COUNT_ACCOUNTS: &str = "SELECT edge, COUNT(*) FROM accounts GROUP BY edge";
