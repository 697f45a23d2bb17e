//! What the host gives us, found out by asking it.

pub mod limits;
mod support;

pub use limits::Limits;
pub use support::{Denial, Support};
