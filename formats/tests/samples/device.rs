//! The device that judges the samples: product edge, board vm, x86_64, channel 0, site north, device dev-1; it trusts
//! root version 1 and has accepted what `accepted` says (root version, sequence, each little-endian; then, if it is
//! there, the manifest's id).

use crate::{Files, fixed};
use formats::arch::Arch;
use formats::hex::Digest;
use formats::roles::Chain;
use formats::trust::{self, Accepted, Device, Rank, TimeWatermark};
use std::error::Error;

const DEVICE: Device<'_> =
    Device { product: "edge", board: "vm", arch: Arch::X86_64, channel: 0, site: Some("north"), id: "dev-1" };

/// `ok: …` or `refused: …` with the whole chain of errors.
pub fn judge(files: &Files) -> String {
    verdict(files).unwrap_or_else(|error| {
        let mut text = format!("refused: {error}");
        let mut source = error.source();
        while let Some(error) = source {
            text += &format!(": {error}");
            source = error.source();
        }
        text
    })
}

fn verdict(files: &Files) -> Result<String, Box<dyn Error>> {
    let root = Chain::parse(&files["roots"])?.follow(&fixed::first_root())?;
    let mut said = format!("ok: root version {}", root.version);
    let Some(announce) = files.get("announce") else { return Ok(said) };
    let verified = trust::authenticate(announce, &root)?;
    let accepted = files.get("accepted").map(|bytes| Accepted {
        rank: Rank {
            root_version: u16::from_le_bytes([bytes[0], bytes[1]]),
            sequence: u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]),
        },
        manifest: bytes[6..].first_chunk().map(|id| Digest(*id)),
    });
    let verdict = trust::judge(&verified, &DEVICE, accepted, TimeWatermark::of_root(&root), None)?;
    said += &format!(", sequence {}, {verdict:?}", verified.announcement().sequence);
    let manifest = trust::open_manifest(&verified, &files["manifest"])?;
    let known = manifest.targets.iter().filter(|target| target.known().is_some()).count();
    said += &format!(
        ", frame of {} and manifest of {} bytes: {} {}, {known} of {} targets, {} of {} payloads, {} fields ignored",
        announce.len(),
        files["manifest"].len(),
        manifest.product,
        manifest.version,
        manifest.targets.len(),
        manifest.payloads.iter().filter(|payload| payload.known().is_some()).count(),
        manifest.payloads.len(),
        manifest.ignored.count(),
    );
    Ok(said)
}
