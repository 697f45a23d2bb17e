//! The files by which programs find names: the machine's own, and those of others.
//!
//! They are told to the machine as shadows, because in namespaces root may not be allowed to write
//! them, and because the host's may be links to where nothing is inside.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use sekexe_init::protocol::{ByteBuf, Shadow, ShadowKind};

/// The machine's name for itself.
pub const HOSTNAME: &str = "sekexe";

/// What the network adds.
#[derive(Debug, Default)]
pub struct Additions {
    /// Names that no name server knows.
    pub hosts: Vec<(&'static str, IpAddr)>,
    /// What `/etc/resolv.conf` shall say, if it must say something else than in the root.
    pub resolv_conf: Option<String>,
}

/// The files, as the machine shall see them.
pub fn shadows(rootfs: &Path, additions: &Additions) -> Vec<Shadow> {
    if !rootfs.join("etc").is_dir() {
        return Vec::new();
    }
    let known = fs::read(rootfs.join("etc/hosts")).unwrap_or_default();
    let hosts = hosts(&String::from_utf8_lossy(&known), &additions.hosts);
    let mut files = vec![file("etc/hostname", format!("{HOSTNAME}\n")), file("etc/hosts", hosts)];
    files.extend(additions.resolv_conf.clone().map(|text| file("etc/resolv.conf", text)));
    files
}

/// `/etc/hosts` with the machine's own name, which `sudo` and daemons look up, and others.
fn hosts(known: &str, additions: &[(&str, IpAddr)]) -> String {
    let mut text = known.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !text.contains("localhost") {
        text.push_str("127.0.0.1 localhost\n::1 localhost\n");
    }
    text.push_str(&format!("127.0.1.1 {HOSTNAME}\n"));
    for (name, address) in additions {
        text.push_str(&format!("{address} {name}\n"));
    }
    text
}

fn file(path: &str, contents: String) -> Shadow {
    Shadow {
        path: ByteBuf::from(path.as_bytes()),
        kind: ShadowKind::File(ByteBuf::from(contents.into_bytes())),
        uid: 0,
        gid: 0,
        mode: 0o644,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_added_to_those_that_are_known() {
        let gateway = [("host.example", IpAddr::from([10, 0, 2, 2]))];
        let expected = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 sekexe\n10.0.2.2 host.example\n";
        assert_eq!(hosts("", &gateway), expected);
        assert_eq!(hosts("127.0.0.1 localhost x", &[]), "127.0.0.1 localhost x\n127.0.1.1 sekexe\n");
    }
}
