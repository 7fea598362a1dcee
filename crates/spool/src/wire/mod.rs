//! Conversions between what the cores know and what travels or lies on disk. The cores derive no serialisation.

pub mod config;
pub mod control;
pub mod log;
pub mod members;
pub mod raft;
pub mod snapshot;
