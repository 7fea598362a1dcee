//! A whole shard in one thread and virtual time: real Raft groups and the real state machine over simulated disks,
//! network, edges and delivery nodes. One seed of one profile is one run; see tests/README.md.

mod actions;
mod bodies;
mod check;
mod churn;
mod collecting;
mod converge;
mod delivery;
mod disk;
mod disturb;
mod duplicates;
mod edge;
mod lead;
mod leader;
mod members;
mod message;
mod model;
mod net;
mod person;
mod planted;
mod profile;
mod real_log;
mod replica;
mod rng;
mod run;
mod snapshots;
mod step;
mod trace;
mod upkeep;
mod world;

#[cfg(feature = "planted-bugs")]
pub use planted::all_bugs;
pub use planted::{Bug, Planted, own_bugs};
pub use profile::Profile;
pub use run::{Batch, hunt, number_from, run, run_all};
pub use world::Outcome;
