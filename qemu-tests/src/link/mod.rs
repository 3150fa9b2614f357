//! A bad link in user space: what one end sends reaches the other late, slowly, damaged, twice, in another order or
//! never, as a seed says. For tests, and for `farhold lab link`. Data flows downwards:
//!
//! - [`words`]: `64kbit`, `600ms`, `5%`, `60s/10min` as numbers
//! - [`shape`]: what a link does to what it carries
//! - [`pipe`]: one direction of it: when which bytes come out (pure, the caller tells the time)
//! - [`ends`]: TAP devices, UDP and TCP sockets, pseudo-terminals
//! - [`framed`]: packets in a stream, as QEMU hands them out
//! - [`run`]: two ends joined by two pipes
//! - [`uplink`]: the network of a running machine, led through a link
//! - [`modem`]: a satellite modem and its gateway
//! - [`parcel`]: an object to carry, served and fetched by the programs under test
//! - [`namespaces`]: two network namespaces with such a link between them

pub mod ends;
pub mod framed;
pub mod modem;
pub mod namespaces;
pub mod parcel;
pub mod pipe;
pub mod run;
pub mod shape;
mod tap;
pub mod uplink;
pub mod words;
