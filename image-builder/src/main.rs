//! `farhold`: bakes profiles into signed immutable images and releases.

mod lock;
mod resolved;

fn main() {}
