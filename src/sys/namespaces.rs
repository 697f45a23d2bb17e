//! Entering fresh namespaces at the moment of exec: one `clone3`, and a child that makes nothing
//! but system calls until it is the program.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2, read, write};

/// Who the child is in its user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Whoever it was: it gets no user namespace.
    Unchanged,
    /// Root, which is our effective user and group outside; nobody else exists. The child writes
    /// the maps itself.
    RootIsCaller,
    /// Root, as soon as the caller has written the maps.
    RootOfMaps,
}

/// All that the child depends on, prepared: between clone and exec nothing may allocate.
#[derive(Debug)]
pub struct Entry<'a> {
    /// `CLONE_NEW*` bits.
    pub namespaces: u64,
    /// Who it is.
    pub identity: Identity,
    /// What it executes.
    pub program: &'a CStr,
    /// Arguments, with the program's name first.
    pub argv: &'a [CString],
    /// The environment.
    pub env: &'a [CString],
    /// What becomes descriptors 0, 1 and 2; without it these are closed unless kept.
    pub stdio: Option<[BorrowedFd<'a>; 3]>,
    /// Descriptors that stay open under their numbers; every other one is closed.
    pub keep: &'a [RawFd],
    /// Whether it gets a session of its own.
    pub detached: bool,
    /// Whether it writes no core files and gets no new privileges.
    pub confined: bool,
    /// CPUs that it may run on; empty for all.
    pub cpus: &'a [usize],
    /// A Landlock ruleset to enter.
    pub ruleset: Option<BorrowedFd<'a>>,
    /// A control group (version 2) to be born in.
    pub group: Option<BorrowedFd<'a>>,
    /// Most processes and threads of its user in its user namespace.
    pub max_tasks: Option<u32>,
}

/// A child that has become its program.
#[derive(Debug)]
pub struct Entered {
    /// Its number in our own namespace.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// A child on its way to its program. Dropped before it is confirmed, it is killed.
#[derive(Debug)]
pub struct Entering {
    child: Option<Entered>,
    report: OwnedFd,
    /// Why its maps could not be written.
    unmapped: Option<io::Error>,
}

/// Where the child failed before it became the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The namespaces themselves.
    Clone,
    /// The maps of user and group ids.
    Maps,
    /// Becoming root of the user namespace.
    Root,
    /// Descriptors, session, privileges.
    Prepare,
    /// The exec.
    Exec,
}

/// Bits of `clone3` above the 32 that libc's constants hold.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// The root of what it sees shall be the group that the child is born in, not ours.
const CLONE_NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

/// Starts the program in its namespaces. It is killed when the thread that called this ends.
///
/// `write_maps` is called with the child's number where the identity says so.
pub fn enter(
    entry: &Entry<'_>,
    write_maps: impl FnOnce(Pid) -> io::Result<()>,
) -> Result<Entering, (Stage, io::Error)> {
    let at = |stage| move |errno: Errno| (stage, io::Error::from(errno));
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(entry.argv), pointers(entry.env));
    let maps = OwnMaps::new();
    let cpus = super::cpu_set(entry.cpus);
    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(at(Stage::Clone))?;
    let (go, signal_go) = pipe2(OFlag::O_CLOEXEC).map_err(at(Stage::Clone))?;

    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain data for which all zeroes is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (entry.namespaces & !CLONE_NEWCGROUP) | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = entry.group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of everything, and of our
    // threads only this one. It makes nothing but system calls on data that was prepared above.
    let pid = Errno::result(unsafe {
        libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut arguments), size_of::<libc::clone_args>())
    })
    .map_err(at(Stage::Clone))?;
    if pid == 0 {
        let (stage, errno) =
            become_program(entry, &maps, cpus.as_ref(), [&go, &signal_go], &reporter, &argv, &env);
        let mut bytes = [stage as u8, 0, 0, 0, 0];
        bytes[1..].copy_from_slice(&(errno as i32).to_le_bytes());
        // SAFETY: the buffer is live and as long as said; `_exit` runs no code of this process.
        unsafe {
            libc::write(reporter.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            libc::_exit(127);
        }
    }
    drop((reporter, go));
    let pid = Pid::from_raw(pid as libc::pid_t);
    // SAFETY: the call succeeded, so it stored a new descriptor that we own.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mapped = match entry.identity {
        Identity::RootOfMaps => write_maps(pid),
        _ => Ok(()),
    };
    // Without the byte the child gives up.
    if mapped.is_ok() {
        let _ = write(&signal_go, b"1");
    }
    Ok(Entering { child: Some(Entered { pid, pidfd }), report, unmapped: mapped.err() })
}

impl Entering {
    /// Waits until the program runs. On failure there is no child, and nothing of ours has changed.
    pub fn confirm(mut self) -> Result<Entered, (Stage, io::Error)> {
        let mut bytes = [0; 5];
        let failure = loop {
            match read(&self.report, &mut bytes) {
                Ok(5) => break (Stage::of(bytes[0]), errno_of(&bytes)),
                Ok(0) if self.unmapped.is_none() => match self.child.take() {
                    Some(child) => return Ok(child),
                    None => break (Stage::Prepare, Errno::ESRCH),
                },
                Err(Errno::EINTR) => {}
                Err(e) => break (Stage::Prepare, e),
                Ok(_) => break (Stage::Prepare, Errno::EPROTO),
            }
        };
        match self.unmapped.take() {
            Some(error) => Err((Stage::Maps, error)),
            None => Err((failure.0, failure.1.into())),
        }
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _ = kill(child.pid, Signal::SIGKILL);
            let _ = waitpid(child.pid, None);
        }
    }
}

impl Stage {
    fn of(byte: u8) -> Self {
        [Self::Clone, Self::Maps, Self::Root, Self::Prepare]
            .into_iter()
            .find(|stage| *stage as u8 == byte)
            .unwrap_or(Self::Exec)
    }
}

fn errno_of(bytes: &[u8; 5]) -> Errno {
    let [_, errno @ ..] = *bytes;
    Errno::from_raw(i32::from_le_bytes(errno))
}

/// The maps by which root inside is the caller outside. A process may write these for itself.
struct OwnMaps {
    user: CString,
    group: CString,
}

impl OwnMaps {
    fn new() -> Self {
        let map = |id: u32| CString::new(format!("0 {id} 1\n")).unwrap_or_default();
        Self { user: map(nix::unistd::geteuid().as_raw()), group: map(nix::unistd::getegid().as_raw()) }
    }

    /// Writes them. Without the right to drop groups the kernel wants that to be given up first.
    fn write(&self) -> Result<(), Errno> {
        write_file(c"/proc/self/setgroups", c"deny")
            .or_else(|e| if e == Errno::ENOENT { Ok(()) } else { Err(e) })?;
        write_file(c"/proc/self/uid_map", &self.user)?;
        write_file(c"/proc/self/gid_map", &self.group)
    }
}

/// Gives every signal its default action: what our caller ignored is no business of a machine's.
/// For the child: allocates nothing.
fn ignore_nothing() {
    /// `struct sigaction` as the kernel has it; all zeroes is the default action. The C library's own
    /// function refuses the two signals that it keeps for itself.
    #[repr(C)]
    struct KernelAction([u64; 4]);
    let default = KernelAction([0; 4]);
    for signal in 1..=64 {
        // SAFETY: the kernel reads an action of this size, and writes none.
        unsafe {
            let none = ptr::null_mut::<KernelAction>();
            libc::syscall(libc::SYS_rt_sigaction, signal, ptr::from_ref(&default), none, size_of::<u64>());
        }
    }
}

/// Writes a small file in one call. For the child: allocates nothing.
fn write_file(path: &CStr, text: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is NUL-terminated; the descriptor is checked, used and closed right here.
    unsafe {
        let fd = Errno::result(libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        let written = Errno::result(libc::write(fd, text.as_ptr().cast(), text.count_bytes()));
        libc::close(fd);
        written.map(drop)
    }
}

/// The child's way to its program. Returns only with the failure.
fn become_program(
    entry: &Entry<'_>,
    maps: &OwnMaps,
    cpus: Option<&libc::cpu_set_t>,
    [go, our_go]: [&OwnedFd; 2],
    reporter: &OwnedFd,
    argv: &[*const c_char],
    env: &[*const c_char],
) -> (Stage, Errno) {
    let check = |result: libc::c_int, stage| Errno::result(result).map(drop).map_err(|e| (stage, e));
    let prepare = || -> Result<(), (Stage, Errno)> {
        // SAFETY: plain system calls; every pointer is to data that lives in `entry` or here.
        unsafe {
            // Whoever made us may have gone already; its end of the pipe tells, since our parent's
            // number would be 0 in a namespace of our own.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), Stage::Prepare)?;
            let mut parent = libc::pollfd { fd: reporter.as_raw_fd(), events: 0, revents: 0 };
            if libc::poll(&mut parent, 1, 0) != 0 {
                return Err((Stage::Prepare, Errno::ESRCH));
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            // The Rust runtime ignores it, and exec would pass that on.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            match entry.identity {
                Identity::Unchanged => {}
                Identity::RootIsCaller => maps.write().map_err(|e| (Stage::Maps, e))?,
                Identity::RootOfMaps => {
                    libc::close(our_go.as_raw_fd());
                    let mut byte = 0_u8;
                    if libc::read(go.as_raw_fd(), ptr::from_mut(&mut byte).cast(), 1) != 1 {
                        return Err((Stage::Maps, Errno::ECANCELED));
                    }
                }
            }
            if entry.identity != Identity::Unchanged {
                check(libc::setresgid(0, 0, 0), Stage::Root)?;
                check(libc::setresuid(0, 0, 0), Stage::Root)?;
                if entry.identity == Identity::RootOfMaps {
                    check(libc::setgroups(0, ptr::null()), Stage::Root)?;
                }
                // A change of ids forgets it.
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), Stage::Prepare)?;
            }
            if entry.namespaces & CLONE_NEWCGROUP != 0 {
                check(libc::unshare(libc::CLONE_NEWCGROUP), Stage::Clone)?;
            }
            if let Some(tasks) = entry.max_tasks {
                let limit = libc::rlimit { rlim_cur: tasks.into(), rlim_max: tasks.into() };
                check(libc::setrlimit(libc::RLIMIT_NPROC, &limit), Stage::Prepare)?;
            }
            if entry.namespaces & libc::CLONE_NEWNS as u64 != 0 {
                // What is mounted from now on shall not show up where we came from.
                let (none, flags) = (ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
                check(libc::mount(none, c"/".as_ptr(), none, flags, ptr::null()), Stage::Prepare)?;
            }
            if let Some(stdio) = &entry.stdio {
                for (target, source) in (0..).zip(stdio) {
                    check(libc::dup2(source.as_raw_fd(), target), Stage::Prepare)?;
                }
            }
            let first = if entry.stdio.is_some() { 3 } else { 0 };
            // Closed by the exec rather than now: the pipe of the report has to live that long.
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            check(libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) as i32, Stage::Prepare)?;
            for fd in entry.keep {
                check(libc::fcntl(*fd, libc::F_SETFD, 0), Stage::Prepare)?;
            }
            if entry.detached {
                ignore_nothing();
                check(libc::setsid(), Stage::Prepare)?;
            }
            if let Some(cpus) = cpus {
                // A CPU may have gone away since somebody looked; then the old set is as good.
                libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus);
            }
            if entry.confined {
                let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                check(libc::setrlimit(libc::RLIMIT_CORE, &no_core), Stage::Prepare)?;
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), Stage::Prepare)?;
            }
            if let Some(ruleset) = entry.ruleset {
                let fd = ruleset.as_raw_fd();
                check(libc::syscall(libc::SYS_landlock_restrict_self, fd, 0) as i32, Stage::Prepare)?;
            }
        }
        Ok(())
    };
    if let Err(failure) = prepare() {
        return failure;
    }
    // SAFETY: all strings are NUL-terminated and both vectors end with a null pointer.
    unsafe { libc::execve(entry.program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    (Stage::Exec, Errno::last())
}
/// The namespace of a running process's mounts, which lives as long as the descriptor. From Linux 6.11 on.
pub fn mounts_of(pidfd: &OwnedFd) -> Option<OwnedFd> {
    /// `PIDFD_GET_MNT_NAMESPACE` of `linux/pidfd.h`, which takes no argument.
    const GET_MNT_NAMESPACE: libc::Ioctl = nix::request_code_none!(0xff, 3) as libc::Ioctl;
    // SAFETY: this request reads no memory of ours and writes none; what it returns is ours alone.
    unsafe {
        let fd = libc::ioctl(pidfd.as_raw_fd(), GET_MNT_NAMESPACE, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}
