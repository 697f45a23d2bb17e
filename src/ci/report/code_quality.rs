//! GitLab's Code Quality report: shown beside the changed lines of a merge request.

use std::collections::HashMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ci::annotation::{Annotation, Level};

/// The annotations that have a place: the format has no others.
pub fn write(annotations: &[Annotation]) -> Value {
    let mut seen = HashMap::new();
    let placed = annotations.iter().filter_map(|found| Some((found, found.place.as_ref()?)));
    let issues = placed.map(|(found, place)| {
        // Without the line's number: a finding that moved is the same one. Equal ones are numbered.
        let what = [found.title().as_str(), &place.file, &found.message].join("\0");
        let number = seen.entry(what.clone()).and_modify(|n| *n += 1).or_insert(0);
        let digest = Sha256::digest(format!("{what}\0{number}"));
        let fingerprint: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({
            "description": found.message,
            "check_name": found.title(),
            "fingerprint": fingerprint,
            "severity": match found.level {
                Level::Error => "major",
                Level::Warning => "minor",
                Level::Notice => "info",
            },
            "location": { "path": place.file, "lines": { "begin": place.line.unwrap_or(1) } },
        })
    });
    issues.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::annotation::Place;

    #[test]
    fn a_finding_keeps_its_fingerprint_when_it_moves_and_shares_it_with_none() {
        let at = |line| {
            let place = Place { file: "a.c".into(), line: Some(line), ..Place::default() };
            Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", "no") }
        };
        let before = write(&[at(3), at(9)]);
        let after = write(&[at(4), at(10), Annotation::new(Level::Error, "gcc", "no place")]);
        assert_eq!(before[0]["fingerprint"], after[0]["fingerprint"]);
        assert_eq!(before[1]["fingerprint"], after[1]["fingerprint"]);
        assert_ne!(before[0]["fingerprint"], before[1]["fingerprint"]);
        assert_eq!(after.as_array().map(Vec::len), Some(2));
        assert_eq!(after[0]["location"], json!({ "path": "a.c", "lines": { "begin": 4 } }));
    }
}
