//! How far the patterns of one matcher have got on one stream.
//!
//! The rules are those of GitHub's runner: patterns match consecutive lines, a later pattern is tried
//! before an earlier one, a pattern that loops keeps what is before it alive, and a line that the next
//! pattern does not match ends it all. Lines are kept as they are and taken apart only when a match is
//! complete: many begin one, few complete it.

use super::format::{Matcher, Pattern, Property};

/// What a match says, by property.
pub type Said = [Option<String>; 7];

/// The state of one matcher.
#[derive(Debug)]
pub struct Running {
    /// For each pattern but the last: the lines that it and those before it matched, the newest just
    /// now.
    chains: Vec<Chain>,
}

/// Lines that matched consecutive patterns, from the first on. Dead ones keep their memory.
#[derive(Debug, Default)]
struct Chain {
    alive: bool,
    lines: Vec<Vec<u8>>,
}

impl Chain {
    /// Becomes `before` and one line more.
    fn grow(&mut self, before: Option<&Self>, line: &[u8]) {
        let before = before.map_or(&[][..], |chain| &chain.lines);
        self.lines.resize_with(before.len() + 1, Vec::new);
        let (last, others) = self.lines.split_last_mut().expect("it was given one");
        others.iter_mut().zip(before).for_each(|(mine, theirs)| mine.clone_from(theirs));
        last.clear();
        last.extend_from_slice(line);
        self.alive = true;
    }
}

impl Running {
    /// The state of a matcher that has seen nothing.
    pub fn new(matcher: &Matcher) -> Self {
        Self { chains: matcher.patterns[1..].iter().map(|_| Chain::default()).collect() }
    }

    /// Whether every line but one that the first pattern matches can be skipped.
    pub fn is_idle(&self) -> bool {
        self.chains.iter().all(|chain| !chain.alive)
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.chains.iter_mut().for_each(|chain| chain.alive = false);
    }

    /// Takes the next line; `first` says whether the first pattern matches it. Returns what was said
    /// if that completes a match.
    pub fn advance(&mut self, matcher: &Matcher, line: &[u8], first: bool) -> Option<Said> {
        let last = self.chains.len();
        if last == 0 {
            return first.then(|| say(matcher, &[], line));
        }
        if self.repeats(matcher, line) {
            return None;
        }
        let pattern = &matcher.patterns[last];
        if self.chains[last - 1].alive {
            if pattern.regexp.matches(line) {
                let said = say(matcher, &self.chains[last - 1].lines, line);
                self.reset();
                self.chains[last - 1].alive = pattern.looping;
                return Some(said);
            }
            self.chains[last - 1].alive = false;
        }
        for at in (1..last).rev() {
            let (before, rest) = self.chains.split_at_mut(at);
            if before[at - 1].alive {
                match matcher.patterns[at].regexp.matches(line) {
                    true => rest[0].grow(Some(&before[at - 1]), line),
                    false => rest[0].alive = false,
                }
            }
        }
        match first {
            true => self.chains[0].grow(None, line),
            false => self.chains[0].alive = false,
        }
        None
    }

    /// Whether the line is a further one of a pattern that repeats, and not yet of the next.
    fn repeats(&self, matcher: &Matcher, line: &[u8]) -> bool {
        self.chains.iter().enumerate().any(|(at, chain)| {
            chain.alive
                && matcher.patterns[at].repeat
                && matcher.patterns[at].regexp.matches(line)
                && !matcher.patterns[at + 1].regexp.matches(line)
        })
    }
}

/// Takes the lines of a complete match apart.
fn say(matcher: &Matcher, lines: &[Vec<u8>], last: &[u8]) -> Said {
    let mut said = Said::default();
    let lines = lines.iter().map(Vec::as_slice).chain([last]);
    matcher.patterns.iter().zip(lines).for_each(|(pattern, line)| read(pattern, line, &mut said));
    said
}

/// Adds what one line says to what those before it did.
fn read(pattern: &Pattern, line: &[u8], said: &mut Said) {
    let Some(groups) = pattern.regexp.groups_in(line) else { return };
    for property in Property::ALL {
        let range = pattern.groups[property as usize].and_then(|group| groups.get(group)?.clone());
        if let (None, Some(range)) = (&said[property as usize], range) {
            said[property as usize] = Some(String::from_utf8_lossy(&line[range]).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(matcher: &str, lines: &[&str]) -> Vec<String> {
        let matcher: Matcher = serde_json::from_str(matcher).unwrap();
        let mut running = Running::new(&matcher);
        let mut advance = |line: &&str| {
            let first = matcher.patterns[0].regexp.matches(line.as_bytes());
            running.advance(&matcher, line.as_bytes(), first)
        };
        let said = lines.iter().filter_map(&mut advance);
        said.map(|said| said.into_iter().flatten().collect::<Vec<_>>().join(" ")).collect()
    }

    const THREE: &str = r#"{"owner": "x", "pattern": [
        {"regexp": "^f (.*)", "file": 1}, {"regexp": "^-"}, {"regexp": "^m (.*)", "message": 1, "loop": true}]}"#;
    const NOTHING: [&str; 0] = [];

    #[test]
    fn patterns_match_consecutive_lines_and_the_last_may_loop() {
        assert_eq!(run(THREE, &["f a", "-", "m 1", "m 2", "other", "m 3"]), ["a 1", "a 2"]);
        assert_eq!(run(THREE, &["f a", "other", "-", "m 1"]), NOTHING);
        assert_eq!(run(THREE, &["f a", "f b", "-", "m 1", "f c", "-", "m 2"]), ["b 1", "c 2"]);
    }

    #[test]
    fn a_pattern_may_repeat_until_the_next_one_matches() {
        let matcher = THREE.replace(r#"{"regexp": "^-"}"#, r#"{"regexp": "^-", "repeat": true}"#);
        assert_eq!(run(&matcher, &["f a", "-", "- -", "-", "m 1"]), ["a 1"]);
        assert_eq!(run(&matcher, &["f a", "m 1"]), NOTHING);
        assert_eq!(run(&matcher, &["f a", "-", "f b", "m 1"]), NOTHING);
    }

    #[test]
    fn what_an_earlier_line_said_stays() {
        let matcher = r#"{"owner": "x", "pattern": [
            {"regexp": "^(w)?(.*):$", "severity": 1, "message": 2}, {"regexp": "^  (\\d+)", "line": 1}]}"#;
        assert_eq!(run(matcher, &["wide:", "  7"]), ["7 w ide"]);
    }

    #[test]
    fn one_pattern_is_a_match_by_itself() {
        let matcher = r#"{"owner": "x", "pattern": [{"regexp": "^e: (.*)", "message": 1}]}"#;
        assert_eq!(run(matcher, &["e: a", "x", "e: b"]), ["a", "b"]);
    }
}
