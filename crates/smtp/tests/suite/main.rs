//! Both sessions, fed by hand: there is no socket here.
#![allow(clippy::disallowed_methods, reason = "a test may read the clock")]

mod client_scripts;
mod common;
mod properties;
mod server_scripts;
mod smuggling;
