//! What comes back for what no good client sends; the rules behind are tested in the core.

use axum::{body::Body, http::Request};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use super::{public::Peer, *};

const ID: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// Sends a request of a station to the routes with nobody at the other end of the mailbox.
async fn send(method: &str, path: &str, body: Body, station: bool) -> (StatusCode, ErrorBody) {
    let (mailbox, _kept) = mpsc::channel(1);
    let front = Front::new(mailbox.clone(), 0);
    mailbox.try_send(Envelope { ask: Ask::Offer, reply: oneshot::channel().0 }).unwrap();
    let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
    let station = station.then(|| "02:00:00:00:00:01".parse().unwrap());
    request
        .extensions_mut()
        .insert(Peer(station, Origin { interface: 3, address: [10, 0, 0, 2].into() }));
    let answer = router(front).oneshot(request).await.unwrap();
    let status = answer.status();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn every_refusal_has_a_code_a_sentence_and_advice() {
    let payments = format!("/v1/channels/{ID}/payments");
    let deep = "[".repeat(10_000);
    let cases: [(&str, &str, Body, StatusCode, &str); 10] = [
        ("GET", "/nothing", Body::empty(), StatusCode::NOT_FOUND, "no-such-path"),
        ("DELETE", "/v1/offer", Body::empty(), StatusCode::METHOD_NOT_ALLOWED, "method"),
        ("GET", "/v1/channels/xyz", Body::empty(), StatusCode::BAD_REQUEST, "channel-id"),
        ("POST", "/v1/channels", Body::from("{}"), StatusCode::BAD_REQUEST, "json"),
        (
            "POST",
            "/v1/channels",
            Body::from(r#"{"version":2,"all":"else"}"#),
            StatusCode::UNPROCESSABLE_ENTITY,
            "version",
        ),
        ("POST", "/v1/channels", Body::from("\u{0}"), StatusCode::BAD_REQUEST, "json"),
        ("POST", &payments, Body::from(deep), StatusCode::BAD_REQUEST, "json"),
        ("POST", &payments, Body::from(r#"{"paid_sat":-1}"#), StatusCode::BAD_REQUEST, "json"),
        (
            "POST",
            &payments,
            Body::from(vec![b' '; (16 << 10) + 1]),
            StatusCode::PAYLOAD_TOO_LARGE,
            "body",
        ),
        ("GET", "/v1/offer", Body::empty(), StatusCode::SERVICE_UNAVAILABLE, "busy"),
    ];
    for (method, path, body, status, code) in cases {
        let (got, error) = send(method, path, body, true).await;
        assert_eq!((got, error.error.as_str()), (status, code), "{method} {path}");
        assert!(!error.message.is_empty() && !error.r#try.is_empty(), "{method} {path}");
    }
}

#[tokio::test]
async fn what_is_not_on_the_lan_has_no_account() {
    let stations = format!("/v1/channels/{ID}/stations");
    for (method, path) in
        [("GET", "/v1/account"), ("POST", "/v1/channels"), ("POST", stations.as_str())]
    {
        let (status, error) = send(method, path, Body::empty(), false).await;
        assert_eq!((status, error.error.as_str()), (StatusCode::FORBIDDEN, "not-a-station"));
    }
}

#[tokio::test]
async fn a_page_of_another_site_binds_nobody() {
    let stations = format!("/v1/channels/{ID}/stations");
    let (status, error) = send("POST", &stations, Body::from("{}"), true).await;
    assert_eq!((status.as_u16(), error.error.as_str()), (415, "content-type"));
}

#[test]
fn who_is_told_to_try_again_is_told_when() {
    for refusal in [Refusal::Underway, Refusal::Moving, Refusal::TableFull, Refusal::ChainLost] {
        let error = ApiError::from(refusal);
        assert_eq!(error.status, StatusCode::SERVICE_UNAVAILABLE, "{error:?}");
        assert!(error.retry_after.is_some(), "{error:?}");
    }
}

#[test]
fn a_budget_never_exceeds_the_money_supply() {
    let budget = Amount::from_sat(5);
    assert_eq!(BudgetChange::AddSat(3).apply(budget), Some(Amount::from_sat(8)));
    assert_eq!(BudgetChange::SetSat(3).apply(budget), Some(Amount::from_sat(3)));
    assert_eq!(BudgetChange::AddSat(u64::MAX).apply(budget), None);
    assert_eq!(BudgetChange::SetSat(u64::MAX).apply(budget), None);
}
