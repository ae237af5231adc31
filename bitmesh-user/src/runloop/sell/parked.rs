//! Requests about accounts that are not here: where these are is looked up, they are asked for, and who
//! asked waits a while. What nobody has is claimed before it is given an account.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::http::StatusCode;
use bitmesh_core::{
    account::AccountId,
    channel::{Batch, ProviderEvent},
    controller::{Action, Controller, Input, Place},
    fleet::Member,
    station::Station,
};

use super::Session;
use crate::{
    api::{ApiError, Ask, Envelope},
    dataplane::{EventKind, StationEvent},
    store::Found,
};

/// How long a request waits for an account that is elsewhere.
const PARKED_FOR: Duration = Duration::from_secs(3);
/// Requests that wait.
const PARKED_MAX: usize = 1_024;
/// Seconds after which who was told to come again should.
const RETRY_SECONDS: u16 = 1;
/// Stations and channels that are looked up at once; more wait for the next look.
const ASKED_AT_ONCE: usize = 256;
/// Those that wait to be looked up. A flood of new stations costs no more than that.
const ASKED_MAX: usize = 1_024;
/// How long it is remembered that nobody has something.
const ABSENT_FOR: Duration = Duration::from_secs(1);
/// Of how many things.
const ABSENT_MAX: usize = 16_384;

/// A request about something that is not here.
struct Request {
    envelope: Envelope,
    until: Instant,
}

/// Requests that wait, and what is to be found out for them.
#[derive(Default)]
pub(super) struct Parked {
    requests: Vec<Request>,
    asked: BTreeSet<Member>,
    absent: HashMap<Member, Instant>,
    /// Accounts that somebody waits for and that are this edge's: they are taken before others that are on
    /// their way here.
    pub(super) due: BTreeSet<AccountId>,
    /// Stations that no other edge gives an account before the next sign of life.
    claimed: BTreeSet<Station>,
}

impl Parked {
    /// Whether the next look should come soon.
    pub(super) fn is_busy(&self) -> bool {
        !self.requests.is_empty() || !self.asked.is_empty()
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// A claim lasts until the next sign of life.
    pub(super) fn forget_claims(&mut self) {
        self.claimed.clear();
    }

    fn is_absent(&self, member: &Member) -> bool {
        self.absent.get(member).is_some_and(|since| since.elapsed() < ABSENT_FOR)
    }

    /// Whether something has to be looked up, or waited for, before it is decided on.
    fn waits(&self, member: &Member, controller: &Controller) -> bool {
        match controller.place_of(*member) {
            Place::Here | Place::Leaving => false,
            Place::Arriving => true,
            Place::Elsewhere => !self.is_absent(member),
        }
    }

    /// What a request is about that has to be looked up, waited for or claimed before.
    fn lacks(&self, ask: &Ask, controller: &Controller) -> Vec<Member> {
        let seats =
            seats(ask).filter(|station| !self.claimed.contains(station)).map(Member::Station);
        let unclaimed = |member: &Member| {
            seats == Some(*member) && controller.place_of(*member) == Place::Elsewhere
        };
        let members = members(ask).into_iter();
        members.filter(|member| self.waits(member, controller) || unclaimed(member)).collect()
    }

    fn ask(&mut self, member: Member) {
        if self.asked.len() < ASKED_MAX {
            self.asked.insert(member);
        }
    }

    fn note_absent(&mut self, members: impl Iterator<Item = Member>) {
        self.absent.retain(|_, since| since.elapsed() < ABSENT_FOR);
        for member in members {
            if self.absent.len() < ABSENT_MAX {
                self.absent.insert(member, Instant::now());
            }
        }
    }
}

/// What a request is about.
fn members(ask: &Ask) -> Vec<Member> {
    match ask {
        Ask::Open(station, ..) | Ask::Account(station) => vec![Member::Station(*station)],
        Ask::ChangeStations(channel, peer, change) => {
            let station = change.binding.station.unwrap_or(*peer);
            vec![Member::Channel(*channel), Member::Station(station)]
        }
        Ask::Pay(pay) => vec![Member::Channel(pay.channel)],
        Ask::Channel(channel) | Ask::Fund(channel, _) | Ask::Close(channel, _) => {
            vec![Member::Channel(*channel)]
        }
        _ => Vec::new(),
    }
}

/// The station that a request may give an account, where it has none.
fn seats(ask: &Ask) -> Option<Station> {
    match ask {
        Ask::Open(station, ..) => Some(*station),
        Ask::ChangeStations(_, peer, change) => {
            // Nobody seats another station than its own: that is refused.
            let binding = &change.binding;
            let own = binding.station.is_none_or(|station| station == *peer);
            (own && !binding.remove).then_some(*peer)
        }
        _ => None,
    }
}

fn moving() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "moving",
        "this account is on its way here from another edge",
        "try again in a second",
    )
    .after(RETRY_SECONDS)
}

impl Session<'_> {
    /// Keeps a request that is about something that is not here, until it is or was not found.
    pub(super) fn park(&mut self, envelope: Envelope) -> Option<Envelope> {
        let Some(fleet) = &mut self.fleet else { return Some(envelope) };
        let missing = fleet.parked.lacks(&envelope.ask, &self.controller);
        if missing.is_empty() {
            return Some(envelope);
        }
        if fleet.parked.len() >= PARKED_MAX {
            let _ = envelope.reply.send(Err(moving()));
            return None;
        }
        for member in missing {
            fleet.parked.ask(member);
        }
        fleet.parked.requests.push(Request { envelope, until: Instant::now() + PARKED_FOR });
        None
    }

    /// Takes requests up whose accounts have come, or whom nobody has; others are told to come again
    /// when they have waited for too long.
    pub(super) fn unpark(&mut self, out: &mut Batch<ProviderEvent, Action>) {
        let Some(fleet) = &mut self.fleet else { return };
        let now = Instant::now();
        let mut ready = Vec::new();
        for parked in std::mem::take(&mut fleet.parked.requests) {
            let waits = fleet.parked.lacks(&parked.envelope.ask, &self.controller);
            if waits.is_empty() {
                ready.push(parked.envelope);
            } else if now >= parked.until {
                let _ = parked.envelope.reply.send(Err(moving()));
            } else {
                for member in waits {
                    fleet.parked.ask(member);
                }
                fleet.parked.requests.push(parked);
            }
        }
        for envelope in ready {
            self.take(envelope, out);
        }
    }

    /// Stations that are new on a port may have an account at another edge.
    pub(super) fn newcomers(&mut self, events: &[StationEvent]) {
        let Some(fleet) = &mut self.fleet else { return };
        for event in events.iter().filter(|event| event.kind == EventKind::NewStation) {
            let member = Member::Station(Station::from(event.station));
            if fleet.parked.waits(&member, &self.controller) {
                fleet.parked.ask(member);
            }
        }
    }

    /// Finds out where things are, and asks for what other edges have.
    pub(super) async fn look_up(&mut self, out: &mut Batch<ProviderEvent, Action>) -> Result<()> {
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        let mut asked = Vec::new();
        while asked.len() < ASKED_AT_ONCE
            && let Some(member) = fleet.parked.asked.pop_first()
        {
            if self.controller.place_of(member) == Place::Elsewhere {
                asked.push(member);
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let found = self.foundation.store.look_up(&asked).await?;
        let (ours, others): (Vec<_>, Vec<_>) =
            found.iter().partition(|found| found.edge == fleet.edge);
        let accounts = |found: Vec<&Found>| found.iter().map(|found| found.account).collect();
        fleet.parked.due = accounts(ours);
        let wanted: BTreeSet<_> = accounts(others);
        let known: BTreeSet<_> = found.iter().map(|found| found.member).collect();
        let absent: Vec<_> = asked.into_iter().filter(|member| !known.contains(member)).collect();
        let stations: Vec<_> = absent
            .iter()
            .filter_map(|member| match member {
                Member::Station(station) => Some(*station),
                Member::Channel(_) => None,
            })
            .collect();
        let asked: BTreeSet<_> =
            fleet.parked.requests.iter().filter_map(|parked| seats(&parked.envelope.ask)).collect();
        let to_claim: Vec<_> =
            stations.iter().filter(|station| asked.contains(station)).copied().collect();
        if !to_claim.is_empty() {
            fleet.parked.claimed.extend(self.foundation.store.claim(&to_claim).await?);
        }
        // Of what another edge is about to give an account it is asked again.
        let free = |member: &Member| match member {
            Member::Station(station) => {
                !asked.contains(station) || fleet.parked.claimed.contains(station)
            }
            Member::Channel(_) => true,
        };
        let absent: Vec<_> = absent.into_iter().filter(free).collect();
        fleet.parked.note_absent(absent.into_iter());
        if !wanted.is_empty() {
            let wanted: Vec<_> = wanted.into_iter().collect();
            self.foundation.store.want(&wanted).await?;
        }
        // Whoever pays for one that nobody pays for at present goes on from where it was.
        let parked = &fleet.parked.requests;
        let asks = |station: &Station| {
            let member = Member::Station(*station);
            parked.iter().any(|parked| members(&parked.envelope.ask).contains(&member))
        };
        let stations: Vec<_> = stations.into_iter().filter(asks).collect();
        if !stations.is_empty() {
            let readings = self.foundation.store.usage_of(&stations).await?;
            self.controller.handle(Input::Usage(readings), out);
        }
        Ok(())
    }
}
