//! How much of the host a machine may use: memory, CPUs, descriptors, processes.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::sysinfo::sysinfo;
use nix::unistd::Pid;
use serde::Serialize;

use super::control_group;
use crate::sys::read_kernel_text;

/// Upper bounds that hold for us and for everything we start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Physical memory, or the control group's limit where that is less, in bytes.
    pub memory_bytes: u64,
    /// Memory that can be had without swapping, in bytes.
    pub available_bytes: u64,
    /// Numbers of the CPUs that we may run on.
    pub cpus: Vec<usize>,
    /// Hard limit of open files.
    pub open_files: u64,
    /// Hard limit of processes of this user.
    pub processes: u64,
}

impl Limits {
    /// Asks the kernel.
    pub fn probe() -> Result<Self> {
        let system = sysinfo().context("ask for the system's memory")?;
        let total = system.ram_total();
        // Counts what can be taken back from caches, too; it is only in the file.
        let meminfo = read_kernel_text("/proc/meminfo").unwrap_or_default();
        let available =
            field_kib(&meminfo, "MemAvailable:").map_or_else(|| system.ram_unused(), |kib| kib << 10);
        let memory_bytes = control_group::memory_limit().map_or(total, |limit| limit.min(total));
        let affinity = sched_getaffinity(Pid::from_raw(0)).context("ask for the allowed CPUs")?;
        Ok(Self {
            memory_bytes,
            available_bytes: available.min(memory_bytes),
            cpus: (0..CpuSet::count()).filter(|cpu| affinity.is_set(*cpu).unwrap_or(false)).collect(),
            open_files: getrlimit(Resource::RLIMIT_NOFILE).context("ask for RLIMIT_NOFILE")?.1,
            processes: getrlimit(Resource::RLIMIT_NPROC).context("ask for RLIMIT_NPROC")?.0,
        })
    }
}

fn field_kib(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim().parse().ok()
}
