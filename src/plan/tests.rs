//! Requests and hosts, and what comes of them.

use sekexe_init::protocol::Seal;

use super::*;
use crate::detect::Privilege;
use namespaces::Foundation;

/// A host: what is not allowed on it.
type Host = fn(&mut Capabilities);
/// A request: what differs from `exec -- true`.
type Wish = fn(&mut Request);

fn no(reason: &str) -> Support {
    Support::no(reason, Some("a remedy"))
}

/// An ordinary user of a host that allows everything, without subordinate ids.
fn capabilities() -> Capabilities {
    let yes = Support::Yes;
    Capabilities {
        namespaces: Namespaces {
            privilege: Privilege::UserNamespace,
            user: yes.clone(),
            mount: yes.clone(),
            pid: yes.clone(),
            network: yes.clone(),
            ipc: yes.clone(),
            uts: yes.clone(),
            cgroup: yes.clone(),
            time: yes.clone(),
            overlay: yes.clone(),
            proc: yes.clone(),
            nested: yes.clone(),
            subordinate_ids: no("no newuidmap"),
        },
        root: false,
        admin: false,
        in_user_namespace: false,
        other_users: true,
        control_group: no("no delegation"),
        guest: yes,
        limits: Limits {
            memory_bytes: 16 * GIB,
            available_bytes: 12 * GIB,
            cpus: vec![2, 3],
            open_files: 1 << 20,
            processes: 60_000,
        },
    }
}

fn need(name: &str) -> Vec<Need> {
    vec![Need::find(name).unwrap()]
}

/// The hosts of the table.
mod host {
    use super::*;

    pub const OPEN: Host = |_| {};
    pub const SUBORDINATE: Host = |c| c.namespaces.subordinate_ids = Support::Yes;
    pub const DELEGATED: Host = |c| c.control_group = Support::Yes;
    pub const ROOT: Host = |c| (c.root, c.admin) = (true, true);
    /// Namespaces may be entered by root's own right only.
    pub const ROOT_WITHOUT_USERS: Host = |c| {
        (c.root, c.admin) = (true, true);
        c.namespaces.privilege = Privilege::RealRoot;
        c.namespaces.user = no("no user namespaces");
        c.namespaces.nested = no("no user namespaces");
    };
    /// Root of a container that may do nothing.
    pub const CONTAINER_ROOT: Host = |c| {
        c.root = true;
        denied(c);
    };
    /// Root, without `CAP_SYS_ADMIN`, where user namespaces are allowed.
    pub const WEAK_ROOT: Host = |c| c.root = true;
    pub const DENIED: Host = denied;
    pub const NO_PROC: Host = |c| c.namespaces.proc = no("/proc is covered");
    pub const NO_NETWORK: Host = |c| c.namespaces.network = no("no network namespace");
    pub const NO_OVERLAY: Host = |c| c.namespaces.overlay = no("no overlay");
    pub const NO_OVERLAY_NO_SEAL: Host = |c| {
        c.namespaces.overlay = no("no overlay");
        c.namespaces.nested = no("nothing nested");
    };
    pub const NO_CGROUP_NO_TIME: Host = |c| {
        c.namespaces.cgroup = no("no cgroup namespace");
        c.namespaces.time = no("no time namespace");
    };
    pub const NO_GUEST: Host = |c| c.guest = no("not this processor");
    pub const NOTHING: Host = |c| {
        denied(c);
        c.guest = no("not this processor");
    };

    fn denied(c: &mut Capabilities) {
        c.namespaces = Namespaces { user: no("denied by a sysctl"), ..Namespaces::not_asked() };
    }
}

/// The choice in a word or two, with the reasons behind it.
fn decide(host: Host, wish: Wish) -> String {
    let (mut capabilities, mut request) = (capabilities(), Request::default());
    host(&mut capabilities);
    wish(&mut request);
    match choose(&request, &capabilities) {
        Err(refusal) => format!("refused: {refusal}"),
        Ok(choice) => {
            let machine = match choice.machine {
                Machine::Guest => "guest".to_owned(),
                Machine::None => "none".to_owned(),
                Machine::Namespaces(plan) => {
                    let seal = match plan.seal {
                        Seal::Open => "",
                        Seal::UserNamespace => ", sealed",
                        Seal::Capabilities => ", few capabilities",
                    };
                    let users = if plan.many_users { ", users" } else { "" };
                    let root = if plan.overlays { "" } else { ", read-only" };
                    let by = if plan.foundation == Foundation::HostRoot { ", host root" } else { "" };
                    format!("namespaces{by}{seal}{users}{root}")
                }
            };
            let told = choice
                .fall_back
                .map_or(String::new(), |fall_back| format!(" instead ({})", fall_back.missing));
            format!("{machine}{told}")
        }
    }
}

const AUTO: Wish = |_| {};
const NAMESPACES: Wish = |r| r.isolation = Isolation::Namespaces;
const UML: Wish = |r| r.isolation = Isolation::Uml;
const NONE: Wish = |r| r.isolation = Isolation::None;

#[test]
fn left_to_itself_it_takes_the_fastest_that_gives_what_was_asked_for() {
    use host::*;
    let table: &[(Host, Wish, &str)] = &[
        (OPEN, AUTO, "namespaces"),
        (SUBORDINATE, AUTO, "namespaces, users"),
        (NO_CGROUP_NO_TIME, AUTO, "namespaces"),
        (NO_GUEST, AUTO, "namespaces"),
        (ROOT, AUTO, "namespaces, host root, sealed, users"),
        (ROOT_WITHOUT_USERS, AUTO, "namespaces, host root, few capabilities, users"),
        (WEAK_ROOT, AUTO, "namespaces, sealed"),
        (DENIED, AUTO, "guest instead (denied by a sysctl)"),
        (CONTAINER_ROOT, AUTO, "guest instead (denied by a sysctl)"),
        (NO_PROC, AUTO, "guest instead (/proc is covered)"),
        (NO_NETWORK, AUTO, "guest instead (no network namespace)"),
        (NO_OVERLAY, AUTO, "guest instead (no overlay)"),
        (NO_OVERLAY_NO_SEAL, AUTO, "guest instead (no overlay)"),
        (
            NOTHING,
            AUTO,
            "refused: namespaces are denied here (denied by a sysctl): not this processor; a remedy",
        ),
    ];
    for (number, (host, wish, expected)) in table.iter().enumerate() {
        assert_eq!(decide(*host, *wish), *expected, "row {number}");
    }
}

#[test]
fn what_only_a_guest_has_means_a_guest_and_no_fall_back() {
    use host::*;
    let table: &[(Host, Wish, &str)] = &[
        (OPEN, |r| r.kernel = true, "guest"),
        (OPEN, |r| r.untrusted = true, "guest"),
        (OPEN, |r| r.needs = need("btrfs"), "guest"),
        (ROOT, |r| r.needs = need("docker"), "guest"),
        (OPEN, |r| r.needs = need("system-root"), "guest"),
        (SUBORDINATE, |r| r.needs = need("system-root"), "guest"),
        (DENIED, |r| r.kernel = true, "guest"),
        (
            NO_GUEST,
            |r| r.kernel = true,
            "refused: --kernel asks for a guest kernel: not this processor; a remedy",
        ),
        (
            NO_GUEST,
            |r| r.needs = need("nftables"),
            "refused: --need nftables asks for a kernel that is known to have it: not this processor; a remedy",
        ),
    ];
    for (number, (host, wish, expected)) in table.iter().enumerate() {
        assert_eq!(decide(*host, *wish), *expected, "row {number}");
    }
}

#[test]
fn what_the_host_could_give_is_a_fall_back_where_it_does_not() {
    use host::*;
    let table: &[(Host, Wish, &str)] = &[
        (ROOT, |r| r.needs = need("system-root"), "namespaces, host root, sealed, users"),
        (
            ROOT_WITHOUT_USERS,
            |r| r.needs = need("system-root"),
            "namespaces, host root, few capabilities, users",
        ),
        (SUBORDINATE, |r| (r.needs, r.host_rootfs) = (need("system-root"), false), "namespaces, users"),
        (OPEN, |r| r.as_root = false, "guest instead (no newuidmap)"),
        (SUBORDINATE, |r| r.as_root = false, "namespaces, users"),
        (OPEN, |r| r.needs = need("users"), "guest instead (no newuidmap)"),
        (ROOT, |r| r.needs = need("users"), "namespaces, host root, sealed, users"),
        (OPEN, |r| r.needs = need("mounts"), "namespaces"),
        (ROOT, |r| r.needs = need("mounts"), "namespaces, host root, sealed, users"),
        (
            ROOT_WITHOUT_USERS,
            |r| r.needs = need("network-devices"),
            "guest instead (without user namespaces, commands of the host's root are deprived of that right)",
        ),
        (OPEN, |r| r.memory = Some(GIB), "guest instead (no delegation)"),
        (DELEGATED, |r| r.memory = Some(GIB), "namespaces"),
        (OPEN, |r| r.cpus = Some(1), "namespaces"),
    ];
    for (number, (host, wish, expected)) in table.iter().enumerate() {
        assert_eq!(decide(*host, *wish), *expected, "row {number}");
    }
}

#[test]
fn an_isolation_that_was_named_is_refused_rather_than_replaced() {
    use host::*;
    let table: &[(Host, Wish, &str)] = &[
        (OPEN, NAMESPACES, "namespaces"),
        (NO_OVERLAY, NAMESPACES, "namespaces, read-only"),
        (
            NO_OVERLAY_NO_SEAL,
            NAMESPACES,
            "refused: --isolation namespaces: namespaces lack a root that is thrown away here: no overlay; a remedy",
        ),
        (
            DENIED,
            NAMESPACES,
            "refused: --isolation namespaces: namespaces are denied here: denied by a sysctl; a remedy",
        ),
        (
            NO_PROC,
            NAMESPACES,
            "refused: --isolation namespaces: namespaces lack a /proc of its own here: /proc is covered; a remedy",
        ),
        (
            OPEN,
            |r| (r.isolation, r.kernel) = (Isolation::Namespaces, true),
            "refused: --isolation namespaces: --kernel asks for a guest kernel; leave one of them out",
        ),
        (
            OPEN,
            |r| (r.isolation, r.as_root) = (Isolation::Namespaces, false),
            "refused: --isolation namespaces: namespaces lack users other than root here: no newuidmap; a remedy",
        ),
        (
            OPEN,
            |r| (r.isolation, r.memory) = (Isolation::Namespaces, Some(GIB)),
            "refused: --isolation namespaces: namespaces lack a limit of memory here: no delegation; a remedy",
        ),
        (
            DELEGATED,
            |r| (r.isolation, r.memory) = (Isolation::Namespaces, Some(64 * GIB)),
            "refused: --memory 64G: this host has 16G; try --memory 8G",
        ),
        (
            OPEN,
            |r| (r.isolation, r.cpus) = (Isolation::Namespaces, Some(3)),
            "refused: --cpus 3: 2 may be used here; try --cpus 2",
        ),
        (
            OPEN,
            |r| (r.isolation, r.cpus) = (Isolation::Namespaces, Some(0)),
            "refused: --cpus 0: a machine needs at least one CPU; leave --cpus out",
        ),
        (OPEN, UML, "guest"),
        (DENIED, UML, "guest"),
        (NO_GUEST, UML, "refused: --isolation uml: not this processor; a remedy"),
        (NOTHING, NONE, "none"),
        (
            OPEN,
            |r| (r.isolation, r.needs) = (Isolation::None, need("users")),
            "refused: --isolation none: --need users asks for a machine; leave one of them out",
        ),
        (
            OPEN,
            |r| (r.isolation, r.memory) = (Isolation::None, Some(GIB)),
            "refused: --isolation none: --memory and --cpus are limits of a machine; leave one of them out",
        ),
        (
            OPEN,
            |r| (r.isolation, r.host_rootfs) = (Isolation::None, false),
            "refused: --isolation none: --rootfs asks for another root; leave one of them out",
        ),
        (
            OPEN,
            |r| (r.isolation, r.guarded) = (Isolation::None, true),
            "refused: --isolation none: --ro, --rw, --hide and --deny are kept by a machine; leave one of them out",
        ),
    ];
    for (number, (host, wish, expected)) in table.iter().enumerate() {
        assert_eq!(decide(*host, *wish), *expected, "row {number}");
    }
}

#[test]
fn a_root_that_is_partly_read_only_is_sealed_or_refused() {
    let plan = |host: Host| {
        let mut capabilities = capabilities();
        host(&mut capabilities);
        namespaces::plan(&Request::default(), &capabilities).unwrap()
    };
    assert_eq!(plan(host::OPEN).sealed(true).unwrap().seal, Seal::UserNamespace);
    assert_eq!(plan(host::OPEN).sealed(false).unwrap().seal, Seal::Open);
    let refusal = plan(|c| c.namespaces.nested = no("nothing nested")).sealed(true).unwrap_err();
    assert!(refusal.to_string().contains("--isolation uml"), "{refusal}");
    assert_eq!(plan(host::ROOT_WITHOUT_USERS).sealed(true).unwrap().seal, Seal::Capabilities);
}
