//! How HTTP is spoken: without proxies, and never sent elsewhere by who answers.

use std::sync::Once;

use reqwest::{Client, ClientBuilder, redirect};
use rustls::crypto::ring;

/// What a failed request failed of, without the layers above it.
pub fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// For `http://` alone: it trusts nobody's certificate, and so needs not read whom to trust.
pub fn plain() -> ClientBuilder {
    builder().tls_certs_only([])
}

/// For `https://`, too: it trusts whom this machine trusts.
pub fn secure() -> ClientBuilder {
    builder()
}

fn builder() -> ClientBuilder {
    static PROVIDER: Once = Once::new();
    // It fails only when there is one.
    PROVIDER.call_once(|| drop(ring::default_provider().install_default()));
    Client::builder().no_proxy().redirect(redirect::Policy::none())
}
