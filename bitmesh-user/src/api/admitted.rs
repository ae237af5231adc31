//! Who may use the operator's socket: judged by the kernel's word on who is at its other end.

use std::{convert::Infallible, ffi::CString, time::Duration};

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::{Gid, User, getgrouplist};
use tokio::{
    net::{UnixListener, unix::UCred},
    sync::Semaphore,
    task::JoinSet,
};
use tower::ServiceExt as _;
use tracing::debug;

use super::{ApiError, paced::Paced};

/// Connections that are answered at one time; others wait in the kernel.
const CONNECTIONS: usize = 64;
/// Time for a request's head to arrive.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// Time in which the other end has to take a piece of its answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a connection could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers on a unix socket, and refuses who is neither root, the daemon's own user, nor of `group`.
pub(super) async fn serve_admitted(listener: UnixListener, router: Router, group: Option<u32>) {
    let places = std::sync::Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "a connection of the operator was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        let refused = match stream.peer_cred() {
            Ok(peer) if admitted(&peer, group) => None,
            Ok(peer) => Some(refusal(peer.uid())),
            Err(_) => Some(refusal(u32::MAX)),
        };
        let router = router.clone();
        tasks.spawn(async move {
            let (router, refused) = (&router, &refused);
            let service = service_fn(move |request: Request<Incoming>| async move {
                let answer: Result<Response, Infallible> = match refused {
                    Some(refused) => Ok(refused.clone().into_response()),
                    None => router.clone().oneshot(request.map(Body::new)).await,
                };
                answer
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .serve_connection(TokioIo::new(Paced::new(stream, WRITE_DEADLINE)), service);
            if let Err(error) = connection.await {
                debug!(%error, "a connection of the operator ended early");
            }
            drop(place);
        });
    }
}

fn admitted(peer: &UCred, group: Option<u32>) -> bool {
    let own = rustix::process::geteuid().as_raw();
    peer.uid() == 0
        || peer.uid() == own
        || group.is_some_and(|group| peer.gid() == group || is_member(peer.uid(), group))
}

fn is_member(uid: u32, group: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(uid.into()) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&Gid::from_raw(group)))
}

fn refusal(uid: u32) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "not-admitted",
        format!("user {uid} is neither root nor the daemon's own"),
        "ask as root (sudo), or as a member of the group that --admin-group names",
    )
}
