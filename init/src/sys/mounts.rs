//! Mounts by descriptor (`open_tree`, `fsopen`, `mount_setattr`, `move_mount`): what is checked is
//! what is mounted, a mount never exists without its attributes, and one can be made before there is
//! a place for it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// What a mount is deprived of.
#[derive(Debug, Clone, Copy)]
pub struct Attributes(u64);

impl Attributes {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Changes.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// Device files.
    pub const NO_DEVICES: Self = Self(libc::MOUNT_ATTR_NODEV);
}

/// Mounts what is open, with all that is mounted below it, at `target`.
pub fn bind(source: BorrowedFd<'_>, target: &Path, attributes: Attributes) -> nix::Result<()> {
    let mount = clone(source, libc::AT_RECURSIVE as u32)?;
    apply(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, attributes)?;
    attach(&mount, target)
}

/// Mounts the directory that is open, and nothing of what is mounted below it.
pub fn bind_alone(source: BorrowedFd<'_>, target: &Path) -> nix::Result<()> {
    attach(&clone(source, 0)?, target)
}

/// A file system that is mounted nowhere yet. An option without a value is a flag.
pub fn make(kind: &str, options: &[(&str, Option<&str>)], attributes: Attributes) -> nix::Result<OwnedFd> {
    let kind = text(kind)?;
    // SAFETY: the name is NUL-terminated; a result of zero or more is a new descriptor that we own.
    let context = unsafe {
        let fd = libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC);
        OwnedFd::from_raw_fd(Errno::result(fd)? as i32)
    };
    for (name, value) in options {
        configure(&context, Some(name), *value)?;
    }
    configure(&context, None, None)?;
    // SAFETY: numbers only; a result of zero or more is a new descriptor that we own.
    unsafe {
        let flags = libc::FSMOUNT_CLOEXEC;
        let fd = libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), flags, attributes.0);
        Ok(OwnedFd::from_raw_fd(Errno::result(fd)? as i32))
    }
}

/// Sets an option, or without a name has the file system created.
fn configure(context: &OwnedFd, name: Option<&str>, value: Option<&str>) -> nix::Result<()> {
    let (name, value) = (name.map(text).transpose()?, value.map(text).transpose()?);
    let command = match (&name, &value) {
        (None, _) => libc::FSCONFIG_CMD_CREATE,
        (Some(_), None) => libc::FSCONFIG_SET_FLAG,
        (Some(_), Some(_)) => libc::FSCONFIG_SET_STRING,
    };
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: each pointer is null or to a NUL-terminated string that outlives the call.
    let result = unsafe {
        let (name, value) = (pointer(&name), pointer(&value));
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, name, value, 0)
    };
    Errno::result(result).map(drop)
}

/// Deprives the mount at `target` of something.
pub fn set(target: &Path, attributes: Attributes) -> nix::Result<()> {
    apply(libc::AT_FDCWD, &string(target)?, 0, attributes)
}

fn clone(source: BorrowedFd<'_>, flags: u32) -> nix::Result<OwnedFd> {
    let flags = flags | libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the path is a NUL-terminated constant; a result of zero or more is a new descriptor
    // that we own.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), c"".as_ptr(), flags);
        Ok(OwnedFd::from_raw_fd(Errno::result(fd)? as i32))
    }
}

fn apply(at: i32, path: &CStr, flags: i32, attributes: Attributes) -> nix::Result<()> {
    if attributes.0 == 0 {
        return Ok(());
    }
    let wanted = libc::mount_attr { attr_set: attributes.0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is NUL-terminated and the attributes are as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&wanted),
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Gives a mount its place.
pub fn attach(mount: &OwnedFd, target: &Path) -> nix::Result<()> {
    let target = string(target)?;
    // SAFETY: both paths are NUL-terminated.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

fn text(text: &str) -> nix::Result<CString> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

fn string(path: &Path) -> nix::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}
