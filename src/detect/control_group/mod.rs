//! Control groups: where we are in them, what they let us have, and whether we may make groups of
//! our own.
//!
//! Both versions are read. A limit holds for a group and everything below it, so the tightest on
//! the way from our own group to the top of what we see is the one that counts.

mod delegation;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Support;
use crate::sys::mounts::mountinfo;
use crate::sys::read_kernel_text;
use delegation::delegated;

/// Larger numbers stand for no limit in version 1.
const UNLIMITED: u64 = 1 << 60;

/// What there is of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ControlGroups {
    /// 2, 1, or both where version 2 is mounted beside version 1; empty without any.
    pub versions: Vec<u32>,
    /// Our group in version 2.
    pub path: Option<PathBuf>,
    /// Controllers of that group.
    pub controllers: Vec<String>,
    /// A group of ours can be made below it, with a memory limit of its own.
    pub delegated: Support,
    /// What the groups let us have.
    pub limits: GroupLimits,
}

/// Limits on the way up; none where there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GroupLimits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time, in CPUs.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// CPUs that may be run on, as a list of ranges.
    pub cpuset: Option<String>,
}

/// One mounted hierarchy and our place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    version: u32,
    /// Controllers of a hierarchy of version 1.
    controllers: Vec<String>,
    mount: PathBuf,
    own: PathBuf,
}

/// Looks, and makes a group for a moment.
pub fn probe() -> ControlGroups {
    let found = hierarchies();
    let mut versions: Vec<u32> = found.iter().map(|hierarchy| hierarchy.version).collect();
    versions.sort_unstable();
    versions.dedup();
    let second = found.iter().find(|hierarchy| hierarchy.version == 2);
    let listed = second.and_then(|second| read_kernel_text(second.own.join("cgroup.controllers")).ok());
    let controllers: Vec<String> =
        listed.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    ControlGroups {
        delegated: delegated(second, &controllers, versions.contains(&1)),
        limits: limits_of(&found),
        path: second.map(|second| second.own.clone()),
        versions,
        controllers,
    }
}

/// The directory of our own group in version 2.
pub fn own() -> Option<PathBuf> {
    hierarchies().into_iter().find(|hierarchy| hierarchy.version == 2).map(|second| second.own)
}

/// How much memory our groups let us have, in bytes.
pub fn memory_limit() -> Option<u64> {
    let mut limit = None;
    hierarchies().iter().for_each(|hierarchy| hierarchy.tighten_memory(&mut limit));
    limit
}

fn hierarchies() -> Vec<Hierarchy> {
    let mounts = String::from_utf8_lossy(mountinfo().unwrap_or_default());
    parse(&mounts, &read_kernel_text("/proc/self/cgroup").unwrap_or_default())
}

/// From the mounts and our memberships to directories.
fn parse(mounts: &str, memberships: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| -> Option<Hierarchy> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, mount) = (before.next()?, Path::new(before.next()?));
        let mut after = after.split(' ');
        let (version, options) = match after.next()? {
            "cgroup2" => (2, ""),
            "cgroup" => (1, after.nth(1)?),
            _ => return None,
        };
        let (controllers, path) = memberships.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?);
            let ours = match version {
                2 => names.is_empty(),
                _ => !names.is_empty() && names.split(',').all(|name| options.split(',').any(|o| o == name)),
            };
            ours.then(|| (names.split(',').map(str::to_owned).collect::<Vec<_>>(), path))
        })?;
        // In a namespace of its own the root is ours; elsewhere a part of the tree is mounted.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let controllers = if version == 1 { controllers } else { Vec::new() };
        Some(Hierarchy { version, controllers, mount: mount.to_owned(), own: mount.join(below) })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

fn limits_of(found: &[Hierarchy]) -> GroupLimits {
    let mut limits = GroupLimits::default();
    for hierarchy in found {
        let has = |name: &str| hierarchy.has(name);
        hierarchy.tighten_memory(&mut limits.memory_bytes);
        if has("pids") {
            tighten(&mut limits.processes, hierarchy.numbers("pids.max"));
        }
        if has("cpu") {
            tighten(
                &mut limits.cpus,
                hierarchy.groups().filter_map(|group| processor_time(hierarchy, group)),
            );
        }
        if has("cpuset") {
            let file = if hierarchy.version == 2 { "cpuset.cpus.effective" } else { "cpuset.effective_cpus" };
            let text = read_kernel_text(hierarchy.own.join(file)).unwrap_or_default();
            limits.cpuset = Some(text.trim().to_owned()).filter(|set| !set.is_empty()).or(limits.cpuset);
        }
    }
    limits
}

/// A group's share of processor time, in CPUs.
fn processor_time(hierarchy: &Hierarchy, group: &Path) -> Option<f64> {
    let read = |file: &str| read_kernel_text(group.join(file)).ok();
    let both = match hierarchy.version {
        2 => read("cpu.max")?,
        _ => format!("{} {}", read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?),
    };
    let (quota, period) = both.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

fn tighten<T: PartialOrd>(limit: &mut Option<T>, others: impl Iterator<Item = T>) {
    for other in others {
        if limit.as_ref().is_none_or(|limit| other < *limit) {
            *limit = Some(other);
        }
    }
}

impl Hierarchy {
    /// Our own group and those above it, as far up as we see.
    fn groups(&self) -> impl Iterator<Item = &Path> {
        self.own.ancestors().take_while(|group| group.starts_with(&self.mount))
    }

    /// Whether it has this controller. Version 2 may.
    fn has(&self, controller: &str) -> bool {
        self.version == 2 || self.controllers.iter().any(|name| name == controller)
    }

    /// The limits that a file gives in each of them.
    fn numbers(&self, file: &str) -> impl Iterator<Item = u64> {
        self.groups()
            .filter_map(move |group| read_kernel_text(group.join(file)).ok()?.trim().parse().ok())
            .filter(|number| *number < UNLIMITED)
    }

    fn tighten_memory(&self, limit: &mut Option<u64>) {
        if self.has("memory") {
            let file = if self.version == 2 { "memory.max" } else { "memory.limit_in_bytes" };
            tighten(limit, self.numbers(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MOUNTS: &str = "\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw
32 30 0:28 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/systemd ro - cgroup cgroup rw,xattr,name=systemd
";
    const GROUPS: &str = "5:memory:/docker/1/x\n4:cpu,cpuacct:/\n3:pids:/elsewhere\n0::/user/me\n";

    #[test]
    fn memberships_become_directories_where_they_are_mounted() {
        let found: Vec<_> = parse(MOUNTS, GROUPS).into_iter().map(|h| (h.version, h.own)).collect();
        let expected = [
            (2, "/sys/fs/cgroup/unified/user/me"),
            (1, "/sys/fs/cgroup/memory/x"),
            (1, "/sys/fs/cgroup/cpu,cpuacct/"),
        ];
        assert_eq!(found, expected.map(|(version, own)| (version, PathBuf::from(own))));
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_counts() {
        let place = tempfile::tempdir().unwrap();
        let own = place.path().join("outer/inner");
        fs::create_dir_all(&own).unwrap();
        for (file, text) in [
            ("memory.max", "max\n"),
            ("outer/memory.max", "1000\n"),
            ("outer/inner/memory.max", "4000\n"),
            ("outer/cpu.max", "150000 100000\n"),
            ("outer/inner/cpu.max", "max 100000\n"),
            ("outer/inner/pids.max", "max\n"),
            ("outer/inner/cpuset.cpus.effective", "0-1\n"),
        ] {
            fs::write(place.path().join(file), text).unwrap();
        }
        let hierarchy = Hierarchy { version: 2, controllers: vec![], mount: place.path().to_owned(), own };
        let expected = GroupLimits {
            memory_bytes: Some(1000),
            cpus: Some(1.5),
            processes: None,
            cpuset: Some("0-1".into()),
        };
        assert_eq!(limits_of(&[hierarchy]), expected);
    }

    #[test]
    fn version_1_has_other_files_and_a_number_for_no_limit() {
        let place = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(place.path().join(file), text).unwrap();
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("cpu.cfs_quota_us", "50000\n");
        write("cpu.cfs_period_us", "100000\n");
        let controllers = ["memory", "cpu"].map(str::to_owned).to_vec();
        let (mount, own) = (place.path().to_owned(), place.path().to_owned());
        let hierarchy = Hierarchy { version: 1, controllers, mount, own };
        assert_eq!(limits_of(&[hierarchy]), GroupLimits { cpus: Some(0.5), ..GroupLimits::default() });
    }
}
