//! What is shown of everything that was found: each cause once, and no more than a CI accepts.
//!
//! What a CI is given beyond its limit it drops without a word. So the last one of each level that is
//! too numerous says how many more there are, and where.

use std::collections::HashSet;

use super::annotation::{Annotation, Level};
use super::matcher::builtin::CONSEQUENCES;
use super::provider::Limits;

/// Places named for those that are not shown.
const NAMED: usize = 10;

/// What is shown, and how much there was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// In the order of level, then as found.
    pub shown: Vec<Annotation>,
    /// Of each level, without repetitions as far as they were kept.
    pub totals: [usize; 3],
}

/// Each cause once; and what only follows from another error not at all, if there is another.
pub fn causes(all: Vec<Annotation>) -> Vec<Annotation> {
    let follows = |annotation: &Annotation| CONSEQUENCES.contains(&annotation.source.as_str());
    let has_cause = all.iter().any(|found| found.level == Level::Error && !follows(found));
    let mut seen = HashSet::new();
    let is_kept = |found: &Annotation, first: bool| first && !(has_cause && follows(found));
    let kept: Vec<bool> = all.iter().map(|found| is_kept(found, seen.insert(found.cause()))).collect();
    drop(seen);
    all.into_iter().zip(kept).filter_map(|(found, kept)| kept.then_some(found)).collect()
}

/// As many as `limits` allow. `more` were found of each level beyond `all`.
pub fn select(all: &[Annotation], more: [usize; 3], limits: Limits) -> Selection {
    let mut shown = Vec::new();
    let mut totals = [0; 3];
    for level in Level::ALL {
        let found: Vec<&Annotation> = all.iter().filter(|found| found.level == level).collect();
        let total = found.len() + more[level as usize];
        totals[level as usize] = total;
        let room = limits.of_each_level.min(limits.of_a_job.saturating_sub(shown.len()));
        if total <= room && more[level as usize] == 0 {
            shown.extend(found.into_iter().cloned());
        } else if let Some(room) = room.checked_sub(1) {
            let (first, rest) = found.split_at(room.min(found.len()));
            shown.extend(first.iter().copied().cloned());
            shown.push(summed_up(level, rest, total - first.len()));
        }
    }
    Selection { shown, totals }
}

fn summed_up(level: Level, rest: &[&Annotation], count: usize) -> Annotation {
    let plural = if count == 1 { "" } else { "s" };
    let mut message = format!("{count} more {level}{plural}");
    let places: Vec<String> =
        rest.iter().filter_map(|found| Some(found.place.as_ref()?.to_string())).take(NAMED).collect();
    if !places.is_empty() {
        let end = if places.len() < count { ", …" } else { "" };
        message.push_str(&format!(": {}{end}", places.join(", ")));
    }
    Annotation::new(level, "sekexe-ci", message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ci::annotation::Place;

    fn found(level: Level, source: &str, line: u32) -> Annotation {
        let place = Place { file: "a.c".into(), line: Some(line), ..Place::default() };
        Annotation { place: Some(place), ..Annotation::new(level, source, "no") }
    }

    const GITHUB: Limits = Limits { of_each_level: 10, of_a_job: 50 };

    #[test]
    fn a_cause_is_told_once() {
        let twice = found(Level::Error, "gcc", 1);
        let by_another = found(Level::Error, "sarif", 1);
        let made = Annotation::new(Level::Error, "make", "[all] Error 1");
        let all = vec![twice.clone(), twice.clone(), made.clone(), by_another];
        assert_eq!(causes(all), [twice]);
        assert_eq!(causes(vec![made.clone(), found(Level::Warning, "gcc", 1)]).len(), 2);
    }

    #[test]
    fn beyond_the_limit_the_last_one_sums_up() {
        let all: Vec<_> = (1..=12).map(|line| found(Level::Error, "gcc", line)).collect();
        let selection = select(&all, [0; 3], GITHUB);
        assert_eq!((selection.shown.len(), selection.totals), (10, [12, 0, 0]));
        insta::assert_snapshot!(selection.shown[9].message, @"3 more errors: a.c:10, a.c:11, a.c:12");
        let selection = select(&all[..3], [100, 1, 0], Limits { of_each_level: 3, ..GITHUB });
        insta::assert_snapshot!(selection.shown[2].message, @"101 more errors: a.c:3, …");
        insta::assert_snapshot!(selection.shown[3].message, @"1 more warning");
    }

    proptest! {
        #[test]
        fn no_limit_is_passed_and_nothing_is_uncounted(
            levels in prop::collection::vec(0..3usize, 0..120), each in 0..12usize, job in 0..40usize
        ) {
            let all: Vec<_> =
                levels.iter().zip(0..).map(|(level, line)| found(Level::ALL[*level], "gcc", line)).collect();
            let selection = select(&all, [0; 3], Limits { of_each_level: each, of_a_job: job });
            prop_assert!(selection.shown.len() <= job);
            for level in Level::ALL {
                prop_assert!(selection.shown.iter().filter(|shown| shown.level == level).count() <= each);
            }
            prop_assert_eq!(selection.totals.iter().sum::<usize>(), levels.len());
        }
    }
}
