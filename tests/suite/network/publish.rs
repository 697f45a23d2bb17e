//! Ports of the host that lead into the machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use super::{PEER, on_each_machine};
use crate::support::{Place, require};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A machine whose program has said "ready"; it goes on until its standard input ends.
fn serve(place: &Place, publish: &str, code: &str) -> (Child, ChildStdin) {
    let code = format!("{PEER}\n{code}\nprint('ready', flush=True)\nsys.stdin.read()\nos._exit(0)");
    let mut command = place.sekexe(["exec", "--publish", publish, "--", "python3", "-c", &code]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let input = child.stdin.take().unwrap();
    (child, input)
}

#[test]
fn connections_to_a_published_port_reach_the_machine() {
    require!(python3);
    on_each_machine(|place| {
        let port = free_port();
        let code = "s = socket.socket(); s.bind(('', 80)); s.listen(100)
def answer():
    while True:
        c, _ = s.accept(); c.sendall(receive(c)[1].encode()); c.close()
threading.Thread(target=answer, daemon=True).start()";
        let (mut child, input) = serve(place, &format!("{port}:80"), code);
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for _ in 0..20 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"abc").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, expected);
        }
        drop(input);
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn a_published_port_that_nobody_has_inside_is_closed() {
    require!(python3);
    on_each_machine(|place| {
        let port = free_port();
        let (mut child, input) = serve(place, &format!("127.0.0.1:{port}:81"), "");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let ended = stream.read(&mut [0]);
        let is_reset = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(ended.map_or_else(is_reset, |count| count == 0));
        drop(input);
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn datagrams_to_a_published_port_are_answered() {
    require!(python3);
    on_each_machine(|place| {
        let port = free_port();
        let code = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))
def answer():
    while True:
        data, peer = s.recvfrom(1 << 16); s.sendto(data[::-1], peer)
threading.Thread(target=answer, daemon=True).start()";
        let (mut child, input) = serve(place, &format!("{port}:53/udp"), code);
        for word in ["one", "another"] {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket.send_to(word.as_bytes(), ("127.0.0.1", port)).unwrap();
            let mut answer = [0; 100];
            let (length, _) = socket.recv_from(&mut answer).unwrap();
            let reversed: Vec<u8> = word.bytes().rev().collect();
            assert_eq!(answer[..length], reversed);
        }
        drop(input);
        assert!(child.wait().unwrap().success());
    });
}
