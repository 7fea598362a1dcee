//! An edge between real clients and a queue that is real as far as the edge can see.

mod accept;
mod cost;
mod greeting;
mod tls;
mod world;
