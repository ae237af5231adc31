//! Rows as every engine reads them: columns in the order of the statements.

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::{
    StoreError,
    engine::{ChannelRow, JournalRow, UsageRow},
    journal::Digest,
};

/// A row of an engine that has the types of our tables.
pub(super) trait Columns {
    fn number(&self, column: usize) -> Result<i64, StoreError>;
    fn text(&self, column: usize) -> Result<String, StoreError>;
    fn octets(&self, column: usize) -> Result<&[u8], StoreError>;
}

impl<R: Row> Columns for R
where
    usize: ColumnIndex<R>,
    i64: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    String: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    for<'r> &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
{
    fn number(&self, column: usize) -> Result<i64, StoreError> {
        Ok(self.try_get(column)?)
    }

    fn text(&self, column: usize) -> Result<String, StoreError> {
        Ok(self.try_get(column)?)
    }

    fn octets(&self, column: usize) -> Result<&[u8], StoreError> {
        Ok(self.try_get(column)?)
    }
}

/// A digest in a row of the ledger at `place`.
pub(super) fn digest(row: &impl Columns, column: usize, place: &str) -> Result<Digest, StoreError> {
    row.octets(column)?.try_into().map_err(|_| StoreError::Damaged {
        place: place.to_owned(),
        what: "a digest of another length".into(),
    })
}

/// Of channel, n, body, digest, seal.
pub(super) fn channel(row: &impl Columns, place: &str) -> Result<ChannelRow, StoreError> {
    Ok(ChannelRow {
        channel: digest(row, 0, place)?,
        n: row.number(1)?,
        body: row.text(2)?,
        digest: digest(row, 3, place)?,
        seal: digest(row, 4, place)?,
    })
}

/// Of seq, channel, n, body, digest.
pub(super) fn journal(row: &impl Columns, place: &str) -> Result<JournalRow, StoreError> {
    Ok(JournalRow {
        seq: row.number(0)?,
        channel: digest(row, 1, place)?,
        n: row.number(2)?,
        body: row.text(3)?,
        digest: digest(row, 4, place)?,
    })
}

/// Of a station and its eight counters.
pub(super) fn usage(row: &impl Columns) -> Result<UsageRow, StoreError> {
    let mut values = UsageRow::default();
    for (column, value) in values.iter_mut().enumerate() {
        *value = row.number(column)?;
    }
    Ok(values)
}
