//! A queue node: append, lease and settle, durably. raft-rs, a log on disk, metadata, gRPC.
//!
//! **The instant of responsibility**: an Append is answered when its entry is committed, which means fsynced on a
//! majority of the shard's replicas. From then on no single machine's death loses the mail.
//!
//! ```text
//!           serve/ (gRPC)            peer (replicas)
//!              │    ▲                   │    ▲
//!              ▼    │                   ▼    │
//!  state thread: decide/ ──proposals─► Raft thread: node/ ──tasks─► log thread: log/
//!                apply  ◄─committed──               ◄─persisted──
//!                  │
//!                state/ (fjall, flushed every 2 s; the log is its WAL)
//! ```
//!
//! * [`node`]: one Raft group as a machine without I/O; [`storage`]: what raft-rs reads of the log.
//! * [`log`]: segments, one writer, recovery. [`state`]: rows over fjall.
//! * [`snapshot`]: a group for a replica whose log ends too early; `runtime/snapshots` carries it.
//! * [`decide`]: Rule B; what a leader decides before the log. `queue::apply` is what comes after it.
//! * `desk`: documents as applied here, for the nodes that watch them.
//! * [`oversee`]: who the nodes are and where the groups shall be, without I/O.
//! * [`wire`]: queue types and Raft messages to and from their schemas.
//! * [`identity`]: whose disk this is, and first start.
//!
//! Only `node`, `storage`, `wire::raft` and `trace` name raft-rs types, and the transport that carries them.

pub mod collect;
pub mod config;
pub mod decide;
mod describe;
mod desk;
mod directory;
pub mod event;
pub mod identity;
pub mod log;
pub mod node;
pub mod oversee;
mod peer;
mod runtime;
pub mod salvage;
mod serve;
pub mod snapshot;
pub mod state;
pub mod storage;
pub mod trace;
pub mod wire;

pub use config::{Config, Error, InitialState, Retention};
pub use describe::describe_metrics;
pub use runtime::run;

/// The Raft group that holds what is true of the whole cluster; shard s is group s + 1.
pub const CONTROL_GROUP: u32 = 0;
