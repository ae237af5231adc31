//! The operator's side: a socket in the data directory that only its owner can open, and the
//! client that `bitmesh status` and the like use.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path as UrlPath, State, rejection::BytesRejection},
    routing::{get, post},
};
use bitmesh_core::wire::{BODY_MAX_OCTETS, ErrorBody};
use reqwest::Method;
use serde_json::Value;
use tokio::net::UnixListener;

use super::{
    Ask, Front, Reply,
    public::{channel_id, json},
};
use crate::http;

/// Name of the socket in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// Time that a daemon has to answer.
const DEADLINE: Duration = Duration::from_secs(15);

type Shared = State<Arc<Front>>;
type Answer = Reply;

/// Answers the operator until the task is dropped. The data directory must be locked by the caller:
/// a socket that is there is a dead daemon's.
pub fn serve_admin(
    directory: &Path,
    front: Arc<Front>,
) -> std::io::Result<impl Future<Output = ()> + use<>> {
    let path = directory.join(ADMIN_SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/channels", get(channels))
        .route("/v1/stations", get(stations))
        .route("/v1/wallet", get(wallet).post(of_wallet))
        .route("/v1/refunds", get(refunds))
        .route("/v1/channels/{id}/close", post(close))
        .route("/v1/budget", post(budget))
        .route("/v1/share", post(share))
        .layer(DefaultBodyLimit::max(BODY_MAX_OCTETS))
        .with_state(front);
    Ok(async move {
        let _ = axum::serve(listener, router).await;
    })
}

async fn status(State(front): Shared) -> Answer {
    front.ask(Ask::Status).await
}

async fn channels(State(front): Shared) -> Answer {
    front.ask(Ask::Channels).await
}

async fn stations(State(front): Shared) -> Answer {
    front.ask(Ask::Stations).await
}

async fn wallet(State(front): Shared) -> Answer {
    front.ask(Ask::Wallet).await
}

async fn of_wallet(State(front): Shared, body: Result<Bytes, BytesRejection>) -> Answer {
    front.ask(Ask::OfWallet(json(body)?)).await
}

async fn refunds(State(front): Shared) -> Answer {
    front.ask(Ask::Refunds).await
}

async fn close(State(front): Shared, UrlPath(id): UrlPath<String>) -> Answer {
    front.ask(Ask::CloseOwn(channel_id(&id)?)).await
}

async fn budget(State(front): Shared, body: Result<Bytes, BytesRejection>) -> Answer {
    front.ask(Ask::Budget(json(body)?)).await
}

async fn share(State(front): Shared, body: Result<Bytes, BytesRejection>) -> Answer {
    front.ask(Ask::Share(json(body)?)).await
}

/// Why a command got no answer from a daemon.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens.
    #[error("no bitmesh runs with the data directory {}; start `bitmesh sell` or `bitmesh buy`, or name the directory with --data-dir", .0.display())]
    NotRunning(PathBuf),
    /// It answered with a refusal.
    #[error("{}: {}; {}", .0.error, .0.message, .0.r#try)]
    Refused(ErrorBody),
    /// It answered something else.
    #[error("the daemon in {} did not answer as expected: {source}; is it of another version?", directory.display())]
    Broken {
        /// Its data directory.
        directory: PathBuf,
        /// What came.
        source: reqwest::Error,
    },
}

/// Asks the daemon in `directory`.
pub async fn ask_admin(
    directory: &Path,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value, AdminError> {
    let broken = |source| AdminError::Broken { directory: directory.to_owned(), source };
    let client = http::plain()
        .unix_socket(directory.join(ADMIN_SOCKET))
        .timeout(DEADLINE)
        .build()
        .map_err(broken)?;
    let mut request = client.request(method, format!("http://bitmesh{path}"));
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.map_err(|error| {
        if error.is_connect() {
            AdminError::NotRunning(directory.to_owned())
        } else {
            broken(error)
        }
    })?;
    if answer.status().is_success() {
        answer.json().await.map_err(broken)
    } else {
        Err(AdminError::Refused(answer.json().await.map_err(broken)?))
    }
}
