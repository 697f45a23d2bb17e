//! Programs that others wrote, through the network: downloads from wherever the host gets them, and
//! servers of the test's own. What is missing on the host, or out of its reach, is named.

use std::process::{Command, Stdio};

use super::publish::free_port;
use super::{PEER, on_each_machine};
use crate::support::{Place, have, require, skip};

/// Whether a command succeeds on the host itself: what the host cannot reach, no machine can.
fn host_can(script: &str) -> bool {
    let ran = Command::new("sh").args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let can = ran.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: the host itself cannot: {script}");
    }
    can
}

/// Whether the host has these programs.
fn has(programs: &[&str]) -> bool {
    programs.iter().all(|name| have::program(name).map_err(|why| skip(name, &why)).is_ok())
}

/// Runs a script on each machine if the host can run its first part, and expects its last line.
fn works(host: &str, script: &str, last_line: &str) {
    if host_can(host) {
        on_each_machine(|place| {
            let ran = place.exec_with(["--rw", ".", script]).ended_with(0);
            assert_eq!(ran.stdout.lines().last(), Some(last_line), "{}", ran.stderr);
        });
    }
}

/// A server of the test's own on the host, ended when it is dropped.
struct Server(std::process::Child);

impl Server {
    /// Starts it and waits until it listens.
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let server = Self(child);
        let attempt = || std::net::TcpStream::connect(("127.0.0.1", port));
        let begun = std::time::Instant::now();
        while attempt().is_err() {
            assert!(begun.elapsed().as_secs() < 20, "it does not listen");
            std::thread::yield_now();
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn apt_updates_and_installs() {
    let update = "apt-get -qq update && apt-get -qq download --print-uris hello | grep -q http";
    if have::root().is_ok() {
        works(update, "apt-get -qq update && apt-get -qq install -y hello > /dev/null && hello -g hi", "hi");
    } else if host_can("apt-get -qq download --print-uris hello | grep -q http") && have::uml().is_ok() {
        let place = Place::new_in("/var/tmp");
        let script = "apt-get -qq update && apt-get -qq install -y hello > /dev/null && hello -g hi";
        let ran = place.exec(script).ended_with(0);
        assert_eq!(ran.stdout.lines().last(), Some("hi"), "{}", ran.stderr);
    }
}

#[test]
fn pip_downloads() {
    let pip = "python3 -m pip download -q --disable-pip-version-check --no-deps --no-cache-dir";
    let host = format!("d=$(mktemp -d) && {pip} -d $d six; s=$?; rm -rf $d; exit $s");
    works(&host, &format!("{pip} -d wheels six && ls wheels | grep -c six"), "1");
}

#[test]
fn cargo_fetches() {
    let package = "mkdir -p p/src && cd p && touch src/lib.rs && printf '[package]\nname = \"p\"\nversion = \"0.1.0\"\n[dependencies]\nitoa = \"1\"\n' > Cargo.toml";
    let fetch = "CARGO_HOME=$PWD/home cargo fetch -q && ls home/registry/cache/*/ | grep -c itoa";
    let host = format!("d=$(mktemp -d) && cd $d && {package} && {fetch}; s=$?; rm -rf $d; exit $s");
    works(&host, &format!("{package} && {fetch}"), "1");
}

#[test]
fn npm_installs() {
    let install = "npm install --silent --no-audit --no-fund --cache $PWD/cache left-pad && ls node_modules";
    let host = format!("d=$(mktemp -d) && cd $d && {install}; s=$?; rm -rf $d; exit $s");
    works(&host, install, "left-pad");
}

#[test]
fn curl_speaks_http_1_1_and_2() {
    if !has(&["curl", "nghttpd"]) {
        return;
    }
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("page"), "x".repeat(3_000_000)).unwrap();
    let mut command = Command::new("nghttpd");
    command.args(["--no-tls", "-a", "127.0.0.1", "-d"]).arg(directory.path()).arg(port.to_string());
    let _server = Server::start(&mut command, port);
    on_each_machine(|place| {
        let script = format!(
            "curl -s --http2-prior-knowledge -o page -w '%{{http_version}} %{{size_download}}' http://host.sekexe.internal:{port}/page"
        );
        let ran = place.exec_with(["--host-loopback", &port.to_string(), &script]).ended_with(0);
        assert_eq!(ran.stdout, "2 3000000");
    });
}

#[test]
fn git_clones_over_smart_http() {
    require!(git, python3);
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display();
    let make = format!(
        "cd {at} && git init -q work && cd work && seq 100000 > numbers && git add . && \
         git -c user.name=n -c user.email=e commit -qm one && git clone -q --bare . ../repo.git"
    );
    assert!(Command::new("sh").args(["-c", &make]).env("HOME", directory.path()).status().unwrap().success());
    let port = free_port();
    // What a web server does for git: a CGI program for each request.
    let code = format!(
        "{PEER}
import http.server, subprocess
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.serve()
    def do_POST(self): self.serve()
    def log_message(self, *a): pass
    def serve(self):
        path, _, query = self.path.partition('?')
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        env = dict(os.environ, GIT_PROJECT_ROOT={root:?}, GIT_HTTP_EXPORT_ALL='1', PATH_INFO=path, QUERY_STRING=query,
            REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get('Content-Type') or '', CONTENT_LENGTH=str(len(body)),
            HTTP_CONTENT_ENCODING=self.headers.get('Content-Encoding') or '', GIT_PROTOCOL=self.headers.get('Git-Protocol') or '',
            GIT_CONFIG_COUNT='1', GIT_CONFIG_KEY_0='safe.directory', GIT_CONFIG_VALUE_0='*')
        out = subprocess.run(['git', 'http-backend'], input=body, env=env, capture_output=True).stdout
        head, _, content = out.partition(b'\\r\\n\\r\\n')
        self.send_response(200)
        for line in head.decode().split('\\r\\n'): self.send_header(*line.split(': ', 1))
        self.end_headers(); self.wfile.write(content)
http.server.ThreadingHTTPServer(('127.0.0.1', {port}), Handler).serve_forever()",
        root = at.to_string(),
    );
    let _server = Server::start(Command::new("python3").args(["-c", &code]), port);
    on_each_machine(|place| {
        let script = format!(
            "git clone -q http://host.sekexe.internal:{port}/repo.git copy && wc -l < copy/numbers; rm -rf copy"
        );
        let ran = place.exec_with(["--host-loopback", &port.to_string(), &script]).ended_with(0);
        assert_eq!(ran.stdout, "100000\n", "{}", ran.stderr);
    });
}

#[test]
fn nginx_inside_is_published() {
    if !has(&["curl", "nginx"]) {
        return;
    }
    on_each_machine(|place| {
        let port = free_port();
        place.write("work/page", "served");
        let conf = "pid nginx.pid; error_log stderr; user root; events {} http { access_log off;
            client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
            server { listen 80; root .; } }";
        place.write(
            "work/nginx.conf",
            conf.replace("root .;", &format!("root {};", place.path("work").display())),
        );
        let mut command = place.sekexe(["exec", "--publish", &format!("{port}:80")]);
        command.arg("nginx -p $PWD -c nginx.conf && echo ready && read end");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        let url = format!("http://127.0.0.1:{port}/page");
        let got = Command::new("curl").args(["-s", &url]).output().unwrap();
        assert_eq!(got.stdout, b"served");
        drop(child.stdin.take());
        child.wait().unwrap();
    });
}

#[test]
fn iperf3_measures_both_directions() {
    if !has(&["iperf3"]) {
        return;
    }
    let port = free_port();
    let port = port.to_string();
    on_each_machine(|place| {
        for direction in ["", "-R"] {
            let mut server = Command::new("iperf3")
                .args(["-s", "-1", "-B", "127.0.0.1", "-p", &port])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let script = format!(
                "for i in 1 2 3 4 5 6 7 8 9; do iperf3 -c host.sekexe.internal -p {port} -n 50M {direction} > log && break; done; grep -c receiver log"
            );
            let ran = place.exec_with(["--host-loopback", &port, &script]).ended_with(0);
            assert_eq!(ran.stdout, "1\n", "{}", ran.stderr);
            server.wait().unwrap();
        }
    });
}

#[test]
fn ssh_logs_in_at_a_server_on_the_host() {
    if !has(&["ssh", "ssh-keygen", "sshd"]) {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let at = directory.path();
    let key = |name: &str| {
        let path = at.join(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(&path).status();
        assert!(made.unwrap().success());
        path
    };
    let (host_key, own_key) = (key("host"), key("own"));
    std::fs::copy(at.join("own.pub"), at.join("authorized")).unwrap();
    let port = free_port();
    // It wants to be named by its whole path.
    let mut command = Command::new(which::which("sshd").unwrap());
    command.args(["-D", "-f", "/dev/null", "-p", &port.to_string()]).arg("-h").arg(&host_key);
    for option in ["ListenAddress=127.0.0.1", "StrictModes=no", "UsePAM=no", "PidFile=none"] {
        command.args(["-o", option]);
    }
    command.arg("-o").arg(format!("AuthorizedKeysFile={}", at.join("authorized").display()));
    if have::root().is_ok() {
        let _ = std::fs::create_dir("/run/sshd");
    }
    let _server = Server::start(&mut command, port);
    let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    on_each_machine(|place| {
        std::fs::copy(&own_key, place.path("work/key")).unwrap();
        let script = format!(
            "cp key /tmp/key && chmod 600 /tmp/key && ssh -i /tmp/key -p {port} -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR {}@host.sekexe.internal 'echo $SSH_CONNECTION' | cut -d' ' -f1",
            user.trim()
        );
        let ran = place.exec_with(["--host-loopback", &port.to_string(), &script]).ended_with(0);
        assert_eq!(ran.stdout, "127.0.0.1\n", "{}", ran.stderr);
    });
}
