//! What comes out: one line for each measure and peer.

use serde::Serialize;

use crate::measure::Medians;

/// What a line must show.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    /// Ours is at most this.
    AtMost(f64),
    /// Ours is at least this.
    AtLeast(f64),
    /// Ours is at most this many times the peer's.
    TimesPeer(f64),
    /// Ours is at least this many times the peer's.
    AtLeastTimesPeer(f64),
}

/// One measure, ours beside one peer.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    what: &'static str,
    unit: &'static str,
    ours: f64,
    peer: Option<(String, f64)>,
    ratio: Option<f64>,
    bars: Vec<Bar>,
    met: Option<bool>,
}

/// One measure: its name, its unit, what ours must be by itself, and beside whom.
pub struct Measure {
    pub what: &'static str,
    pub unit: &'static str,
    /// What ours must be by itself.
    pub bar: Option<Bar>,
    /// Which peers there are, and what ours must be beside each.
    pub peers: &'static [(&'static str, Option<Bar>)],
}

impl Measure {
    /// The lines for `ours`, the first of which also shows the bar for ours alone.
    pub fn lines(&self, medians: &Medians, ours: &str) -> Vec<Line> {
        let Some(value) = medians.get(ours, self.what) else { return Vec::new() };
        let there: Vec<_> = self
            .peers
            .iter()
            .filter_map(|(name, bar)| Some((*name, medians.get(name, self.what)?, *bar)))
            .collect();
        let mut lines: Vec<Line> = there
            .iter()
            .enumerate()
            .map(|(at, (name, peer, bar))| {
                let own = self.bar.filter(|_| at == 0);
                self.line(value, Some((name, *peer)), own.into_iter().chain(*bar).collect())
            })
            .collect();
        if lines.is_empty() {
            lines.push(self.line(value, None, self.bar.into_iter().collect()));
        }
        lines
    }

    fn line(&self, ours: f64, peer: Option<(&str, f64)>, bars: Vec<Bar>) -> Line {
        let ratio = peer.map(|(_, peer)| ours / peer);
        let holds = |bar: &Bar| match *bar {
            Bar::AtMost(most) => ours <= most,
            Bar::AtLeast(least) => ours >= least,
            Bar::TimesPeer(times) => ratio.is_some_and(|ratio| ratio <= times),
            Bar::AtLeastTimesPeer(times) => ratio.is_some_and(|ratio| ratio >= times),
        };
        Line {
            what: self.what,
            unit: self.unit,
            ours,
            peer: peer.map(|(name, value)| (name.to_owned(), value)),
            ratio,
            met: (!bars.is_empty()).then(|| bars.iter().all(holds)),
            bars,
        }
    }
}

/// How a table looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Aligned,
    Markdown,
}

const HEAD: [&str; 7] = ["what", "ours", "peer", "peer's", "ours / peer", "must", "met"];

/// Prints the table on standard output.
pub fn print(lines: &[Line], style: Style) {
    let rows: Vec<[String; 7]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(lines.iter().map(cells)).collect();
    let widths: Vec<usize> =
        (0..HEAD.len()).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    for (number, row) in rows.iter().enumerate() {
        let padded: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        match style {
            Style::Aligned => println!("{}", padded.join("  ").trim_end()),
            Style::Markdown => println!("| {} |", padded.join(" | ")),
        }
        if number == 0 && style == Style::Markdown {
            let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            println!("| {} |", rule.join(" | "));
        }
    }
}

fn cells(line: &Line) -> [String; 7] {
    let unit = line.unit;
    let (peer, value) = match &line.peer {
        Some((name, value)) => (name.clone(), format!("{} {unit}", short(*value))),
        None => (String::new(), String::new()),
    };
    let bars = line.bars.iter().map(|bar| match bar {
        Bar::AtMost(most) => format!("≤ {most} {unit}"),
        Bar::AtLeast(least) => format!("≥ {least} {unit}"),
        Bar::TimesPeer(times) => format!("≤ {times} × peer"),
        Bar::AtLeastTimesPeer(times) => format!("≥ {times} × peer"),
    });
    [
        line.what.into(),
        format!("{} {unit}", short(line.ours)),
        peer,
        value,
        line.ratio.map_or(String::new(), |ratio| format!("{} ×", short(ratio))),
        bars.collect::<Vec<_>>().join(", "),
        line.met.map_or(String::new(), |met| if met { "yes" } else { "no" }.into()),
    ]
}

/// Three digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
