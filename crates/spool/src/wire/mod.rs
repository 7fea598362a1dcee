//! Conversions between what the cores know and what travels or lies on disk. The cores derive no serialisation.

pub mod log;
