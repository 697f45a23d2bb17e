//! A command that ended: told to people, to programs and to our caller.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use sekexe_init::protocol::{Outcome, Usage};

use crate::ci::events;
use crate::commands::face::{Ending, Face};
use crate::commands::{Environment, Messages, Status, network};
use crate::machine::{Confinement, Ended};
use crate::net::Record;
use crate::plan;
use crate::report::{self, MachineFacts, Run};
use crate::session::{GuestInfo, meaning};

/// A command that ended, and all there is to tell of it.
pub struct Concluded {
    pub(super) began: SystemTime,
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
    pub fn conclude(self, env: &Environment, face: Option<Face>) -> Result<Status> {
        let messages = Messages::new(env);
        let refusals = network::refusals(&self.contacts);
        if let Some(face) = face {
            let complaints = face.show(&self.ending(refusals.clone()), env)?;
            complaints.iter().for_each(|complaint| messages.warning(complaint));
        }
        self.warnings.iter().for_each(|warning| messages.warning(warning));
        refusals.iter().for_each(|refusals| messages.warning(refusals));
        if self.verbose {
            self.describe(messages);
        }
        if let Some(path) = &self.result {
            let run = Run {
                outcome: &self.outcome,
                usage: self.usage,
                command_time: self.command_time,
                began: self.began,
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
            meaning(&self.last_lines).iter().for_each(|meaning| messages.note(meaning));
        }
        if let Some(line) = report::line(&self.outcome, &self.usage) {
            messages.outcome(line);
        }
        Ok(report::exit_status(&self.outcome))
    }

    /// What a CI is told.
    fn ending(&self, refusals: Option<String>) -> Ending {
        let line = report::line(&self.outcome, &self.usage);
        let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        let warnings: Vec<String> = self.warnings.iter().cloned().chain(refusals.clone()).collect();
        let contacts = self.contacts.contacts.len();
        let peak = self.machine_end.map(|ended| plan::size(ended.peak_rss_bytes));
        Ending {
            events: events::of(&events::End {
                kind: (!matches!(self.outcome, Outcome::Exited(_)))
                    .then(|| report::outcome_kind(&self.outcome)),
                line: line.as_deref(),
                last_lines: &self.last_lines,
                fall_back: self.facts.fall_back.as_deref(),
                warnings: &warnings,
                left_behind: &self.machine.left_behind,
            }),
            failed: report::exit_status(&self.outcome) != 0,
            line: line.clone(),
            command_time: self.command_time,
            outputs: vec![
                ("exit-code", report::exit_status(&self.outcome).to_string()),
                ("outcome", report::outcome_kind(&self.outcome).into()),
                ("isolation", self.facts.kind.name().into()),
                ("kernel-release", self.machine.release.clone()),
                ("duration", format!("{:.3}", self.command_time.as_secs_f64())),
            ],
            facts: vec![
                ("outcome", Some(line.unwrap_or_else(|| "the command succeeded".into()))),
                ("machine", Some(self.facts.to_string())),
                ("kernel", Some(self.machine.release.clone()).filter(|release| !release.is_empty())),
                ("time of the command", Some(seconds(self.command_time))),
                ("time in all", Some(seconds(self.started.elapsed()))),
                ("peak memory of the machine", peak),
                ("left behind", events::left_behind(&self.machine.left_behind)),
                ("network", refusals.or_else(|| (contacts > 0).then(|| format!("{contacts} contacts")))),
            ],
        }
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
        events::left_behind(&self.machine.left_behind).iter().for_each(|left| messages.note(left));
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
