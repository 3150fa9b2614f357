//! Settings of a profile as files of the image: network, time, proxy, logs. Pure: text in, text out.

pub mod network;
pub mod system;
