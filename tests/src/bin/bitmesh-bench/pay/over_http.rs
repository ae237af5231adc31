//! Payments over HTTP: the daemon, beside the same server whose loop stores nothing.

use std::thread;

use anyhow::{Context as _, Result, anyhow};
use bitcoin::{
    Amount, Network,
    secp256k1::{All, Secp256k1},
};
use bitmesh_core::{
    channel::{Entry, ProviderChannel},
    controller::Controller,
    station::Station,
    wire::PaymentReply,
};
use bitmesh_tests::netns::Namespace;
use bitmesh_user::{
    api::{
        Ask, Body, Envelope, Front, Gate, MAILBOX_REQUESTS, Proof, listen_on, router, serve_lan,
    },
    bench::{Better, Contender, Group, Measure, Target},
    gateway::Gateway,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Volume,
    fixture::{Account, accounts},
    load::{self, Outcome, Script},
    town::{EDGE, LAN, PAID_BEFORE, Provider, Town},
};
use crate::{plan::go_on, profile};

/// Connections, each of a station that pays on a channel of its own.
const CONNECTIONS: u32 = 500;
/// Payments a second of the run that measures latency.
const RATE: f64 = 10_000.0;
/// Least that is durable of what is verified only.
const DURABLE_SHARE: f64 = 0.75;
/// Least payments a second.
const PAYMENTS_PER_SECOND: f64 = 10_000.0;
/// Most that 99 of 100 take, in milliseconds.
const P99_MS: f64 = 50.0;

/// Two servers that answer the same payments, one at a time.
struct Race<'a> {
    town: &'a Town,
    provider: Provider<'a>,
    secp: Secp256k1<All>,
    accounts: Vec<Account>,
    height: u32,
    /// What the next payment comes to.
    sum: u64,
}

impl<'a> Race<'a> {
    fn new(town: &'a Town) -> Result<Self> {
        let provider = Provider::new(town)?;
        let height = provider.height()?;
        let (secp, accounts) = (Secp256k1::new(), accounts(0..CONNECTIONS, height)?);
        provider.write(&secp, &accounts, height)?;
        Ok(Self { town, provider, secp, accounts, height, sum: PAID_BEFORE + 1 })
    }

    fn scripts(&mut self, payments: usize) -> Result<Vec<(u32, Script)>> {
        let from = self.sum;
        self.sum += u64::try_from(payments)?;
        let of =
            |(station, account)| Ok((station, Script::new(&self.secp, account, from, payments)?));
        (0u32..).zip(&self.accounts).map(of).collect()
    }

    fn pay(&mut self, payments: usize, rate: Option<f64>) -> Result<Outcome> {
        go_on()?;
        let scripts = self.scripts(payments)?;
        self.town.stations.block_on(async || load::run(EDGE, scripts, rate).await)
    }

    fn durable(&mut self, payments: usize, rate: Option<f64>) -> Result<Outcome> {
        self.started(|race| race.pay(payments, rate))
    }

    fn started<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.provider.start()?;
        let done = work(self);
        let done = done.with_context(|| self.provider.daemon.log())?;
        self.provider.daemon.stop()?;
        Ok(done)
    }

    /// Says of measures that were missed where the time goes.
    fn explain(
        &mut self,
        measures: &mut [Measure],
        payments: usize,
        rate: Option<f64>,
    ) -> Result<()> {
        if !profile::any_missed(measures) {
            return Ok(());
        }
        let scripts = self.scripts(payments)?;
        self.started(|race| {
            let stations = &race.town.stations;
            let run = || stations.block_on(async || load::run(EDGE, scripts, rate).await);
            profile::explain_all(measures, || run().map(drop));
            Ok(())
        })
    }

    /// The programs stay on the ports when the daemon stops: frames take the same way.
    fn verified_only(&mut self, payments: usize) -> Result<Outcome> {
        let server = VerifyOnly::start(&self.town.edge, &self.secp, &self.accounts, self.height)?;
        let outcome = self.pay(payments, None);
        server.stop()?;
        outcome
    }
}

/// The API without a ledger behind it.
struct VerifyOnly {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<Result<()>>,
}

impl VerifyOnly {
    fn start(
        edge: &Namespace,
        secp: &Secp256k1<All>,
        accounts: &[Account],
        height: u32,
    ) -> Result<Self> {
        let anybody = accounts.first().context("no accounts")?.station;
        let (requests, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
        let gate = Gate::new(requests.clone());
        let front = Front::new(requests, 0);
        for account in accounts {
            let mut events = account.journal(secp, height, 0)?.into_iter().filter_map(|entry| {
                let Entry::Channel { event, .. } = entry else { return None };
                Some(event)
            });
            let mut channel = ProviderChannel::open(&events.next().context("no opening")?)?;
            events.try_for_each(|event| channel.apply(&event))?;
            let check = channel.payment_check(height).context("a channel that takes nothing")?;
            front.checks().put(account.channel, check, Amount::ZERO);
            gate.payers.add(account.station, account.channel.into());
        }
        let (ready, listening) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = edge.thread(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(async {
                let gateway = Gateway::open()?;
                let lan = gateway.interface(LAN).await?;
                let listener = listen_on(&lan, EDGE.port())?;
                tokio::spawn(serve_lan(listener, lan, gateway, router(front), gate));
                ready.send(())?;
                tokio::select! {
                    () = answer(mailbox, anybody) => {}
                    _ = stopped => {}
                }
                anyhow::Ok(())
            })
        })?;
        if listening.recv().is_err() {
            thread.join().map_err(|_| anyhow!("the server died"))??;
            return Err(anyhow!("the server did not start"));
        }
        Ok(Self { stop, thread })
    }

    fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the server died"))?
    }
}

/// Answers payments that were verified, as the daemon's loop does: some at once.
async fn answer(mut mailbox: mpsc::Receiver<Envelope>, anybody: Station) {
    let nobody = Controller::new(Network::Regtest, vec![EDGE.ip()]);
    let mut envelopes = Vec::new();
    while mailbox.recv_many(&mut envelopes, 256).await > 0 {
        for Envelope { ask, reply } in envelopes.drain(..) {
            let Ask::Pay(pay) = ask else { continue };
            let Proof::Verified(_) = &pay.proof else { continue };
            let station = pay.station.unwrap_or(anybody);
            let paid = PaymentReply { paid: pay.payment.paid, account: nobody.account(station) };
            let _ = reply.send(Ok(Body::Paid(Box::new(paid))));
        }
    }
}

/// Throughput of both, then latency of the daemon at a fixed rate.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let town = Town::new(CONNECTIONS)?;
    let race = std::cell::RefCell::new(Race::new(&town)?);
    let payments = volume.closed_payments;
    let contenders = vec![
        Contender::new("durable", || Ok(race.borrow_mut().durable(payments, None)?.rate())),
        Contender::new("verified only", || Ok(race.borrow_mut().verified_only(payments)?.rate())),
    ];
    let unit = ("payments/s", Better::Higher);
    let title = format!("payments over HTTP, {CONNECTIONS} connections, load included");
    let closed = Group::race(title, unit, volume.rounds, contenders, before)?;
    let mut measures = vec![
        closed.compare("durable", "verified only", Some(Target::RatioAtLeast(DURABLE_SHARE))),
        closed.alone("durable", Some(Target::AtLeast(PAYMENTS_PER_SECOND))),
    ];

    race.borrow_mut().explain(&mut measures, payments, None)?;

    let paced = || {
        let outcome = race.borrow_mut().durable(volume.open_payments, Some(RATE))?;
        Ok(outcome.permille(990).as_secs_f64() * 1e3)
    };
    let name = "99 of 100 are answered within, at 10,000 payments/s";
    let contenders = vec![Contender::new(name, paced)];
    let title = format!("durable payments over HTTP, {CONNECTIONS} connections");
    let open = Group::race(title, ("ms", Better::Lower), volume.rounds, contenders, before)?;
    let mut p99 = [open.alone(name, Some(Target::AtMost(P99_MS)))];
    race.borrow_mut().explain(&mut p99, volume.open_payments, Some(RATE))?;
    Ok(vec![(closed, measures), (open, p99.into())])
}
