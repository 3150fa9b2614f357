//! Packs: folders `recipes/packs/<name>/<version>/` with metadata, typed values, files and manifests.

pub mod model;
pub mod repository;
pub mod version;
