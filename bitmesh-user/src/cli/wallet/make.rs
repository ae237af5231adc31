//! Wallets that come to be, and the words that they come from.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use bitcoin::Network;
use bitmesh_core::bitcoin;
use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    super::print,
    access::{Access, Place, connecting, is_terminal, typed},
    show,
};
use crate::{
    api::{Ask, value},
    config::Common,
    runloop::{Offline, new_passphrase, status::WalletStatus, unlock},
    store::StoreRole,
    terminal::ask_new_passphrase,
    wallet::{Passphrase, Sealed, Seed, Words},
};

/// Height on Bitcoin's main chain below which no wallet of this program can have anything; where the
/// light client's headers begin.
const FIRST_BIRTHDAY: u32 = 910_000;
/// Longest file that is read as words, in octets.
const WORDS_FILE_MAX_OCTETS: u64 = 2_048;

#[derive(Args, Clone, Debug)]
pub(super) struct CreateArgs {
    /// Write the words to a new file instead of the terminal; keep it off this machine
    #[arg(long, value_name = "FILE")]
    words_file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
pub(super) struct RestoreArgs {
    /// Read the words from a file instead of asking for them
    #[arg(long, value_name = "FILE")]
    words_file: Option<PathBuf>,
    /// The height that was shown with the words: nothing below it is looked at
    /// [default: the first that can matter]
    #[arg(long, value_name = "HEIGHT")]
    birthday: Option<u32>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
pub(super) struct PassphraseArgs {
    /// File with the new passphrase, instead of asking for it
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
pub(super) struct WordsArgs {
    #[command(flatten)]
    place: Place,
}

/// A wallet that was made.
#[derive(Serialize)]
pub(super) struct Made {
    pub(super) fingerprint: String,
    pub(super) birthday: u32,
    pub(super) network: Network,
    pub(super) directory: PathBuf,
    pub(super) words_file: Option<PathBuf>,
    #[serde(skip)]
    pub(super) role: StoreRole,
    #[serde(skip)]
    pub(super) passphrase: bool,
}

impl CreateArgs {
    pub(super) async fn run(self) -> Result<()> {
        let home = self.place.home().await?;
        let role = home.role;
        let common = home.vacant()?;
        if self.words_file.is_none() && !(is_terminal() && io::stdout().is_terminal()) {
            bail!(
                "the words are shown on a terminal alone: run this on one, or have them written to a \
                 new file with --words-file FILE"
            );
        }
        let words = Words::generate()?;
        let mut seed = Seed::new(words, new_passphrase(&common)?)?;
        let connecting = connecting();
        let opened = Offline::open(&common, role, &mut seed).await;
        connecting.finish_and_clear();
        opened?.close().await?;
        let birthday = seed.birthday().context("it was kept")?;
        if let Some(file) = &self.words_file {
            write_words(file, seed.words(), birthday)?;
        } else {
            show_words(seed.words(), birthday)?;
        }
        let made = made(&common, role, self.words_file)?;
        print(self.place.json, &value(&made), &made, show::made)
    }
}

impl RestoreArgs {
    pub(super) async fn run(self) -> Result<()> {
        let home = self.place.home().await?;
        let role = home.role;
        let common = home.vacant()?;
        let text = match &self.words_file {
            Some(file) => read_words(file)?,
            None if is_terminal() => ask_words()?,
            None => {
                bail!("name a file with the words with --words-file, or run this on a terminal")
            }
        };
        let words = Words::parse(&text)?;
        drop(text);
        let first = if common.network == Network::Bitcoin { FIRST_BIRTHDAY } else { 0 };
        let birthday = self.birthday.unwrap_or(first);
        let mut seed = Seed::new(words, new_passphrase(&common)?)?;
        seed.keep(&common.data_dir, common.network, birthday)?;
        let mut access = Access::open_offline(&common, role, &mut seed).await?;
        let raw = access.ask(Ask::Wallet).await?;
        access.close().await?;
        let status: WalletStatus = typed(&raw)?;
        print(self.place.json, &raw, &status, |status| show::restored(status, role))
    }
}

impl PassphraseArgs {
    pub(super) async fn run(self) -> Result<()> {
        let common = self.place.home().await?.common()?;
        let seed = unlock(&common)?;
        let passphrase = match &self.new_passphrase_file {
            Some(file) => Passphrase::find(Some(file))?,
            None if is_terminal() => ask_new_passphrase()?,
            None => bail!(
                "name a file with the new one with --new-passphrase-file, or run this on a terminal"
            ),
        };
        Sealed::read(&common.data_dir)?.change(&seed, passphrase.as_ref())?;
        let made = made(&common, StoreRole::Subscriber, None)?;
        print(self.place.json, &value(&made), &made, show::sealed)
    }
}

impl WordsArgs {
    pub(super) async fn run(self) -> Result<()> {
        if !(is_terminal() && io::stdout().is_terminal()) {
            bail!("the words are shown on a terminal alone");
        }
        let common = self.place.home().await?.common()?;
        let seed = unlock(&common)?;
        show_words(seed.words(), seed.birthday().unwrap_or_default())
    }
}

fn made(common: &Common, role: StoreRole, words_file: Option<PathBuf>) -> Result<Made> {
    let sealed = Sealed::read(&common.data_dir)?;
    Ok(Made {
        fingerprint: sealed.fingerprint().to_string(),
        birthday: sealed.birthday(),
        network: sealed.network(),
        directory: common.data_dir.clone(),
        words_file,
        role,
        passphrase: sealed.takes_passphrase(),
    })
}

/// Until Enter is pressed; then they are cleared, with what scrolled away.
fn show_words(words: &Words, birthday: u32) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", *show::words(words, birthday))?;
    write!(out, "\nPress Enter once they are on paper: they are cleared from the screen then. ")?;
    out.flush()?;
    io::stdin().read_line(&mut String::new())?;
    // Erase the screen and what scrolled off it (ECMA-48, and xterm's 3 J); to the top.
    write!(out, "\x1b[2J\x1b[3J\x1b[H")?;
    Ok(out.flush()?)
}

fn write_words(path: &Path, words: &Words, birthday: u32) -> Result<()> {
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let text = Zeroizing::new(words.iter().collect::<Vec<_>>().join(" "));
        writeln!(file, "{}", *text)?;
        file.sync_all()
    };
    written().with_context(|| {
        format!(
            "writing {}; the wallet is made, and `bitmesh wallet words` shows them (birthday {birthday})",
            path.display()
        )
    })
}

fn read_words(path: &Path) -> Result<Zeroizing<String>> {
    let doing = || format!("reading {}", path.display());
    let mut text = Zeroizing::new(String::with_capacity(2_049));
    let file = File::open(path).with_context(doing)?;
    let read =
        file.take(WORDS_FILE_MAX_OCTETS + 1).read_to_string(&mut text).with_context(doing)?;
    if read > 2_048 {
        bail!("{} is longer than seed words can be; is it the right file?", path.display());
    }
    Ok(text)
}

/// On one line or several, until there are enough or one is empty; then cleared.
fn ask_words() -> Result<Zeroizing<String>> {
    eprintln!("The words, as they were written down; several on a line or one by one.");
    let mut text = Zeroizing::new(String::with_capacity(2_048));
    let mut lines = 0;
    loop {
        eprint!("> ");
        let mut line = Zeroizing::new(String::with_capacity(1_024));
        io::stdin().read_line(&mut line)?;
        lines += 1;
        text.push_str(&line);
        text.push(' ');
        if line.trim().is_empty() || text.split_whitespace().count() >= 12 {
            break;
        }
    }
    // Up, and erase to the end (ECMA-48).
    eprint!("\x1b[{lines}A\x1b[0J");
    Ok(text)
}
