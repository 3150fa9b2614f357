//! The doing of the pair: everything outside the decisions, one outside thing per file.
//!
//! Data flow, top to bottom:
//! - `config`: what an operator or the baked image says; `identity`: the node's key and the keys of the others;
//! - `saved`: the durable state and the proof that it is the newest; `machine`: whether the disk is where it was;
//! - `seal`: one datagram, encrypted and authenticated, and what makes it fresh;
//! - `stream`: one encrypted TCP stream; `gate`: what cuts streams at once;
//! - `startup`, `filter`: Postgres' wire protocol, as far as the local port looks into it;
//! - `listen`: sockets that others call; `relay`: bytes from one side to the other while a gate allows it;
//! - `port`: the local datastore port; `tunnel`: what passes between the two nodes;
//! - `settings`: Postgres' files, written from the register; `server`: its process; `session`: what it is asked;
//! - `control_file`: what its directory says while it is down;
//! - `timeline`: what its log must have before it recovers or is promoted alone;
//! - `copy`: export, rewind, full copy;
//! - `site`: what the parts of a node share; `node`: its loop; `talk`: what it says and hears; `serial`: over a cable, too, in frames of `slip`;
//! - `control`: what an operator asks it; `record`: who commanded what; `watch`, `status`: what operators are told;
//! - `witness`: the loop of a witness; `address`: a process of its own that keeps an address where the primary is;
//! - `secrets`: what both nodes must know and nobody else;
//! - `setup`: a first node, a joining node, a site at a witness; `enrol`: two nodes that were told one code become a pair.
//!
//! Nothing here decides who may acknowledge: effects of `super::step` are carried out, in order.

mod address;
mod config;
mod control;
mod control_file;
mod copy;
pub mod enrol;
mod filter;
mod gate;
mod identity;
mod listen;
mod machine;
mod node;
mod port;
mod record;
mod relay;
mod saved;
mod seal;
mod secrets;
mod serial;
mod server;
mod session;
mod settings;
mod setup;
mod site;
mod slip;
mod startup;
mod status;
mod stream;
mod talk;
mod timeline;
mod tunnel;
mod watch;
mod witness;

pub use address::follow as follow_address;
pub use config::Config;
pub use control::{Ask, ask};
pub use identity::Number;
pub use node::run;
pub use secrets::{Secrets, secrets};
pub use setup::{Party, add_site, first, joining};
pub use witness::{Folders, run as run_witness};
