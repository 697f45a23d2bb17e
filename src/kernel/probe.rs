//! A kernel that somebody else built: is it one, and what can it do?
//!
//! Answered by asking it (`--version`, `--help`, `--showconfig`), each question
//! with a deadline. Before that the file is looked at, because a program that
//! is cut off or for another machine fails in ways that name no cause.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Kernel;
use super::cache::read_entry;
use super::features::Features;
use super::process::{describe, find_program};

/// How long a kernel may take to answer one question.
const DEADLINE: Duration = Duration::from_secs(2);
/// More than any kernel's help or configuration.
const OUTPUT_LIMIT: usize = 4 << 20;
const INSTEAD: &str = "try --kernel auto, which builds one that is known to work";

/// Finds the program (a path, or a name on `path`) and asks it.
pub fn probe(program: &OsStr, path: &OsStr) -> Result<Kernel> {
    let file = locate(program, path)?;
    examine(&file)?;
    if let Some(entry) = file.parent().and_then(|dir| read_entry(dir.to_owned()))
        && fs::metadata(&file).is_ok_and(|metadata| metadata.len() == entry.record.size)
    {
        // One of ours, named by its path: its record says more than it can.
        return Ok(entry.into());
    }
    let help = ask(&file, "--help")?;
    if !help.contains("User Mode Linux") {
        bail!(
            "{} is not a User Mode Linux kernel: its --help does not say that it is one; {INSTEAD}",
            file.display()
        );
    }
    let config = ask(&file, "--showconfig")?;
    let release = ask(&file, "--version")?.trim().to_owned();
    Ok(Kernel { path: file, version: release.clone(), release, features: Features::parse(&help, &config) })
}

fn locate(program: &OsStr, path: &OsStr) -> Result<PathBuf> {
    if program.is_empty() {
        bail!("no kernel is named: --kernel takes auto, a version or a path; {INSTEAD}");
    }
    let shown = program.display();
    if !program.as_encoded_bytes().contains(&b'/') {
        return find_program(program, path).with_context(|| {
            format!(
                "there is no kernel '{shown}': it is neither a version that can be built nor a \
                 program on PATH; write ./{shown} if you mean a file, or {INSTEAD}"
            )
        });
    }
    // Absolute, because the guest's process starts in another directory.
    std::path::absolute(program).with_context(|| format!("cannot find {shown}"))
}

fn examine(path: &Path) -> Result<()> {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no kernel at {shown}: is the path right? {INSTEAD}")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot look at kernel {shown}")),
    };
    if !metadata.is_file() {
        bail!("{shown} is not a file, so it cannot be a kernel; name the program itself");
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        bail!("the kernel {shown} is not executable; try chmod +x {shown}");
    }
    if let Ok(file) = File::open(path) {
        match elf_extent(&file) {
            Elf::Extent(extent) if extent > metadata.len() => bail!(
                "the kernel {shown} is truncated: its headers speak of {extent} bytes and it has \
                 {}; copy or build it again",
                metadata.len()
            ),
            Elf::Truncated => {
                bail!("the kernel {shown} is truncated within its headers; copy or build it again")
            }
            Elf::Extent(_) | Elf::Other => {}
        }
    }
    Ok(())
}

enum Elf {
    /// Where the last segment or the table of sections ends.
    Extent(u64),
    Truncated,
    /// Not a 64-bit little-endian ELF file: whatever it is, running it will tell.
    Other,
}

fn elf_extent(file: &File) -> Elf {
    let mut header = [0; 64];
    if file.read_exact_at(&mut header[..6], 0).is_err() || header[..6] != *b"\x7fELF\x02\x01" {
        return Elf::Other;
    }
    if file.read_exact_at(&mut header, 0).is_err() {
        return Elf::Truncated;
    }
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let table = u64_at(32);
    let (size, count) = (u16_at(54), u16_at(56));
    // Sections come last in most files; there may be none.
    let mut extent = u64_at(40).saturating_add(u16_at(58) * u16_at(60));
    for index in 0..count {
        let mut entry = [0; 56];
        let at = table.saturating_add(index * size);
        if file.read_exact_at(&mut entry, at).is_err() {
            return Elf::Truncated;
        }
        let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
        extent = extent.max(word(8).saturating_add(word(32)));
    }
    Elf::Extent(extent)
}

/// What the kernel answers to one option.
fn ask(kernel: &Path, question: &str) -> Result<String> {
    let shown = kernel.display();
    let (mut output, input) = std::io::pipe().context("cannot create a pipe")?;
    let mut command = Command::new(kernel);
    command
        .arg(question)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .process_group(0);
    let spawned = command.spawn();
    drop(command);
    let mut child = spawned.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOEXEC) => anyhow::anyhow!(
            "the kernel {shown} is not a program for this machine (exec format error); {INSTEAD}"
        ),
        Some(Errno::EACCES) => anyhow::anyhow!(
            "the kernel {shown} may not be executed (permission denied): is its file system \
             mounted noexec? try a copy elsewhere"
        ),
        _ => anyhow::Error::new(error).context(format!("cannot run the kernel {shown}")),
    })?;

    let deadline = Instant::now() + DEADLINE;
    let mut text = Vec::new();
    let mut block = [0; 16 * 1024];
    let in_time = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || text.len() > OUTPUT_LIMIT {
            break false;
        }
        let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno).context("cannot wait for the kernel's answer"),
        }
        match output.read(&mut block).context("cannot read the kernel's answer")? {
            0 => break true,
            count => text.extend_from_slice(&block[..count]),
        }
    };
    // Its children too, if it has made any: the group is its own.
    let group = Pid::from_raw(child.id().cast_signed());
    if !in_time {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = child.wait().with_context(|| format!("cannot wait for the kernel {shown}"))?;
    if !in_time {
        bail!(
            "the kernel {shown} did not answer {question} within {} s: is it a User Mode Linux \
             kernel? {INSTEAD}",
            DEADLINE.as_secs()
        );
    }
    // A kernel ends these questions with status 0 or 1, depending on its age.
    if status.code().is_none() {
        bail!(
            "the kernel {shown} {} when asked for {question}: is the file damaged? {INSTEAD}",
            describe(status)
        );
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
