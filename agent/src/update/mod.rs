//! Updates: release → verified blocks → inactive slot → trial boot → health → commit or roll back.
//!
//! Data flows `carrier` (bytes from a folder or a server) → `staging` (verified blocks that survive power loss) →
//! `decode` (payload to image) → `slot` (inactive slot, up to a `VerifiedSlot`) → `esp` (its entry). `install` has the
//! order; `step` decides, purely: state and event in, state and effects out; `plan`, `entries`, `policy` are its
//! parts. `engine` performs effects on a thread of its own; `view` is what people see; `shelf` is the journal as the other node of a pair
//! reads it.

pub mod adaptive;
pub mod carrier;
pub mod decode;
pub mod engine;
pub mod entries;
pub mod esp;
pub mod fetch;
pub mod health;
pub mod install;
pub mod links;
pub mod machine;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod shelf;
pub mod slot;
pub mod staging;
pub mod state;
pub mod step;
pub mod stick_report;
pub mod view;
pub mod waves;
pub mod written;

#[cfg(test)]
mod rig;
