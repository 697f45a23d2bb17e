//! The system calls that need `unsafe`, or that the guest's kernel offers and no crate wraps.
//!
//! Nothing else in this program is `unsafe`.
#![expect(unsafe_code, reason = "raw system calls; each block states why that call is sound")]

pub mod mounts;
pub mod network;

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use crate::protocol::WindowSize;
use anyhow::Result;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, Pid, pipe2, read};

/// Switches a guest off. Never returns.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    loop {
        nix::unistd::pause();
    }
}

/// Takes over a descriptor that this process was started with, and that nothing else in it uses.
pub fn adopt(fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: a number that is not open is an error, not an access.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by the contract of this function ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `uname -r`.
pub fn kernel_release() -> Result<String> {
    Ok(nix::sys::utsname::uname()?.release().to_string_lossy().into_owned())
}

/// Microseconds since the kernel started.
pub fn uptime_us() -> u64 {
    let now =
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() * 1_000_000 + t.tv_nsec() / 1000);
    now.unsigned_abs()
}

/// Loads a kernel module.
pub fn load_module(file: &File) -> nix::Result<()> {
    nix::kmod::finit_module(file, c"", nix::kmod::ModuleInitFlags::empty())
}

/// What every command starts with, as systemd sets it: few descriptors by default, many on request.
pub fn set_default_limits() {
    if setrlimit(Resource::RLIMIT_NOFILE, 1024, 1 << 20).is_ok() {
        return;
    }
    // The host's limit is lower, and only its root could raise that.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard);
    }
}

/// Switches swapping to `device` on.
pub fn swap_on(device: &[u8]) -> Result<()> {
    let device = CString::new(device)?;
    // SAFETY: the pointer is a NUL-terminated string that outlives the call.
    Errno::result(unsafe { libc::swapon(device.as_ptr(), 0) })?;
    Ok(())
}

/// Sets an extended attribute.
pub fn set_attribute(at: &Path, name: &CStr, value: &[u8]) -> Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: both strings are NUL-terminated and `value` is as long as said.
    let done = unsafe { libc::setxattr(at.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done)?;
    Ok(())
}

/// Switches a network interface on.
pub fn interface_up(name: &str) -> Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is an `ifreq`, which is what this ioctl reads.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
    Ok(())
}

/// Sets the size of the terminal behind `fd`.
pub fn set_window_size(fd: BorrowedFd<'_>, size: WindowSize) -> nix::Result<()> {
    let size = winsize(size);
    // SAFETY: the argument is a `winsize`, which is what this ioctl reads.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
}

/// The kernel's form of a window size.
pub fn winsize(size: WindowSize) -> libc::winsize {
    libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Limits what programs that are executed from now on may have to these capabilities.
pub fn limit_capabilities(kept: &[u64]) -> nix::Result<()> {
    for capability in 0..64 {
        if kept.contains(&capability) {
            continue;
        }
        // SAFETY: plain system call with numbers only.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            // Above the last one that the kernel knows.
            Err(Errno::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Installs a seccomp filter on every thread of this process and all that it starts from now on.
pub fn install_filter(filter: &[libc::sock_filter]) -> nix::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the program is as long as said, and the kernel only reads it.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, ptr::from_ref(&program)) };
    match Errno::result(done)? {
        0 => Ok(()),
        // The thread that has a filter of its own.
        _ => Err(Errno::EBUSY),
    }
}

/// Starts a process that does this work, ends with 0 if it succeeded, and with 1 otherwise.
pub fn fork_helper(work: impl FnOnce() -> bool) -> nix::Result<Pid> {
    // SAFETY: this process has one thread, so its child may do anything.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = i32::from(!work());
            // SAFETY: runs no code of this process.
            unsafe { libc::_exit(status) }
        }
    }
}

/// A process that ended.
pub struct Reaped {
    /// Which.
    pub pid: libc::pid_t,
    /// Its wait status.
    pub status: libc::c_int,
    /// What it and its waited-for children used.
    pub usage: libc::rusage,
}

/// Reaps one ended child, if there is one.
pub fn reap() -> Option<Reaped> {
    let mut status = 0;
    // SAFETY: `rusage` is plain data for which all zeroes is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals of the right types.
    let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG | libc::__WALL, &mut usage) };
    (pid > 0).then_some(Reaped { pid, status, usage })
}

/// Whether there is a child, ended or not.
pub fn has_children() -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}

/// What the child does between fork and exec, all prepared: nothing in there may allocate.
pub struct Exec<'a> {
    /// The paths to try, in order.
    pub candidates: &'a [CString],
    /// Arguments, with the program's name first.
    pub argv: &'a [CString],
    /// The environment.
    pub env: &'a [CString],
    /// Working directory.
    pub workdir: &'a CStr,
    /// User, group and supplementary groups.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// See `uid`; nothing where groups cannot be changed.
    pub groups: Option<&'a [u32]>,
    /// What becomes descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whether descriptor 0 becomes the controlling terminal.
    pub terminal: bool,
    /// The control group's entrance.
    pub group: Option<BorrowedFd<'a>>,
}

/// Where a child failed before it became the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Fork itself.
    Fork,
    /// Session, terminal or descriptors.
    Streams,
    /// Groups or user.
    User,
    /// Working directory.
    Workdir,
    /// The exec.
    Exec,
}

impl Stage {
    fn from_byte(byte: u8) -> Self {
        [Self::Fork, Self::Streams, Self::User, Self::Workdir]
            .into_iter()
            .find(|s| *s as u8 == byte)
            .unwrap_or(Self::Exec)
    }
}

/// Bytes of stack for a child's way to its program.
const CHILD_STACK: usize = 64 << 10;

/// What the child is given: everything, and where to say what failed.
struct Child<'a> {
    exec: &'a Exec<'a>,
    argv: &'a [*const libc::c_char],
    env: &'a [*const libc::c_char],
    reporter: RawFd,
}

/// Starts a process and has it execute. Returns when the exec has happened, or says where it failed.
///
/// The child borrows our memory until then, and we stand still: to copy the page tables of a process
/// is most of what a fork costs, above all in a guest.
pub fn fork_exec(exec: &Exec<'_>) -> Result<libc::pid_t, (Stage, Errno)> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(exec.argv), pointers(exec.env));
    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(|e| (Stage::Fork, e))?;
    let child = Child { exec, argv: &argv, env: &env, reporter: reporter.as_raw_fd() };
    let mut stack = vec![0_u128; CHILD_STACK / size_of::<u128>()];
    // SAFETY: the child has a stack of its own, aligned as the C ABI wants it, and makes nothing but
    // system calls on data that was prepared above. That lives until the call returns, which is when
    // the child has another memory or is gone.
    let pid = Errno::result(unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack.as_mut_ptr_range().end;
        libc::clone(live_as_child, top.cast(), flags, ptr::from_ref(&child).cast_mut().cast())
    })
    .map_err(|e| (Stage::Fork, e))?;
    drop(reporter);
    let mut bytes = [0; 5];
    loop {
        match read(&report, &mut bytes) {
            Ok(5) => {
                let [stage, errno @ ..] = bytes;
                return Err((Stage::from_byte(stage), Errno::from_raw(i32::from_le_bytes(errno))));
            }
            Err(Errno::EINTR) => {}
            _ => return Ok(pid),
        }
    }
}

/// The child's life up to its program, or to its end.
extern "C" fn live_as_child(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent passes a `Child` that outlives this.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    let (stage, errno) = become_command(child.exec, child.argv, child.env);
    let mut bytes = [stage as u8, 0, 0, 0, 0];
    bytes[1..].copy_from_slice(&(errno as i32).to_le_bytes());
    // SAFETY: the buffer is live and as long as said; `_exit` runs no code of this process.
    unsafe {
        libc::write(child.reporter, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

/// The child's way to its program. Returns only with the failure.
fn become_command(
    exec: &Exec<'_>,
    argv: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> (Stage, Errno) {
    let check = |result: libc::c_int, stage| Errno::result(result).map(drop).map_err(|e| (stage, e));
    let prepare = || -> Result<(), (Stage, Errno)> {
        // SAFETY: plain system calls; every pointer is to data that lives in `exec` or here.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            // The Rust runtime ignores it, and exec would pass that on.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            if let Some(entrance) = exec.group {
                libc::write(entrance.as_raw_fd(), c"0".as_ptr().cast(), 1);
            }
            check(libc::setsid(), Stage::Streams)?;
            if exec.terminal {
                check(libc::ioctl(exec.stdio[0].as_raw_fd(), libc::TIOCSCTTY, 0), Stage::Streams)?;
            }
            for (target, source) in (0..).zip(&exec.stdio) {
                check(libc::dup2(source.as_raw_fd(), target), Stage::Streams)?;
            }
            libc::umask(0o022);
            // Not by the C library, which would have every thread of the process change.
            let call = |number, first: usize, second: usize| libc::syscall(number, first, second) as i32;
            if let Some(groups) = exec.groups {
                let list = groups.as_ptr() as usize;
                check(call(libc::SYS_setgroups, groups.len(), list), Stage::User)?;
            }
            check(call(libc::SYS_setgid, exec.gid as usize, 0), Stage::User)?;
            check(call(libc::SYS_setuid, exec.uid as usize, 0), Stage::User)?;
            check(libc::chdir(exec.workdir.as_ptr()), Stage::Workdir)
        }
    };
    if let Err(failure) = prepare() {
        return failure;
    }
    let mut worst = Errno::ENOENT;
    for candidate in exec.candidates {
        // SAFETY: all strings are NUL-terminated and both vectors end with a null pointer.
        unsafe { libc::execve(candidate.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        match Errno::last() {
            // Like a shell: go on looking, but remember that something was there.
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = Errno::EACCES,
            other => return (Stage::Exec, other),
        }
    }
    (Stage::Exec, worst)
}

/// The error of a read or write on a descriptor, as `io` has it, in nix's form.
pub fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// A byte string as the system's text.
pub fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}
