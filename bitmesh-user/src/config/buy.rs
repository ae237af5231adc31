//! Settings of a subscriber.

use anyhow::{Result, bail};
use bitcoin::Amount;
use bitmesh_core::{
    bitcoin,
    channel::{CAPACITY_MIN, LIFETIME_MAX_BLOCKS, LIFETIME_MIN_BLOCKS},
};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{API_PORT, Common, CommonArgs, instance, merge};

/// What a subscriber puts into a channel unless it says otherwise, in satoshi.
const CAPACITY_SAT: u64 = 50_000;
/// How long a channel lives unless the subscriber says otherwise, in blocks: two weeks.
const LIFETIME_BLOCKS: u32 = 2_016;

/// Flags of `bitmesh buy`.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct BuyArgs {
    /// The provider's API [default: port 8434 of the default gateway]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Most to spend in all, in satoshi; `bitmesh budget` changes it later
    /// [default: what the channel holds]
    #[arg(long, value_name = "SAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// Most to put into a channel, in satoshi; what isn't spent comes back, and what the budget has
    /// beyond it goes through further channels [default: 50000]
    #[arg(long, value_name = "SAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// Blocks until a channel's money comes back by itself if the provider vanishes
    /// [default: 2016, two weeks]
    #[arg(long, value_name = "BLOCKS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u32>,
    /// Name of the pinned count under /sys/fs/bpf/bitmesh, for several on one machine
    /// [default: buy]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Highest price to accept, in millisatoshi per MiB [default: any]
    #[arg(long, value_name = "MSAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_max: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
}

/// What `bitmesh buy` works with.
#[derive(Clone)]
pub struct BuyConfig {
    /// Data and node.
    pub common: Common,
    /// The provider's API, without a slash at the end.
    pub provider: Option<String>,
    /// What may be spent, if it was said.
    pub budget: Option<Amount>,
    /// Of a new channel.
    pub capacity: Amount,
    /// Of a new channel, in blocks.
    pub lifetime: u32,
    /// In msat per MiB.
    pub price_max: Option<u64>,
    /// Of the pins.
    pub instance: String,
}

impl BuyArgs {
    /// Reads the file, if one is named, and checks everything.
    pub fn resolve(self) -> Result<BuyConfig> {
        let args: Self = merge(self.common.config.clone().as_deref(), self)?;
        let capacity = Amount::from_sat(args.capacity.unwrap_or(CAPACITY_SAT));
        if capacity < CAPACITY_MIN || capacity > Amount::MAX_MONEY {
            bail!("--capacity is at least {} sat: below that, fees eat it", CAPACITY_MIN.to_sat());
        }
        let lifetime = args.lifetime.unwrap_or(LIFETIME_BLOCKS);
        if !(LIFETIME_MIN_BLOCKS..=LIFETIME_MAX_BLOCKS).contains(&lifetime) {
            bail!("--lifetime is {LIFETIME_MIN_BLOCKS} to {LIFETIME_MAX_BLOCKS} blocks");
        }
        let provider = args.provider.map(|url| url.trim_end_matches('/').to_owned());
        if provider.as_ref().is_some_and(|url| !url.starts_with("http://")) {
            bail!("--provider is a URL like http://192.168.1.1:{API_PORT}");
        }
        Ok(BuyConfig {
            common: args.common.resolve("buy")?,
            provider,
            budget: args.budget.map(Amount::from_sat),
            capacity,
            lifetime,
            price_max: args.price_max,
            instance: instance(args.instance, "buy")?,
        })
    }
}
