//! Everything that is seen from outside: worlds for the tests, and the programs beside them.

pub mod process;
pub mod queue;
