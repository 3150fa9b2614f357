//! From a slot image, a kernel and an init to a disk that boots. Data flows downwards:
//!
//! - [`verity`]: slot image ─▶ hash tree and roothash
//! - [`initrd`]: init and kernel modules ─▶ initial file system
//! - [`pe`], [`uki`]: stub, kernel, initrd and command line ─▶ one PE file
//! - [`secureboot`]: signatures on EFI programs
//! - [`formats::esp`]: boot loader and UKI ─▶ FAT32
//! - [`sparse`], [`disk`]: all of it ─▶ GPT disk image

pub mod disk;
pub mod initrd;
pub mod pe;
pub mod secureboot;
pub mod sparse;
pub mod uki;
pub mod verity;
