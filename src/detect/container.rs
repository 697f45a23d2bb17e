//! Which container we are in, if any.
//!
//! A mark may lie: an image that was made a virtual machine's disk keeps its `/.dockerenv`. So a
//! mark that is only a file counts where the process or control-group namespace is not the
//! initial one as well.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// What keeps us, with the mark that tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    /// What it is.
    pub kind: Kind,
    /// What told.
    pub mark: String,
    /// Whether it is the container of a job of GitHub Actions.
    pub github_job: bool,
}

/// Who made a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Docker,
    Podman,
    Kubernetes,
    Containerd,
    Lxc,
    SystemdNspawn,
    Gvisor,
    Wsl,
    /// Something that says it is one, and not which.
    Other,
}

impl Kind {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
            Self::Kubernetes => "Kubernetes",
            Self::Containerd => "containerd",
            Self::Lxc => "LXC",
            Self::SystemdNspawn => "systemd-nspawn",
            Self::Gvisor => "gVisor",
            Self::Wsl => "WSL",
            Self::Other => "an unknown container",
        }
    }
}

/// What a container may show of itself.
#[derive(Debug, Clone, Default)]
struct Marks {
    version: String,
    osrelease: String,
    /// `container=` of process 1, or what systemd wrote down of it.
    announced: String,
    cgroup: String,
    mounts: String,
    dockerenv: bool,
    containerenv: bool,
    /// Whether we are in the first process and control-group namespaces of the kernel.
    initial: bool,
    kubernetes: bool,
    github: bool,
}

/// Looks for marks; variables are those of our environment.
pub fn probe(variables: &[(OsString, OsString)]) -> Option<Container> {
    let set = |name: &str| variables.iter().any(|(known, value)| known == name && !value.is_empty());
    let exists = |path: &str| Path::new(path).exists();
    let read =
        |path: &str| fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    judge(&Marks {
        version: read("/proc/version"),
        osrelease: read("/proc/sys/kernel/osrelease"),
        announced: match read("/run/systemd/container") {
            written if written.is_empty() => {
                let environ = read("/proc/1/environ");
                environ.split('\0').find_map(|v| v.strip_prefix("container=")).unwrap_or_default().to_owned()
            }
            written => written,
        },
        cgroup: read("/proc/self/cgroup"),
        mounts: read("/proc/self/mountinfo"),
        dockerenv: exists("/.dockerenv"),
        containerenv: exists("/run/.containerenv"),
        initial: in_initial_namespaces(),
        kubernetes: set("KUBERNETES_SERVICE_HOST") || exists("/var/run/secrets/kubernetes.io"),
        github: set("GITHUB_ACTIONS"),
    })
}

/// The first namespaces have fixed numbers (`include/uapi/linux/nsfs.h`).
fn in_initial_namespaces() -> bool {
    let is = |name: &str, number: u32| {
        let link = fs::read_link(format!("/proc/self/ns/{name}"));
        link.is_ok_and(|link| link.as_os_str() == &*format!("{name}:[{number}]"))
    };
    is("pid", 0xEFFF_FFFC) && is("cgroup", 0xEFFF_FFFB)
}

fn judge(marks: &Marks) -> Option<Container> {
    let mounted = |part: &str| marks.mounts.contains(part);
    let grouped = |part: &str| marks.cgroup.contains(part);
    let announced = marks.announced.trim();
    let file = |there: bool| there && !marks.initial;
    let table = [
        (Kind::Gvisor, marks.version.contains("gvisor"), "/proc/version"),
        // The version that it has told for years.
        (Kind::Gvisor, marks.version.contains("#1 SMP Sun Jan 10 15:06:54 PST 2016"), "/proc/version"),
        (Kind::Kubernetes, grouped("/kubepods"), "the control group's name"),
        (Kind::Kubernetes, marks.kubernetes && !marks.initial, "its service account or variables"),
        (Kind::Docker, file(marks.dockerenv), "/.dockerenv"),
        (Kind::Docker, grouped("/docker/") || grouped("/docker-"), "the control group's name"),
        (Kind::Docker, mounted("/docker/containers/"), "/proc/self/mountinfo"),
        (Kind::Podman, file(marks.containerenv), "/run/.containerenv"),
        (Kind::Podman, announced == "podman", "container= of process 1"),
        (Kind::Podman, grouped("/libpod-"), "the control group's name"),
        (Kind::Lxc, announced == "lxc" || announced == "lxc-libvirt", "container= of process 1"),
        (Kind::Lxc, grouped("/lxc/") || grouped("/lxc.payload"), "the control group's name"),
        (Kind::SystemdNspawn, announced == "systemd-nspawn", "container= of process 1"),
        (Kind::Containerd, grouped("containerd") || mounted("/containerd/"), "its control group or mounts"),
        (Kind::Other, !announced.is_empty() && announced != "wsl", "container= of process 1"),
        (Kind::Wsl, marks.osrelease.to_lowercase().contains("microsoft"), "/proc/sys/kernel/osrelease"),
    ];
    let (kind, _, mark) = table.into_iter().find(|(_, found, _)| *found)?;
    let github_job = marks.github && !matches!(kind, Kind::Wsl);
    Some(Container { kind, mark: mark.to_owned(), github_job })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_apart_by_their_marks() {
        let none = Marks::default();
        let text = str::to_owned;
        for (marks, expected) in [
            (none.clone(), None),
            (Marks { dockerenv: true, ..none.clone() }, Some(Kind::Docker)),
            // A virtual machine whose disk was an image.
            (Marks { dockerenv: true, initial: true, ..none.clone() }, None),
            (
                Marks { dockerenv: true, initial: true, cgroup: text("0::/docker/0a"), ..none.clone() },
                Some(Kind::Docker),
            ),
            (Marks { containerenv: true, ..none.clone() }, Some(Kind::Podman)),
            (Marks { announced: text("lxc"), ..none.clone() }, Some(Kind::Lxc)),
            (Marks { announced: text("systemd-nspawn\n"), ..none.clone() }, Some(Kind::SystemdNspawn)),
            (Marks { announced: text("oci"), ..none.clone() }, Some(Kind::Other)),
            (Marks { cgroup: text("0::/kubepods/pod1"), ..none.clone() }, Some(Kind::Kubernetes)),
            (Marks { dockerenv: true, kubernetes: true, ..none.clone() }, Some(Kind::Kubernetes)),
            (
                Marks { mounts: text("upperdir=/var/lib/containerd/io/fs"), ..none.clone() },
                Some(Kind::Containerd),
            ),
            (
                Marks { version: text("Linux version 4.19.0-gvisor"), dockerenv: true, ..none.clone() },
                Some(Kind::Gvisor),
            ),
            (Marks { osrelease: text("5.15.90.1-microsoft-standard-WSL2"), ..none.clone() }, Some(Kind::Wsl)),
        ] {
            assert_eq!(judge(&marks).map(|found| found.kind), expected, "{marks:?}");
        }
        let job = judge(&Marks { dockerenv: true, github: true, ..none }).unwrap();
        assert!(job.github_job);
    }
}
