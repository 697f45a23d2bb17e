//! GitHub Actions: workflow commands, which the runner reads from the log.

use std::time::SystemTime;

use super::{Group, Limits, Lookup, Project, Provider, is_true, project};
use crate::ci::annotation::Annotation;

pub struct GitHub;

impl Provider for GitHub {
    fn name(&self) -> &'static str {
        "github"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        is_true(lookup, "GITHUB_ACTIONS")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("GITHUB_WORKSPACE")
    }

    fn file_variables(&self) -> &'static [&'static str] {
        &["GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"]
    }

    fn temporary_variable(&self) -> Option<&'static str> {
        Some("RUNNER_TEMP")
    }

    fn limits(&self) -> Limits {
        Limits { of_each_level: 10, of_a_job: 50 }
    }

    fn is_plain(&self) -> bool {
        false
    }

    fn annotation(&self, annotation: &Annotation, _color: bool) -> String {
        command(annotation)
    }

    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        Some(format!("::group::{}\n", data(group.title)))
    }

    fn close_group(&self, _group: &Group<'_>, _now: SystemTime) -> Option<String> {
        Some("::endgroup::\n".into())
    }

    fn fence(&self, token: &str) -> Option<[String; 2]> {
        Some([format!("::stop-commands::{token}\n"), format!("::{token}::\n")])
    }

    fn mask(&self, secret: &str) -> Option<String> {
        Some(format!("::add-mask::{}\n", data(secret)))
    }

    fn has_matchers(&self) -> bool {
        true
    }

    fn summary_variable(&self) -> Option<&'static str> {
        Some("GITHUB_STEP_SUMMARY")
    }

    /// The commit of a pull request stands in no variable: theirs is a merge of it.
    fn project(&self, lookup: &Lookup<'_>) -> Project {
        let repository = lookup("GITHUB_REPOSITORY");
        let reference = lookup("GITHUB_REF").unwrap_or_default();
        let request = reference.strip_prefix("refs/pull/").and_then(|rest| rest.split('/').next());
        let server = lookup("GITHUB_SERVER_URL");
        let page = || {
            let (server, repository) = (server?, repository.as_ref()?);
            Some(format!("{server}/{repository}/actions/runs/{}", lookup("GITHUB_RUN_ID")?))
        };
        let pull_request = request.and_then(project::number);
        Project {
            page: page(),
            commit: lookup("GITHUB_SHA").filter(|_| pull_request.is_none()),
            pull_request,
            repository,
        }
    }
}

/// The command that makes an annotation.
pub fn command(annotation: &Annotation) -> String {
    let mut properties = Vec::new();
    let mut set = |name: &str, value: &str| properties.push(format!("{name}={}", property(value)));
    if let Some(place) = &annotation.place {
        set("file", &place.file);
        let numbers = [
            ("line", place.line),
            ("endLine", place.end_line),
            ("col", place.column),
            ("endColumn", place.end_column),
        ];
        for (name, number) in numbers {
            number.into_iter().for_each(|number| set(name, &number.to_string()));
        }
    }
    set("title", &annotation.title());
    format!("::{} {}::{}\n", annotation.level, properties.join(","), data(&annotation.message))
}

/// Text after the `::`.
pub fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Text after a `=`.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ci::annotation::{Level, Place};

    /// Name, properties, data.
    type Command = (String, Vec<(String, String)>, String);

    /// A command as the runner takes it apart.
    fn parse(line: &str) -> Option<Command> {
        let (head, rest) = line.strip_prefix("::")?.split_once("::")?;
        let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
        let decode = |text: &str, codes: &[(&str, &str)]| {
            codes.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
        };
        let in_data = [("%0D", "\r"), ("%0A", "\n"), ("%25", "%")];
        let in_property = [("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")];
        let properties = properties.split(',').filter_map(|pair| pair.split_once('='));
        let properties =
            properties.map(|(name, value)| (name.to_owned(), decode(value, &in_property))).collect();
        Some((name.to_owned(), properties, decode(rest, &in_data)))
    }

    proptest! {
        #[test]
        fn whatever_is_said_arrives_as_it_was_on_one_line(
            message in "(.|[\r\n%:,])*", file in "[^\0]{1,20}", code in proptest::option::of("(.|[,:\n]){1,8}")
        ) {
            let place = Place { file: file.clone(), line: Some(7), column: Some(3), ..Place::default() };
            let annotation =
                Annotation { place: Some(place), code, ..Annotation::new(Level::Error, "gcc", message.clone()) };
            let text = command(&annotation);
            let line = text.strip_suffix('\n').unwrap();
            prop_assert!(!line.contains(['\n', '\r']));
            let (name, properties, data) = parse(line).unwrap();
            prop_assert_eq!(name, "error");
            prop_assert_eq!(data, message);
            let expected = [("file", file.as_str()), ("line", "7"), ("col", "3"), ("title", &annotation.title())];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            prop_assert_eq!(properties, expected);
        }
    }

    #[test]
    fn an_annotation_is_one_command() {
        let place = Place { file: "src/a,b.rs".into(), line: Some(3), end_line: Some(4), ..Place::default() };
        let annotation = Annotation {
            place: Some(place),
            code: Some("E0308".into()),
            ..Annotation::new(Level::Warning, "rustc", "100 % wrong: foo::bar\nreally")
        };
        insta::assert_snapshot!(command(&annotation), @"::warning file=src/a%2Cb.rs,line=3,endLine=4,title=rustc E0308::100 %25 wrong: foo::bar%0Areally");
    }
}
