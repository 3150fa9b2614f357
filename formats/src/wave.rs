//! Waves: how large a share of the devices that an announcement is for may take it by now. Layout: `docs/formats.md`,
//! "Waves". A wave is a courtesy, not a right: it is not signed, whoever could forge one could as well withhold the
//! announcement, and an operator on the device is not bound by it.

use crate::hex::Digest;
use sha2::{Digest as _, Sha256};

/// Type 6 (wave), layout version 1.
const WAVE: u8 = 0x61;
/// Bytes of a wave.
pub const WAVE_BYTES: usize = 35;
/// The share that means everybody.
pub const EVERYBODY: u16 = 10_000;

/// A wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wave {
    /// The release that it is about: object id of its manifest.
    pub manifest: Digest,
    /// Share of the devices, in hundredths of a percent; 0 stops the release.
    pub share: u16,
}

impl Wave {
    /// Reads a wave; `None` for everything that is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; WAVE_BYTES] = bytes.try_into().ok()?;
        let share = u16::from_le_bytes([bytes[33], bytes[34]]);
        let manifest = Digest(std::array::from_fn(|n| bytes[n + 1]));
        (bytes[0] == WAVE && share <= EVERYBODY).then_some(Self { manifest, share })
    }

    /// Writes it; [`Wave::parse`] gives it back.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![WAVE];
        out.extend(self.manifest.0);
        out.extend(self.share.min(EVERYBODY).to_le_bytes());
        out
    }

    /// Whether the device with this machine id may take the release: it differs by device and by release, and who is in
    /// stays in as the share grows.
    pub fn reaches(&self, device: &str) -> bool {
        let mut hasher = Sha256::new_with_prefix(b"farhold-wave-v1\0");
        hasher.update(self.manifest.0);
        hasher.update(device.as_bytes());
        let digest = hasher.finalize();
        let place = u32::from_le_bytes(std::array::from_fn(|n| digest[n])) % u32::from(EVERYBODY);
        place < u32::from(self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_grow_and_differ_by_release() {
        let reached = |byte, share| {
            let wave = Wave { manifest: Digest([byte; 32]), share };
            assert_eq!(Wave::parse(&wave.encode()), Some(wave));
            (0..2000).filter(|n| wave.reaches(&format!("device-{n}"))).collect::<Vec<_>>()
        };
        let (few, many) = (reached(1, 1000), reached(1, 5000));
        assert!((120..280).contains(&few.len()) && (850..1150).contains(&many.len()));
        assert!(few.iter().all(|device| many.contains(device)));
        assert_ne!(few, reached(2, 1000));
        assert_eq!((reached(1, 0).len(), reached(1, EVERYBODY).len()), (0, 2000));
        let mut bad = Wave { manifest: Digest([1; 32]), share: 1 }.encode();
        bad[33..].copy_from_slice(&(EVERYBODY + 1).to_le_bytes());
        for bad in [&bad[..], &bad[..34], &[], &[0x61; 36]] {
            assert_eq!(Wave::parse(bad), None);
        }
    }
}
