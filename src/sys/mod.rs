//! The system calls that need `unsafe`. Nothing else on the host side is `unsafe`.
#![expect(unsafe_code, reason = "raw system calls; each block states why that call is sound")]

pub mod mounts;
pub mod namespaces;
pub mod net;
pub mod pipe;
pub mod probe;
pub mod proxy;
pub mod tcp;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid};
use sekexe_init::protocol::WindowSize;

/// Reads a file of the kernel's making.
pub fn read_kernel_file(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_rest(&File::open(path)?)
}

/// Reads what is left of such a file. It does not say how long it is: the question is not asked, and
/// to ask for its bytes piece by piece would take a call for each.
fn read_rest(file: &File) -> io::Result<Vec<u8>> {
    let mut contents = Vec::with_capacity(16 << 10);
    file.take(u64::MAX).read_to_end(&mut contents)?;
    Ok(contents)
}

/// The same for a file that is text.
pub fn read_kernel_text(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read_kernel_file(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Lets go of the pages of this program's own code and constants. The kernel brings those back that
/// are needed again; the others, which it took to get here, would count as ours to the end.
pub fn release_program() {
    /// Of one segment after the other, for the program and then for what it is linked with.
    unsafe extern "C" fn release(
        object: *mut libc::dl_phdr_info,
        _size: usize,
        _data: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library passes an object whose headers are as many as it says. A segment that
        // cannot be written is as it is in its file, which is where the kernel takes it from again.
        unsafe {
            let object = &*object;
            let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
            for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0)
            {
                let page = libc::sysconf(libc::_SC_PAGESIZE).max(4096) as u64;
                let start = (object.dlpi_addr + header.p_vaddr).next_multiple_of(page);
                let end = (object.dlpi_addr + header.p_vaddr + header.p_memsz) & !(page - 1);
                if start < end {
                    libc::madvise(start as *mut _, (end - start) as usize, libc::MADV_DONTNEED);
                }
            }
        }
        0
    }
    // SAFETY: the function has the type that is wanted, and needs no data.
    unsafe { libc::dl_iterate_phdr(Some(release), std::ptr::null_mut()) };
}

/// What a machine's process is deprived of before it starts.
#[derive(Debug, Default)]
pub struct Restrictions<'a> {
    /// Descriptors that it inherits beside its standard streams; every other one is closed.
    pub keep: &'a [BorrowedFd<'a>],
    /// A Landlock ruleset to enter.
    pub ruleset: Option<BorrowedFd<'a>>,
    /// CPUs that it may run on; empty for all.
    pub cpus: &'a [usize],
    /// Paths that stay writable where every mount can be made read-only; without symbolic links.
    pub writable: &'a [PathBuf],
}

/// A started process, and how much of what was wanted could be had.
pub struct Restricted {
    /// The process.
    pub child: Child,
    /// Whether its mounts are read-only but for the writable paths.
    pub sealed: bool,
}

/// Starts `command` in a session of its own, without the right to gain privileges, and tied to
/// this process: if we end, for whatever reason, the kernel kills it.
///
/// Must be called by the main thread: the tie is to the thread that forks.
pub fn start_restricted(command: &mut Command, restrictions: &Restrictions<'_>) -> io::Result<Restricted> {
    let keep: Vec<RawFd> = restrictions.keep.iter().map(AsRawFd::as_raw_fd).collect();
    let ruleset = restrictions.ruleset.map(|fd| fd.as_raw_fd());
    let cpus = cpu_set(restrictions.cpus);
    let parent = std::process::id();
    let seal = Seal::new(restrictions.writable);
    let (report, reporter) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let report_to = reporter.as_raw_fd();
    let before_exec = move || {
        let check = |result: libc::c_int| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: plain system calls on data that the closure owns; nothing allocates.
        unsafe {
            if seal.apply() {
                libc::write(report_to, c"1".as_ptr().cast(), 1);
            }
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            check(libc::setsid())?;
            // A kernel that panics aborts, and a core file would hold all of the guest's memory.
            check(libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }))?;
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
            // Descriptors that we inherited ourselves may lack close-on-exec.
            libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            for fd in &keep {
                check(libc::fcntl(*fd, libc::F_SETFD, 0))?;
            }
            if let Some(cpus) = &cpus {
                // A CPU may have gone away since we looked; then the old set is as good.
                libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus);
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            if let Some(ruleset) = ruleset {
                check(libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) as libc::c_int)?;
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, so it may run between fork and exec.
    unsafe { command.pre_exec(before_exec) };
    let child = command.spawn()?;
    drop(reporter);
    let sealed = nix::unistd::read(&report, &mut [0]).is_ok_and(|count| count == 1);
    Ok(Restricted { child, sealed })
}

/// Makes every mount read-only but for some paths, in a mount namespace of the process's own.
///
/// Landlock guards contents; it knows no right for a file's mode, owner and times. A read-only
/// mount guards these too. It takes root: with a user namespace an ordinary user could have it as
/// well, but would then see every file of root's as `nobody`'s, and so would the guest.
struct Seal {
    writable: Option<Vec<CString>>,
}

impl Seal {
    fn new(writable: &[PathBuf]) -> Self {
        let strings =
            || writable.iter().filter_map(|p| CString::new(p.as_os_str().as_bytes()).ok()).collect();
        Self { writable: Uid::effective().is_root().then(strings) }
    }

    /// Does it, as far as the host allows; false where it does not. Runs between fork and exec.
    ///
    /// # Safety
    ///
    /// The process must have one thread.
    unsafe fn apply(&self) -> bool {
        let Some(writable) = &self.writable else { return false };
        let no_path = std::ptr::null::<libc::c_char>();
        // SAFETY: plain system calls; every pointer is null, or to a NUL-terminated string or a
        // live local of the type that the call reads.
        unsafe {
            if libc::unshare(libc::CLONE_NEWNS) != 0 {
                return false;
            }
            let private = libc::MS_REC | libc::MS_PRIVATE;
            if libc::mount(no_path, c"/".as_ptr(), no_path, private, std::ptr::null()) != 0 {
                return false;
            }
            let (read_only, read_write) = (mount_attributes(true), mount_attributes(false));
            if !set_mount_attributes(c"/", libc::AT_RECURSIVE, &read_only) {
                return false;
            }
            let bind = libc::MS_BIND | libc::MS_REC;
            writable.iter().all(|path| {
                libc::mount(path.as_ptr(), path.as_ptr(), no_path, bind, std::ptr::null()) == 0
                    // What the host itself mounted read-only below stays so.
                    && (set_mount_attributes(path, libc::AT_RECURSIVE, &read_write)
                        || set_mount_attributes(path, 0, &read_write))
            })
        }
    }
}

/// `struct mount_attr` that sets or clears the read-only flag.
fn mount_attributes(read_only: bool) -> libc::mount_attr {
    let flag = libc::MOUNT_ATTR_RDONLY;
    libc::mount_attr {
        attr_set: if read_only { flag } else { 0 },
        attr_clr: if read_only { 0 } else { flag },
        propagation: 0,
        userns_fd: 0,
    }
}

/// # Safety
///
/// None of its own: it is called between fork and exec, and allocates nothing.
unsafe fn set_mount_attributes(path: &CStr, flags: libc::c_int, attributes: &libc::mount_attr) -> bool {
    // SAFETY: the path is NUL-terminated and the attributes are as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    result == 0
}

fn cpu_set(cpus: &[usize]) -> Option<libc::cpu_set_t> {
    if cpus.is_empty() {
        return None;
    }
    // SAFETY: `cpu_set_t` is plain data for which all zeroes is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the number was checked against the size of the set.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    Some(set)
}

/// A descriptor that becomes readable when the child ends.
pub fn open_pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: a result of zero or more is a new descriptor that we own; the child is not reaped
    // yet, so its number cannot have been given to another process.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, child.id(), 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A child's end, with what it used.
pub struct Reaped {
    /// Exit status or signal, as `wait` gives it.
    pub status: std::process::ExitStatus,
    /// Its largest resident set, in bytes.
    pub peak_rss_bytes: u64,
}

/// Waits for a child of ours.
pub fn reap(child: Pid) -> io::Result<Reaped> {
    let mut status = 0;
    // SAFETY: `rusage` is plain data for which all zeroes is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the right types.
        let result = unsafe { libc::wait4(child.as_raw(), &mut status, 0, &mut usage) };
        match Errno::result(result) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Reaped {
        status: std::os::unix::process::ExitStatusExt::from_raw(status),
        peak_rss_bytes: usage.ru_maxrss.unsigned_abs() * 1024,
    })
}

/// Whether a descriptor of this number is open.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: a number that is not open is an error, not an access.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Whether a signal is ignored, as `nohup` and a shell's `&` want it.
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: `sigaction` is plain data for which all zeroes is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and the answer has a place.
    let asked = unsafe { libc::sigaction(signal as i32, std::ptr::null(), &mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// The size of the terminal behind `fd`, if it is one.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    // SAFETY: `winsize` is plain data for which all zeroes is valid.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the argument is a `winsize`, which is what this ioctl fills.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0).then_some(WindowSize { rows: size.ws_row, columns: size.ws_col })
}
