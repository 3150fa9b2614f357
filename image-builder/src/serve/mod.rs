//! A web server for a repository: what `farhold serve --http` runs, for a desk, a site or a test. Any web server that
//! answers range requests does as well. Data flows downwards:
//!
//! - [`answer`]: request and file facts ─▶ status, headers, which bytes (pure)
//! - [`pace`]: when the next bytes may go out, if a rate is set (pure)
//! - [`http`]: sockets, files, one answer after the other
//!
//! Only names of `formats::repository` are served, so nothing else that lies in the folder gets out.

pub mod answer;
pub mod http;
pub mod pace;
