//! The replicated state machine: messages, items, lease sessions, due times; and the retry decision.
//!
//! ```text
//!          append                    lease (grant)
//! (none) ─────────► Waiting{due} ─────────────► Leased{session, token}
//!                     ▲  ▲ │ hold                │   │   │
//!                     │  │ ▼                     │   │   │
//!                     │  Held   session expires ─┘   │   │
//!                     └────────── settle: deferred ──┘   │
//!                                 settle: delivered ─────┴─► (none)
//!                                 settle: failed ─ report appended in the same entry ─► (none)
//! ```
//!
//! [`apply()`] is total and deterministic and knows only facts: whatever depends on time, policy or chance was decided
//! by the leader and stands in the [`Command`]. It has no clock, no random source and no I/O; a storage error is the
//! business of whoever implements [`Rows`].

mod admin;
mod append;
mod apply;
mod command;
pub mod config;
pub mod control;
mod effect;
mod item;
mod lease;
mod planted;
pub mod retry;
mod row;
mod rows;
pub mod scheduler;
mod settle;
mod timer;
mod upload;
pub mod version;
pub mod view;

pub use append::DEDUPE_MS;
pub use apply::apply;
pub use command::*;
pub use effect::*;
pub use item::LOST_ATTEMPTS_MAX;
#[cfg(feature = "planted-bugs")]
pub use planted::{Mutation, plant};
pub use row::*;
pub use rows::{MemoryRows, Rows, Table};
pub use upload::{CHUNKS_MAX, UPLOAD_IDLE_MS};
