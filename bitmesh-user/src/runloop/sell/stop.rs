//! The wish to end: heard wherever the loop waits, for a disk that hangs as well.

use std::{pin::Pin, time::Duration};

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep_until};

/// How long what was begun may go on once the daemon is to end.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Whether, and since when, the daemon is to end.
pub(super) struct Stop {
    signal: Pin<Box<dyn Future<Output = ()> + Send>>,
    since: Option<Instant>,
    patience: Duration,
}

impl Stop {
    /// It is to end when `signal` comes.
    pub(super) fn new(signal: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        Self { signal, since: None, patience: STOP_PATIENCE }
    }

    /// Waits until it is to end; may be given up and asked again.
    pub(super) async fn asked(&mut self) -> Instant {
        if let Some(since) = self.since {
            return since;
        }
        self.signal.as_mut().await;
        *self.since.insert(Instant::now())
    }

    async fn in_vain(&mut self) -> Instant {
        let since = self.asked().await;
        sleep_until(since + self.patience).await;
        since
    }

    /// Does something; gives it up when the daemon is to end and it goes on all the same. Nothing
    /// that was not durable was acknowledged by then.
    pub(super) async fn bounds<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            since = self.in_vain() => Err(anyhow!(
                "told to stop {} s ago, and the disk or the network still doesn't answer: ended \
                 without writing the last counters down; what was acknowledged is stored",
                since.elapsed().as_secs()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    fn soon() -> Stop {
        Stop { patience: SOON * 4, ..Stop::new(Box::pin(sleep(SOON))) }
    }

    #[tokio::test]
    async fn a_wish_to_end_is_remembered_by_whoever_asks_later() {
        let (mut stop, begun) = (soon(), Instant::now());
        let work = async {
            sleep(SOON * 2).await;
            Ok(5)
        };
        assert_eq!(stop.bounds(work).await.unwrap(), 5);
        let since = stop.asked().await;
        assert!(since >= begun + SOON);
        sleep(SOON).await;
        assert_eq!(stop.asked().await, since);
        assert_eq!(stop.bounds(ready(Ok(1))).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_hangs_is_given_up_a_while_after_it_was_told_to_end() {
        let (mut stop, begun) = (soon(), Instant::now());
        let error = stop.bounds(pending::<Result<()>>()).await.unwrap_err();
        assert!(begun.elapsed() >= SOON * 5, "it was given up at once");
        assert!(error.to_string().contains("told to stop"), "{error}");
    }
}
