//! What requests meet before the loop: its mailbox, what payments are checked against, and whether
//! the loop can store anything at present. It outlives a loop whose store failed, and never waits
//! long for one whose store hangs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bitmesh_core::{channel::ChannelId, station::Station, wire::PaymentRequest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::{
    ApiError, Ask, Body, Envelope, Pay, Proof, Reply,
    checks::{Checks, Verdict},
};
use crate::{store::Kept, telemetry::Life};

/// How long a turn of the loop may take, a commit above all, before requests are refused and not made
/// to wait.
pub const SLOW_STORE: Duration = Duration::from_secs(2);
/// How long the loop may wait, which its timers don't let it, or be at anything but a commit before
/// it counts as hung.
const TURN_MAX: Duration = Duration::from_secs(30);
/// The same of a commit: a disk may be slow, and starting anew would not make it faster.
const STORING_MAX: Duration = Duration::from_mins(5);
/// The same of a start, which reads the whole ledger.
const STARTING_MAX: Duration = Duration::from_mins(30);
/// So that no moment of a run is 0, which stands for none.
const HEAD_START: Duration = Duration::from_mins(1);
/// Bits that say what the loop is at, below since when.
const DOING_BITS: u32 = 2;
const DOING_MASK: u64 = (1 << DOING_BITS) - 1;
/// When to try again what was refused because of the store.
const RETRY: Duration = Duration::from_secs(2);

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

/// What the loop is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It waits for something to do.
    Waiting,
    /// It does what came.
    Turn,
    /// It waits for the store.
    Storing,
    /// It reads the ledger.
    Starting,
}

impl Doing {
    const ALL: [Self; 4] = [Self::Waiting, Self::Turn, Self::Storing, Self::Starting];

    /// How long it may last before the loop counts as hung.
    fn longest(self) -> Duration {
        match self {
            Self::Waiting | Self::Turn => TURN_MAX,
            Self::Storing => STORING_MAX,
            Self::Starting => STARTING_MAX,
        }
    }
}

/// The store at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// What keeps the ledger.
    #[serde(flatten)]
    pub kept: Kept,
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
    /// What the loop is at, below the milliseconds after `started` since when; 0 before it said so.
    doing: AtomicU64,
    /// Whether nobody is let in any more.
    stopping: AtomicBool,
}

impl Front {
    /// Of a loop that takes what is put into `mailbox`; `now` is in seconds since 1970.
    pub fn new(mailbox: mpsc::Sender<Envelope>, now: u64) -> Arc<Self> {
        let store = StoreStatus { since: now, ..StoreStatus::default() };
        Arc::new(Self {
            mailbox,
            checks: Checks::default(),
            store: Mutex::new(store),
            status: Mutex::default(),
            started: Instant::now().checked_sub(HEAD_START).unwrap_or_else(Instant::now),
            doing: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        })
    }

    /// What payments are checked against.
    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Requests that wait for the loop.
    pub(super) fn waiting(&self) -> usize {
        self.mailbox.max_capacity().saturating_sub(self.mailbox.capacity())
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
        if self.stopping.load(Ordering::Relaxed) {
            return refused(ApiError::stopping());
        }
        let (reply, mut answer) = oneshot::channel();
        if let Err(error) = self.mailbox.try_send(Envelope { ask, reply }) {
            return refused(match error {
                TrySendError::Full(_) => ApiError::busy(),
                TrySendError::Closed(_) => ApiError::stopping(),
            });
        }
        let answered = if patient {
            answer.await
        } else {
            loop {
                match tokio::time::timeout(SLOW_STORE, &mut answer).await {
                    Ok(answered) => break answered,
                    Err(_) => match self.trouble() {
                        Some(error) => return refused(error),
                        None if is_status => return refused(ApiError::busy()),
                        None => {}
                    },
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

    /// Lets nobody in any more; payments that are being verified still come back.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What the loop is at from now on.
    pub fn doing(&self, doing: Doing) {
        self.doing_since(doing, Instant::now());
    }

    fn doing_since(&self, doing: Doing, since: Instant) {
        let millis = since.saturating_duration_since(self.started).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        self.doing.store(millis << DOING_BITS | doing as u64, Ordering::Relaxed);
    }

    /// What the loop is at, and for how long.
    fn lasts(&self) -> Option<(Doing, Duration)> {
        let doing = self.doing.load(Ordering::Relaxed);
        let since = Duration::from_millis(doing >> DOING_BITS);
        let what = Doing::ALL.into_iter().find(|what| doing & DOING_MASK == *what as u64);
        what.filter(|_| doing != 0).map(|what| (what, self.started.elapsed().saturating_sub(since)))
    }

    /// How the loop does, for systemd.
    pub fn life(&self) -> Life {
        match self.lasts() {
            Some((doing, lasts)) if lasts >= doing.longest() => Life::Hung,
            None | Some((Doing::Starting, _)) => Life::Starting,
            Some(_) => Life::Well,
        }
    }

    /// A commit begins; it ends with what this returns.
    pub fn writing(&self) -> Writing<'_> {
        let since = Instant::now();
        self.doing_since(Doing::Storing, since);
        Writing { front: self, since }
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

    /// What keeps the ledger from now on.
    pub fn kept(&self, kept: Kept) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).kept = kept;
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

    /// For how long a commit has been going on, if that is too long.
    fn slow(&self) -> Option<Duration> {
        let (doing, lasts) = self.lasts()?;
        (doing == Doing::Storing && lasts >= SLOW_STORE).then_some(lasts)
    }

    /// Whether the loop has been at one thing for too long.
    fn stuck(&self) -> bool {
        self.lasts().is_some_and(|(doing, lasts)| doing == Doing::Turn && lasts >= SLOW_STORE)
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
        } else if self.stuck() {
            ("busy", "this edge is busy with something else than requests at present")
        } else {
            return None;
        };
        let advice = "try again in a few seconds; credit stays good";
        Some(ApiError::unavailable(code, message, advice, RETRY))
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
        self.front.doing(Doing::Turn);
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
        (Front::new(requests, 5), mailbox)
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
        front.doing_since(Doing::Storing, Instant::now().checked_sub(before).unwrap());
        assert_eq!(front.store().state, StoreState::Working);
        front.doing_since(Doing::Storing, Instant::now().checked_sub(SLOW_STORE).unwrap());
        assert_eq!(front.ask(Ask::Offer).await.unwrap_err().body.error, "slow-store");
        let told = front.ask(Ask::Status).await.unwrap().value();
        assert_eq!(told["store"]["state"], "slow");
    }

    #[tokio::test]
    async fn status_is_answered_though_nobody_reads_the_mailbox() {
        let (front, mailbox) = front();
        let (asked, nobody) = (Instant::now(), Duration::from_secs(10));
        let refused = tokio::time::timeout(nobody, front.ask(Ask::Status)).await.unwrap();
        assert_eq!(refused.unwrap_err().body.error, "busy");
        assert!(asked.elapsed() >= SLOW_STORE, "the loop was not waited for");
        front.keep_status(json!({"stations": 3}));
        let told = tokio::time::timeout(nobody, front.ask(Ask::Status)).await.unwrap();
        assert_eq!(told.unwrap().value()["stations"], 3);
        // Full, then closed: the last figures all the same.
        while front.mailbox.try_send(status()).is_ok() {}
        assert_eq!(front.ask(Ask::Status).await.unwrap().value()["stations"], 3);
        drop(mailbox);
        assert_eq!(front.ask(Ask::Status).await.unwrap().value()["stations"], 3);
    }

    fn status() -> Envelope {
        Envelope { ask: Ask::Status, reply: oneshot::channel().0 }
    }

    #[tokio::test]
    async fn a_turn_that_hangs_is_not_waited_for_and_the_loop_counts_as_hung_after_a_while() {
        let (front, _mailbox) = front();
        let ago = |ago: Duration| Instant::now().checked_sub(ago).unwrap();
        assert_eq!(front.life(), Life::Starting);
        front.doing_since(Doing::Turn, ago(SLOW_STORE));
        assert_eq!(front.ask(Ask::Offer).await.unwrap_err().body.error, "busy");
        assert_eq!((front.store().state, front.life()), (StoreState::Working, Life::Well));
        let nearly = TURN_MAX.checked_sub(Duration::from_secs(1)).unwrap();
        for doing in [Doing::Turn, Doing::Waiting] {
            front.doing_since(doing, ago(nearly));
            assert_eq!(front.life(), Life::Well, "{doing:?}");
            front.doing_since(doing, ago(TURN_MAX));
            assert_eq!(front.life(), Life::Hung, "{doing:?}");
        }
        front.doing_since(Doing::Storing, ago(TURN_MAX));
        assert_eq!(front.life(), Life::Well);
        drop(front.writing());
        assert_eq!(front.lasts().unwrap().0, Doing::Turn);
        front.doing(Doing::Starting);
        assert_eq!(front.life(), Life::Starting);
    }

    #[tokio::test]
    async fn at_the_end_nobody_is_let_in_and_what_was_verified_comes_back() {
        let (front, mut mailbox) = front();
        front.stop();
        assert_eq!(front.ask(Ask::Offer).await.unwrap_err().body.error, "stopping");
        let pay = Pay {
            channel: "00".repeat(32).parse().unwrap(),
            payment: PaymentRequest { paid: bitcoin::Amount::ZERO, signature: signature() },
            station: None,
            proof: Proof::Missed,
        };
        front.again(pay, oneshot::channel().0).await;
        assert!(matches!(mailbox.recv().await.unwrap().ask, Ask::Pay(_)));
    }

    fn signature() -> bitcoin::secp256k1::ecdsa::Signature {
        bitcoin::secp256k1::ecdsa::Signature::from_compact(&[1; 64]).unwrap()
    }
}
