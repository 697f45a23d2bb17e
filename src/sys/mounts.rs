//! The mounts of this process (`proc_pid_mountinfo(5)`).

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::read_rest;

/// The file, which also tells when there is something new in it, and what was in it.
static FOUND: OnceLock<(File, Vec<u8>)> = OnceLock::new();

/// The mounts as they were when somebody asked for the first time: the kernel takes its time for each
/// of them.
pub fn mountinfo() -> io::Result<&'static [u8]> {
    if FOUND.get().is_none() {
        let file = File::open("/proc/self/mountinfo")?;
        let text = read_rest(&file)?;
        let _ = FOUND.set((file, text));
    }
    Ok(FOUND.get().map_or(&[], |(_, text)| text))
}

/// The mounts as they are now, if they have changed since they were last read here.
pub fn changed_mountinfo() -> io::Result<Option<Vec<u8>>> {
    let Some((file, _)) = FOUND.get() else { return Ok(None) };
    let mut asked = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
    let changed = poll(&mut asked, PollTimeout::ZERO)? > 0;
    changed.then(|| (&*file).rewind().and_then(|()| read_rest(file))).transpose()
}
