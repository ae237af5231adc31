//! `bitmesh bench`.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::{Scale, local, table};

/// How much to measure, and how to print it.
#[derive(Args, Clone, Debug)]
pub(super) struct BenchArgs {
    /// Fewer rounds: seconds instead of half a minute
    #[arg(long)]
    quick: bool,
    /// Stations to scan, 512 to 1024 octets of the kernel's memory each while it runs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    stations: Option<u32>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    pub(super) fn run(self) -> Result<()> {
        let mut scale = if self.quick { Scale::QUICK } else { Scale::FULL };
        scale.stations = self.stations.unwrap_or(scale.stations);
        let spinner = ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{spinner} measuring {msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        spinner.enable_steady_tick(Duration::from_millis(120));
        let measures = local(scale, &|name| spinner.set_message(name.to_owned()))?;
        spinner.finish_and_clear();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&measures)?);
        } else {
            println!("{}", table(&measures));
        }
        Ok(())
    }
}
