//! k3s on a node of the pair: `k3s server` against the local datastore port, on both nodes.
//!
//! Data flow, top to bottom:
//! - `settings`: what a node is told;
//! - `step`: the server's life, decided purely; `renew`: when it is restarted for its certificates, purely;
//! - `drain`: which pods leave before a planned reboot, and what holds them, purely;
//! - `files`: the configuration that k3s finds; `certificates`: until when those that it made are valid;
//! - `process`: the process; `api`: the API server of this node or the other;
//! - `run`: the loop that joins them; `leave`: the drain carried out.
//!
//! It runs as root, in a process of its own; the pair's process, which hears the network, does not. It knows of the pair only
//! what `ha status` says, and takes part in none of its decisions.

mod api;
mod certificates;
pub mod drain;
mod files;
mod leave;
mod process;
mod renew;
mod run;
mod settings;
mod step;

pub use leave::{Leaving, leave, stay};
pub use run::{report, run};
pub use settings::{Drain, Settings};
