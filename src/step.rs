//! A step: what a user wants to run, turned into what the guest is told to start.
//!
//! A script is a file in the guest, run by a shell in GitHub's exact way; its bytes are never part
//! of a command line. Arguments given one by one are passed on one by one. The environment is an
//! allow-list: nothing of the caller's gets in that is neither harmless nor named.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Result, bail};
use sekexe_init::protocol::{ByteBuf, Spawn, WindowSize};

use crate::net::proxy;

/// Where scripts lie in the guest.
pub const SCRIPT_DIR: &str = "/run/sekexe";

/// Variables that are passed on without being asked for.
const PASSED_ON: [&str; 11] = [
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "TZ",
    "TERM",
    "CI",
    "NO_COLOR",
    "CLICOLOR_FORCE",
    "no_proxy",
    "NO_PROXY",
];
/// Where root's programs are. An ordinary user's `PATH` lacks them on Debian, and the command is root.
const PROGRAMS_OF_ROOT: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Beginnings of names that are passed on, and what in a name means a secret all the same.
const PASSED_ON_PREFIXES: [&str; 3] = ["LC_", "GITHUB_", "RUNNER_"];
const SECRET: [&str; 5] = ["TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "KEY"];

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// A script, to be run by a shell.
    Script(Vec<u8>),
    /// A program and its arguments.
    Arguments(Vec<OsString>),
}

/// How a script is run, in GitHub's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shell {
    /// Not asked for: bash, or sh where there is none, with `-e`.
    Unset,
    /// `bash --noprofile --norc -e -o pipefail {0}`.
    Bash,
    /// `sh -e {0}`.
    Sh,
    /// `python {0}`.
    Python,
    /// Words, one of which contains `{0}`.
    Custom(Vec<String>),
}

impl Shell {
    /// Reads the value of `--shell`.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "bash" => Self::Bash,
            "sh" => Self::Sh,
            "python" => Self::Python,
            custom => {
                let words: Vec<String> = custom.split_whitespace().map(str::to_owned).collect();
                if words.len() < 2 || !words.iter().any(|word| word.contains("{0}")) {
                    bail!(
                        "--shell {custom:?} is neither bash, sh nor python, and has no {{0}} where the script's \
                         path belongs; try --shell '{} {{0}}'",
                        words.first().map_or("perl", String::as_str)
                    );
                }
                Self::Custom(words)
            }
        })
    }

    /// Program and arguments for a script at `path`. `exists` tells what the guest has.
    fn command(&self, path: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
        let fixed = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let words: Vec<String> = match self {
            Self::Unset if exists("bash") => fixed(&["bash", "-e", "{0}"]),
            Self::Unset | Self::Sh => fixed(&["sh", "-e", "{0}"]),
            Self::Bash => fixed(&["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "{0}"]),
            Self::Python if !exists("python") && exists("python3") => fixed(&["python3", "{0}"]),
            Self::Python => fixed(&["python", "{0}"]),
            Self::Custom(words) => words.clone(),
        };
        words.into_iter().map(|word| word.replace("{0}", path)).collect()
    }

    fn extension(&self) -> &'static str {
        match self {
            Self::Python => "py",
            Self::Unset | Self::Bash | Self::Sh | Self::Custom(_) => "sh",
        }
    }
}

/// A step, complete.
#[derive(Debug, Clone)]
pub struct Step {
    /// What to run.
    pub work: Work,
    /// How, if it is a script.
    pub shell: Shell,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where in the guest.
    pub workdir: OsString,
    /// As whom in the guest.
    pub user: String,
}

/// What the guest is told: the command, and the files it needs (path and contents).
pub type Told = (Spawn, Vec<(Vec<u8>, Vec<u8>)>);

impl Step {
    /// Turns it into what the machine is told. `rootfs` is the directory whose files it sees,
    /// `script_dir` one in it where a script can be written.
    pub fn tell(&self, rootfs: &Path, script_dir: &Path, terminal: Option<WindowSize>) -> Told {
        let mut files = Vec::new();
        let argv = match &self.work {
            Work::Arguments(words) => words.iter().map(|w| ByteBuf::from(w.as_bytes())).collect(),
            Work::Script(bytes) => {
                let path = format!("{}/script.{}", script_dir.display(), self.shell.extension());
                let search = self.path();
                let exists = |name: &str| find_program(rootfs, &search, name);
                let words = self.shell.command(&path, exists);
                files.push((path.into_bytes(), bytes.clone()));
                words.into_iter().map(|word| ByteBuf::from(word.into_bytes())).collect()
            }
        };
        let spawn = Spawn {
            session: 0,
            argv,
            env: self.env.iter().map(|(name, value)| variable(name, value)).collect(),
            workdir: ByteBuf::from(self.workdir.as_bytes()),
            user: ByteBuf::from(self.user.as_bytes()),
            terminal,
            stdin: false,
        };
        (spawn, files)
    }

    fn path(&self) -> OsString {
        let found = self.env.iter().find(|(name, _)| name == "PATH");
        found.map_or_else(|| "/usr/bin:/bin".into(), |(_, value)| value.clone())
    }
}

fn variable(name: &OsStr, value: &OsStr) -> ByteBuf {
    ByteBuf::from([name.as_bytes(), b"=", value.as_bytes()].concat())
}

fn find_program(rootfs: &Path, search: &OsStr, name: &str) -> bool {
    std::env::split_paths(search).any(|directory| {
        let inside = directory.strip_prefix("/").unwrap_or(&directory).join(name);
        // A link may lead to an absolute path, which is meant inside the root.
        rootfs.join(inside).symlink_metadata().is_ok_and(|m| !m.is_dir())
    })
}

/// The part of `caller` that may enter the guest unasked.
pub fn allowed_environment(caller: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let mut allowed: Vec<_> = caller.filter(|(name, _)| is_allowed(name)).collect();
    if let Some((_, path)) = allowed.iter_mut().find(|(name, _)| name == "PATH") {
        add_programs_of_root(path);
    }
    allowed.sort();
    allowed
}

/// Appends to a `PATH` what of root's directories it lacks, so that what it finds first stays so.
fn add_programs_of_root(path: &mut OsString) {
    let known: Vec<_> = std::env::split_paths(path).collect();
    for directory in PROGRAMS_OF_ROOT.map(Path::new).into_iter().filter(|d| !known.iter().any(|k| k == d)) {
        path.push(":");
        path.push(directory);
    }
}

fn is_allowed(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    PASSED_ON.contains(&name)
        || proxy::is_variable(name)
        || (PASSED_ON_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !is_secret(name))
}

/// Whether a variable's name says that its value is a secret.
pub fn is_secret(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    SECRET.iter().any(|word| upper.contains(word))
}

/// Reads a file of `NAME=value` lines; blank lines and lines that start with `#` do not count.
/// A value is taken as it stands but for one pair of quotes around it.
pub fn parse_env_file(text: &[u8]) -> Result<Vec<(OsString, OsString)>, (usize, String)> {
    let mut variables = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let line = line.strip_prefix(b"export ").unwrap_or(line);
        let wrong = |what: &str| (number + 1, what.to_owned());
        let split = line.iter().position(|byte| *byte == b'=').ok_or_else(|| wrong("no ="))?;
        let (name, value) = (&line[..split], &line[split + 1..]);
        if name.is_empty() || name.contains(&0) || value.contains(&0) {
            return Err(wrong("an empty name or a NUL byte"));
        }
        let quoted = |quote: u8| value.len() >= 2 && value[0] == quote && value[value.len() - 1] == quote;
        let value = if quoted(b'"') || quoted(b'\'') { &value[1..value.len() - 1] } else { value };
        variables.push((OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec())));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(shell: &Shell, has: &[&str]) -> String {
        shell.command("/s", |name| has.contains(&name)).join(" ")
    }

    #[test]
    fn shells_are_called_exactly_as_github_calls_them() {
        assert_eq!(words(&Shell::Unset, &["bash"]), "bash -e /s");
        assert_eq!(words(&Shell::Unset, &[]), "sh -e /s");
        assert_eq!(words(&Shell::Bash, &[]), "bash --noprofile --norc -e -o pipefail /s");
        assert_eq!(words(&Shell::Sh, &["bash"]), "sh -e /s");
        assert_eq!(words(&Shell::Python, &["python", "python3"]), "python /s");
        assert_eq!(words(&Shell::Python, &["python3"]), "python3 /s");
        assert_eq!(words(&Shell::parse("perl -w {0} x").unwrap(), &[]), "perl -w /s x");
    }

    #[test]
    fn a_shell_without_a_place_for_the_script_is_refused() {
        for wrong in ["zsh", "perl -w", "{0}", ""] {
            let error = Shell::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("{0}"), "{error}");
        }
    }

    #[test]
    fn a_scripts_bytes_travel_untouched() {
        let script = b"\0'\"$(x)\xff\n".to_vec();
        let step = Step {
            work: Work::Script(script.clone()),
            shell: Shell::Bash,
            env: vec![],
            workdir: "/w".into(),
            user: "root".into(),
        };
        let (spawn, files) = step.tell(Path::new("/"), Path::new(SCRIPT_DIR), None);
        assert_eq!(files[0].1, script);
        assert_eq!(spawn.argv.last().unwrap().as_slice(), files[0].0);
    }

    #[test]
    fn secrets_stay_outside() {
        let caller =
            ["PATH", "GITHUB_SHA", "GITHUB_TOKEN", "RUNNER_TEMP", "HOME", "AWS_REGION", "LC_TIME", "FOO"];
        let caller = caller.into_iter().map(|name| (OsString::from(name), OsString::from("x")));
        let names: Vec<_> = allowed_environment(caller).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["GITHUB_SHA", "LC_TIME", "PATH", "RUNNER_TEMP"]);
    }

    #[test]
    fn the_programs_of_root_are_found_behind_all_others() {
        let cases = [
            ("/home/me/bin:/usr/bin", "/home/me/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/sbin"),
            ("/sbin:/usr/bin:/usr/sbin", "/sbin:/usr/bin:/usr/sbin:/usr/local/sbin"),
            ("/sbin:/usr/sbin:/usr/local/sbin", "/sbin:/usr/sbin:/usr/local/sbin"),
        ];
        for (path, expected) in cases {
            let passed_on = allowed_environment([("PATH".into(), path.into())].into_iter());
            assert_eq!(passed_on, [("PATH".into(), expected.into())]);
        }
    }

    #[test]
    fn an_env_file_is_read_line_by_line_and_a_wrong_line_is_numbered() {
        let read = parse_env_file(b"# note\n\nA=1\nexport B=\"two words\"\r\nC=\n").unwrap();
        let expected = [("A", "1"), ("B", "two words"), ("C", "")];
        assert_eq!(read, expected.map(|(n, v)| (OsString::from(n), OsString::from(v))));
        assert_eq!(parse_env_file(b"A=1\nnonsense\n").unwrap_err().0, 2);
        assert_eq!(parse_env_file(b"=x\n").unwrap_err().0, 1);
    }
}
