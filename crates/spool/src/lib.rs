//! spool

pub mod identity;
pub mod log;
