//! The guest kernel's command line. Pure.
//!
//! Nothing of the user's stands on it: only sizes, descriptors, and paths in our own temporary
//! directory.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use crate::machine::card::MTU;
use crate::plan::guest::Plan;

/// What carries the channel into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The driver of our patches.
    HostFd,
    /// The first serial line, which every UML kernel has: some 2 MB/s towards the guest.
    SerialLine,
}

/// The driver of the guest's network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CardDriver {
    /// A card in the guest's memory, which it announces over a socket.
    Virtio,
    /// A frame in each message of a socket.
    Vector,
}

/// All that the command line depends on.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Sizes and modes.
    pub plan: &'a Plan,
    /// Directory with the init, where the kernel may keep files of its own.
    pub boot: &'a Path,
    /// The swap file.
    pub swap: Option<&'a Path>,
    /// What carries the channel.
    pub carrier: Carrier,
    /// The guest's end of the channel.
    pub channel: RawFd,
    /// The guest's end of its network card.
    pub card: Option<(CardDriver, RawFd)>,
    /// Whether the kernel knows `ncpus=`.
    pub smp: bool,
    /// Whether the kernel knows `seccomp=`.
    pub has_seccomp: bool,
}

/// The arguments, without the program's name.
pub fn kernel_arguments(launch: &Launch<'_>) -> Vec<OsString> {
    let plan = launch.plan;
    let mut arguments: Vec<OsString> = [
        format!("mem={}M", plan.memory >> 20),
        "root=/dev/root".into(),
        "rootfstype=hostfs".into(),
        "ro".into(),
        "init=/init".into(),
        // The console goes to the pipe on the kernel's standard output, and nowhere else.
        "con=null".into(),
        "con0=null,fd:1".into(),
        "console=tty0".into(),
        "stderr=0".into(),
        // Waiting for a grace period takes two jiffies otherwise, and control groups, mounts and
        // network namespaces do it at every turn; with a handful of CPUs there is nobody to spare.
        "rcupdate.rcu_expedited=1".into(),
        // Tables for 128 Ki names and 64 Ki files would be zeroed at each start and held for good.
        "dhash_entries=32768".into(),
        "ihash_entries=16384".into(),
        // Devices that drivers would create at boot although nobody asked.
        "bonding.max_bonds=0".into(),
        "dummy.numdummies=0".into(),
        "ifb.numifbs=0".into(),
        "nbd.nbds_max=0".into(),
        "raid=noautodetect".into(),
    ]
    .map(OsString::from)
    .into();
    arguments.push(with_path("rootflags=", launch.boot));
    arguments.push(with_path("uml_dir=", launch.boot));
    match launch.carrier {
        Carrier::HostFd => {
            arguments.push("ssl=null".into());
            arguments.push(format!("hostfd={}", launch.channel).into());
        }
        Carrier::SerialLine => arguments.push(format!("ssl0=fd:{}", launch.channel).into()),
    }
    match launch.card {
        // The number of network cards among the kinds of virtio devices.
        Some((CardDriver::Virtio, fd)) => arguments.push(format!("virtio_uml.device=fd:{fd}:1").into()),
        Some((CardDriver::Vector, fd)) => {
            arguments.push(format!("vec0:transport=fd,fd={fd},mtu={MTU}").into());
        }
        None => {}
    }
    if let Some(swap) = launch.swap {
        arguments.push(with_path("ubd0=", swap));
    }
    if launch.has_seccomp {
        arguments.push(if plan.seccomp { "seccomp=on" } else { "seccomp=off" }.into());
    }
    if launch.smp && plan.seccomp {
        arguments.push(format!("ncpus={}", plan.cpus).into());
    }
    arguments
}

fn with_path(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(carrier: Carrier, driver: CardDriver, seccomp: bool, smp: bool) -> String {
        let plan = Plan {
            memory: 1 << 30,
            cpus: 2,
            pin: vec![],
            seccomp: true,
            swap: 1 << 30,
            writable: 1 << 29,
            max_tasks: 100,
        };
        let launch = Launch {
            plan: &plan,
            boot: Path::new("/t"),
            swap: Some(Path::new("/t/swap")),
            carrier,
            channel: 5,
            card: Some((driver, 6)),
            smp,
            has_seccomp: seccomp,
        };
        let text: Vec<_> =
            kernel_arguments(&launch).iter().map(|a| a.to_string_lossy().into_owned()).collect();
        text.join(" ")
    }

    #[test]
    fn a_kernel_of_ours_gets_everything() {
        assert_eq!(
            line(Carrier::HostFd, CardDriver::Virtio, true, true),
            "mem=1024M root=/dev/root rootfstype=hostfs ro init=/init con=null con0=null,fd:1 \
             console=tty0 stderr=0 rcupdate.rcu_expedited=1 dhash_entries=32768 ihash_entries=16384 \
             bonding.max_bonds=0 dummy.numdummies=0 ifb.numifbs=0 nbd.nbds_max=0 raid=noautodetect \
             rootflags=/t uml_dir=/t ssl=null hostfd=5 virtio_uml.device=fd:6:1 ubd0=/t/swap seccomp=on ncpus=2"
        );
    }

    #[test]
    fn a_distributions_kernel_gets_only_what_it_knows() {
        let line = line(Carrier::SerialLine, CardDriver::Vector, false, false);
        assert!(line.contains("vec0:transport=fd,fd=6,mtu=65520"), "{line}");
        assert!(line.contains("ssl0=fd:5"), "{line}");
        assert!(!line.contains("hostfd") && !line.contains("seccomp") && !line.contains("ncpus"), "{line}");
    }
}
