//! One replica of one group around raft-rs, without threads, clock, randomness or I/O.

mod api;

pub use api::*;
