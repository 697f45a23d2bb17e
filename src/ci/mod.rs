//! The CI face: what a script's output, its reports and our own events mean to the system that runs us.
//!
//! ```text
//! matcher (what tools print) --+
//! report (what they report)    +--> places --> selection --> provider (the CI's own words), summary,
//! events (how it ended)      --+                             report (for other programs)
//! ```
//!
//! All of it is computed; `commands` reads the environment and writes the words. Nothing here runs
//! unless the job is one of a CI that is known, or the caller asked.

pub mod annotation;
mod clock;
pub mod events;
pub mod matcher;
pub mod places;
pub mod provider;
pub mod report;
pub mod selection;
pub mod summary;
