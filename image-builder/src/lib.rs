//! The `farhold` command as a library. Data flows downwards:
//!
//! ```text
//! profile + packs ─▶ resolved ─▶ lock (apt, mirror, fetch) ─▶ store
//!                                      rootfs (deb, tree) ◀──┘ ─▶ erofs ─▶ image
//! ```

pub mod apt;
pub mod board;
pub mod cli;
pub mod cmd;
pub mod deb;
pub mod delta;
pub mod erofs;
pub mod execute;
pub mod explain;
pub mod fetch;
pub mod files;
pub mod finding;
pub mod flash;
pub mod fleet;
pub mod image;
pub mod lock;
pub mod mirror;
pub mod pack;
pub mod pin;
pub mod plan;
pub mod profile;
pub mod program;
pub mod progress;
pub mod release;
pub mod resolved;
pub mod rootfs;
pub mod sbom;
pub mod schema;
pub mod serve;
pub mod settings;
pub mod store;
pub mod template;
pub mod tools;
pub mod tree;
pub mod unpack;
pub mod usb;
pub mod yaml;
