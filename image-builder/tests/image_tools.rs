//! What Farhold writes itself, against the tools that others use: hash trees against `veritysetup`, the ESP against
//! `fsck.vfat`, Secure Boot signatures through `sbsign`. The tools come from the tools root of the user's cache; the
//! first time a mirror is needed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod common;

use common::store;
use formats::arch::Arch;
use formats::esp::{self, Contents, Volume};
use formats::hex::{Digest, encode};
use image_builder::cmd::tools::Newest;
use image_builder::image::secureboot::{self, Keys};
use image_builder::image::sparse;
use image_builder::image::verity;
use image_builder::mirror::MirrorOptions;
use image_builder::progress::Progress;
use image_builder::tools::{Purpose, Tool, ToolsRoot};
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

fn tools() -> &'static ToolsRoot {
    static TOOLS: OnceLock<ToolsRoot> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let (store, mirrors) = (store(), MirrorOptions::default());
        let newest = Newest { store: &store, mirrors: &mirrors, folders: &[] };
        let tools = newest.open(Purpose::Build, false, &Progress::quiet());
        tools.unwrap_or_else(|error| panic!("{error:#}"))
    })
}

#[test]
fn hash_trees_are_those_of_veritysetup() {
    let dir = tempfile::tempdir().unwrap();
    // Two blocks, a full level, one more, and three levels with a rest.
    for blocks in [2u64, 128, 129, 128 * 128 + 5] {
        let image: Vec<u8> = (0..blocks * 4096).map(|n| (n / 4096 * 7 + n % 251) as u8).collect();
        let path = dir.path().join("image");
        std::fs::write(&path, &image).unwrap();
        let digest = Digest([blocks as u8; 32]);
        let parameters = verity::parameters(digest, image.len() as u64).unwrap();
        let mut ours = Vec::new();
        let area = verity::write(&mut image.as_slice(), digest, parameters, &mut ours, &mut |_| ()).unwrap();
        let theirs = dir.path().join("theirs");
        let said = tools()
            .command(Tool::Veritysetup)
            .arg("format")
            .arg(format!("--salt={}", encode(&parameters.salt)))
            .arg(format!("--uuid={}", verity::uuid_text(area.uuid)))
            .arg(&path)
            .arg(&theirs)
            .run()
            .unwrap_or_else(|error| panic!("{error:#}"));
        assert!(String::from_utf8_lossy(&said).contains(&area.roothash.to_string()), "{blocks}");
        assert!(std::fs::read(&theirs).unwrap() == ours, "{blocks} blocks");
        std::fs::remove_file(&theirs).unwrap();
    }
}

#[test]
fn fsck_finds_nothing_wrong_with_the_esp() {
    let dir = tempfile::tempdir().unwrap();
    let uki = vec![0xa5; 13 << 20];
    for (arch, mib) in [(Arch::X86_64, 64), (Arch::Arm64, 100), (Arch::X86_64, 256), (Arch::Arm64, 512)] {
        let contents = Contents {
            arch,
            boot_loader: &[0x5a; 130_001],
            uki: &uki,
            // As long as entry names can be.
            entry: &format!("{}_0123abcd.efi", "1".repeat(64)),
            recovery: None,
            menu_s: 3,
        };
        let volume = Volume { bytes: mib << 20, first_lba: 2048, id: 7, label: *esp::LABEL };
        let path = dir.path().join("esp");
        let file = File::create(&path).unwrap();
        file.set_len(volume.bytes).unwrap();
        sparse::write(&esp::make(&contents, &volume).unwrap().medium, &file, 0).unwrap();
        let said = tools().command(Tool::FsckVfat).arg("-n").arg("-v").arg(&path).run();
        let said = String::from_utf8(said.unwrap_or_else(|error| panic!("{mib} MiB: {error:#}"))).unwrap();
        // fsck.vfat ends with 0 for some things that it would change: only its summary may follow.
        let after = said.split("Checking free cluster summary.").nth(1);
        let summary: Vec<&str> = after.unwrap_or(&said).lines().filter(|line| !line.is_empty()).collect();
        assert!(matches!(summary[..], [line] if line.contains(" files, ")), "{mib} MiB: {said}");
        assert!(!said.contains("Bad short") && !said.contains("Wrong"), "{said}");
    }
}

#[test]
fn signed_boot_files_check_and_a_foreign_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let keys = |name: &str| {
        let keys = Keys {
            key: dir.path().join(format!("{name}.key")),
            certificate: dir.path().join(format!("{name}.crt")),
        };
        let mut openssl = tools().command(Tool::Openssl);
        openssl.args(["req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        openssl.arg("-subj").arg(format!("/CN={name}")).arg("-config").arg(request_config(dir.path()));
        openssl.arg("-keyout").arg(&keys.key).arg("-out").arg(&keys.certificate);
        openssl.run().unwrap_or_else(|error| panic!("{error:#}"));
        keys
    };
    let (own, foreign) = (keys("own"), keys("foreign"));
    let program = tools().systemd_boot(Arch::X86_64).unwrap();
    let signed = dir.path().join("signed.efi");
    secureboot::sign(tools(), &own, &program, &signed).unwrap_or_else(|error| panic!("{error:#}"));
    let verify = |certificate: &Path| {
        tools().command(Tool::Sbverify).arg("--cert").arg(certificate).arg(&signed).run().is_ok()
    };
    assert!(verify(&own.certificate));
    assert!(!verify(&foreign.certificate));

    let mismatched = Keys { key: own.key.clone(), certificate: foreign.certificate.clone() };
    let error = secureboot::sign(tools(), &mismatched, &program, &dir.path().join("no.efi")).unwrap_err();
    assert!(format!("{error:#}").contains("Secure Boot"), "{error:#}");
}

/// OpenSSL wants a file even where it needs nothing from it.
fn request_config(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("req.cnf");
    std::fs::write(&path, "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
    path
}
