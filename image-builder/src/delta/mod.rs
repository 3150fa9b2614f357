//! Making and applying deltas between two images or files. Data flows downwards:
//!
//! ```text
//! source ─▶ plan (matching, unpack, uki) ─▶ values ─▶ choose (align, label, golang, pack) ─▶ emit (history) ─▶ make ─▶ container
//!                                    formats::delta: models, decoder ─────────▶ apply
//! ```
//!
//! The format is described in `docs/delta.md`; deciding what a release offers is not done here.

mod align;
mod choose;
mod emit;
mod golang;
mod history;
mod label;
mod make;
mod matching;
mod pack;
mod parallel;
mod plan;
pub mod source;
mod uki;
mod unpack;
mod values;

#[cfg(test)]
mod tests;

pub use make::{Made, make};
