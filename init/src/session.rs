//! One command and its streams: what is under way, what may be sent, when it is over.
//!
//! A command is over when its process has ended *and* what it wrote has been read. Something it
//! left behind may hold the streams open for ever, so after the process ended an empty pipe counts
//! as the end of the stream.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::protocol::{
    CREDIT_STEP, Failure, MAX_DATA, Outcome, SessionId, Spawn, Stream, ToHost, Usage, WINDOW, WindowSize,
};
use anyhow::Result;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, read, write};

use crate::channel::Channel;
use crate::control_groups::{Counters, Group};
use crate::processes;
use crate::serve::Ways;
use crate::spawn::{self, Started, failure};
use crate::sys::{self, Reaped};

/// A read end and how many bytes the host still takes from it.
struct Output {
    fd: OwnedFd,
    credit: u32,
}

/// A running command.
pub struct Session {
    /// The host's name for it.
    pub id: SessionId,
    pid: libc::pid_t,
    stdin: Option<OwnedFd>,
    terminal: bool,
    pending: Vec<u8>,
    pending_start: usize,
    /// Bytes that the command took and the host has not been told of.
    owed: u32,
    input_ended: bool,
    outputs: [Option<Output>; 2],
    ended: Option<Reaped>,
    group: Option<Group>,
    counters: Counters,
    oom_kills_before: u64,
}

/// Writes a piece of a file that a command needs.
pub fn write_file(path: &[u8], mode: u32, data: &[u8]) -> Result<(), Failure> {
    let path = Path::new(sys::os(path));
    let attempt = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).mode(mode).open(path)?;
        file.write_all(data)?;
        file.set_permissions(fs::Permissions::from_mode(mode))
    };
    attempt().map_err(|e| failure("script", &format!("cannot write {}", path.display()), sys::errno(&e)))
}

impl Session {
    /// Starts the command.
    pub fn start(spawn: &Spawn, max_tasks: u32, ways: Ways) -> Result<Self, Failure> {
        let name = format!("session-{}", spawn.session);
        let group = if ways.own_groups { Group::create(&name, max_tasks) } else { None };
        let oom_kills_before = ways.counters.oom_kills();
        let Started { pid, stdin, outputs } = spawn::start(spawn, group.as_ref(), ways)?;
        Ok(Self {
            id: spawn.session,
            pid,
            stdin,
            terminal: spawn.terminal.is_some(),
            pending: Vec::new(),
            pending_start: 0,
            owed: 0,
            input_ended: false,
            outputs: outputs.map(|fd| fd.map(|fd| Output { fd, credit: WINDOW })),
            ended: None,
            group,
            counters: ways.counters,
            oom_kills_before,
        })
    }

    /// Whether this is the command's own process.
    pub fn owns(&self, reaped: &Reaped) -> bool {
        self.pid == reaped.pid
    }

    /// Its process has ended.
    pub fn process_ended(&mut self, reaped: Reaped) {
        self.ended = Some(reaped);
        self.stdin = None;
        self.pending = Vec::new();
    }

    /// The host granted more.
    pub fn add_credit(&mut self, stream: Stream, bytes: u32) {
        if let Some(output) = &mut self.outputs[stream as usize] {
            output.credit = output.credit.saturating_add(bytes);
        }
    }

    /// The host will not read this stream any more.
    pub fn close_output(&mut self, stream: Stream) {
        self.outputs[stream as usize] = None;
    }

    /// Bytes for the command came from the host.
    pub fn take_input(&mut self, data: &[u8]) {
        if self.stdin.is_some() {
            self.pending.extend_from_slice(data);
        }
    }

    /// No more bytes will come. A terminal that ends has hung up.
    pub fn end_input(&mut self) {
        self.input_ended = true;
        if self.terminal {
            self.hang_up();
        } else if self.pending.is_empty() {
            self.stdin = None;
        }
    }

    /// Closes our side of the terminal; the kernel tells whoever runs there, and a shell that is
    /// between looking for signals and reading its next line finds the end of its input.
    fn hang_up(&mut self) {
        self.stdin = None;
        self.outputs = [None, None];
    }

    /// The descriptor to wait on before [`Session::feed_input`], if there is something to feed.
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        self.stdin.as_ref().filter(|_| self.pending_start < self.pending.len()).map(AsFd::as_fd)
    }

    /// The descriptor to wait on before [`Session::pump_output`], if the host takes more.
    pub fn wants_to_read(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        self.outputs[stream as usize].as_ref().filter(|o| o.credit > 0).map(|o| o.fd.as_fd())
    }

    /// Passes waiting input on.
    pub fn feed_input(&mut self, channel: &mut Channel) -> Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        match write(stdin, &self.pending[self.pending_start..]) {
            Ok(n) => {
                self.pending_start += n;
                self.owed += n as u32;
                if self.owed >= CREDIT_STEP {
                    let bytes = std::mem::take(&mut self.owed);
                    channel.send(&ToHost::Credit { session: self.id, bytes })?;
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(_) => {
                self.stdin = None;
                channel.send(&ToHost::StdinClosed { session: self.id })?;
            }
        }
        if self.pending_start == self.pending.len() {
            self.pending.clear();
            self.pending_start = 0;
            if self.input_ended {
                self.stdin = None;
            }
        }
        Ok(())
    }

    /// Sends what the command wrote. Returns whether there may be more.
    pub fn pump_output(&mut self, stream: Stream, buffer: &mut [u8], channel: &mut Channel) -> Result<bool> {
        let slot = &mut self.outputs[stream as usize];
        let Some(output) = slot else { return Ok(false) };
        let most = buffer.len().min(MAX_DATA).min(output.credit as usize);
        if most == 0 {
            return Ok(false);
        }
        match read(&output.fd, &mut buffer[..most]) {
            Ok(n) if n > 0 => {
                output.credit -= n as u32;
                channel.send(&ToHost::Output { session: self.id, stream, data: &buffer[..n] })?;
                // A short read has emptied the pipe.
                return Ok(n == most || self.ended.is_some());
            }
            Err(Errno::EINTR) => return Ok(true),
            Err(Errno::EAGAIN) if self.ended.is_none() => {}
            // End of file; or, after the end of the process, nothing left; or the EIO of a
            // terminal that nobody has open any more.
            _ => *slot = None,
        }
        Ok(false)
    }

    /// Whether the process has ended, so that what is left in the pipes is all there will be.
    pub fn is_draining(&self) -> bool {
        self.ended.is_some()
    }

    /// How it ended, once everything it wrote has been sent.
    pub fn conclusion(&self) -> Option<(Outcome, Usage)> {
        let ended = self.ended.as_ref()?;
        if self.outputs.iter().any(Option::is_some) {
            return None;
        }
        let oom_kills = self.counters.oom_kills().saturating_sub(self.oom_kills_before);
        let usage = Usage {
            user_us: microseconds(ended.usage.ru_utime),
            system_us: microseconds(ended.usage.ru_stime),
            peak_rss_kib: ended.usage.ru_maxrss.unsigned_abs(),
            oom_kills,
            task_limit_hits: match &self.group {
                Some(group) => group.task_limit_hits(),
                None => self.counters.task_limit_hits(),
            },
        };
        Some((outcome(ended.status, oom_kills), usage))
    }

    /// Sends a signal to its process group, or to everything it started. To a terminal `SIGHUP` is
    /// what its name says.
    pub fn signal(&mut self, signal: i32, everything: bool) {
        let Ok(signal) = Signal::try_from(signal) else { return };
        if self.terminal && signal == Signal::SIGHUP {
            return self.hang_up();
        }
        if everything && signal == Signal::SIGKILL {
            if !self.group.as_ref().is_some_and(Group::kill) {
                for pid in processes::of_command(self.pid) {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            return;
        }
        if self.ended.is_none() {
            let _ = killpg(Pid::from_raw(self.pid), signal);
            if everything {
                let _ = kill(Pid::from_raw(self.pid), signal);
            }
        }
    }

    /// The terminal changed its size; the kernel tells the foreground group.
    pub fn resize(&self, size: WindowSize) {
        if let Some(terminal) = self.stdin.as_ref().filter(|_| self.terminal) {
            let _ = sys::set_window_size(terminal.as_fd(), size);
        }
    }
}

/// The kernel kills the process that holds most memory, which often is a child of the command; its
/// shell then ends with 137.
fn outcome(status: libc::c_int, oom_kills: u64) -> Outcome {
    if libc::WIFEXITED(status) {
        let code = libc::WEXITSTATUS(status) as u8;
        return if code == 137 && oom_kills > 0 { Outcome::OutOfMemory(code) } else { Outcome::Exited(code) };
    }
    let signal = libc::WTERMSIG(status);
    if signal == libc::SIGKILL && oom_kills > 0 {
        return Outcome::OutOfMemory(137);
    }
    Outcome::Signalled(signal)
}

fn microseconds(time: libc::timeval) -> u64 {
    (time.tv_sec * 1_000_000 + time.tv_usec).unsigned_abs()
}
