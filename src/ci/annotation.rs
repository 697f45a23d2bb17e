//! What an annotation is, whoever found it and whoever shows it.

use std::fmt;
use std::hash::Hash;

/// How bad it is; the worst first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// What makes a step fail.
    #[default]
    Error,
    /// What somebody should look at.
    Warning,
    /// What is good to know.
    Notice,
}

impl Level {
    /// All of them, the worst first.
    pub const ALL: [Self; 3] = [Self::Error, Self::Warning, Self::Notice];

    /// GitHub's word for it, in any case; nothing where it is none of these.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| word.eq_ignore_ascii_case(level.word()))
    }

    /// GitHub's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A place in a file of the repository. Lines and columns count from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Relative to the repository's root, with `/`.
    pub file: String,
    /// Where it begins.
    pub line: Option<u32>,
    /// Where in that line.
    pub column: Option<u32>,
    /// Where it ends, if that is known.
    pub end_line: Option<u32>,
    /// Where in the last line.
    pub end_column: Option<u32>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.line.and(self.column)].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        Ok(())
    }
}

/// One thing to show beside the code or above the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Annotation {
    /// How bad it is.
    pub level: Level,
    /// Who says it: a matcher's owner, a report's tool, or this program.
    pub source: String,
    /// The tool's name for this kind of finding, such as `E0308`.
    pub code: Option<String>,
    /// What is said; may have several lines.
    pub message: String,
    /// About which place, if it is one of the repository.
    pub place: Option<Place>,
    /// The line of code in question, for those who show it.
    pub excerpt: Option<String>,
}

impl Annotation {
    /// One that has no place.
    pub fn new(level: Level, source: &str, message: impl Into<String>) -> Self {
        Self { level, source: source.into(), code: None, message: message.into(), place: None, excerpt: None }
    }

    /// A few words that stand above the message: who, and what kind.
    pub fn title(&self) -> String {
        match &self.code {
            Some(code) => format!("{} {code}", self.source),
            None => self.source.clone(),
        }
    }

    /// What two findings of the same cause share. Tools that build twice say everything twice, and one
    /// failure may be both printed and reported, where columns and further lines differ.
    pub fn cause(&self) -> impl Eq + Hash {
        let place = self.place.as_ref().map(|place| (place.file.as_str(), place.line));
        let first = self.message.trim().lines().next();
        (self.level, place, if place.is_some() { first } else { Some(self.message.trim()) })
    }
}
