//! What an installer left for this device: files for the state store, taken once, then wiped where they stood, since there
//! may be secrets among them. The area is `formats::seed`.

use crate::early::etc;
use crate::early::region::Region;
use crate::io::disk::Disk;
use crate::io::durable;
use anyhow::{Result, bail};
use formats::layout::STATE_MARK_BYTES;
use formats::seed::{AREA_BYTES, Seed, SeedFile};
use std::path::Path;

/// Files outside the store's `/etc` that an installer may leave.
const OWN: [&str; 4] = ["site", "site.json", "site.env", "pair.json"];

/// Takes the files into `store`, if a seed for this partition is there.
///
/// # Errors
/// The disk's or the file system's, or if the seed is damaged; it then stays where it is.
pub fn take(disk: &mut dyn Disk, region: &Region, store: &Path) -> Result<()> {
    let mut area = vec![0; STATE_MARK_BYTES];
    disk.read(region.seed(), &mut area)?;
    if area.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    area.resize(AREA_BYTES, 0);
    disk.read(region.seed(), &mut area)?;
    let Some(seed) = Seed::parse(&area)? else { return Ok(()) };
    if seed.partition != region.guid.to_string() {
        return Ok(());
    }
    for file in &seed.files {
        put(store, file)?;
    }
    let bytes = seed.encode()?.len();
    disk.write(region.seed(), &vec![0; bytes])?;
    disk.sync()?;
    tracing::info!(files = seed.files.len(), "took what the installer left");
    Ok(())
}

fn put(store: &Path, file: &SeedFile) -> Result<()> {
    if let Some(path) = file.path.strip_prefix("etc/") {
        return etc::put(&store.join("etc"), path, file.text.as_bytes(), file.mode & 0o755);
    }
    if !OWN.contains(&file.path.as_str()) {
        bail!("{} is none of the files that an installer may leave", file.path);
    }
    durable::make_folder(store, 0o755)?;
    durable::write(&store.join(&file.path), file.text.as_bytes(), file.mode & 0o700)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::BlockDevice;
    use formats::gpt::Guid;

    fn region() -> Region {
        Region { number: 6, start: 1 << 20, bytes: 4 << 20, guid: Guid::from_disk(&[7; 16]) }
    }

    fn with(seed: &Seed) -> (tempfile::NamedTempFile, BlockDevice) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        let mut disk = BlockDevice::open(file.path()).unwrap();
        disk.write(region().seed(), &seed.encode().unwrap()).unwrap();
        (file, disk)
    }

    fn seed(path: &str, guid: Guid) -> Seed {
        let file = SeedFile { path: path.into(), mode: 0o644, text: "pump-1\n".into() };
        Seed { partition: guid.to_string(), files: vec![file] }
    }

    #[test]
    fn files_are_taken_once_and_wiped() {
        let (_file, mut disk) = with(&seed("etc/hostname", region().guid));
        let store = tempfile::tempdir().unwrap();
        take(&mut disk, &region(), store.path()).unwrap();
        let name = store.path().join("etc/hostname");
        assert_eq!(std::fs::read_to_string(&name).unwrap(), "pump-1\n");
        let mut area = vec![1; 4096];
        disk.read(region().seed(), &mut area).unwrap();
        assert!(area.iter().all(|byte| *byte == 0));
        std::fs::remove_file(&name).unwrap();
        take(&mut disk, &region(), store.path()).unwrap();
        assert!(!name.exists());
    }

    #[test]
    fn the_site_s_name_stands_where_updates_look_for_it() {
        let (_file, mut disk) = with(&seed("site", region().guid));
        let store = tempfile::tempdir().unwrap();
        take(&mut disk, &region(), store.path()).unwrap();
        let name = Path::new(formats::device::SITE).file_name().unwrap();
        assert_eq!(std::fs::read_to_string(store.path().join(name)).unwrap(), "pump-1\n");
    }

    #[test]
    fn what_is_for_another_partition_or_not_allowed_is_not_taken() {
        let store = tempfile::tempdir().unwrap();
        let (_file, mut disk) = with(&seed("etc/hostname", Guid::from_disk(&[8; 16])));
        take(&mut disk, &region(), store.path()).unwrap();
        for bad in ["etc/passwd", "etc/../../x", "agent.db", "../x"] {
            let (_file, mut disk) = with(&seed(bad, region().guid));
            assert!(take(&mut disk, &region(), store.path()).is_err(), "{bad}");
        }
        assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 0);
    }
}
