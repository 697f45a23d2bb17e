//! GitHub's format for problem matchers, read and checked as the runner does.
//!
//! One property is ours and optional: a pattern with `"repeat": true` may match any number of
//! further lines, whose captures are not kept. It carries a match over a piece of any length, such as
//! the source lines of a traceback; a runner that does not know it ignores it.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::regexp::Regexp;
use crate::ci::annotation::Level;

/// One matcher.
#[derive(Debug, Clone)]
pub struct Matcher {
    /// Whose lines it finds; the name for adding and removing it.
    pub owner: String,
    /// How bad a match is that does not say so itself.
    pub severity: Option<Level>,
    /// What consecutive lines must match.
    pub patterns: Vec<Pattern>,
}

/// What one line must match, and which groups of it mean what.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// The expression.
    pub regexp: Regexp,
    /// The number of the group for each property, in the order of [`Property::ALL`].
    pub groups: [Option<usize>; 7],
    /// Whether it may match again and again, each time completing a match.
    pub looping: bool,
    /// Whether it may match further lines before the next pattern does.
    pub repeat: bool,
}

/// What a group of an expression can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    /// The file's path.
    File,
    /// A path to a project, relative to whose directory the file's is.
    FromPath,
    /// The line's number.
    Line,
    /// The column's number.
    Column,
    /// `error`, `warning` or `notice`.
    Severity,
    /// The tool's name for this kind of finding.
    Code,
    /// What is said.
    Message,
}

impl Property {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::File, Self::FromPath, Self::Line, Self::Column, Self::Severity, Self::Code, Self::Message];

    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::FromPath => "fromPath",
            Self::Line => "line",
            Self::Column => "column",
            Self::Severity => "severity",
            Self::Code => "code",
            Self::Message => "message",
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug)]
pub struct Refusal {
    line: usize,
    why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::error::Error for Refusal {}

/// Reads a file's text.
pub fn parse(text: &str) -> Result<Vec<Matcher>, Refusal> {
    #[derive(Deserialize)]
    struct File {
        #[serde(rename = "problemMatcher")]
        matchers: Vec<Matcher>,
    }
    let file: File = serde_json::from_str(text).map_err(|error| {
        let whole = error.to_string();
        // The parser's position stands at the end of its message; ours stands in front.
        let why = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(why, _)| why);
        Refusal { line: error.line().max(1), why: why.to_owned() }
    })?;
    for (at, matcher) in file.matchers.iter().enumerate() {
        let same = |other: &&Matcher| other.owner.eq_ignore_ascii_case(&matcher.owner);
        if file.matchers[..at].iter().any(|other| same(&other)) {
            let line = text.lines().count();
            return Err(Refusal {
                line,
                why: format!("there are two matchers with the owner {}", matcher.owner),
            });
        }
    }
    Ok(file.matchers)
}

impl<'de> Deserialize<'de> for Matcher {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        checked::<RawMatcher, _, _>(deserializer)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        checked::<RawPattern, _, _>(deserializer)
    }
}

/// Reads an object as it is written and checks it while the parser still stands in it, so that what
/// is wrong with it has its line.
fn checked<'de, Raw, T, D>(deserializer: D) -> Result<T, D::Error>
where
    Raw: Deserialize<'de>,
    T: TryFrom<Raw, Error = String>,
    D: Deserializer<'de>,
{
    struct Object<Raw, T>(PhantomData<(Raw, T)>);

    impl<'de, Raw: Deserialize<'de>, T: TryFrom<Raw, Error = String>> Visitor<'de> for Object<Raw, T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            Raw::deserialize(MapAccessDeserializer::new(map))?.try_into().map_err(A::Error::custom)
        }
    }

    deserializer.deserialize_map(Object::<Raw, T>(PhantomData))
}

#[derive(Deserialize)]
struct RawMatcher {
    owner: String,
    #[serde(default)]
    severity: String,
    pattern: Vec<Pattern>,
}

impl TryFrom<RawMatcher> for Matcher {
    type Error = String;

    fn try_from(raw: RawMatcher) -> Result<Self, String> {
        let owner = &raw.owner;
        if owner.is_empty() {
            return Err("the owner is empty".into());
        }
        let severity = match raw.severity.as_str() {
            "" => None,
            word => Some(Level::parse(word).ok_or_else(|| {
                format!("{owner}: the severity {word:?} is neither error, warning nor notice")
            })?),
        };
        let Some(last) = raw.pattern.len().checked_sub(1) else {
            return Err(format!("{owner}: there are no patterns"));
        };
        if raw.pattern.iter().enumerate().any(|(at, pattern)| pattern.looping && (at == 0 || at != last)) {
            return Err(format!("{owner}: only the last of several patterns may loop"));
        }
        if raw.pattern[last].looping && raw.pattern[last].groups[Property::Message as usize].is_none() {
            return Err(format!("{owner}: the pattern that loops must set the message"));
        }
        if raw.pattern[last].repeat {
            return Err(format!("{owner}: the last pattern cannot repeat; it may loop"));
        }
        for property in Property::ALL {
            match raw.pattern.iter().filter(|pattern| pattern.groups[property as usize].is_some()).count() {
                0 if property == Property::Message => {
                    return Err(format!("{owner}: no pattern sets the message"));
                }
                0 | 1 => {}
                _ => return Err(format!("{owner}: the property {} is set twice", property.name())),
            }
        }
        Ok(Self { owner: raw.owner, severity, patterns: raw.pattern })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPattern {
    regexp: Regexp,
    file: Option<usize>,
    from_path: Option<usize>,
    line: Option<usize>,
    column: Option<usize>,
    severity: Option<usize>,
    code: Option<usize>,
    message: Option<usize>,
    #[serde(default, rename = "loop")]
    looping: bool,
    #[serde(default)]
    repeat: bool,
}

impl TryFrom<RawPattern> for Pattern {
    type Error = String;

    fn try_from(raw: RawPattern) -> Result<Self, String> {
        let groups = [raw.file, raw.from_path, raw.line, raw.column, raw.severity, raw.code, raw.message];
        let there = raw.regexp.groups();
        for (property, group) in Property::ALL.into_iter().zip(groups) {
            if group.is_some_and(|group| group >= there) {
                return Err(format!(
                    "the property {} names group {}, and the expression has {}",
                    property.name(),
                    group.unwrap_or_default(),
                    there - 1
                ));
            }
        }
        Ok(Self { regexp: raw.regexp, groups, looping: raw.looping, repeat: raw.repeat })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(matcher: &str) -> String {
        parse(&format!("{{\"problemMatcher\": [\n{matcher}\n]}}")).unwrap_err().to_string()
    }

    #[test]
    fn what_the_runner_refuses_is_refused_with_its_line() {
        let m = |patterns: &str| format!("{{\"owner\": \"x\",\n\"pattern\": [\n{patterns}\n]}}");
        insta::assert_snapshot!(refusal("{"), @"line 3: key must be a string");
        insta::assert_snapshot!(refusal(r#"{"owner": "", "pattern": []}"#), @"line 2: the owner is empty");
        insta::assert_snapshot!(refusal(r#"{"pattern": []}"#), @"line 2: missing field `owner`");
        insta::assert_snapshot!(refusal(&m("")), @"line 5: x: there are no patterns");
        insta::assert_snapshot!(refusal(&m(r#"{"regexp": "a("}"#)), @"line 4: the expression cannot be used: Parsing error at position 2: Opening parenthesis without closing parenthesis");
        insta::assert_snapshot!(refusal(&m(r#"{"regexp": "a(.)", "message": 2}"#)), @"line 4: the property message names group 2, and the expression has 1");
        insta::assert_snapshot!(refusal(&m(r#"{"regexp": "a(.)", "file": 1}"#)), @"line 5: x: no pattern sets the message");
        insta::assert_snapshot!(refusal(&m(r#"{"regexp": "a", "message": 0, "loop": true}"#)), @"line 5: x: only the last of several patterns may loop");
        insta::assert_snapshot!(refusal(&m("{\"regexp\": \"a\", \"message\": 0},\n{\"regexp\": \"b\", \"message\": 0}")), @"line 6: x: the property message is set twice");
        insta::assert_snapshot!(refusal(r#"{"owner": "x", "severity": "fatal", "pattern": []}"#), @r#"line 2: x: the severity "fatal" is neither error, warning nor notice"#);
        let one = m(r#"{"regexp": "a", "message": 0}"#);
        insta::assert_snapshot!(refusal(&format!("{one},{one}")), @"line 9: there are two matchers with the owner x");
    }
}
