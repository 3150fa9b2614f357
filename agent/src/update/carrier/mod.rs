//! Carriers: where bytes of a release come from. A source is a folder, or the address of one on a web server.
//!
//! A carrier trusts nothing and decides nothing: it hands on bytes within limits, and says in which of three ways it
//! failed. What the bytes are worth is checked by who asked.

mod folder;
mod http;

use crate::update::step::Fault;
use anyhow::Result;
use std::ops::Range;

/// Why a carrier, or the work with its bytes, failed.
#[derive(Debug)]
pub struct Failure {
    /// Which kind.
    pub fault: Fault,
    /// In words.
    pub why: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(fault: Fault, why: impl Into<String>) -> Self {
        Self { fault, why: why.into() }
    }
    /// A failure of this machine.
    pub fn local(error: &anyhow::Error) -> Self {
        Self::new(Fault::Local, format!("{error:#}"))
    }
}

/// Takes bytes in order.
pub type Sink<'s> = dyn FnMut(&[u8]) -> Result<(), Failure> + 's;

/// Something that bytes come from.
pub trait Carrier {
    /// A whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Failure`]; a longer file is [`Fault::Damaged`].
    fn whole(&mut self, path: &str, limit: u64) -> Result<Vec<u8>, Failure>;

    /// Bytes of a file, handed on as they come; it ends with all of them or with an error.
    ///
    /// # Errors
    /// [`Failure`], and the sink's own.
    fn range(&mut self, path: &str, range: Range<u64>, sink: &mut Sink<'_>) -> Result<(), Failure>;
}

/// Opens a source: `http://…`, `https://…`, or a folder.
///
/// # Errors
/// [`Failure`] for an address of another kind.
pub fn open(source: &str) -> Result<Box<dyn Carrier>, Failure> {
    if source.starts_with("http://") || source.starts_with("https://") {
        return Ok(Box::new(http::Server::open(source)?));
    }
    if source.contains("://") {
        let why = format!("{source} is not a source: it must be a folder, or begin with http:// or https://");
        return Err(Failure::new(Fault::Absent, why));
    }
    Ok(Box::new(folder::Folder::open(source)))
}

#[cfg(test)]
mod tests;
