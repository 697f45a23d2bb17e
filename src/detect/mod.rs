//! What the host gives us, found out by asking it.

pub mod container;
pub mod limits;
pub mod namespaces;
pub mod subordinate;
mod support;

pub use limits::Limits;
pub use namespaces::{Namespaces, Privilege};
pub use support::{Denial, Support};
