//! What the host and the guest's PID 1 agree on.
//!
//! The library half of this package is the [`protocol`]: pure data and its encoding, no system
//! call, usable from the host program, from the init and from a fuzzer. The binary half is the
//! init itself, which every kind of machine runs.

pub mod protocol;
