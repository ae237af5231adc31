//! Looks at all servers beside the loop, where several are named: two that both take writes are noticed,
//! and the one that was promoted later is gone to.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::sleep};
use tracing::warn;

use super::{
    Address, Server,
    connect::{close, look_at_all},
};

/// Servers that took writes when they were asked last.
type Seen = Arc<Mutex<Vec<Server>>>;

/// What is seen. It ends when dropped.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Seen,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks every `interval`, if there is more than one host.
    pub(super) fn begin(address: &Address, interval: Duration) -> Self {
        let seen = Seen::default();
        let several = address.hosts().len() > 1;
        let task = several.then(|| tokio::spawn(look(address.clone(), interval, seen.clone())));
        Self { seen, task }
    }

    /// Whether another server was promoted after this one was.
    pub(super) fn is_replaced(&self, server: &Server) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().any(|other| follows(other, server))
    }

    /// What a host said of itself last, if it was asked.
    pub(super) fn last(&self, host: &str) -> Option<Server> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().find(|server| server.host == host).cloned()
    }

    /// Servers that take writes although another was promoted after them.
    pub(super) fn replaced(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let old = seen.iter().filter(|old| seen.iter().any(|new| follows(new, old)));
        old.map(|old| old.host.clone()).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn follows(new: &Server, old: &Server) -> bool {
    let histories = new.history.as_ref().zip(old.history.as_ref());
    histories.is_some_and(|(new, old)| new.system == old.system && new.timeline > old.timeline)
}

async fn look(address: Address, interval: Duration, seen: Seen) {
    let mut told = false;
    loop {
        sleep(interval).await;
        let mut servers = Vec::new();
        for (_, looked) in look_at_all(&address).await {
            if let Ok(connected) = looked {
                servers.push(connected.server);
                let _ = close(connected.connection).await;
            }
        }
        let two = servers.iter().any(|new| servers.iter().any(|old| follows(new, old)));
        if two && !std::mem::replace(&mut told, two) {
            let hosts: Vec<_> = servers.iter().map(|server| server.host.as_str()).collect();
            warn!(
                "{} both take writes: the one that was promoted last is used; stop the other",
                hosts.join(" and ")
            );
        }
        told &= two;
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }
}
