//! PID 1 of a machine, and what it agrees on with the host.
//!
//! The [`protocol`] is pure: data and its encoding, no system call, usable from the host program and
//! from a fuzzer. The rest is the init itself, which every kind of machine runs. A guest's kernel
//! starts it as a program of its own; for namespaces the host program is that program as well, so
//! that nothing has to be written anywhere first.

mod channel;
mod control_groups;
mod devices;
mod life;
pub mod netlink;
mod network;
mod processes;
pub mod protocol;
mod root;
mod seal;
mod seccomp;
mod serve;
mod session;
mod shadows;
mod spawn;
mod sys;
pub mod unsent;
mod users;

pub use life::main;
