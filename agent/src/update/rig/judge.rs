//! Judges a state of the medium as firmware, systemd-boot and init would meet it.

use super::medium::Place;
use super::release::Built;
use super::world::World;
use formats::entry::EntryName;
use formats::layout::Slot;
use formats::loader;
use formats::verity::{BLOCK, Builder, Parameters};

/// The slot that the init opens for a release, by superblock and topmost hash block alone, and whether all of it is whole.
pub fn slot_of(world: &World<'_>, release: &Built) -> Option<(Slot, bool)> {
    Slot::BOTH.into_iter().find_map(|slot| {
        let verity = world.medium.bytes(Place::Verity(slot));
        let found = Parameters::parse(&verity[..BLOCK]).ok()?;
        let opens = found == release.parameters && found.opens(release.roothash, &verity[BLOCK..2 * BLOCK]);
        opens.then(|| {
            let root = world.medium.bytes(Place::Root(slot));
            let mut builder = Builder::new(found);
            builder.push(&root[..found.data_blocks as usize * BLOCK]);
            let tree = builder.finish();
            let whole = tree.roothash == release.roothash
                && verity[BLOCK..BLOCK + tree.blocks.len()] == tree.blocks[..];
            (slot, whole)
        })
    })
}

/// Whether the machine starts a whole system, now and after a trial's tries are spent, and no entry opens anything else.
///
/// # Errors
/// What would happen instead.
pub fn judge(world: &World<'_>) -> Result<(), String> {
    let entries = world.medium.entries();
    let parsed: Vec<EntryName> = entries.keys().filter_map(|name| EntryName::parse(name)).collect();
    let first = loader::first(&parsed).ok_or("unbootable: no entry")?;
    let way_back = loader::first(parsed.iter().filter(|entry| entry.tries.is_none()));
    let way_back = way_back.ok_or("unbootable: no entry is left once tries are spent")?;
    for entry in [first, way_back] {
        let name = entry.file_name();
        let release = world.release_of(&entries[&name]).ok_or(format!("unbootable: {name} is torn"))?;
        if slot_of(world, release).is_none() {
            return Err(format!("unbootable: {name} opens no slot"));
        }
    }
    for (name, bytes) in &entries {
        let Some(release) = world.release_of(bytes) else {
            return Err(format!("unverified: {name} is an entry, but no release's UKI"));
        };
        if slot_of(world, release).is_some_and(|(_, whole)| !whole) {
            return Err(format!("unverified: {name} opens a slot that is not whole"));
        }
    }
    Ok(())
}
