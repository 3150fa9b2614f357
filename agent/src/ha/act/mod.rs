//! The doing of the pair: everything outside the decisions, one outside thing per file.
//!
//! Data flow, top to bottom:
//! - `config`: what an operator or the baked image says; `identity`: the node's key and the keys of the others;
//! - `saved`: the durable state and the proof that it is the newest;
//! - `seal`: one datagram, encrypted and authenticated, and what makes it fresh;
//! - `stream`: one encrypted TCP stream; `gate`: what cuts streams at once;
//! - `startup`, `filter`: Postgres' wire protocol, as far as the local port looks into it;
//! - `relay`: bytes from one side to the other while a gate allows it;
//! - `port`: the local datastore port; `tunnel`: what passes between the two nodes;
//! - `settings`: Postgres' files, written from the register; `server`: its process; `session`: what it is asked;
//! - `copy`: export, rewind, full copy;
//! - `node`: the loop of a data node; `control`: what an operator asks it; `witness`: the loop of a witness;
//! - `secrets`: what both nodes must know and nobody else;
//! - `setup`: a first node, a joining node, a site at a witness.
//!
//! Nothing here decides who may acknowledge: effects of `super::step` are carried out, in order.

mod config;
mod control;
mod copy;
mod filter;
mod gate;
mod identity;
mod node;
mod port;
mod relay;
mod saved;
mod seal;
mod secrets;
mod server;
mod session;
mod settings;
mod setup;
mod startup;
mod stream;
mod tunnel;
mod witness;

pub use config::Config;
pub use control::{Ask, ask};
pub use identity::Number;
pub use node::run;
pub use secrets::{Secrets, secrets};
pub use setup::{Party, add_site, first, joining};
pub use witness::{Folders, run as run_witness};
