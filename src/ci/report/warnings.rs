//! The native format of Jenkins' plugin warnings-ng.

use serde_json::{Value, json};

use crate::ci::annotation::{Annotation, Level};

/// The class that the plugin writes into its own files.
const CLASS: &str = "io.jenkins.plugins.analysis.core.restapi.ReportApi";

/// All annotations.
pub fn write(annotations: &[Annotation]) -> Value {
    let issues: Vec<Value> = annotations.iter().map(issue).collect();
    json!({ "_class": CLASS, "size": issues.len(), "issues": issues })
}

fn issue(found: &Annotation) -> Value {
    let mut issue = json!({
        "severity": match found.level {
            Level::Error => "ERROR",
            Level::Warning => "NORMAL",
            Level::Notice => "LOW",
        },
        "message": found.message,
        "origin": found.source,
        "type": found.code.as_deref().unwrap_or("-"),
    });
    if let Some(place) = &found.place {
        issue["fileName"] = place.file.as_str().into();
        let numbers = [
            ("lineStart", place.line),
            ("columnStart", place.column),
            ("lineEnd", place.end_line),
            ("columnEnd", place.end_column),
        ];
        for (name, number) in numbers {
            number.into_iter().for_each(|number| issue[name] = number.into());
        }
    }
    issue
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::annotation::Place;

    #[test]
    fn an_issue_says_what_is_known_and_no_more() {
        let place = Place { file: "a.c".into(), line: Some(3), ..Place::default() };
        let found = Annotation { place: Some(place), ..Annotation::new(Level::Warning, "gcc", "no") };
        insta::assert_snapshot!(write(&[found]), @r#"{"_class":"io.jenkins.plugins.analysis.core.restapi.ReportApi","issues":[{"fileName":"a.c","lineStart":3,"message":"no","origin":"gcc","severity":"NORMAL","type":"-"}],"size":1}"#);
    }
}
