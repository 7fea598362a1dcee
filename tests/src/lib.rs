//! Everything that is seen from outside: worlds for the tests, and the programs beside them.

<<<<<<< HEAD
pub mod process;
=======
pub mod netns;
pub mod postfix;
pub mod child;
pub mod program;
>>>>>>> 88b6872 (Measure Postroad beside Postfix and beside its own log)
pub mod queue;
