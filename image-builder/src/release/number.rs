//! The number under which a release is announced: its own if it is higher than what the repository announces, else the
//! next one, signed anew where the keys are. Two builds of one SOURCE_DATE_EPOCH have one number, and devices refuse the
//! second as a twin.

use super::announce::{Changes, frame};
use super::folder::read_limited;
use super::publish::{Publish, text};
use super::repository::Held;
use anyhow::{Context, Result, bail};
use formats::entry::EntryName;
use formats::frame::{Announcement, MAX_FRAME_BYTES};
use formats::loader;
use formats::manifest::Manifest;
use formats::repository as names;
use formats::roles::Root;
use formats::trust::Rank;
use std::path::Path;

/// A note for the operator, and the announcement to be published.
pub type Renumbered = (String, Vec<u8>);

/// Compares a release with what is announced in its place, and gives it another number if it must have one.
///
/// # Errors
/// If it is older, or has a number that is taken and cannot be signed anew.
pub fn settle(input: &Publish<'_>, held: &mut Held, root: &Root) -> Result<Option<Renumbered>> {
    let repository = input.repository;
    let announced = repository.announced(&names::announcement_of(&held.said))?;
    let was = text(Rank::of(&held.said));
    if let Some(sequence) = input.sequence {
        let Some(keys) = input.keys else {
            bail!("another --sequence must be signed: give the folder of the release keys with --key")
        };
        let changed = renumber(held, sequence, keys)?;
        compare(held, announced.as_ref(), repository.path())?;
        return Ok(Some((format!("announced as {} instead of {was}", text(Rank::of(&held.said))), changed)));
    }
    let Some(there) = announced else { return Ok(None) };
    if there.manifest == held.said.manifest && Rank::of(&held.said) < Rank::of(&there) {
        // It got that number when it was published before.
        let path = repository.file(&names::announcement_of(&there));
        let frame = read_limited(&path, MAX_FRAME_BYTES as u64)?;
        let note = format!("announced as {} already, instead of {was}", text(Rank::of(&there)));
        held.said = there;
        return Ok(Some((note, frame)));
    }
    let taken = Rank::of(&held.said) <= Rank::of(&there) && held.said.manifest != there.manifest;
    let new = !repository.file(&names::release(&held.said.manifest)).exists();
    let follows = follows(&held.manifest, &Held::open(repository.path(), there.clone())?.manifest);
    let keys = input.keys.filter(|keys| {
        keys.signers(&root.release)
            .is_ok_and(|signers| signers.len() >= usize::from(root.release.threshold()))
    });
    match keys {
        Some(keys) if taken && new && follows && there.root_version == root.version => {
            let next = there
                .sequence
                .checked_add(1)
                .context("the highest sequence number is taken: rotate the root")?;
            let frame = renumber(held, next, keys)?;
            let note = format!(
                "announced as {}, since {was} is not higher than what is announced",
                text(Rank::of(&held.said))
            );
            Ok(Some((note, frame)))
        }
        Some(_) | None => compare(held, Some(&there), repository.path()).map(|()| None),
    }
}

/// Whether a release has no lower version than what is announced; the boot loader would never start one that has.
fn follows(this: &Manifest, that: &Manifest) -> bool {
    let [this, that] = [this, that].map(|manifest| EntryName::uncounted(&manifest.version, "00000000"));
    loader::compare(&this, &that).is_le()
}

fn renumber(held: &mut Held, sequence: u32, keys: &super::keys::KeyFolder) -> Result<Vec<u8>> {
    let changes = Changes { sequence: Some(sequence), rescue: held.said.rescue, ..Changes::default() };
    let (said, frame, _) = frame(held, &changes, keys, held.said.signed_s)?;
    held.said = said;
    Ok(frame)
}

/// Whether a release may take the place of what is announced.
fn compare(held: &Held, announced: Option<&Announcement>, repository: &Path) -> Result<()> {
    let Some(announced) = announced else { return Ok(()) };
    let (is, there) = (Rank::of(&held.said), Rank::of(announced));
    let (is_text, there_text) = (text(is), text(there));
    let place = repository.display();
    if is < there {
        bail!(
            "release {is_text} is older than {there_text}, which {place} announces (root version, sequence): devices \
             would refuse it; publish it with a higher --sequence, or build it again"
        );
    }
    if is == there && held.said.manifest != announced.manifest {
        bail!(
            "{place} announces another release as {there_text} (root version, sequence): a number is used once; publish \
             this one with a higher --sequence"
        );
    }
    Ok(())
}
