//! The integration tests: our program as a process, on the real kernels of this machine.

mod action;
mod bad_input;
mod ci;
mod confinement;
mod detect;
mod docker;
mod escapes;
mod examples;
mod exec;
mod execns;
mod github;
mod isolation;
mod kernel;
mod leftovers;
mod limits;
mod network;
mod others;
mod parity;
mod sessions;
mod signals;
mod support;
