//! The one place that writes our own messages, always to standard error.

use std::fmt::Display;
use std::io::Write;

use super::Environment;

/// Writes messages.
#[derive(Debug, Clone, Copy)]
pub struct Messages {
    color: bool,
}

impl Messages {
    /// For this surroundings.
    pub fn new(env: &Environment) -> Self {
        Self { color: env.color }
    }

    /// Something that the user should know and need not act on.
    pub fn note(self, text: impl Display) {
        self.write("note", "36", text);
    }

    /// Something that works less well than asked for.
    pub fn warning(self, text: impl Display) {
        self.write("warning", "33", text);
    }

    /// What went wrong, with its causes, on one line.
    pub fn error(self, error: &anyhow::Error) {
        self.write("error", "31", format_args!("{error:#}"));
    }

    /// How the command ended.
    pub fn outcome(self, text: impl Display) {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "sekexe-ci: {text}");
    }

    /// A line of detail below another message.
    pub fn detail(self, text: impl Display) {
        let _ = writeln!(std::io::stderr(), "  {text}");
    }

    fn write(self, kind: &str, color: &str, text: impl Display) {
        let mut stderr = std::io::stderr();
        let _ = if self.color {
            writeln!(stderr, "sekexe-ci: \x1b[1;{color}m{kind}\x1b[0m: {text}")
        } else {
            writeln!(stderr, "sekexe-ci: {kind}: {text}")
        };
    }
}
