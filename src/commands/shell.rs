//! `shell`: an interactive root shell in a fresh guest.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use sekexe_init::protocol::WindowSize;

use super::job::Job;
use super::{Environment, Status};
use crate::cli::exec::ShellArgs;
use crate::session::{Input, Output};
use crate::step::{Shell, Work};
use crate::sys;

/// Runs the command.
pub fn run(args: &ShellArgs, env: &Environment) -> Result<Status> {
    if !std::io::stdin().is_terminal() {
        bail!("shell needs a terminal on standard input; for a script use: sekexe-ci exec -");
    }
    let shell = match std::path::Path::new("/bin/bash").exists() {
        true => ["bash", "-i"],
        false => ["sh", "-i"],
    };
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("take standard input")?;
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("take standard output")?;
    let job = Job {
        machine: &args.machine,
        work: Work::Arguments(shell.map(Into::into).into()),
        shell: Shell::Unset,
        timeout: None,
        result: None,
        input: Input::Fd(stdin),
        terminal: Some(terminal_size().unwrap_or(WindowSize { rows: 24, columns: 80 })),
        also_writable: Vec::new(),
    };
    let started = job.prepare(env)?.start(Some(terminal_size))?;
    // Only now: until here Ctrl-C interrupts a kernel's build.
    let raw = RawTerminal::enter()?;
    started.run([Output::Fd(stdout), Output::Capture], || drop(raw))?.conclude(env, None)
}

fn terminal_size() -> Option<WindowSize> {
    sys::window_size(std::io::stdin().as_fd())
}

/// Our terminal passes every key on; restored when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &raw).context("make the terminal raw")?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
