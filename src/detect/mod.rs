//! What the host gives us, found out by asking it.

pub mod limits;

pub use limits::Limits;
