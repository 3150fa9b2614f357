//! Releases made from small inputs, and what a device says about damaged, mixed up and hostile ones.

use super::folder::{ANNOUNCE, OBJECTS};
use super::keys::{Counts, KeyFolder, PrivateKey, ROOTS, replace_file};
use super::make::{Announce, BootFileInput, DEFAULT_LEVEL, ReleaseFacts, ReleaseInput, SlotInput, make};
use super::verify::{Viewpoint, verify};
use crate::image::{pe, uki};
use crate::progress::Progress;
use formats::arch::Arch;
use formats::bootargs::BootArgs;
use formats::frame::{Frame, Scope};
use formats::hex::Digest;
use formats::manifest::{Entry, Manifest, Needs, ObjectRef, PayloadKind};
use formats::object;
use formats::trust::Rank;
use formats::verity::{BLOCK, Builder, Parameters};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

mod announce;
mod publish;
mod stick;

const BLOCKS: u64 = 70;
const COUNTS: Counts = Counts { root: 3, root_threshold: 2, release: 3, release_threshold: 2 };
const SIGNED_S: u32 = 1_795_219_200;

/// A desk with keys, a slot image, its UKI and a boot file.
struct Desk {
    folder: TempDir,
    keys: KeyFolder,
    roothash: Digest,
    verity: Parameters,
    boot_files: Vec<BootFileInput>,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let keys = KeyFolder::create(&at("keys"), COUNTS, SIGNED_S).unwrap();
        fs::write(at("loader"), b"loader").unwrap();
        let boot_files = vec![BootFileInput { esp_path: "EFI/BOOT/BOOTX64.EFI".into(), file: at("loader") }];
        let verity = Parameters { data_blocks: BLOCKS, salt: [7; 32] };
        let mut desk = Self { folder, keys, roothash: Digest([0; 32]), verity, boot_files };
        // More than one block of 64 KiB, not a whole number of them.
        desk.put_image(&(0..BLOCKS * BLOCK as u64).map(|n| (n / 7 + n / 4096) as u8).collect::<Vec<_>>());
        desk
    }

    /// Takes another slot image for the releases that follow, and makes its UKI.
    fn put_image(&mut self, image: &[u8]) {
        fs::write(self.at("image"), image).unwrap();
        let mut tree = Builder::new(self.verity);
        tree.push(image);
        self.roothash = tree.finish().roothash;
        fs::write(self.at("uki"), uki_for(self.roothash, self.verity)).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make(&self, name: &str, sequence: u32) -> anyhow::Result<ReleaseFacts> {
        let (image, uki) = (self.at("image"), self.at("uki"));
        let slot =
            SlotInput { image: &image, roothash: self.roothash, verity: self.verity, verity_uuid: [3; 16] };
        let input = ReleaseInput {
            product: "edge",
            board: "vm",
            arch: Arch::X86_64,
            version: "1.0.0",
            profile: "edge-minimal",
            built_s: SIGNED_S,
            slot,
            uki: &uki,
            boot_files: &self.boot_files,
            needs: Needs { slot_bytes: 1 << 20, verity_bytes: 1 << 16, esp_bytes: 1 << 20 },
            announce: Announce { channel: 0, scope: Scope::All, sequence, signed_s: SIGNED_S, validity_h: 0 },
            keys: &self.keys,
            level: DEFAULT_LEVEL,
        };
        make(&input, &self.at(name), &Progress::quiet())
    }

    fn refusal(&self, name: &str, view: &Viewpoint) -> String {
        let error = verify(&self.at(name), view, &Progress::quiet()).unwrap_err();
        format!("{error:#}").replace(&format!("{}/", self.folder.path().display()), "")
    }

    /// Changes the frame of a release and signs it again with the release keys given by number.
    fn resign(&self, name: &str, change: impl FnOnce(&mut formats::frame::Announcement), by: &[u8]) {
        let path = self.at(name).join(ANNOUNCE);
        let mut said = Frame::parse(&fs::read(&path).unwrap()).unwrap().unverified().clone();
        change(&mut said);
        let mut frame = Frame::unsigned(said).unwrap();
        let message = frame.unverified().signed_bytes().unwrap();
        for signer in self.keys.signers(&self.keys.root().release).unwrap() {
            if by.contains(&signer.number) {
                frame.sign(signer.number, signer.key.sign(&message)).unwrap();
            }
        }
        replace_file(&path, &frame.encode().unwrap()).unwrap();
    }

    /// Changes the manifest of a release and announces the changed one.
    fn remanifest(&self, name: &str, change: impl FnOnce(&mut Manifest)) {
        let folder = self.at(name);
        let frame = Frame::parse(&fs::read(folder.join(ANNOUNCE)).unwrap()).unwrap();
        let old = folder.join(OBJECTS).join(frame.unverified().manifest.to_string());
        let mut manifest = Manifest::parse(&fs::read(&old).unwrap()).unwrap();
        change(&mut manifest);
        let bytes = manifest.encode().unwrap();
        let object = object::of(&bytes, formats::manifest::MANIFEST_BLOCK).unwrap();
        fs::write(folder.join(OBJECTS).join(object.id.to_string()), &bytes).unwrap();
        let length = bytes.len() as u32;
        self.resign(name, |said| (said.manifest, said.manifest_bytes) = (object.id, length), &[0, 1]);
    }
}

fn uki_for(roothash: Digest, verity: Parameters) -> Vec<u8> {
    let args = BootArgs { roothash, verity, version: "1.0.0".into(), watchdog_s: None };
    let (stub, cmdline) = (pe::tests::sample(b"sbat,1\n"), args.encode());
    let parts = uki::Parts {
        stub: &stub,
        linux: &stub,
        initrd: b"initrd",
        cmdline: &cmdline,
        os_release: "ID=x\n",
        uname: "6.12",
        dtb: None,
    };
    uki::assemble(&parts).unwrap()
}

/// Every file below a folder with its contents, by relative name.
fn tree(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut rest = vec![folder.to_owned()];
    while let Some(at) = rest.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rest.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn the_same_input_gives_the_same_release_and_a_device_accepts_it() {
    let desk = Desk::new();
    let facts = desk.make("one", 7).unwrap();
    desk.make("two", 7).unwrap();
    assert_eq!(tree(&desk.at("one")), tree(&desk.at("two")));
    assert_eq!((facts.frame_bytes, facts.signatures, facts.threshold), (198, 2, 2));
    let view = Viewpoint {
        root: Some(desk.keys.root().clone()),
        device: Some(("edge".into(), "vm".into(), Arch::X86_64)),
        channel: Some(0),
        accepted: Some(Rank { root_version: 1, sequence: 6 }),
    };
    let report = verify(&desk.at("one"), &view, &Progress::quiet()).unwrap();
    assert_eq!(report.roothash, Some(desk.roothash));
    let checked: Vec<_> = report.objects.iter().map(|object| (object.what.as_str(), object.how)).collect();
    assert_eq!(
        checked,
        [
            ("slot image, full payload", "carried"),
            ("slot image", "made from payload"),
            ("UKI", "carried"),
            ("UKI, full payload", "carried"),
            ("boot file EFI/BOOT/BOOTX64.EFI", "carried"),
        ]
    );
}

#[test]
fn a_release_for_others_or_older_than_the_accepted_is_refused() {
    let desk = Desk::new();
    desk.make("release", 7).unwrap();
    let view = |board: &str, arch| Viewpoint {
        device: Some(("edge".into(), board.into(), arch)),
        ..Viewpoint::default()
    };
    assert_eq!(
        desk.refusal("release", &view("nuc", Arch::X86_64)),
        "refuse the announcement: announcement is not for product edge, board nuc, processor x86_64"
    );
    assert!(desk.refusal("release", &view("vm", Arch::Arm64)).ends_with("processor arm64"));
    let accepted = Some(Rank { root_version: 1, sequence: 8 });
    assert_eq!(
        desk.refusal("release", &Viewpoint { accepted, ..Viewpoint::default() }),
        "refuse the announcement: release 1.7 is older than the accepted 1.8 (root version, sequence): rollback refused"
    );
    assert!(
        desk.refusal("release", &Viewpoint { channel: Some(3), ..Viewpoint::default() })
            .ends_with("announcement is for channel 0, but this device follows channel 3")
    );
}

#[test]
fn wrong_and_too_few_signatures_are_refused() {
    let desk = Desk::new();
    desk.make("release", 7).unwrap();
    let others = KeyFolder::create(&desk.at("others"), COUNTS, SIGNED_S).unwrap();
    let view = Viewpoint { root: Some(others.root().clone()), ..Viewpoint::default() };
    assert_eq!(
        desk.refusal("release", &view),
        "refuse the root documents release/roots: root chain has another version 1 than the trusted one: \
         it belongs to other keys"
    );
    desk.resign("release", |_| (), &[2]);
    assert_eq!(
        desk.refusal("release", &Viewpoint::default()),
        "refuse the announcement: announcement is not signed by the release keys of root version 1: \
         signed by 1 distinct keys, but the threshold is 2"
    );
    fs::write(desk.at("release").join(ROOTS), others.roots()).unwrap();
    assert!(desk.refusal("release", &Viewpoint::default()).contains("signature of key 2"));
}

/// No byte of a release can change, go, or come, without being seen.
#[test]
fn any_damage_to_any_file_is_seen() {
    let desk = Desk::new();
    desk.make("release", 7).unwrap();
    let folder = desk.at("release");
    let mut tried = 0;
    for (name, good) in tree(&folder) {
        let path = folder.join(&name);
        let mut damaged: Vec<Vec<u8>> =
            vec![good[..good.len() - 1].to_vec(), [&good[..], &[0]].concat(), vec![]];
        // Every byte of what is small, a spread of the rest.
        for at in (0..good.len()).step_by((good.len() / 40).max(1)) {
            let mut flipped = good.clone();
            flipped[at] ^= 0x10;
            damaged.push(flipped);
        }
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            let seen = verify(&folder, &Viewpoint::default(), &Progress::quiet());
            assert!(seen.is_err(), "{name} with {} of {} bytes", bytes.len(), good.len());
            tried += 1;
        }
        fs::remove_file(&path).unwrap();
        assert!(verify(&folder, &Viewpoint::default(), &Progress::quiet()).is_err(), "{name} removed");
        fs::write(&path, &good).unwrap();
        verify(&folder, &Viewpoint::default(), &Progress::quiet()).unwrap();
    }
    assert!(tried > 250, "{tried}");
}

#[test]
fn errors_name_the_object_and_what_is_wrong_with_it() {
    let desk = Desk::new();
    let facts = desk.make("release", 7).unwrap();
    let id = |what: &str| facts.objects.iter().find(|object| object.what == what).unwrap().id;
    let (uki, packed) = (id("UKI"), id("slot image, full payload"));
    let path = desk.at("release").join(OBJECTS).join(uki.to_string());
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[900] ^= 1;
    fs::write(&path, flipped).unwrap();
    assert_eq!(
        desk.refusal("release", &Viewpoint::default()),
        format!("UKI: refuse release/objects/{uki}: topmost list 0 does not have the expected hash")
    );
    fs::write(&path, &good[..900]).unwrap();
    assert_eq!(
        desk.refusal("release", &Viewpoint::default()),
        format!("UKI: release/objects/{uki} has 900 bytes, must have {}", good.len())
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(
        desk.refusal("release", &Viewpoint::default()),
        format!("UKI: object {uki} is not in the folder")
    );
    fs::write(&path, good).unwrap();
    fs::remove_file(desk.at("release").join(OBJECTS).join(packed.to_string())).unwrap();
    let slot = id("slot image");
    assert_eq!(
        desk.refusal("release", &Viewpoint::default()),
        format!("slot image: neither object {slot} nor a full payload that makes it is in the folder")
    );
}

#[test]
fn a_signed_release_that_contradicts_itself_is_refused() {
    let desk = Desk::new();
    let other = Digest([9; 32]);
    fs::write(desk.at("uki"), uki_for(other, desk.verity)).unwrap();
    desk.make("other-uki", 7).unwrap();
    let refusal = desk.refusal("other-uki", &Viewpoint::default());
    assert!(
        refusal.contains(&format!("opens roothash {other}, but the release's slot image has")),
        "{refusal}"
    );

    fs::write(desk.at("uki"), uki_for(desk.roothash, desk.verity)).unwrap();
    desk.make("roothash", 7).unwrap();
    desk.remanifest("roothash", |manifest| {
        let Some(Entry::Known(slot)) = manifest.targets.first_mut() else { panic!("no slot") };
        let formats::manifest::TargetKind::Slot { roothash, .. } = &mut slot.kind else { panic!("no slot") };
        *roothash = other;
    });
    let refusal = desk.refusal("roothash", &Viewpoint::default());
    assert!(
        refusal.ends_with(&format!("slot image: roothash is {}, must be {other}", desk.roothash)),
        "{refusal}"
    );

    desk.make("version", 7).unwrap();
    desk.remanifest("version", |manifest| manifest.version = "2.0.0".into());
    let refusal = desk.refusal("version", &Viewpoint::default());
    assert!(refusal.ends_with("says version 1.0.0, but the manifest 2.0.0"), "{refusal}");
}

/// Puts `packed` in as the payload of the slot image.
fn repack(desk: &Desk, name: &str, packed: &[u8]) {
    let object = object::of(packed, object::BlockSize::KIB_64).unwrap();
    let at = desk.at(name).join(OBJECTS).join(object.id.to_string());
    fs::write(&at, packed).unwrap();
    fs::write(at.with_extension("lists"), &object.lists).unwrap();
    desk.remanifest(name, |manifest| {
        let Some(Entry::Known(payload)) = manifest.payloads.first_mut() else { panic!("no payload") };
        payload.object = ObjectRef::from(&object);
        payload.kind = PayloadKind::Full { window_log: 21 };
    });
}

#[test]
fn a_payload_that_unpacks_to_something_else_is_refused() {
    let desk = Desk::new();
    let image = fs::read(desk.at("image")).unwrap();
    let pack = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let window = |log| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(log).unwrap();
        std::io::Write::write_all(&mut encoder, &image).unwrap();
        encoder.finish().unwrap()
    };
    let bomb = pack(&vec![0; 64 << 20]);
    assert!(bomb.len() < 64 << 10);
    let rows: [(&str, Vec<u8>, &str); 5] = [
        ("bomb", bomb, "unpacks to more than 286720 bytes"),
        ("short", pack(&image[..image.len() - 4096]), "came out, must be"),
        ("no-zstd", image[1..].to_vec(), "Unknown frame descriptor"),
        ("window", window(24), "Frame requires too much memory for decoding"),
        ("two-frames", [pack(&image[..4096]), pack(&image[4096..])].concat(), "came out, must be"),
    ];
    for (name, packed, expected) in rows {
        desk.make(name, 7).unwrap();
        repack(&desk, name, &packed);
        let refusal = desk.refusal(name, &Viewpoint::default());
        assert!(refusal.contains(expected), "{name}: {refusal}");
    }
}

#[test]
fn nothing_half_written_stays() {
    let desk = Desk::new();
    desk.make("release", 7).unwrap();
    assert!(
        desk.make("release", 7).unwrap_err().to_string().ends_with("name a new folder, or remove it first")
    );
    fs::remove_file(desk.at("uki")).unwrap();
    let before = fs::read_dir(desk.folder.path()).unwrap().count();
    let error = format!("{:#}", desk.make("next", 8).unwrap_err());
    assert!(
        error.starts_with("open ") && error.ends_with("No such file or directory (os error 2)"),
        "{error}"
    );
    assert_eq!(fs::read_dir(desk.folder.path()).unwrap().count(), before);
    fs::write(desk.at("image"), vec![0; 4096]).unwrap();
    let error = desk.make("next", 8).unwrap_err().to_string();
    assert!(error.ends_with("has 4096 bytes, but its hash tree is for 70 blocks"), "{error}");
}

#[test]
fn holders_of_release_keys_sign_one_after_the_other() {
    let desk = Desk::new();
    let away = desk.at("away");
    fs::create_dir(&away).unwrap();
    for name in ["dev-release-1.pem", "dev-release-2.pem", "dev-release-3.pem"] {
        fs::rename(desk.at("keys").join(name), away.join(name)).unwrap();
    }
    let facts = desk.make("release", 7).unwrap();
    assert_eq!((facts.signatures, facts.threshold), (0, 2));
    let refusal = desk.refusal("release", &Viewpoint::default());
    assert!(refusal.ends_with("signed by 0 distinct keys, but the threshold is 2"), "{refusal}");
    let frame = desk.at("release").join(ANNOUNCE);
    for name in ["dev-release-3.pem", "dev-release-3.pem", "dev-release-1.pem"] {
        assert!(verify(&desk.at("release"), &Viewpoint::default(), &Progress::quiet()).is_err());
        let key = PrivateKey::read(&away.join(name)).unwrap();
        crate::cmd::sign::sign_frame(&frame, &desk.at("release").join(ROOTS), &key).unwrap();
    }
    verify(&desk.at("release"), &Viewpoint::default(), &Progress::quiet()).unwrap();
    let key = PrivateKey::read(&desk.at("keys").join("dev-root-1.pem")).unwrap();
    let error = crate::cmd::sign::sign_frame(&frame, &desk.at("release").join(ROOTS), &key).unwrap_err();
    assert!(error.to_string().ends_with("is none of the release keys: it may not sign this"), "{error}");
}

#[test]
fn rotation_keeps_old_devices_and_revokes_old_keys() {
    let mut desk = Desk::new();
    let first = desk.keys.root().clone();
    desk.make("before", u32::MAX).unwrap();
    desk.keys.rotate(&["release-1".into(), "root-2".into()], SIGNED_S + 1).unwrap();
    desk.keys.rotate(&["root-1".into(), "catalogue".into()], SIGNED_S + 2).unwrap();
    desk.make("after", 1).unwrap();
    let accepted = Some(Rank { root_version: 1, sequence: u32::MAX });
    let view = Viewpoint { root: Some(first), accepted, ..Viewpoint::default() };
    let report = verify(&desk.at("after"), &view, &Progress::quiet()).unwrap();
    assert_eq!((report.root_version, report.root_trusted), (3, true));
    let view = Viewpoint { root: Some(desk.keys.root().clone()), ..Viewpoint::default() };
    assert!(
        desk.refusal("before", &view).contains("signed under root version 1, which version 3 has replaced")
    );
    let unknown = desk.keys.rotate(&["release-4".into()], SIGNED_S).unwrap_err().to_string();
    assert!(unknown.starts_with("no key `release-4`: there are root-1 to root-3"), "{unknown}");
}

#[test]
fn key_files_are_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    let error = KeyFolder::create(&desk.at("keys"), COUNTS, SIGNED_S).err().unwrap().to_string();
    assert!(error.ends_with("exists: keys are never overwritten, name a new folder"), "{error}");
    let path = desk.at("keys").join("dev-root-1.pem");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(PrivateKey::generate().unwrap().write_new(&path).is_err());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = PrivateKey::read(&path).err().unwrap().to_string();
    assert!(error.contains("has mode 640, but must be 600: run `chmod 600 "), "{error}");
    let error = KeyFolder::open(&desk.at("nowhere")).err().unwrap().to_string();
    assert!(error.contains("no keys at ") && error.contains("run `farhold keys new "), "{error}");
    let impossible = Counts { release_threshold: 4, ..COUNTS };
    let error = format!("{:#}", KeyFolder::create(&desk.at("k"), impossible, SIGNED_S).err().unwrap());
    assert_eq!(error, "choose release keys: a role's threshold is 4, but must be 1 to 3, its number of keys");
    assert!(!desk.at("k").exists());
}
