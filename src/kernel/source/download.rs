//! kernel.org's tarballs.
//!
//! `curl` or `wget` does the transfer. They bring the system's certificates,
//! proxies and resolver, none of which a statically linked program can use
//! faithfully (glibc loads its name service modules at run time), and a machine
//! that can build a kernel has one of them, or gets it with the other tools.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::super::Host;
use super::super::catalogue::{KernelOrg, hex};
use super::super::event::{Event, Report, Unit};
use super::super::process::{describe, find_program};

/// Seconds until an address counts as unreachable.
const CONNECT_TIMEOUT: &str = "5";

/// What was downloaded is not what was pinned.
#[derive(Debug)]
pub struct Mismatch(String);

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

/// Downloads the pinned tarball to `to`, which appears only when it is right.
pub fn fetch_kernel_org(pin: &KernelOrg, to: &Path, host: &Host, report: Report<'_>) -> Result<()> {
    let major = pin.release.split('.').next().unwrap_or_default();
    let base = host.kernel_org.trim_end_matches('/');
    let address = format!("{base}/v{major}.x/linux-{}.tar.xz", pin.release);
    let mut partial = tempfile::Builder::new()
        .prefix(".download-")
        .tempfile_in(to.parent().unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write beside {}", to.display()))?;

    report(Event::Stage(format!("downloading Linux {} from kernel.org", pin.release)));
    let (sum, size) = transfer(&address, partial.as_file_mut(), host, report)?;
    if sum != pin.sha256 {
        // Dropping the temporary file removes it.
        bail!(Mismatch(format!(
            "{address} is not the file it should be: its {size} bytes have SHA-256 {sum}, and \
             {} is pinned; a proxy may have changed it, try again or use --source",
            pin.sha256
        )));
    }
    partial.persist(to).with_context(|| format!("cannot create {}", to.display()))?;
    Ok(())
}

/// Copies what is at `address` into `to`. Gives its SHA-256 and its size.
///
/// The bytes come through a pipe, so a client whose owner was killed ends.
fn transfer(address: &str, to: &mut File, host: &Host, report: Report<'_>) -> Result<(String, u64)> {
    let mut command = client(address, host)?;
    let errors = tempfile::tempfile().context("cannot create a temporary file")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut output = child.stdout.take().context("the download has no output")?;

    let mut hash = Sha256::new();
    let mut size = 0;
    let mut block = vec![0; 256 * 1024];
    let mut told = Instant::now();
    loop {
        let count = output.read(&mut block).context("cannot read the download")?;
        if count == 0 {
            break;
        }
        to.write_all(&block[..count]).context("cannot write the download: is the disk full?")?;
        hash.update(&block[..count]);
        size += count as u64;
        if told.elapsed() >= Duration::from_millis(200) {
            told = Instant::now();
            report(Event::Progress { done: size, total: None, unit: Unit::Bytes });
        }
    }
    let status = child.wait().context("cannot wait for the download")?;
    if !status.success() {
        let said = read_back(errors);
        match said.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => bail!("{}", line.trim()),
            None => bail!("the download {}", describe(status)),
        }
    }
    Ok((hex(&hash.finalize()), size))
}

fn client(address: &str, host: &Host) -> Result<Command> {
    if let Some(curl) = find_program("curl", &host.path) {
        let mut command = Command::new(curl);
        // A transfer that stands still for 30 s is as good as unreachable.
        command.args(["--fail", "--silent", "--show-error", "--location"]);
        command.args(["--connect-timeout", CONNECT_TIMEOUT, "--speed-limit", "1", "--speed-time", "30"]);
        command.arg("--").arg(address);
        return Ok(command);
    }
    let Some(wget) = find_program("wget", &host.path) else {
        bail!("neither curl nor wget is on PATH");
    };
    let busybox = fs::canonicalize(&wget).is_ok_and(|path| path.ends_with("busybox"));
    let mut command = Command::new(wget);
    command.args(["-q", "-T", "30"]);
    if !busybox {
        // BusyBox's wget knows none of these.
        command.arg(format!("--connect-timeout={CONNECT_TIMEOUT}"));
        command.args(["--tries=1", "--no-verbose"]);
    }
    command.args(["-O", "-"]).arg(address);
    Ok(command)
}

fn read_back(mut file: File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    text
}
