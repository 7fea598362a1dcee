//! Clients and servers of the protocol over real sockets.

mod client;
mod support;
mod tls;
