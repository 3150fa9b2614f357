//! Files stand for devices: the code is the same but for the exclusive open.

use super::*;
use std::sync::atomic::AtomicU64;

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    checked: AtomicU64,
    cancel_at: Option<(u64, &'static AtomicBool)>,
}

impl Watch for Counts {
    fn written(&self, bytes: u64) {
        let now = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some((at, cancel)) = self.cancel_at {
            cancel.store(now >= at, Ordering::Relaxed);
        }
    }
    fn checked(&self, bytes: u64) {
        self.checked.fetch_add(bytes, Ordering::Relaxed);
    }
}

static NEVER: AtomicBool = AtomicBool::new(false);
const IMAGE: u64 = 40 << 20;

/// An image with data, zeros inside a declared range, and a hole; and a device full of old bytes.
fn setup() -> (tempfile::TempDir, PathBuf, PathBuf, Map) {
    let folder = tempfile::tempdir().unwrap();
    let (image, device) = (folder.path().join("disk.img"), folder.path().join("device"));
    let mut bytes = vec![0u8; IMAGE as usize];
    for (n, byte) in bytes[..20 << 20].iter_mut().enumerate() {
        *byte = (n / 7) as u8;
    }
    bytes[5 << 20..9 << 20].fill(0);
    bytes[IMAGE as usize - 512..].fill(9);
    std::fs::write(&image, &bytes).unwrap();
    std::fs::write(&device, vec![0xaau8; (IMAGE + (8 << 20)) as usize]).unwrap();
    let map = Map::declare(&File::open(&image).unwrap(), IMAGE, &[(1 << 20, 20 << 20)]).unwrap();
    (folder, image, device, map)
}

use std::path::PathBuf;

fn job<'a>(image: &'a Path, device: &'a Path, map: Option<&'a Map>) -> Job<'a> {
    Job { image, device, map, cancel: &NEVER }
}

#[test]
fn only_declared_holes_are_skipped_and_zeros_that_were_found_are_written() {
    let (_folder, image, device, map) = setup();
    let counts = Counts::default();
    let done = flash(&job(&image, &device, Some(&map)), &counts).unwrap();
    assert_eq!((done.bytes, done.written), (IMAGE, map.used()));
    assert_eq!(counts.written.load(Ordering::Relaxed), map.used());
    assert_eq!(counts.checked.load(Ordering::Relaxed), map.used());
    let (wanted, found) = (std::fs::read(&image).unwrap(), std::fs::read(&device).unwrap());
    assert!(found[..21 << 20] == wanted[..21 << 20], "zeros in a declared range were not written");
    assert!(found[21 << 20..39 << 20].iter().all(|byte| *byte == 0xaa), "a hole was written");
    assert!(found[39 << 20..IMAGE as usize] == wanted[39 << 20..]);
}

#[test]
fn without_a_map_every_byte_is_written() {
    let (_folder, image, device, _) = setup();
    let done = flash(&job(&image, &device, None), &Counts::default()).unwrap();
    assert_eq!(done.written, IMAGE);
    assert!(std::fs::read(&device).unwrap()[..IMAGE as usize] == std::fs::read(&image).unwrap());
}

#[test]
fn packed_images_are_unpacked_with_and_without_map() {
    let (folder, image, device, map) = setup();
    let packed = folder.path().join("disk.img.zst");
    std::fs::write(&packed, zstd::encode_all(File::open(&image).unwrap(), 1).unwrap()).unwrap();
    for map in [Some(&map), None] {
        std::fs::write(&device, vec![0xaau8; (IMAGE + (8 << 20)) as usize]).unwrap();
        flash(&job(&packed, &device, map), &Counts::default()).unwrap();
        assert!(std::fs::read(&device).unwrap()[..21 << 20] == std::fs::read(&image).unwrap()[..21 << 20]);
    }
}

#[test]
fn a_cancelled_flash_leaves_nothing_that_starts() {
    static CANCEL: AtomicBool = AtomicBool::new(false);
    let (_folder, image, device, map) = setup();
    let counts = Counts { cancel_at: Some((4 << 20, &CANCEL)), ..Counts::default() };
    let job = Job { cancel: &CANCEL, ..job(&image, &device, Some(&map)) };
    let error = format!("{:#}", flash(&job, &counts).unwrap_err());
    assert!(error.ends_with("holds nothing that starts now; flash it again: cancelled"), "{error}");
    assert!(std::fs::read(&device).unwrap()[..1 << 20].iter().all(|byte| *byte == 0));
}

#[test]
fn a_damaged_image_is_refused_and_nothing_starts() {
    let (_folder, image, device, map) = setup();
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[12 << 20] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    let error = format!("{:#}", flash(&job(&image, &device, Some(&map)), &Counts::default()).unwrap_err());
    assert!(error.contains("is not what its builder declared"), "{error}");
    assert!(std::fs::read(&device).unwrap()[..1 << 20].iter().all(|byte| *byte == 0));
}

#[test]
fn a_device_that_is_too_small_is_refused_before_anything_is_written() {
    let (_folder, image, device, map) = setup();
    std::fs::write(&device, vec![0xaau8; 1 << 20]).unwrap();
    for map in [Some(&map), None] {
        let error = flash(&job(&image, &device, map), &Counts::default()).unwrap_err().to_string();
        assert_eq!(error, "the image has 40 MiB, the device only 1 MiB: nothing was written");
    }
    assert!(std::fs::read(&device).unwrap().iter().all(|byte| *byte == 0xaa));
}

#[test]
fn what_is_no_image_is_refused_before_anything_is_written() {
    let (folder, image, device, _) = setup();
    let before = std::fs::read(&device).unwrap();
    let at = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        folder.path().join(name)
    };
    let cases = [
        (folder.path().join("none.img"), "No such file"),
        (folder.path().to_owned(), "is a folder, not an image"),
        (at("empty.img", b""), "is empty"),
        (at("junk.img.zst", b"junk"), "is cut off, damaged, or not packed by zstd"),
        (device.clone(), "is the image itself"),
    ];
    for (image, why) in cases {
        let error = format!("{:#}", flash(&job(&image, &device, None), &Counts::default()).unwrap_err());
        assert!(error.starts_with("nothing was written: ") && error.contains(why), "{error}");
        assert!(std::fs::read(&device).unwrap() == before, "{error}");
    }
    let gone = folder.path().join("gone");
    let error = format!("{:#}", flash(&job(&image, &gone, None), &Counts::default()).unwrap_err());
    assert!(error.contains("`farhold devices`"), "{error}");
}

#[test]
fn a_packed_image_that_is_cut_off_leaves_nothing_that_starts() {
    let (folder, _, device, _) = setup();
    // Bytes that zstd cannot shorten, so that the cut is not in the first of them.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let noise: Vec<u8> = noise.take(8 << 20).collect();
    let whole = zstd::encode_all(noise.as_slice(), 1).unwrap();
    let cut = folder.path().join("cut.img.zst");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let error = format!("{:#}", flash(&job(&cut, &device, None), &Counts::default()).unwrap_err());
    assert!(error.contains("device holds nothing that starts now; flash it again: "), "{error}");
    assert!(error.contains("is cut off, damaged"), "{error}");
    assert!(std::fs::read(&device).unwrap()[..1 << 20].iter().all(|byte| *byte == 0));
}
