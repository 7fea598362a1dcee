//! Ends the operator where a test wants it to: right after a write, as if the machine had died there. What was written stays, and
//! nothing that would have followed is.

use std::process::exit;

/// `all`, or names of writes with commas between them. A step that finds a write made does not make it again, so the operator dies
/// once of each and comes on all the same.
const VARIABLE: &str = "POSTROAD_FAIL_POINTS";
/// How the process ends then: nothing else of it ends so.
const STATUS: i32 = 86;

/// Ends the process if it is to end after this write, which changed something.
pub fn after(write: &str) {
    let Ok(named) = std::env::var(VARIABLE) else {
        return;
    };
    if named == "all" || named.split(',').any(|name| name == write) {
        tracing::error!("fail point: the operator ends after {write}");
        exit(STATUS);
    }
}
