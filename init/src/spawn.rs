//! From a [`Spawn`] message to a running process with its pipes or its terminal.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use crate::protocol::{ByteBuf, Failure, Spawn};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::pty::openpty;
use nix::unistd::pipe2;

use crate::control_groups::Group;
use crate::serve::Ways;
use crate::sys::{self, Exec, Stage};
use crate::users::{self, User};

/// Capacity of the pipes: few, large hand-overs, since each one costs two context switches.
const PIPE_SIZE: libc::c_int = 1 << 20;

/// The search path of a command whose environment names none.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A started command: its process and our ends of its streams.
pub struct Started {
    /// The process, leader of its own session and process group.
    pub pid: libc::pid_t,
    /// Write end of its standard input, if it has one.
    pub stdin: Option<OwnedFd>,
    /// Read ends of its standard output and standard error; with a terminal only the first.
    pub outputs: [Option<OwnedFd>; 2],
}

/// Both ends of what becomes the command's descriptors.
struct Streams {
    inside: [OwnedFd; 3],
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

/// Starts a command in `group`.
pub fn start(spawn: &Spawn, group: Option<&Group>, ways: Ways) -> Result<Started, Failure> {
    let user = users::look_up(&String::from_utf8_lossy(&spawn.user))
        .map_err(|e| failure("user", &format!("{e:#}"), Errno::UnknownErrno))?;
    let env = environment(spawn, &user);
    let argv = strings(&spawn.argv)?;
    let candidates = candidates(&spawn.argv, &env)?;
    let env = strings(&env)?;
    let workdir = strings(std::slice::from_ref(&spawn.workdir))?;
    let streams =
        open_streams(spawn).map_err(|e| failure("streams", "cannot open the command's streams", e))?;
    let entrance: Option<File> = group.and_then(Group::entrance);

    let exec = Exec {
        candidates: &candidates,
        argv: &argv,
        env: &env,
        workdir: &workdir[0],
        uid: user.uid,
        gid: user.gid,
        groups: ways.supplementary_groups.then_some(user.groups.as_slice()),
        stdio: [streams.inside[0].as_fd(), streams.inside[1].as_fd(), streams.inside[2].as_fd()],
        terminal: spawn.terminal.is_some(),
        group: entrance.as_ref().map(AsFd::as_fd),
    };
    let pid = sys::fork_exec(&exec).map_err(|(stage, errno)| explain(stage, errno, spawn))?;
    Ok(Started { pid, stdin: streams.stdin, outputs: streams.outputs })
}

/// The environment as asked for, with what a login would add.
fn environment(spawn: &Spawn, user: &User) -> Vec<ByteBuf> {
    let mut env = spawn.env.clone();
    let mut add = |name: &str, value: &str| {
        let prefix = format!("{name}=");
        if !env.iter().any(|entry| entry.starts_with(prefix.as_bytes())) {
            env.push(ByteBuf::from(format!("{prefix}{value}").into_bytes()));
        }
    };
    add("HOME", &user.home);
    add("SHELL", if user.shell.is_empty() { "/bin/sh" } else { &user.shell });
    if let Some(name) = &user.name {
        add("USER", name);
        add("LOGNAME", name);
    }
    env
}

fn strings(bytes: &[ByteBuf]) -> Result<Vec<CString>, Failure> {
    let convert = |b: &ByteBuf| CString::new(b.as_slice());
    bytes
        .iter()
        .map(convert)
        .collect::<Result<_, _>>()
        .map_err(|_| failure("exec", "an argument or variable contains a NUL byte", Errno::EINVAL))
}

/// Where the program may be.
fn candidates(argv: &[ByteBuf], env: &[ByteBuf]) -> Result<Vec<CString>, Failure> {
    let Some(program) = argv.first().filter(|p| !p.is_empty()) else {
        return Err(failure("exec", "no program is named", Errno::EINVAL));
    };
    if program.contains(&b'/') {
        return strings(std::slice::from_ref(program));
    }
    let path = env.iter().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let join = |directory: &[u8]| {
        let directory = if directory.is_empty() { b"." } else { directory };
        ByteBuf::from([directory, b"/", program].concat())
    };
    strings(&path.split(|b| *b == b':').map(join).collect::<Vec<_>>())
}

fn open_streams(spawn: &Spawn) -> nix::Result<Streams> {
    if let Some(size) = spawn.terminal {
        let pair = openpty(&sys::winsize(size), None)?;
        for fd in [&pair.master, &pair.slave] {
            fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        set_nonblocking(&pair.master)?;
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| sys::errno(&e));
        return Ok(Streams {
            inside: [copy(&pair.slave)?, copy(&pair.slave)?, pair.slave],
            stdin: Some(copy(&pair.master)?),
            outputs: [Some(pair.master), None],
        });
    }
    let (stdin, our_stdin) = if spawn.stdin {
        let (inside, outside) = wide_pipe()?;
        set_nonblocking(&outside)?;
        (inside, Some(outside))
    } else {
        (File::open("/dev/null").map_err(|e| sys::errno(&e))?.into(), None)
    };
    let (our_stdout, stdout) = wide_pipe()?;
    let (our_stderr, stderr) = wide_pipe()?;
    set_nonblocking(&our_stdout)?;
    set_nonblocking(&our_stderr)?;
    Ok(Streams {
        inside: [stdin, stdout, stderr],
        stdin: our_stdin,
        outputs: [Some(our_stdout), Some(our_stderr)],
    })
}

fn wide_pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
    // A smaller pipe works as well, only slower.
    let _ = fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    Ok((read_end, write_end))
}

/// Only ever called on our end: the flag belongs to the open file, which the command's end is not.
fn set_nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

fn explain(stage: Stage, errno: Errno, spawn: &Spawn) -> Failure {
    let program = spawn.argv.first().map(|p| String::from_utf8_lossy(p)).unwrap_or_default();
    let workdir = String::from_utf8_lossy(&spawn.workdir);
    match stage {
        Stage::Fork => failure("fork", "the guest cannot create a process", errno),
        Stage::Streams => failure("streams", "cannot set the command's streams up", errno),
        Stage::User => failure("user", "cannot change to the user", errno),
        Stage::Workdir => failure("workdir", &format!("cannot enter {workdir}"), errno),
        Stage::Exec if errno == Errno::ENOENT => {
            failure("exec", &format!("{program}: not found in the guest"), errno)
        }
        Stage::Exec => failure("exec", &format!("{program}: cannot be run"), errno),
    }
}

/// A failure with the system's words for the error number, where there is one.
pub fn failure(stage: &str, what: &str, errno: Errno) -> Failure {
    let known = errno != Errno::UnknownErrno;
    let reason = if known { format!("{what}: {}", errno.desc()) } else { what.to_owned() };
    Failure { stage: stage.into(), reason, errno: if known { errno as i32 } else { 0 } }
}
