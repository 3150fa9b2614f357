//! A web server and a block server for a repository: what `farhold serve` runs, for a desk, a site or a test. Any web server
//! that answers range requests does as well as ours. Data flows downwards:
//!
//! - [`answer`]: request and file facts ─▶ status, headers, which bytes (pure)
//! - [`pace`]: when the next bytes may go out, if a rate is set (pure)
//! - [`http`]: sockets, files, one answer after the other
//! - [`queue`]: requests over a broker ─▶ whose piece is sent next (pure)
//! - [`broker`]: announcements, pieces and reports over MQTT
//! - [`serial`]: the same files in chunks over a serial line
//! - [`air`]: what is broadcast, in which order (`farhold broadcast`)
//!
//! Only names of `formats::repository` are served, so nothing else that lies in the folder gets out.

pub mod air;
pub mod answer;
pub mod broker;
pub mod http;
pub mod pace;
pub mod queue;
pub mod serial;
