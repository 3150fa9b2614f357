//! Power cuts on the ESP: what the guest's FAT driver and the firmware really wrote, and every state of the disk that
//! a cut can leave of it.
//!
//! [`life`] boots an image and makes each transition of the ESP; [`record`] reads the log that QEMU kept of it
//! ([`crate::blklog`]). A [`trace`] is what remains: the ESP before, the sectors written and the flushes, small enough
//! to be kept with the tests. [`states`] goes through the states of each epoch between two flushes; a [`volume`] is one
//! of them. [`judge`] says for each whether a machine boots from it, reading it with [`fat`] as firmware does and
//! choosing by [`loader`] as systemd-boot does. [`materialise`] makes a disk of a state, to be booted for real.

pub mod fat;
pub mod judge;
pub mod life;
pub mod loader;
pub mod materialise;
pub mod record;
pub mod replay;
pub mod states;
pub mod stored;
pub mod trace;
pub mod volume;
