//! A subscriber's own count of what it used, by the provider's rule.

use std::{net::IpAddr, os::fd::AsFd, sync::atomic::Ordering};

use aya::{
    EbpfLoader,
    maps::{Array, Map},
};
use bitmesh_common::{Mac, OBSERVED_MAP, OBSERVER_MAP, Observed, ObserverConfig, STATIONS_MAP};

use super::{
    DataplaneError, Hook, TcHook,
    hooks::{self, Attacher},
    host,
    memory::{Memory, ObserverValue},
    object,
    pins::{Pins, Side},
    ports::Port,
    programs::Programs,
};

const WORDS: usize = size_of::<Observed>() / size_of::<u64>();
const UP: usize = std::mem::offset_of!(Observed, up_octets) / size_of::<u64>();
const DOWN: usize = std::mem::offset_of!(Observed, down_octets) / size_of::<u64>();

/// Two programs on a subscriber's interface that count and never drop. They stay when the process
/// is killed, and go when this is dropped.
pub struct Observer {
    memory: Memory,
    hooks: Vec<Hook>,
    resumed: bool,
    namespace: u64,
    pins: Option<Pins>,
}

impl Observer {
    /// Counts the unicast IP frames of `interface`, but those with `provider_addresses`. With a
    /// `provider_mac`, only frames to and from that neighbour count: on a shared LAN the others do
    /// not go through the provider.
    ///
    /// Takes over the count that an earlier process of the same instance left.
    pub fn open(
        instance: &str,
        interface: &str,
        provider_addresses: &[IpAddr],
        provider_mac: Option<Mac>,
    ) -> Result<Self, DataplaneError> {
        host::check()?;
        let port = Port::find(interface)?;
        let config = ObserverConfig {
            provider: object::config(provider_addresses, 0)?,
            provider_mac: provider_mac.map_or(0, Mac::bits),
        };
        let namespace = host::namespace()?;
        let pins = Pins::of_observer(instance)?;
        let resumed = pins.path(OBSERVED_MAP).exists();
        match attach(&pins, &port, &config, namespace) {
            Ok((memory, hooks)) => Ok(Self { memory, hooks, resumed, namespace, pins: Some(pins) }),
            Err(error) => {
                clear(pins, namespace)?;
                Err(error)
            }
        }
    }

    /// L3 octets sent and received through the provider since the count began.
    pub fn read(&self) -> (u64, u64) {
        let at = |word| self.memory.word(word).map_or(0, |octets| octets.load(Ordering::Relaxed));
        (at(UP), at(DOWN))
    }

    /// Whether the count began in an earlier process, and went on in between.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// What was put where.
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.pins.take().map(|pins| clear(pins, self.namespace)) {
            tracing::warn!(%error, "the subscriber's own count was left attached");
        }
    }
}

fn attach(
    pins: &Pins,
    port: &Port,
    config: &ObserverConfig,
    namespace: u64,
) -> Result<(Memory, Vec<Hook>), DataplaneError> {
    let mut object = EbpfLoader::new()
        .btf(None)
        // Not used here, and 16 MiB at its usual size.
        .map_max_entries(STATIONS_MAP, 1)
        .map_pin_path(OBSERVED_MAP, pins.path(OBSERVED_MAP))
        .map_pin_path(OBSERVER_MAP, pins.path(OBSERVER_MAP))
        .load(object::OBJECT)?;
    let mut settings = Array::try_from(object::take_map(&mut object, OBSERVER_MAP)?)?;
    settings.set(0, ObserverValue(*config), 0)?;
    let Map::Array(map) = object::take_map(&mut object, OBSERVED_MAP)? else {
        return Err(DataplaneError::ObjectLacks { name: OBSERVED_MAP });
    };
    let memory = Memory::of_map(map.fd().as_fd(), WORDS)
        .map_err(DataplaneError::system("mapping the subscriber's own count"))?;

    let mut attacher = Attacher {
        programs: Programs::Object(&mut object),
        pins,
        pinned: pins.links()?,
        namespace,
        tc_hook: TcHook::Auto,
    };
    let why = || "counts what the provider bills".to_owned();
    let hooks = vec![
        attacher.tc(port, Side::Egress, "observe_up", why())?,
        attacher.tc(port, Side::Ingress, "observe_down", why())?,
    ];
    for pin in pins.links()? {
        if pin.namespace != namespace || pin.index != port.index {
            hooks::detach(pins, &pin, namespace)?;
        }
    }
    Ok((memory, hooks))
}

fn clear(pins: Pins, namespace: u64) -> Result<(), DataplaneError> {
    for pin in pins.links()? {
        hooks::detach(&pins, &pin, namespace)?;
    }
    pins.clear()
}
