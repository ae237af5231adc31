//! Puts the programs on the interfaces, and takes over where an earlier controller left them.

use std::io;

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
        loaded_programs,
    },
    sys::SyscallError,
};
use serde::Serialize;

use super::{
    DataplaneError, TcHook, UploadHook, host,
    pins::{Holder, LinkPin, Pins, Side},
    ports::Port,
};

/// Priority and handle of our filters under clsact: fixed, so that a later controller replaces the
/// filter instead of adding another.
const CLSACT_PRIORITY: u16 = 0x426d;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Where a program was put, and why there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// The interface.
    pub interface: String,
    /// Which frames it sees: a LAN port receives what stations upload and sends their downloads.
    pub side: Side,
    /// The kind of hook.
    pub kind: HookKind,
    /// Why this kind, in words for the operator.
    pub why: String,
    /// What the operator should know about this choice, if anything.
    pub warning: Option<String>,
    /// Whether a program of an earlier controller was replaced in its place.
    pub taken_over: bool,
}

/// Kinds of hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    /// XDP in the driver.
    XdpNative,
    /// XDP after the driver, on socket buffers.
    XdpGeneric,
    /// TC, held by a link (Linux 6.6).
    Tcx,
    /// TC, as a filter of the clsact queueing discipline.
    Clsact,
}

const GENERIC_WARNING: &str = "generic XDP sees merged packets as one and counts fewer headers than \
     were on the wire; use `--upload-hook tc` unless this is a test";

/// Puts the programs on ports, one instance's pins at a time.
pub(super) struct Attacher<'a> {
    pub(super) object: &'a mut Ebpf,
    pub(super) pins: &'a Pins,
    pub(super) namespace: u64,
    pub(super) tc_hook: TcHook,
}

impl Attacher<'_> {
    /// Meters what `port` receives.
    pub(super) fn upload(&mut self, port: &Port, wish: UploadHook) -> Result<Hook, DataplaneError> {
        let found = self.found(port, Side::Ingress)?;
        match (wish, found) {
            (UploadHook::Auto, Some(Holder::Xdp)) => self.xdp(port, None),
            (UploadHook::Auto, Some(_)) => {
                self.tc(port, Side::Ingress, "upload_tc", "kept from an earlier run".to_owned())
            }
            (UploadHook::Auto, None) => self.upload_by_kind(port),
            (UploadHook::XdpNative, None | Some(Holder::Xdp)) => {
                self.xdp(port, Some(XdpMode::Driver))
            }
            (UploadHook::XdpGeneric, None | Some(Holder::Xdp)) => {
                self.xdp(port, Some(XdpMode::Skb))
            }
            (UploadHook::Tc, None | Some(Holder::Tcx | Holder::Clsact)) => {
                self.tc(port, Side::Ingress, "upload_tc", "asked for".to_owned())
            }
            (_, Some(found)) => Err(DataplaneError::OtherHook {
                interface: port.name.clone(),
                found: found.name(),
            }),
        }
    }

    /// Native XDP where the port is real and its driver can; TC elsewhere.
    fn upload_by_kind(&mut self, port: &Port) -> Result<Hook, DataplaneError> {
        if let Some(kind) = &port.kind {
            let why = format!("{kind} is virtual: XDP there would turn segmentation offload off");
            return self.tc(port, Side::Ingress, "upload_tc", why);
        }
        match self.xdp(port, Some(XdpMode::Driver)) {
            Err(DataplaneError::HookRefused { source, .. }) => {
                let why = format!("the driver has no native XDP ({})", innermost(&source));
                self.tc(port, Side::Ingress, "upload_tc", why)
            }
            other => other,
        }
    }

    /// Puts a TC program on one side of `port`.
    pub(super) fn tc(
        &mut self,
        port: &Port,
        side: Side,
        program: &'static str,
        why: String,
    ) -> Result<Hook, DataplaneError> {
        let holder = match (self.found(port, side)?, self.tc_hook) {
            (Some(Holder::Xdp), _) => {
                let interface = port.name.clone();
                return Err(DataplaneError::OtherHook { interface, found: Holder::Xdp.name() });
            }
            (Some(found), TcHook::Auto) => found,
            (None, TcHook::Auto) if host::has_tcx() => Holder::Tcx,
            (None, TcHook::Auto) => Holder::Clsact,
            (None | Some(Holder::Tcx), TcHook::Tcx) => Holder::Tcx,
            (None | Some(Holder::Clsact), TcHook::Clsact) => Holder::Clsact,
            (Some(found), _) => {
                let interface = port.name.clone();
                return Err(DataplaneError::OtherHook { interface, found: found.name() });
            }
        };
        let pin = self.pin(holder, port, side);
        let classifier = classifier(self.object, program)?;
        let taken_over = if holder == Holder::Tcx {
            tcx(classifier, self.pins, &pin, port)?
        } else {
            clsact(classifier, self.pins, &pin, port)?
        };
        let kind = if holder == Holder::Tcx { HookKind::Tcx } else { HookKind::Clsact };
        let warning = None;
        Ok(Hook { interface: port.name.clone(), side, kind, why, warning, taken_over })
    }

    fn xdp(&mut self, port: &Port, mode: Option<XdpMode>) -> Result<Hook, DataplaneError> {
        let pin = self.pin(Holder::Xdp, port, Side::Ingress);
        let path = self.pins.link_path(&pin);
        let program: &mut Xdp = self
            .object
            .program_mut("upload_xdp")
            .ok_or(DataplaneError::ObjectLacks { name: "upload_xdp" })?
            .try_into()?;
        load_once(program.fd().is_ok(), || program.load())?;

        let mut taken_over = false;
        if path.exists() {
            let link = pinned(&path)?.try_into().map_err(ProgramError::from)?;
            match program.attach_to_link(link) {
                Ok(_) => taken_over = true,
                Err(error) if os_error(&error) == Some(libc::ENOLINK) => self.pins.remove(&path)?,
                Err(error) => return Err(error.into()),
            }
        }
        if !taken_over {
            let mode = mode.unwrap_or(XdpMode::Driver);
            let id = program
                .attach_to_if_index(port.index, mode)
                .map_err(|error| xdp_refused(port, mode, error))?;
            // Without a descriptor there is nothing to pin: the wrapper detaches and says so.
            let link: FdLink = program
                .take_link(id)?
                .try_into()
                .map_err(|error: LinkError| xdp_refused(port, mode, error.into()))?;
            link.pin(&path)
                .map_err(|source| DataplaneError::Pin { path, source: Box::new(source) })?;
        }
        let now = Port::find(&port.name)?;
        let generic = now.xdp.is_some_and(|xdp| xdp.generic);
        Ok(Hook {
            interface: port.name.clone(),
            side: Side::Ingress,
            kind: if generic { HookKind::XdpGeneric } else { HookKind::XdpNative },
            why: match (taken_over, mode, &port.kind) {
                (true, None, _) => "kept from an earlier run".to_owned(),
                (_, _, None) if !generic => "a real port whose driver has native XDP".to_owned(),
                _ => "asked for".to_owned(),
            },
            warning: match &port.kind {
                _ if generic => Some(GENERIC_WARNING.to_owned()),
                Some(kind) => Some(format!(
                    "native XDP on {kind} turns segmentation offload off; TC is faster there"
                )),
                None => None,
            },
            taken_over,
        })
    }

    fn pin(&self, holder: Holder, port: &Port, side: Side) -> LinkPin {
        LinkPin { holder, side, namespace: self.namespace, index: port.index }
    }

    /// What holds our program on this side of the port since before.
    fn found(&self, port: &Port, side: Side) -> Result<Option<Holder>, DataplaneError> {
        let here = |pin: &LinkPin| {
            pin.side == side && pin.index == port.index && pin.namespace == self.namespace
        };
        Ok(self.pins.links()?.into_iter().find(here).map(|pin| pin.holder))
    }
}

/// Takes one attachment away.
pub(super) fn detach(pins: &Pins, pin: &LinkPin, namespace: u64) -> Result<(), DataplaneError> {
    if pin.holder == Holder::Clsact
        && pin.namespace == namespace
        && let Some(interface) = rustix_name(pin.index)
        && let Ok(filter) = our_filter(&interface, pin.side)
    {
        // Dropping the link deletes the filter; one that is gone already is as good.
        drop(filter);
    }
    pins.remove(&pins.link_path(pin))
}

fn tcx(
    program: &mut SchedClassifier,
    pins: &Pins,
    pin: &LinkPin,
    port: &Port,
) -> Result<bool, DataplaneError> {
    let path = pins.link_path(pin);
    if path.exists() {
        let link: SchedClassifierLink = pinned(&path)?.try_into().map_err(ProgramError::from)?;
        match program.attach_to_link(link) {
            Ok(_) => return Ok(true),
            Err(error) if os_error(&error) == Some(libc::ENOLINK) => pins.remove(&path)?,
            Err(error) => return Err(error.into()),
        }
    }
    // First on the way in and last on the way out: what another program drops is not billed.
    let order = match pin.side {
        Side::Ingress => LinkOrder::last(),
        Side::Egress => LinkOrder::last(),
    };
    let id = program
        .attach_with_options(&port.name, attach_type(pin.side), TcAttachOptions::TcxOrder(order))
        .map_err(|error| refused(port, "a tcx link", error))?;
    let link: FdLink = program.take_link(id)?.try_into().map_err(ProgramError::from)?;
    link.pin(&path).map_err(|source| DataplaneError::Pin { path, source: Box::new(source) })?;
    Ok(false)
}

fn clsact(
    program: &mut SchedClassifier,
    pins: &Pins,
    pin: &LinkPin,
    port: &Port,
) -> Result<bool, DataplaneError> {
    match tc::qdisc_add_clsact(&port.name) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => other.map_err(|error| refused(port, "clsact", error.into()))?,
    }
    let path = pins.link_path(pin);
    let ours = path.exists();
    if !ours {
        program
            .pin(&path)
            .map_err(|source| DataplaneError::Pin { path: path.clone(), source: Box::new(source) })?;
    }
    let filter = our_filter(&port.name, pin.side)
        .map_err(DataplaneError::system(format!("finding {}", port.name)))?;
    let replaced = if ours { program.attach_to_link(filter) } else {
        std::mem::forget(filter);
        Err(ProgramError::NotAttached)
    };
    let (id, taken_over) = match replaced {
        Ok(id) => (id, true),
        Err(_) => {
            let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
            let options = TcAttachOptions::Netlink(options);
            let attached =
                program.attach_with_options(&port.name, attach_type(pin.side), options);
            (attached.map_err(|error| refused(port, "a clsact filter", error))?, false)
        }
    };
    // The filter is to outlive this process, and its link deletes it when dropped.
    std::mem::forget(program.take_link(id)?);
    Ok(taken_over)
}
