//! Alone in its process, whose memory it measures.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bitmesh_user::telemetry;
use metrics::histogram;

/// Samples in each turn, and turns: 8 octets each would make 100 MB.
const SAMPLES: u32 = 250_000;
const TURNS: u32 = 50;
/// What may be added for what was recorded since it was added up last, in octets.
const GROWTH_MAX: u64 = 50_000_000;

fn resident_octets() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histograms_that_nobody_asks_for_take_no_more_memory_over_time() -> Result<()> {
    telemetry::install();
    let upkeep = tokio::spawn(telemetry::upkeep());
    let before = resident_octets()?;
    let samples = histogram!("bitmesh_commit_seconds");
    let mut most = 0;
    for _ in 0..TURNS {
        for _ in 0..SAMPLES {
            samples.record(0.001);
        }
        most = most.max(resident_octets()?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    upkeep.abort();
    ensure!(most < before + GROWTH_MAX, "{} MB more", (most - before) / 1_000_000);
    let text = telemetry::render();
    let count = text.lines().find_map(|line| line.strip_prefix("bitmesh_commit_seconds_count "));
    let count: u32 = count.context("no count")?.parse()?;
    // The library can drop what a drain meets while a block is being linked: some, never the most.
    ensure!((SAMPLES * TURNS / 2..=SAMPLES * TURNS).contains(&count), "counted {count}");
    Ok(())
}
