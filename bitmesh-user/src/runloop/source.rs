//! Where a daemon's blocks come from.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use bitmesh_core::channel::Entry;
use tracing::info;

use crate::{
    chain::{ChainError, ChainSource, Esplora, Kind, LightClient, NodeRpc},
    config::{Common, SourceConfig},
};

/// How often it is told what the first start waits for.
const FIRST_TIP_TOLD: Duration = Duration::from_secs(10);

/// The source that the settings name. `entries` tell from where on it will be asked.
pub(super) fn open_source<E>(
    common: &Common,
    entries: &[Entry<E>],
) -> Result<Arc<dyn ChainSource>> {
    let tips: Vec<_> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Block { height, hash } => Some((*height, *hash)),
            _ => None,
        })
        .collect();
    let network = common.network;
    let source: Arc<dyn ChainSource> = match &common.source {
        SourceConfig::Light { peers } => {
            Arc::new(LightClient::start(network, peers, &tips, common.data_dir.clone())?)
        }
        SourceConfig::Node { url, login } => Arc::new(NodeRpc::new(url, login.clone(), network)?),
        SourceConfig::Esplora { url } => Arc::new(Esplora::new(url, network)?),
    };
    info!("blocks come from {} ({})", source.name(), common.source_reason);
    Ok(source)
}

/// Height of the chain's tip; waits while a light client gets to know it.
pub(super) async fn first_tip(source: &dyn ChainSource) -> Result<u32, ChainError> {
    let mut waited = Duration::ZERO;
    loop {
        match source.tip().await {
            Err(error @ ChainError::NotReady { kind: Kind::Peers, .. }) => {
                if waited.as_secs().is_multiple_of(FIRST_TIP_TOLD.as_secs()) {
                    info!("{error}");
                }
                waited += Duration::from_secs(1);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
            Ok((tip, _)) => {
                source.check().await?;
                return Ok(tip);
            }
        }
    }
}
