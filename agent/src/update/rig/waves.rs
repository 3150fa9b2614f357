//! A release that is held back, over carriers that have names in few bytes: the real `farhold serve`, `broadcast` and
//! `push`, the device's own carriers and decisions.

use super::decisions::{DEVICE, SITE, chain, running_one, said};
use super::release::{BOARD, PRODUCT, SMALL, Shop};
use crate::update::carrier::broker_tests::parts::farhold;
use crate::update::carrier::mqtt::Identity;
use crate::update::carrier::{Carrier, Carriers, Failure, Tally};
use crate::update::plan::Room;
use crate::update::state::{Intent, Phase};
use crate::update::step::{Event, Fault, Offered, Outcome, State};
use crate::update::waves;
use formats::arch::Arch;
use formats::frame::{Frame, MAX_FRAME_BYTES, Scope, target_tag};
use formats::repository as names;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The catalogue key of [`Shop`], 32 bytes of 3, in PKCS 8.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIAMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMD\n\
    -----END PRIVATE KEY-----\n";

/// A repository with the second release.
fn repository(shop: &Shop) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for (name, bytes) in shop.two.files.iter().filter(|(name, _)| *name != names::ANNOUNCE) {
        put(name, bytes);
    }
    put(&names::announcement(&tag(), 0, Scope::All), &shop.two.files[names::ANNOUNCE]);
    put(names::ROOTS, &chain(shop, std::iter::once(1)));
    folder
}

fn tag() -> [u8; 8] {
    target_tag(PRODUCT, BOARD, Arch::X86_64)
}

fn push(repository: &Path, share: &str) {
    let done = Command::new(farhold()).arg("push").arg(repository).args(["--wave", share]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Ends with its process; what it prints has somewhere to go.
struct Program {
    child: Child,
    _said: BufReader<ChildStdout>,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(farhold()).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let (mut line, mut said) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("serving") || line.starts_with("broadcasting"), "{line}");
        Self { child, _said: said }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A look of the device's own, as the engine does it; what the source says, and what is decided.
fn look(shop: &Shop, carrier: &mut dyn Carrier) -> Result<(State, Outcome), Failure> {
    let scopes = [Scope::All, Scope::site(SITE), Scope::device(DEVICE)];
    let mut tally = Tally::default();
    let mut frames = Vec::new();
    for scope in scopes {
        match carrier.whole(&names::announcement(&tag(), 0, scope), MAX_FRAME_BYTES as u64, &mut tally) {
            Ok(frame) => frames.push(frame),
            Err(failure) if failure.fault == Fault::Absent => {}
            Err(failure) => return Err(failure),
        }
    }
    let announced = Frame::parse(&frames[0]).unwrap().unverified().clone();
    let manifest =
        carrier.whole(&names::object(&announced.manifest), announced.manifest_bytes.into(), &mut tally)?;
    let wave = scopes.into_iter().map(|scope| names::wave(&tag(), 0, scope));
    let wave = waves::read(carrier, wave, announced.manifest, &mut tally);
    let room =
        Room { root: 1 << 30, verity: 1 << 30, esp: 1 << 30, var: 1 << 30, uki: None, boot_loader: None };
    let (state, _) = running_one(shop).step(Event::Check(None, Intent::Poll), 2000);
    let (state, _) = state.step(Event::Announcements(frames), 3000);
    let offered = Event::Manifest(Box::new(Offered { manifest, catalogue: None, wave, room }));
    Ok(state.step(offered, 4000))
}

/// Held back at first; taken once the wave has reached everybody, and not before that is said.
fn held_back_until_its_wave(shop: &Shop, repository: &Path, source: &str) {
    let mut carriers =
        Carriers::new(Identity { device: Identity::device_of(DEVICE), retained: heard(), seed: 1 }, |_| {});
    let mut carrier = carriers.open(source).unwrap();
    let (state, out) = look(shop, carrier.as_mut()).unwrap();
    assert!(said(&out).contains("waits for its wave: 0 %"), "{out:?}");
    assert!(state.memory.phase == Phase::Idle && out.effects.is_empty());
    push(repository, "100");
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let (state, out) = look(shop, carrier.as_mut()).unwrap();
        if matches!(state.memory.phase, Phase::Fetching(_)) {
            return;
        }
        assert!(said(&out).contains("waits for its wave: 0 %"), "{out:?}");
        assert!(Instant::now() < until, "the new wave never came");
    }
}

fn heard() -> Vec<String> {
    vec![names::announcement(&tag(), 0, Scope::All)]
}

/// A terminal in raw mode: our side, the side that programs open, held open here, and its path.
fn terminal() -> (File, OwnedFd, String) {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let mut modes = tcgetattr(&slave).unwrap();
    cfmakeraw(&mut modes);
    tcsetattr(&slave, SetArg::TCSANOW, &modes).unwrap();
    let path = ttyname(&slave).unwrap().to_str().unwrap().to_owned();
    (File::from(master), slave, path)
}

/// Carries bytes one way, as long as the process lives.
fn carry(mut from: File, mut to: File) {
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
}

#[test]
fn over_a_serial_line_a_release_is_held_back_until_its_wave() {
    let shop = Shop::new(SMALL);
    let folder = repository(&shop);
    push(folder.path(), "0");
    let ((a, _held_a, server), (b, _held_b, device)) = (terminal(), terminal());
    carry(a.try_clone().unwrap(), b.try_clone().unwrap());
    carry(b, a);
    let path = folder.path().to_str().unwrap();
    let _serving = Program::start(&["serve", path, "--http", "127.0.0.1:0", "--serial", &server]);
    held_back_until_its_wave(&shop, folder.path(), &format!("serial:{device}"));
}

#[test]
fn over_a_broadcast_a_release_is_held_back_until_its_wave() {
    let shop = Shop::new(SMALL);
    let folder = repository(&shop);
    push(folder.path(), "0");
    let own = tempfile::tempdir().unwrap();
    let key = own.path().join("key.pem");
    fs::write(&key, KEY).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (place, path) = (format!("127.0.0.1:{port}"), folder.path().to_str().unwrap());
    let key = key.to_str().unwrap();
    let _sender = Program::start(&["broadcast", path, "--udp", &place, "--rate", "1000", "--key", key]);
    let (kept, roots) = (own.path().join("kept"), folder.path().join(names::ROOTS));
    let source = format!("cast:{place}?wait_s=60&kept={}&roots={}", kept.display(), roots.display());
    held_back_until_its_wave(&shop, folder.path(), &source);
}
