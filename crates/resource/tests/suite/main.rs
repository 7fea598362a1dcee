//! What people declare: as files, as objects of an API server, and against each other.

mod definitions;
mod load;
mod ownership;
