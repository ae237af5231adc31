//! Flowtables of netfilter: forwarding that goes past the usual path.

use netlink_packet_core::Nla as _;

use super::{
    DataplaneError,
    netlink::{self, Plain, nested, payload, string},
};

/// `NFNL_SUBSYS_NFTABLES` (10) over `NFT_MSG_GETFLOWTABLE` (23) (`linux/netfilter/nf_tables.h`).
const GET_FLOWTABLE: u16 = 0x0a17;
const NFTA_FLOWTABLE_TABLE: u16 = 1;
const NFTA_FLOWTABLE_NAME: u16 = 2;
const NFTA_FLOWTABLE_HOOK: u16 = 3;
const NFTA_FLOWTABLE_FLAGS: u16 = 7;
const NFTA_FLOWTABLE_HOOK_DEVS: u16 = 3;
const NFTA_DEVICE_NAME: u16 = 1;
/// What a device's name begins with, since Linux 6.16.
const NFTA_DEVICE_PREFIX: u16 = 2;
const NFT_FLOWTABLE_HW_OFFLOAD: u32 = 1;

/// A flowtable of nftables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flowtable {
    /// The table that it is in.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Interfaces whose frames it looks at.
    pub devices: Vec<String>,
    /// The same, by the beginning of their names.
    pub prefixes: Vec<String>,
    /// Whether devices forward by themselves.
    pub hardware: bool,
}

impl Flowtable {
    /// Whether it looks at the frames of an interface.
    pub fn covers(&self, interface: &str) -> bool {
        self.devices.iter().any(|device| device == interface)
            || self.prefixes.iter().any(|prefix| interface.starts_with(prefix.as_str()))
    }
}

/// Every flowtable in this thread's network namespace. Needs `CAP_NET_ADMIN`.
pub fn flowtables() -> Result<Vec<Flowtable>, DataplaneError> {
    let answers = netlink::present(netlink::netfilter(GET_FLOWTABLE))
        .map_err(DataplaneError::system("asking the kernel about flowtables"))?;
    Ok(answers.unwrap_or_default().iter().map(parse).collect())
}

fn parse(message: &Plain) -> Flowtable {
    let text = |kind| message.attribute(kind).map(|octets| string(&octets)).unwrap_or_default();
    let flags = message.attribute(NFTA_FLOWTABLE_FLAGS).and_then(|octets| octets.try_into().ok());
    let hook = message.attribute(NFTA_FLOWTABLE_HOOK).unwrap_or_default();
    let devices: Vec<_> = nested(&hook)
        .iter()
        .filter(|nla| nla.kind() == NFTA_FLOWTABLE_HOOK_DEVS)
        .flat_map(|devices| nested(&payload(devices)))
        .collect();
    let names = |kind| {
        let of_kind = devices.iter().filter(|device| device.kind() == kind);
        of_kind.map(|device| string(&payload(device))).collect()
    };
    Flowtable {
        table: text(NFTA_FLOWTABLE_TABLE),
        name: text(NFTA_FLOWTABLE_NAME),
        devices: names(NFTA_DEVICE_NAME),
        prefixes: names(NFTA_DEVICE_PREFIX),
        hardware: flags.is_some_and(|f| u32::from_be_bytes(f) & NFT_FLOWTABLE_HW_OFFLOAD != 0),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkDeserializable as _, NetlinkHeader};

    use super::*;

    /// An attribute as it is on the wire.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap() + 4;
        let mut octets = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    fn answer(flags: u32) -> Plain {
        let devices =
            [attribute(1, b"eth1\0"), attribute(1, b"wan\0"), attribute(2, b"lan\0")].concat();
        // Number and priority of the hook come before the devices.
        let hook = [attribute(1, &[0; 4]), attribute(2, &[0; 4]), attribute(3, &devices)].concat();
        let octets = [
            vec![1, 0, 0, 0],
            attribute(1, b"filter\0"),
            attribute(2, b"fast\0"),
            attribute(3 | netlink_packet_core::NLA_F_NESTED, &hook),
            attribute(7, &flags.to_be_bytes()),
        ];
        Plain::deserialize(&NetlinkHeader::default(), &octets.concat()).unwrap()
    }

    #[test]
    fn a_flowtable_is_read_with_its_devices_and_whether_hardware_does_it() {
        let table = parse(&answer(0));
        assert_eq!((table.table.as_str(), table.name.as_str()), ("filter", "fast"));
        assert!(table.covers("eth1") && table.covers("wan") && table.covers("lan3"));
        assert!(!table.covers("eth10") && !table.covers("eth0") && !table.hardware);
        assert!(parse(&answer(1)).hardware);
        // Counters alone are no hardware.
        assert!(!parse(&answer(2)).hardware);
    }
}
