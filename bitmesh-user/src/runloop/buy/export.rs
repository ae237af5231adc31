//! What a stock wallet takes to refund a channel, without this program.

use bitmesh_core::{buyer::Buyer, channel::ChannelParams};
use miniscript::descriptor::checksum::desc_checksum;

use crate::{
    api::RefundExport,
    wallet::{Role, Wallet},
};

/// Of every channel that is funded and not settled. The descriptors hold private keys.
pub(in crate::runloop) fn export_refunds(wallet: &mut Wallet, buyer: &Buyer) -> Vec<RefundExport> {
    let address = wallet.unused_address().to_string();
    let tip = buyer.book().tip();
    let channels = buyer.book().iter().filter(|(_, channel)| channel.spent().is_none());
    let exports = channels.filter_map(|(id, channel)| {
        let (funding, params) = (channel.funding()?, channel.params());
        let key = wallet.export_channel_key(Role::Subscriber, channel.key_index());
        Some(RefundExport {
            channel: *id,
            network: params.network,
            capacity_sat: params.capacity.to_sat(),
            outpoint: funding.outpoint,
            funding_height: funding.height,
            expiry_height: params.expiry_height,
            tip,
            descriptor: signing_descriptor(params, &key)?,
            address: address.clone(),
        })
    });
    exports.collect()
}

/// The channel's descriptor with the private key in the place of its public one, and its checksum
/// (BIP380).
fn signing_descriptor(params: &ChannelParams, private: &str) -> Option<String> {
    let text = params.descriptor()?.to_string();
    let text = text.split_once('#').map_or(text.as_str(), |(text, _)| text);
    let text = text.replace(&params.subscriber.to_string(), private);
    let checksum = desc_checksum(&text).unwrap_or_default();
    Some(format!("{text}#{checksum}"))
}
