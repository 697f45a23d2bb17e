//! Azure Pipelines: logging commands, which the agent reads from the log.

use std::time::SystemTime;

use super::{Group, Lookup, Project, Provider, is_true, project};
use crate::ci::annotation::{Annotation, Level};

pub struct Azure;

impl Provider for Azure {
    fn name(&self) -> &'static str {
        "azure"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        is_true(lookup, "TF_BUILD")
    }

    fn workspace_variable(&self) -> Option<&'static str> {
        Some("BUILD_SOURCESDIRECTORY")
    }

    fn is_plain(&self) -> bool {
        false
    }

    fn annotation(&self, annotation: &Annotation, _color: bool) -> String {
        let kind = match annotation.level {
            Level::Error => "error",
            Level::Warning => "warning",
            // The agent knows no third kind; the log shows it all the same.
            Level::Notice => return format!("##[section]{}\n", data(&annotation.message)),
        };
        let mut properties = vec![format!("type={kind}")];
        let mut set = |name: &str, value: &str| properties.push(format!("{name}={}", property(value)));
        if let Some(place) = &annotation.place {
            set("sourcepath", &place.file);
            place.line.into_iter().for_each(|line| set("linenumber", &line.to_string()));
            place.column.into_iter().for_each(|column| set("columnnumber", &column.to_string()));
        }
        annotation.code.iter().for_each(|code| set("code", code));
        format!("##vso[task.logissue {}]{}\n", properties.join(";"), data(&annotation.message))
    }

    fn obeys_output(&self) -> bool {
        true
    }

    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        Some(format!("##[group]{}\n", data(group.title)))
    }

    fn close_group(&self, _group: &Group<'_>, _now: SystemTime) -> Option<String> {
        Some("##[endgroup]\n".into())
    }

    fn mask(&self, secret: &str) -> Option<String> {
        Some(format!("##vso[task.setsecret]{}\n", data(secret)))
    }

    fn project(&self, lookup: &Lookup<'_>) -> Project {
        let page = || {
            let (server, project) = (lookup("SYSTEM_COLLECTIONURI")?, lookup("SYSTEM_TEAMPROJECTID")?);
            let (build, job) = (lookup("BUILD_BUILDID")?, lookup("SYSTEM_JOBID")?);
            Some(format!("{server}{project}/_build/results?buildId={build}&view=logs&j={job}"))
        };
        let commit = lookup("SYSTEM_PULLREQUEST_SOURCECOMMITID");
        Project {
            repository: lookup("BUILD_REPOSITORY_NAME"),
            commit: commit.or_else(|| lookup("BUILD_SOURCEVERSION")),
            pull_request: lookup("SYSTEM_PULLREQUEST_PULLREQUESTNUMBER").as_deref().and_then(project::number),
            page: page(),
        }
    }
}

/// Text after the `]`.
fn data(text: &str) -> String {
    text.replace('%', "%AZP25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Text after a `=`.
fn property(text: &str) -> String {
    data(text).replace(']', "%5D").replace(';', "%3B")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ci::annotation::Place;

    fn decode(text: &str) -> String {
        let codes = [("%3B", ";"), ("%5D", "]"), ("%0D", "\r"), ("%0A", "\n"), ("%AZP25", "%")];
        codes.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
    }

    proptest! {
        #[test]
        fn whatever_is_said_arrives_as_it_was(message in "(.|[\r\n%;\\]])*", file in "(.|[;\\]\n]){1,12}") {
            let place = Place { file: file.clone(), ..Place::default() };
            let annotation =
                Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", message.clone()) };
            let text = Azure.annotation(&annotation, false);
            let line = text.strip_suffix('\n').unwrap();
            prop_assert!(!line.contains(['\n', '\r']));
            let (head, data) = line.split_once(']').unwrap();
            prop_assert_eq!(decode(data), message);
            prop_assert_eq!(decode(head.split_once("sourcepath=").unwrap().1), file);
        }
    }

    #[test]
    fn a_warning_has_place_and_code() {
        let place = Place { file: "a.c".into(), line: Some(3), column: Some(9), ..Place::default() };
        let code = Some("-Wunused".into());
        let annotation = Annotation {
            place: Some(place),
            code,
            ..Annotation::new(Level::Warning, "gcc", "unused; so what")
        };
        insta::assert_snapshot!(Azure.annotation(&annotation, false), @"##vso[task.logissue type=warning;sourcepath=a.c;linenumber=3;columnnumber=9;code=-Wunused]unused; so what");
    }
}
