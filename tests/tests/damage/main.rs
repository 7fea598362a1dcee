//! One byte of one node's disk is not what was written: real processes.

mod collected;
mod files;
mod records;
mod salvage;
