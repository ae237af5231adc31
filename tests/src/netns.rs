//! Network namespaces, and veth pairs between them.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        link::{LinkAttribute, LinkXdp},
    },
};
use rustix::{
    mount::{UnmountFlags, mount_bind, unmount},
    process::{Signal, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

use crate::sweep::own_name;

/// Where `ip netns` looks for names.
pub(crate) const DIRECTORY: &str = "/run/netns";
/// A named network namespace; gone when dropped, unless kept.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
    kept: bool,
}

impl Namespace {
    /// A new one, with its loopback up and IPv6 addresses usable at once.
    pub fn create(name: &str) -> Result<Self> {
        let name = own_name(name);
        let path = Path::new(DIRECTORY).join(&name);
        fs::create_dir_all(DIRECTORY)?;
        File::create_new(&path).with_context(|| format!("making {}; root?", path.display()))?;
        let target = path.clone();
        let made = thread::spawn(move || -> io::Result<()> {
            // SAFETY: only this thread, which ends here, leaves the process's namespace; no file
            // table or address space is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(mount_bind("/proc/thread-self/ns/net", &target)?)
        });
        made.join().map_err(|_| anyhow!("the thread of a new namespace died"))??;
        let namespace = Self { name, handle: File::open(path)?, kept: false };
        namespace.run(|| {
            for scope in ["default", "all"] {
                let conf = format!("/proc/sys/net/ipv6/conf/{scope}");
                // Duplicate address detection would hold addresses back for a second.
                fs::write(format!("{conf}/accept_dad"), "0")?;
                fs::write(format!("{conf}/accept_ra"), "0")?;
            }
            Ok(())
        })?;
        namespace.netlink(async |handle| {
            let lo = LinkUnspec::new_with_name("lo").up().build();
            Ok(handle.link().set(lo).execute().await?)
        })?;
        Ok(namespace)
    }

    /// For `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it in place when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Runs a closure on a thread that is in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(self.handle.as_fd())?;
                work()
            });
            thread.join().map_err(|_| anyhow!("work in namespace {} panicked", self.name))?
        })
    }

    /// Starts a thread that is in the namespace, and so are those that it starts.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let handle = self.handle.try_clone()?;
        Ok(thread::spawn(move || {
            enter(handle.as_fd())?;
            work()
        }))
    }

    /// Runs async work on a thread that is in the namespace.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })
    }

    /// A program that will run in the namespace, and die with the thread that starts it. Only the
    /// network differs: it sees the same files as we do.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let handle = self.handle.try_clone()?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only two system calls are made, on a descriptor that the
        // closure owns.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                enter(handle.as_fd())
            });
        }
        Ok(command)
    }

    /// Work with the routing tables of the namespace.
    pub fn netlink<T: Send>(
        &self,
        work: impl AsyncFnOnce(Handle) -> Result<T> + Send,
    ) -> Result<T> {
        self.block_on(async || {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(handle).await
        })
    }

    /// A veth pair: `name` here, `peer_name` in `peer`, both up.
    pub fn connect(&self, name: &str, peer: &Self, peer_name: &str) -> Result<()> {
        let peer_fd = peer.handle.as_raw_fd();
        // It can't have its name before it has moved: both ends may be called the same.
        let moving = format!("mv{peer_fd:x}");
        self.netlink(async |handle| {
            handle.link().add(LinkVeth::new(name, &moving).build()).execute().await?;
            let index = index_of(&handle, &moving).await?;
            let moved = LinkUnspec::new_with_index(index).setns_by_fd(peer_fd).build();
            handle.link().set(moved).execute().await?;
            let up = LinkUnspec::new_with_name(name).up().build();
            Ok(handle.link().set(up).execute().await?)
        })
        .with_context(|| format!("a link {name} from {}", self.name))?;
        peer.netlink(async |handle| {
            let index = index_of(&handle, &moving).await?;
            let renamed = LinkUnspec::new_with_index(index).name(peer_name).up().build();
            Ok(handle.link().set(renamed).execute().await?)
        })
        .with_context(|| format!("a link {peer_name} to {}", peer.name))
    }

    /// A bridge with these ports, up.
    pub fn bridge(&self, name: &str, ports: &[&str]) -> Result<()> {
        self.netlink(async |handle| {
            handle.link().add(LinkBridge::new(name).up().build()).execute().await?;
            let index = index_of(&handle, name).await?;
            for port in ports {
                let port = LinkUnspec::new_with_name(port).controller(index).build();
                handle.link().set(port).execute().await?;
            }
            Ok(())
        })
        .with_context(|| format!("bridge {name} in {}", self.name))
    }

    /// Takes every address off an interface.
    pub fn no_addresses(&self, interface: &str) -> Result<()> {
        self.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            let request = handle.address().get().set_link_index_filter(index);
            let found: Vec<_> = request.execute().try_collect().await?;
            for address in found {
                handle.address().del(address).execute().await?;
            }
            Ok(())
        })
        .with_context(|| format!("no addresses on {interface}"))
    }

    /// Sets an interface's MTU, in octets.
    pub fn mtu(&self, interface: &str, mtu: u32) -> Result<()> {
        self.netlink(async |handle| {
            let link = LinkUnspec::new_with_name(interface).mtu(mtu).build();
            Ok(handle.link().set(link).execute().await?)
        })
        .with_context(|| format!("MTU {mtu} on {interface}"))
    }

    /// Gives an interface an address.
    pub fn address(&self, interface: &str, address: &str, prefix: u8) -> Result<()> {
        let address: IpAddr = address.parse()?;
        self.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            let mut request = handle.address().add(index, address, prefix);
            if address.is_ipv6() {
                // Usable at once, and not when a worker of the kernel has come to it.
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            Ok(request.execute().await?)
        })
        .with_context(|| format!("address {address} on {interface}"))
    }

    /// The route for everything else.
    pub fn default_route(&self, gateway: &str) -> Result<()> {
        let gateway: IpAddr = gateway.parse()?;
        self.netlink(async |handle| {
            let route = match gateway {
                IpAddr::V4(gateway) => {
                    RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(gateway).build()
                }
                IpAddr::V6(gateway) => {
                    RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(gateway).build()
                }
            };
            Ok(handle.route().add(route).execute().await?)
        })
        .with_context(|| format!("a default route by {gateway}"))
    }

    /// Index and MAC address of an interface.
    pub fn interface(&self, name: &str) -> Result<(u32, [u8; 6])> {
        self.netlink(async |handle| {
            let mut links = handle.link().get().match_name(name).execute();
            let link = links.try_next().await?.with_context(|| format!("no interface {name}"))?;
            let mac = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(octets) => <[u8; 6]>::try_from(octets.as_slice()).ok(),
                _ => None,
            });
            Ok((link.header.index, mac.with_context(|| format!("{name} has no MAC address"))?))
        })
    }

    /// Id of the XDP program on an interface.
    pub fn xdp_program(&self, name: &str) -> Result<Option<u32>> {
        self.netlink(async |handle| {
            let mut links = handle.link().get().match_name(name).execute();
            let link = links.try_next().await?.with_context(|| format!("no interface {name}"))?;
            Ok(link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Xdp(details) => details.iter().find_map(|detail| match detail {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                }),
                _ => None,
            }))
        })
    }

    /// Frames that an interface has received, as it counts itself.
    pub fn received(&self, name: &str) -> Result<u64> {
        let text = self.run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        let frames = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        frames.with_context(|| format!("no interface {name} in {}", self.name))
    }

    /// Names neighbours on an interface for good, so that nobody asks for them.
    pub fn neighbours(&self, interface: &str, entries: &[(IpAddr, [u8; 6])]) -> Result<()> {
        self.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            for (address, mac) in entries {
                let entry = handle.neighbours().add(index, *address).link_layer_address(mac);
                entry.execute().await?;
            }
            Ok(())
        })
        .with_context(|| format!("neighbours on {interface}"))
    }

    /// Sets a sysctl under `/proc/sys/net`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(|| fs::write(&path, value).with_context(|| path.display().to_string()))
    }

    /// Index of an interface.
    pub fn index(&self, interface: &str) -> Result<u32> {
        self.netlink(async |handle| index_of(&handle, interface).await)
    }

    /// MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        self.netlink(async |handle| {
            let mut links = handle.link().get().match_name(interface.to_owned()).execute();
            let link =
                links.try_next().await?.with_context(|| format!("no interface {interface}"))?;
            let mac = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(octets) => octets.try_into().ok(),
                _ => None,
            });
            mac.with_context(|| format!("{interface} has no MAC address"))
        })
    }

    /// Gives an interface another MAC address.
    pub fn set_mac(&self, interface: &str, mac: [u8; 6]) -> Result<()> {
        self.netlink(async |handle| {
            let link = LinkUnspec::new_with_name(interface).address(mac.to_vec()).build();
            Ok(handle.link().set(link).execute().await?)
        })
        .with_context(|| format!("a MAC address of {interface}"))
    }

    /// Sets how many octets a packet on an interface can have.
    pub fn set_mtu(&self, interface: &str, octets: u32) -> Result<()> {
        self.netlink(async |handle| {
            let link = LinkUnspec::new_with_name(interface).mtu(octets).build();
            Ok(handle.link().set(link).execute().await?)
        })
        .with_context(|| format!("an MTU of {octets} on {interface}"))
    }

    /// Takes an interface down or up.
    pub fn set_up(&self, interface: &str, up: bool) -> Result<()> {
        self.netlink(async |handle| {
            let link = LinkUnspec::new_with_name(interface);
            let link = if up { link.up() } else { link.down() };
            Ok(handle.link().set(link.build()).execute().await?)
        })
    }

    /// Takes an interface away; of a veth pair, both ends.
    pub fn delete(&self, interface: &str) -> Result<()> {
        self.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            Ok(handle.link().del(index).execute().await?)
        })
        .with_context(|| format!("deleting {interface}"))
    }

    /// Gives an interface another name, up as it is.
    pub fn rename(&self, interface: &str, name: &str) -> Result<()> {
        self.netlink(async |handle| {
            let index = index_of(&handle, interface).await?;
            let renamed = LinkUnspec::new_with_index(index).name(name).build();
            Ok(handle.link().set(renamed).execute().await?)
        })
        .with_context(|| format!("calling {interface} {name}"))
    }

    fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.path());
        }
    }
}

pub(crate) fn remove(path: &Path) {
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}

fn enter(handle: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(handle, Some(LinkNameSpaceType::Network))?)
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32> {
    let mut links = handle.link().get().match_name(name).execute();
    let link = links.try_next().await?.with_context(|| format!("no interface {name}"))?;
    Ok(link.header.index)
}
