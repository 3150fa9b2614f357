//! Links that come and go: what travels over a serial line, a satellite modem, a broadcast. Layouts:
//! `docs/links.md`. Everything is sans-I/O: bytes and times in, bytes out.
//!
//! - [`name`]: names of a repository in few bytes; [`message`]: requests and answers
//! - [`line`]: messages on a line that loses, adds and changes bytes
//! - [`pull`]: who fetches, chunk by missing chunk; [`answer`]: who has the files
//! - [`at`]: what a satellite modem says
//! - [`cast`]: symbols that anybody can take in at any time, each verified by itself

pub mod answer;
pub mod at;
pub mod cast;
pub mod line;
pub mod message;
pub mod name;
pub mod pull;

/// Reads a LEB128 number of at most `max`, in its shortest form.
pub(crate) fn varint(rest: &mut &[u8], max: u64) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let shortest = shift == 0 || *byte != 0;
            return Some(value).filter(|value| shortest && *value <= max);
        }
    }
    None
}

/// Appends a LEB128 number.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The first `N` bytes; what follows stays.
pub(crate) fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}
