//! Real processes on one machine, a client that keeps books, and what befalls them.

mod collect;
mod config;
mod disk;
mod hang;
mod kills;
mod load;
mod members;
mod snapshot;
