//! Outside things, one per file; no decisions here.

pub mod clock;
pub mod disk;
pub mod durable;
pub mod efi;
pub mod ioctl;
pub mod notify;
pub mod systemd;
pub mod tool;
