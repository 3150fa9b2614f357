//! From pinned packages to the tree of a root file system, without running anything that a package brings.

pub mod units;
pub mod users;
