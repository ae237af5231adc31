//! The subscriber's side of the API. Nothing that a provider sends is trusted: bodies are bounded,
//! redirects not followed, and what they say is checked by the core.

use std::time::Duration;

use bitmesh_core::{
    channel::ChannelId,
    offer::SignedOffer,
    wire::{
        AccountReport, ChannelReport, CloseRequest, ErrorBody, FundingRequest, OpenRequest,
        PaymentReply, PaymentRequest, StationsRequest,
    },
};
use reqwest::{Client, Method};
use serde::{Serialize, de::DeserializeOwned};

use crate::http;

/// Time that a provider has to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// The same, where it asks the network first: longer than it gives itself.
const FUNDING_DEADLINE: Duration = Duration::from_secs(20);
/// Largest answer that is read, in octets.
const ANSWER_MAX_OCTETS: usize = 64 * 1_024;

/// Why a provider gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, or none in time.
    #[error("the provider at {url} does not answer ({reason}); is this machine on its network?")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// It refused, and said why.
    #[error("the provider refuses: {}; {}", body.message, body.r#try)]
    Refused {
        /// Of the HTTP answer.
        status: u16,
        /// What it said.
        body: ErrorBody,
    },
    /// It answered something else.
    #[error("{url} does not answer like a provider ({reason}); is it one, and of this version?")]
    Broken {
        /// Where it was looked for.
        url: String,
        /// What was wrong.
        reason: String,
    },
}

/// A provider's API.
#[derive(Clone, Debug)]
pub struct Provider {
    http: Client,
    url: String,
}

impl Provider {
    /// The provider at `http://host:port`.
    pub fn new(url: impl Into<String>) -> Result<Self, ClientError> {
        let url = url.into();
        let http = http::plain()
            .build()
            .map_err(|error| ClientError::Broken { url: url.clone(), reason: error.to_string() })?;
        Ok(Self { http, url })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it sells.
    pub async fn offer(&self) -> Result<SignedOffer, ClientError> {
        self.get("/v1/offer").await
    }

    /// What this station has there.
    pub async fn account(&self) -> Result<AccountReport, ClientError> {
        self.get("/v1/account").await
    }

    /// Opens a channel.
    pub async fn open(&self, request: &OpenRequest) -> Result<ChannelReport, ClientError> {
        self.post("/v1/channels", request).await
    }

    /// Presents a signed funding.
    pub async fn fund(
        &self,
        channel: ChannelId,
        funding: &FundingRequest,
    ) -> Result<ChannelReport, ClientError> {
        let path = format!("/v1/channels/{channel}/funding");
        self.send(Method::POST, &path, Some(funding), FUNDING_DEADLINE).await
    }

    /// Pays.
    pub async fn pay(
        &self,
        channel: ChannelId,
        payment: &PaymentRequest,
    ) -> Result<PaymentReply, ClientError> {
        self.post(&format!("/v1/channels/{channel}/payments"), payment).await
    }

    /// How a channel stands there.
    pub async fn channel(&self, channel: ChannelId) -> Result<ChannelReport, ClientError> {
        self.get(&format!("/v1/channels/{channel}")).await
    }

    /// Changes which stations the channel's account pays for.
    pub async fn change_stations(
        &self,
        channel: ChannelId,
        change: &StationsRequest,
    ) -> Result<AccountReport, ClientError> {
        self.post(&format!("/v1/channels/{channel}/stations"), change).await
    }

    /// Asks for the claim to be made now, or for a close to be signed.
    pub async fn close(
        &self,
        channel: ChannelId,
        close: &CloseRequest,
    ) -> Result<ChannelReport, ClientError> {
        self.post(&format!("/v1/channels/{channel}/close"), close).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, None::<&()>, DEADLINE).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.send(Method::POST, path, Some(body), DEADLINE).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        let url = format!("{}{path}", self.url);
        let mut request = self.http.request(method, url).timeout(deadline);
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let mut octets = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            if octets.len() + chunk.len() > ANSWER_MAX_OCTETS {
                return Err(self.broken("its answer is too long"));
            }
            octets.extend_from_slice(&chunk);
        }
        if status.is_success() {
            serde_json::from_slice(&octets).map_err(|error| self.broken(error.to_string()))
        } else {
            let body = serde_json::from_slice(&octets)
                .map_err(|_| self.broken(format!("it answered {status}")))?;
            Err(ClientError::Refused { status: status.as_u16(), body })
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let mut reason: &dyn std::error::Error = error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        ClientError::Unreachable { url: self.url.clone(), reason: reason.to_string() }
    }

    fn broken(&self, reason: impl Into<String>) -> ClientError {
        ClientError::Broken { url: self.url.clone(), reason: reason.into() }
    }
}
