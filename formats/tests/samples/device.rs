//! The device that judges the samples: product edge, board vm, x86_64, channel 0, site north, device dev-1; it trusts
//! root version 1 and has accepted what `accepted` says (root version, sequence, each little-endian; then, if it is
//! there, the manifest's id). Where there is a catalogue, its error is the verdict; the release alone would be good.

use crate::{Files, fixed};
use formats::arch::Arch;
use formats::catalogue::{self, Catalogue, Way};
use formats::hex::Digest;
use formats::manifest::{PayloadKind, Source};
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
    if let Some(bytes) = files.get("catalogue") {
        let id = verified.announcement().manifest;
        let catalogue = Catalogue::open(bytes, &root, &id, &manifest)?;
        said += &format!(", {} payloads in the catalogue; ways", catalogue.payloads.len());
        for position in 0..manifest.targets.len() as u16 {
            let ways = catalogue::ways(&manifest, Some(&catalogue), position, &has);
            let ways: Vec<String> = ways.iter().map(describe).collect();
            said += &format!(" to target {position}: {};", ways.join(", "));
        }
    }
    Ok(said)
}

/// It runs the slot image with this roothash, holds every UKI, and has made the slot image of the release.
fn has(source: &Source) -> bool {
    match source {
        Source::Slot { roothash, .. } => [Digest([0x10; 32]), Digest([0x11; 32])].contains(roothash),
        Source::Object(_) => true,
    }
}

fn describe(way: &Way<'_>) -> String {
    let how = match way.payload.map(|payload| &payload.kind) {
        None => "as it is",
        Some(PayloadKind::Full { .. }) => "full",
        Some(PayloadKind::Delta { .. }) => "delta",
        Some(PayloadKind::Adaptive { .. }) => "adaptive",
    };
    format!("{how} ({} bytes)", way.fetch_bytes)
}
