//! Who we are: user, capabilities, and whether more can be gained.

use std::fs;

use caps::CapSet;
use nix::unistd::Uid;
use serde::Serialize;

use super::Support;

/// Our rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Privileges {
    /// Effective user.
    pub uid: u32,
    /// Root of the host: user 0, whose number is 0 outside of every user namespace too.
    pub real_root: Support,
    /// Effective capabilities, by name.
    pub capabilities: Vec<String>,
    /// Whether set-user-id programs give us nothing.
    pub no_new_privs: bool,
}

impl Privileges {
    /// Asks the kernel.
    pub fn probe() -> Self {
        let uid = Uid::effective();
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let mut held: Vec<_> = caps::read(None, CapSet::Effective).unwrap_or_default().into_iter().collect();
        held.sort_by_key(|capability| capability.index());
        Self {
            uid: uid.as_raw(),
            real_root: real_root(uid, &map),
            capabilities: held.iter().map(ToString::to_string).collect(),
            no_new_privs: nix::sys::prctl::get_no_new_privs().unwrap_or(false),
        }
    }
}

fn real_root(uid: Uid, map: &str) -> Support {
    let outside = map.split_ascii_whitespace().nth(1);
    match (uid.is_root(), outside) {
        (false, _) => Support::no(format!("we are user {uid}"), Some("sudo")),
        (true, Some("0") | None) => Support::Yes,
        (true, Some(number)) => Support::no(format!("root here is user {number} outside"), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_in_a_user_namespace_is_somebody_else_outside() {
        let root = Uid::from_raw(0);
        assert!(real_root(root, "         0          0 4294967295\n").is_yes());
        insta::assert_snapshot!(real_root(root, "0 1001 1\n").denial().unwrap(), @"root here is user 1001 outside");
        insta::assert_snapshot!(real_root(Uid::from_raw(5), "").denial().unwrap(), @"we are user 5; sudo");
    }

    #[test]
    fn capabilities_are_those_of_the_kernel() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
        let count = u64::from_str_radix(mask, 16).unwrap().count_ones();
        assert_eq!(Privileges::probe().capabilities.len() as u32, count);
    }
}
