//! A fence around the command's output: the system obeys nothing in it, and us again behind it.
//!
//! The word that ends it cannot be guessed. It is said on the command's own standard output, so that it
//! cannot overtake what stands before it there, and only after the readers have emptied both pipes: the
//! runner takes what it has read of standard error first.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ci::provider::Provider;
use crate::sys::pipe;

/// How long the readers of our output have to take what the command wrote.
const READERS: Duration = Duration::from_secs(2);

/// The word that lets a system obey again; nothing where it obeys nothing anyway.
pub fn token(provider: &'static dyn Provider) -> Result<Option<String>> {
    if provider.fence("").is_none() {
        if provider.obeys_output() {
            bail!(
                "--fence-commands: {} has no word that stops it from obeying; send the output to a file",
                provider.name()
            );
        }
        return Ok(None);
    }
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("--fence-commands")?;
    Ok(Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Whether the system cannot be what reads this.
pub fn is_file(fd: BorrowedFd<'_>) -> bool {
    !fd.is_terminal() && pipe::unread(fd).is_none()
}

/// Waits until whoever reads our streams has taken everything that the command wrote.
pub fn wait_for_readers() {
    let deadline = Instant::now() + READERS;
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let is_unread = |fd| pipe::unread(fd).is_some_and(|bytes| bytes > 0);
    while (is_unread(stdout.as_fd()) || is_unread(stderr.as_fd())) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}
