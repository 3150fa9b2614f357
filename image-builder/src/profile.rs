//! Profiles: one YAML file that describes a site, resolved against packs and boards into plain values.
//!
//! Data flows: `model` (the file as types) → `basics` (the file by itself) → `variables` → `layers` (packs against each
//! other) → `collect` (what an image is made of); `resolve` runs them and gathers the findings.

mod basics;
mod collect;
pub mod folders;
pub mod layers;
pub mod model;
pub mod resolve;
pub mod variables;

pub use resolve::{Options, resolve};
