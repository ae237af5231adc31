//! `bitmesh channels export-refund`: the way out without this program.

use anyhow::{Context as _, Result, bail};
use bitmesh_core::wire::ChannelReport;
use clap::{Args, Subcommand};

use super::{
    Query, print, show,
    wallet::{Access, Place, typed},
};
use crate::api::{Ask, RefundExport};

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct ChannelsArgs {
    #[command(subcommand)]
    command: Option<ChannelsCommand>,
    #[command(flatten)]
    query: Query,
}

#[derive(Subcommand, Clone, Debug)]
enum ChannelsCommand {
    /// Commands for a stock Bitcoin Core wallet that fetch back what a channel holds
    #[command(
        long_about = "Prints commands to copy, for bitcoin-cli of a node that has this chain. With \
            them anybody gets back what a channel holds once its end has come, without this \
            program and without the provider. They hold the channel's private key: show them to \
            nobody who should not have the money.\n\nThe daemon and `bitmesh wallet` refund by \
            themselves; this is for the day on which neither can run.",
        after_help = "Examples:\n  bitmesh channels export-refund\n  \
            bitmesh channels export-refund 3f1c --to bc1q... --fee-rate 5"
    )]
    ExportRefund(ExportArgs),
}

#[derive(Args, Clone, Debug)]
struct ExportArgs {
    /// The channel's id, or how it begins [default: every channel that holds something]
    #[arg(value_name = "CHANNEL", default_value = "")]
    channel: String,
    /// Where the money is to go [default: an address of this wallet]
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// What to pay miners, in satoshi per vbyte
    #[arg(long, value_name = "SAT_PER_VB", default_value_t = 5)]
    fee_rate: u64,
    #[command(flatten)]
    place: Place,
}

impl ChannelsArgs {
    pub(super) async fn run(self) -> Result<()> {
        match self.command {
            None => {
                let table = |channels: &Vec<ChannelReport>| show::channels(channels);
                self.query.show::<Vec<ChannelReport>>("/v1/channels", table).await
            }
            Some(ChannelsCommand::ExportRefund(args)) => args.run().await,
        }
    }
}

impl ExportArgs {
    async fn run(self) -> Result<()> {
        let mut access = Access::open(&self.place).await?;
        let answered = access.ask(Ask::Refunds).await;
        access.close().await?;
        let mut exports: Vec<RefundExport> = typed(&answered?)?;
        exports.retain(|export| export.channel.to_string().starts_with(&self.channel));
        if exports.is_empty() && !self.channel.is_empty() {
            bail!(
                "no channel that begins with {} holds anything; `bitmesh channels` lists all",
                self.channel
            );
        }
        if let Some(to) = &self.to {
            for export in &mut exports {
                let parsed: bitmesh_core::bitcoin::Address<_> =
                    to.parse().with_context(|| format!("--to {to} is no address"))?;
                parsed
                    .require_network(export.network)
                    .with_context(|| format!("--to is not on {}", export.network))?;
                export.address.clone_from(to);
            }
        }
        let raw = crate::api::value(&exports);
        print(self.place.json, &raw, &exports, |exports| show::refunds(exports, self.fee_rate))
    }
}
