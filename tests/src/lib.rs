//! What the end-to-end tests and the lab share: network namespaces, a real regtest node, counters
//! that know nothing of BitMesh, and the daemons as processes.
//!
//! Traffic stays in namespaces that the run made, and goes with them: everything here cleans up
//! when it is dropped, and what a killed run left is swept by the next.

pub mod alone;
pub mod commands;
pub mod counters;
pub mod daemon;
pub mod edge;
pub mod esplora;
pub mod faults;
pub mod fleet;
pub mod flood;
pub mod follower;
pub mod ledgers;
pub mod liar;
pub mod napi;
pub mod netns;
mod offload;
pub mod payers;
pub mod pinned;
pub mod postgres;
pub mod raw;
pub mod regtest;
pub mod sabotage;
pub mod sim;
pub mod small_disk;
pub mod stalls;
pub mod sweep;
pub mod systemd;
pub mod terminal;
pub mod till;
pub mod topology;
pub mod traffic;
pub mod world;
