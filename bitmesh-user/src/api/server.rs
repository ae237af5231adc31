//! The sockets on the LAN, with a deadline on every read and write and a bound on everything that
//! waits.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{
        HeaderValue, Method, StatusCode,
        header::{CONNECTION, CONTENT_LENGTH},
    },
    response::{IntoResponse as _, Response},
};
use bitmesh_core::wire::{BODY_MAX_OCTETS, OpenRequest};
use futures_util::StreamExt as _;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{counter, histogram};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tower::ServiceExt as _;
use tracing::debug;

use super::{
    ApiError, ErrorCode, Gate, Origin,
    lately::Lately,
    paced::Paced,
    places::{NoPlace, Places, Seated},
    public::{Peer, is_binding},
};
use crate::gateway::{Gateway, Interface};

/// Time for a request's head to arrive, from the answer to the one before: what a connection may be
/// kept for without asking anything.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Time for a request's body to arrive: the slowest that the largest may come is 3 KiB/s.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
/// Time between two pieces of a body.
const PIECE_DEADLINE: Duration = Duration::from_secs(2);
/// Time for an answer once the request is there.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// Time in which the other end has to take a piece of its answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Time to find a station in the neighbour table.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(1);
/// Connections whose station is looked for at one time; more are closed.
const LOOKUPS: usize = 1_024;
/// Those of them that only addresses get which a station that pays had lately.
const LOOKUPS_OF_PAYERS: usize = 256;
/// Connections that are told at one time that there is no place; more are closed without a word.
const REFUSALS: usize = 64;
/// Time to tell them.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(1);
/// What is read of who is refused, so that it reads its answer, in octets.
const REFUSAL_READ_OCTETS: u64 = 64 * 1_024;
/// Connections that the kernel holds for us before they are accepted.
const BACKLOG: u32 = 1_024;
/// How the error of a payment is named that nobody signed.
const WRONG_SIGNATURE: &str = "wrong-signature";
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
    gate: Gate,
) {
    let places = Places::default();
    let lately = Lately::default();
    let lookups = Arc::new(Semaphore::new(LOOKUPS - LOOKUPS_OF_PAYERS));
    let lookups_of_payers = Arc::new(Semaphore::new(LOOKUPS_OF_PAYERS));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
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
        while tasks.try_join_next().is_some() {}
        let address = peer.ip().to_canonical();
        // Who paid from there a moment ago has lookups of its own, and keeps its place when one takes
        // too long.
        let known = lately.payer(address, &gate);
        let lookups = if known.is_some() { &lookups_of_payers } else { &lookups };
        let Ok(looking) = lookups.clone().try_acquire_owned() else {
            counter!("bitmesh_connections_refused_total", "reason" => "lookups").increment(1);
            continue;
        };
        let (gateway, gate, router) = (gateway.clone(), gate.clone(), router.clone());
        let far = Far { gateway, gate, interface: interface.index, address, router };
        let (places, refusals, lately) = (places.clone(), refusals.clone(), lately.clone());
        tasks.spawn(async move {
            let peer = far.peer().await;
            drop(looking);
            lately.note(address, peer.0, &far.gate);
            let (station, account) = match (peer.0, known) {
                (None, Some((station, account))) => (Some(station), Some(account)),
                (station, _) => (station, far.gate.account(station)),
            };
            match places.enter(station, address, account) {
                Ok(seat) => serve_connection(stream, far, peer, seat).await,
                Err(why) => {
                    counter!("bitmesh_connections_refused_total", "reason" => why.name())
                        .increment(1);
                    if let Ok(_telling) = refusals.try_acquire() {
                        let _ = timeout(REFUSAL_DEADLINE, refuse(stream, why)).await;
                    }
                }
            }
        });
    }
}

/// The other end of a connection, and what answers it.
#[derive(Clone)]
struct Far {
    gateway: Gateway,
    gate: Gate,
    interface: u32,
    address: IpAddr,
    router: Router,
}

impl Far {
    async fn peer(&self) -> Peer {
        let asked = self.gateway.station(self.interface, self.address);
        let station = timeout(LOOKUP_DEADLINE, asked).await.ok().and_then(Result::ok).flatten();
        Peer(station, Origin { interface: self.interface, address: self.address })
    }

    /// One request, from its head to its answer.
    async fn answer(&self, at_first: Peer, seat: &Seated, request: Request<Incoming>) -> Response {
        let route = route_of(request.method(), request.uri().path());
        let since = Instant::now();
        let answered = self.judge(at_first, seat, route, request).await;
        let mut answer = answered.unwrap_or_else(ApiError::into_response);
        histogram!("bitmesh_api_request_seconds", "route" => route).record(since.elapsed());
        if route == "pay" {
            let code = answer.extensions().get::<ErrorCode>().map(|code| code.0.clone());
            if code.as_deref() == Some(WRONG_SIGNATURE) {
                self.gate.wrong_signature(at_first.0);
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let result = if answer.status().is_success() {
                "accepted".into()
            } else {
                code.unwrap_or_else(|| "refused".into())
            };
            counter!("bitmesh_payments_total", "result" => result).increment(1);
        }
        let code = answer.status().as_u16().to_string();
        counter!("bitmesh_api_answers_total", "route" => route, "status" => code).increment(1);
        answer
    }

    async fn judge(
        &self,
        at_first: Peer,
        seat: &Seated,
        route: &str,
        request: Request<Incoming>,
    ) -> Result<Response, ApiError> {
        let path = request.uri().path();
        let account = self.gate.account(at_first.0).or(seat.account());
        self.gate.check_room(account.is_some())?;
        if route == "pay" {
            self.gate.check_pay(at_first.0)?;
        }
        // Who is bound to an account is who is there now: a connection outlives a MAC.
        let peer = if is_binding(path) { self.peer().await } else { at_first };
        let (parts, body) = request.into_parts();
        let declared = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let declared = declared.and_then(|length| length.parse::<u64>().ok());
        if declared.is_some_and(|length| length > BODY_MAX_OCTETS as u64) {
            return Err(too_large());
        }
        let body = timeout(BODY_DEADLINE, collect(body)).await.map_err(|_| too_slow())??;
        // What the route refuses opens nothing.
        if route == "open" && serde_json::from_slice::<OpenRequest>(&body).is_ok() {
            self.gate.check_open(at_first.0, self.interface)?;
        }
        let _room = account.map(|account| self.gate.enter(account)).transpose()?;
        // From here on it waits for nobody but us.
        let _busy = seat.busy();
        let mut request = Request::from_parts(parts, Body::from(body));
        request.extensions_mut().insert(peer);
        let answer = timeout(ANSWER_DEADLINE, self.router.clone().oneshot(request)).await;
        match answer.map_err(|_| ApiError::busy())? {
            Ok(answer) => Ok(answer),
            Err(never) => match never {},
        }
    }
}

/// A whole body, of bounded size, that keeps coming.
async fn collect(body: Incoming) -> Result<Bytes, ApiError> {
    let mut pieces = Body::new(body).into_data_stream();
    let mut all = Vec::new();
    while let Some(piece) = timeout(PIECE_DEADLINE, pieces.next()).await.map_err(|_| too_slow())? {
        let piece = piece.map_err(|error| {
            let what = format!("the body can't be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "body", what, "send it again")
        })?;
        if all.len() + piece.len() > BODY_MAX_OCTETS {
            return Err(too_large());
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

fn too_large() -> ApiError {
    let what = "the body is larger than any that this API takes";
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body", what, "send at most 16 KiB")
}

fn too_slow() -> ApiError {
    let what = "the body did not come in time";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow", what, "send it at once, within 5 seconds")
}

/// A path's name for counters: few, whatever is asked for.
fn route_of(method: &Method, path: &str) -> &'static str {
    let mut parts = path.strip_prefix("/v1/").unwrap_or_default().split('/');
    match (method.as_str(), parts.next(), parts.next(), parts.next(), parts.next()) {
        ("GET", Some("offer"), None, ..) => "offer",
        ("GET", Some("account"), None, ..) => "account",
        ("POST", Some("channels"), None, ..) => "open",
        ("GET", Some("channels"), Some(_), None, _) => "channel",
        ("POST", Some("channels"), Some(_), Some("payments"), None) => "pay",
        ("POST", Some("channels"), Some(_), Some("funding"), None) => "fund",
        ("POST", Some("channels"), Some(_), Some("stations"), None) => "stations",
        ("POST", Some("channels"), Some(_), Some("close"), None) => "close",
        _ => "other",
    }
}

async fn serve_connection(stream: TcpStream, far: Far, peer: Peer, seat: Seated) {
    let _ = stream.set_nodelay(true);
    let address = far.address;
    let (far, seat) = (&far, &seat);
    let service = service_fn(move |request: Request<Incoming>| async move {
        let answer: Result<_, Infallible> = Ok(far.answer(peer, seat, request).await);
        answer
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_MAX_OCTETS)
        .serve_connection(TokioIo::new(Paced::new(stream, WRITE_DEADLINE)), service);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!(%error, %address, "a connection ended early");
            }
        }
        () = seat.pushed_out() => debug!(%address, "a connection gave its place to another"),
    }
}

/// Says that there is no place, and lets go.
async fn refuse(mut stream: TcpStream, why: NoPlace) -> std::io::Result<()> {
    let what = match why {
        NoPlace::Address | NoPlace::Station | NoPlace::Account => {
            "this station has too many connections"
        }
        NoPlace::Full => "this edge has as many connections as it can hold",
    };
    let body = format!(
        r#"{{"error":"busy","message":"{what}","try":"close some, or try again in a second"}}"#
    );
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What it sent meanwhile: unread, it would have the kernel take the answer back.
    let mut rest = stream.take(REFUSAL_READ_OCTETS);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}
