//! Queue nodes in one process, over real TLS and real disks.

mod appends;
mod room;
