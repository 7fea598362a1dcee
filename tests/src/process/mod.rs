//! Real `postroad` processes, a client and a next hop of our own, and the judge between them.
//!
//! ```text
//! net.rs      free ports; what a node answers over HTTP
//! node.rs     one process: its log file, kill -9, SIGTERM, peak of memory
//! cluster.rs  queue, edge and delivery nodes on loopback with their own directories and certificates
//! client.rs   sends messages with an id each, again until 250, and writes down what came of every attempt
//! sink.rs     the next hop: keeps what it accepts, octet for octet
//! judge.rs    compares the two: lost, damaged, delivered more than once and why
//! cut.rs      cuts a queue node off from the others
//! disk.rs     a small file system in a file
//! records.rs  what stands where in a segment of the log
//! damage.rs   a queue node whose disk is damaged: what its start comes to, what it mends
//! ```
//!
//! Everything is taken away when the values are dropped, also by a panic; then the ends of the logs are printed.

pub mod client;
pub mod cluster;
pub mod cut;
pub mod damage;
pub mod disk;
pub mod judge;
pub mod net;
pub mod node;
pub mod records;
pub mod sink;

pub use client::{Client, Ledger, Load};
pub use cluster::{Cluster, Spec};
pub use cut::Cut;
pub use judge::judge;
pub use sink::Sink;

/// `full` where the environment says `SIZE=full`, else `small`, which is what CI has time for.
pub fn size<T>(small: T, full: T) -> T {
    match std::env::var("SIZE").is_ok_and(|size| size == "full") {
        true => full,
        false => small,
    }
}
