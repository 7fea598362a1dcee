//! The SMTP conversation, both sides, as state machines over bytes (sans-IO; RFC 5321).
//!
//! One contract for [`server::Session`] and [`client::Session`]:
//!
//! * `feed(bytes, now)`: what arrived, and when.
//! * `answer(answer, now)`: what the outside decided.
//! * `tick(now)`: what time it is.
//! * `drain()`: what is to be done next; call it until it says `Wait` or `Close`. After each of the other three, drain again.
//!
//! Neither takes care of sockets, clocks, names or TLS. While a question is open the session keeps input up to
//! [`limits::INPUT_BYTES_MAX`], and `wants_read()` says whether the driver should read at all: that is all the
//! backpressure there is.

pub mod client;
pub mod command;
pub mod dot;
pub mod extension;
pub mod limits;
pub mod line;
pub mod server;
