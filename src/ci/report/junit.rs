//! JUnit's XML, in which nearly every test tool can report, each in its own dialect.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::ci::annotation::{Annotation, Level};
use crate::ci::matcher::{Found, Obey, Scanner, builtin};

/// Lines of a failure that are shown.
const SHOWN: usize = 20;

/// A test while it is read.
#[derive(Default)]
struct Test {
    name: String,
    file: Option<String>,
    line: Option<u32>,
}

/// A failure while it is read.
#[derive(Default)]
struct Failure {
    message: String,
    text: String,
}

/// The tests that failed.
pub fn read(text: &str) -> Result<Vec<Found>> {
    let mut reader = Reader::from_str(text);
    let mut all = Vec::new();
    let mut test = Test::default();
    let mut failure: Option<Failure> = None;
    let mut places = Places::default();
    let mut depth = 0;
    loop {
        let position = reader.buffer_position();
        // Its sources repeat what it says.
        let event =
            reader.read_event().map_err(|error| anyhow!("read it as XML, byte {position}: {error}"))?;
        match &event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            Event::Eof if depth > 0 => bail!("it ends too early, perhaps because its tool did"),
            _ => {}
        }
        match event {
            Event::Start(element) if element.local_name().as_ref() == b"testcase" => test = begin(&element)?,
            Event::Start(element) if is_failure(&element) => failure = Some(fail(&element)?),
            // It has no text.
            Event::Empty(element) if is_failure(&element) => {
                all.push(found(&test, fail(&element)?, &mut places)?)
            }
            Event::Text(text) => {
                if let Some(failure) = &mut failure {
                    failure.text.push_str(&text.decode()?);
                }
            }
            Event::CData(text) => {
                if let Some(failure) = &mut failure {
                    failure.text.push_str(&text.decode()?);
                }
            }
            Event::GeneralRef(reference) => {
                if let Some(failure) = &mut failure {
                    let entity = format!("&{};", reference.decode()?);
                    failure.text.push_str(&quick_xml::escape::unescape(&entity)?);
                }
            }
            Event::End(element) if matches!(element.local_name().as_ref(), b"failure" | b"error") => {
                all.extend(failure.take().map(|failure| found(&test, failure, &mut places)).transpose()?);
            }
            Event::Eof => return Ok(all),
            _ => {}
        }
    }
}

fn is_failure(element: &BytesStart<'_>) -> bool {
    matches!(element.local_name().as_ref(), b"failure" | b"error")
}

fn begin(element: &BytesStart<'_>) -> Result<Test> {
    let class = attribute(element, "classname")?.filter(|class| !class.is_empty());
    let name = attribute(element, "name")?.unwrap_or_default();
    Ok(Test {
        name: class.map_or(name.clone(), |class| format!("{class}.{name}")),
        file: attribute(element, "file")?,
        line: attribute(element, "line")?.and_then(|line| line.parse().ok()),
    })
}

fn fail(element: &BytesStart<'_>) -> Result<Failure> {
    Ok(Failure { message: attribute(element, "message")?.unwrap_or_default(), text: String::new() })
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>> {
    let attribute = element.try_get_attribute(name).context("read an attribute")?;
    let value = attribute.map(|attribute| {
        let text = std::str::from_utf8(&attribute.value)?;
        Ok::<_, anyhow::Error>(quick_xml::escape::unescape(text)?.into_owned())
    });
    value.transpose()
}

/// Finds places in what tools write about failures.
#[derive(Default)]
struct Places(Option<Scanner>);

impl Places {
    fn find(&mut self, text: &str) -> Result<Option<Found>> {
        let scanner = match &mut self.0 {
            Some(scanner) => scanner,
            none => {
                let load = Box::new(|_: &str| Ok(Vec::new()));
                none.insert(Scanner::new(builtin::load(|_| true)?, Obey::Nothing, load)?)
            }
        };
        // An empty line ends what is half found.
        scanner.feed(0, text.as_bytes());
        scanner.feed(0, b"\n\n");
        Ok(scanner.take_found().0.into_iter().find(|found| found.line.is_some()))
    }
}

/// Where the test does not say its place, what a tool wrote about the failure may.
fn found(test: &Test, failure: Failure, places: &mut Places) -> Result<Found> {
    let said = match failure.message.trim() {
        "" => failure.text.trim(),
        message => message,
    };
    let message = match said {
        "" => "the test failed".to_owned(),
        said => said.lines().take(SHOWN).collect::<Vec<_>>().join("\n"),
    };
    let mut found = Found {
        owner: "test".into(),
        level: Level::Error,
        code: Some(test.name.clone()).filter(|name| !name.is_empty()),
        message,
        file: test.file.clone(),
        line: test.line,
        ..Found::default()
    };
    if found.line.is_none()
        && let Some(place) = places.find(&failure.text)?
    {
        (found.file, found.line, found.column) = (place.file, place.line, place.column);
    }
    Ok(found)
}

/// The command as one test, which fails with every error that was found.
pub fn write(name: &str, failed: Option<&str>, time: Duration, annotations: &[Annotation]) -> Result<String> {
    let status = match failed {
        None => TestCaseStatus::success(),
        Some(line) => {
            let errors = annotations.iter().filter(|annotation| annotation.level == Level::Error);
            let lines = errors.map(|error| match &error.place {
                Some(place) => format!("{place}: {}", error.message),
                None => error.message.clone(),
            });
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(line).set_description(lines.collect::<Vec<_>>().join("\n"));
            status
        }
    };
    let mut test = TestCase::new(name, status);
    test.set_classname("sekexe-ci").set_time(time);
    let mut suite = TestSuite::new("sekexe-ci");
    suite.add_test_case(test).set_time(time);
    let mut report = Report::new("sekexe-ci");
    report.add_test_suite(suite).set_time(time);
    report.to_string().context("write JUnit's XML")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ci::annotation::Place;

    fn told(text: &str) -> String {
        let line = |found: &Found| {
            let first = found.message.lines().next().unwrap_or_default();
            format!("{:?} {:?} {:?} {first}", found.file, found.line, found.code)
        };
        read(text).unwrap().iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn pytest_tells_the_place_in_its_text() {
        let path = format!("{}/src/ci/matchers/samples/pytest.xml", env!("CARGO_MANIFEST_DIR"));
        insta::assert_snapshot!(told(&std::fs::read_to_string(path).unwrap()), @r#"
        Some("test_app.py") Some(7) Some("test_app.test_divide") assert 2.0 == 3
        Some("test_app.py") Some(4) Some("test_app.test_zero") ZeroDivisionError: division by zero
        Some("test_app.py") Some(14) Some("test_app.TestThing.test_it") AssertionError: letters
        Some("test_app.py") Some(18) Some("test_app.test_uses_broken") failed on setup with "RuntimeError: no database"
        "#);
    }

    #[test]
    fn attributes_of_a_test_tell_its_place() {
        let text = "<testsuite><testcase name='t' file='a.rb' line='7'><failure type='x'><![CDATA[1 < 2 &amp; so]]></failure></testcase>
            <testcase name='u'><skipped/></testcase><testcase classname='c' name='v'><error message='a &quot;b&quot;&#10;c'/></testcase></testsuite>";
        insta::assert_snapshot!(told(text), @r#"
        Some("a.rb") Some(7) Some("t") 1 < 2 &amp; so
        None None Some("c.v") a "b"
        "#);
    }

    #[test]
    fn what_is_no_xml_is_refused_with_its_place() {
        insta::assert_snapshot!(read("<a><b/>").unwrap_err(), @"it ends too early, perhaps because its tool did");
        insta::assert_snapshot!(format!("{:#}", read("<a><b></a>").unwrap_err()), @"read it as XML, byte 6: ill-formed document: expected `</b>`, but `</a>` was found");
    }

    #[test]
    fn what_is_written_can_be_read() {
        let place = Place { file: "a.c".into(), line: Some(3), ..Place::default() };
        let error =
            Annotation { place: Some(place), ..Annotation::new(Level::Error, "gcc", "1 < 2 & \"so\"") };
        let text = write("make", Some("it exited with 2"), Duration::from_millis(1500), &[error]).unwrap();
        let [found] = &read(&text).unwrap()[..] else { panic!("{text}") };
        assert_eq!(found.message, "it exited with 2");
        assert!(text.contains("a.c:3: 1 &lt; 2 &amp;"), "{text}");
        let text = write("make", None, Duration::from_secs(1), &[]).unwrap();
        assert!(read(&text).unwrap().is_empty() && text.contains("failures=\"0\""), "{text}");
    }
}
