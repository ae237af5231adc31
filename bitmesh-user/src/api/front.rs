//! What requests meet before the loop: its mailbox, what payments are checked against, and whether
//! the loop can store anything at present. It outlives a loop whose store failed, and never waits
//! long for one whose store hangs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use bitmesh_core::{channel::ChannelId, station::Station, wire::PaymentRequest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{
    ApiError, Ask, Body, Envelope, Pay, Proof, Reply,
    checks::{Checks, Verdict},
};

/// How long a commit may take before requests are refused and not made to wait.
pub const SLOW_STORE: Duration = Duration::from_secs(2);
/// So that no moment of a run is 0, which stands for none.
const HEAD_START: Duration = Duration::from_mins(1);
/// When to try again what was refused because of the store, in seconds.
const RETRY_SECONDS: u16 = 2;

/// Whether what is decided can be made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreState {
    /// It can.
    #[default]
    Working,
    /// A commit has been going on for longer than [`SLOW_STORE`].
    Slow,
    /// It can't: nothing is acknowledged and nothing is granted until it can.
    Failed,
}

/// The store at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Which kind it is.
    pub engine: String,
    /// Whether it works.
    pub state: StoreState,
    /// Since when it is in that state, in seconds since 1970.
    pub since: u64,
    /// What is wrong, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How often it failed since the daemon started.
    #[serde(default)]
    pub failures: u64,
    /// The longest commit since the daemon started, in milliseconds.
    #[serde(default)]
    pub slowest_commit_ms: u64,
}

/// Shared by everything that answers requests and by the loop.
#[derive(Debug)]
pub struct Front {
    mailbox: mpsc::Sender<Envelope>,
    checks: Checks,
    store: Mutex<StoreStatus>,
    /// What `status` said last.
    status: Mutex<Option<Value>>,
    started: Instant,
    /// Milliseconds after `started` at which the commit that is going on began; 0 while there is
    /// none.
    writing: AtomicU64,
}

impl Front {
    /// Of a loop that takes what is put into `mailbox`; `now` is in seconds since 1970.
    pub fn new(mailbox: mpsc::Sender<Envelope>, engine: &str, now: u64) -> Arc<Self> {
        let store = StoreStatus { engine: engine.to_owned(), since: now, ..StoreStatus::default() };
        Arc::new(Self {
            mailbox,
            checks: Checks::default(),
            store: Mutex::new(store),
            status: Mutex::default(),
            started: Instant::now().checked_sub(HEAD_START).unwrap_or_else(Instant::now),
            writing: AtomicU64::new(0),
        })
    }

    /// What payments are checked against.
    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Puts a request into the mailbox and waits for the answer; never waits for room, and for
    /// what is only read never long.
    pub(super) async fn ask(&self, ask: Ask) -> Reply {
        let is_status = matches!(ask, Ask::Status);
        let patient = !matches!(ask, Ask::Status | Ask::Offer | Ask::Account(_) | Ask::Channel(_));
        let refused = |error| if is_status { self.last_status(error) } else { Err(error) };
        if let Some(error) = self.trouble() {
            return refused(error);
        }
        let (reply, mut answer) = oneshot::channel();
        self.mailbox.try_send(Envelope { ask, reply }).map_err(|_| ApiError::busy())?;
        let answered = if patient {
            answer.await
        } else {
            loop {
                match tokio::time::timeout(SLOW_STORE, &mut answer).await {
                    Ok(answered) => break answered,
                    Err(_) => {
                        if let Some(error) = self.trouble() {
                            return refused(error);
                        }
                    }
                }
            }
        };
        answered.unwrap_or_else(|_| refused(self.trouble().unwrap_or_else(ApiError::busy)))
    }

    /// The same of a payment, whose signature is verified here.
    pub(super) async fn pay(
        &self,
        channel: ChannelId,
        payment: PaymentRequest,
        station: Option<Station>,
    ) -> Reply {
        if let Some(error) = self.trouble() {
            return Err(error);
        }
        let proof = match self.checks.judge(&channel, &payment) {
            Verdict::Verified(proof) => Proof::Verified(proof),
            Verdict::Wrong(refusal) => return Err(refusal.into()),
            Verdict::Unknown => Proof::None,
        };
        self.ask(Ask::Pay(Pay { channel, payment, station, proof })).await
    }

    /// Puts a payment back that was verified meanwhile.
    pub async fn again(&self, pay: Pay, reply: oneshot::Sender<Reply>) {
        // A loop that is gone answers by dropping it.
        let _ = self.mailbox.send(Envelope { ask: Ask::Pay(pay), reply }).await;
    }

    /// A commit begins; it ends with what this returns.
    pub fn writing(&self) -> Writing<'_> {
        let since = Instant::now();
        self.begin(since);
        Writing { front: self, since }
    }

    fn begin(&self, since: Instant) {
        let millis = since.saturating_duration_since(self.started).as_millis();
        self.writing.store(u64::try_from(millis).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    /// The store failed; `now` is in seconds since 1970.
    pub fn failed(&self, error: &str, now: u64) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.state != StoreState::Failed {
            (store.state, store.since) = (StoreState::Failed, now);
            store.failures += 1;
        }
        store.error = Some(error.to_owned());
    }

    /// The store works; `now` is in seconds since 1970.
    pub fn works(&self, now: u64) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.state != StoreState::Working {
            (store.state, store.since, store.error) = (StoreState::Working, now, None);
        }
    }

    /// How the store is at this moment.
    pub fn store(&self) -> StoreStatus {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (StoreState::Working, Some(slow)) = (store.state, self.slow()) {
            store.state = StoreState::Slow;
            store.slowest_commit_ms =
                store.slowest_commit_ms.max(u64::try_from(slow.as_millis()).unwrap_or(u64::MAX));
            let seconds = slow.as_secs();
            store.error = Some(format!(
                "a commit has been waiting for {seconds} s: look for what else uses the disk, or \
                 whether it fails (`dmesg`)"
            ));
        }
        store
    }

    /// Remembers what `status` said, for when the loop can't answer.
    pub fn keep_status(&self, status: Value) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn last_status(&self, error: ApiError) -> Reply {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(mut status) = status else { return Err(error) };
        if let Some(status) = status.as_object_mut() {
            status.insert("store".into(), super::value(self.store()));
        }
        Ok(Body::of(&status))
    }

    fn slow(&self) -> Option<Duration> {
        let since = match self.writing.load(Ordering::Relaxed) {
            0 => return None,
            since => Duration::from_millis(since),
        };
        let lasts = self.started.elapsed().saturating_sub(since);
        (lasts >= SLOW_STORE).then_some(lasts)
    }

    /// Why nothing can be stored at present.
    fn trouble(&self) -> Option<ApiError> {
        let slow = self.slow().is_some();
        let failed = || {
            let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            store.state == StoreState::Failed
        };
        let (code, message) = if failed() {
            ("store", "this edge can't write payments down at present, and takes none")
        } else if slow {
            ("slow-store", "this edge's disk is too slow at present to take payments")
        } else {
            return None;
        };
        let advice = "try again in a few seconds; credit stays good";
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message, advice);
        Some(error.after(RETRY_SECONDS))
    }
}

/// A commit that is going on.
#[must_use]
pub struct Writing<'a> {
    front: &'a Front,
    since: Instant,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.front.writing.store(0, Ordering::Relaxed);
        let millis = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut store = self.front.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.slowest_commit_ms = store.slowest_commit_ms.max(millis);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn front() -> (Arc<Front>, mpsc::Receiver<Envelope>) {
        let (requests, mailbox) = mpsc::channel(4);
        (Front::new(requests, "none", 5), mailbox)
    }

    #[tokio::test]
    async fn while_the_store_fails_all_are_refused_and_status_says_why_and_since_when() {
        let (front, _mailbox) = front();
        front.failed("the disk is full", 7);
        front.failed("the disk is gone", 9);
        let refused = front.ask(Ask::Status).await.unwrap_err();
        assert_eq!((refused.body.error.as_str(), refused.retry_after), ("store", Some(2)));
        front.keep_status(json!({"stations": 3, "store": {"state": "working"}}));
        let told = front.ask(Ask::Status).await.unwrap().value();
        assert_eq!(told["stations"], 3);
        let store = &told["store"];
        assert_eq!((&store["state"], &store["since"]), (&json!("failed"), &json!(7)));
        assert_eq!((&store["error"], &store["failures"]), (&json!("the disk is gone"), &json!(1)));
        assert_eq!(front.ask(Ask::Offer).await.unwrap_err().body.error, "store");
        front.works(11);
        assert_eq!((front.store().state, front.store().since), (StoreState::Working, 11));
    }

    #[tokio::test]
    async fn who_waits_when_the_store_fails_is_told_so() {
        let (front, mut mailbox) = front();
        let asked = tokio::spawn({
            let front = front.clone();
            async move { front.ask(Ask::Account("02:00:00:00:00:01".parse().unwrap())).await }
        });
        let envelope = mailbox.recv().await.unwrap();
        front.failed("the disk is full", 7);
        drop(envelope);
        assert_eq!(asked.await.unwrap().unwrap_err().body.error, "store");
    }

    #[tokio::test]
    async fn a_commit_that_hangs_is_waited_for_no_longer_than_its_bound() {
        let (front, _mailbox) = front();
        front.keep_status(json!({}));
        let before = SLOW_STORE.checked_sub(Duration::from_millis(500)).unwrap();
        front.begin(Instant::now().checked_sub(before).unwrap());
        assert_eq!(front.store().state, StoreState::Working);
        front.begin(Instant::now().checked_sub(SLOW_STORE).unwrap());
        assert_eq!(front.ask(Ask::Offer).await.unwrap_err().body.error, "slow-store");
        let told = front.ask(Ask::Status).await.unwrap().value();
        assert_eq!(told["store"]["state"], "slow");
    }
}
