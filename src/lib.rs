//! The tape.

pub mod report;
