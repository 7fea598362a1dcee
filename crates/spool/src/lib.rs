//! spool

pub mod identity;
pub mod log;
pub mod node;
pub mod state;
pub mod storage;
pub mod trace;
pub mod wire;
