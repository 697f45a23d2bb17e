//! TeamCity: service messages, which it reads from standard output.

use std::time::SystemTime;

use super::{Group, Lookup, Provider, Stream};
use crate::ci::annotation::{Annotation, Level};

pub struct TeamCity;

impl Provider for TeamCity {
    fn name(&self) -> &'static str {
        "teamcity"
    }

    fn recognises(&self, lookup: &Lookup<'_>) -> bool {
        lookup("TEAMCITY_VERSION").is_some()
    }

    fn stream(&self) -> Stream {
        Stream::Stdout
    }

    fn is_plain(&self) -> bool {
        false
    }

    /// An inspection where there is a place, else a message. A kind of inspection may be declared
    /// more than once.
    fn annotation(&self, annotation: &Annotation, _color: bool) -> String {
        let message = escape(&annotation.message);
        let severity = annotation.level.word().to_uppercase();
        let Some(place) = &annotation.place else {
            let status = if annotation.level == Level::Error { "ERROR" } else { "WARNING" };
            return format!("##teamcity[message text='{message}' status='{status}']\n");
        };
        let (id, source) = (escape(&annotation.title()), escape(&annotation.source));
        let line = place.line.unwrap_or(0);
        format!(
            "##teamcity[inspectionType id='{id}' name='{id}' category='{source}' description='{id}']\n\
             ##teamcity[inspection typeId='{id}' message='{message}' file='{}' line='{line}' SEVERITY='{severity}']\n",
            escape(&place.file)
        )
    }

    fn obeys_output(&self) -> bool {
        true
    }

    fn open_group(&self, group: &Group<'_>) -> Option<String> {
        Some(format!("##teamcity[blockOpened name='{}']\n", escape(group.title)))
    }

    fn close_group(&self, group: &Group<'_>, _now: SystemTime) -> Option<String> {
        Some(format!("##teamcity[blockClosed name='{}']\n", escape(group.title)))
    }
}

/// A value between quotes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => escaped.push_str("|n"),
            '\r' => escaped.push_str("|r"),
            '\'' | '|' | '[' | ']' => escaped.extend(['|', c]),
            // In UTF-16, of which a rare character takes two.
            c if !c.is_ascii() || c.is_control() => {
                let units = c
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .map(|unit| format!("|0x{unit:04X}"))
                    .collect::<String>();
                escaped.push_str(&units);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ci::annotation::Place;

    fn unescape(text: &str) -> String {
        let mut units = Vec::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            let mut buffer = [0; 2];
            let unit = match c {
                '|' => match rest.next().unwrap() {
                    'n' => '\n',
                    'r' => '\r',
                    '0' => {
                        let digits: String = rest.by_ref().skip(1).take(4).collect();
                        units.push(u16::from_str_radix(&digits, 16).unwrap());
                        continue;
                    }
                    c => c,
                },
                c => c,
            };
            units.extend_from_slice(unit.encode_utf16(&mut buffer));
        }
        String::from_utf16(&units).unwrap()
    }

    proptest! {
        #[test]
        fn whatever_is_said_arrives_as_it_was(text in "(.|[\r\n|'\\[\\]])*") {
            let escaped = escape(&text);
            prop_assert!(escaped.is_ascii() && !escaped.contains(['\n', '\r']));
            prop_assert!(!escaped.replace("||", "").replace("|'", "").contains('\''));
            prop_assert_eq!(unescape(&escaped), text);
        }
    }

    #[test]
    fn a_place_makes_an_inspection() {
        let place = Place { file: "a.c".into(), line: Some(3), ..Place::default() };
        let annotation = Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", "it's ü") };
        insta::assert_snapshot!(TeamCity.annotation(&annotation, false), @r"
        ##teamcity[inspectionType id='gcc' name='gcc' category='gcc' description='gcc']
        ##teamcity[inspection typeId='gcc' message='it|'s |0x00FC' file='a.c' line='3' SEVERITY='ERROR']
        ");
    }
}
