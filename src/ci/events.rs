//! Our own events as annotations: how the command ended, if not by itself, and what worked less well
//! than asked for. A plain exit status is no event: whoever runs us reports that.

use super::annotation::{Annotation, Level};

/// Who says so.
pub const SOURCE: &str = "sekexe-ci";
/// Lines of the machine's console that are quoted.
const QUOTED: usize = 12;

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
    outcome.into_iter().chain(warnings).chain(fall_back).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_did_itself_is_no_event() {
        let line = Some("the command exited with status 1");
        let end = End { kind: None, line, last_lines: &[], fall_back: None, warnings: &[] };
        assert!(of(&end).is_empty());
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
