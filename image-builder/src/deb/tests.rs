//! Packages made here, whole and broken in each way.

use super::*;

#[derive(Default)]
struct Seen {
    control: Vec<(String, String)>,
    entries: Vec<(String, Kind, String)>,
}

impl Visitor for Seen {
    fn control(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.control.push((name.into(), String::from_utf8(bytes)?));
        Ok(())
    }
    fn entry(&mut self, member: &Member, data: &mut dyn Read) -> Result<()> {
        let mut text = String::new();
        data.read_to_string(&mut text)?;
        self.entries.push((member.path.clone(), member.kind.clone(), text));
        Ok(())
    }
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        let bytes = path.as_bytes();
        header.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn pack(how: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match how {
        "xz" => {
            liblzma::read::XzEncoder::new(bytes, 6).read_to_end(&mut out).unwrap();
        }
        "zst" => out = zstd::encode_all(bytes, 3).unwrap(),
        "gz" => {
            flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
        }
        _ => out = bytes.to_vec(),
    }
    out
}

fn deb(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ar::Builder::new(Vec::new());
    for (name, bytes) in members {
        builder.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn sample(how: &str) -> Vec<u8> {
    let control = pack(how, &tar_of(&[("./control", "Package: x\n"), ("./postinst", "#!/bin/sh\n")]));
    let data = pack(how, &tar_of(&[("./usr/bin/x", "program"), ("./etc/x", "settings")]));
    let ending = if how == "tar" { String::new() } else { format!(".{how}") };
    deb(&[
        ("debian-binary", b"2.0\n"),
        (&format!("control.tar{ending}"), &control),
        (&format!("data.tar{ending}"), &data),
    ])
}

fn error(bytes: &[u8]) -> String {
    format!("{:#}", read(bytes, &mut Seen::default()).unwrap_err())
}

#[test]
fn reads_every_compression() {
    for how in ["tar", "xz", "zst", "gz"] {
        let mut seen = Seen::default();
        read(&sample(how)[..], &mut seen).unwrap();
        assert_eq!(seen.control[1], ("postinst".into(), "#!/bin/sh\n".into()), "{how}");
        assert_eq!(seen.entries[0], ("/usr/bin/x".into(), Kind::File, "program".into()), "{how}");
    }
}

#[test]
fn a_package_cut_anywhere_is_an_error() {
    for how in ["tar", "xz", "zst", "gz"] {
        let whole = sample(how);
        // `ar` pads a member to an even length: that last byte carries nothing.
        for len in (0..whole.len() - 2).step_by(7) {
            let cut = read(&whole[..len], &mut Seen::default());
            // An uncompressed tar may lose its zero blocks at the end; everything else must be noticed.
            assert!(cut.is_err() || (how == "tar" && len > whole.len() - 1200), "{how} cut at {len}");
        }
    }
}

#[test]
fn says_what_is_wrong_with_a_package() {
    let data = tar_of(&[("./x", "")]);
    let control = tar_of(&[("./control", "")]);
    assert!(error(b"<html>not found</html>").contains("not a whole `ar` archive"));
    assert_eq!(
        error(&deb(&[("control.tar", &control)])),
        "package starts with `control.tar`, must start with `debian-binary`"
    );
    assert_eq!(error(&deb(&[("debian-binary", b"3.0\n")])), "package format is `3.0`, must be 2.x");
    assert!(error(&deb(&[("debian-binary", b"2.0\n"), ("data.tar", &data)])).contains("before its control"));
    assert!(error(&deb(&[("debian-binary", b"2.0\n"), ("control.tar", &control)])).contains("no data.tar"));
    assert!(error(&deb(&[("debian-binary", b"2.0\n"), ("control.tar.lz", b"")])).contains("unknown way"));
    let escape = tar_of(&[("../../etc/passwd", "x")]);
    let bad = deb(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &escape)]);
    assert_eq!(error(&bad), "read data.tar: path `../../etc/passwd` leads out of its folder");
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048), at in 0usize..400) {
        let mut damaged = sample("xz");
        for (n, byte) in bytes.iter().take(8).enumerate() {
            let place = (at + n * 31) % damaged.len();
            damaged[place] ^= byte;
        }
        // Either outcome is fine; what matters is that it comes.
        drop(read(&damaged[..], &mut Seen::default()));
        drop(read(&bytes[..], &mut Seen::default()));
    }
}
