//! `bitmesh service`: units for systemd.

use std::{
    env,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};

const SELL: &str = include_str!("../../systemd/bitmesh-sell.service");
const BUY: &str = include_str!("../../systemd/bitmesh-buy.service");
/// Where the units have the program's place.
const PROGRAM: &str = "@BITMESH@";

#[derive(Args, Clone, Debug)]
pub(super) struct ServiceArgs {
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ServiceCommand {
    /// Print a unit
    Print {
        /// Of which daemon
        #[arg(value_enum)]
        role: Role,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    /// The provider
    Sell,
    /// The subscriber
    Buy,
}

impl ServiceArgs {
    pub(super) fn run(self) -> Result<()> {
        let ServiceCommand::Print { role } = self.command;
        let unit = match role {
            Role::Sell => SELL,
            Role::Buy => BUY,
        };
        let program = env::current_exe().context("where this program is")?;
        let program =
            program.to_str().context("this program is in a place whose name is no text")?;
        Ok(io::stdout().write_all(unit.replace(PROGRAM, program).as_bytes())?)
    }
}
