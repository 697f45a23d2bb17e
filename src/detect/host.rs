//! Everything that can be found out of the host, for `detect`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::container::{self, Container};
use super::control_group::{self, ControlGroups};
use super::landlock::{self, Landlock};
use super::places::{self, Place};
use super::privileges::Privileges;
use super::programs::{self, Program};
use super::seccomp::{self, Seccomp};
use super::tun::{self, Tun};
use super::{Limits, Namespaces, Support, fuse, kvm, namespaces, ptrace};

/// What has to be known beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Where programs are looked for.
    pub path: &'a OsStr,
    /// The environment.
    pub variables: &'a [(OsString, OsString)],
    /// Where temporary files may go.
    pub places: &'a [PathBuf],
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is described where its type is")]
pub struct Host {
    pub namespaces: Namespaces,
    pub privileges: Privileges,
    pub container: Option<Container>,
    pub control_groups: ControlGroups,
    pub limits: Limits,
    pub seccomp: Seccomp,
    /// Children can be traced and their system calls be caught.
    pub ptrace: Support,
    pub landlock: Landlock,
    /// A virtual CPU really runs.
    pub kvm: Support,
    pub tun: Tun,
    /// A file system in user space can be mounted.
    pub fuse: Support,
    pub programs: Vec<Program>,
    pub places: Vec<Place>,
}

impl Host {
    /// Asks every question.
    pub fn probe(known: &Known<'_>) -> Result<Self> {
        let namespaces = namespaces::probe(known.path);
        let container = container::probe(known.variables);
        let around = container.as_ref();
        Ok(Self {
            privileges: Privileges::probe(),
            control_groups: control_group::probe(),
            limits: Limits::probe()?,
            seccomp: seccomp::probe(),
            ptrace: ptrace::probe(around),
            landlock: landlock::probe(),
            kvm: kvm::probe(around),
            tun: tun::probe(&namespaces, around),
            fuse: fuse::probe(&namespaces, around),
            programs: programs::probe(known.path),
            places: known.places.iter().map(|place| places::probe(place)).collect(),
            namespaces,
            container,
        })
    }
}
