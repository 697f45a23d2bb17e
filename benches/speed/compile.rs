//! A compiler at work: one large file, twice at the same time.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::measure::{self, Bench, Contender, Figures, seconds};
use crate::table::{Bar, Line, Measure};

const WHAT: &str = "gcc -O2, two jobs";

const MEASURE: Measure =
    Measure { what: WHAT, unit: "s", bar: None, peers: &[("native", Some(Bar::TimesPeer(1.6)))] };

const NAMESPACES: Measure = Measure {
    what: "gcc -O2, two jobs, namespaces",
    unit: "s",
    bar: None,
    peers: &[("native", Some(Bar::TimesPeer(1.05)))],
};

/// Functions in the file: some seconds of work.
const FUNCTIONS: usize = 1500;

const JOBS: &str = "gcc -O2 -c -o one.o large.c & one=$!; gcc -O2 -c -o two.o large.c && wait $one";

/// Measures it. The machine's start-up is not part of it.
pub fn run(bench: &Bench<'_>) -> Result<Vec<Line>> {
    let work = bench.sekexe.work();
    fs::write(work.join("large.c"), source())?;
    let sekexe = &bench.sekexe;
    let inside = |isolation: &'static str, what: &'static str| {
        Contender::of(isolation, what, move || {
            let jobs = |exec: &mut Command| {
                exec.args(["--shell=bash", JOBS]);
            };
            Ok(sekexe.timed_in(isolation, jobs)?.0)
        })
    };
    let contenders = vec![
        Contender::new("native", || {
            let took = seconds(|| measure::run(Command::new("bash").args(["-c", JOBS]).current_dir(work)))?;
            Ok(Figures::from([(WHAT, took), (NAMESPACES.what, took)]))
        }),
        inside("uml", WHAT),
        inside("namespaces", NAMESPACES.what),
    ];
    let medians = bench.take_turns("compile", contenders);
    Ok([MEASURE.lines(&medians, "uml"), NAMESPACES.lines(&medians, "namespaces")].concat())
}

/// A file of many functions, no two alike.
fn source() -> String {
    let mut text = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for n in 0..FUNCTIONS {
        let _ = write!(
            text,
            "int f{n}(const char *s, int k)\n{{\n\tint sum = {n}, table[32];\n\n\
             \tfor (int i = 0; i < 32; i++)\n\t\ttable[i] = (i * {m}) ^ k;\n\
             \tfor (; *s; s++) {{\n\t\tswitch (*s % 7) {{\n\t\tcase 0: sum += table[*s & 31]; break;\n\
             \t\tcase 1: sum ^= k << {shift}; break;\n\t\tcase 2: sum -= (int)strlen(s); break;\n\
             \t\tcase 3: sum *= table[k & 31] | 1; break;\n\t\tdefault: sum += {n} ^ *s;\n\t\t}}\n\t}}\n\
             \treturn sum % {m} == 0 ? abs(sum) : printf(\"%d %s\\n\", sum, s);\n}}\n\n",
            m = n * 7 + 3,
            shift = n % 13 + 1,
        );
    }
    text
}
