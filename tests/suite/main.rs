//! The integration tests: our program as a process, on the real kernels of this machine.

mod bad_input;
mod confinement;
mod exec;
mod kernel;
mod leftovers;
mod sessions;
mod signals;
mod support;
