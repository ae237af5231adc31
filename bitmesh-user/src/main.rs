//! `bitmesh`: sells and buys internet access for bitcoin.

use std::process::ExitCode;

use bitmesh_user::cli::Cli;
use clap::Parser as _;
use tracing_subscriber::{EnvFilter, fmt};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.is_daemon() {
        let filter =
            EnvFilter::try_from_env("BITMESH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
