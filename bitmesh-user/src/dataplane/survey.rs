//! Looks without touching: whether the programs load here, and what else is at TC.

use aya::{
    EbpfLoader,
    programs::{Program, SchedClassifier, TcAttachType},
};
use bitmesh_common::STATIONS_MAP;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};

use super::{DataplaneError, HookKind, Port, choice, hooks, host, netlink, object, pins::Side};

/// Slots of the table that programs are tried with; it goes with them.
const TRIAL_SLOTS: u32 = 16;

/// A program at TC that is not BitMesh's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcProgram {
    /// Where it is.
    pub side: Side,
    /// What holds it.
    pub hook: HookKind,
    /// Its name, or the filter's kind.
    pub name: String,
}

/// Has the kernel check every program, and lets them go again: nothing is attached or pinned. Returns
/// whether they were made machine code.
pub fn try_programs() -> Result<bool, DataplaneError> {
    let mut object = EbpfLoader::new()
        .btf(None)
        .map_max_entries(STATIONS_MAP, TRIAL_SLOTS)
        .load(object::OBJECT)?;
    let mut jitted = true;
    for (_, program) in object.programs_mut() {
        match program {
            Program::Xdp(program) => program.load()?,
            Program::SchedClassifier(program) => program.load()?,
            _ => {}
        }
        jitted &= program.info()?.size_jitted() > 0;
    }
    Ok(jitted)
}

/// Whether these ports can be metered side by side.
pub fn check_together(ports: &[Port]) -> Result<(), DataplaneError> {
    choice::check_together(ports)
}

/// Programs and filters of others at TC on a port. Needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.
pub fn tc_programs(port: &Port) -> Result<Vec<TcProgram>, DataplaneError> {
    let mut found = Vec::new();
    let sides = [
        (Side::Ingress, TcAttachType::Ingress, TcHandle::MIN_INGRESS),
        (Side::Egress, TcAttachType::Egress, TcHandle::MIN_EGRESS),
    ];
    for (side, attach_type, parent) in sides {
        if host::has_tcx() {
            let (_, programs) = SchedClassifier::query_tcx(&port.name, attach_type)?;
            let names = programs.iter().map(|p| p.name_as_str().unwrap_or("without a name"));
            let others = names.filter(|name| !is_ours(name));
            found.extend(others.map(|name| TcProgram {
                side,
                hook: HookKind::Tcx,
                name: name.to_owned(),
            }));
        }
        found.extend(filters(port, parent)?.into_iter().map(|name| TcProgram {
            side,
            hook: HookKind::Clsact,
            name,
        }));
    }
    Ok(found)
}

/// Names of programs in the object that are put on ports.
fn is_ours(name: &str) -> bool {
    ["upload_tc", "download_tc", "observe_up", "observe_down"].contains(&name)
}

/// Kinds of the filters under clsact that are not ours.
fn filters(port: &Port, parent: u16) -> Result<Vec<String>, DataplaneError> {
    let doing = || format!("listing the filters of {}", port.name);
    let mut asked = TcMessage::with_index(
        i32::try_from(port.index)
            .map_err(|_| DataplaneError::NoInterface { interface: port.name.clone() })?,
    );
    asked.header.parent = TcHandle { major: u16::MAX, minor: parent };
    let answers = netlink::present(netlink::route(RouteNetlinkMessage::GetTrafficFilter(asked)))
        .map_err(DataplaneError::system(doing()))?;
    let filters = answers.unwrap_or_default().into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
        _ => None,
    });
    let mut kinds: Vec<_> = filters
        // The priority is the upper half.
        .filter(|filter| filter.header.info >> 16 != u32::from(hooks::CLSACT_PRIORITY))
        .filter_map(|filter| {
            filter.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            })
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}
