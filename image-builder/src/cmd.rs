//! Subcommands, one file each: a struct of options with `run`.

pub mod announce;
pub mod broadcast;
pub mod build;
pub mod cache;
pub mod check;
pub mod delta;
pub mod devices;
pub mod flash;
pub mod fleet;
pub mod forecast;
pub mod keys;
pub mod lab;
pub mod lock;
pub mod plan;
pub mod publish;
pub mod push;
pub mod schema;
pub mod serve;
pub mod sign;
pub mod tools;
pub mod usb;
pub mod verify;
