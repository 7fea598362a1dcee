//! The retry decision.
