//! Landlock, asked and entered without the crate: it hides errors behind best effort, and
//! allocates.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;

/// `LANDLOCK_CREATE_RULESET_VERSION` (`include/uapi/linux/landlock.h`).
const VERSION: libc::c_uint = 1;
/// `LANDLOCK_ACCESS_FS_READ_DIR`, of the same file.
const READ_DIRECTORY: u64 = 1 << 3;

/// The version of the kernel's interface.
pub fn abi() -> nix::Result<u32> {
    // SAFETY: with this flag the call takes no attributes.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) };
    Errno::result(result).map(|abi| abi as u32)
}

/// Gives up the right to read directories, and sees that it is gone.
pub fn confine() -> nix::Result<()> {
    let handled: u64 = READ_DIRECTORY;
    // SAFETY: the attributes are a 64-bit set of rights in the first version and may be so short;
    // a result of zero or more is a new descriptor that we own.
    unsafe {
        let size = size_of_val(&handled);
        let fd = Errno::result(libc::syscall(libc::SYS_landlock_create_ruleset, &handled, size, 0))?;
        let ruleset = OwnedFd::from_raw_fd(fd as RawFd);
        Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        Errno::result(libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0))?;
    }
    match open(c"/", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::EACCES) => Ok(()),
        _ => Err(Errno::EIO),
    }
}
