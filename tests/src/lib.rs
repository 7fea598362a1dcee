//! Everything that is seen from outside: worlds for the tests, and the programs beside them.

pub mod child;
pub mod deliver;
pub mod kubernetes;
pub mod netns;
pub mod postfix;
pub mod process;
pub mod program;
pub mod queue;
pub mod sim;
