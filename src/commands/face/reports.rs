//! Reports: those that the command's tools wrote are read, those that were asked for are written.
//!
//! What the command wrote is not trusted: a report is a file of the repository, not a link elsewhere,
//! of a size that can be read, and written by this run.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::Ending;
use crate::ci::annotation::Annotation;
use crate::ci::matcher::Found;
use crate::ci::places::Places;
use crate::ci::report::{self, code_quality, junit, sarif, warnings};
use crate::cli::ci::CiArgs;
use crate::report::{expect_writable, write_file, write_text};

/// Largest report that is read, in bytes.
const LARGEST: u64 = 64 << 20;
/// How exact the times of files are, at worst.
const CLOCK: Duration = Duration::from_secs(2);

/// The reports that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    patterns: Vec<String>,
    sarif: Option<PathBuf>,
    junit: Option<PathBuf>,
    code_quality: Option<PathBuf>,
    warnings: Option<PathBuf>,
}

impl Reports {
    /// Checks what can be checked before the command has run for hours.
    pub fn new(args: &CiArgs) -> Result<Self> {
        check(&args.find.report)?;
        let reports = Self {
            patterns: args.find.report.clone(),
            sarif: args.report_sarif.clone(),
            junit: args.report_junit.clone(),
            code_quality: args.report_codequality.clone(),
            warnings: args.report_warnings.clone(),
        };
        for (option, path) in reports.outputs() {
            path.map_or(Ok(()), |path| expect_writable(option, path))?;
        }
        Ok(reports)
    }

    /// Whether findings shall be written down, so that somebody must look for them.
    pub fn are_written(&self) -> bool {
        self.outputs().iter().any(|(_, path)| path.is_some())
    }

    /// Whether anything was asked for.
    pub fn are_wanted(&self) -> bool {
        self.are_written() || !self.patterns.is_empty()
    }

    fn outputs(&self) -> [(&'static str, Option<&Path>); 4] {
        [
            ("--report-sarif", self.sarif.as_deref()),
            ("--report-junit", self.junit.as_deref()),
            ("--report-codequality", self.code_quality.as_deref()),
            ("--report-warnings", self.warnings.as_deref()),
        ]
    }

    /// What the command's reports say. What cannot be used is told in `complaints`.
    pub fn read(&self, places: &Places, began: SystemTime, complaints: &mut Vec<String>) -> Vec<Found> {
        read(&self.patterns, places, Some(began), complaints)
    }

    /// Writes those that were asked for.
    pub fn write(&self, annotations: &[Annotation], ending: &Ending, title: &str) -> Result<()> {
        if let Some(path) = &self.sarif {
            write_file(path, &sarif::write(annotations)?)?;
        }
        if let Some(path) = &self.junit {
            let failed = ending.failed.then(|| ending.line.as_deref().unwrap_or("the command failed"));
            write_text(path, junit::write(title, failed, ending.command_time, annotations)?.as_bytes())?;
        }
        if let Some(path) = &self.code_quality {
            write_file(path, &code_quality::write(annotations))?;
        }
        if let Some(path) = &self.warnings {
            write_file(path, &warnings::write(annotations))?;
        }
        Ok(())
    }
}

/// Refuses what is no pattern.
pub fn check(patterns: &[String]) -> Result<()> {
    patterns.iter().try_for_each(|pattern| {
        let context = || format!("--report {pattern}: it is no pattern; use * and ?");
        glob::Pattern::new(pattern).map(drop).with_context(context)
    })
}

/// What the reports say that these patterns name; `began` is when those began to be written that count.
pub fn read(
    patterns: &[String],
    places: &Places,
    began: Option<SystemTime>,
    complaints: &mut Vec<String>,
) -> Vec<Found> {
    let mut all = Vec::new();
    for pattern in patterns {
        let paths: Vec<PathBuf> = glob::glob(pattern).into_iter().flatten().flatten().collect();
        if paths.is_empty() {
            complaints.push(match began {
                Some(_) => format!("--report {pattern}: the command wrote no such file"),
                None => format!("--report {pattern}: there is no such file"),
            });
        }
        for path in paths {
            match read_one(&path, places, began) {
                Ok(found) => all.extend(found),
                Err(error) => complaints.push(format!("--report {}: {error:#}", path.display())),
            }
        }
    }
    all
}

fn read_one(path: &Path, places: &Places, began: Option<SystemTime>) -> Result<Vec<Found>> {
    let name = path.to_str().context("its name is no text")?;
    let real = places.find(name, None).context("it is no file of the repository")?;
    let file = File::open(real).context("open it")?;
    let metadata = file.metadata().context("read it")?;
    if began.is_some_and(|began| metadata.modified().is_ok_and(|modified| modified + CLOCK < began)) {
        bail!("it is older than this run");
    }
    if metadata.len() > LARGEST {
        bail!("it is larger than {} MiB", LARGEST >> 20);
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).context("read it")?;
    report::read(&String::from_utf8_lossy(&bytes))
}
