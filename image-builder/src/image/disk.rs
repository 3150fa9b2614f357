//! The disk image: GPT with the ESP, two slots and the state partition, written sparse.
//!
//! Labels, types and attributes are `formats::layout`; the table follows UEFI 2.10, chapter 5. Which bytes fill the
//! partitions is the caller's.

use super::sparse::{self, Sparse};
use super::verity::{derive, uuid_text};
use anyhow::{Context, Result, anyhow, bail};
use formats::arch::Arch;
use formats::hex::Digest;
use formats::layout::{self, STATE_TAIL_BYTES, Slot, StateMark};
use formats::verity::{BLOCK, Parameters};
use gpt::partition_types::{OperatingSystem, Type};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

const SECTOR: u64 = 512;
/// Partitions start at whole MiB: flash and RAID stripes are smaller.
const ALIGNMENT: u64 = 1 << 20;
/// Default sizes; slots grow with the image.
const ESP_DEFAULT: u64 = 512 << 20;
const STATE_DEFAULT: u64 = 64 << 20;
/// Slots chosen by the builder are multiples of this, so that a small change of the image does not move partitions.
const SLOT_STEP: u64 = 64 << 20;
/// Share of a partition that may be used before the build warns, and refuses, percent.
const WARN_PERCENT: u64 = 75;
const REFUSE_PERCENT: u64 = 95;

/// What the partitions must hold, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// ESP with all entries that an update needs at a time.
    pub esp: u64,
    /// Slot image.
    pub image: u64,
}

/// Sizes that the profile asks for, MiB; `None` lets the builder choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// ESP.
    pub esp_mib: Option<u64>,
    /// Each root slot.
    pub slot_mib: Option<u64>,
    /// State partition.
    pub state_mib: Option<u64>,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Label.
    pub label: &'static str,
    /// Type.
    pub kind: &'static str,
    /// GPT attributes.
    pub attributes: u64,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Where everything is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In disk order: ESP, root-a, verity-a, root-b, verity-b, state.
    pub partitions: Vec<Partition>,
    /// Length of the disk image in bytes.
    pub bytes: u64,
    /// What is getting tight.
    pub warnings: Vec<String>,
}

impl Layout {
    /// The partition with a label.
    ///
    /// # Errors
    /// If there is none.
    pub fn partition(&self, label: &str) -> Result<&Partition> {
        self.partitions.iter().find(|p| p.label == label).ok_or_else(|| anyhow!("disk layout has no {label}"))
    }
}

/// Chooses sizes and places.
///
/// # Errors
/// If the image or the boot files fill more than 95 % of the space that the profile gives them.
pub fn plan(arch: Arch, asked: Asked, needs: Needs) -> Result<Layout> {
    let mib = |asked: Option<u64>| asked.map(|mib| mib << 20);
    let esp =
        mib(asked.esp_mib).unwrap_or_else(|| ESP_DEFAULT.max((2 * needs.esp).next_multiple_of(SLOT_STEP)));
    let slot = mib(asked.slot_mib).unwrap_or_else(|| (2 * needs.image).next_multiple_of(SLOT_STEP));
    let state = mib(asked.state_mib).unwrap_or(STATE_DEFAULT);
    let mut warnings = Vec::new();
    warnings.extend(room("each slot", "slot_mib", needs.image, slot)?);
    warnings.extend(room("the ESP", "esp_mib", needs.esp, esp)?);
    if state < 2 * STATE_TAIL_BYTES {
        bail!("the state partition has {} MiB, must have 2 or more: raise disk.state_mib", state >> 20);
    }
    let verity = Parameters { data_blocks: slot / BLOCK as u64, salt: [0; 32] }.hash_area_bytes();
    let read_only = layout::ATTRIBUTE_READ_ONLY;
    let mut partitions = Vec::new();
    let mut start = ALIGNMENT;
    let mut add = |label, kind, attributes, bytes: u64| {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        partitions.push(Partition { label, kind, attributes, start, bytes });
        start += bytes;
    };
    add(layout::LABEL_ESP, layout::TYPE_ESP, 0, esp);
    for each in Slot::BOTH {
        add(each.root_label(), layout::type_root(arch), read_only, slot);
        add(each.verity_label(), layout::type_verity(arch), read_only, verity);
    }
    add(layout::LABEL_STATE, layout::TYPE_STATE, 0, state);
    // The backup table takes the last sectors.
    Ok(Layout { partitions, bytes: start + ALIGNMENT, warnings })
}

/// Checks that `need` fits; the answer is a warning when it is getting tight.
fn room(what: &str, key: &str, need: u64, has: u64) -> Result<Option<String>> {
    let percent = (need * 100).div_ceil(has.max(1));
    let say = |rule: &str| {
        format!(
            "{what} has {} MiB, of which {percent} % are needed ({} MiB): {rule}; raise disk.{key} in the profile or \
             make the image smaller",
            has >> 20,
            need.div_ceil(1 << 20)
        )
    };
    if percent > REFUSE_PERCENT {
        bail!("{}", say(&format!("at most {REFUSE_PERCENT} % may be")));
    }
    Ok((percent > WARN_PERCENT).then(|| say("later releases may not fit")))
}

/// Writes partition tables and the state marker to a new, empty file and gives it its length.
///
/// # Errors
/// If the file cannot be written.
pub fn write_tables(file: &mut File, layout: &Layout, identity: Digest) -> Result<()> {
    file.set_len(layout.bytes).context("make room for the disk image")?;
    let sectors = u32::try_from(layout.bytes / SECTOR - 1).unwrap_or(u32::MAX);
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(file)
        .context("write the protective MBR")?;
    let table = |e: gpt::GptError| anyhow!("write the partition table: {e}");
    let disk_guid = guid("disk", identity).parse().context("derive the disk's GUID")?;
    let mut disk = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
        .create_from_device(&mut *file, Some(disk_guid))
        .map_err(table)?;
    let mut entries = BTreeMap::new();
    for (number, partition) in (1u32..).zip(&layout.partitions) {
        let entry = gpt::partition::Partition {
            part_type_guid: Type {
                guid: partition.kind.parse().context("read a partition type")?,
                os: OperatingSystem::None,
            },
            part_guid: guid(partition.label, identity).parse().context("derive a partition's GUID")?,
            first_lba: partition.start / SECTOR,
            last_lba: (partition.start + partition.bytes) / SECTOR - 1,
            flags: partition.attributes,
            name: partition.label.to_owned(),
        };
        entries.insert(number, entry);
    }
    disk.update_partitions(entries).map_err(table)?;
    disk.write().map_err(table)?;
    let state = layout.partition(layout::LABEL_STATE)?;
    file.write_all_at(&StateMark::Empty.encode(), state.start).context("write the state partition's marker")
}

/// Puts a file system made in memory into its partition.
///
/// # Errors
/// If it does not fit or cannot be written.
pub fn write_memory(file: &File, partition: &Partition, contents: &Sparse) -> Result<()> {
    if contents.length() > partition.bytes {
        bail!("{} holds {} bytes, given {}", partition.label, partition.bytes, contents.length());
    }
    sparse::write(contents, file, partition.start).with_context(|| format!("write {}", partition.label))
}

/// Copies `bytes` bytes into a partition.
///
/// # Errors
/// If they do not fit, are not all there, or cannot be written.
pub fn write_stream(
    file: &File,
    partition: &Partition,
    source: &mut impl Read,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    if bytes > partition.bytes {
        bail!("{} holds {} bytes, given {bytes}", partition.label, partition.bytes);
    }
    let done = sparse::copy(&mut source.take(bytes), file, partition.start, progress)
        .with_context(|| format!("write {}", partition.label))?;
    if done != bytes {
        bail!("write {}: source ended after {done} of {bytes} bytes", partition.label);
    }
    Ok(())
}

/// A GUID that follows from what the disk carries.
fn guid(purpose: &str, identity: Digest) -> String {
    let derived = derive(format!("farhold guid v1 {purpose}").as_bytes(), identity);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&derived[..16]);
    uuid_text(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs { esp: 60 << 20, image: 200 << 20 };

    #[test]
    fn slots_are_twice_the_image_and_everything_is_aligned() {
        let layout = plan(Arch::X86_64, Asked::default(), NEEDS).unwrap();
        assert_eq!(layout.partition("farhold-root-a").unwrap().bytes, 448 << 20);
        assert!(layout.warnings.is_empty());
        let mut end = ALIGNMENT;
        for partition in &layout.partitions {
            assert_eq!(partition.start, end);
            assert_eq!(partition.bytes % ALIGNMENT, 0);
            end += partition.bytes;
        }
        assert_eq!(layout.bytes, end + ALIGNMENT);
        let verity = Parameters { data_blocks: (448 << 20) / 4096, salt: [0; 32] }.hash_area_bytes();
        assert!(layout.partition("farhold-verity-b").unwrap().bytes >= verity);
    }

    #[test]
    fn tight_slots_warn_and_full_ones_refuse() {
        let asked = |slot_mib| Asked { slot_mib: Some(slot_mib), ..Asked::default() };
        assert_eq!(
            plan(Arch::Arm64, asked(256), NEEDS).unwrap().warnings,
            ["each slot has 256 MiB, of which 79 % are needed (200 MiB): later releases may not fit; raise \
              disk.slot_mib in the profile or make the image smaller"]
        );
        assert_eq!(
            plan(Arch::Arm64, asked(205), NEEDS).unwrap_err().to_string(),
            "each slot has 205 MiB, of which 98 % are needed (200 MiB): at most 95 % may be; raise disk.slot_mib in \
             the profile or make the image smaller"
        );
        let small_esp = Asked { esp_mib: Some(60), ..Asked::default() };
        assert!(
            plan(Arch::Arm64, small_esp, NEEDS).unwrap_err().to_string().starts_with("the ESP has 60 MiB")
        );
    }

    fn written(identity: Digest) -> (File, Layout) {
        let layout = plan(Arch::X86_64, Asked::default(), NEEDS).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        write_tables(&mut file, &layout, identity).unwrap();
        (file, layout)
    }

    #[test]
    fn tables_read_back_from_both_copies() {
        let (file, layout) = written(Digest([1; 32]));
        let disk = gpt::GptConfig::new().open_from_device(file).unwrap();
        disk.primary_header().unwrap();
        disk.backup_header().unwrap();
        for (found, wanted) in disk.partitions().values().zip(&layout.partitions) {
            assert_eq!(found.name, wanted.label);
            assert_eq!(found.first_lba * SECTOR, wanted.start);
            assert_eq!(found.sectors_len().unwrap() * SECTOR, wanted.bytes);
            assert_eq!(found.flags, wanted.attributes);
            assert_eq!(found.part_type_guid.guid.to_string(), wanted.kind);
        }
    }

    #[test]
    fn guids_follow_from_the_identity_alone() {
        let table = |identity| {
            let (file, _) = written(identity);
            let mut bytes = vec![0; 34 * 512];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(table(Digest([1; 32])) == table(Digest([1; 32])));
        assert!(table(Digest([1; 32])) != table(Digest([2; 32])));
    }

    #[test]
    fn the_state_partition_carries_the_marker() {
        let (file, layout) = written(Digest([1; 32]));
        let mut block = [0; layout::STATE_MARK_BYTES];
        file.read_exact_at(&mut block, layout.partition(layout::LABEL_STATE).unwrap().start).unwrap();
        assert_eq!(StateMark::parse(&block), Some(StateMark::Empty));
    }

    #[test]
    fn a_source_that_ends_early_or_is_too_long_is_an_error() {
        let (file, layout) = written(Digest([1; 32]));
        let root = layout.partition("farhold-root-a").unwrap();
        let error = write_stream(&file, root, &mut [1u8; 10].as_slice(), 20, &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "write farhold-root-a: source ended after 10 of 20 bytes");
        let error = write_stream(&file, root, &mut std::io::empty(), 1 << 40, &mut |_| ()).unwrap_err();
        assert!(error.to_string().starts_with("farhold-root-a holds 469762048 bytes"), "{error}");
    }
}
