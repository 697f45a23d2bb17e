//! How a run ended: as an exit status, as a line for people, as a result file for programs.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sekexe_init::protocol::{Outcome, Seal, Usage};
use serde::Serialize;
use serde_json::{Value, json};

use crate::machine::{Confinement, Ended, Kind};
use crate::net::Record;
use crate::plan::{FallBack, guest, namespaces, size};
use crate::session::{GuestInfo, status_of_signal};

/// Exit statuses of our own; every other one is the command's.
pub mod status {
    /// The command did not end in time, as `timeout(1)` has it.
    pub const TIMED_OUT: u8 = 124;
    /// sekexe-ci failed, bad usage included.
    pub const OURS: u8 = 125;
    /// The command exists and cannot be run.
    pub const CANNOT_RUN: u8 = 126;
    /// There is no such command.
    pub const NOT_FOUND: u8 = 127;
}

/// Version of the result file's layout; grows when a field changes its meaning or goes.
const LAYOUT: u32 = 1;

/// Everything known about a run that got as far as a machine.
#[derive(Debug)]
pub struct Run<'a> {
    /// How the command ended.
    pub outcome: &'a Outcome,
    /// What the command used.
    pub usage: Usage,
    /// From the command's start to its end.
    pub command_time: Duration,
    /// When we started.
    pub began: SystemTime,
    /// From our start to now.
    pub total_time: Duration,
    /// What the machine was and got.
    pub facts: &'a MachineFacts,
    /// The guest kernel's file.
    pub kernel: Option<&'a Path>,
    /// What the machine said of itself.
    pub machine: &'a GuestInfo,
    /// What was enforced.
    pub confinement: &'a Confinement,
    /// How the machine ended, if that is known.
    pub machine_end: Option<Ended>,
    /// Whom it talked to, if that was wanted.
    pub contacts: Option<&'a Record>,
    /// What the user should know.
    pub warnings: &'a [String],
}

/// What a machine was and got, and why it was this one. Sizes in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct MachineFacts {
    /// Which kind.
    pub kind: Kind,
    /// Why this one.
    pub reason: String,
    /// What was missing for a faster one.
    pub fall_back: Option<String>,
    /// CPUs, where they were limited.
    pub cpus: Option<u32>,
    /// Memory, where it was limited.
    pub memory_bytes: Option<u64>,
    /// Swap behind it.
    pub swap_bytes: Option<u64>,
    /// What may be written and is thrown away.
    pub writable_bytes: Option<u64>,
    /// Most tasks.
    pub max_tasks: Option<u32>,
    /// What catches system calls: the host's kernel itself, or a guest kernel by seccomp or ptrace.
    pub system_calls: &'static str,
    /// What keeps commands from undoing the machine's mounts.
    pub seal: Option<&'static str>,
}

impl MachineFacts {
    /// Of a guest.
    pub fn of_guest(plan: &guest::Plan, reason: &str, fall_back: Option<&FallBack>) -> Self {
        Self {
            fall_back: fall_back.map(|fall_back| fall_back.missing.clone()),
            cpus: Some(plan.cpus),
            memory_bytes: Some(plan.memory),
            swap_bytes: Some(plan.swap),
            writable_bytes: Some(plan.writable),
            max_tasks: Some(plan.max_tasks),
            system_calls: if plan.seccomp { "seccomp" } else { "ptrace" },
            ..Self::of(Kind::Uml, reason)
        }
    }

    /// Of namespaces. `limited` says whether the number of tasks is.
    pub fn of_namespaces(plan: &namespaces::Plan, limited: bool, reason: &str) -> Self {
        Self {
            cpus: (!plan.pin.is_empty()).then_some(plan.pin.len() as u32),
            memory_bytes: plan.memory,
            writable_bytes: Some(plan.writable),
            max_tasks: limited.then_some(plan.max_tasks),
            seal: match plan.seal {
                Seal::Open => None,
                Seal::UserNamespace => Some("user-namespace"),
                Seal::Capabilities => Some("capabilities"),
            },
            ..Self::of(Kind::Namespaces, reason)
        }
    }

    /// Of no machine at all.
    pub fn of_nothing(reason: &str) -> Self {
        Self::of(Kind::None, reason)
    }

    fn of(kind: Kind, reason: &str) -> Self {
        Self {
            kind,
            reason: reason.to_owned(),
            fall_back: None,
            cpus: None,
            memory_bytes: None,
            swap_bytes: None,
            writable_bytes: None,
            max_tasks: None,
            system_calls: "native",
            seal: None,
        }
    }
}

impl fmt::Display for MachineFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = [
            (self.memory_bytes, "memory"),
            (self.swap_bytes, "swap"),
            (self.writable_bytes, "to write and throw away"),
        ];
        f.write_str(match self.kind {
            Kind::Uml => "guest kernel",
            Kind::Namespaces => "namespaces",
            Kind::None => "no machine",
        })?;
        self.cpus.iter().try_for_each(|cpus| write!(f, ", {cpus} CPU(s)"))?;
        let known = sizes.into_iter().filter_map(|(bytes, name)| Some((bytes?, name)));
        known.into_iter().try_for_each(|(bytes, name)| write!(f, ", {} {name}", size(bytes)))
    }
}

/// The exit status that stands for an outcome.
pub fn exit_status(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Exited(code) | Outcome::OutOfMemory(code) => *code,
        Outcome::Signalled(signal) => status_of_signal(*signal),
        Outcome::TimedOut => status::TIMED_OUT,
        Outcome::NeverStarted(failure) if failure.stage == "exec" => match failure.errno {
            nix::libc::ENOENT => status::NOT_FOUND,
            _ => status::CANNOT_RUN,
        },
        Outcome::NeverStarted(_) | Outcome::MachineDied(_) => status::OURS,
    }
}

/// One line for people; nothing where the command simply succeeded.
pub fn line(outcome: &Outcome, usage: &Usage) -> Option<String> {
    let line = match outcome {
        Outcome::Exited(0) => return None,
        Outcome::Exited(code) => format!("the command exited with status {code}"),
        Outcome::Signalled(signal) => format!("the command was ended by {}", signal_name(*signal)),
        Outcome::OutOfMemory(_) => {
            "the command ran out of memory: the kernel killed it; try a larger --memory".into()
        }
        Outcome::TimedOut => "the command did not end in time and was killed (--timeout)".into(),
        Outcome::NeverStarted(failure) => {
            format!("the command never started: {failure}{}", remedy(&failure.stage))
        }
        Outcome::MachineDied(failure) => {
            format!("the machine died before the command ended: {failure}{}", remedy(&failure.stage))
        }
    };
    Some(match usage.task_limit_hits {
        0 => line,
        n => format!("{line}; {n} times a process could not be created because of the machine's limit"),
    })
}

/// What to try, where that follows from what was being done.
fn remedy(stage: &str) -> &'static str {
    match stage {
        "workdir" => "; name a directory that the machine has with --workdir",
        "user" => "; name a user of the machine, or a number, with --user",
        "fork" => "; give it more with --memory, or raise `ulimit -u` and `ulimit -n`",
        "boot deadline" => "; try a larger --boot-timeout, or another --kernel",
        _ => "",
    }
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => format!("{} (signal {signal})", known.as_str()),
        Err(_) => format!("signal {signal}"),
    }
}

fn since_the_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The result file's contents. Times are in milliseconds, sizes in bytes.
pub fn result(run: &Run<'_>) -> Value {
    json!({
        "layout": LAYOUT,
        "outcome": outcome(run.outcome),
        "exit_status": exit_status(run.outcome),
        "machine": run.facts,
        "kernel": {
            "path": run.kernel.map(|path| path.display().to_string()),
            "release": run.machine.release,
        },
        "confinement": run.confinement,
        "times": {
            "began_unix_ms": since_the_epoch(run.began).as_millis() as u64,
            "total_ms": milliseconds(run.total_time),
            "guest_boot_ms": run.kernel.map(|_| milliseconds(run.machine.boot_time)),
            "ready_ms": milliseconds(run.machine.ready_after),
            "command_ms": milliseconds(run.command_time),
            "command_user_ms": run.usage.user_us as f64 / 1000.0,
            "command_system_ms": run.usage.system_us as f64 / 1000.0,
        },
        "peak_memory": {
            "largest_process_bytes": run.usage.peak_rss_kib << 10,
            "machine_bytes": run.machine_end.map(|ended| ended.peak_rss_bytes),
        },
        "oom_kills": run.usage.oom_kills,
        "task_limit_hits": run.usage.task_limit_hits,
        "left_behind": run.machine.left_behind,
        "network": run.contacts,
        "warnings": run.warnings,
    })
}

/// The result of a run that never got as far as a machine.
pub fn failed_result(error: &anyhow::Error) -> Value {
    json!({
        "layout": LAYOUT,
        "outcome": { "kind": "failed", "reason": format!("{error:#}") },
        "exit_status": status::OURS,
    })
}

/// The result file's word for an outcome.
pub fn outcome_kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Exited(_) => "exited",
        Outcome::Signalled(_) => "signalled",
        Outcome::OutOfMemory(_) => "out-of-memory",
        Outcome::TimedOut => "timed-out",
        Outcome::NeverStarted(_) => "never-started",
        Outcome::MachineDied(_) => "machine-died",
    }
}

fn outcome(outcome: &Outcome) -> Value {
    let mut value = match outcome {
        Outcome::Exited(code) | Outcome::OutOfMemory(code) => json!({ "code": code }),
        Outcome::Signalled(signal) => json!({ "signal": signal }),
        Outcome::TimedOut => json!({}),
        Outcome::NeverStarted(failure) => {
            json!({ "stage": failure.stage, "reason": failure.reason, "errno": failure.errno })
        }
        Outcome::MachineDied(failure) => json!({ "stage": failure.stage, "reason": failure.reason }),
    };
    value["kind"] = outcome_kind(outcome).into();
    value
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Finds out whether [`write_text`] would fail, as far as one can know beforehand.
pub fn expect_writable(option: &str, path: &Path) -> Result<()> {
    let context =
        || format!("{option} {}: it cannot be written; name a file in a directory that can", path.display());
    if path.is_dir() {
        return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory)).with_context(context);
    }
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(());
    }
    tempfile::tempfile_in(directory_of(path)).map(drop).with_context(context)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a value as a JSON file that is complete or not there.
pub fn write_file(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).with_context(|| format!("compose {}", path.display()))?;
    text.push(b'\n');
    write_text(path, &text)
}

/// Writes a file that is complete or not there.
pub fn write_text(path: &Path, text: &[u8]) -> Result<()> {
    let context = || format!("write {}", path.display());
    // A device or a pipe cannot be replaced by renaming.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return std::fs::write(path, text).with_context(context);
    }
    let mut file = tempfile::NamedTempFile::new_in(directory_of(path)).with_context(context)?;
    file.write_all(text).with_context(context)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sekexe_init::protocol::Failure;

    use super::*;

    fn never(stage: &str, errno: i32) -> Outcome {
        Outcome::NeverStarted(Failure { stage: stage.into(), reason: "why".into(), errno })
    }

    #[test]
    fn every_outcome_has_its_status() {
        let died = Failure { stage: "guest kernel".into(), reason: "kernel panic".into(), errno: 0 };
        for (outcome, expected) in [
            (Outcome::Exited(0), 0),
            (Outcome::Exited(255), 255),
            (Outcome::Signalled(9), 137),
            (Outcome::Signalled(15), 143),
            (Outcome::OutOfMemory(137), 137),
            (Outcome::TimedOut, 124),
            (never("exec", nix::libc::ENOENT), 127),
            (never("exec", nix::libc::EACCES), 126),
            (never("workdir", nix::libc::ENOENT), 125),
            (Outcome::MachineDied(died), 125),
        ] {
            assert_eq!(exit_status(&outcome), expected, "{outcome:?}");
        }
    }

    #[test]
    fn only_plain_success_is_silent() {
        let usage = Usage::default();
        assert_eq!(line(&Outcome::Exited(0), &usage), None);
        insta::assert_snapshot!(line(&Outcome::Signalled(9), &usage).unwrap(), @"the command was ended by SIGKILL (signal 9)");
        insta::assert_snapshot!(line(&never("exec", 2), &usage).unwrap(), @"the command never started: exec: why");
        let bomb = Usage { task_limit_hits: 3, ..usage };
        insta::assert_snapshot!(line(&Outcome::TimedOut, &bomb).unwrap(), @"the command did not end in time and was killed (--timeout); 3 times a process could not be created because of the machine's limit");
    }
}
