//! What the kernel knows of addresses, routes and neighbours, by rtnetlink. It only reads: nothing
//! here changes the box's configuration.

use std::net::IpAddr;

use bitmesh_core::station::Station;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressAttribute,
        link::{InfoPortKind, LinkAttribute, LinkInfo},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
};

/// What can go wrong while asking.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The kernel refused.
    #[error("asking the kernel about the network: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// No netlink socket.
    #[error("no netlink socket: {0}")]
    Io(#[from] std::io::Error),
    /// No such interface.
    #[error("there is no interface {0}; `ip link` lists them")]
    NoInterface(String),
    /// No default route and no provider named.
    #[error(
        "there is no default route; connect to a network first, or name the provider with --provider"
    )]
    NoGateway,
    /// No way to an address.
    #[error("there is no route to {0}; connect to the provider's network first")]
    NoRoute(IpAddr),
}

/// A connection to the kernel's routing tables, in the network namespace of its maker.
#[derive(Clone, Debug)]
pub struct Gateway {
    handle: Handle,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

impl Gateway {
    /// Opens the connection; needs a tokio runtime.
    pub fn open() -> Result<Self, GatewayError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The interface of this name.
    pub async fn interface(&self, name: &str) -> Result<Interface, GatewayError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(Interface { index: link.header.index, name: name.into() }),
            _ => Err(GatewayError::NoInterface(name.into())),
        }
    }

    /// The interface that has the addresses for stations on this port: the bridge, where it is a
    /// port of one, else the port.
    pub async fn addressed(&self, name: &str) -> Result<Interface, GatewayError> {
        let missing = || GatewayError::NoInterface(name.into());
        let mut links = self.handle.link().get().match_name(name).execute();
        let link = links.try_next().await.ok().flatten().ok_or_else(missing)?;
        let of_bridge = link.attributes.iter().any(|attribute| {
            let LinkAttribute::LinkInfo(infos) = attribute else { return false };
            infos.contains(&LinkInfo::PortKind(InfoPortKind::Bridge))
        });
        let master = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) if of_bridge => Some(*index),
            _ => None,
        });
        match master {
            Some(bridge) => self.name_of(bridge).await,
            None => Ok(Interface { index: link.header.index, name: name.into() }),
        }
    }

    /// The interface of this index.
    pub async fn name_of(&self, index: u32) -> Result<Interface, GatewayError> {
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links.try_next().await?;
        let name = link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| {
            if let LinkAttribute::IfName(name) = attribute { Some(name) } else { None }
        });
        let name = name.ok_or_else(|| GatewayError::NoInterface(index.to_string()))?;
        Ok(Interface { index, name })
    }

    /// The box's own addresses with the index of their interface, link-local ones included and
    /// loopback ones left out.
    pub async fn own_addresses(&self) -> Result<Vec<(u32, IpAddr)>, GatewayError> {
        let mut found = Vec::new();
        let mut messages = self.handle.address().get().execute();
        while let Some(message) = messages.try_next().await? {
            let of = |local: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) if local => Some(*address),
                    AddressAttribute::Address(address) if !local => Some(*address),
                    _ => None,
                })
            };
            // On a point-to-point link `Address` is the peer's.
            let address = of(true).or_else(|| of(false)).filter(|address| !address.is_loopback());
            found.extend(address.map(|address| (message.header.index, address)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The station behind an address on an interface, from the neighbour table. It is asked for this
    /// one entry (Linux 5.0, 82cbb5c631a0): a dump costs as much as there are neighbours.
    pub async fn station(
        &self,
        interface: u32,
        address: IpAddr,
    ) -> Result<Option<Station>, GatewayError> {
        let mut wanted = NeighbourMessage::default();
        wanted.header.ifindex = interface;
        let (family, destination) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
        };
        wanted.header.family = family;
        wanted.attributes.push(NeighbourAttribute::Destination(destination));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(wanted));
        message.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(message)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                    let known = !matches!(
                        neighbour.header.state,
                        NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::Noarp
                    );
                    let station = neighbour.attributes.iter().find_map(link_layer_station);
                    return Ok(station.filter(|_| known));
                }
                // No such entry.
                NetlinkPayload::Error(_) => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    /// This box as a station on the network that traffic to `address` leaves by; `None` when the
    /// port there has no MAC.
    pub async fn own_station(&self, address: IpAddr) -> Result<Option<Station>, GatewayError> {
        let index = self.interface_to(address).await?.index;
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links.try_next().await?;
        Ok(link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| {
            let LinkAttribute::Address(octets) = attribute else { return None };
            Station::new(<[u8; 6]>::try_from(octets.as_slice()).ok()?, 0)
        }))
    }

    /// The default gateway's address.
    pub async fn default_gateway(&self) -> Result<IpAddr, GatewayError> {
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for table in [v4, v6] {
            let mut routes = self.handle.route().get(table).execute();
            while let Some(route) = routes.try_next().await? {
                if let (0, Some(gateway)) =
                    (route.header.destination_prefix_length, gateway_of(&route))
                {
                    return Ok(gateway);
                }
            }
        }
        Err(GatewayError::NoGateway)
    }

    /// The interface that traffic to `address` leaves by.
    pub async fn interface_to(&self, address: IpAddr) -> Result<Interface, GatewayError> {
        let message = match address {
            IpAddr::V4(address) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .build(),
        };
        let route = self.handle.route().get(message).execute().try_next().await;
        let route = route.ok().flatten().ok_or(GatewayError::NoRoute(address))?;
        let index = route.attributes.iter().find_map(|attribute| {
            if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None }
        });
        self.name_of(index.ok_or(GatewayError::NoRoute(address))?).await
    }
}

fn link_layer_station(attribute: &NeighbourAttribute) -> Option<Station> {
    let NeighbourAttribute::LinkLayerAddress(octets) = attribute else { return None };
    Station::new(<[u8; 6]>::try_from(octets.as_slice()).ok()?, 0)
}

fn gateway_of(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}
