//! The network's options: what is refused, and what the machine looks like with each of them.

use std::net::TcpListener;

use super::on_each_machine;
use crate::support::{Place, require};

#[test]
fn wishes_that_cannot_be_met_are_refused_with_a_remedy() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("{}:80", taken.local_addr().unwrap().port());
    for (arguments, says) in [
        (["--publish", &taken], "choose another port"),
        (["--publish", "80"], "write HOST:GUEST"),
        (["--publish", "192.0.2.77:8080:80"], "no such address"),
        (["--publish", "8080:0"], "no port from 1 to 65535"),
        (["--host-loopback", "0"], "0 is not in"),
        (["--allow-net", "10.0.0.0/33"], "no number of bits"),
        (["--deny-net", "not a name"], "neither a range of addresses nor a host name"),
        (["--allow-net", "example.org:http"], "no port from 1 to 65535"),
        (["--network", "host"], "has a network of its own"),
        (["--network", "bridge"], "possible values: user, none, host"),
    ] {
        place.exec_with(arguments.iter().chain(&["true"])).ended_with(125).says(says);
    }
    let both = ["--network", "none", "--publish", "8080:80", "true"];
    place.exec_with(both).ended_with(125).says("no network for --publish");
}

#[test]
fn a_privileged_port_is_refused_with_a_remedy() {
    require!(ordinary_user);
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim() == "1024" {
        Place::new().exec_with(["--publish", "80:80", "true"]).ended_with(125).says("choose a higher one");
    }
}

#[test]
fn without_a_network_there_is_loopback_only() {
    on_each_machine(|place| {
        let script = "tail -n +3 /proc/net/dev | grep -c .; cat /proc/net/route | wc -l";
        let ran = place.exec_with(["--network", "none", script]).ended_with(0);
        assert_eq!(ran.stdout, "1\n1\n");
    });
}

#[test]
fn the_hosts_network_is_there_only_where_it_is_asked_for() {
    require!(python3);
    on_each_machine(|place| {
        if place.kind() != "namespaces" {
            return;
        }
        let script = "python3 -c 'import socket; print(sorted(n for _, n in socket.if_nameindex()))'";
        let own = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        let ran = place.exec_with(["--network", "host", script]).ended_with(0);
        assert_eq!(ran.stdout_bytes, own.stdout);
        assert_ne!(place.exec(script).ended_with(0).stdout_bytes, own.stdout);
    });
}

#[test]
fn names_are_right_whatever_the_host_links_to() {
    on_each_machine(|place| {
        let script = "test ! -L /etc/resolv.conf && grep -c '^nameserver 1' /etc/resolv.conf
            test $(cat /etc/hostname) = $(hostname) && getent hosts $(hostname) > /dev/null && echo own
            getent ahostsv4 host.sekexe.internal | grep -c STREAM";
        assert_eq!(place.exec(script).ended_with(0).stdout, "1\nown\n1\n");
    });
}

#[test]
fn a_proxy_on_the_hosts_loopback_works_inside() {
    require!(python3);
    on_each_machine(|place| {
        let proxy = super::Host::start(
            "s = listen()
c, _ = s.accept()
print(c.recv(1000).split(b'\\r\\n')[0].decode())
c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nby proxy')
c.close()",
        );
        let code =
            "import urllib.request; print(urllib.request.urlopen('http://example.org/x').read().decode())";
        let mut command = place.sekexe(["exec", "--", "python3", "-c", code]);
        command.env("http_proxy", format!("http://localhost:{}", proxy.port));
        let ran = crate::support::Ran::from(command.output().unwrap()).ended_with(0);
        assert_eq!(ran.stdout, "by proxy\n");
        proxy.said("GET http://example.org/x HTTP/1.1");
    });
}
