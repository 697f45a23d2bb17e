//! A command that ended: told to people, to programs and to our caller.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use sekexe_init::protocol::{Outcome, Usage};

use crate::commands::{Environment, Messages, Status, network};
use crate::machine::{Confinement, Ended};
use crate::net::Record;
use crate::report::{self, MachineFacts, Run};
use crate::session::GuestInfo;

/// A command that ended, and all there is to tell of it.
pub struct Concluded {
    pub(super) started: Instant,
    pub(super) verbose: bool,
    pub(super) result: Option<PathBuf>,
    pub(super) last_lines: Vec<String>,
    pub(super) outcome: Outcome,
    pub(super) usage: Usage,
    pub(super) command_time: Duration,
    pub(super) facts: MachineFacts,
    pub(super) kernel: Option<PathBuf>,
    pub(super) machine: GuestInfo,
    pub(super) confinement: Confinement,
    pub(super) machine_end: Option<Ended>,
    pub(super) contacts: Record,
    pub(super) log_network: bool,
    pub(super) warnings: Vec<String>,
}

impl Concluded {
    /// Tells it, and says how this process shall end.
    pub fn conclude(self, env: &Environment) -> Result<Status> {
        let messages = Messages::new(env);
        self.warnings.iter().for_each(|warning| messages.warning(warning));
        network::tell_refusals(&self.contacts, messages);
        if self.verbose {
            self.describe(messages);
        }
        if let Some(path) = &self.result {
            let run = Run {
                outcome: &self.outcome,
                usage: self.usage,
                command_time: self.command_time,
                total_time: self.started.elapsed(),
                facts: &self.facts,
                kernel: self.kernel.as_deref(),
                machine: &self.machine,
                confinement: &self.confinement,
                machine_end: self.machine_end,
                contacts: self.log_network.then_some(&self.contacts),
                warnings: &self.warnings,
            };
            report::write_file(path, &report::result(&run))?;
        }
        if !self.last_lines.is_empty() {
            messages.note("the guest's last words:");
            self.last_lines.iter().rev().take(12).rev().for_each(|line| messages.detail(line));
        }
        if let Some(line) = report::line(&self.outcome, &self.usage) {
            messages.outcome(line);
        }
        Ok(report::exit_status(&self.outcome))
    }

    fn describe(&self, messages: Messages) {
        let confinement = &self.confinement;
        let landlock = format!("Landlock ABI {}", confinement.landlock_abi);
        let enforced: Vec<&str> = [
            (confinement.namespaces, "namespaces of its own"),
            (confinement.landlock_abi > 0, landlock.as_str()),
            (confinement.read_only_mounts, "read-only mounts"),
            (confinement.seccomp_filter, "a filter of system calls"),
            (confinement.no_new_privs, "no new privileges"),
        ]
        .into_iter()
        .filter_map(|(enforced, name)| enforced.then_some(name))
        .collect();
        let enforced = if enforced.is_empty() { "nothing".to_owned() } else { enforced.join(", ") };
        messages.note(format_args!("enforced: {enforced}"));
        messages.detail(format_args!("writable: {}", or_nothing(&confinement.writable)));
        messages.detail(format_args!("hidden: {}", or_nothing(&confinement.hidden)));
        messages.note(format_args!(
            "{}; ready after {} ms, command {} ms",
            self.facts,
            self.machine.ready_after.as_millis(),
            self.command_time.as_millis(),
        ));
    }
}

fn or_nothing(paths: &[String]) -> String {
    if paths.is_empty() { "nothing".into() } else { paths.join(" ") }
}
