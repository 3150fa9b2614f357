//! zstd at the levels that deltas use, and what bytes would cost.

use anyhow::{Result, anyhow};
use zstd::zstd_safe::{CCtx, CParameter, compress_bound, get_error_name};

/// Level of everything that is kept.
pub const LEVEL: i32 = 19;
/// Level of estimates.
pub const ESTIMATE: i32 = 12;

/// One zstd frame of `bytes` that may refer back to `prefix`.
///
/// # Errors
/// If zstd refuses, which means that memory is short.
pub fn pack(bytes: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>> {
    let failed = |code| anyhow!("compress {} bytes: {}", bytes.len(), get_error_name(code));
    let mut context = CCtx::create();
    let window = (bytes.len() + prefix.len()).max(1 << 17).next_power_of_two().ilog2();
    for parameter in [CParameter::CompressionLevel(level), CParameter::WindowLog(window.min(24))] {
        context.set_parameter(parameter).map_err(failed)?;
    }
    context.set_parameter(CParameter::ContentSizeFlag(true)).map_err(failed)?;
    if !prefix.is_empty() {
        context.ref_prefix(prefix).map_err(failed)?;
    }
    let mut out = vec![0u8; compress_bound(bytes.len())];
    let len = context.compress2(&mut out[..], bytes).map_err(failed)?;
    out.truncate(len);
    Ok(out)
}

/// Estimated cost of `bytes` as a stream of their own.
///
/// # Errors
/// As [`pack`].
pub fn cost(bytes: &[u8]) -> Result<u64> {
    let packed = if bytes.is_empty() { 0 } else { pack(bytes, &[], ESTIMATE)?.len() };
    Ok(packed.min(bytes.len()) as u64)
}
