//! What machines watch a daemon by: `/metrics` for Prometheus and `/health` for load balancers and
//! people in a hurry. On the operator's socket always, on an address of its own where that is named.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use axum::{
    Json, Router,
    body::Body as HttpBody,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::gauge;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::{Instant, timeout},
};
use tower::ServiceExt as _;
use tracing::debug;

use super::{Ask, Body, Front, StoreState, paced::Paced};
use crate::{
    gateway::Gateway,
    runloop::status::Status,
    telemetry::{self, Health},
};

/// Time that the loop has to tell its figures; older ones are told after that.
const FIGURES_DEADLINE: Duration = Duration::from_secs(2);
/// Age up to which figures are told again: they take the loop time to add up.
const FIGURES_AGE: Duration = Duration::from_secs(2);
/// Connections to the address for metrics at one time.
const CONNECTIONS: usize = 16;
/// Time for a request's head, for an answer to be taken, and for a whole connection.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
const CONNECTION_DEADLINE: Duration = Duration::from_mins(1);
const BACKLOG: u32 = 64;

/// What these answers are made of.
#[derive(Clone, Debug)]
pub struct Ops {
    front: Arc<Front>,
    last: Arc<Mutex<Option<Told>>>,
}

/// What there was when it was asked for last.
#[derive(Clone, Debug)]
struct Told {
    at: Instant,
    figures: Option<Value>,
    /// The loop itself told it.
    fresh: bool,
}

impl Ops {
    /// Of the loop behind a front.
    pub fn new(front: Arc<Front>) -> Self {
        Self { front, last: Arc::default() }
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new().route("/metrics", get(metrics)).route("/health", get(health)).with_state(self)
    }

    /// The daemon's status, and whether the loop itself told it, now or a moment ago.
    async fn figures(&self) -> (Option<Value>, bool) {
        // Those who ask meanwhile wait for this answer, and are told it, also when there is none.
        let mut last = self.last.lock().await;
        if let Some(told) = &*last
            && told.at.elapsed() < FIGURES_AGE
        {
            return (told.figures.clone(), told.fresh);
        }
        let asked = timeout(FIGURES_DEADLINE, self.front.ask(Ask::Status)).await;
        let (figures, fresh) = match asked.map(|told| told.map(Body::value)) {
            // While the store does not work, the front tells what the loop told last.
            Ok(Ok(figures)) => (Some(figures), self.front.store().state == StoreState::Working),
            _ => (last.take().and_then(|told| told.figures), false),
        };
        *last = Some(Told { at: Instant::now(), figures: figures.clone(), fresh });
        (figures, fresh)
    }
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let (figures, fresh) = ops.figures().await;
    gauge!("bitmesh_up").set(if fresh { 1.0 } else { 0.0 });
    gauge!("bitmesh_mailbox_requests").set(telemetry::float(ops.front.waiting()));
    if let Some(Ok(status)) = figures.map(serde_json::from_value::<Status>) {
        telemetry::figures(&status);
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, kind)], telemetry::render()).into_response()
}

async fn health(State(ops): State<Ops>) -> Response {
    let (figures, fresh) = ops.figures().await;
    // A store that does not work is why they are older, and is told with them.
    let is_told = fresh || ops.front.store().state != StoreState::Working;
    let health = Health::judge(figures.filter(|_| is_told).as_ref());
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// A socket for metrics, that only frames of the interface which has its address reach. One of a LAN
/// port is refused: stations would read what the operator earns.
pub async fn listen_for_ops(address: SocketAddr, lan: &[String]) -> Result<TcpListener> {
    if address.ip().is_unspecified() {
        bail!("--metrics {address}: name one address; 127.0.0.1 is this machine's own");
    }
    let gateway = Gateway::open()?;
    let interface = if address.ip().is_loopback() {
        "lo".to_owned()
    } else {
        let own = gateway.own_addresses().await?;
        let found = own.iter().find(|(_, known)| *known == address.ip());
        let (index, _) = found
            .with_context(|| format!("--metrics {address}: no interface here has this address"))?;
        for name in lan {
            let port = gateway.addressed(name).await.with_context(|| {
                format!(
                    "--metrics {address}: whether stations reach it can't be told without {name}"
                )
            })?;
            if port.index == *index {
                bail!(
                    "--metrics {address} is an address of the LAN port {name}: stations would read \
                     it. Take 127.0.0.1, or an address that they don't reach"
                );
            }
        }
        gateway.name_of(*index).await?.name
    };
    let listen = || -> std::io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("--metrics {address}: another port may be free"))
}

/// Answers there until it is dropped.
pub async fn serve_ops(listener: TcpListener, ops: Ops) {
    let router = ops.router();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        let router = router.clone();
        tasks.spawn(async move {
            let router = &router;
            let service = service_fn(move |request: Request<Incoming>| async move {
                let answer: Result<Response, Infallible> =
                    router.clone().oneshot(request.map(HttpBody::new)).await;
                answer
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .serve_connection(TokioIo::new(Paced::new(stream, HEAD_DEADLINE)), service);
            let ended = timeout(CONNECTION_DEADLINE, connection).await;
            debug!(?ended, "a connection for metrics ended");
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn while_the_store_fails_health_says_why_and_not_that_the_loop_is_silent() {
        let (requests, _mailbox) = mpsc::channel(4);
        let front = Front::new(requests, 5);
        front.keep_status(json!({}));
        front.failed("the disk is full", 7);
        let answer = health(State(Ops::new(front))).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(answer.into_body(), 4_096).await.unwrap();
        let health: Health = serde_json::from_slice(&body).unwrap();
        let says = |what: &str| health.failures.iter().any(|failure| failure.contains(what));
        assert!(says("the disk is full") && !says("does not answer"), "{health:?}");
    }
}
