//! sekexe-ci: runs a CI step as root, in namespaces or in a guest kernel, as an ordinary user.
//!
//! # Map of the code
//!
//! ```text
//! main -> commands -> { github, ci, machine, session, net, step, exposure, plan, detect, kernel } -> init's protocol -> sys -> nix
//! ```
//!
//! Nothing points back.
//!
//! - [`cli`]: what may be typed; clap types and nothing else.
//! - [`commands`]: one file for each command; the only place that wires the others together, reads
//!   the environment and prints.
//! - [`step`]: from a script, a shell and an environment to what the machine is told to start.
//! - [`plan`]: pure; from a request and what the host gives to a machine, or a refusal.
//! - [`exposure`]: which host paths the machine sees and may change.
//! - [`machine`]: starts a machine and confines it: a guest, namespaces, or none. Nothing above knows
//!   which kind it is.
//! - [`execns`]: a program in fresh namespaces at the moment of exec; how the namespaces machine
//!   starts its init, and a call of its own.
//! - [`session`]: the host's end of the protocol: boot, spawn, stream, signal, wait.
//! - [`net`]: the machine's network: frames in, the host's own sockets out; a thread of its own. Frames
//!   of a guest are in memory that it shares; what namespaces download in bulk is left to the kernel.
//! - [`ci`]: the words of each CI; what a command's output and end mean to it.
//! - [`github`]: check runs and comments by GitHub's API; the only place with an asynchronous runtime.
//! - [`kernel`]: catalogue, build and cache of guest kernels.
//! - [`detect`]: what the host gives us.
//! - [`report`]: how it ended, as a result file, a line and an exit status.
//! - [`sys`]: the only `unsafe` of the host side.
//!
//! # Invariants
//!
//! 1. Only the main thread starts machines: the kernel ties their lives to the thread that forks.
//! 2. No `unsafe` outside `sys`, here and in the init.
//! 3. No printing outside `commands` and `main`; no exit outside `main`.
//! 4. No environment read outside `commands`; no version compared where a probe can answer.
//! 5. A script's bytes are never rewritten and never share a stream with kernel or init messages.
//! 6. Nothing of the user's crosses on the guest kernel's command line.
//! 7. A missing or unreadable outcome is our failure, never success.
//! 8. A machine that has come up is never replaced by another: its command, of which it was told
//!    beforehand, may have begun.

pub mod ci;
#[expect(missing_docs, reason = "the doc comments here are help texts")]
pub mod cli;
pub mod commands;
pub mod detect;
pub mod execns;
pub mod exposure;
pub mod github;
pub mod kernel;
pub mod machine;
pub mod net;
pub mod plan;
pub mod report;
pub mod session;
pub mod step;
mod sys;
