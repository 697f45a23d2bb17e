//! Our own events as annotations: how the command ended, if not by itself, and what worked less well
//! than asked for. A plain exit status is no event: whoever runs us reports that.

use super::annotation::{Annotation, Level};

/// Who says so.
pub const SOURCE: &str = "sekexe-ci";
/// Lines of the machine's console that are quoted.
const QUOTED: usize = 12;
/// Names of processes left behind that are told.
const NAMED: usize = 5;

/// How a command ended.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The result file's word for how, unless it ended by itself.
    pub kind: Option<&'a str>,
    /// That in words.
    pub line: Option<&'a str>,
    /// What the machine printed last, if it died.
    pub last_lines: &'a [String],
    /// What was missing for a faster machine.
    pub fall_back: Option<&'a str>,
    /// What worked less well than asked for.
    pub warnings: &'a [String],
    /// Names of processes that were still there when the machine was ended.
    pub left_behind: &'a [String],
}

/// What is to be told.
pub fn of(end: &End<'_>) -> Vec<Annotation> {
    let outcome = end.kind.zip(end.line).map(|(code, line)| {
        let quoted = &end.last_lines[end.last_lines.len().saturating_sub(QUOTED)..];
        let lines: Vec<&str> = std::iter::once(line).chain(quoted.iter().map(String::as_str)).collect();
        Annotation { code: Some(code.into()), ..Annotation::new(Level::Error, SOURCE, lines.join("\n")) }
    });
    let fall_back = end.fall_back.map(|missing| {
        let code = Some("fall-back".to_owned());
        Annotation {
            code,
            ..Annotation::new(Level::Notice, SOURCE, format!("a guest kernel was used: {missing}"))
        }
    });
    let warnings = end.warnings.iter().map(|warning| Annotation::new(Level::Warning, SOURCE, warning));
    let left_behind = left_behind(end.left_behind).map(|message| {
        let code = Some("left-behind".to_owned());
        Annotation { code, ..Annotation::new(Level::Notice, SOURCE, message) }
    });
    outcome.into_iter().chain(warnings).chain(fall_back).chain(left_behind).collect()
}

/// Which processes a command left behind, in words; nothing where it left none.
pub fn left_behind(names: &[String]) -> Option<String> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match counts.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let mut words: Vec<String> = counts
        .iter()
        .take(NAMED)
        .map(|(name, count)| match count {
            1 => (*name).to_owned(),
            count => format!("{name} ({count} times)"),
        })
        .collect();
    if counts.len() > NAMED {
        words.push("…".into());
    }
    let plural = if names.len() == 1 { "process" } else { "processes" };
    let count = names.len();
    (count > 0).then(|| {
        format!("the command left {count} {plural} behind, ended with the machine: {}", words.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_did_itself_is_no_event() {
        let line = Some("the command exited with status 1");
        let end = End { kind: None, line, last_lines: &[], fall_back: None, warnings: &[], left_behind: &[] };
        assert!(of(&end).is_empty());
    }

    #[test]
    fn what_was_left_behind_is_counted_and_named() {
        let told = |names: &str| left_behind(&names.split(' ').map(str::to_owned).collect::<Vec<_>>());
        insta::assert_snapshot!(told("sleep").unwrap(), @"the command left 1 process behind, ended with the machine: sleep");
        insta::assert_snapshot!(told("a b a a c d e f").unwrap(), @"the command left 8 processes behind, ended with the machine: a (3 times), b, c, d, e, …");
        assert_eq!(left_behind(&[]), None);
    }

    #[test]
    fn a_machine_that_died_is_quoted() {
        let lines: Vec<String> = (0..30).map(|n| format!("[ {n} ] trace")).collect();
        let events = of(&End {
            kind: Some("machine-died"),
            line: Some("it died"),
            last_lines: &lines,
            fall_back: Some("no user namespaces"),
            warnings: &["no Landlock".into()],
            left_behind: &[],
        });
        assert_eq!(events[0].title(), "sekexe-ci machine-died");
        assert_eq!(events[0].message.lines().count(), 13);
        assert!(
            events[0].message.starts_with("it died\n[ 18 ]") && events[0].message.ends_with("[ 29 ] trace")
        );
        assert_eq!((events[1].level, events[1].message.as_str()), (Level::Warning, "no Landlock"));
        assert_eq!((events[2].level, events[2].title().as_str()), (Level::Notice, "sekexe-ci fall-back"));
    }
}
