//! What a command has started, where no control group knows.
//!
//! Descendants are found by their parents and by their session; one that has detached itself from
//! both lives until the machine ends, as it would on a host.

use std::fs;

use nix::libc::pid_t;

/// `PF_EXITING` of `linux/sched.h`, which stays set to the end.
const EXITING: u32 = 4;

/// Everything that belongs to the command whose first process is `leader`, that one included.
pub fn of_command(leader: pid_t) -> Vec<pid_t> {
    let all = all();
    let mut found = vec![leader];
    found.extend(all.iter().filter(|p| p.session == leader && p.pid != leader).map(|p| p.pid));
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        let children: Vec<pid_t> =
            all.iter().filter(|p| p.parent == parent && !found.contains(&p.pid)).map(|p| p.pid).collect();
        found.extend(children);
        at += 1;
    }
    found
}

/// Everything that was started by this process and what it started.
pub fn descendants() -> Vec<pid_t> {
    let own = std::process::id() as pid_t;
    of_command(own).into_iter().filter(|pid| *pid != own).collect()
}

/// The names of [`descendants`] that have not begun to end, at most so many. One that has may have
/// closed its files already, which is all that others wait for.
pub fn names_of_descendants(most: usize) -> Vec<String> {
    let own = descendants();
    let living = all().into_iter().filter(|process| !process.is_ending && own.contains(&process.pid));
    living.map(|process| process.name).take(most).collect()
}

struct Process {
    pid: pid_t,
    parent: pid_t,
    session: pid_t,
    name: String,
    is_ending: bool,
}

fn all() -> Vec<Process> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers.filter_map(|entry| describe(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn describe(pid: pid_t) -> Option<Process> {
    // The name may contain anything, a closing parenthesis too.
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let begin = text.iter().position(|byte| *byte == b'(')? + 1;
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = String::from_utf8_lossy(text.get(end + 2..)?).into_owned();
    let fields: Vec<&str> = rest.split(' ').collect();
    let flags: u32 = fields.get(6)?.parse().ok()?;
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        name: String::from_utf8_lossy(text.get(begin..end)?).into_owned(),
        is_ending: flags & EXITING != 0,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn children_and_their_children_are_found() {
        let mut child = Command::new("sh").args(["-c", "sleep 100 & wait"]).spawn().unwrap();
        let leader = child.id() as pid_t;
        let found = loop {
            let found = of_command(leader);
            if found.len() > 1 {
                break found;
            }
            std::thread::yield_now();
        };
        assert_eq!(found[0], leader);
        assert!(names_of_descendants(10).contains(&"sleep".to_owned()));
        assert!(!found.contains(&(std::process::id() as pid_t)));
        for pid in found {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        child.wait().unwrap();
    }
}
