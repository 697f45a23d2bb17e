//! Limits of a namespaces machine: by a control group where one can be had, which a guest's kernel
//! always gives; and what is said where none can.

use crate::support::{Place, Ran, program, require};

/// Runs a script as root of a guest in which our program can be called, as `$sekexe`.
fn in_guest(place: &Place, script: &str) -> Ran {
    let script = format!("sekexe={:?}\nexport HOME=/tmp\n{script}", program());
    place.exec_with(["--memory", "1G", "--network", "none", script.as_str()])
}

#[test]
fn memory_is_limited_by_a_control_group_that_goes_with_the_machine() {
    require!(uml, python3);
    let place = Place::new();
    let ran = in_guest(
        &place,
        "status=0
        $sekexe exec --isolation namespaces --network none --memory 100M --result /tmp/result \\
            'python3 -c \"bytearray(300 << 20)\"; echo survived' || status=$?
        grep -c '\"kind\": \"out-of-memory\"' /tmp/result
        ls /sys/fs/cgroup | grep -c sekexe- || true
        exit $status",
    );
    let ran = ran.ended_with(137).says("ran out of memory");
    assert_eq!(ran.stdout, "1\n0\n");
}

#[test]
fn a_fork_bomb_meets_the_limit_of_tasks() {
    require!(uml);
    let ran = in_guest(
        &Place::new(),
        "ulimit -u 100
        $sekexe exec --isolation namespaces --network none --timeout 5s \\
            'cat /sys/fs/cgroup/pids.max; bomb() { bomb | bomb & }; bomb; sleep 100' || echo $?",
    );
    let ran = ran.ended_with(0).says("could not be created because of the machine's limit");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines, ["100", "124"]);
}

#[test]
fn a_limit_that_cannot_be_had_is_a_refusal_or_a_fall_back() {
    require!(userns);
    let place = Place::new().with_isolation(Some("namespaces"));
    let ran = place.exec_with(["--memory", "300M", "true"]);
    // Where control groups are delegated to us there is nothing to refuse.
    if ran.status != 0 {
        ran.ended_with(125).says("a limit of memory").says("Delegate=yes");
    }
    place.exec_with(["--memory", "1k", "true"]).ended_with(125);
}
