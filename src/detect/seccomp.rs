//! Seccomp: what is already in force for us, and what we may install for others.

use std::fs;

use serde::Serialize;

use super::Support;
use super::device::{attempt_one, ended};
use crate::sys::probe::{Call, Tried};

/// What there is of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seccomp {
    /// 0 for nothing in force, 1 for strict mode, 2 for filters.
    pub mode: u32,
    /// Filters in force; none where the kernel does not tell.
    pub filters: Option<u32>,
    /// Filters can be installed.
    pub filter: Support,
    /// A filter can have another process decide.
    pub listener: Support,
}

/// Reads what is in force and installs filters in a child.
pub fn probe() -> Seccomp {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let number = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).and_then(|value| value.trim().parse().ok())
    };
    let install = |listen| match attempt_one(&[Call::Filter { listen }]) {
        Tried::Done => Support::Yes,
        tried => Support::no(
            format!("installing a filter: {}", ended(tried)),
            Some("a kernel with CONFIG_SECCOMP_FILTER=y, and nothing above us that denies seccomp"),
        ),
    };
    Seccomp {
        mode: number("Seccomp:").unwrap_or(0),
        filters: number("Seccomp_filters:"),
        filter: install(false),
        listener: install(true),
    }
}
