//! What an installer says about the release on its stick, before it writes anything.

use super::*;
use formats::stick::{Plan, Rules};
use installer::release::Release;

fn plan() -> Plan {
    Plan {
        format: 1,
        product: "edge".into(),
        board: "vm".into(),
        arch: Arch::X86_64,
        version: "1.0.0".into(),
        esp_bytes: 1 << 20,
        root_bytes: 1 << 20,
        verity_bytes: 1 << 20,
        menu_s: 0,
        target: Rules::default(),
        pair: false,
    }
}

/// All that is checked before a disk is touched.
fn check(folder: &Path, roots: &[u8], plan: &Plan) -> anyhow::Result<()> {
    let release = Release::open(folder, roots, plan)?;
    release.boot_files()?;
    release.verify_image(&mut |_| Ok(())).map(drop)
}

fn refused(folder: &Path, roots: &[u8], plan: &Plan) -> String {
    format!("{:#}", check(folder, roots, plan).unwrap_err())
}

#[test]
fn a_good_stick_is_taken() {
    let desk = Desk::new();
    desk.make("release", 1).unwrap();
    check(&desk.at("release"), desk.keys.roots(), &plan()).unwrap();
}

#[test]
fn a_stick_with_one_flipped_byte_is_refused_whichever_byte_it_is() {
    let desk = Desk::new();
    desk.make("release", 1).unwrap();
    let mut needed = 0;
    for (name, bytes) in tree(&desk.at("release")) {
        let path = desk.at("release").join(&name);
        // What an installation does not read (lists of the unpacked image, payloads of what the stick holds whole) may
        // be missing, and so cannot harm it.
        fs::remove_file(&path).unwrap();
        if check(&desk.at("release"), desk.keys.roots(), &plan()).is_ok() {
            fs::write(&path, &bytes).unwrap();
            continue;
        }
        needed += 1;
        for at in (0..bytes.len()).step_by((bytes.len() / 40).max(1)) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            let checked = check(&desk.at("release"), desk.keys.roots(), &plan());
            let Err(error) = checked else {
                // Documents that the installer has itself are not judged again, nor are signatures above the threshold.
                assert_eq!(name, ROOTS, "byte {at} was not seen");
                continue;
            };
            let text = format!("{error:#}");
            assert!(text.contains("the stick") || text.contains("this stick"), "byte {at} of {name}: {text}");
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(needed >= 6, "announcement, roots, manifest, image and UKI with lists, but {needed} were read");
}

#[test]
fn a_foreign_key_is_refused() {
    let (desk, other) = (Desk::new(), Desk::new());
    desk.make("release", 1).unwrap();
    let said = refused(&desk.at("release"), other.keys.roots(), &plan());
    assert!(
        said.starts_with("the release on this stick is signed by keys that this installer does not trust"),
        "{said}"
    );
}

#[test]
fn an_expired_announcement_and_replaced_keys_are_refused() {
    let mut desk = Desk::new();
    desk.make("release", 1).unwrap();
    desk.resign("release", |said| (said.signed_s, said.validity_h) = (SIGNED_S - 7200, 1), &[0, 1]);
    let said = refused(&desk.at("release"), desk.keys.roots(), &plan());
    assert!(said.starts_with("the release on this stick has expired"), "{said}");
    desk.make("second", 2).unwrap();
    desk.keys.rotate(&[], SIGNED_S + 1).unwrap();
    fs::write(desk.at("second").join(ROOTS), desk.keys.roots()).unwrap();
    let said = refused(&desk.at("second"), desk.keys.roots(), &plan());
    assert!(said.starts_with("the release on this stick has expired or its keys were replaced"), "{said}");
}

#[test]
fn a_release_for_another_processor_or_board_is_refused() {
    let desk = Desk::new();
    desk.make("release", 1).unwrap();
    for other in [Plan { arch: Arch::Arm64, ..plan() }, Plan { board: "nuc".into(), ..plan() }] {
        let said = refused(&desk.at("release"), desk.keys.roots(), &other);
        assert!(
            said.starts_with("the release on this stick is for another product, board or processor"),
            "{said}"
        );
    }
}
