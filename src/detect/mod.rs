//! What the host gives us, found out by asking it.

pub mod container;
pub mod control_group;
mod device;
pub mod fuse;
pub mod host;
pub mod kvm;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod places;
pub mod privileges;
pub mod programs;
pub mod ptrace;
pub mod seccomp;
pub mod subordinate;
mod support;
pub mod tun;

pub use host::Host;
pub use limits::Limits;
pub use namespaces::{Namespaces, Privilege};
pub use support::{Denial, Support};
