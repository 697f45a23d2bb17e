//! The integration tests: our program as a process, on the real kernels of this machine.

mod exec;
mod kernel;
mod support;
