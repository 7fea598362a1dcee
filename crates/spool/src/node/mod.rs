//! One replica of one Raft group around raft-rs: no threads, no clock, no randomness, no I/O. [`Group::handle`] takes
//! what happened, [`Group::drain`] gives what is to be done. The order of what a Ready asks for is the whole point of
//! this module: it decides whether an acknowledged message can be lost. It lives in `ready`.

mod api;
mod group;
mod members;
mod planted;
mod propose;
mod ready;
mod snapshot;
#[cfg(test)]
mod tests;
mod watch;

pub use api::*;
pub use group::Group;
#[cfg(feature = "planted-bugs")]
pub use planted::Mutation;
pub use snapshot::{Made, SnapshotAction, SnapshotInput};
