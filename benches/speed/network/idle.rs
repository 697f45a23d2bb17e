//! What a thousand idle connections cost our process.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::measure::{Bench, Contender};
use crate::table::{Bar, Line, Measure};

const CONNECTIONS: usize = 1000;

const NAMESPACES: Measure = idle("namespaces: memory for 1000 idle connections");
const GUEST: Measure = idle("guest: memory for 1000 idle connections");

const fn idle(what: &'static str) -> Measure {
    Measure { what, unit: "MB", bar: Some(Bar::AtMost(60.0)), peers: &[] }
}

/// Opens them between two lines of its input, and says when they are there.
const CLIENT: &str = "
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
address = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), socket.AF_INET)[0][4]
print('begin', flush=True); input()
all = [socket.create_connection(address) for _ in range(int(sys.argv[3]))]
for s in all: assert s.recv(1) == b'k'
print('there', flush=True); input()";

/// Measures it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let port = serve()?.to_string();
    let contender = |isolation: &'static str, measure: &Measure| {
        let port = port.clone();
        Contender::of(isolation, measure.what, move || Ok(grown(bench, isolation, &port)? as f64 / 1e6))
    };
    let contenders = vec![contender("namespaces", &NAMESPACES), contender("uml", &GUEST)];
    let medians = bench.take_turns("idle connections", contenders);
    Ok([NAMESPACES.lines(&medians, "namespaces"), GUEST.lines(&medians, "uml")].concat())
}

/// Bytes by which our process grows.
fn grown(bench: &Bench<'_>, isolation: &str, port: &str) -> Result<u64> {
    let mut exec = bench.sekexe.exec_in(isolation);
    exec.args(["--host-loopback", port, "--", "python3", "-c", CLIENT]);
    exec.args(["host.sekexe.internal", port, &CONNECTIONS.to_string()]);
    let mut child = exec.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("a pipe")?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    let mut expect = |word: &str| match lines.next() {
        Some(Ok(line)) if line == word => Ok(()),
        other => bail!("the client said {other:?} instead of {word}"),
    };
    expect("begin")?;
    let before = resident(child.id())?;
    input.write_all(b"\n")?;
    expect("there")?;
    let after = resident(child.id())?;
    input.write_all(b"\n")?;
    child.wait()?;
    Ok(after.saturating_sub(before))
}

fn resident(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// Greets whoever connects, and keeps as many connections as one turn makes.
fn serve() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("serve on the loopback")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        let mut held: Vec<TcpStream> = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if held.len() >= CONNECTIONS {
                held.clear();
            }
            let _ = stream.write_all(b"k");
            held.push(stream);
        }
    });
    Ok(port)
}
