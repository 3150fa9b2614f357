//! Subcommands, one file each: a struct of options with `run`.

pub mod cache;
pub mod check;
pub mod lab;
pub mod schema;
pub mod tools;
