//! How much longer `exec -- true` takes with a network than without.

use crate::measure::{self, Bench, Contender, seconds};
use crate::table::{Bar, Line, Measure};

const NAMESPACES: Measure = added("namespaces: exec -- true, added by the network");
const GUEST: Measure = added("guest: exec -- true, added by the network");

const fn added(what: &'static str) -> Measure {
    Measure { what, unit: "ms", bar: Some(Bar::AtMost(10.0)), peers: &[] }
}

/// Measures it.
pub fn run(bench: &Bench<'_>) -> Vec<Line> {
    let contender = |isolation: &'static str, measure: &Measure| {
        let takes = move |network: &str| {
            let mut exec = bench.sekexe.exec_in(isolation);
            exec.args(["--network", network, "--", "true"]);
            // What the one before left to the kernel shall not be this one's trouble.
            seconds(|| measure::run(&mut exec))?;
            seconds(|| measure::run(&mut exec))
        };
        Contender::of(isolation, measure.what, move || Ok(1000.0 * (takes("user")? - takes("none")?)))
    };
    let contenders = vec![contender("namespaces", &NAMESPACES), contender("uml", &GUEST)];
    let medians = bench.take_turns("added by the network", contenders);
    [NAMESPACES.lines(&medians, "namespaces"), GUEST.lines(&medians, "uml")].concat()
}
