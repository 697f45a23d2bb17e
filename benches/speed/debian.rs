//! The distribution's kernel, started as one would without us: a small root on hostfs with a static
//! busybox and a script for PID 1, which puts an overlay of the host's files together.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::measure::run;

/// Directories that the script mounts on.
const MOUNT_POINTS: [&str; 6] = ["bin", "dev", "proc", "lower", "scratch", "root"];

/// A guest of the distribution's kernel.
pub struct Debian {
    kernel: PathBuf,
    root: PathBuf,
}

impl Debian {
    /// Prepares its root in `place`.
    pub fn new(kernel: &Path, place: &Path) -> Result<Self> {
        let kernel = which::which(kernel).with_context(|| format!("there is no {}", kernel.display()))?;
        let busybox = which::which("busybox").context("there is no busybox")?;
        let root = place.join("debian-root");
        for directory in MOUNT_POINTS {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(busybox, root.join("bin/busybox")).context("copy busybox")?;
        // The word "7.3.4-x" or "User Mode Linux ... 6.1.x": `--version` prints the release alone.
        let release = String::from_utf8(run(Command::new(&kernel).arg("--version"))?.stdout)?;
        let module =
            Path::new("/usr/lib/uml/modules").join(release.trim()).join("kernel/fs/overlayfs/overlay.ko");
        if module.exists() {
            fs::copy(module, root.join("overlay.ko")).context("copy the overlay module")?;
        }
        Ok(Self { kernel, root })
    }

    /// A guest that runs `command` in an overlay of the host's root and is switched off.
    pub fn start(&self, command: &str) -> Result<Command> {
        let init = self.root.join("init");
        fs::write(
            &init,
            format!(
                "#!/bin/busybox sh\n\
                 alias b=/bin/busybox\n\
                 b mount -t proc proc /proc\n\
                 [ ! -e /overlay.ko ] || b insmod /overlay.ko\n\
                 b mount -t hostfs -o ro,/ none /lower\n\
                 b mount -t tmpfs scratch /scratch\n\
                 b mkdir /scratch/upper /scratch/work\n\
                 b mount -t overlay -o lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work \
                 none /root || b poweroff -f\n\
                 b mount -t proc proc /root/proc\n\
                 b chroot /root /bin/sh -c '{command}' && echo guest-done\n\
                 b poweroff -f\n"
            ),
        )?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let mut started = Command::new(&self.kernel);
        started
            .args(["mem=1024M", "root=/dev/root", "rootfstype=hostfs", "ro", "init=/init", "quiet"])
            .arg(format!("rootflags={}", self.root.display()))
            .args(["con=null", "con0=fd:0,fd:1", "ssl=null"])
            .env("TMPDIR", "/var/tmp")
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        Ok(started)
    }

    /// Runs such a guest to its end.
    pub fn run(&self, command: &str) -> Result<()> {
        // The kernel's exit status says nothing.
        let output = self.start(command)?.output()?;
        if !String::from_utf8_lossy(&output.stdout).contains("guest-done") {
            let text = String::from_utf8_lossy(&output.stdout);
            bail!("the command did not succeed: {}", text.lines().last().unwrap_or_default());
        }
        Ok(())
    }
}
