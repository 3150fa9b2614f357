//! What tests of real Debian packages share: the rules of the `debian` pack as the demo profile resolves them, and the
//! cache that `make test` has filled before.

#![allow(dead_code, reason = "each test program uses its part of this")]

use formats::arch::Arch;
use image_builder::profile::{Options, resolve};
use image_builder::resolved::Debian;
use image_builder::store::Store;
use std::path::Path;

/// The `debian` pack's rules, suites and components for a processor.
pub fn debian(arch: Arch) -> Debian {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/profiles/edge-minimal.yaml");
    let options = Options { arch: Some(arch), board: Some("vm".into()), ..Options::default() };
    match resolve(&path, &options) {
        Ok(resolution) => resolution.resolved.debian,
        Err(findings) => panic!("{findings:#?}"),
    }
}

/// The cache of this user, or of `FARHOLD_CACHE`: packages are named by digest, so it is safe to share.
pub fn store() -> Store {
    Store::from_environment().unwrap_or_else(|error| panic!("{error:#}"))
}
