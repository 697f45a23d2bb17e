//! A terminal, or a log that nobody interprets: what was found, where, and the line in question.

use super::{Lookup, Provider};
use crate::ci::annotation::{Annotation, Level};

pub struct Plain;

impl Provider for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn recognises(&self, _lookup: &Lookup<'_>) -> bool {
        true
    }
}

/// An annotation as compilers show theirs.
pub fn render(annotation: &Annotation, color: bool) -> String {
    let paint = |style: &str, text: &str| match color {
        true => format!("\x1b[{style}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let level = match annotation.level {
        Level::Error => "1;31",
        Level::Warning => "1;33",
        Level::Notice => "1;36",
    };
    let mut lines = annotation.message.trim_end().lines().map(visible);
    let first = lines.next().unwrap_or_default();
    let level = paint(level, annotation.level.word());
    let mut text = format!("{level}: {first} [{}]\n", visible(&annotation.title()));
    for line in lines {
        text.push_str(&format!("  {line}\n"));
    }
    let Some(place) = &annotation.place else { return text };
    text.push_str(&format!(" {} {}\n", paint("1;34", "-->"), visible(&place.to_string())));
    if let (Some(source), Some(number)) = (&annotation.excerpt, place.line) {
        let source = visible(source);
        let number = number.to_string();
        let bar = paint("1;34", "|");
        text.push_str(&format!("{} {bar} {source}\n", paint("1;34", &number)));
        if let Some(column) = place.column {
            // Under the character; what is before it keeps its tabs, which have any width.
            let before = source.chars().take(column.saturating_sub(1) as usize);
            let indent: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let caret = paint("1;31", "^");
            text.push_str(&format!("{} {bar} {indent}{caret}\n", " ".repeat(number.len())));
        }
    }
    text
}

/// Without what would command a terminal.
fn visible(text: &str) -> String {
    text.chars().filter(|c| *c == '\t' || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::annotation::Place;

    fn found() -> Annotation {
        let place = Place { file: "src/a.c".into(), line: Some(12), column: Some(8), ..Place::default() };
        Annotation {
            place: Some(place),
            code: Some("-Wunused".into()),
            excerpt: Some("\tint x = 1;".into()),
            ..Annotation::new(Level::Warning, "gcc", "unused variable \x1b[2Jx\nreally")
        }
    }

    #[test]
    fn the_line_in_question_is_shown() {
        insta::assert_snapshot!(render(&found(), false), @r"
        warning: unused variable [2Jx [gcc -Wunused]
          really
         --> src/a.c:12:8
        12 | 	int x = 1;
           | 	      ^
        ");
    }

    #[test]
    fn nothing_that_was_found_commands_the_terminal() {
        assert!(!render(&found(), false).contains('\x1b'));
        assert!(render(&found(), true).contains("\x1b[1;33mwarning\x1b[0m"));
    }
}
