//! Runs the programs that make a kernel: `make`, `tar`, `apt-get`, `curl`.
//!
//! Their output goes through a pipe to us, into a log file and to whoever
//! counts lines. That pipe is also what ends a build whose owner was killed:
//! the next line that any of its processes writes meets a broken pipe. Where
//! [signals are held](HeldSignals), one that comes ends the program at once.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::sys::is_ignored;

/// Lines of a log that an error shows.
const TAIL: usize = 20;

/// Holds back the signals by which somebody wants us to end, for as long as there is something to clean
/// up. A running program is then ended with all that it has started, which is an error; the signal acts
/// when this is dropped.
///
/// Only the calling thread must be able to get them.
#[derive(Debug)]
pub struct HeldSignals(SigSet);

impl HeldSignals {
    /// From now on.
    pub fn new() -> Result<Self> {
        let before = ending().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        Ok(Self(before.context("cannot hold signals back")?))
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask();
    }
}

/// What is ignored must not be held: it would count as having come.
fn ending() -> SigSet {
    let all = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    all.into_iter().filter(|signal| !is_ignored(*signal)).collect()
}

/// A log file that collects the output of several programs.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Creates the file, or empties it.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Runs a command to its end with standard input empty and both outputs in
    /// the log. `on_line` gets each line, and `None` once a second in between.
    /// A command that fails is an error that shows the end of its output.
    pub fn run(&mut self, command: &mut Command, on_line: &mut dyn FnMut(Option<&str>)) -> Result<()> {
        let status = self.status(command, on_line)?;
        if status.success() {
            return Ok(());
        }
        bail!(
            "{} {}; its last lines:\n{}\nthe whole log is {}",
            name(command),
            describe(status),
            self.tail(),
            self.path.display()
        );
    }

    /// Like [`Log::run`], but how it ended is for the caller to judge.
    pub fn status(
        &mut self,
        command: &mut Command,
        on_line: &mut dyn FnMut(Option<&str>),
    ) -> Result<ExitStatus> {
        let (mut output, input) = std::io::pipe().context("cannot create a pipe")?;
        let program = name(command);
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        // Readable when one has come that is held back.
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&ending(), flags).context("cannot watch for signals")?;
        // A terminal's signals then come to us alone, and we end it with all that it has started.
        let alone = SigSet::thread_get_mask().is_ok_and(|held| held.contains(Signal::SIGTERM));
        if alone {
            command.process_group(0);
        }
        let spawned = command.spawn().with_context(|| format!("cannot run {program}"));
        // The command holds the writing end until it is told otherwise.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = Running { child: spawned?, alone };

        let mut pending = Vec::new();
        let mut block = vec![0; 64 * 1024];
        let mut ticked = Instant::now();
        loop {
            let mut ready = [output.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut ready, PollTimeout::from(1000u16)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for output"),
            }
            let [readable, interrupted] = ready.map(|fd| fd.any().unwrap_or_default());
            if interrupted {
                drop(child);
                // The last of its processes is gone when nobody can write any more.
                let _ = std::io::copy(&mut output, &mut std::io::sink());
                bail!("{program} was interrupted");
            }
            if readable {
                let count = output.read(&mut block).context("cannot read output")?;
                if count == 0 {
                    break;
                }
                self.file.write_all(&block[..count]).context("cannot write the log")?;
                pending.extend_from_slice(&block[..count]);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    on_line(Some(String::from_utf8_lossy(&line).trim_end()));
                }
            }
            if ticked.elapsed() >= Duration::from_secs(1) {
                ticked = Instant::now();
                on_line(None);
            }
        }
        child.child.wait().with_context(|| format!("cannot wait for {program}"))
    }

    /// The last lines of the log.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// A child that does not outlive an early return.
struct Running {
    child: Child,
    /// Whether what it has started is in a group with it, and nobody else is.
    alone: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            if self.alone {
                let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a short command prints, or `None` if it fails.
#[must_use]
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `exited with status 2`, `was killed by signal 9`.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => "did not end".to_owned(),
    }
}

/// The program that a name stands for on this PATH.
#[must_use]
pub fn find_program(name: impl AsRef<OsStr>, path: &OsStr) -> Option<PathBuf> {
    which::which_in(name, Some(path), "/").ok()
}

fn name(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::create(&dir.path().join("log")).unwrap();
        (dir, log)
    }

    #[test]
    fn lines_arrive_whole_and_in_the_log() {
        let (_dir, mut log) = log();
        let mut lines = Vec::new();
        log.run(Command::new("sh").args(["-c", "printf 'a\\nb'; echo c >&2"]), &mut |line| {
            lines.extend(line.map(str::to_owned));
        })
        .unwrap();
        assert_eq!(lines, ["a", "bc"]);
        assert_eq!(log.tail(), "a\nbc");
    }

    #[test]
    fn where_signals_are_held_one_ends_the_program_with_all_that_it_started() {
        let (dir, mut log) = log();
        let held = HeldSignals::new().unwrap();
        let started = Instant::now();
        let error = log
            .run(
                Command::new("sh")
                    .args(["-c", "(sleep 60; touch \"$0\") & echo on its way; wait"])
                    .arg(dir.path()),
                // To this thread alone.
                &mut |_| nix::sys::signal::raise(Signal::SIGTERM).unwrap(),
            )
            .unwrap_err();
        assert_eq!(error.to_string(), "sh was interrupted");
        // Its end is that of everybody who could have written.
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        // It would act on the test otherwise.
        assert_eq!(ending().wait().unwrap(), Signal::SIGTERM);
        drop(held);
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output_and_where_the_rest_is() {
        let (_dir, mut log) = log();
        let error = log
            .run(Command::new("sh").args(["-c", "seq 1 100; exit 3"]), &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("sh exited with status 3"), "{error}");
        assert!(error.contains("\n81\n"), "{error}");
        assert!(!error.contains("\n80\n"), "{error}");
        assert!(error.contains(&log.path.display().to_string()), "{error}");
    }
}
