//! The sockets on the LAN, with a deadline on every read and a bound on everything that waits.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body, http::StatusCode};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};
use tower::ServiceExt as _;
use tower_http::timeout::TimeoutLayer;
use tracing::debug;

use super::{
    Origin,
    public::{Peer, is_binding},
};
use crate::gateway::{Gateway, Interface};

/// Connections that one address may have open.
const CONNECTIONS_PER_ADDRESS: usize = 16;
/// Connections in all on one interface.
const CONNECTIONS: usize = 4_096;
/// Time for a request's head to arrive.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Time for a whole request, its body and its answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);
/// Connections that the kernel holds for us before they are accepted.
const BACKLOG: u32 = 1_024;
/// Largest head of a request.
const HEAD_MAX_OCTETS: usize = 16 * 1_024;

/// Why the API isn't there.
#[derive(Debug, thiserror::Error)]
#[error(
    "listening on port {port} of {interface}: {source}; stop what uses the port, or choose another --api-port"
)]
pub struct ServeError {
    interface: String,
    port: u16,
    source: std::io::Error,
}

/// A socket that only frames of this interface reach, for IPv6 and IPv4 where the box has both.
pub fn listen_on(interface: &Interface, port: u16) -> Result<TcpListener, ServeError> {
    let bind = || -> std::io::Result<TcpListener> {
        let (socket, any) = match TcpSocket::new_v6() {
            Ok(socket) => (socket, IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED)),
            Err(_) => (TcpSocket::new_v4()?, IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED)),
        };
        socket.bind_device(Some(interface.name.as_bytes()))?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(any, port))?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| ServeError { interface: interface.name.clone(), port, source })
}

/// Answers stations on one interface until the task is dropped, and with it every connection: one
/// that outlived its runloop would be answered by nobody.
pub async fn serve_lan(
    listener: TcpListener,
    interface: Interface,
    gateway: Gateway,
    router: Router,
) {
    let router =
        router.layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, REQUEST_DEADLINE));
    let open = Connections::default();
    let mut tasks = JoinSet::new();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: wait for connections to end.
                debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        while tasks.try_join_next().is_some() {}
        let Some(guard) = open.enter(address) else { continue };
        let far = Far { gateway: gateway.clone(), interface: interface.index, address };
        let router = router.clone();
        tasks.spawn(async move {
            if let Err(error) = serve_connection(stream, far, router).await {
                debug!(%error, %address, "a connection ended early");
            }
            drop(guard);
        });
    }
}

/// The other end of a connection.
#[derive(Clone)]
struct Far {
    gateway: Gateway,
    interface: u32,
    address: IpAddr,
}

impl Far {
    async fn peer(&self) -> Peer {
        let station = self.gateway.station(self.interface, self.address).await;
        let from = Origin { interface: self.interface, address: self.address };
        Peer(station.ok().flatten(), from)
    }
}

async fn serve_connection(stream: TcpStream, far: Far, router: Router) -> Result<(), hyper::Error> {
    let _ = stream.set_nodelay(true);
    let at_first = far.peer().await;
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        let (router, far) = (router.clone(), far.clone());
        async move {
            // Who is bound to an account is who is there now: a connection outlives a MAC.
            let fresh = is_binding(request.uri().path());
            let peer = if fresh { far.peer().await } else { at_first };
            request.extensions_mut().insert(peer);
            let answer: Result<_, Infallible> = router.oneshot(request).await;
            answer
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_MAX_OCTETS)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// How many connections each address has.
#[derive(Clone, Debug, Default)]
struct Connections(Arc<Mutex<HashMap<IpAddr, usize>>>);

struct Entered {
    of: Connections,
    address: IpAddr,
}

impl Connections {
    fn enter(&self, address: IpAddr) -> Option<Entered> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        let own = open.entry(address).or_default();
        if *own >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *own += 1;
        Some(Entered { of: self.clone(), address })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut open = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = open.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.address);
            }
        }
    }
}
