//! Whole deltas: made, damaged, applied. Images are written by hand here, so that no tool is needed.

use super::make::make;
use super::source::Image;
use crate::progress::Progress;
use formats::delta::ReadAt;
use formats::delta::apply::Decoder;
use proptest::prelude::*;
use std::io::Write;

/// Bytes without any pattern, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn image(bytes: &[u8]) -> Image {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Image::open(file.path()).unwrap()
}

fn delta(old: &[u8], new: &[u8], threads: usize) -> Vec<u8> {
    make(&image(old), &image(new), threads, &Progress::quiet()).unwrap().bytes
}

fn apply(old: &[u8], delta: &[u8]) -> Result<Vec<u8>, formats::delta::DeltaError> {
    let mut out = Vec::new();
    Decoder::open(&old, &delta)?.run(&mut |_| true, &mut out)?;
    Ok(out)
}

#[test]
fn empty_equal_and_foreign_files_come_back() {
    let some = noise(1, 100_000);
    for (old, new) in
        [(vec![], vec![]), (vec![], some.clone()), (some.clone(), vec![]), (some.clone(), noise(2, 70_000))]
    {
        assert_eq!(apply(&old, &delta(&old, &new, 1)).unwrap(), new);
    }
    let same = delta(&some, &some, 1);
    assert!(same.len() < 250, "an equal file costs {} bytes", same.len());
}

#[test]
fn groups_apply_in_any_order_and_resume() {
    let old = noise(3, 13 << 20);
    let mut new = old.clone();
    new.splice(5_000_000..5_000_000, noise(4, 999));
    let delta = delta(&old, &new, 2);
    assert!(delta.len() < 2500, "an insertion costs {} bytes", delta.len());
    let mut decoder = Decoder::open(&old, &delta).unwrap();
    let mut out = vec![0; new.len()];
    for number in [3u64, 0, 2, 1] {
        let mut group = Vec::new();
        decoder.group(number, &out, &mut group).unwrap();
        let from = (number * decoder.header().group_len()) as usize;
        out[from..from + group.len()].copy_from_slice(&group);
    }
    assert!(out == new);
    assert!(decoder.group(4, &out, &mut Vec::new()).unwrap_err().to_string().contains("number 4 of 4"));
}

#[test]
fn the_same_images_give_the_same_delta_whatever_the_threads() {
    let (old, new) = (erofs(&files(1)), erofs(&files(2)));
    assert!(delta(&old, &new, 1) == delta(&old, &new, 3));
}

#[test]
fn a_wrong_old_image_is_named() {
    let old = noise(5, 50_000);
    let delta = delta(&old, &noise(5, 60_000), 1);
    let error = apply(&noise(5, 40_000), &delta).unwrap_err().to_string();
    assert!(
        error.contains("the old image has 40000 bytes, but the delta was made for one of 50000"),
        "{error}"
    );
    let error = apply(&noise(6, 50_000), &delta).unwrap_err().to_string();
    assert!(error.contains("group 0 has SHA-256"), "{error}");
}

/// This test program, and the same with parts moved, so that its pointers no longer lead where they did.
fn programs() -> (Vec<u8>, Vec<u8>) {
    let old = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut new = old.clone();
    let middle = new.len() / 3;
    new[middle..middle + 4000].rotate_left(64);
    new.truncate(old.len() - 10);
    (old, new)
}

#[test]
fn a_changed_program_comes_back() {
    let (old, new) = programs();
    let delta = delta(&old, &new, 2);
    assert!(delta.len() < 20_000, "{} bytes", delta.len());
    assert!(apply(&old, &delta).unwrap() == new);
}

/// A file of an image: its name and content.
type Content = (String, Vec<u8>);

fn files(version: u8) -> Vec<Content> {
    let mut files: Vec<Content> = (0..60u64)
        .map(|number| (format!("file{number:02}"), noise(number, 4096 * (1 + number as usize % 5) + 100)))
        .collect();
    files.push((format!("lib.so.{version}"), noise(100, 50_000)));
    if version == 2 {
        files[7].1 = noise(7, 30_000);
        files[22].1[5000] ^= 1;
        files[30].0 = "renamed".to_owned();
        files.push(("added".to_owned(), noise(99, 9000)));
    }
    files.sort();
    files
}

/// An EROFS image with one directory: compact inodes, tails inline, data behind (`fs/erofs/erofs_fs.h`).
fn erofs(files: &[Content]) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let names: Vec<&str> =
        [".", ".."].into_iter().chain(files.iter().map(|(name, _)| name.as_str())).collect();
    let directory_len = names.iter().map(|name| 12 + name.len()).sum::<usize>();
    assert!(directory_len < BLOCK, "one block holds the directory");
    // The root's inode is number 36; each inode starts a unit of 32 bytes, the tail behind it.
    let mut nids = vec![36u64, 36];
    let mut next = 36 + (32 + directory_len).div_ceil(32) as u64;
    for (_, content) in files {
        nids.push(next);
        next += (32 + content.len() % BLOCK).div_ceil(32) as u64;
    }
    let mut block = (next as usize * 32).div_ceil(BLOCK);
    let mut image = vec![0u8; block * BLOCK];
    image[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
    image[1024 + 12] = 12;
    image[1024 + 14] = 36;
    let inode = |image: &mut Vec<u8>, nid: u64, mode: u16, content: &[u8], blocks: &mut usize| {
        let at = nid as usize * 32;
        image[at] = 2 << 1;
        image[at + 4..at + 6].copy_from_slice(&mode.to_le_bytes());
        image[at + 8..at + 12].copy_from_slice(&(content.len() as u32).to_le_bytes());
        image[at + 16..at + 20].copy_from_slice(&(*blocks as u32).to_le_bytes());
        let whole = content.len() / BLOCK * BLOCK;
        image[at + 32..at + 32 + content.len() - whole].copy_from_slice(&content[whole..]);
        image.extend_from_slice(&content[..whole]);
        *blocks += whole / BLOCK;
    };
    let mut directory = Vec::new();
    let mut start = names.len() * 12;
    for (name, nid) in names.iter().zip(&nids) {
        directory.extend(nid.to_le_bytes());
        directory.extend((start as u16).to_le_bytes());
        directory.extend([1, 0]);
        start += name.len();
    }
    names.iter().for_each(|name| directory.extend(name.as_bytes()));
    inode(&mut image, 36, 0o40755, &directory, &mut block);
    for ((_, content), nid) in files.iter().zip(&nids[2..]) {
        inode(&mut image, *nid, 0o100_644, content, &mut block);
    }
    image
}

#[test]
fn an_image_costs_what_its_files_changed() {
    let (old, new) = (erofs(&files(1)), erofs(&files(2)));
    let tree = formats::delta::erofs::walk(&new).unwrap().unwrap();
    assert_eq!(tree.files.len(), 62);
    let delta = delta(&old, &new, 2);
    // New content is 30,000 and 9,000 bytes of noise; the rest is names, inodes and digests.
    assert!(delta.len() < 40_500, "{} bytes", delta.len());
    assert!(apply(&old, &delta).unwrap() == new);
}

fn edited(old: &[u8], edits: &[(usize, usize, u8)]) -> Vec<u8> {
    let mut new = old.to_vec();
    for (at, len, kind) in edits {
        let from = at % (new.len() + 1);
        let to = (from + len).min(new.len());
        match kind % 3 {
            0 => drop(new.splice(from..from, noise(*len as u64, *len))),
            1 => drop(new.drain(from..to)),
            _ => new[from..to].iter_mut().for_each(|byte| *byte = byte.wrapping_add(3)),
        }
    }
    new
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn edited_files_come_back(len in 0usize..60_000, edits in prop::collection::vec((0usize..60_000, 0usize..5000, any::<u8>()), 0..12)) {
        let old = noise(9, len);
        let new = edited(&old, &edits);
        prop_assert!(apply(&old, &delta(&old, &new, 1)).unwrap() == new);
    }
}

/// Damages `delta` behind its digests' back: index and header are left, so that damage reaches the decoder.
fn body_start(delta: &[u8]) -> usize {
    let (header, _) = formats::delta::container::open(&delta).unwrap();
    144 + header.index_packed as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damage_is_an_error_and_never_other_output(damage in prop::collection::vec((any::<u32>(), any::<u8>()), 1..4), cut: u16) {
        use std::sync::OnceLock;
        static SAMPLE: OnceLock<(Vec<u8>, Vec<u8>, Vec<u8>)> = OnceLock::new();
        let (old, new, good) = SAMPLE.get_or_init(|| {
            let (old, new) = (erofs(&files(1)), erofs(&files(2)));
            let good = delta(&old, &new, 1);
            (old, new, good)
        });
        let mut bad = good.clone();
        let start = body_start(good);
        for (at, value) in damage {
            let at = start + at as usize % (bad.len() - start);
            bad[at] = value;
        }
        if let Ok(out) = apply(old, &bad) {
            prop_assert!(out == *new);
        }
        bad.truncate(usize::from(cut) % bad.len());
        prop_assert!(apply(old, &bad).is_err());
        prop_assert_eq!(old.size(), old.len() as u64);
    }
}

/// A cpio archive (`newc`) of these files.
fn cpio(files: &[Content]) -> Vec<u8> {
    let mut text = Vec::new();
    let end = ("TRAILER!!!".to_owned(), Vec::new());
    for (number, (name, bytes)) in files.iter().chain([&end]).enumerate() {
        let mut fields = [0usize; 13];
        (fields[0], fields[1], fields[6], fields[11]) = (number, 0o100_644, bytes.len(), name.len() + 1);
        text.extend(b"070701");
        fields.iter().for_each(|field| text.extend(format!("{field:08X}").bytes()));
        text.extend(name.bytes().chain([0]));
        text.resize(text.len().next_multiple_of(4), 0);
        text.extend(bytes);
        text.resize(text.len().next_multiple_of(4), 0);
    }
    text
}

/// The same, packed by this machine's gzip.
fn archive(files: &[Content]) -> Vec<u8> {
    let text = cpio(files);
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(&text).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let output = std::process::Command::new("gzip").arg("-n").stdin(input).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_packed_archive_costs_what_its_files_changed() {
    // Bytes that pack, so that the archive is not stored as it is.
    let words =
        |seed: u64, len: usize| -> Vec<u8> { noise(seed, len).iter().map(|byte| byte & 15).collect() };
    let mut old: Vec<Content> = (0..20).map(|n| (format!("file{n:02}"), words(n, 700_000))).collect();
    let mut new = old.clone();
    for (_, bytes) in &mut new {
        bytes[5000] ^= 1;
        bytes.splice(100_000..100_000, *b"inserted");
    }
    let packed = (archive(&old), archive(&new));
    assert!(packed.1.len() > 5 << 20, "more than a group: {} bytes", packed.1.len());
    old.push(("initrd".into(), packed.0));
    new.push(("initrd".into(), packed.1));
    let (old, new) = (erofs(&old), erofs(&new));
    let bytes = delta(&old, &new, 2);
    assert!(bytes.len() < 20_000, "{} bytes", bytes.len());
    let (header, index) = formats::delta::container::open(&bytes).unwrap();
    assert!(header.texts && index.texts.len() == 1);
    assert!(apply(&old, &bytes).unwrap() == new);
    let mut alone = Vec::new();
    let mut decoder = Decoder::open(&old, &bytes).unwrap();
    for number in (0..header.groups()).rev() {
        decoder.group(number, &new, &mut alone).unwrap();
        let from = (number * header.group_len()) as usize;
        assert!(alone == new[from..from + alone.len()], "group {number}");
    }
}

#[test]
fn more_archives_than_a_group_may_deflate_come_back() {
    let words =
        |seed: u64, len: usize| -> Vec<u8> { noise(seed, len).iter().map(|byte| byte & 15).collect() };
    let packed = |version: u64| -> Vec<Content> {
        let member =
            |n: u64| vec![("a".to_owned(), words(n, 150_000)), ("v".to_owned(), words(version, 3000))];
        (0..24).map(|n| (format!("archive{n:02}"), archive(&member(n)))).collect()
    };
    let (old, new) = (erofs(&packed(97)), erofs(&packed(99)));
    let bytes = delta(&old, &new, 2);
    let (header, index) = formats::delta::container::open(&bytes).unwrap();
    assert_eq!((header.groups(), index.texts.len()), (1, formats::delta::MAX_DEFLATED));
    assert!(apply(&old, &bytes).unwrap() == new);
}

/// A program of `len` bytes of code in which every eighth byte begins a call; `moved` calls lead elsewhere.
fn large_program(len: usize, moved: u32) -> Vec<u8> {
    let mut bytes = vec![0x90u8; len];
    bytes[..64].fill(0);
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (bytes[16], bytes[18], bytes[32], bytes[56], bytes[60], bytes[62]) = (2, 62, 64, 1, 3, 2);
    let names = b"\0.text\0.names\0";
    let (code, table, size) = (4096u64, 256u64, len as u64);
    bytes[40..48].copy_from_slice(&table.to_le_bytes());
    let words = |bytes: &mut [u8], at: usize, words: &[u64]| {
        for (index, word) in words.iter().enumerate() {
            bytes[at + index * 8..at + index * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
    };
    words(&mut bytes, 64, &[1, 0, 0x40_0000, 0x40_0000, size, size, 4096]);
    words(&mut bytes, 256, &[0; 8]);
    words(&mut bytes, 320, &[1 << 32 | 1, 6, 0x40_1000, code, size - code, 0, 16, 0]);
    words(&mut bytes, 384, &[3 << 32 | 7, 0, 0, 1024, names.len() as u64, 0, 1, 0]);
    bytes[1024..1024 + names.len()].copy_from_slice(names);
    let mut state = 1u32;
    for at in (4096..len - 8).step_by(8) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let target = state >> 8 & 0xff_ffff;
        let shift = if target < moved { 64 } else { 0 };
        bytes[at] = 0xe8;
        bytes[at + 1..at + 5]
            .copy_from_slice(&target.wrapping_sub(at as u32).wrapping_add(shift).to_le_bytes());
        bytes[at + 5] = (state >> 3) as u8;
    }
    bytes
}

/// A kernel image with a program in its initrd.
fn kernel_image(program: &[u8], cmdline: &str) -> Vec<u8> {
    let files = [("early".to_owned(), noise(5, 30_000)), ("init".to_owned(), program.to_vec())];
    let sample = crate::image::pe::tests::sample(b"sbat,1,x\n");
    crate::image::uki::assemble(&crate::image::uki::Parts {
        stub: &sample,
        linux: &sample,
        initrd: &cpio(&files),
        cmdline,
        os_release: "ID=debian\n",
        uname: "6.12.1",
        dtb: None,
    })
    .unwrap()
}

#[test]
fn a_program_in_a_kernel_images_initrd_costs_what_it_costs_alone() {
    let (before, after) = (large_program(1 << 20, 0), large_program(1 << 20, 40_000));
    let (old, new) = (kernel_image(&before, "roothash=1"), kernel_image(&after, "roothash=2"));
    let bytes = delta(&old, &new, 2);
    let alone = delta(&before, &after, 1).len();
    assert!(bytes.len() < alone + 300, "{} bytes, the program {alone}", bytes.len());
    let (_, index) = formats::delta::container::open(&bytes).unwrap();
    assert_eq!(index.objects(), 1, "the program is projected");
    assert!(apply(&old, &bytes).unwrap() == new);
    // Without a program that changed it is a file like others.
    let new = kernel_image(&before, "roothash=2");
    let bytes = delta(&old, &new, 2);
    assert!(bytes.len() < 400, "{} bytes", bytes.len());
    assert!(apply(&old, &bytes).unwrap() == new);
}

#[test]
#[ignore = "takes a minute of processor time and 1 GB"]
fn a_program_of_150_mb_comes_back() {
    let (old, new) = (large_program(150 << 20, 0), large_program(150 << 20, 4000));
    let delta = delta(&old, &new, 1);
    assert!(delta.len() < 2 << 20, "{} bytes", delta.len());
    assert!(apply(&old, &delta).unwrap() == new);
}

#[test]
fn a_program_of_many_pointers_comes_back() {
    let (old, new) = (large_program(1 << 20, 0), large_program(1 << 20, 40_000));
    let delta = delta(&old, &new, 1);
    assert!(apply(&old, &delta).unwrap() == new);
}

#[test]
fn new_files_refer_to_new_files_before_them() {
    let old: Vec<Content> = vec![("a".into(), noise(60, 100_000))];
    let mut again = noise(61, 1 << 20);
    again.iter_mut().step_by(5000).for_each(|byte| *byte ^= 1);
    let between = noise(62, 5 << 20);
    let new = [("b".into(), noise(61, 1 << 20)), ("c".into(), between), ("d".into(), again)];
    let (old, new) = (erofs(&old), erofs(&[&old[..], &new].concat()));
    let bytes = delta(&old, &new, 2);
    let (header, _) = formats::delta::container::open(&bytes).unwrap();
    assert!(header.history);
    assert!(bytes.len() < (6 << 20) + 20_000, "{} bytes: `d` is sent again", bytes.len());
    assert!(apply(&old, &bytes).unwrap() == new);
    // What is not there yet cannot be referred to; nothing is made up.
    let error = Decoder::open(&old, &bytes).unwrap().group(1, &Vec::new(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("are asked for, but there are 0"), "{error}");
}

#[test]
fn a_file_alone_refers_to_nothing_of_its_own() {
    let part = noise(63, 1 << 20);
    let new = [&part[..], &noise(64, 4 << 20), &part].concat();
    let bytes = delta(&noise(65, 1000), &new, 2);
    let (header, _) = formats::delta::container::open(&bytes).unwrap();
    assert!(!header.history);
    assert!(apply(&noise(65, 1000), &bytes).unwrap() == new);
}
