//! The device side as a library: pure decision cores, and the thin edges that act for them.
//!
//! Nothing here knows the builder. See `docs/ARCHITECTURE.md` for the map.

pub mod clock;
pub mod durable;
pub mod ha;
pub mod k3s;
pub mod pull;
