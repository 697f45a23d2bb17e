//! `execns`.

use std::ffi::OsString;
use std::os::fd::RawFd;

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sekexe-ci execns --user --net -- ip link           only a loopback interface
  sekexe-ci execns --user --pid --mount -- sh -c 'mount -t proc proc /proc; ps ax'

The program gets standard input, output and error, and no other descriptor. As PID 1 it does not end
by a signal for which it has no handler, but for SIGKILL.")]
pub struct ExecnsArgs {
    /// Fresh users and capabilities: root inside is the caller outside
    #[arg(long, help_heading = "Namespaces")]
    pub user: bool,
    /// Fresh processes: the program is PID 1
    #[arg(long, help_heading = "Namespaces")]
    pub pid: bool,
    /// Fresh network interfaces, addresses, ports
    #[arg(long, help_heading = "Namespaces")]
    pub net: bool,
    /// Fresh System V objects and message queues
    #[arg(long, help_heading = "Namespaces")]
    pub ipc: bool,
    /// Fresh host name
    #[arg(long, help_heading = "Namespaces")]
    pub uts: bool,
    /// Fresh mounts; none made inside shows up outside
    #[arg(long, help_heading = "Namespaces")]
    pub mount: bool,
    /// Fresh root of the control groups
    #[arg(long, help_heading = "Namespaces")]
    pub cgroup: bool,
    /// Fresh offsets of the clocks
    #[arg(long, help_heading = "Namespaces")]
    pub time: bool,
    /// A further descriptor that stays open, repeatable
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub keep_fd: Vec<RawFd>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "ARGV")]
    pub argv: Vec<OsString>,
}
