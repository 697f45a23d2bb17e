//! Ranges of user and group ids that an ordinary user may map, beside their own.
//!
//! `newuidmap` and `newgidmap` are set-user-id programs of the distribution's. They map what
//! `/etc/subuid` and `/etc/subgid` grant.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::unistd::{Pid, Uid};

use super::Support;
use crate::sys::probe::{Call, hold};

/// Entering a namespace takes a fraction of a millisecond.
const DEADLINE: Duration = Duration::from_secs(2);

/// Fewer ids than this cannot hold a distribution's users, `nobody` included.
const ENOUGH: u64 = 65_536;

/// Looks for both programs below `path`, and for ranges of the caller's.
pub fn probe(path: &OsStr) -> Support {
    for program in ["newuidmap", "newgidmap"] {
        if which::which_in_global(program, Some(path)).is_ok_and(|mut found| found.next().is_some()) {
            continue;
        }
        return Support::no(format!("there is no {program} on PATH"), Some("apt-get install uidmap"));
    }
    let uid = Uid::effective();
    let name = user_name(uid);
    for (file, option) in [("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")] {
        let text = fs::read_to_string(file).unwrap_or_default();
        if range(&text, &name, uid).is_none() {
            let remedy = format!("sudo usermod {option} 100000-165535 {name}");
            return Support::no(format!("{file} grants {name} no range of {ENOUGH} ids"), Some(&remedy));
        }
    }
    Support::Yes
}

/// Has the ranges really mapped, by `map`, into the user namespace of a child with the number that
/// it is given.
pub fn try_map(map: impl FnOnce(Pid) -> io::Result<()>) -> Support {
    let tried = hold(&[Call::Unshare(CloneFlags::CLONE_NEWUSER)], DEADLINE).and_then(|child| {
        map(child.pid)?;
        let mapped = fs::read_to_string(format!("/proc/{}/uid_map", child.pid))?;
        // Us, and the range.
        if mapped.lines().count() == 2 { Ok(()) } else { Err(io::Error::other("the map is not complete")) }
    });
    match tried {
        Ok(()) => Support::Yes,
        Err(error) => Support::no(
            format!("mapping them fails: {error}"),
            Some("check that newuidmap and newgidmap are set-user-id root, or have their capabilities"),
        ),
    }
}

/// The user's name in `/etc/passwd`, else the number. A static program cannot ask the C library,
/// which loads modules for that.
pub fn user_name(uid: Uid) -> String {
    let number = uid.to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|fields| fields.get(2) == Some(&number.as_str()));
    entry.map_or_else(|| number.clone(), |fields| fields[0].to_owned())
}

/// The first range in a file of `owner:first:count` lines that is large enough.
pub fn range(text: &str, name: &str, uid: Uid) -> Option<(u64, u64)> {
    let number = uid.to_string();
    text.lines().find_map(|line| {
        let mut parts = line.trim().split(':');
        let owner = parts.next()?;
        let (first, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        ((owner == name || owner == number) && count >= ENOUGH).then_some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_belongs_to_a_name_or_a_number_and_is_large_enough() {
        let text = "# none\nother:1:70000\nme:5:10\nbroken\nme:100000:65536\n1000:300000:65537\n";
        let uid = Uid::from_raw(1000);
        assert_eq!(range(text, "me", uid), Some((100_000, 65_536)));
        assert_eq!(range(text, "nobody", uid), Some((300_000, 65_537)));
        assert_eq!(range(text, "nobody", Uid::from_raw(2)), None);
    }
}
