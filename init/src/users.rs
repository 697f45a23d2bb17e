//! Looks users and groups up in the guest's own `/etc/passwd` and `/etc/group`.
//!
//! A static program cannot use the C library's look-up, which loads modules; and the files are all
//! that a throw-away machine has.

use std::fs;

use anyhow::{Result, bail};

/// Who a command runs as.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Login name, if the guest knows one.
    pub name: Option<String>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Finds the user that `wanted` names: `name`, `uid`, `name:group` or `uid:gid`; whoever we are, if
/// it is empty.
pub fn look_up(wanted: &str) -> Result<User> {
    if wanted.is_empty() {
        let own = find(&nix::unistd::geteuid().to_string(), &read("/etc/passwd"), &read("/etc/group"))?;
        return Ok(User { gid: nix::unistd::getegid().as_raw(), ..own });
    }
    find(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn read(file: &str) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

fn find(wanted: &str, passwd: &str, group: &str) -> Result<User> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 7 && (f[0] == user || (f[2] == user && user.parse::<u32>().is_ok())));
    let mut found = match (entry, user.parse()) {
        (Some(fields), _) => User {
            uid: number(fields[2], "user id in /etc/passwd")?,
            gid: number(fields[3], "group id in /etc/passwd")?,
            groups: Vec::new(),
            name: Some(fields[0].into()),
            home: fields[5].into(),
            shell: fields[6].into(),
        },
        (None, Ok(uid)) => User {
            uid,
            gid: uid,
            groups: Vec::new(),
            name: (uid == 0).then(|| "root".into()),
            home: if uid == 0 { "/root".into() } else { "/".into() },
            shell: "/bin/sh".into(),
        },
        (None, Err(_)) if user == "root" => {
            return find("0", "", group).map(|u| with(u, wanted_group, group))?;
        }
        (None, Err(_)) => bail!("no user {user:?} in the guest's /etc/passwd"),
    };
    if let Some(name) = &found.name {
        for fields in groups(group) {
            if fields[3].split(',').any(|member| member == name) {
                found.groups.extend(fields[2].parse::<u32>().ok());
            }
        }
    }
    with(found, wanted_group, group)
}

/// Replaces the primary group where one is asked for.
fn with(mut user: User, wanted: Option<&str>, group: &str) -> Result<User> {
    let Some(wanted) = wanted else { return Ok(user) };
    user.gid = match (groups(group).find(|f| f[0] == wanted), wanted.parse()) {
        (Some(fields), _) => number(fields[2], "group id in /etc/group")?,
        (None, Ok(gid)) => gid,
        (None, Err(_)) => bail!("no group {wanted:?} in the guest's /etc/group"),
    };
    user.groups.clear();
    Ok(user)
}

fn groups(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4)
}

fn number(text: &str, what: &str) -> Result<u32> {
    text.parse().map_err(|_| anyhow::anyhow!("{what} is {text:?}, not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1001::/home/ann:/bin/sh\nbad\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\ndisk:x:6:ann,bob\nbroken\n";

    #[test]
    fn a_name_brings_its_groups_home_and_shell() {
        let user = find("ann", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1001, vec![6]));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/ann", "/bin/sh"));
    }

    #[test]
    fn a_number_works_with_and_without_an_entry() {
        assert_eq!(find("1000", PASSWD, GROUP).unwrap().name.as_deref(), Some("ann"));
        let user = find("77:6", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.name), (77, 6, None));
    }

    #[test]
    fn a_group_replaces_the_users_own() {
        let user = find("ann:disk", PASSWD, GROUP).unwrap();
        assert_eq!((user.gid, user.groups), (6, vec![]));
    }

    #[test]
    fn root_exists_even_where_there_is_no_passwd() {
        let user = find("root", "", "").unwrap();
        assert_eq!((user.uid, user.home.as_str()), (0, "/root"));
    }

    #[test]
    fn unknown_names_are_named() {
        assert!(find("eve", PASSWD, GROUP).unwrap_err().to_string().contains("\"eve\""));
        assert!(find("ann:x", PASSWD, GROUP).unwrap_err().to_string().contains("\"x\""));
    }
}
