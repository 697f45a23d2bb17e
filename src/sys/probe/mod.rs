//! Tries system calls in a process that may be lost.
//!
//! What is to be tried is data: lists of [`Call`]s. A child goes through them, and after each list
//! writes down how far it got, so that even one that hangs or is killed tells where. Nothing that
//! the child does allocates or takes a lock, so it may be forked from a program with threads.
//!
//! Namespaces are entered by the child and by children of its own: a seccomp filter that kills
//! whoever asks for one then kills the child and not us.

mod filter;
mod fuse;
pub mod landlock;
mod network;
mod process;
mod trace;
mod virtual_cpu;

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::statfs::statfs;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, mkdir, read, write};
use process::{SIGNALLED, descend, fork, leave};

/// One thing to try.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// Go on with this list only if the list of this number was done.
    After(usize),
    /// Enter namespaces.
    Unshare(CloneFlags),
    /// Go on in a child that is cloned into these namespaces.
    Descend(CloneFlags),
    /// Mount a file system. The data is empty for none.
    Mount {
        /// What; a file system's type.
        kind: &'a CStr,
        /// Where.
        at: &'a CStr,
        /// How.
        flags: MsFlags,
        /// The file system's own options.
        data: &'a CStr,
    },
    /// Create a directory.
    MakeDirectory(&'a CStr),
    /// Write a file that exists.
    Write(&'a CStr, &'a [u8]),
    /// Create a file with this in it.
    Create(&'a CStr, &'a [u8]),
    /// Find this in a file, or fail with `EIO`.
    Expect(&'a CStr, &'a [u8]),
    /// Change the host's name.
    SetHostname(&'a [u8]),
    /// Switch the loopback interface on.
    RaiseLoopback,
    /// Ask a directory's file system about itself.
    Visit(&'a CStr),
    /// Open a device for reading and writing.
    Open(&'a CStr),
    /// Create a TAP interface.
    CreateTap,
    /// Mount a file system whose server is this process.
    MountFuse(&'a CStr),
    /// Run an instruction on a virtual CPU.
    RunVirtualCpu,
    /// Trace a child from one system call to the next.
    Trace,
    /// Install a seccomp filter that allows everything, with or without a listener.
    Filter {
        /// Whether another process may be asked for decisions.
        listen: bool,
    },
    /// Enter a Landlock domain in which directories cannot be read, and try to read one.
    Landlock,
}

/// What became of a list of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// Every call succeeded.
    Done,
    /// One failed, and those behind it were left out.
    Refused {
        /// Its place in the list.
        call: usize,
        /// Its error.
        errno: Errno,
    },
    /// The process was killed by this signal during the list or before it.
    Killed(i32),
    /// The list had not ended at the deadline.
    Late,
}

/// How devices are opened: none may make us wait.
const DEVICE: OFlag = OFlag::O_RDWR.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);
/// Length of a record: the place of the call that failed, and its error or 0.
const RECORD: usize = 8;
/// A killed process lets go of its files within this, or never.
const DYING: Duration = Duration::from_millis(200);

/// Goes through the lists in one child process, in order; a list that fails does not keep the next
/// from being tried. Gives one answer for each.
///
/// A list that changes anything must first have entered a namespace of the child's own, or begin
/// with [`Call::After`] one that has.
pub fn attempt(lists: &[&[Call<'_>]], deadline: Duration) -> io::Result<Vec<Tried>> {
    assert!(lists.len() < 64, "there is a bit for each list");
    let end = Instant::now() + deadline;
    let (mut reports, reporter) = io::pipe()?;
    let child = match fork()? {
        Some(child) => child,
        None => {
            let mut done = 0_u64;
            for (number, list) in lists.iter().enumerate() {
                let record = go_through(list, done);
                done |= u64::from(word(&record, 4) == 0) << number;
                // A reader that has gone is no reason to go on.
                if (&reporter).write_all(&record).is_err() {
                    break;
                }
            }
            leave(0)
        }
    };
    drop(reporter);
    let mut bytes = Vec::new();
    let in_time = read_until(&mut reports, &mut bytes, lists.len() * RECORD, end)?;
    let end = match in_time {
        true => end,
        false => {
            let _ = kill(child, Signal::SIGKILL);
            Instant::now() + DYING
        }
    };
    // Its end of the pipe closes as it ends, so that the wait is short; one that cannot be killed
    // stays with the process that inherits it from us.
    let gone = read_until(&mut reports, &mut Vec::new(), usize::MAX, end)?;
    let flags = if gone { WaitPidFlag::__WALL } else { WaitPidFlag::__WALL | WaitPidFlag::WNOHANG };
    let status = waitpid(child, Some(flags));
    let missing = match status {
        Ok(WaitStatus::Signaled(_, signal, _)) if in_time => Tried::Killed(signal as i32),
        Ok(WaitStatus::Exited(_, status)) if in_time && status > SIGNALLED => {
            Tried::Killed(status - SIGNALLED)
        }
        _ => Tried::Late,
    };
    let records = bytes.chunks_exact(RECORD).map(|record| match word(record, 4) {
        0 => Tried::Done,
        errno => Tried::Refused { call: word(record, 0) as usize, errno: Errno::from_raw(errno) },
    });
    Ok(records.chain(std::iter::repeat(missing)).take(lists.len()).collect())
}

/// A child that has gone through a list of calls and waits, until this is dropped.
pub struct Held {
    /// Its number.
    pub pid: Pid,
    _release: io::PipeWriter,
}

/// Holds a child in the state that a list of calls brings it into.
pub fn hold(list: &[Call<'_>], deadline: Duration) -> io::Result<Held> {
    let (mut reports, reporter) = io::pipe()?;
    let (until, release) = io::pipe()?;
    let Some(pid) = fork()? else {
        // Its own copy would keep the end of the pipe from being seen.
        drop(release);
        if (&reporter).write_all(&go_through(list, 0)).is_ok() {
            let _ = read(&until, &mut [0]);
        }
        leave(0)
    };
    drop(reporter);
    let held = Held { pid, _release: release };
    let mut record = Vec::new();
    read_until(&mut reports, &mut record, RECORD, Instant::now() + deadline)?;
    match record.len() == RECORD && word(&record, 4) == 0 {
        true => Ok(held),
        false if record.len() == RECORD => Err(io::Error::from_raw_os_error(word(&record, 4))),
        false => Err(io::ErrorKind::TimedOut.into()),
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, Some(WaitPidFlag::__WALL));
    }
}

/// Reads until so many bytes are there (true), the last writer has gone (true), or it is late.
fn read_until(from: &mut io::PipeReader, to: &mut Vec<u8>, wanted: usize, end: Instant) -> io::Result<bool> {
    let mut block = [0; 256];
    while to.len() < wanted {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => match from.read(&mut block)? {
                0 => return Ok(true),
                count => to.extend_from_slice(&block[..count]),
            },
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

fn word(record: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

/// Runs in the child; `done` has a bit for each list that was done.
fn go_through(list: &[Call<'_>], done: u64) -> [u8; RECORD] {
    let failed = list.iter().enumerate().find_map(|(at, call)| Some((at, make(call, done).err()?)));
    let (at, errno) = failed.map_or((0, 0), |(at, errno)| (at as i32, errno as i32));
    let mut record = [0; RECORD];
    record[..4].copy_from_slice(&at.to_ne_bytes());
    record[4..].copy_from_slice(&errno.to_ne_bytes());
    record
}

fn make(call: &Call<'_>, done: u64) -> nix::Result<()> {
    match *call {
        Call::After(list) if done >> list & 1 == 1 => Ok(()),
        Call::After(_) => Err(Errno::ECANCELED),
        Call::Unshare(namespaces) => unshare(namespaces),
        Call::Descend(namespaces) => descend(namespaces),
        Call::Mount { kind, at, flags, data } => {
            let data = (!data.is_empty()).then_some(data);
            mount(Some(kind), at, Some(kind), flags, data)
        }
        Call::MakeDirectory(at) => mkdir(at, Mode::S_IRWXU),
        Call::Write(path, bytes) => put(path, OFlag::empty(), bytes),
        Call::Create(path, bytes) => put(path, OFlag::O_CREAT | OFlag::O_EXCL, bytes),
        Call::Expect(path, bytes) => expect(path, bytes),
        Call::SetHostname(name) => {
            // SAFETY: the pointer is to as many bytes as are said.
            Errno::result(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
        }
        Call::RaiseLoopback => network::raise_loopback(),
        Call::Visit(path) => statfs(path).map(drop),
        Call::Open(path) => open(path, DEVICE, Mode::empty()).map(drop),
        Call::CreateTap => network::create_tap(),
        Call::MountFuse(at) => fuse::mount(at),
        Call::RunVirtualCpu => virtual_cpu::run(),
        Call::Trace => trace::follow(),
        Call::Filter { listen } => filter::install(listen),
        Call::Landlock => landlock::confine(),
    }
}

fn put(path: &CStr, flags: OFlag, bytes: &[u8]) -> nix::Result<()> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC | flags, Mode::S_IRUSR)?;
    let count = write(&file, bytes)?;
    if count == bytes.len() { Ok(()) } else { Err(Errno::EIO) }
}

fn expect(path: &CStr, bytes: &[u8]) -> nix::Result<()> {
    let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut block = [0; 64];
    let count = read(&file, &mut block)?;
    if block[..count] == *bytes { Ok(()) } else { Err(Errno::EIO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn each_list_has_its_own_answer() {
        let lists: [&[Call<'_>]; 5] = [
            &[Call::Expect(c"/proc/self/comm/none", b"")],
            &[
                Call::Expect(c"/dev/null", b""),
                Call::MakeDirectory(c"/proc"),
                Call::Descend(CloneFlags::empty()),
            ],
            &[Call::Descend(CloneFlags::empty()), Call::Write(c"/dev/null", b"x")],
            &[Call::After(1), Call::Descend(CloneFlags::empty())],
            &[Call::After(2)],
        ];
        let expected = [
            Tried::Refused { call: 0, errno: Errno::ENOTDIR },
            Tried::Refused { call: 1, errno: Errno::EEXIST },
            Tried::Done,
            Tried::Refused { call: 0, errno: Errno::ECANCELED },
            Tried::Done,
        ];
        assert_eq!(attempt(&lists, PATIENCE).unwrap(), expected);
    }

    #[test]
    fn what_hangs_is_ended_at_the_deadline() {
        let place = tempfile::tempdir().unwrap();
        let fifo = place.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let path = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
        let lists: [&[Call<'_>]; 3] = [
            &[],
            &[Call::Descend(CloneFlags::empty()), Call::Expect(&path, b"")],
            &[Call::Write(c"/dev/null", b"x")],
        ];
        let tried = attempt(&lists, Duration::from_millis(50)).unwrap();
        assert_eq!(tried, [Tried::Done, Tried::Late, Tried::Late]);
    }
}
