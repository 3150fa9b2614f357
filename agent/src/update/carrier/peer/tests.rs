//! Two nodes with journals and slots of their own, the real `farhold serve`, sockets where the tunnel would be: what is
//! paid for, and what a hostile node can do.

use super::talk::REQUEST_MAX;
use super::*;
use crate::io::disk::{BlockDevice, Disk};
use crate::update::carrier::Carriers;
use crate::update::carrier::broker_tests::parts::farhold;
use crate::update::carrier::mqtt::Identity;
use crate::update::esp::Esp;
use crate::update::fetch::{Control, Interval};
use crate::update::install::{self, Platform, Volume, Work};
use crate::update::rig::decisions::{look, manifest_of, offered, running_one};
use crate::update::rig::medium::{Medium, Place};
use crate::update::rig::release::{LARGE, Shop};
use crate::update::state::Attempt;
use crate::update::step::{Effect, Fault};
use formats::layout::Slot;
use formats::repository;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;

/// A block of a payload, and what may come between two flushes.
const BLOCK: u64 = 1024;
const INTERVAL: Interval = Interval { bytes: 4 * BLOCK, ms: 200 };

/// The rig's machine, with staged objects in a folder as on a state partition.
struct Home {
    medium: Medium,
    staged: PathBuf,
}

impl Home {
    fn new(shop: &Shop, staged: PathBuf) -> Self {
        let one = &shop.one;
        let medium = Medium::new(one.image.len() * 2, one.verity().len() + 8192, 1 << 30);
        medium.put(Place::Root(Slot::A), &one.image);
        medium.put(Place::Verity(Slot::A), &one.verity());
        medium.put_entry(&one.entry(), &one.uki);
        medium.set_other(Slot::B);
        Self { medium, staged }
    }
}

impl Platform for Home {
    fn open(&mut self, volume: Volume) -> Result<Box<dyn Disk>> {
        let Volume::Staged(id, bytes) = volume else { return Platform::open(&mut self.medium, volume) };
        let path = self.staged.join(id.to_string());
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path)?;
        file.set_len(bytes)?;
        Ok(Box::new(BlockDevice::open(&path)?))
    }
    fn discard(&mut self) -> Result<()> {
        self.medium.discard()
    }
    fn keep(&mut self, _: &[Digest]) -> Result<()> {
        Ok(())
    }
    fn esp(&mut self) -> Result<Box<dyn Esp + '_>> {
        self.medium.esp()
    }
    fn var_free(&mut self) -> Result<u64> {
        self.medium.var_free()
    }
}

/// Counts what a carrier is paid.
#[derive(Default)]
struct Meter(u64);

impl Control for Meter {
    fn stopped(&self) -> bool {
        false
    }
    fn now_ms(&self) -> u64 {
        boot_ms()
    }
    fn progress(&mut self, _: &'static str, _: u64, _: u64) {}
    fn fetched(&mut self, bytes: u64) {
        self.0 += bytes;
    }
}

/// A repository that is served at 1 Mbit/s, and where nodes live.
struct Desk {
    shop: Shop,
    folder: tempfile::TempDir,
    url: String,
    serve: Child,
}

impl Drop for Desk {
    fn drop(&mut self) {
        drop(self.serve.kill());
        drop(self.serve.wait());
    }
}

impl Desk {
    fn new() -> Self {
        let (shop, folder) = (Shop::new(LARGE), tempfile::tempdir().unwrap());
        for (name, bytes) in &shop.two.files {
            let path = folder.path().join("repo").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let mut serve = Command::new(farhold());
        serve.arg("serve").arg(folder.path().join("repo")).args([
            "--http",
            "127.0.0.1:0",
            "--rate-kbit",
            "1000",
        ]);
        let mut serve = serve.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(serve.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split(' ').find(|word| word.starts_with("http://")).unwrap();
        Self { url: url.trim().to_owned(), shop, folder, serve }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A node that hands out on the socket of its own name and asks on that of the other.
    fn node(&self, own: &str, other: &str) -> Arc<Peer> {
        let staged = self.path(&format!("{own}.staged"));
        std::fs::create_dir_all(&staged).unwrap();
        let mut peer = Peer::new(self.path(other), staged, Box::new(|| ())).unwrap();
        (peer.bite, peer.patience_ms) = (8 * BLOCK, 2_000);
        let peer = Arc::new(peer);
        drop(std::fs::remove_file(self.path(own)));
        serve::start(peer.clone(), UnixListener::bind(self.path(own)).unwrap()).unwrap();
        peer
    }

    fn attempt(&self) -> Attempt {
        let (state, _) = look(running_one(&self.shop), &[&self.shop.two.files[repository::ANNOUNCE]]);
        let (_, out) = state.step(offered(&manifest_of(&self.shop.two)), 4000);
        let fetch = |effect| if let Effect::Fetch(_, attempt) = effect { Some(*attempt) } else { None };
        out.effects.into_iter().find_map(fetch).unwrap()
    }

    /// Fetches the second release and writes the other slot; gives the bytes that were paid for.
    fn update(&self, peer: Arc<Peer>) -> u64 {
        let identity = Identity { device: "device".into(), retained: Vec::new(), seed: 1 };
        let inner = Carriers::new(identity, |_| {}).open(&self.url).unwrap();
        let mut home = Home::new(&self.shop, peer.staged.clone());
        let (mut carrier, mut meter) = (Beside { inner, peer }, Meter::default());
        let running = self.shop.one.roothash;
        let mut work = Work { platform: &mut home, control: &mut meter, running, interval: INTERVAL };
        let attempt = self.attempt();
        while let Err((_, failure)) = install::fetch(&mut work, &attempt, &mut carrier) {
            assert!(matches!(failure.fault, Fault::Unreachable(_)), "{failure:?}");
        }
        let slot = install::install(&mut work, &attempt).map_err(|(_, failure)| failure.why).unwrap();
        assert_eq!(slot.roothash(), self.shop.two.roothash);
        meter.0
    }
}

#[test]
fn a_release_is_paid_for_once_by_two_nodes() {
    let desk = Desk::new();
    let (a, b) = (desk.node("a", "b"), desk.node("b", "a"));
    let barrier = Barrier::new(2);
    let paid = std::thread::scope(|scope| {
        let begin = |peer: &Arc<Peer>| {
            let (peer, desk, barrier) = (peer.clone(), &desk, &barrier);
            scope.spawn(move || {
                barrier.wait();
                desk.update(peer)
            })
        };
        let nodes = [begin(&a), begin(&b)];
        nodes.map(|node| node.join().unwrap())
    });
    let (needed, brought) = (desk.shop.two.object_bytes, [a.brought(), b.brought()]);
    println!("{needed} bytes: paid {paid:?}, from the other node {brought:?}");
    assert!(paid.iter().sum::<u64>() <= needed + BLOCK + INTERVAL.bytes, "{paid:?} of {needed}");
    assert!(paid.iter().chain(&brought).sum::<u64>() >= 2 * needed, "{paid:?} {brought:?}");
    // One that comes when the other has all of it pays nothing at all.
    std::fs::remove_dir_all(&b.staged).unwrap();
    let late = desk.node("b", "a");
    assert_eq!(desk.update(late.clone()), 0);
    assert_eq!(late.brought(), needed);
}

#[test]
fn a_node_without_the_other_updates_as_ever() {
    let desk = Desk::new();
    let alone = desk.node("a", "nobody");
    assert_eq!(desk.update(alone.clone()), desk.shop.two.object_bytes);
    assert_eq!(alone.brought(), 0);
}

/// What is answered to a request.
type Lie = fn(Request) -> Vec<u8>;

/// Answers each request as `lie` says, on a socket.
fn liar(socket: PathBuf, lie: Lie) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Ok(request) = hear::<Request>(&mut stream, REQUEST_MAX) {
                if stream.write_all(&lie(request)).is_err() {
                    break;
                }
            }
        }
    });
}

fn said(answers: &[Answer]) -> Vec<u8> {
    let mut bytes = Vec::new();
    answers.iter().for_each(|answer| say(&mut bytes, answer).unwrap());
    bytes
}

#[test]
fn a_hostile_node_costs_time_and_nothing_else() {
    let lies: [(&str, Lie); 5] = [
        ("garbage", |_| vec![0x55; 4096]),
        ("length", |_| vec![0xff; 8]),
        ("wrong", |request| match request {
            Request::Ask { .. } => {
                said(&[Answer::Has { wanted: true, has: Runs::of(0..1 << 20), granted: Runs::default() }])
            }
            Request::Get { from, to, .. } => {
                let pieces = (from..to.min(from + 64)).map(|index| Answer::Piece(index, vec![9; 1024]));
                said(&pieces.chain([Answer::End]).collect::<Vec<_>>())
            }
        }),
        ("unasked", |request| match request {
            Request::Ask { .. } => {
                said(&[Answer::Has { wanted: true, has: Runs::of([3]), granted: Runs::default() }])
            }
            Request::Get { .. } => said(&[Answer::Piece(77, vec![9; 4 << 20])]),
        }),
        ("hoard", |request| match request {
            Request::Ask { .. } => {
                said(&[Answer::Has { wanted: true, has: Runs::default(), granted: Runs::default() }])
            }
            Request::Get { .. } => said(&[Answer::End]),
        }),
    ];
    let desk = Desk::new();
    for (name, lie) in lies {
        let socket = format!("{name}.liar");
        liar(desk.path(&socket), lie);
        let node = desk.node(name, &socket);
        assert_eq!(desk.update(node.clone()), desk.shop.two.object_bytes, "{name}");
        assert_eq!(node.brought(), 0, "{name}");
    }
}

#[test]
fn a_node_that_asks_for_nonsense_gets_nothing_and_ends_nothing() {
    let desk = Desk::new();
    let node = desk.node("a", "nobody");
    let mut stream = UnixStream::connect(desk.path("a")).unwrap();
    let wanted = Wanted { what: What::Object(Digest([9; 32])), length: u64::MAX, piece: 0, missing: vec![] };
    let file = File::of(&wanted);
    say(&mut stream, &Request::Ask { file, token: 0, claims: Runs::of(0..1 << 20) }).unwrap();
    let Answer::Has { wanted: false, has, .. } = hear(&mut stream, ANSWER_MAX).unwrap() else { panic!() };
    assert_eq!(has, Runs::default());
    say(&mut stream, &Request::Get { file, from: 0, to: u64::MAX }).unwrap();
    assert!(matches!(hear(&mut stream, ANSWER_MAX).unwrap(), Answer::End));
    // More conversations than there may be are closed, and those that there are go on.
    let more: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(desk.path("a")).unwrap()).collect();
    say(&mut stream, &Request::Get { file, from: 5, to: 1 }).unwrap();
    assert!(matches!(hear(&mut stream, ANSWER_MAX).unwrap(), Answer::End));
    drop((stream, more));
    assert_eq!(desk.update(node), desk.shop.two.object_bytes);
}
