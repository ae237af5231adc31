//! What a ledger that edges share can do beside what every ledger does.

use std::{collections::HashMap, time::Duration};

use bitcoin::{BlockHash, hashes::Hash as _};
use bitmesh_common::StationKey;
use bitmesh_core::{
    account::AccountId,
    bitcoin,
    channel::{ChannelId, Compact as _, Entry, ProviderEvent},
    fleet::{EdgeNumber, LateId, Member, Taken},
    ledger::Usage,
    station::Station,
    units::Octets,
};

use super::{
    Store, StoreError,
    engine::UsageRow,
    journal::{Tail, usage_digest},
    load::{damaged, decode, missing, unfold, usage},
    postgres::{Beat, EdgeRow, PostgresEngine, TakenRows},
};

/// Whose a channel or a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What was asked for.
    pub member: Member,
    /// Its account.
    pub account: AccountId,
    /// The edge that has the account.
    pub edge: EdgeNumber,
}

impl Store {
    pub(super) fn database(&mut self) -> Result<&mut PostgresEngine, StoreError> {
        self.engine.fleet().ok_or(StoreError::NoFleet)
    }

    /// This edge's number in its fleet.
    pub fn edge(&mut self) -> Result<EdgeNumber, StoreError> {
        self.database()?.edge_number()
    }

    /// Whether another edge took over this one's accounts, until [`Self::seizure_over`]: what its
    /// kernel still has of them is void.
    pub fn seized(&mut self) -> Result<bool, StoreError> {
        Ok(self.database()?.seized())
    }

    /// What stations of those accounts had used in their lives by what was written down at that time,
    /// in octets; nothing, once it was told what the kernel has.
    pub async fn untold(&mut self) -> Result<Vec<(LateId, Octets)>, StoreError> {
        self.database()?.untold().await
    }

    /// Tells what they used beyond that, each once; those that are left out used nothing. After an error the
    /// rest is still to be told.
    /// The edges that have their accounts hear of it in return for a sign of life.
    pub async fn tell_late(&mut self, late: &[(LateId, Octets)]) -> Result<(), StoreError> {
        self.database()?.tell_late(late).await
    }

    /// The kernel has nothing any more of what was taken over.
    pub async fn seizure_over(&mut self) -> Result<(), StoreError> {
        self.database()?.seizure_over().await
    }

    /// Claims stations that nobody pays for before they are given an account here: those that no
    /// other edge has claimed.
    pub async fn claim(&mut self, stations: &[Station]) -> Result<Vec<Station>, StoreError> {
        let mut keys: Vec<_> =
            stations.iter().map(|station| station.key().raw().cast_signed()).collect();
        keys.sort_unstable();
        let claimed = self.database()?.claim(&keys).await?;
        let ours = |key: &i64| StationKey::from_raw(key.cast_unsigned()).map(Station::from);
        Ok(claimed.iter().filter_map(ours).collect())
    }

    /// Index of the next key that this edge may give a channel, as it was told last.
    pub async fn next_key_index(&mut self) -> Result<u32, StoreError> {
        let next = self.database()?.next_key().await?;
        u32::try_from(next).map_err(|_| self.damaged(format!("a key's index of {next}")))
    }

    /// The number whose keys this edge gives channels ([`EdgeNumber::keys`]): its own, or the newest that
    /// it took.
    pub async fn keys(&mut self) -> Result<EdgeNumber, StoreError> {
        self.database()?.keys().await
    }

    /// Takes the keys of another number, which no edge has or gets; `None` when all are taken.
    pub async fn fresh_keys(&mut self) -> Result<Option<EdgeNumber>, StoreError> {
        self.database()?.fresh_keys().await
    }

    /// Others wait for this long from now on before they take over. To be called once nothing in force was
    /// granted for longer: until then they wait for as long as an earlier start said, if that was more.
    pub async fn note_hold(&mut self, hold: Duration) -> Result<(), StoreError> {
        self.database()?.note_hold(hold).await
    }

    /// Gives a sign of life, and hears what goes on in the fleet. [`StoreError::Fenced`] when another
    /// took over.
    pub async fn renew(&mut self) -> Result<Beat, StoreError> {
        self.database()?.renew().await
    }

    /// Whose these are. What is nobody's is left out.
    pub async fn look_up(&mut self, members: &[Member]) -> Result<Vec<Found>, StoreError> {
        let (mut channels, mut stations) = (Vec::new(), Vec::new());
        for member in members {
            match member {
                Member::Channel(channel) => channels.push(*channel.as_bytes()),
                Member::Station(station) => stations.push(station.key().raw().cast_signed()),
            }
        }
        let (channels, stations) = self.database()?.look_up(&channels, &stations).await?;
        let mut found = Vec::with_capacity(channels.len() + stations.len());
        for (channel, account, edge) in channels {
            let member = Member::Channel(ChannelId::from_bytes(channel));
            let account = ChannelId::from_bytes(account).into();
            found.push(Found { member, account, edge: self.database()?.number(edge)? });
        }
        for (key, account, edge) in stations {
            let station = StationKey::from_raw(key.cast_unsigned()).map(Station::from);
            let station = station.ok_or_else(|| self.damaged("a station".into()))?;
            let account = ChannelId::from_bytes(account).into();
            let edge = self.database()?.number(edge)?;
            found.push(Found { member: Member::Station(station), account, edge });
        }
        Ok(found)
    }

    /// What stations used in their lives, at whatever edge.
    pub async fn usage_of(
        &mut self,
        stations: &[Station],
    ) -> Result<Vec<(Station, Usage)>, StoreError> {
        let keys: Vec<_> =
            stations.iter().map(|station| station.key().raw().cast_signed()).collect();
        let rows = self.database()?.usage_of(&keys).await?;
        self.readings(&rows)
    }

    fn readings(&self, rows: &[UsageRow]) -> Result<Vec<(Station, Usage)>, StoreError> {
        let read = |row: &UsageRow| match usage::<ProviderEvent>(row) {
            Some(Entry::Usage { station, usage }) => Ok((station, usage)),
            _ => Err(damaged(self.engine.as_ref(), "a station".into())),
        };
        rows.iter().map(read).collect()
    }

    /// Asks the edges that have these accounts to hand them over: how many were asked for. Who asks
    /// first gets an account first.
    pub async fn want(&mut self, accounts: &[AccountId]) -> Result<u64, StoreError> {
        let accounts: Vec<_> = accounts.iter().map(|id| *id.channel().as_bytes()).collect();
        self.database()?.want(&accounts).await
    }

    /// Accounts that came here, by the blocks that they saw, with every digest checked.
    ///
    /// # Panics
    /// When what is there was not loaded.
    pub async fn take(&mut self, accounts: &[AccountId]) -> Result<Vec<Taken>, StoreError> {
        assert!(self.loaded, "a ledger is loaded before accounts come");
        let accounts: Vec<_> = accounts.iter().map(|id| *id.channel().as_bytes()).collect();
        let groups = self.database()?.take(&accounts).await?;
        groups.into_iter().map(|rows| self.taken(&rows)).collect()
    }

    fn taken(&mut self, rows: &TakenRows) -> Result<Taken, StoreError> {
        let mut tails = HashMap::new();
        let mut events = Vec::new();
        for row in &rows.channels {
            let channel = ChannelId::from_bytes(row.channel);
            let n = u32::try_from(row.n);
            let n = n.map_err(|_| self.damaged("a number of events".into()))?;
            tails.insert(row.channel, Tail { n, digest: row.digest });
            let unfolded = unfold::<ProviderEvent>(row).map_err(|what| self.damaged(what))?;
            events.extend(unfolded.into_iter().map(|(seq, event)| (seq, channel, event)));
        }
        for row in &rows.journal {
            let tail = tails.entry(row.channel).or_insert_with(|| Tail::start(&row.channel));
            if i64::from(tail.n) != row.n {
                let what = missing(row, tail.n);
                return Err(self.damaged(what));
            }
            let event = decode(row, &tail.digest).map_err(|what| self.damaged(what))?;
            *tail = Tail { n: tail.n.saturating_add(1), digest: row.digest };
            events.push((row.seq, ChannelId::from_bytes(row.channel), event));
        }
        events.sort_by_key(|(seq, ..)| *seq);
        let usage = self.readings(&rows.usage)?;
        let mut tips = Vec::with_capacity(rows.tips.len());
        for (height, hash) in &rows.tips {
            let number = u32::try_from(*height);
            let height = number.map_err(|_| self.damaged(format!("a height of {height}")))?;
            tips.push((height, BlockHash::from_byte_array(*hash)));
        }
        for (_, _, event) in &events {
            if let Some(index) = event.key_index() {
                self.known.key_taken(index);
            }
        }
        self.known.newest.remove(tails.keys());
        self.known.tails.extend(tails);
        self.known.usage.extend(rows.usage.iter().map(|row| (row[0], usage_digest(row))));
        self.known.journal_rows += rows.journal.len() as u64;
        let accounts = rows.accounts.iter().map(|id| ChannelId::from_bytes(*id).into()).collect();
        let events = events.into_iter().map(|(_, channel, event)| (channel, event)).collect();
        Ok(Taken { accounts, events, usage, tips })
    }

    /// Fences an edge that was not heard of since, so that [`Self::seize`] takes its accounts; its epoch is
    /// one more then. Nothing is done, and `false` returned, when it gave a sign of life meanwhile. How long
    /// it has to be silent before is the caller's to judge.
    pub async fn fence(&mut self, edge: &EdgeRow) -> Result<bool, StoreError> {
        let number = i64::from(edge.number.get());
        self.database()?.fence(number, edge.epoch, edge.beat).await
    }

    /// Takes some accounts of an edge that was fenced and has shown this epoch and beat since, which arrive as
    /// others do: how many. Less than `limit`, when it has no more, or has begun anew.
    pub async fn seize(&mut self, fenced: &EdgeRow, limit: u32) -> Result<u64, StoreError> {
        let (number, seen) = (i64::from(fenced.number.get()), (fenced.epoch, fenced.beat));
        self.database()?.seize(number, seen, i64::from(limit)).await
    }

    /// Every edge of the fleet.
    pub async fn edges(&mut self) -> Result<Vec<EdgeRow>, StoreError> {
        self.database()?.edges().await
    }

    /// How many accounts each edge has, for status; one that has none is left out.
    pub async fn account_counts(&mut self) -> Result<Vec<(EdgeNumber, u64)>, StoreError> {
        self.database()?.counts().await
    }
}
