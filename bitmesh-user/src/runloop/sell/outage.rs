//! While nothing can be stored: nothing is acknowledged and nothing granted, who asks is told, the
//! ports are followed, and it is tried whether the fault is over. The kernel goes on enforcing what
//! was granted.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::Signal,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{error, info};

use super::{
    super::now, ADDRESSES_INTERVAL, desk::Desk, guarding::Guarding, stop::Stop,
    tending::read_settings, told::Told,
};
use crate::{
    api::Doing,
    config::SellConfig,
    dataplane::Dataplane,
    store::StoreError,
    telemetry::{self, Notifier},
};

/// Pause before the disk is looked at again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest pause between two starts from the disk, which reads everything: the pause doubles while
/// the disk takes a file and the store fails all the same.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(16);
/// Pause before a fleet's server is asked again while none takes writes, so that payments are taken again that
/// soon after a standby was promoted.
const SERVER_INTERVAL: Duration = Duration::from_millis(250);
/// How long that goes on. A server that is there and too slow for all that an edge reads is not helped by more.
const SERVER_HASTE: Duration = Duration::from_secs(20);
/// What has to fit on the disk before a start is tried, in octets: a batch of payments, and what the
/// database's log takes before it is written back.
const PROBE_OCTETS: usize = 256 << 10;
/// Name of the file that is tried, in the data directory.
const PROBE_FILE: &str = "probe";

/// How long to wait, from failure to failure, and what was told of the last.
#[derive(Default)]
pub(super) struct Patience {
    pause: Duration,
    told: String,
    /// Since when a server fails.
    server: Option<Instant>,
}

impl Patience {
    /// A session worked: the next failure is a new one.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    fn next(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(PROBE_INTERVAL, RESTART_PAUSE_MAX);
        self.pause
    }

    fn next_of_server(&mut self, now: Instant) -> Duration {
        let since = *self.server.get_or_insert(now);
        let hasty = now.saturating_duration_since(since) < SERVER_HASTE;
        if hasty { SERVER_INTERVAL } else { self.next() }
    }

    fn is_news(&mut self, why: &str) -> bool {
        std::mem::replace(&mut self.told, why.to_owned()) != why
    }
}

/// Whether it is a server that is not there, and not the disk.
fn is_of_server(failure: &anyhow::Error) -> bool {
    let failure = failure.downcast_ref::<StoreError>();
    matches!(
        failure,
        Some(
            StoreError::Unreachable { .. }
                | StoreError::Unverified { .. }
                | StoreError::ReadOnly { .. }
        )
    )
}

/// Waits until the disk takes something again; `false` when the daemon is to stop.
pub(super) async fn outlast(
    failure: &anyhow::Error,
    config: &mut SellConfig,
    patience: &mut Patience,
    (desk, guarding): (&mut Desk, &mut Guarding),
    (told, dataplane): (&mut Told, &mut Dataplane),
    (stop, hangup, notifier): (&mut Stop, &mut Signal, &mut Notifier),
) -> Result<bool> {
    let why = telemetry::told(failure);
    if patience.is_news(&why) {
        let hold = config.fleet.as_ref().map(|fleet| fleet.hold.get().as_secs());
        let limit = hold.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
        error!("{why}; nothing is acknowledged until it works again, credit stays good{limit}");
    }
    desk.front.failed(&why, now());
    desk.refuse_waiting();
    let mut addresses = interval(ADDRESSES_INTERVAL);
    addresses.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let directory = config.common.data_dir.clone();
    let of_server = is_of_server(failure);
    let pause = if of_server { patience.next_of_server(Instant::now()) } else { patience.next() };
    let mut probe = Box::pin(try_after(pause, (!of_server).then(|| directory.clone())));
    loop {
        desk.front.doing(Doing::Waiting);
        tokio::select! {
            tried = &mut probe => match tried {
                Ok(()) => {
                    if !of_server {
                        info!("the disk takes files: trying again from what is on it");
                    }
                    return Ok(true);
                }
                Err(error) => {
                    desk.front.failed(&format!("{error:#}"), now());
                    probe = Box::pin(try_after(PROBE_INTERVAL, Some(directory.clone())));
                }
            },
            change = guarding.change() => {
                let change = change.context("the guard has ended; the programs and the belt hold: start again")?;
                desk.changed(change, guarding, told, dataplane).await;
            }
            events = told.next() => {
                told.note(&events?);
            }
            _ = addresses.tick() => {
                notifier.status("the store can't write: nothing is sold until it can");
                desk.read_addresses(dataplane).await;
            }
            _ = hangup.recv() => {
                notifier.reloading();
                read_settings(config, notifier);
                notifier.reloaded();
            }
            _ = stop.asked() => {
                notifier.stopping();
                return Ok(false);
            }
        }
    }
}

/// The same after a pause, or the pause alone; whoever waits for it hears other things meanwhile, for a disk
/// that hangs too.
async fn try_after(pause: Duration, directory: Option<PathBuf>) -> Result<()> {
    sleep(pause).await;
    match directory {
        Some(directory) => try_disk(&directory).await,
        None => Ok(()),
    }
}

/// Writes a file, syncs it and takes it away again.
async fn try_disk(directory: &Path) -> Result<()> {
    let path = directory.join(PROBE_FILE);
    let probe = move || {
        let written = fs::File::create(&path).and_then(|mut file| {
            file.write_all(&vec![0; PROBE_OCTETS])?;
            file.sync_all()
        });
        let removed = fs::remove_file(&path);
        written.and(removed).with_context(|| {
            format!(
                "{} can't be written to; check that the disk has space, and whether it fails \
                 (`dmesg`)",
                path.parent().unwrap_or(&path).display()
            )
        })
    };
    tokio::task::spawn_blocking(probe).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_success() {
        let mut patience = Patience::default();
        let pauses: Vec<_> = (0..7).map(|_| patience.next().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 16, 16]);
        patience.reset();
        assert_eq!(patience.next(), PROBE_INTERVAL);
        patience.reset();
        let start = Instant::now();
        let asked = |patience: &mut Patience, seconds| {
            patience.next_of_server(start + Duration::from_secs(seconds))
        };
        assert_eq!(asked(&mut patience, 0), SERVER_INTERVAL);
        assert_eq!(asked(&mut patience, 19), SERVER_INTERVAL);
        assert_eq!([20, 21, 22].map(|at| asked(&mut patience, at).as_secs()), [1, 2, 4]);
    }

    #[test]
    fn a_server_that_is_away_is_asked_soon_and_told_of_once() {
        let error = |error: StoreError| anyhow::Error::from(error).context("a commit");
        let (place, why) = ("postgres://db1/fleet".to_owned(), "it only reads".to_owned());
        assert!(is_of_server(&error(StoreError::ReadOnly { place: place.clone(), why })));
        let why = "refused".to_owned();
        assert!(is_of_server(&error(StoreError::Unreachable { place, why })));
        assert!(!is_of_server(&error(StoreError::Fenced("elsewhere".into()))));
        assert!(!is_of_server(&error(StoreError::Sql(sqlx::Error::WorkerCrashed))));
        let mut patience = Patience::default();
        let news: Vec<_> = ["a", "a", "b", "a"].iter().map(|why| patience.is_news(why)).collect();
        assert_eq!(news, [true, false, true, true]);
    }

    #[tokio::test]
    async fn a_disk_that_takes_files_is_told_from_one_that_does_not() {
        let directory = tempfile::tempdir().unwrap();
        try_disk(directory.path()).await.unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the probe was left there");
        let gone = directory.path().join("gone");
        let error = try_disk(&gone).await.unwrap_err();
        assert!(format!("{error:#}").contains("dmesg"), "{error:#}");
    }
}
