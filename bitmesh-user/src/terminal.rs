//! How tables and questions look on a terminal, the same for every command.

use anyhow::{Context as _, Result};
use comfy_table::{ContentArrangement, Table, presets};

use crate::wallet::Passphrase;

/// A table with lines between its columns and under its header.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// Asks for a passphrase; nothing is shown while it is typed.
pub(crate) fn ask_passphrase(question: &str) -> Result<Passphrase> {
    let typed = rpassword::prompt_password(question).context("reading the passphrase")?;
    Ok(Passphrase::new(typed))
}

/// Asks twice for a passphrase to be set; `None` when nothing is typed.
pub(crate) fn ask_new_passphrase() -> Result<Option<Passphrase>> {
    eprintln!(
        "The wallet's words are kept sealed with a passphrase of yours. Without one (just Enter) the\n\
         key is kept in a file beside them: who can copy this machine's disk has the money then."
    );
    loop {
        let typed = ask_passphrase("New passphrase: ")?;
        if typed.is_empty() {
            return Ok(None);
        }
        if let Err(error) = typed.check_new() {
            eprintln!("{error}");
            continue;
        }
        if ask_passphrase("The same again: ")? == typed {
            return Ok(Some(typed));
        }
        eprintln!("These are two different ones; from the start.");
    }
}
