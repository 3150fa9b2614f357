//! Which disks this machine itself uses: mounted, swapped to, or part of something that is. Reads `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// By kernel name of the whole disk: what uses it.
pub fn disks() -> BTreeMap<String, String> {
    let mut uses = BTreeMap::new();
    let mut note = |device: &Path, what: String| {
        for disk in below(device, 0) {
            uses.entry(disk).or_insert_with(|| what.clone());
        }
    };
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let [_, _, numbers, _, place, ..] = words.as_slice() {
            note(&Path::new("/sys/dev/block").join(numbers), format!("mounted at {place}"));
        }
    }
    for line in fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1) {
        if let Some(name) = line.split_whitespace().next().and_then(|path| path.strip_prefix("/dev/")) {
            note(&Path::new("/sys/class/block").join(name), "used as swap".into());
        }
    }
    for entry in fs::read_dir("/sys/class/block").into_iter().flatten().filter_map(Result::ok) {
        let holders = fs::read_dir(entry.path().join("holders"));
        if holders.is_ok_and(|mut list| list.next().is_some()) {
            note(&entry.path(), "part of a volume, RAID or encrypted disk that is open".into());
        }
    }
    uses
}

/// Whole disks below a device, through partitions and mapped devices.
fn below(device: &Path, depth: usize) -> Vec<String> {
    let Ok(place) = fs::canonicalize(device) else { return Vec::new() };
    let whole = disk_of(&place);
    let mut found: Vec<String> =
        whole.file_name().map(|name| name.to_string_lossy().into_owned()).into_iter().collect();
    for slave in fs::read_dir(place.join("slaves")).into_iter().flatten().filter_map(Result::ok) {
        if depth < 8 {
            found.extend(below(&slave.path(), depth + 1));
        }
    }
    found
}

/// The folder of the disk that a partition belongs to, or itself.
fn disk_of(place: &Path) -> PathBuf {
    match place.parent() {
        Some(above) if place.join("partition").exists() => above.to_owned(),
        Some(_) | None => place.to_owned(),
    }
}

/// The kernel name of the whole disk that a device node stands for; `None` if it is no disk.
pub fn whole(device: &Path) -> Option<(String, bool)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = fs::metadata(device).ok().filter(|meta| meta.file_type().is_block_device())?;
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    let place = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let disk = disk_of(&place);
    Some((disk.file_name()?.to_string_lossy().into_owned(), disk != place))
}
