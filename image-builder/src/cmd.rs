//! Subcommands, one file each: a struct of options with `run`.

pub mod cache;
pub mod lab;
pub mod tools;
