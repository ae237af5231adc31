//! `bitmesh store`: is the ledger whole, a copy of it, and the way back.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget};

use super::{
    moving::MoveArgs,
    print,
    show::{facts, sat},
    wallet::Place,
};
use crate::{
    api::value,
    bench::grouped,
    config::{FleetArgs, FleetConfig},
    runloop::{Audit, audit, audit_fleet, unlock},
    store::{self, FleetLook, Look, Restore, Restored, StoreError, StoreRole},
};

#[derive(Args, Clone, Debug)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum StoreCommand {
    /// Check every page, digest and entry, and show what it all comes to
    #[command(
        long_about = "Reads the whole ledger as it is at one moment, and changes nothing; a daemon \
            may be running. It has the database check its pages, checks the digest of every \
            row and the sum over all of them, follows every event again by the rules that wrote it, \
            and compares the last commit with the witness beside the ledger. The exit code is 1 where something is wrong. \
            With --store it does so with what every edge of a fleet has in the database; pages are the \
            server's to check (pg_checksums, pg_amcheck).",
        after_help = "Examples:\n  bitmesh store check\n  \
            bitmesh store check --store postgres://bitmesh@db1,db2/fleet\n  \
            bitmesh store check --role buy\n  \
            bitmesh store check --file ledger.backup\n  \
            bitmesh store check --json | jq .problems"
    )]
    Check(Box<CheckArgs>),
    /// Copy the ledger into a file, also while a daemon runs
    #[command(
        long_about = "Writes a copy of the ledger as it is at one moment, and checks it. A daemon \
            may go on selling or buying meanwhile. The file must not exist yet. What is paid \
            after that is not in it: make copies often, and keep them on another disk. The wallet's \
            words are not in it either; write those down once (`bitmesh wallet words`).",
        after_help = "Examples:\n  bitmesh store backup /mnt/usb/ledger-monday\n  \
            bitmesh store backup --role sell \"/var/backups/bitmesh-$(date +%F)\""
    )]
    Backup(Box<BackupArgs>),
    /// Put a copy in the place of the ledger, which is kept aside
    #[command(
        long_about = "Checks a copy, keeps the ledger that is there aside under another name, and \
            puts the copy in its place. The daemon must not run. What was paid after the copy was \
            made is forgotten by it: a provider learns each sum again with the subscriber's next \
            payment, and until then claims less; a subscriber's provider may know of more than its \
            copy does, and counts that. The next start says so once more. A \
            provider whose kernel still honours what was paid later refuses to start and says how \
            to go on.",
        after_help = "Examples:\n  bitmesh store restore /mnt/usb/ledger-monday\n  \
            bitmesh store restore --older /mnt/usb/ledger-sunday"
    )]
    Restore(Box<RestoreArgs>),
    /// Take this box's ledger into a fleet's database
    #[command(
        long_about = "Makes this box an edge of a fleet: everything in its ledger goes into the database \
            that --store names, with what every account, channel and station has. The daemon must not \
            run. Everything is checked first, written in one transaction, read back and compared before it \
            is committed; the file is kept under another name. Stopped at any step, the same \
            command goes on. The database's edges, if there are some, have to have this box's seed; one \
            lone box can move into a fleet.",
        after_help = "Examples:\n  bitmesh store move --role sell --store postgres://bitmesh@db1,db2/fleet --dry-run\n  \
            bitmesh store move --role sell --store postgres://bitmesh@db1,db2/fleet --edge tower-1 \\\n    \
            --store-password-file /etc/bitmesh/store-password"
    )]
    Move(Box<MoveArgs>),
    /// Go on from the ledger that is there, although it is an older copy
    #[command(
        long_about = "A daemon refuses to start on a ledger that is older than what it wrote last: \
            payments are missing from it. Where the newest is lost for good, this goes on from what \
            is there. What was paid since is forgotten, as `bitmesh store restore --help` says. With --store, \
            an edge of a fleet goes on with the server that is named, although it lacks what was \
            acknowledged, or is of another cluster than before.",
        after_help = "Examples:\n  bitmesh store accept --role sell\n  \
            bitmesh store accept --role sell --config /etc/bitmesh/sell.toml"
    )]
    Accept(Box<AcceptArgs>),
}

#[derive(Args, Clone, Debug)]
struct CheckArgs {
    /// A copy, in the place of the ledger
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    fleet: FleetArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct BackupArgs {
    /// Where the copy is to be
    file: PathBuf,
    #[command(flatten)]
    fleet: FleetArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct RestoreArgs {
    /// The copy
    file: PathBuf,
    /// Although the ledger that is there is whole and newer
    #[arg(long)]
    older: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct AcceptArgs {
    #[command(flatten)]
    fleet: FleetArgs,
    #[command(flatten)]
    place: Place,
}

impl StoreArgs {
    pub(super) async fn run(self) -> Result<()> {
        match self.command {
            StoreCommand::Check(args) => args.run().await,
            StoreCommand::Backup(args) => args.run().await,
            StoreCommand::Restore(args) => args.run().await,
            StoreCommand::Move(args) => Box::pin(args.run()).await,
            StoreCommand::Accept(args) => args.run().await,
        }
    }
}

impl CheckArgs {
    async fn run(self) -> Result<()> {
        if self.file.is_none()
            && let Some(fleet) = self.fleet.clone().with_file(self.place.config())?.resolve()?
        {
            return self.run_fleet(&fleet).await;
        }
        let look = match &self.file {
            Some(file) => Look::file(file).await?,
            None => Look::open(&self.place.ledger().await?).await?,
        };
        let (look, audit) = audited(look).await?;
        look.close().await?;
        show(self.place.json, &audit)
    }
}

impl BackupArgs {
    async fn run(self) -> Result<()> {
        if let Some(fleet) = self.fleet.with_file(self.place.config())?.resolve()? {
            return Err(StoreError::BackUpByItself(fleet.address.to_string()).into());
        }
        let mut look = Look::open(&self.place.ledger().await?).await?;
        let bar = spinner();
        bar.set_message("copying");
        let copied = look.back_up(&self.file).await;
        bar.finish_and_clear();
        copied?;
        look.close().await?;
        let (look, audit) = audited(Look::file(&self.file).await?).await?;
        look.close().await?;
        show(self.place.json, &audit)
    }
}

impl RestoreArgs {
    async fn run(self) -> Result<()> {
        let ledger = self.place.ledger().await?;
        let restore = Restore::prepare(&ledger, &self.file, self.older).await?;
        let checked = whole(restore.copy()).await;
        if let Err(error) = checked {
            restore.give_up()?;
            return Err(error.context(format!("{} was not restored", self.file.display())));
        }
        let restored = restore.put().await?;
        print(self.place.json, &value(&restored), &restored, told)
    }
}

impl AcceptArgs {
    async fn run(self) -> Result<()> {
        let ledger = self.place.ledger().await?;
        let commits = match self.fleet.with_file(self.place.config())?.resolve()? {
            Some(fleet) => {
                let common = self.place.provider().await?;
                let seed = unlock(&common)?;
                store::accept_server(&fleet.ledger(&common, &seed), common.network).await?
            }
            None if store::is_of_fleet(&ledger.directory) => {
                return Err(StoreError::OfFleet(ledger.directory).into());
            }
            None => store::accept(&ledger).await?,
        };
        let restored = Restored { commits, aside: None };
        print(self.place.json, &value(&restored), &restored, told)
    }
}

fn told(restored: &Restored) -> String {
    let kept = restored.aside.as_ref().map(|aside| aside.display().to_string());
    let kept = kept.map(|aside| format!("\nwhat was there before is in {aside}"));
    format!(
        "the ledger goes on from commit {}; the next start says what that means{}",
        restored.commits,
        kept.unwrap_or_default()
    )
}

async fn whole(file: &Path) -> Result<()> {
    let (look, audit) = audited(Look::file(file).await?).await?;
    look.close().await?;
    if audit.problems.is_empty() { Ok(()) } else { bail!(audit.problems.join("\n")) }
}

async fn audited(mut look: Look) -> Result<(Look, Audit)> {
    let bar = spinner();
    let audited = audit(&mut look, |what| bar.set_message(what)).await;
    bar.finish_and_clear();
    Ok((look, audited?))
}

pub(super) fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl CheckArgs {
    /// Checks what every edge of a fleet has.
    async fn run_fleet(&self, fleet: &FleetConfig) -> Result<()> {
        let directory = self.place.ledger().await?.directory;
        let mut look = FleetLook::open(&fleet.address, &directory).await?;
        let bar = spinner();
        let audited = audit_fleet(&mut look, |what| bar.set_message(what)).await;
        bar.finish_and_clear();
        let audits = audited?;
        look.close().await?;
        let all = |audits: &Vec<Audit>| {
            let tables: Vec<_> = audits.iter().map(table).collect();
            tables.join("\n\n")
        };
        print(self.place.json, &value(&audits), &audits, all)?;
        match audits.iter().map(|audit| audit.problems.len()).sum() {
            0 => Ok(()),
            count => bail!(
                "{count} things in this database are not as they were written; bring back a backup by \
                 PostgreSQL's own tools"
            ),
        }
    }
}

fn show(json: bool, audit: &Audit) -> Result<()> {
    print(json, &value(audit), audit, table)?;
    match audit.problems.len() {
        0 => Ok(()),
        _ => bail!(
            "this ledger is not as it was written; `bitmesh store restore` brings back a copy of it"
        ),
    }
}

fn table(audit: &Audit) -> String {
    let Audit { facts: of, .. } = audit;
    let count = |number: usize| grouped(number as u64);
    let role = match audit.role {
        StoreRole::Provider => "a provider's",
        StoreRole::Subscriber => "a subscriber's",
    };
    let witness = match of.witness {
        Some(last) if of.newest => format!("agrees (commit {last})"),
        Some(last) => format!("saw commit {last}: this is an older copy"),
        None => "none beside it".to_owned(),
    };
    let mut rows = vec![
        ("ledger", of.ledger.clone()),
        ("whose", format!("{role}, on {}", audit.network)),
        ("layout", of.layout.to_string()),
        ("commits", grouped(of.commits.unsigned_abs())),
        ("witness", witness),
        ("channels", format!("{}, {} open", count(of.channels), count(audit.channels_open))),
        ("events", format!("{}, {} not folded", count(audit.events), grouped(of.journal_rows))),
        ("paid", format!("{} in {} payments", sat(audit.paid.to_sat()), grouped(audit.payments))),
        ("bought", audit.bought_octets.to_string()),
    ];
    if audit.role == StoreRole::Provider {
        rows.push(("used", audit.used_octets.to_string()));
    }
    rows.push(("block", grouped(audit.height.into())));
    let problems = audit.problems.iter().map(|problem| ("WRONG", problem.clone()));
    rows.extend(problems);
    if audit.problems.is_empty() {
        rows.push(("found", "every page, digest and entry is as it was written".to_owned()));
    }
    facts(&rows)
}
