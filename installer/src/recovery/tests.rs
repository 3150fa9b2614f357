//! A file stands for the disk, a socket for the console: what the menu's entries write is what the device's next start
//! looks for.

use super::*;
use crate::layout;
use crate::samples::plan;
use formats::seed::AREA_BYTES;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

#[test]
fn a_disk_is_named_after_its_partition() {
    for (partition, disk) in [
        ("/dev/sda6", "/dev/sda"),
        ("/dev/nvme0n1p6", "/dev/nvme0n1"),
        ("/dev/mmcblk0p1", "/dev/mmcblk0"),
        ("/dev/vda1", "/dev/vda"),
    ] {
        assert_eq!(whole(partition).as_deref(), Some(disk));
    }
}

/// A console at which somebody answers each question that has these words.
fn answered(answers: &'static [(&str, &str)]) -> Console {
    let (machine, mut person) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        for (question, answer) in answers {
            let mut seen = String::new();
            while !seen.contains(question) {
                let mut bytes = [0; 4096];
                let count = person.read(&mut bytes).unwrap();
                assert!(count > 0, "no question `{question}` came, but: {seen}");
                seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
            writeln!(person, "{answer}").unwrap();
        }
        // Stays until the console has gone: one that hangs up cannot answer.
        person.read_to_end(&mut Vec::new()).unwrap();
    });
    Console::of(File::from(OwnedFd::from(machine)))
}

fn installed() -> (tempfile::NamedTempFile, BlockDevice, Parts) {
    let plan = plan();
    let bytes = 700 << 20;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    let layout = layout::fresh(&plan, bytes, || Ok([3; 16])).unwrap();
    let disk = BlockDevice::open(file.path(), true).unwrap();
    (file, disk, layout.parts)
}

fn mark(disk: &BlockDevice, parts: &Parts) -> Option<StateMark> {
    let mut mark = [0; STATE_MARK_BYTES];
    disk.read(parts.state.start + parts.state.bytes - STATE_MARK_BYTES as u64, &mut mark).unwrap();
    StateMark::parse(&mark)
}

#[test]
fn a_factory_reset_needs_the_whole_word_and_has_the_next_start_make_the_state_anew() {
    let (_file, mut disk, parts) = installed();
    let end = parts.state.start + parts.state.bytes - STATE_MARK_BYTES as u64;
    disk.write(end, &StateMark::Made.encode()).unwrap();
    reset(&mut answered(&[("Type RESET", "reset")]), &mut disk, &parts).unwrap();
    assert_eq!(mark(&disk, &parts), Some(StateMark::Made));
    reset(&mut answered(&[("Type RESET", "RESET")]), &mut disk, &parts).unwrap();
    assert_eq!(mark(&disk, &parts), Some(StateMark::Making));
}

#[test]
fn an_address_is_left_for_the_state_partition_of_this_disk_and_keeps_its_identity() {
    let (_file, mut disk, parts) = installed();
    let mut console = answered(&[("Address as", "192.0.2.10/24"), ("Router as", "192.0.2.1")]);
    address(&mut console, &mut disk, &parts).unwrap();
    let mut area = vec![0; AREA_BYTES];
    disk.read(seed_at(parts.state), &mut area).unwrap();
    let seed = Seed::parse(&area).unwrap().unwrap();
    assert_eq!(seed.partition, parts.state_guid.to_string());
    let paths: Vec<&str> = seed.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["etc/systemd/network/10-site-0.network"]);
    assert!(seed.files[0].text.contains("Address=192.0.2.10/24\nGateway=192.0.2.1\n"), "{:?}", seed.files);
    let mut console = answered(&[("Address as", "192.0.2.10"), ("Router as", "")]);
    let error = address(&mut console, &mut disk, &parts).unwrap_err();
    assert!(format!("{error:#}").contains("needs a prefix length"), "{error:#}");
}

#[test]
fn the_status_tells_a_whole_slot_from_a_broken_and_an_empty_one() {
    let (_file, mut disk, parts) = installed();
    let parameters = Parameters { data_blocks: 512, salt: [1; 32] };
    for (verity, top) in parts.verity.iter().zip([1u8, 0]) {
        disk.write(verity.start, &parameters.superblock([5; 16])).unwrap();
        disk.write(verity.start + BLOCK as u64, &[top; BLOCK]).unwrap();
    }
    let mut console = answered(&[]);
    status(&mut console, &disk, &parts).unwrap();
    let log = console.log().to_owned();
    assert!(log.contains("slot a: an image of 2 MiB, roothash "), "{log}");
    assert!(log.contains("slot b: half-written") && log.contains("not made yet"), "{log}");
    disk.write(parts.verity[0].start, &[0; BLOCK]).unwrap();
    status(&mut console, &disk, &parts).unwrap();
    assert!(!console.log()[log.len()..].contains("slot a: an image"), "{}", console.log());
}
