//! What `exec` would choose now if nothing else were asked for, why, and what would be better.

use std::fmt::Write;

use serde::Serialize;

use crate::detect::{Host, Support};
use crate::plan::{Choice, Machine, Refusal};

/// The end of the report.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The machine, by the name that `--isolation` has for it; null where there is none.
    pub machine: Option<&'static str>,
    /// Why this one, or why none.
    pub reason: String,
    /// What would bring more.
    pub better: Vec<Improvement>,
}

/// One of several things to do.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Improvement {
    /// What would be had.
    pub gain: &'static str,
    /// A command or a setting.
    pub remedy: String,
}

impl Verdict {
    /// From what was chosen, and what else there is. `kernel` says whether the cache has a guest
    /// kernel that would be used.
    pub fn new(choice: Result<Choice, Refusal>, host: &Host, kernel: bool) -> Self {
        let namespaces = &host.namespaces;
        let remedy = |support: &Support| support.denial().and_then(|denial| denial.remedy.clone());
        let build = (!kernel).then(|| "sekexe-ci kernel build".to_owned());
        let (machine, reason, gains) = match choice {
            Err(refusal) => (None, refusal.to_string(), vec![]),
            Ok(Choice { machine: Machine::Guest, reason, fall_back }) => {
                let gains = vec![
                    ("namespaces, at the host's own speed", fall_back.and_then(|back| back.remedy)),
                    ("a guest that starts without building a kernel first", build),
                    ("a guest that is kept from your files by the kernel", remedy(&host.landlock.enforced)),
                ];
                (Some("uml"), reason, gains)
            }
            Ok(Choice { machine, reason, .. }) => {
                let name = if machine == Machine::None { "none" } else { "namespaces" };
                let gains = vec![
                    ("every user inside, not only root", remedy(&namespaces.subordinate_ids)),
                    ("a guest at once where one is asked for (--root, --kernel)", build),
                ];
                (Some(name), reason, gains)
            }
        };
        let better =
            gains.into_iter().filter_map(|(gain, remedy)| Some(Improvement { gain, remedy: remedy? }));
        Self { machine, reason, better: better.collect() }
    }

    /// For people.
    pub fn text(&self) -> String {
        let machine = match self.machine {
            Some("uml") => "exec would use a guest kernel",
            Some("none") => "exec would use no isolation",
            Some(_) => "exec would use namespaces",
            None => "exec would refuse to run",
        };
        let mut text = format!("\n\n{machine}: {}", self.reason);
        for Improvement { gain, remedy } in &self.better {
            let _ = write!(text, "\n  for {gain}, try: {remedy}");
        }
        text
    }
}
