//! Packed streams: zstd frames (RFC 8878) with their lengths, unpacked only within a limit.
//!
//! Knows nothing of what the bytes mean.

use super::wire::{Reader, put_varint};
use super::{Result, malformed};

/// Appends `bytes` as a stream: a varint `length << 1 | packed?`, for packed ones the packed length, then the bytes.
pub fn put_stream(out: &mut Vec<u8>, bytes: &[u8], packed: &[u8]) {
    if packed.len() < bytes.len() {
        put_varint(out, (bytes.len() as u64) << 1 | 1);
        put_varint(out, packed.len() as u64);
        out.extend(packed);
    } else {
        put_varint(out, (bytes.len() as u64) << 1);
        out.extend(bytes);
    }
}

/// Appends the residue of a group, which is coded already: its length and bytes.
pub fn put_residue(out: &mut Vec<u8>, code: &[u8]) {
    put_varint(out, code.len() as u64);
    out.extend(code);
}

/// Reads a stream of at most `max` bytes.
///
/// # Errors
/// When it is damaged or longer.
pub fn get_stream(reader: &mut Reader, what: &'static str, max: u64) -> Result<Vec<u8>> {
    get_stream_after(&[], reader, what, max)
}

/// The same, of one that refers back to `prefix` if it is packed.
///
/// # Errors
/// As for [`get_stream`].
pub fn get_stream_after(prefix: &[u8], reader: &mut Reader, what: &'static str, max: u64) -> Result<Vec<u8>> {
    let head = reader.varint(what, u64::MAX)?;
    let len = head >> 1;
    if len > max {
        return malformed(what, format!("it has {len} bytes, but must have at most {max}"));
    }
    if head & 1 == 0 {
        return Ok(reader.bytes(len)?.to_vec());
    }
    let packed = reader.varint(what, u64::MAX)?;
    unpack(reader.bytes(packed)?, len, prefix, what)
}

/// Unpacks one zstd frame into exactly `len` bytes, which the caller has checked; `prefix` is what it refers back to.
///
/// # Errors
/// When the frame is damaged or has another length.
pub fn unpack(frame: &[u8], len: u64, prefix: &[u8], what: &'static str) -> Result<Vec<u8>> {
    let mut out = vec![0u8; usize::try_from(len).unwrap_or(0)];
    unpack_into(frame, &mut out, prefix, what)?;
    Ok(out)
}

/// The same, into `out`, all of it.
///
/// # Errors
/// As for [`unpack`].
pub fn unpack_into(frame: &[u8], out: &mut [u8], prefix: &[u8], what: &'static str) -> Result<()> {
    let damaged = |code| -> Result<usize> {
        malformed(
            what,
            format!("zstd frame of {} bytes: {}", frame.len(), zstd::zstd_safe::get_error_name(code)),
        )
    };
    let mut context = zstd::zstd_safe::DCtx::create();
    if !prefix.is_empty() {
        context.ref_prefix(prefix).or_else(damaged)?;
    }
    let found = context.decompress(out, frame).or_else(damaged)?;
    if found == out.len() {
        Ok(())
    } else {
        malformed(what, format!("it has {found} bytes, but must have {}", out.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_come_back_and_lengths_are_checked() {
        let bytes = vec![7u8; 5000];
        let packed = zstd::bulk::compress(&bytes, 3).unwrap();
        for stored in [&packed, &bytes] {
            let mut out = Vec::new();
            put_stream(&mut out, &bytes, stored);
            assert_eq!(get_stream(&mut Reader::new("t", &out), "t", 5000).unwrap(), bytes);
            assert!(get_stream(&mut Reader::new("t", &out), "t", 4999).is_err());
            assert!(get_stream(&mut Reader::new("t", &out[..out.len() - 1]), "t", 5000).is_err());
        }
        assert!(unpack(&packed, 4999, &[], "t").is_err());
        assert!(unpack(&packed, 5001, &[], "t").is_err());
    }
}
