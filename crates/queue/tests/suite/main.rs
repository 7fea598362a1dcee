//! The state machine, its scheduler and its questions, through what the crate shows.

mod common;
mod model;
mod scheduler;
mod scripts;
mod view;
