//! `detect`.

use clap::Args;

use super::kernel::Format;

#[derive(Debug, Args)]
#[command(after_long_help = SCHEMA)]
pub struct DetectArgs {
    /// Boot every guest kernel in the cache, too
    #[arg(long)]
    pub boot: bool,
    /// How to print it
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

const SCHEMA: &str = "\
JSON: one object. `schema` is 1 and grows when a field changes its meaning or goes; fields may be
added. An answer is an object {\"supported\": true}, or {\"supported\": false, \"reason\": TEXT,
\"remedy\": TEXT or null}. Sizes are in bytes, times in milliseconds.

  namespaces       privilege (user-namespace, real-root, none), and answers: user, mount, pid, network,
                   ipc, uts, cgroup, time, overlay, proc, nested, subordinate_ids
  privileges       uid, real_root (answer), capabilities (names), no_new_privs
  container        null, or kind, mark (what told), github_job
  ci               null, or name, and words: what --ci auto stands for, or null
  control_groups   versions, path, controllers, delegated (answer),
                   limits: memory_bytes, cpus, processes, cpuset
  limits           memory_bytes, available_bytes, cpus, open_files, processes
  seccomp          mode (0, 1, 2), filters in force, and answers: filter, listener
  landlock         abi, enforced (answer)
  tun              answers: device, tap
  ptrace, kvm, fuse  answers
  programs         a list: name, path, found (answer)
  places           a list: path, size, free, memory, exec, usable (answer)
  kernels          a list: label, path, release, current (is what --kernel finds),
                   boot: null, or works (answer), release, boot_ms
  verdict          what exec would use: machine (namespaces, uml, none, null), reason,
                   better: a list: gain, remedy

Exit status: 0; 125 if sekexe-ci itself failed.";
