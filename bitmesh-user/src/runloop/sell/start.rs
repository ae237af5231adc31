//! What takes rights, done once and before anything else: programs onto ports, the guard, and then
//! no rights any more.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use tracing::{info, warn};

use super::{
    super::unlock,
    answer::hook_name,
    edge::{edge_addresses, options, warn_unless_forwarding},
};
use crate::{
    api::ADMIN_SOCKET,
    config::{NodeLogin, SellConfig, SourceConfig},
    dataplane::Dataplane,
    gateway::Gateway,
    guard::{self, GuardArgs, Identity, Started},
    store,
    wallet::{self, Seed},
};

/// Ports below this one take a capability to listen on.
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Name of the file in the data directory that is there once it was sold from.
const SOLD: &str = "sold";

/// A provider with everything open and no rights left.
pub struct Ready {
    pub(super) config: SellConfig,
    pub(super) dataplane: Dataplane,
    pub(super) guard: Started,
    pub(super) seed: Seed,
}

/// Opens what takes rights, starts the guard and gives the rights up. There must not be a runtime
/// yet: rights are a thread's.
pub fn prepare(config: SellConfig) -> Result<Ready> {
    let identity = Identity::choose(config.user.as_deref(), &config.instance)?;
    if identity.is_some() {
        check_port(config.api_port)?;
    }
    store::check_unlocked(&config.common.data_dir)?;
    if let Some(identity) = &identity {
        let files = [&[ADMIN_SOCKET, SOLD][..], &store::FILES, &wallet::seed::FILES].concat();
        guard::hand_over(&config.common.data_dir, &files, identity)?;
    }
    let seed = unlock(&config.common)?;
    warn_unless_forwarding();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let edge_addresses = runtime.block_on(async {
        let gateway = Gateway::open()?;
        let mut lan = Vec::new();
        for name in &config.lan {
            lan.push(gateway.interface(name).await?);
        }
        if let Some(wan) = &config.wan {
            gateway.interface(wan).await?;
        }
        edge_addresses(&gateway, &lan).await
    })?;
    drop(runtime);
    let dataplane = Dataplane::open(&options(&config, &edge_addresses))?;
    for hook in dataplane.hooks() {
        info!("{}: {} ({})", hook.interface, hook_name(hook), hook.why);
        if let Some(warning) = &hook.warning {
            warn!("{}: {warning}", hook.interface);
        }
    }
    // Only who never sold finds a network that works when the start fails.
    let has_sold = config.common.data_dir.join(SOLD).exists();
    let on_trial = dataplane.is_new() && !has_sold;
    if dataplane.is_new() && has_sold {
        info!(
            "from now on stations pass what they paid for alone, also if this start fails; `bitmesh sell \
             --detach` lets everybody pass"
        );
    }
    let args = GuardArgs {
        instance: config.instance.clone(),
        lan: config.lan.clone(),
        upload_hook: config.upload_hook,
        node_cookie: match &config.common.source {
            SourceConfig::Node { login: NodeLogin::Cookie(path), .. } => Some(path.clone()),
            _ => None,
        },
        on_trial,
        log: config.settings.common.log.clone(),
        log_format: config.settings.common.log_format,
    };
    let guard = match guard::start(&args, dataplane.hold()?) {
        Err(error) if on_trial => {
            dataplane.detach()?;
            return Err(error);
        }
        started => started?,
    };
    guard::give_up(identity.as_ref(), config.admin_group).context("giving up rights")?;
    if let Some(identity) = identity {
        info!("running as user {} without capabilities", identity.name());
    }
    Ok(Ready { config, dataplane, guard, seed })
}

/// Notes that it was sold from a data directory: a start that fails later leaves its ports shut.
pub(super) fn note_sold(directory: &Path) {
    let path = directory.join(SOLD);
    if path.exists() {
        return;
    }
    let noted = File::create(&path).and_then(|file| file.sync_all());
    if let Err(error) = noted.and_then(|()| File::open(directory)?.sync_all()) {
        warn!("{}: {error}; a start that fails after a boot would open the ports", path.display());
    }
}

fn check_port(port: u16) -> Result<()> {
    let text = fs::read_to_string(UNPRIVILEGED_PORTS);
    let first: u16 = text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1_024);
    if port < first {
        bail!(
            "--api-port {port} takes rights that are given up at start: take {first} or more, or \
             `sysctl -w net.ipv4.ip_unprivileged_port_start={port}`"
        );
    }
    Ok(())
}
