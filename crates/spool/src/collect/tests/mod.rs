//! The collector over a disk that crashes, with the state as a model: rows in memory, and what a flush made durable.

mod amplification;
mod crash;
mod damage;
mod space;
mod world;
