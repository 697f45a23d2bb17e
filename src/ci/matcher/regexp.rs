//! A matcher's regular expression.
//!
//! GitHub's runner has .NET's engine in its ECMAScript mode: classes such as `\d` are ASCII. Here
//! nearly all expressions run on an engine whose time is linear in the line, on bytes of any encoding.
//! Those with look-around or back-references, which it does not know, run on one that backtracks, with
//! a limit on its steps.

use std::ops::Range;

use serde::Deserialize;

/// An expression that can be searched for.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Regexp {
    engine: Engine,
    /// In the syntax of the linear engine.
    linear: Option<String>,
}

#[derive(Debug, Clone)]
enum Engine {
    Linear(regex::bytes::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

/// Where groups of an expression matched in a line.
pub type Groups = Vec<Option<Range<usize>>>;

impl TryFrom<String> for Regexp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let text = escape_brackets(&text);
        let build = |text: &str| regex::bytes::RegexBuilder::new(text).unicode(false).build();
        // A character beyond ASCII in a class needs Unicode.
        for form in [text.clone(), format!("(?u){text}")] {
            if let Ok(regex) = build(&form) {
                return Ok(Self { engine: Engine::Linear(regex), linear: Some(form) });
            }
        }
        match fancy_regex::Regex::new(&text) {
            Ok(regex) => Ok(Self { engine: Engine::Backtracking(Box::new(regex)), linear: None }),
            Err(error) => Err(format!("the expression cannot be used: {}", reason(&error.to_string()))),
        }
    }
}

impl Regexp {
    /// How many groups there are, the whole match included.
    pub fn groups(&self) -> usize {
        match &self.engine {
            Engine::Linear(regex) => regex.captures_len(),
            Engine::Backtracking(regex) => regex.captures_len(),
        }
    }

    /// The expression for [`super::gate::Gate`], unless it is one that must backtrack.
    pub fn linear(&self) -> Option<&str> {
        self.linear.as_deref()
    }

    /// Where the groups match, if the line does. A line that takes a backtracking expression too many
    /// steps does not.
    pub fn groups_in(&self, line: &[u8]) -> Option<Groups> {
        match &self.engine {
            Engine::Linear(regex) => {
                let found = regex.captures(line)?;
                Some(found.iter().map(|group| Some(group?.range())).collect())
            }
            Engine::Backtracking(regex) => {
                let found = regex.captures(std::str::from_utf8(line).ok()?).ok()??;
                Some(found.iter().map(|group| Some(group?.range())).collect())
            }
        }
    }

    /// Whether the line matches.
    pub fn matches(&self, line: &[u8]) -> bool {
        match &self.engine {
            Engine::Linear(regex) => regex.is_match(line),
            Engine::Backtracking(regex) => {
                std::str::from_utf8(line).is_ok_and(|line| regex.is_match(line).unwrap_or(false))
            }
        }
    }
}

/// Elsewhere a `[` within a class is a character, and so is a `]` that begins one; here the first
/// would open another class.
fn escape_brackets(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let (mut in_class, mut is_empty) = (false, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let was_empty = std::mem::take(&mut is_empty);
        match c {
            '\\' => {
                escaped.push(c);
                escaped.extend(chars.next());
                continue;
            }
            '[' if !in_class => (in_class, is_empty) = (true, true),
            '^' if was_empty && escaped.ends_with('[') => is_empty = true,
            ']' if in_class && !was_empty => in_class = false,
            '[' | ']' if in_class => escaped.push('\\'),
            _ => {}
        }
        escaped.push(c);
    }
    escaped
}

/// The last line of a message that draws the expression too.
fn reason(message: &str) -> &str {
    let last = message.lines().last().unwrap_or(message);
    last.trim_start_matches("error: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regexp(text: &str) -> Regexp {
        Regexp::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn classes_are_ascii_and_lines_any_bytes() {
        let digits = regexp(r"^.(\d+)");
        assert_eq!(digits.groups_in(b"\xff12").unwrap()[1], Some(1..3));
        assert!(!regexp(r"^\d$").matches("\u{663}".as_bytes()));
        assert!(regexp("✖ [\u{2716}x]").matches("✖ ✖".as_bytes()));
    }

    #[test]
    fn look_around_and_back_references_are_understood() {
        let twice = regexp(r"(?!no)(\w+) \1");
        assert!(twice.linear().is_none());
        assert!(twice.matches(b"so so") && !twice.matches(b"so la"));
    }

    #[test]
    fn an_expression_that_explodes_ends() {
        let evil = regexp(r"^(a+)+(?=b)$");
        assert!(!evil.matches("a".repeat(5000).as_bytes()));
    }

    #[test]
    fn a_bracket_in_a_class_is_a_character() {
        assert!(regexp(r"^[^[]+\[([\w[]+)\]$").matches(b"ab[c[d]"));
        assert!(regexp(r"[]x]+").matches(b"]"));
    }
}
