//! `bitmesh wallet`: asks the daemon that has the wallet, or opens the data directory itself.

mod access;
mod make;
mod pay;
mod show;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

pub(super) use self::access::{Access, Place, typed};
use self::{
    make::{CreateArgs, PassphraseArgs, RestoreArgs, WordsArgs},
    pay::SendArgs,
};
use super::print;
use crate::{
    api::{AddressReport, Ask, PastReport, WalletAsk},
    runloop::status::WalletStatus,
    store::StoreRole,
};

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct WalletArgs {
    #[command(subcommand)]
    command: Option<WalletCommand>,
    #[command(flatten)]
    place: Place,
}

#[derive(Subcommand, Clone, Debug)]
enum WalletCommand {
    /// Make a wallet and show its words, once
    #[command(
        long_about = "Makes new seed words, shows them, and keeps them sealed with a passphrase of \
            yours. Write the words and the height beside them on paper: they bring the money back \
            on any machine. A daemon that finds no wallet makes one by itself; this is the way to \
            see the words first.",
        after_help = "Examples:\n  bitmesh wallet create\n  bitmesh wallet create --role sell\n  \
            bitmesh wallet create --words-file words.txt --passphrase-file passphrase.txt"
    )]
    Create(CreateArgs),
    /// Bring a wallet back from its words
    #[command(
        long_about = "Takes the words that were written down, follows the chain from the birthday \
            beside them, and finds what the wallet has: money on chain, and channels that this \
            wallet paid on, whose money comes back by itself after their end.\n\nThe channels of a \
            provider are not in the words: what was paid on channels that are open is claimed with \
            the data directory alone. Keep backups of it.",
        after_help = "Examples:\n  bitmesh wallet restore\n  \
            bitmesh wallet restore --birthday 905000\n  \
            bitmesh wallet restore --words-file words.txt --role sell"
    )]
    Restore(RestoreArgs),
    /// Balance, and an address to be paid at; the same as without a command
    #[command(after_help = "Example:\n  bitmesh wallet show --json | jq .confirmed_sat")]
    Show(Place),
    /// An address to be paid at, as text and as a QR code
    #[command(after_help = "Examples:\n  bitmesh wallet address\n  \
        bitmesh wallet address --amount 50000 --label 'for internet'\n  \
        bitmesh wallet address --new --json | jq -r .address")]
    Address(AddressArgs),
    /// What is there, on its way, and in channels
    #[command(after_help = "Example:\n  bitmesh wallet balance")]
    Balance(Place),
    /// What came and went, the newest first
    #[command(after_help = "Examples:\n  bitmesh wallet history\n  \
        bitmesh wallet history --limit 1000 --json | jq '.[] | select(.kind == \"received\")'")]
    History(HistoryArgs),
    /// Pay somebody on chain
    #[command(
        long_about = "Pays from confirmed outputs. What it pays, what it costs and what comes back \
            is shown before anything is signed. The transaction can be replaced by one with a \
            higher fee (BIP125).",
        after_help = "Examples:\n  bitmesh wallet send bc1q... 20000\n  \
            bitmesh wallet send bc1q... all --fee slow\n  \
            bitmesh wallet send bc1q... 20000 --fee-rate 3 --yes"
    )]
    Send(SendArgs),
    /// Set or change the passphrase that the words are sealed with
    #[command(
        long_about = "Seals the words anew. It works while the daemon runs, which has opened them \
            already. Copies and backups of the seed file from before keep the passphrase that they \
            had.",
        after_help = "Examples:\n  bitmesh wallet passphrase\n  \
            bitmesh wallet passphrase --new-passphrase-file new.txt --passphrase-file old.txt"
    )]
    Passphrase(PassphraseArgs),
    /// Show the words again, on a terminal
    #[command(after_help = "Example:\n  bitmesh wallet words")]
    Words(WordsArgs),
}

/// Whose wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    /// Of `bitmesh sell`
    Sell,
    /// Of `bitmesh buy`
    Buy,
}

impl RoleArg {
    fn name(self) -> &'static str {
        match self {
            Self::Sell => "sell",
            Self::Buy => "buy",
        }
    }
}

impl From<RoleArg> for StoreRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Sell => Self::Provider,
            RoleArg::Buy => Self::Subscriber,
        }
    }
}

#[derive(Args, Clone, Debug)]
struct AddressArgs {
    /// Ask for so many satoshi
    #[arg(long, value_name = "SAT")]
    amount: Option<u64>,
    /// What it is for, to be shown to who pays
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// One that was never shown before, even if the last was not used yet
    #[arg(long)]
    new: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct HistoryArgs {
    /// Show at most so many
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    place: Place,
}

impl WalletArgs {
    pub(super) async fn run(self) -> Result<()> {
        match self.command {
            None => summary(self.place, show::summary).await,
            Some(WalletCommand::Show(place)) => summary(place, show::summary).await,
            Some(WalletCommand::Balance(place)) => summary(place, show::balance).await,
            Some(WalletCommand::Address(args)) => args.run().await,
            Some(WalletCommand::History(args)) => args.run().await,
            Some(WalletCommand::Create(args)) => args.run().await,
            Some(WalletCommand::Restore(args)) => args.run().await,
            Some(WalletCommand::Send(args)) => args.run().await,
            Some(WalletCommand::Passphrase(args)) => args.run().await,
            Some(WalletCommand::Words(args)) => args.run().await,
        }
    }
}

async fn summary(place: Place, table: impl FnOnce(&WalletStatus) -> String) -> Result<()> {
    let mut access = Access::open(&place).await?;
    let raw = access.ask(Ask::Wallet).await?;
    access.close().await?;
    print(place.json, &raw, &typed(&raw)?, table)
}

impl AddressArgs {
    async fn run(self) -> Result<()> {
        let mut access = Access::open(&self.place).await?;
        let answer: AddressReport = access.of_wallet(WalletAsk::Address { new: self.new }).await?;
        access.close().await?;
        let request = show::Request::new(&answer.address, self.amount, self.label)?;
        print(self.place.json, &crate::api::value(&request), &request, show::request)
    }
}

impl HistoryArgs {
    async fn run(self) -> Result<()> {
        let mut access = Access::open(&self.place).await?;
        let past: Vec<PastReport> =
            access.of_wallet(WalletAsk::History { limit: self.limit }).await?;
        access.close().await?;
        print(self.place.json, &crate::api::value(&past), &past, |past| show::history(past))
    }
}
