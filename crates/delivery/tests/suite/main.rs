//! A delivery node between a queue and next hops that do what a test tells them.

mod bad_manners;
mod dkim;
mod leases;
mod many_hosts;
mod next_hops;
mod several_hosts;
mod support;
mod tls;
mod too_many_recipients;
