//! Outside things, one per file; no decisions here.

pub mod beneath;
pub mod disk;
pub mod efi;
pub mod ioctl;
pub mod notify;
pub mod systemd;
pub mod tool;

pub use agent::{clock, durable};
