//! FAT32 volumes, made in memory: the EFI system partition with systemd-boot, its settings and the factory entry; the
//! partitions of a stick.
//!
//! Follows Microsoft's "FAT: General Overview of On-Disk Format" 1.03 and the UEFI specification 2.10, 13.3; the
//! entry's name is `formats::entry`. Knows nothing of partitions but where this one starts.

use crate::arch::Arch;
use crate::entry;
use crate::sparse::Sparse;
use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use std::collections::BTreeSet;
use std::io::Write;

const SECTOR: u64 = 512;
/// Smallest FAT32 with 512-byte clusters: 65 525 of them, plus tables.
pub const MIN_BYTES: u64 = 36 << 20;
/// FAT32 has 65 525 clusters or more; this many leave room for its tables.
const MIN_CLUSTERS: u64 = 66_600;
const MAX_CLUSTER: u64 = 4096;
/// Bytes of an entry of a folder.
const ENTRY: usize = 32;
/// Label of the ESP of installed disks.
pub const LABEL: &[u8; 11] = b"FARHOLD-ESP";
/// Boot sector: sectors before the volume.
const HIDDEN_SECTORS: u64 = 0x1c;
/// Boot sector: sectors before the first table.
const RESERVED_SECTORS: u64 = 0x0e;
/// Boot sector: sectors per table.
const SECTORS_PER_FAT: u64 = 0x24;
/// Boot sector: sectors per cluster.
const SECTORS_PER_CLUSTER: u64 = 0x0d;
/// Sector of the copy of boot sector and FSInfo.
const BACKUP_SECTOR: u64 = 6;
/// First byte of an entry that is free, with others after it.
const DELETED: u8 = 0xe5;
const FOLDER_ATTRIBUTE: u8 = 0x10;
const LONG_NAME_ATTRIBUTE: u8 = 0x0f;
const ROOT_CLUSTER: u64 = 2;

/// Why a volume was not made.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// Fewer bytes than FAT32 needs.
    #[error("a volume of {} MiB is too small for FAT32, must be {} MiB or more", .0 >> 20, MIN_BYTES >> 20)]
    TooSmall(u64),
    /// A step failed, mostly for lack of room.
    #[error("{0}")]
    Step(String, #[source] std::io::Error),
    /// The library wrote what this code does not expect.
    #[error("a folder of the new volume does not start with `.` and `..`")]
    Folder,
    /// It would begin beyond 2 TiB.
    #[error("the volume lies beyond 2 TiB")]
    Place,
}

type Result<T> = std::result::Result<T, FatError>;

fn step(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> FatError {
    let what = what.into();
    move |source| FatError::Step(what, source)
}

/// What stands on the ESP.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Processor, which decides file names.
    pub arch: Arch,
    /// systemd-boot, signed if Secure Boot keys were given.
    pub boot_loader: &'a [u8],
    /// Factory UKI, signed if Secure Boot keys were given.
    pub uki: &'a [u8],
    /// File name of the factory UKI in `EFI/Linux`.
    pub entry: &'a str,
    /// Recovery system: file name in `EFI/Linux` and bytes.
    pub recovery: Option<(&'a str, &'a [u8])>,
    /// Seconds that the menu is shown.
    pub menu_s: u32,
}

/// A file of a volume: path with `/`, contents.
pub type FatFile<'a> = (String, &'a [u8]);

/// A volume that was made.
#[derive(Debug)]
pub struct Made {
    /// Its bytes.
    pub medium: Sparse,
    /// Bytes from the start up to which anything stands. Beyond, clusters are free and their bytes mean nothing.
    pub used: u64,
}

/// Where and how large the partition is.
#[derive(Clone, Copy, Debug)]
pub struct Volume {
    /// Length in bytes.
    pub bytes: u64,
    /// First sector on the disk.
    pub first_lba: u64,
    /// Volume serial number.
    pub id: u32,
    /// Label as file managers show it, padded with blanks.
    pub label: [u8; 11],
}

/// Bytes that an ESP must have for this UKI: two entries, one being written, the recovery entry, and the loaders.
pub fn need(uki_bytes: u64, boot_loader_bytes: u64) -> u64 {
    4 * uki_bytes + 2 * boot_loader_bytes + (1 << 20)
}

/// Where systemd-boot stands: the path that firmware tries by itself, and the path that boot entries name.
pub fn boot_loader_paths(arch: Arch) -> [String; 2] {
    let suffix = arch.efi();
    [format!("EFI/BOOT/BOOT{}.EFI", suffix.to_uppercase()), format!("EFI/systemd/systemd-boot{suffix}.efi")]
}

/// The files of an ESP.
pub fn files<'a>(contents: &Contents<'a>, settings: &'a str) -> Vec<FatFile<'a>> {
    let [fallback, named] = boot_loader_paths(contents.arch);
    let entry = |name: &str| format!("{}/{name}", entry::FOLDER);
    let mut files = vec![
        (fallback, contents.boot_loader),
        (named, contents.boot_loader),
        ("loader/loader.conf".to_owned(), settings.as_bytes()),
        (entry(contents.entry), contents.uki),
    ];
    files.extend(contents.recovery.map(|(name, bytes)| (entry(name), bytes)));
    files
}

/// Makes the file system of an ESP.
///
/// # Errors
/// As [`make_volume`].
pub fn make(contents: &Contents, volume: &Volume) -> Result<Made> {
    let settings = loader_conf(contents.menu_s);
    make_volume(&files(contents, &settings), volume)
}

/// Makes a file system with these files, and the folders they need.
///
/// # Errors
/// If the partition is too small for FAT32 or for the files.
pub fn make_volume(files: &[FatFile<'_>], volume: &Volume) -> Result<Made> {
    if volume.bytes < MIN_BYTES {
        return Err(FatError::TooSmall(volume.bytes));
    }
    let mut medium = Sparse::new(volume.bytes);
    let mut cluster = MAX_CLUSTER;
    while cluster > SECTOR && volume.bytes / cluster < MIN_CLUSTERS {
        cluster /= 2;
    }
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(cluster as u32)
        .volume_id(volume.id)
        .volume_label(volume.label);
    fatfs::format_volume(&mut medium, options).map_err(step("make the file system"))?;
    std::io::Seek::rewind(&mut medium).map_err(step("make the file system"))?;
    let free = fill(&mut medium, files)?;
    let clusters = cluster_count(&medium, volume.bytes);
    let used = cluster_start(&medium, ROOT_CLUSTER + clusters.saturating_sub(free));
    let cluster = cluster as usize;
    for folder in subfolders(&medium, ROOT_CLUSTER, cluster) {
        tidy(&mut medium, folder, 0, cluster)?;
    }
    complete_boot_sectors(&mut medium, volume.first_lba)?;
    std::io::Seek::rewind(&mut medium).map_err(step("finish the volume"))?;
    Ok(Made { medium, used })
}

/// Writes folders and files; gives the number of free clusters.
fn fill(medium: &mut Sparse, files: &[FatFile<'_>]) -> Result<u64> {
    let options = FsOptions::new().time_provider(&FIXED_TIME).update_accessed_date(false);
    let fs = FileSystem::new(medium, options).map_err(step("open the new volume"))?;
    let mut folders = BTreeSet::new();
    for (path, _) in files {
        folders.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    for folder in folders {
        fs.root_dir().create_dir(folder).map_err(step(format!("make {folder} on the volume")))?;
    }
    for (path, data) in files {
        let mut file = fs.root_dir().create_file(path).map_err(step(format!("make {path} on the volume")))?;
        let failed = format!("write {path} ({} KiB) on the volume", data.len() >> 10);
        file.write_all(data).and_then(|()| file.flush()).map_err(step(failed))?;
    }
    // Counting makes the library write the number of free clusters, which firmware may trust.
    let stats = fs.stats().map_err(step("count free clusters of the volume"))?;
    let free = u64::from(stats.free_clusters());
    fs.unmount().map_err(step("finish the volume"))?;
    Ok(free)
}

/// Settings of systemd-boot (`loader.conf(5)`). Without a seed file it writes nothing to the ESP.
pub fn loader_conf(menu_s: u32) -> String {
    format!("timeout {menu_s}\neditor no\nauto-entries no\nauto-firmware no\n")
}

/// FAT has local time and no zone; builds have no time at all.
#[derive(Debug)]
struct FixedTime;

static FIXED_TIME: FixedTime = FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }
    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

fn number(medium: &Sparse, at: u64, bytes: usize) -> u64 {
    let mut value = [0; 8];
    medium.read_at(at, &mut value[..bytes]);
    u64::from_le_bytes(value)
}

/// Byte at which a cluster stands; two tables come before the first, which has number 2.
fn cluster_start(medium: &Sparse, cluster: u64) -> u64 {
    let first = number(medium, RESERVED_SECTORS, 2) + 2 * number(medium, SECTORS_PER_FAT, 4);
    first * SECTOR + (cluster - ROOT_CLUSTER) * number(medium, SECTORS_PER_CLUSTER, 1) * SECTOR
}

/// Number of clusters of a volume of `bytes` bytes.
fn cluster_count(medium: &Sparse, bytes: u64) -> u64 {
    bytes.saturating_sub(cluster_start(medium, ROOT_CLUSTER))
        / (number(medium, SECTORS_PER_CLUSTER, 1) * SECTOR).max(1)
}

/// First clusters of the folders in a folder, which has one cluster: nothing here has more than a dozen entries.
fn subfolders(medium: &Sparse, folder: u64, cluster: usize) -> Vec<u64> {
    let start = cluster_start(medium, folder);
    (0..cluster as u64 / ENTRY as u64)
        .map(|n| start + n * ENTRY as u64)
        .filter(|at| number(medium, at + 11, 1) == u64::from(FOLDER_ATTRIBUTE))
        .filter(|at| number(medium, *at, 1) != u64::from(b'.'))
        .map(|at| number(medium, at + 20, 2) << 16 | number(medium, at + 26, 2))
        .collect()
}

/// Puts right what the library does to `.` and `..` of each folder: they must be its first two entries, without
/// long names, and `..` must name cluster 0 where the parent is the root. Firmware and `fsck` insist on it.
fn tidy(medium: &mut Sparse, folder: u64, parent: u64, cluster: usize) -> Result<()> {
    let start = cluster_start(medium, folder);
    let mut old = vec![0; cluster];
    medium.read_at(start, &mut old);
    let entries: Vec<&[u8]> = old.chunks_exact(ENTRY).collect();
    let (names, dots): (Vec<&[u8]>, Vec<&[u8]>) =
        entries.iter().take(4).partition(|entry| entry[11] == LONG_NAME_ATTRIBUTE);
    let mut new = dots.concat();
    // A folder that goes on in another cluster must keep its entries where they are, and not end here.
    if old[cluster - ENTRY] != 0 {
        for _ in names {
            new.push(DELETED);
            new.resize(new.len().next_multiple_of(ENTRY), 0);
        }
    }
    new.extend(entries.iter().skip(4).flat_map(|entry| entry.iter()));
    new.resize(cluster, 0);
    if !new.starts_with(b".          ") || !new[ENTRY..].starts_with(b"..         ") {
        return Err(FatError::Folder);
    }
    let parent_bytes = (parent as u32).to_le_bytes();
    new[ENTRY + 20..ENTRY + 22].copy_from_slice(&parent_bytes[2..]);
    new[ENTRY + 26..ENTRY + 28].copy_from_slice(&parent_bytes[..2]);
    medium.write_at(start, &new).map_err(step("complete folders of the volume"))?;
    for below in subfolders(medium, folder, cluster) {
        tidy(medium, below, folder, cluster)?;
    }
    Ok(())
}

/// Writes where the partition starts, and keeps a whole copy of the boot sector and its FSInfo.
fn complete_boot_sectors(medium: &mut Sparse, first_lba: u64) -> Result<()> {
    let hidden = u32::try_from(first_lba).map_err(|_beyond| FatError::Place)?;
    let mut sectors = [0; 2 * SECTOR as usize];
    medium.write_at(HIDDEN_SECTORS, &hidden.to_le_bytes()).map_err(step("complete the boot sector"))?;
    medium.read_at(0, &mut sectors);
    medium.write_at(BACKUP_SECTOR * SECTOR, &sectors).map_err(step("copy the boot sector"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn contents<'a>(uki: &'a [u8]) -> Contents<'a> {
        Contents {
            arch: Arch::X86_64,
            boot_loader: b"loader",
            uki,
            entry: "1.0.0_0123abcd.efi",
            recovery: None,
            menu_s: 0,
        }
    }

    fn volume(mib: u64) -> Volume {
        Volume { bytes: mib << 20, first_lba: 2048, id: 0x0123_4567, label: *LABEL }
    }

    #[test]
    fn files_read_back() {
        let uki = vec![3u8; 5 << 20];
        let medium = make(&contents(&uki), &volume(64)).unwrap().medium;
        let fs = FileSystem::new(medium, FsOptions::new()).unwrap();
        let mut read = Vec::new();
        fs.root_dir().open_file("EFI/Linux/1.0.0_0123abcd.efi").unwrap().read_to_end(&mut read).unwrap();
        assert!(read == uki);
        let mut conf = String::new();
        fs.root_dir().open_file("loader/loader.conf").unwrap().read_to_string(&mut conf).unwrap();
        assert_eq!(conf, "timeout 0\neditor no\nauto-entries no\nauto-firmware no\n");
        assert!(fs.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").is_ok());
        assert!(fs.root_dir().open_file("EFI/systemd/systemd-bootx64.efi").is_ok());
        assert_eq!(fs.volume_id(), 0x0123_4567);
    }

    #[test]
    fn a_folder_of_many_clusters_reads_back() {
        let names: Vec<String> = (0..60).map(|n| format!("release/objects/{n:064}.lists")).collect();
        let files: Vec<FatFile<'_>> = names.iter().map(|name| (name.clone(), name.as_bytes())).collect();
        let medium = make_volume(&files, &volume(64)).unwrap().medium;
        let fs = FileSystem::new(medium, FsOptions::new()).unwrap();
        for name in &names {
            let mut text = String::new();
            fs.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(&text, name);
        }
        assert_eq!(fs.root_dir().open_dir("release/objects").unwrap().iter().count(), 62);
    }

    #[test]
    fn same_contents_same_bytes() {
        let dump = || {
            let medium = make(&contents(b"uki"), &volume(300)).unwrap().medium;
            let mut bytes = vec![0; medium.length() as usize];
            medium.read_at(0, &mut bytes);
            bytes
        };
        assert!(dump() == dump());
    }

    #[test]
    fn too_large_and_too_small_say_so() {
        let uki = vec![1u8; 40 << 20];
        let error = make(&contents(&uki), &volume(40)).unwrap_err().to_string();
        assert_eq!(error, "write EFI/Linux/1.0.0_0123abcd.efi (40960 KiB) on the volume");
        let error = make(&contents(b""), &volume(32)).unwrap_err().to_string();
        assert_eq!(error, "a volume of 32 MiB is too small for FAT32, must be 36 MiB or more");
    }
}
