//! A new announcement for a release that exists: for another channel, site or device, fresh after its validity ended, under
//! a newer root document, or as a rescue. The manifest and all objects stay as they are; only the frame and, if need be,
//! the root documents change.

use super::folder::{ANNOUNCE, expect_release};
use super::keys::{KeyFolder, ROOTS, read_chain, replace_file};
use super::repository::Held;
use anyhow::{Context, Result, bail};
use formats::frame::{Announcement, Frame, Scope};
use formats::trust::Rank;
use serde::Serialize;
use std::path::Path;

/// What the new announcement says otherwise; `None` keeps what the old one says.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Sequence number.
    pub sequence: Option<u32>,
    /// Channel.
    pub channel: Option<u8>,
    /// Whom it is for.
    pub scope: Option<Scope>,
    /// Hours until it counts as possibly frozen; 0 for never.
    pub validity_h: Option<u16>,
    /// Whether root keys sign it, so that expiry does not hold it back.
    pub rescue: bool,
}

/// Where an announcement stands.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Root version and sequence, as `1.42`.
    pub rank: String,
    /// Role whose keys must sign: `release` or `root`.
    pub role: &'static str,
    /// Signatures that it has.
    pub signatures: usize,
    /// Signatures that it needs.
    pub threshold: u8,
}

/// Replaces the announcement of the release in `folder` by one with `changes`, signed at `signed_s` (seconds since 1970) by
/// those keys of `keys` that are there. A newer chain of root documents in `keys` replaces the release's.
///
/// # Errors
/// If the folder holds no release, its root documents do not lead to those of `keys`, nothing would be newer than before,
/// or a file cannot be read or written.
pub fn announce(folder: &Path, changes: &Changes, keys: &KeyFolder, signed_s: u32) -> Result<Standing> {
    let held = Held::in_release(folder)?;
    expect_release(folder)?;
    let (_, chain) = read_chain(&folder.join(ROOTS))?;
    let old = chain.verify().context("verify the release's root documents")?;
    let root = keys.chain().follow(old).with_context(|| {
        format!("the keys' root documents do not follow from those of {}", folder.display())
    })?;
    if *keys.root() != root {
        bail!(
            "{} is under root version {}, but the keys' root documents end with another version {}: use the keys that \
             follow",
            folder.display(),
            root.version,
            keys.root().version
        );
    }
    let (said, bytes, signatures) = frame(&held, changes, keys, signed_s)?;
    let same_place = (said.channel, said.scope) == (held.said.channel, held.said.scope);
    let (is, was) = (Rank::of(&said), Rank::of(&held.said));
    if same_place && is <= was && !fresher(&said, &held.said) {
        bail!(
            "{} would be announced as {}.{} again, and devices would see nothing new: give a higher --sequence",
            folder.display(),
            is.root_version,
            is.sequence
        );
    }
    if root.version > old.version {
        replace_file(&folder.join(ROOTS), keys.roots())?;
    }
    replace_file(&folder.join(ANNOUNCE), &bytes)?;
    let rank = format!("{}.{}", is.root_version, is.sequence);
    let (role, keyring) = if said.rescue { ("root", &root.root) } else { ("release", &root.release) };
    Ok(Standing { rank, role, signatures, threshold: keyring.threshold() })
}

/// A release's announcement with `changes`, signed by those keys that are there: what it says, its bytes, and how many
/// signatures it has.
///
/// # Errors
/// If a key cannot be read.
pub fn frame(
    held: &Held,
    changes: &Changes,
    keys: &KeyFolder,
    signed_s: u32,
) -> Result<(Announcement, Vec<u8>, usize)> {
    let root = keys.root();
    let said = Announcement {
        sequence: changes.sequence.unwrap_or(held.said.sequence),
        channel: changes.channel.unwrap_or(held.said.channel),
        scope: changes.scope.unwrap_or(held.said.scope),
        validity_h: changes.validity_h.unwrap_or(held.said.validity_h),
        rescue: changes.rescue,
        root_version: root.version,
        signed_s,
        ..held.said.clone()
    };
    let keyring = if said.rescue { &root.root } else { &root.release };
    let mut frame = Frame::unsigned(said.clone())?;
    let message = frame.unverified().signed_bytes()?;
    let mut signers = keys.signers(keyring)?;
    signers.truncate(keyring.threshold().into());
    for signer in &signers {
        frame.sign(signer.number, signer.key.sign(&message))?;
    }
    Ok((said, frame.encode()?, signers.len()))
}

/// Whether a device that held the release back as possibly frozen would now take it.
fn fresher(new: &Announcement, old: &Announcement) -> bool {
    let end = |said: &Announcement| match (said.rescue, said.validity_h) {
        (true, _) | (false, 0) => u64::from(u32::MAX) + u64::from(u16::MAX) * 3600,
        (false, hours) => u64::from(said.signed_s) + u64::from(hours) * 3600,
    };
    Rank::of(new) == Rank::of(old) && end(new) > end(old)
}
