//! Tells at once which of many expressions a line matches.
//!
//! Nearly every line of a log matches none, and a log may be large, so all expressions together are
//! one automaton, which reads each byte once and allocates nothing for a line. Expressions that must
//! backtrack are asked one by one, and so are all where the automaton gives up.

use anyhow::{Context, Result};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind, PatternSet};

use super::regexp::Regexp;

/// Memory for the automaton's states. They are made when they are first met, and met again and again.
const STATES: usize = 16 << 20;

/// The automaton.
pub struct Gate {
    all: Vec<Regexp>,
    dfa: DFA,
    cache: Cache,
    found: PatternSet,
    /// Which expression each of the automaton's patterns is.
    linear: Vec<usize>,
    /// The others.
    backtracking: Vec<usize>,
    passed: Vec<usize>,
}

impl Gate {
    /// One for these expressions, which are known by their position.
    pub fn new(all: Vec<Regexp>) -> Result<Self> {
        let (linear, backtracking): (Vec<_>, Vec<_>) =
            (0..all.len()).partition(|at| all[*at].linear().is_some());
        let patterns: Vec<&str> = all.iter().filter_map(Regexp::linear).collect();
        let states = DFA::config().match_kind(MatchKind::All).cache_capacity(STATES);
        let dfa = DFA::builder()
            .configure(states.unicode_word_boundary(true))
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .build_many(&patterns)
            .context("the matchers together are too large")?;
        let cache = dfa.create_cache();
        let found = PatternSet::new(dfa.pattern_len());
        Ok(Self { all, dfa, cache, found, linear, backtracking, passed: Vec::new() })
    }

    /// The expressions that the line matches, in their order.
    pub fn pass(&mut self, line: &[u8]) -> &[usize] {
        let Self { all, dfa, cache, found, linear, backtracking, passed } = self;
        passed.clear();
        found.clear();
        match dfa.try_which_overlapping_matches(cache, &Input::new(line), found) {
            Ok(()) if found.is_empty() && backtracking.is_empty() => return passed,
            Ok(()) => passed.extend(found.iter().map(|pattern| linear[pattern.as_usize()])),
            Err(_) => passed.extend(linear.iter().filter(|at| all[**at].matches(line))),
        }
        passed.extend(backtracking.iter().filter(|at| all[**at].matches(line)));
        passed.sort_unstable();
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_passes_for_what_it_matches() {
        let texts = ["^a(.*)$", "(?=x)xy", "b", "[\u{fc}]$", r"\bend"];
        let all = texts.map(|text| Regexp::try_from(text.to_owned()).unwrap());
        let mut gate = Gate::new(all.to_vec()).unwrap();
        assert_eq!(gate.pass(b"ab"), [0, 2]);
        assert_eq!(gate.pass(b"cde xy"), [1]);
        assert_eq!(gate.pass("a\u{fc}".as_bytes()), [0, 3]);
        assert_eq!(gate.pass(b"the end"), [4]);
        assert!(gate.pass(b"").is_empty());
    }

    #[test]
    fn where_the_automaton_gives_up_each_expression_is_asked() {
        // A boundary of a word with a letter beyond ASCII.
        let text = "[\u{fc}]\\b".to_owned();
        let mut gate = Gate::new(vec![Regexp::try_from(text).unwrap()]).unwrap();
        assert_eq!(gate.pass("\u{fc} a".as_bytes()), [0]);
        assert!(gate.pass("\u{fc}a".as_bytes()).is_empty());
    }
}
