//! How tables and numbers look on a terminal, the same for every command.

use comfy_table::{ContentArrangement, Table, presets};

/// A table with lines between its columns and under its header.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}
