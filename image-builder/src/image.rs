//! From a slot image, a kernel and an init to a disk that boots. Data flows downwards:
//!
//! - [`verity`]: slot image ─▶ hash tree and roothash
//! - [`modules`], [`initrd`]: kernel modules and init ─▶ initial file system
//! - [`pe`], [`uki`]: stub, kernel, initrd and command line ─▶ one PE file
//! - [`esp`]: boot loader and UKI ─▶ FAT32
//! - [`sparse`], [`disk`]: all of it ─▶ GPT disk image

pub mod disk;
pub mod esp;
pub mod initrd;
pub mod modules;
pub mod pe;
pub mod sparse;
pub mod uki;
pub mod verity;
