//! The contract between the image builder and the device agent: every byte both touch.
//!
//! Nothing here does I/O, reads a clock or logs. Data flows top to bottom:
//!
//! - [`arch`], [`layout`]: processors, partitions, labels, the state partition's marker
//! - [`verity`]: the dm-verity hash tree and superblock (kernel `Documentation/admin-guide/device-mapper/verity.rst`)
//! - [`gpt`], [`dm`], [`efi`]: partition tables, device-mapper and UEFI variables, as bytes
//! - [`esp`], [`sparse`]: FAT32 volumes, made in memory
//! - [`bootargs`], [`entry`], [`loader`]: the signed kernel command line, names of boot entries on the ESP, and which of
//!   them systemd-boot starts
//! - [`boot`]: facts that the init and the early stage hand to the agent
//! - [`object`]: bytes named by a hash, verified block by block
//! - [`keys`], [`roles`]: who may sign what, and how that changes
//! - [`frame`], [`manifest`], [`payload`]: what a release says, signed; [`catalogue`]: payloads added later, and the choice
//! - [`blocks`]: the index of a payload from which a device fetches only what it lacks
//! - [`document`]: the rules that all CBOR documents share; [`repository`]: under which names all of it is found
//! - [`trust`]: what a device decides about an announcement
//! - [`delta`]: deltas between images: container, pointer models, decoder (no I/O of its own)
//! - [`link`]: what travels over serial lines, satellite modems and broadcasts
//! - [`device`]: the profile as the device sees it; [`seed`], [`stick`]: what an installer leaves for it, and a stick's layout
//! - [`status`]: what the agent reports; [`report`]: the same in 200 bytes, for carriers
//! - [`tariff`]: how much a carrier may carry, when, and what that costs
//! - [`wave`]: which devices may take a release by now
//! - [`pull`]: how a device asks for pieces of files over a broker; [`mqtt`]: addresses and topics of one

pub mod arch;
pub mod blocks;
pub mod boot;
pub mod bootargs;
pub mod catalogue;
#[cfg(feature = "delta")]
pub mod delta;
pub mod device;
pub mod dm;
pub mod document;
pub mod efi;
pub mod entry;
#[cfg(feature = "fat")]
pub mod esp;
pub mod frame;
pub mod gpt;
pub mod hex;
pub mod keys;
pub mod layout;
#[cfg(feature = "link")]
pub mod link;
pub mod loader;
pub mod manifest;
pub mod mqtt;
pub mod object;
pub mod pairing;
pub mod payload;
pub mod pull;
pub mod report;
pub mod repository;
pub mod roles;
pub mod seed;
pub mod sparse;
pub mod status;
pub mod stick;
pub mod tariff;
pub mod trust;
pub mod verity;
pub mod wave;
