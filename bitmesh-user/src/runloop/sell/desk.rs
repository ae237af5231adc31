//! Where a provider is asked: its sockets on the ports and for the operator, and the mailbox behind
//! them. It stays open while the store fails: who asks is told, and the ports are followed.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use anyhow::Result;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tracing::warn;

use super::{super::now, edge::edge_addresses, guarding::Guarding, told::Told};
use crate::{
    api::{
        Envelope, Front, Gate, MAILBOX_REQUESTS, Ops, listen_for_ops, listen_on, router,
        serve_admin, serve_lan, serve_ops,
    },
    config::SellConfig,
    dataplane::{Change, Dataplane},
    gateway::{Gateway, Interface},
    telemetry::upkeep,
};

pub(super) struct Desk {
    pub(super) front: Arc<Front>,
    pub(super) gate: Gate,
    pub(super) mailbox: mpsc::Receiver<Envelope>,
    pub(super) gateway: Gateway,
    /// Ports that are there, and the tasks that answer on them by index.
    pub(super) lan: Vec<Interface>,
    listeners: HashMap<u32, AbortHandle>,
    pub(super) edge_addresses: Vec<IpAddr>,
    api_port: u16,
    open: bool,
    tasks: JoinSet<()>,
}

impl Desk {
    /// Finds the ports; nobody is answered yet.
    pub(super) async fn new(config: &SellConfig) -> Result<Self> {
        let gateway = Gateway::open()?;
        let mut lan = Vec::new();
        for name in &config.lan {
            match gateway.addressed(name).await {
                // Ports of one bridge share its addresses.
                Ok(interface) if lan.contains(&interface) => {}
                Ok(interface) => lan.push(interface),
                // The guard tells when it is back.
                Err(error) => warn!("{error}"),
            }
        }
        let edge_addresses = edge_addresses(&gateway, &lan).await?;
        let (requests, mailbox) = mpsc::channel(MAILBOX_REQUESTS);
        Ok(Self {
            gate: Gate::new(requests.clone()),
            front: Front::new(requests, now()),
            mailbox,
            gateway,
            lan,
            listeners: HashMap::new(),
            edge_addresses,
            api_port: config.api_port,
            open: false,
            tasks: JoinSet::new(),
        })
    }

    /// Answers, from the first session on. Its data directory is locked by then.
    pub(super) async fn open(&mut self, config: &SellConfig) -> Result<()> {
        if std::mem::replace(&mut self.open, true) {
            return Ok(());
        }
        let (front, group) = (self.front.clone(), config.admin_group);
        self.tasks.spawn(serve_admin(&config.common.data_dir, front, group)?);
        self.tasks.spawn(upkeep());
        if let Some(address) = config.metrics {
            let listener = listen_for_ops(address, &config.lan).await?;
            self.tasks.spawn(serve_ops(listener, Ops::new(self.front.clone())));
        }
        for interface in std::mem::take(&mut self.lan) {
            self.serve(interface)?;
        }
        Ok(())
    }

    /// Answers stations on a port.
    fn serve(&mut self, lan: Interface) -> Result<()> {
        self.leave(lan.index);
        let listener = listen_on(&lan, self.api_port)?;
        let router = router(self.front.clone());
        let task =
            serve_lan(listener, lan.clone(), self.gateway.clone(), router, self.gate.clone());
        self.listeners.insert(lan.index, self.tasks.spawn(task));
        self.lan.push(lan);
        Ok(())
    }

    fn leave(&mut self, index: u32) {
        self.lan.retain(|lan| lan.index != index);
        if let Some(task) = self.listeners.remove(&index) {
            task.abort();
        }
    }

    /// Follows a port with what this process has on it.
    pub(super) async fn changed(
        &mut self,
        change: Change,
        guarding: &mut Guarding,
        told: &mut Told,
        dataplane: &mut Dataplane,
    ) {
        guarding.note(&change);
        match change {
            Change::Gone { index, .. } => {
                told.gone(index);
                self.leave(index);
            }
            Change::Renamed { interface, index, .. } => {
                for lan in self.lan.iter_mut().filter(|lan| lan.index == index) {
                    lan.name.clone_from(&interface);
                }
            }
            Change::Attached { interface, index, .. } => {
                let lan = Interface { index, name: interface };
                if let Err(error) = self.serve(lan) {
                    warn!("{error:#}");
                }
            }
            Change::Restored { .. } | Change::BeltRestored | Change::Failed { .. } => return,
        }
        if let Err(error) = dataplane.set_ports(&guarding.ports()) {
            warn!("the programs don't know the new port yet: {error}");
        }
        self.read_addresses(dataplane).await;
    }

    /// Reads the box's addresses again; whether they are others.
    pub(super) async fn read_addresses(&mut self, dataplane: &mut Dataplane) -> bool {
        let found = match edge_addresses(&self.gateway, &self.lan).await {
            Ok(found) => found,
            Err(error) => {
                warn!("{error}");
                return false;
            }
        };
        if found == self.edge_addresses {
            return false;
        }
        match dataplane.set_edge(&found, self.api_port) {
            Ok(()) => {
                self.edge_addresses = found;
                true
            }
            Err(error) => {
                warn!("the box's new addresses are not free yet: {error}");
                false
            }
        }
    }

    /// Lets go of what nobody will answer: who waits is told why.
    pub(super) fn refuse_waiting(&mut self) {
        while self.mailbox.try_recv().is_ok() {}
    }

    /// Ends every task.
    pub(super) async fn close(&mut self) {
        self.tasks.shutdown().await;
    }
}
