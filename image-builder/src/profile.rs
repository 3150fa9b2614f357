//! Profiles: one YAML file that describes a site, resolved against packs and boards into plain values.

pub mod layers;
pub mod model;
pub mod resolve;
pub mod variables;

pub use resolve::{Options, resolve};
