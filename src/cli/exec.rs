//! `exec` and `shell`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: the command's own; 128+n if signal n ended it; 124 timeout; \
    125 sekexe-ci itself failed; 126 the command cannot be run; 127 it was not found.")]
pub struct ExecArgs {
    /// The script, or - to read it from standard input
    #[arg(value_name = "SCRIPT", conflicts_with_all = ["script_file", "argv"])]
    pub script: Option<OsString>,
    /// Read the script from a file
    #[arg(long = "script", value_name = "FILE", conflicts_with = "argv")]
    pub script_file: Option<PathBuf>,
    /// A program and its arguments, passed on as they are
    #[arg(last = true, value_name = "ARGV")]
    pub argv: Vec<OsString>,
    /// How to run the script: bash, sh, python, or words with {0} where its path belongs
    ///
    /// As GitHub does: `bash --noprofile --norc -e -o pipefail {0}`, `sh -e {0}`, `python {0}`;
    /// without this option bash, or sh where there is none, with `-e {0}`.
    #[arg(long, value_name = "SHELL", conflicts_with = "argv")]
    pub shell: Option<String>,
    /// End the command after this long (90s, 5m, 1h 30m)
    #[arg(long, value_name = "TIME", value_parser = values::duration, default_value = "6h")]
    pub timeout: Duration,
    /// Write how it ended as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub result: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineArgs,
}

#[derive(Debug, Args)]
pub struct ShellArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// What `exec` and `shell` share.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Guest kernel: auto, a version (7.3, 6.12, 6.1), or a path or name of a UML kernel
    #[arg(long, value_name = "KERNEL", default_value = "auto", help_heading = "Machine")]
    pub kernel: OsString,
    /// Which set of kernel features a built kernel has
    #[arg(long, value_name = "PROFILE", help_heading = "Machine")]
    pub profile: Option<String>,
    /// Guest memory (512M, 4G) [default: 768M, and swap behind it]
    #[arg(long, value_name = "SIZE", value_parser = values::size, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Virtual CPUs [default: as many as may be used]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub cpus: Option<u32>,
    /// Do not trust programs to stay out of the guest's kernel: slower, one CPU
    #[arg(long, help_heading = "Machine")]
    pub untrusted: bool,
    /// How long the guest may take to come up
    #[arg(long, value_name = "TIME", value_parser = values::duration, default_value = "60s", help_heading = "Machine")]
    pub boot_timeout: Duration,
    /// Refuse to run without (confinement: the host's kernel enforces which files are reached)
    #[arg(long, value_name = "WHAT", value_parser = ["confinement"], help_heading = "Machine")]
    pub require: Vec<String>,

    /// The directory whose files the guest sees as its root
    #[arg(long, value_name = "DIR", default_value = "/", help_heading = "Files")]
    pub rootfs: PathBuf,
    /// A path that the guest may change, repeatable [default: the current directory]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub rw: Vec<PathBuf>,
    /// Throw every change away, those in the current directory too
    #[arg(long, conflicts_with = "rw", help_heading = "Files")]
    pub ro: bool,
    /// A path that the guest must not see, repeatable (credentials in usual places are hidden)
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub hide: Vec<PathBuf>,
    /// A path that would be hidden by default and shall be seen, repeatable
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub show: Vec<PathBuf>,
    /// Working directory in the guest [default: the current directory]
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub workdir: Option<PathBuf>,

    /// Set a variable (NAME=VALUE), or pass one of ours on (NAME), repeatable
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Command")]
    pub env: Vec<OsString>,
    /// Read variables from a file of NAME=VALUE lines, repeatable
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    pub env_file: Vec<PathBuf>,
    /// Run as this user of the guest: name, uid, name:group or uid:gid
    #[arg(long, value_name = "USER", default_value = "root", help_heading = "Command")]
    pub user: String,

    /// Write what the guest's kernel prints to a file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub kernel_log: Option<PathBuf>,
    /// Say what is done and what was enforced
    #[arg(long, short, help_heading = "Output")]
    pub verbose: bool,
}
