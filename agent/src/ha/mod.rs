//! Two nodes, one truth: the decisions of the highly available pair, and what carries them out.
//!
//! Data flow, top to bottom:
//! - `register`: what the voters decide: one `Register` per epoch, and which may follow which;
//! - `message`: what parties say to each other;
//! - `acceptor`: one voter's durable vote, and the silence of a voter that may be out of date;
//! - `proposer`: one attempt to have the next epoch decided;
//! - `state`: what a data node is doing, one variant per situation;
//! - `step`, `enter`, `lead`: event in, new state and effects out;
//! - `want`: what the world around a node must look like in its state, turned into ordered effects;
//! - `port`: where the local datastore port may forward;
//! - `resume`: the state after a boot;
//! - `witness`: a voter that holds the register and nothing else.
//!
//! - `act`: the doing: sockets, keys, Postgres; the only part with input and output.
//!
//! The protocol, its rules and the trap that each rule answers are in `docs/ha-protocol.md`.
//! Everything but `act` does not know: clocks, sockets, files, processes, Postgres' own formats, keys.

pub mod acceptor;
pub mod act;
mod enter;
mod lead;
pub mod message;
pub mod port;
pub mod proposer;
pub mod register;
pub mod resume;
pub mod settings;
pub mod state;
mod step;
pub mod want;
pub mod witness;

pub use step::step;

#[cfg(test)]
mod tests;
