//! What stations reach before and after they pay.

use std::sync::Arc;

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::{HeaderMap, Method, StatusCode, Uri, header::CONTENT_TYPE},
    routing::{get, post},
};
use bitmesh_core::{
    channel::{ChannelId, Versioned},
    controller::Refusal,
    station::Station,
    wire::BODY_MAX_OCTETS,
};
use serde::de::DeserializeOwned;

use super::{ApiError, Ask, Front, Origin, Reply};

/// Who is at the other end of a connection: the station as the neighbour table has it, and where it
/// asks from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) Option<Station>, pub(super) Origin);

type Shared = State<Arc<Front>>;
type Answer = Reply;

/// The routes for stations.
pub fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/v1/offer", get(offer))
        .route("/v1/account", get(account))
        .route("/v1/channels", post(open))
        .route("/v1/channels/{id}", get(channel))
        .route("/v1/channels/{id}/funding", post(fund))
        .route("/v1/channels/{id}/payments", post(pay))
        .route("/v1/channels/{id}/stations", post(stations))
        .route("/v1/channels/{id}/close", post(close))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(BODY_MAX_OCTETS))
        .with_state(front)
}

/// Whether a path changes who belongs to an account.
pub(super) fn is_binding(path: &str) -> bool {
    path.starts_with("/v1/channels/") && path.ends_with("/stations")
}

async fn offer(State(front): Shared) -> Answer {
    front.ask(Ask::Offer).await
}

async fn account(State(front): Shared, Extension(peer): Extension<Peer>) -> Answer {
    front.ask(Ask::Account(station(peer)?)).await
}

async fn open(
    State(front): Shared,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let station = station(peer)?;
    let body = body.map_err(|error| unread(&error))?;
    let versioned: Versioned = parse(&body)?;
    versioned.check().map_err(Refusal::Version)?;
    front.ask(Ask::Open(station, peer.1, parse(&body)?)).await
}

async fn channel(State(front): Shared, Path(id): Path<String>) -> Answer {
    front.ask(Ask::Channel(channel_id(&id)?)).await
}

async fn fund(
    State(front): Shared,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    front.ask(Ask::Fund(channel_id(&id)?, json(body)?)).await
}

async fn pay(
    State(front): Shared,
    Path(id): Path<String>,
    Extension(Peer(station, _)): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    front.pay(channel_id(&id)?, json(body)?, station).await
}

async fn stations(
    State(front): Shared,
    Path(id): Path<String>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let station = station(peer)?;
    only_json(&headers)?;
    front.ask(Ask::ChangeStations(channel_id(&id)?, station, json(body)?)).await
}

async fn close(
    State(front): Shared,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    front.ask(Ask::Close(channel_id(&id)?, json(body)?)).await
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no-such-path",
        format!("there is nothing at {}", uri.path()),
        "GET /v1/offer, /v1/account, /v1/channels/{id}; POST /v1/channels, \
         /v1/channels/{id}/funding, /v1/channels/{id}/payments, /v1/channels/{id}/stations, /v1/channels/{id}/close",
    )
}

async fn not_allowed(method: Method) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method",
        format!("{method} is not for this path"),
        "GET reads, POST opens, pays, shares and closes",
    )
}

fn station(Peer(station, _): Peer) -> Result<Station, ApiError> {
    station.ok_or_else(|| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "not-a-station",
            "this edge sells only to machines on its own LAN, whose MAC it can see",
            "connect to the provider's network directly, not through another router",
        )
    })
}

/// A page of another site can have a browser post any text, but not with this type: nobody is to be
/// bound to an account by looking at a page.
fn only_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let of = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = of.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "content-type",
        "this path takes JSON that is sent as such",
        "send the header Content-Type: application/json",
    ))
}

pub(super) fn channel_id(text: &str) -> Result<ChannelId, ApiError> {
    text.parse().map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "channel-id",
            format!("{error}"),
            "take the id from the answer to POST /v1/channels",
        )
    })
}

pub(super) fn json<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, ApiError> {
    parse(&body.map_err(|error| unread(&error))?)
}

fn unread(error: &BytesRejection) -> ApiError {
    ApiError::new(
        error.status(),
        "body",
        format!("the body can't be read: {error}"),
        "send at most 16 KiB",
    )
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "json",
            format!("the body is not what this path takes: {error}"),
            "send the JSON object that the README shows, without other fields",
        )
    })
}
