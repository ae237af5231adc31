//! Puts the programs on the interfaces, and takes over where an earlier controller left them.

use std::{error::Error, io, path::Path};

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{
            self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError,
            TcHandle,
        },
    },
    sys::NetlinkError,
};
use serde::{Deserialize, Serialize};

use super::{
    DataplaneError, TcHook, UploadHook,
    choice::{self, Choice},
    host,
    pins::{self, Holder, LinkPin, Pins, Side},
    ports::{self, Port},
    programs::Programs,
};

/// Priority and handle of our filters under clsact: fixed, so that a later controller replaces the
/// filter instead of adding another.
pub(super) const CLSACT_PRIORITY: u16 = 0x426d;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Where a program was put, and why there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Puts the programs on ports, one instance's pins at a time. Where they are already, nothing
/// changes but the program, if it is another.
pub(super) struct Attacher<'a> {
    pub(super) programs: Programs<'a>,
    pub(super) pins: &'a Pins,
    /// Attachments that were pinned before.
    pub(super) pinned: Vec<LinkPin>,
    pub(super) namespace: u64,
    pub(super) tc_hook: TcHook,
}

impl Attacher<'_> {
    /// Meters what `port` receives.
    pub(super) fn upload(&mut self, port: &Port, wish: UploadHook) -> Result<Hook, DataplaneError> {
        let choice = choice::upload(port, wish, self.found(port, Side::Ingress))?;
        let or_tc = choice.or_tc;
        match self.upload_by(port, choice) {
            Err(DataplaneError::HookRefused { source, .. }) if or_tc => {
                let why = format!("the driver refuses native XDP ({})", root_cause(&*source));
                self.tc(port, Side::Ingress, "upload_tc", why)
            }
            other => other,
        }
    }

    fn upload_by(&mut self, port: &Port, choice: Choice) -> Result<Hook, DataplaneError> {
        let Choice { hook, why, warning, .. } = choice;
        let hook = match hook {
            HookKind::XdpNative => self.xdp(port, XdpMode::Driver, why)?,
            HookKind::XdpGeneric => self.xdp(port, XdpMode::Skb, why)?,
            HookKind::Tcx | HookKind::Clsact => self.tc(port, Side::Ingress, "upload_tc", why)?,
        };
        Ok(Hook { warning, ..hook })
    }

    /// Puts a TC program on one side of `port`.
    pub(super) fn tc(
        &mut self,
        port: &Port,
        side: Side,
        program: &'static str,
        why: String,
    ) -> Result<Hook, DataplaneError> {
        let wish = match self.tc_hook {
            TcHook::Auto => None,
            TcHook::Tcx => Some(Holder::Tcx),
            TcHook::Clsact => Some(Holder::Clsact),
        };
        let best = if host::has_tcx() { Holder::Tcx } else { Holder::Clsact };
        let found = self.found(port, side);
        let holder = wish.or(found).unwrap_or(best);
        if let Some(found) = found.filter(|found| *found != holder || *found == Holder::Xdp) {
            let interface = port.name.clone();
            return Err(DataplaneError::OtherHook { interface, found: found.name() });
        }
        let pin = self.pin(holder, port, side);
        let classifier = self.programs.classifier(program)?;
        let taken_over = if holder == Holder::Tcx {
            tcx(classifier, self.pins, &pin, port)?
        } else {
            clsact(classifier, self.pins, &pin, port)?
        };
        let kind = if holder == Holder::Tcx { HookKind::Tcx } else { HookKind::Clsact };
        let warning = None;
        Ok(Hook { interface: port.name.clone(), side, kind, why, warning, taken_over })
    }

    fn xdp(&mut self, port: &Port, mode: XdpMode, why: String) -> Result<Hook, DataplaneError> {
        let pin = self.pin(Holder::Xdp, port, Side::Ingress);
        let path = self.pins.link_path(&pin);
        let program = self.programs.xdp()?;
        let mut taken_over = false;
        if path.exists() {
            let link = pinned(&path)?;
            match program.attach_to_link(link.try_into().map_err(broken_link)?) {
                Ok(id) => {
                    // The pin holds the link; its descriptor is closed here.
                    drop(program.take_link(id)?);
                    taken_over = true;
                }
                Err(error) if is_gone(&error) => pins::remove(&path)?,
                Err(error) => return Err(error.into()),
            }
        }
        if !taken_over {
            let id = program
                .attach_to_if_index(port.index, mode)
                .map_err(|error| xdp_refused(port, mode, error))?;
            // Without a descriptor there is nothing to pin: the wrapper detaches and says so.
            let link: FdLink = program.take_link(id)?.try_into().map_err(broken_link)?;
            link.pin(&path)
                .map_err(|source| DataplaneError::Pin { path, source: Box::new(source) })?;
        }
        Ok(Hook {
            interface: port.name.clone(),
            side: Side::Ingress,
            kind: if mode == XdpMode::Skb { HookKind::XdpGeneric } else { HookKind::XdpNative },
            why,
            warning: None,
            taken_over,
        })
    }

    fn pin(&self, holder: Holder, port: &Port, side: Side) -> LinkPin {
        LinkPin { holder, side, namespace: self.namespace, index: port.index }
    }

    /// What holds our program on this side of the port since before.
    pub(super) fn found(&self, port: &Port, side: Side) -> Option<Holder> {
        let here = |pin: &LinkPin| {
            pin.side == side && pin.index == port.index && pin.namespace == self.namespace
        };
        self.pinned.iter().find(|pin| here(pin)).map(|pin| pin.holder)
    }
}

/// Takes one attachment away.
pub(super) fn detach(pins: &Pins, pin: &LinkPin, namespace: u64) -> Result<(), DataplaneError> {
    if pin.holder == Holder::Clsact && pin.namespace == namespace {
        // Dropping its link deletes the filter. Where interface or filter are gone, so be it.
        let interface = ports::name_of(pin.index)?;
        drop(interface.map(|interface| our_filter(&interface, pin.side)));
    }
    pins::remove(&pins.link_path(pin))
}

fn tcx(
    program: &mut SchedClassifier,
    pins: &Pins,
    pin: &LinkPin,
    port: &Port,
) -> Result<bool, DataplaneError> {
    let path = pins.link_path(pin);
    if path.exists() {
        let link = pinned(&path)?;
        match program.attach_to_link(link.try_into().map_err(broken_link)?) {
            Ok(id) => {
                drop(program.take_link(id)?);
                return Ok(true);
            }
            Err(error) if is_gone(&error) => pins::remove(&path)?,
            Err(error) => return Err(error.into()),
        }
    }
    // First: a program before ours that lets a frame pass would end the chain.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(&port.name, attach_type(pin.side), options)
        .map_err(|error| refused(port, "a tcx link", error))?;
    let link: FdLink = program.take_link(id)?.try_into().map_err(broken_link)?;
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
        // First, so that a filter without a pin is never ours.
        let pin_error =
            |source| DataplaneError::Pin { path: path.clone(), source: Box::new(source) };
        program.pin(&path).map_err(pin_error)?;
    }
    let replaced = if ours { replace_filter(program, pin.side, port)? } else { None };
    let taken_over = replaced.is_some();
    let id = match replaced {
        Some(id) => id,
        None => program
            .attach_with_options(
                &port.name,
                attach_type(pin.side),
                TcAttachOptions::Netlink(NlOptions {
                    priority: CLSACT_PRIORITY,
                    handle: CLSACT_HANDLE,
                    classid: None,
                }),
            )
            .map_err(|error| refused(port, "a clsact filter", error))?,
    };
    // The filter is to outlive this process; its link would delete it when dropped.
    std::mem::forget(program.take_link(id)?);
    Ok(taken_over)
}

/// Replaces the program of our filter in place; `None` when the filter is gone.
fn replace_filter(
    program: &mut SchedClassifier,
    side: Side,
    port: &Port,
) -> Result<Option<SchedClassifierLinkId>, DataplaneError> {
    let filter = our_filter(&port.name, side)
        .map_err(DataplaneError::system(format!("finding {}", port.name)))?;
    match program.attach_to_link(filter) {
        Ok(id) => Ok(Some(id)),
        Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(refused(port, "a clsact filter", error)),
    }
}

fn our_filter(interface: &str, side: Side) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(
        interface,
        attach_type(side),
        CLSACT_PRIORITY,
        CLSACT_HANDLE,
        None,
    )
}

fn attach_type(side: Side) -> TcAttachType {
    match side {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    }
}

fn pinned(path: &Path) -> Result<FdLink, DataplaneError> {
    PinnedLink::from_pin(path).map(FdLink::from).map_err(broken_link)
}

fn broken_link(error: LinkError) -> DataplaneError {
    DataplaneError::BrokenLink { source: Box::new(error) }
}

fn refused(port: &Port, hook: &'static str, source: ProgramError) -> DataplaneError {
    DataplaneError::HookRefused { interface: port.name.clone(), hook, source: Box::new(source) }
}

fn xdp_refused(port: &Port, mode: XdpMode, error: ProgramError) -> DataplaneError {
    let busy = matches!(os_error(&error), Some(libc::EBUSY | libc::EEXIST));
    match &port.xdp {
        Some(other) if busy => {
            let (interface, id, name) = (port.name.clone(), other.id, other.name.clone());
            DataplaneError::ForeignXdp { interface, id, name }
        }
        _ if mode == XdpMode::Skb => refused(port, "generic XDP", error),
        _ => refused(port, "native XDP", error),
    }
}

/// The link is there, but its interface is not.
fn is_gone(error: &ProgramError) -> bool {
    os_error(error) == Some(libc::ENOLINK)
}

fn root_cause(error: &(dyn Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

/// The kernel's own answer, under however many layers.
fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let number = match error.downcast_ref::<io::Error>() {
            Some(io_error) => io_error.raw_os_error(),
            None => error.downcast_ref::<NetlinkError>().and_then(NetlinkError::raw_os_error),
        };
        if number.is_some() {
            return number;
        }
        cause = error.source();
    }
    None
}
