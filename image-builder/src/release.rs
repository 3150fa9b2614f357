//! From a slot image, a UKI and keys to a signed release folder, and the check of one. Data flows downwards:
//!
//! - [`keys`]: private keys and root documents in a folder
//! - [`make`]: image, UKI, boot files, keys ─▶ `announce`, `roots`, `objects/`
//! - [`folder`]: names in a release folder, and reading it within limits
//! - [`verify`]: a release folder ─▶ what a device would say about it; [`unpack`]: the bytes of its targets
//! - [`announce`]: a release folder ─▶ the same with another announcement
//! - [`publish`]: a release folder ─▶ [`repository`], with deltas from earlier releases; [`prune`]: old ones out of it
//!
//! The formats themselves are in the crate `formats` and `docs/formats.md`.

pub mod adaptive;
pub mod announce;
pub mod folder;
pub mod keys;
pub mod make;
mod number;
pub mod prune;
pub mod publish;
pub mod repository;
pub mod unpack;
pub mod verify;

#[cfg(test)]
mod tests;
