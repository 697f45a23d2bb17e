//! `exec` and `shell`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::network::NetworkArgs;
use super::values;
use crate::plan::{self, needs::Need};

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
    #[command(flatten)]
    pub ci: super::ci::CiArgs,
}

#[derive(Debug, Args)]
pub struct ShellArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// The kinds of isolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    Auto,
    /// Namespaces of the host's kernel: fast
    Namespaces,
    /// A guest kernel: root over everything, any kernel version
    Uml,
    /// None: the command runs as you
    None,
}

impl From<Isolation> for plan::Isolation {
    fn from(asked: Isolation) -> Self {
        match asked {
            Isolation::Auto => Self::Auto,
            Isolation::Namespaces => Self::Namespaces,
            Isolation::Uml => Self::Uml,
            Isolation::None => Self::None,
        }
    }
}

impl MachineArgs {
    /// Everything that the step needs.
    pub fn needs(&self) -> Vec<Need> {
        let root = self.root.then(|| Need::find("system-root").ok()).flatten();
        root.into_iter().chain(self.need.iter().copied()).collect()
    }
}

/// What `exec` and `shell` share.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// What isolates: auto takes namespaces where they give what is asked for, else a guest kernel
    #[arg(long, value_name = "KIND", default_value = "auto", help_heading = "Machine")]
    pub isolation: Isolation,
    /// Short for --need system-root: root over the system's own files
    #[arg(long, help_heading = "Machine")]
    pub root: bool,
    /// What the step needs, separated by commas, such as users, docker, btrfs, nftables
    #[arg(long, value_name = "NEED,..", value_delimiter = ',', value_parser = Need::find, help_heading = "Machine")]
    pub need: Vec<Need>,
    /// Run in this guest kernel: auto, a version (7.3, 6.12, 6.1), or a path or name of a UML kernel
    #[arg(long, value_name = "KERNEL", help_heading = "Machine")]
    pub kernel: Option<OsString>,
    /// Which set of kernel features a built kernel has
    #[arg(long, value_name = "PROFILE", help_heading = "Machine")]
    pub profile: Option<String>,
    /// Memory of the machine (512M, 4G) [default in a guest: 768M, and swap behind it]
    #[arg(long, value_name = "SIZE", value_parser = values::size, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// CPUs of the machine [default: as many as may be used]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub cpus: Option<u32>,
    /// Do not trust programs to stay out of the kernel they run on: a guest, slower, one CPU
    #[arg(long, help_heading = "Machine")]
    pub untrusted: bool,
    /// Close to programs (io-uring: a part of the kernel with a history of faults)
    #[arg(long, value_name = "WHAT", value_parser = ["io-uring"], help_heading = "Machine")]
    pub deny: Vec<String>,
    /// How long the machine may take to come up
    #[arg(long, value_name = "TIME", value_parser = values::duration, default_value = "60s", help_heading = "Machine")]
    pub boot_timeout: Duration,
    /// Refuse to run without (confinement: the host's kernel enforces which files are reached)
    #[arg(long, value_name = "WHAT", value_parser = ["confinement"], help_heading = "Machine")]
    pub require: Vec<String>,

    /// The directory whose files the machine sees as its root
    #[arg(long, value_name = "DIR", default_value = "/", help_heading = "Files")]
    pub rootfs: PathBuf,
    /// A path that the machine may change, repeatable [default: the current directory; in GitHub
    /// Actions the workspace and RUNNER_TEMP too]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub rw: Vec<PathBuf>,
    /// Throw every change away, those in the current directory too
    #[arg(long, conflicts_with = "rw", help_heading = "Files")]
    pub ro: bool,
    /// A path that the machine must not see, repeatable (credentials in usual places are hidden)
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub hide: Vec<PathBuf>,
    /// A path that would be hidden by default and shall be seen, repeatable
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub show: Vec<PathBuf>,
    /// Working directory in the machine [default: the current directory]
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub workdir: Option<PathBuf>,

    #[command(flatten)]
    pub network: NetworkArgs,

    /// Set a variable (NAME=VALUE), or pass one of ours on (NAME), repeatable
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Command")]
    pub env: Vec<OsString>,
    /// Read variables from a file of NAME=VALUE lines, repeatable
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    pub env_file: Vec<PathBuf>,
    /// Run as this user of the machine: name, uid, name:group or uid:gid
    #[arg(long, value_name = "USER", default_value = "root", help_heading = "Command")]
    pub user: String,

    /// Write what the guest's kernel prints to a file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub kernel_log: Option<PathBuf>,
    /// Say what is done and what was enforced
    #[arg(long, short, help_heading = "Output")]
    pub verbose: bool,
}
