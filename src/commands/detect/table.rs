//! What was found, for people: a line for each capability, below it what would change a no.

use std::fmt::Write;

use indicatif::BinaryBytes;

use super::Report;
use super::guests::Guest;
use crate::detect::{Host, Support};

/// Lines under a heading.
pub struct Section {
    heading: &'static str,
    rows: Vec<Row>,
}

/// One line, and what to try.
struct Row {
    name: String,
    answer: Option<bool>,
    detail: String,
    remedy: Option<String>,
}

impl Row {
    fn of(name: impl Into<String>, support: &Support, detail: impl Into<String>) -> Self {
        let denial = support.denial();
        Self {
            name: name.into(),
            answer: Some(support.is_yes()),
            detail: denial.map_or_else(|| detail.into(), |denial| denial.reason.clone()),
            remedy: denial.and_then(|denial| denial.remedy.clone()),
        }
    }

    fn fact(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.into(), answer: None, detail: detail.into(), remedy: None }
    }
}

/// Orders a report.
pub fn sections(report: &Report) -> Vec<Section> {
    let host = &report.host;
    vec![
        Section { heading: "Surroundings", rows: surroundings(report) },
        Section { heading: "Namespaces", rows: namespaces(host) },
        Section { heading: "Kernel", rows: kernel(host) },
        Section { heading: "Control groups", rows: control_groups(host) },
        Section { heading: "Places for files", rows: places(host) },
        Section { heading: "Programs", rows: programs(host) },
        Section { heading: "Guest kernels", rows: guests(&report.kernels) },
    ]
}

fn surroundings(report: &Report) -> Vec<Row> {
    let host = &report.host;
    let container = host.container.as_ref().map_or_else(
        || "none".to_owned(),
        |found| {
            let job = if found.github_job { ", of a GitHub job" } else { "" };
            format!("{}{job} (told by {})", found.kind.name(), found.mark)
        },
    );
    let ci = report.ci.as_ref().map_or("none", |ci| ci.name).to_owned();
    let held = &host.privileges.capabilities;
    let capabilities = match held.len() {
        0 => "none".to_owned(),
        count if count > 16 => format!("{count}, CAP_SYS_ADMIN {}", among(held, "CAP_SYS_ADMIN")),
        _ => held.join(" "),
    };
    let limits = &host.limits;
    let memory =
        format!("{}, {} available", BinaryBytes(limits.memory_bytes), BinaryBytes(limits.available_bytes));
    vec![
        Row::fact("CI", ci),
        Row::fact("container", container),
        Row::of("real root", &host.privileges.real_root, ""),
        Row::fact("capabilities", capabilities),
        Row::fact("no new privileges", if host.privileges.no_new_privs { "set" } else { "not set" }),
        Row::fact("memory", memory),
        Row::fact("CPUs", limits.cpus.len().to_string()),
        Row::fact("open files", count(limits.open_files)),
        Row::fact("processes", count(limits.processes)),
    ]
}

fn among(names: &[String], name: &str) -> &'static str {
    if names.iter().any(|known| known == name) { "among them" } else { "not among them" }
}

/// A resource limit; the largest number stands for none.
fn count(number: u64) -> String {
    if number == u64::MAX { "unlimited".into() } else { number.to_string() }
}

fn namespaces(host: &Host) -> Vec<Row> {
    let found = &host.namespaces;
    [
        ("user namespace", &found.user),
        ("mount namespace", &found.mount),
        ("pid namespace", &found.pid),
        ("network namespace", &found.network),
        ("ipc namespace", &found.ipc),
        ("uts namespace", &found.uts),
        ("cgroup namespace", &found.cgroup),
        ("time namespace", &found.time),
        ("overlayfs inside", &found.overlay),
        ("new /proc inside", &found.proc),
        ("another user namespace", &found.nested),
        ("subordinate ids", &found.subordinate_ids),
    ]
    .map(|(name, support)| Row::of(name, support, ""))
    .into()
}

fn kernel(host: &Host) -> Vec<Row> {
    let seccomp = &host.seccomp;
    let in_force = match (seccomp.mode, seccomp.filters) {
        (0, _) => "none in force for us".into(),
        (1, _) => "strict mode in force for us".into(),
        (_, Some(filters)) => format!("{filters} in force for us"),
        (_, None) => "some in force for us".into(),
    };
    vec![
        Row::of("Landlock", &host.landlock.enforced, format!("ABI {}", host.landlock.abi)),
        Row::of("seccomp filters", &seccomp.filter, in_force),
        Row::of("seccomp listeners", &seccomp.listener, ""),
        Row::of("ptrace", &host.ptrace, ""),
        Row::of("KVM", &host.kvm, ""),
        Row::of("/dev/net/tun", &host.tun.device, ""),
        Row::of("TAP inside", &host.tun.tap, ""),
        Row::of("FUSE inside", &host.fuse, ""),
    ]
}

fn control_groups(host: &Host) -> Vec<Row> {
    let groups = &host.control_groups;
    let versions = match groups.versions.as_slice() {
        [] => "none".into(),
        [one] => one.to_string(),
        _ => "1, with 2 beside it".into(),
    };
    let limits = &groups.limits;
    let mut texts = Vec::new();
    texts.extend(limits.memory_bytes.map(|bytes| format!("memory {}", BinaryBytes(bytes))));
    texts.extend(limits.cpus.map(|cpus| format!("CPU time {cpus}")));
    texts.extend(limits.processes.map(|processes| format!("processes {processes}")));
    texts.extend(limits.cpuset.as_ref().map(|cpuset| format!("CPUs {cpuset}")));
    let or_none = |text: String| if text.is_empty() { "none".into() } else { text };
    vec![
        Row::fact("version", versions),
        Row::fact("controllers", or_none(groups.controllers.join(" "))),
        Row::fact("limits", or_none(texts.join(", "))),
        Row::of("delegated to us", &groups.delegated, ""),
    ]
}

fn places(host: &Host) -> Vec<Row> {
    let row = |place: &crate::detect::places::Place| {
        let memory = if place.memory { ", memory" } else { "" };
        let detail = format!("{} free of {}{memory}", BinaryBytes(place.free), BinaryBytes(place.size));
        Row::of(place.path.display().to_string(), &place.usable, detail)
    };
    host.places.iter().map(row).collect()
}

fn programs(host: &Host) -> Vec<Row> {
    let row = |program: &crate::detect::programs::Program| {
        let path = program.path.as_ref().map(|path| path.display().to_string());
        Row::of(program.name, &program.found, path.unwrap_or_default())
    };
    host.programs.iter().map(row).collect()
}

fn guests(guests: &[Guest]) -> Vec<Row> {
    if guests.is_empty() {
        let remedy = Some("sekexe-ci kernel build");
        return vec![Row::of("in the cache", &Support::no("none", remedy), "")];
    }
    let row = |guest: &Guest| match &guest.boot {
        None => {
            Row::fact(&guest.label, format!("{}{}, not tried: --boot tries", guest.release, outdated(guest)))
        }
        Some(boot) => {
            let release = boot.release.as_deref().unwrap_or(&guest.release);
            let time = boot.boot_ms.map(|ms| format!(", boots in {ms:.0} ms")).unwrap_or_default();
            Row::of(&guest.label, &boot.works, format!("{release}{}{time}", outdated(guest)))
        }
    };
    guests.iter().map(row).collect()
}

/// A kernel that was built by another version of this program is only used by its path.
fn outdated(guest: &Guest) -> &'static str {
    if guest.current { "" } else { ", outdated" }
}

/// Aligns the lines.
pub fn render(sections: &[Section], color: bool) -> String {
    let names = sections.iter().flat_map(|section| &section.rows).map(|row| row.name.chars().count());
    let width = names.max().unwrap_or(0);
    let paint = |code: &str, text: &str| {
        if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    };
    let mut text = String::new();
    for section in sections {
        let _ = writeln!(text, "{}", paint("1", section.heading));
        for row in &section.rows {
            let answer = match row.answer {
                Some(true) => paint("32", "yes"),
                Some(false) => paint("31", "no "),
                None => "   ".into(),
            };
            let line = format!("  {:<width$}  {answer}  {}", row.name, row.detail);
            let _ = writeln!(text, "{}", line.trim_end());
            if let Some(remedy) = &row.remedy {
                let _ = writeln!(text, "  {:<width$}       try: {remedy}", "");
            }
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_a_no_has_its_remedy_below() {
        let sections = [
            Section {
                heading: "Namespaces",
                rows: vec![
                    Row::of("user", &Support::Yes, ""),
                    Row::of("overlayfs", &Support::no("the kernel has none", Some("modprobe overlay")), ""),
                ],
            },
            Section { heading: "Limits", rows: vec![Row::fact("memory", "1G")] },
        ];
        insta::assert_snapshot!(render(&sections, false), @r#"
Namespaces
  user       yes
  overlayfs  no   the kernel has none
                  try: modprobe overlay

Limits
  memory          1G
"#);
        insta::assert_debug_snapshot!(render(&sections[1..], true), @r#""\u{1b}[1mLimits\u{1b}[0m\n  memory       1G""#);
    }

    #[test]
    fn kernels_that_were_not_booted_are_told_from_those_that_were() {
        let guest = |boot| Guest {
            label: "7.3".into(),
            path: "/k".into(),
            release: "7.3.4".into(),
            current: true,
            boot,
        };
        let works = |works, boot_ms| {
            Some(super::super::guests::Boot { works, release: Some("7.3.4-um".into()), boot_ms })
        };
        let rows = guests(&[
            guest(None),
            guest(works(Support::Yes, Some(146.2))),
            guest(works(Support::no("kernel panic", None), None)),
        ]);
        let text = render(&[Section { heading: "Guest kernels", rows }], false);
        insta::assert_snapshot!(text, @r#"
Guest kernels
  7.3       7.3.4, not tried: --boot tries
  7.3  yes  7.3.4-um, boots in 146 ms
  7.3  no   kernel panic
"#);
        let text = render(&[Section { heading: "Guest kernels", rows: guests(&[]) }], false);
        insta::assert_snapshot!(text, @r#"
Guest kernels
  in the cache  no   none
                     try: sekexe-ci kernel build
"#);
    }
}
