//! The summary in Markdown, for the page that a CI shows above the log.

use std::fmt::Write;

use super::annotation::{Annotation, Level};
use super::selection::Selection;

/// Findings listed.
const LISTED: usize = 50;
/// Characters of a message.
const LONGEST: usize = 500;
/// Characters of a command's name on the timeline.
const LONGEST_NAME: usize = 40;

/// A table of facts, and one of findings where there are any. Facts without a value are left out.
pub fn markdown(title: &str, facts: &[(&str, Option<String>)], findings: &Selection) -> String {
    let mut text = format!("### {}\n\n| | |\n| --- | --- |\n", cell(title));
    for (name, value) in facts {
        if let Some(value) = value {
            writeln!(text, "| {} | {} |", cell(name), cell(value)).expect("a string takes everything");
        }
    }
    if let Some(counts) = counts(findings.totals) {
        write!(text, "\n{counts}\n").expect("a string takes everything");
    }
    if !findings.shown.is_empty() {
        text.push_str("\n| | where | what |\n| --- | --- | --- |\n");
        text.extend(findings.shown.iter().take(LISTED).map(row));
    }
    text
}

/// A command on the timeline. Times are in milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// What it is called.
    pub name: String,
    /// When it began.
    pub begin: u64,
    /// When it had ended.
    pub end: u64,
    /// Whether it failed.
    pub failed: bool,
}

/// A diagram of when each command ran, in the words of Mermaid's Gantt charts
/// (<https://mermaid.js.org/syntax/gantt.html>); nothing for a single one.
pub fn timeline(spans: &[Span]) -> String {
    if spans.len() < 2 {
        return String::new();
    }
    let mut text = "\n```mermaid\ngantt\n  dateFormat x\n  axisFormat %H:%M:%S\n".to_owned();
    for Span { name, begin, end, failed } in spans {
        // A colon ends a name there, and some other characters mean something, too.
        let plain = |c: char| if c.is_alphanumeric() || " ._-/".contains(c) { c } else { ' ' };
        let name: String = name.chars().map(plain).take(LONGEST_NAME).collect();
        let state = if *failed { "crit" } else { "done" };
        // What takes no time is not drawn.
        let end = (*end).max(begin + 1);
        writeln!(text, "  {} :{state}, {begin}, {end}", name.trim()).expect("a string takes everything");
    }
    text + "```\n"
}

/// How many there are of each level, in words; nothing where there are none.
pub fn counts(totals: [usize; 3]) -> Option<String> {
    let counts = Level::ALL.into_iter().zip(totals).filter(|(_, n)| *n > 0);
    let words = counts.map(|(level, n)| format!("{n} {level}{}", if n == 1 { "" } else { "s" }));
    Some(words.collect::<Vec<_>>().join(", ")).filter(|words| !words.is_empty())
}

fn row(found: &Annotation) -> String {
    let mark = match found.level {
        Level::Error => "❌",
        Level::Warning => "⚠️",
        Level::Notice => "ℹ️",
    };
    let place = found.place.as_ref().map(ToString::to_string).unwrap_or_default();
    let message: String = found.message.chars().take(LONGEST).collect();
    format!("| {mark} | {} | {} ({}) |\n", cell(&place), cell(&message), cell(&found.title()))
}

/// Text that is itself in a table, whatever it contains.
fn cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    for c in text.trim().chars() {
        match c {
            '\n' => cell.push_str("<br>"),
            '&' => cell.push_str("&amp;"),
            '<' => cell.push_str("&lt;"),
            '>' => cell.push_str("&gt;"),
            // People and issues are not to be called by what a script prints.
            '@' => cell.push_str("&#64;"),
            '|' | '\\' | '`' | '*' | '_' | '~' | '[' | ']' | '#' | '!' => cell.extend(['\\', c]),
            c if c.is_control() => {}
            c => cell.push(c),
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ci::annotation::Place;

    #[test]
    fn facts_and_findings_are_tables() {
        let place = Place { file: "src/a_b.c".into(), line: Some(3), ..Place::default() };
        let found =
            Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", "no | <b>\nat all") };
        let findings = Selection { shown: vec![found], totals: [1, 2, 0] };
        let facts = [("outcome", Some("exited with 1".into())), ("network", None)];
        insta::assert_snapshot!(markdown("make test", &facts, &findings), @r"
        ### make test

        | | |
        | --- | --- |
        | outcome | exited with 1 |

        1 error, 2 warnings

        | | where | what |
        | --- | --- | --- |
        | ❌ | src/a\_b.c:3 | no \| &lt;b&gt;<br>at all (gcc) |
        ");
    }

    #[test]
    fn several_commands_have_a_timeline() {
        let span = |name: &str, begin, end, failed| Span { name: name.into(), begin, end, failed };
        let spans = [span("build: all\n```", 1000, 4000, false), span("test", 4000, 4000, true)];
        assert_eq!(timeline(&spans[..1]), "");
        insta::assert_snapshot!(timeline(&spans), @r"

        ```mermaid
        gantt
          dateFormat x
          axisFormat %H:%M:%S
          build  all :done, 1000, 4000
          test :crit, 4000, 4001
        ```
        ");
    }

    proptest! {
        #[test]
        fn a_cell_stays_one(text in "(.|[\r\n|<`\\\\])*") {
            let cell = cell(&text);
            prop_assert!(!cell.contains(['\n', '\r']));
            let unescaped = cell.replace("\\\\", "").replace("\\|", "");
            prop_assert!(!unescaped.contains('|') && !cell.replace("<br>", "").contains('<'));
        }
    }
}
