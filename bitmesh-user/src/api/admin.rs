//! The operator's side: a socket in the data directory for root, the daemon's own user and those whom
//! `--admin-group` names; and the client that `bitmesh status` and the like use.

use std::{
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path as UrlPath, State, rejection::BytesRejection},
    routing::{get, post},
};
use bitmesh_core::wire::{BODY_MAX_OCTETS, ErrorBody};
use reqwest::Method;
use serde_json::Value;
use tokio::{net::UnixListener, sync::mpsc};

use super::{
    ApiError, Ask, Envelope, Ops,
    admitted::serve_admitted,
    ask,
    public::{channel_id, json},
};
use crate::http;

/// Name of the socket in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// Time that a daemon has to answer.
const DEADLINE: Duration = Duration::from_secs(15);

type Mailbox = State<mpsc::Sender<Envelope>>;
type Answer = Result<Json<Value>, ApiError>;

/// Answers the operator until the task is dropped. The data directory must be locked by the caller:
/// a socket that is there is a dead daemon's. Members of `group`, of which the daemon has to be one,
/// are let in as well.
pub fn serve_admin(
    directory: &Path,
    mailbox: mpsc::Sender<Envelope>,
    group: Option<u32>,
) -> std::io::Result<impl Future<Output = ()> + use<>> {
    let path = directory.join(ADMIN_SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    if group.is_some() {
        // The way to the socket, and to nothing else there: every other file is its owner's.
        chown(&path, None, group)?;
        chown(directory, None, group)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o710))?;
    }
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
        .with_state(mailbox.clone())
        .merge(Ops::new(mailbox).router());
    Ok(serve_admitted(listener, router, group))
}

async fn status(State(mailbox): Mailbox) -> Answer {
    ask(&mailbox, Ask::Status).await
}

async fn channels(State(mailbox): Mailbox) -> Answer {
    ask(&mailbox, Ask::Channels).await
}

async fn stations(State(mailbox): Mailbox) -> Answer {
    ask(&mailbox, Ask::Stations).await
}

async fn wallet(State(mailbox): Mailbox) -> Answer {
    ask(&mailbox, Ask::Wallet).await
}

async fn of_wallet(State(mailbox): Mailbox, body: Result<Bytes, BytesRejection>) -> Answer {
    ask(&mailbox, Ask::OfWallet(json(body)?)).await
}

async fn refunds(State(mailbox): Mailbox) -> Answer {
    ask(&mailbox, Ask::Refunds).await
}

async fn close(State(mailbox): Mailbox, UrlPath(id): UrlPath<String>) -> Answer {
    ask(&mailbox, Ask::CloseOwn(channel_id(&id)?)).await
}

async fn budget(State(mailbox): Mailbox, body: Result<Bytes, BytesRejection>) -> Answer {
    ask(&mailbox, Ask::Budget(json(body)?)).await
}

async fn share(State(mailbox): Mailbox, body: Result<Bytes, BytesRejection>) -> Answer {
    ask(&mailbox, Ask::Share(json(body)?)).await
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
