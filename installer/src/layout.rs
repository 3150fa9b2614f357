//! Where partitions go on a disk, with GUIDs of its own. Pure; randomness is given.

use crate::inspect::{Extent, Parts};
use anyhow::{Context, Result, ensure};
use formats::gpt::{self, Guid, NewPartition, NewTable, SECTOR, TABLE_SECTORS};
use formats::layout::{self, LABEL_ESP, LABEL_STATE, Slot};
use formats::stick::Plan;

/// Partitions begin at whole MiB.
const ALIGN: u64 = 1 << 20;
const SECTOR_BYTES: u64 = SECTOR as u64;
/// Least room for the device's state.
const STATE_LEAST: u64 = 512 << 20;

/// A disk's partitions and the table that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where everything is.
    pub parts: Parts,
    /// The table; `None` where the disk keeps the one it has.
    pub table: Option<NewTable>,
}

/// The least size of a disk, bytes.
pub fn needs(plan: &Plan) -> u64 {
    let fixed = [plan.esp_bytes, 2 * plan.root_bytes, 2 * plan.verity_bytes, STATE_LEAST];
    fixed.iter().map(|bytes| bytes.next_multiple_of(ALIGN)).sum::<u64>() + 2 * ALIGN
}

/// Lays out a whole disk of `bytes` bytes; the state partition takes what is left. `random` gives seven GUIDs.
///
/// # Errors
/// If the disk is too small.
pub fn fresh(plan: &Plan, bytes: u64, mut random: impl FnMut() -> Result<[u8; 16]>) -> Result<Layout> {
    ensure!(bytes >= needs(plan), "the disk has {bytes} bytes, {} are needed", needs(plan));
    let sectors = bytes / SECTOR_BYTES;
    // As the device itself would grow it, so that its first boot has nothing to change.
    let end = (sectors - (TABLE_SECTORS - 1)) * SECTOR_BYTES / ALIGN * ALIGN;
    let mut start = ALIGN;
    let mut extents = Vec::new();
    for bytes in [plan.esp_bytes, plan.root_bytes, plan.verity_bytes, plan.root_bytes, plan.verity_bytes] {
        let bytes = bytes.next_multiple_of(ALIGN);
        extents.push(Extent { start, bytes });
        start += bytes;
    }
    extents.push(Extent { start, bytes: end - start });
    let parts = Parts {
        esp: extents[0],
        root: [extents[1], extents[3]],
        verity: [extents[2], extents[4]],
        state: extents[5],
        state_guid: guid(random()?),
    };
    let (root, verity) = (layout::type_root(plan.arch), layout::type_verity(plan.arch));
    let kinds = [
        (LABEL_ESP, layout::TYPE_ESP, 0),
        (Slot::A.root_label(), root, layout::ATTRIBUTE_READ_ONLY),
        (Slot::A.verity_label(), verity, layout::ATTRIBUTE_READ_ONLY),
        (Slot::B.root_label(), root, layout::ATTRIBUTE_READ_ONLY),
        (Slot::B.verity_label(), verity, layout::ATTRIBUTE_READ_ONLY),
        (LABEL_STATE, layout::TYPE_STATE, 0),
    ];
    let mut partitions = Vec::new();
    for ((label, kind, attributes), extent) in kinds.into_iter().zip(&extents) {
        partitions.push(NewPartition {
            kind: Guid::parse(kind).context("read a partition type")?,
            guid: if label == LABEL_STATE { parts.state_guid } else { guid(random()?) },
            first: extent.start / SECTOR_BYTES,
            last: (extent.start + extent.bytes) / SECTOR_BYTES - 1,
            attributes,
            label: label.to_owned(),
        });
    }
    let table = gpt::make(guid(random()?), sectors, &partitions)?;
    Ok(Layout { parts, table: Some(table) })
}

/// The partitions of a disk that keeps its data, if the release fits into them.
///
/// # Errors
/// If it does not.
pub fn kept(plan: &Plan, parts: &Parts, needs: [(&str, u64, u64); 3]) -> Result<Layout> {
    for (what, needs, has) in needs {
        ensure!(
            needs <= has,
            "the installed {what} partition has {} MiB, version {} needs {}: its data can only be kept on a disk of \
             the same layout; nothing was changed",
            has >> 20,
            plan.version,
            needs.div_ceil(1 << 20)
        );
    }
    Ok(Layout { parts: parts.clone(), table: None })
}

/// A random GUID: version 4, RFC 9562.
fn guid(mut random: [u8; 16]) -> Guid {
    // On disk the third group is little-endian, so its upper byte comes second.
    random[7] = random[7] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    Guid::from_disk(&random)
}
