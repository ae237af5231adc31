//! `bitmesh`: sells and buys internet access for bitcoin.

use std::process::ExitCode;

use bitmesh_user::{cli::Cli, telemetry};
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some((format, filter)) = cli.logging() {
        telemetry::install();
        if let Err(error) = telemetry::start_log(format, filter.as_deref()) {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", telemetry::told(&error));
            ExitCode::FAILURE
        }
    }
}
