//! The answer of a probe: yes, or no with the reason and what would change it.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Whether the host lets us do something. As JSON an object: `supported`, and where that is false
/// `reason` and `remedy`, of which the latter may be null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It does: it was tried.
    Yes,
    /// It does not.
    No(Denial),
}

/// Why the host does not let us do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// What was refused and by whom, in words: a system call with its error, a setting, a security
    /// module, a container's profile.
    pub reason: String,
    /// A command or a setting that would change it; nothing where there is none.
    pub remedy: Option<String>,
}

impl Support {
    /// A refusal.
    pub fn no(reason: impl Into<String>, remedy: Option<&str>) -> Self {
        Self::No(Denial { reason: reason.into(), remedy: remedy.map(str::to_owned) })
    }

    /// Whether it is there.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes)
    }

    /// Why it is not there.
    pub fn denial(&self) -> Option<&Denial> {
        match self {
            Self::Yes => None,
            Self::No(denial) => Some(denial),
        }
    }
}

impl Serialize for Support {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Support", 3)?;
        fields.serialize_field("supported", &self.is_yes())?;
        if let Self::No(denial) = self {
            fields.serialize_field("reason", &denial.reason)?;
            fields.serialize_field("remedy", &denial.remedy)?;
        }
        fields.end()
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
    }
}
