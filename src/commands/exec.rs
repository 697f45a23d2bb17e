//! `exec`: one command in a fresh machine.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use sekexe_init::protocol::Stream;

use super::face::{self, Face};
use super::job::Job;
use super::{Environment, Status};
use crate::cli::exec::ExecArgs;
use crate::report;
use crate::session::{Input, Output};
use crate::step::{Shell, Work};

/// Runs the command.
pub fn run(args: &ExecArgs, env: &Environment) -> Result<Status> {
    let done = execute(args, env);
    if let (Err(error), Some(path)) = (&done, &args.result) {
        report::write_file(path, &report::failed_result(error))?;
    }
    done
}

fn execute(args: &ExecArgs, env: &Environment) -> Result<Status> {
    // Before the command has run for hours.
    let writable = args.result.as_deref().map_or(Ok(()), |path| report::expect_writable("--result", path));
    let mut face = writable.and_then(|()| Face::new(args, env)).inspect_err(|error| {
        face::complain(&format!("{error:#}"), &args.ci.ci, env);
    })?;
    let done = run_before(&mut face, args, env);
    if let (Err(error), Some(face)) = (&done, &face) {
        face.fail(error)?;
    }
    done
}

/// Runs the command before the eyes of `face`, if there is one.
fn run_before(face: &mut Option<Face>, args: &ExecArgs, env: &Environment) -> Result<Status> {
    let job = Job {
        machine: &args.machine,
        work: work(args)?,
        shell: args.shell.as_deref().map_or(Ok(Shell::Unset), Shell::parse)?,
        timeout: Some(args.timeout),
        result: args.result.clone(),
        input: match args.script.as_ref().is_some_and(|script| script == "-") {
            true => Input::Null,
            false => standard_input(),
        },
        terminal: None,
        also_writable: face::step_paths(&args.ci.ci, args.machine.rw.is_empty(), env),
    };
    let started = job.prepare(env)?.start(None)?;
    let duplicate = |stream: Stream, fd: BorrowedFd<'_>| match (fd.try_clone_to_owned(), &face) {
        (Ok(fd), Some(face)) => face.watch(stream, fd),
        (Ok(fd), None) => Output::Fd(fd),
        // Closed by our caller: there is nobody who would read.
        (Err(_), _) => Output::Hand(Box::new(|_| {})),
    };
    let stdout = duplicate(Stream::Stdout, std::io::stdout().as_fd());
    let stderr = duplicate(Stream::Stderr, std::io::stderr().as_fd());
    face.iter().for_each(|face| face.open(&args.machine, env));
    let concluded = started.run([stdout, stderr], || {});
    face.iter().for_each(Face::close);
    concluded?.conclude(env, face.take())
}

fn standard_input() -> Input {
    std::io::stdin().as_fd().try_clone_to_owned().map_or(Input::Null, Input::Fd)
}

/// Whether a script that is a path means the file's contents, as a CI's `shell:` with `{0}` gives it.
/// As a command such a file could not be executed, so nothing else can be meant.
fn is_script_file(path: &Path) -> bool {
    path.is_absolute()
        && path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 == 0)
}

/// What is to be run, read from wherever it is.
fn work(args: &ExecArgs) -> Result<Work> {
    let script = match (&args.script, &args.script_file) {
        (Some(script), _) if script == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("read the script from standard input")?;
            bytes
        }
        (Some(script), _) if args.shell.is_some() && is_script_file(Path::new(script)) => {
            fs::read(script).with_context(|| format!("read the script {}", script.display()))?
        }
        (Some(script), _) => script.as_bytes().to_owned(),
        (None, Some(file)) => {
            fs::read(file).with_context(|| format!("read the script {}", file.display()))?
        }
        (None, None) if !args.argv.is_empty() => return Ok(Work::Arguments(args.argv.clone())),
        (None, None) => bail!(
            "there is nothing to run; give a script (exec 'make test'), a file (exec --script FILE), - for \
             standard input, or a program (exec -- make test)"
        ),
    };
    if script.iter().all(u8::is_ascii_whitespace) {
        bail!(
            "the script is empty, which is more likely a variable without a value than a wish; for a command that does nothing use: exec true"
        );
    }
    Ok(Work::Script(script))
}
