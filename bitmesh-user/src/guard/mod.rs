//! The guard: a small process with privileges beside a provider's daemon without any.
//!
//! The daemon talks to the network and holds money, so it gives its rights up once everything is
//! open. What still needs them is done here: programs are put back onto their ports, the belt is
//! kept on, and the node's cookie file is read, which the node writes anew at each start. The guard
//! takes its orders from its command line; over the socket it takes single octets, and so never a
//! path, a program or an interface. It ends when the daemon does and leaves everything in place, but
//! where one that never sold failed to start.

mod bell;
mod link;
mod privileges;
mod serve;

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

pub use self::{
    link::{Cookies, Guard, Started, start},
    privileges::{Identity, check_directory, give_up, hand_over},
    serve::serve,
};
use crate::{config::UploadHookArg, dataplane::Change, telemetry::LogFormat};

/// What a daemon can say, an octet each: that it wants the cookie, and that it sells.
const COOKIE: [u8; 1] = *b"c";
const SELLING: [u8; 1] = *b"s";

/// What a guard goes by, as the daemon gives it on the command line. Its standard input is the
/// socket to the daemon, its standard output what holds the instance's pins.
#[derive(Args, Clone, Debug)]
pub struct GuardArgs {
    /// Name of the pins
    #[arg(long)]
    pub instance: String,
    /// A LAN port
    #[arg(long, required = true)]
    pub lan: Vec<String>,
    /// How uploads are metered
    #[arg(long, value_enum)]
    pub upload_hook: UploadHookArg,
    /// The only file that is read
    #[arg(long)]
    pub node_cookie: Option<PathBuf>,
    /// Nothing was sold before: take everything off again if the daemon ends before it sells
    #[arg(long)]
    pub on_trial: bool,
    /// What the log tells
    #[arg(long)]
    pub log: Option<String>,
    /// How its lines look
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

/// What a guard says, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "says", content = "what", rename_all = "kebab-case")]
enum Said {
    /// Everything was looked at once.
    Ready,
    /// Something was found and put right, or was not.
    Change(Change),
    /// What the cookie file holds.
    Cookie(String),
    /// Why there is no cookie.
    NoCookie(String),
}
