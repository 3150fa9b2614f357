//! Both programs on the air: real datagrams and lines that lose, fade and lie, without a way back.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use formats::object::BlockSize;
use qemu_tests::link::ends::End;
use qemu_tests::link::parcel::{Fetched, Parcel, Serving, program};
use qemu_tests::link::run::Link;
use qemu_tests::link::shape::{Outage, Shape};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 84, 7);
const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A repository with one object, keys, and the root documents that name them.
struct Station {
    parcel: Parcel,
    keys: tempfile::TempDir,
}

/// Ends with its process.
struct Sender(Child);

impl Drop for Sender {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Station {
    fn new(bytes: usize, block: BlockSize) -> Self {
        let (parcel, keys) = (Parcel::new(bytes, block).unwrap(), tempfile::tempdir().unwrap());
        let made = farhold().args(["keys", "new"]).arg(keys.path().join("k")).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        std::fs::copy(keys.path().join("k/roots"), parcel.repository().join("roots")).unwrap();
        // What stands there is no announcement.
        std::fs::remove_file(parcel.repository().join("announce")).unwrap();
        Self { parcel, keys }
    }

    /// Begins to broadcast; gives the bytes and seconds of a round, as it says.
    fn broadcast(&self, arguments: &[&str]) -> (Sender, u64) {
        let mut command = farhold();
        command.arg("broadcast").arg(self.parcel.repository()).args(arguments);
        command.arg("--object").arg(self.parcel.object.id.to_string());
        command.arg("--key").arg(self.keys.path().join("k")).stdout(Stdio::piped());
        let mut sender = Sender(command.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(sender.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("broadcasting 2 files"), "{line}");
        let bytes = line.split(" bytes a round").next().unwrap().rsplit(' ').next().unwrap();
        (sender, bytes.parse().unwrap())
    }

    fn source(&self, place: &str, name: &str) -> String {
        let (repo, kept) = (self.parcel.repository(), self.keys.path().join(name));
        let words = format!("roots={}&kept={}&wait_s=60", repo.join("roots").display(), kept.display());
        match place.contains('?') {
            true => format!("cast:{place}&{words}"),
            false => format!("cast:{place}?{words}"),
        }
    }

    /// A receiver that has begun.
    fn receive(&self, name: &str, arguments: &[&str]) -> Child {
        let (object, out) = (&self.parcel.object, self.keys.path().join(format!("{name}.out")));
        let mut command = Command::new(program("FARHOLD_AGENT").unwrap());
        command.args(["fetch", "--json"]).args(arguments).arg(object.id.to_string()).arg("--out").arg(out);
        command.args(["--bytes", &object.geometry.length().to_string()]);
        command.args(["--block-log2", &object.geometry.block().log2().to_string()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What a receiver says in the end; what it made is the object.
    fn received(&self, name: &str, child: Child) -> (Fetched, String) {
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        let said = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{said}");
        let object = self.parcel.repository().join(format!("objects/{}", self.parcel.object.id));
        let out = self.keys.path().join(format!("{name}.out"));
        assert!(std::fs::read(object).unwrap() == std::fs::read(out).unwrap(), "it is not the object");
        (serde_json::from_slice(&stdout).unwrap(), said)
    }
}

fn farhold() -> Command {
    Command::new(program("FARHOLD").unwrap())
}

fn free_port() -> u16 {
    UdpSocket::bind((HOME, 0)).unwrap().local_addr().unwrap().port()
}

/// A number in the line that says that the object is complete.
fn number(said: &str, of: &str) -> f64 {
    let line = said.lines().find(|line| line.contains("all of it was broadcast") && !line.contains(".lists"));
    let word = line.unwrap().split(' ').find_map(|word| word.strip_prefix(&format!("{of}=")));
    word.unwrap().parse().unwrap()
}

/// A link from an address of its own to the group at `port`.
fn air(shape: Shape, scale: f64, port: u16) -> (Link, String) {
    let from = End::udp((HOME, 0).into(), None).unwrap();
    let End::Udp(socket, _) = &from else { panic!("no socket") };
    let place = socket.local_addr().unwrap().to_string();
    let to = End::udp((HOME, 0).into(), Some(SocketAddrV4::new(GROUP, port).into())).unwrap();
    let mut link = Link::new(shape, shape, scale);
    link.join(from, to);
    (link, place)
}

/// 30 % loss, and a fade of 10 s in every minute.
fn weather(seed: u64) -> Shape {
    let outage = Some(Outage { up_us: 50_000_000, every_us: 60_000_000 });
    Shape { loss_ppm: 300_000, outage, seed, ..Shape::default() }
}

#[test]
fn five_megabytes_through_loss_and_fades_for_who_is_there_and_who_comes_late() {
    let station = Station::new(5_000_000, BlockSize::KIB_64);
    let port = free_port();
    // A link of 256 kbit/s, ten times as fast.
    let (link, place) = air(weather(5), 10.0, port);
    let running = link.spawn();
    let group = format!("{GROUP}:{port}?interface={HOME}");
    let early = station.receive("early", &["--source", &station.source(&group, "a")]);
    let (_sender, round_bytes) = station.broadcast(&["--udp", &place, "--rate", "2560"]);
    let round = Duration::from_secs_f64(round_bytes as f64 * 8.0 / 2_560_000.0);
    std::thread::sleep(round / 2);
    let (joined, source) = (Instant::now(), station.source(&group, "b"));
    let late = station.receive("late", &["--source", &source]);
    for (name, child) in [("early", early), ("late", late)] {
        let (fetched, said) = station.received(name, child);
        let ratio = number(&said, "received") / number(&said, "needed");
        println!(
            "{name}: {ratio:.4} of the needed symbols received; {:.3} of the object's bytes heard in all; {:.1} s, a round takes {:.1} s",
            fetched.paid as f64 / fetched.bytes as f64,
            fetched.seconds,
            round.as_secs_f64()
        );
        assert!(ratio <= 1.05, "{said}");
    }
    // The rest of the round in which it joined, and the next.
    assert!(
        joined.elapsed() < round * 3 / 2 + Duration::from_secs(10),
        "{:?} of {round:?}",
        joined.elapsed()
    );
    println!("a round is {:.3} of the coded object", round_bytes as f64 / 1e7);
    let counts = running.counts();
    assert!(counts[0].lost > 1000 && counts[0].down > 500, "{counts:?}");
}

#[test]
fn a_key_that_no_receiver_believes_is_refused() {
    let (station, other) = (Station::new(5_000, BlockSize::KIB_4), Station::new(5_000, BlockSize::KIB_4));
    let mut command = farhold();
    command.arg("broadcast").arg(station.parcel.repository()).args(["--udp", "127.0.0.1:9", "--plan"]);
    command.arg("--object").arg(station.parcel.object.id.to_string()).arg("--key");
    let key = |station: &Station| station.keys.path().join("k");
    let refused =
        Command::new(command.get_program()).args(command.get_args()).arg(key(&other)).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("is not the catalogue key of"), "{said}");
    let planned = command.arg(key(&station)).output().unwrap();
    let said = String::from_utf8(planned.stdout).unwrap();
    assert!(planned.status.success() && said.contains("a round takes"), "{said}");
}

#[test]
fn a_repository_that_cannot_be_read_for_a_while_ends_no_broadcast() {
    let station = Station::new(5_000, BlockSize::KIB_4);
    let place = format!("{HOME}:{}", free_port());
    let mut command = farhold();
    command.arg("broadcast").arg(station.parcel.repository()).args(["--udp", &place, "--rate", "1000"]);
    command.args(["--rounds", "60", "--object"]).arg(station.parcel.object.id.to_string());
    command.arg("--key").arg(station.keys.path().join("k")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut sender = command.spawn().unwrap();
    BufReader::new(sender.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let roots = station.parcel.repository().join("roots");
    std::fs::remove_file(&roots).unwrap();
    let mut said = BufReader::new(sender.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("roots") && line.contains("what was broadcast so far goes on"), "{line}");
    std::fs::copy(station.keys.path().join("k/roots"), station.keys.path().join("roots")).unwrap();
    let (kept, own) = (station.keys.path().join("a"), station.keys.path().join("roots"));
    let source = format!("cast:{place}?wait_s=60&roots={}&kept={}", own.display(), kept.display());
    let receiver = station.receive("old", &["--source", &source]);
    let (fetched, _) = station.received("old", receiver);
    assert_eq!(fetched.bytes, 5_000);
    let mut more = String::new();
    said.read_to_string(&mut more).unwrap();
    assert!(sender.wait().unwrap().success() && more.is_empty(), "it is said once: {more}");
}

#[test]
fn a_line_without_a_way_back_is_enough() {
    let station = Station::new(60_000, BlockSize::KIB_4);
    let ((a, near), (b, far)) = (End::terminal().unwrap(), End::terminal().unwrap());
    let shape = Shape { garble_ppm: 2_000, bits_per_byte: 10, queue_bytes: 256, ..Shape::default() };
    let mut link = Link::new(Shape { bits_per_s: Some(500_000), ..shape }, shape, 1.0);
    link.join(a, b);
    let running = link.spawn();
    let receiver = station.receive("line", &["--source", &station.source(far.to_str().unwrap(), "a")]);
    let (_sender, _) = station.broadcast(&["--serial", near.to_str().unwrap()]);
    let (fetched, _) = station.received("line", receiver);
    let counts = running.counts();
    assert!(fetched.bytes == 60_000 && counts[0].garbled > 0, "{counts:?}");
    assert_eq!(counts[1].bytes, 0, "a receiver says nothing");
}

/// Hears what is sent to the group, and says it again with changes, several times.
fn lie(port: u16, done: &AtomicBool) -> u64 {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddrV4::new(GROUP, port).into()).unwrap();
    let (ear, mouth) = (UdpSocket::from(socket), UdpSocket::bind((HOME, 0)).unwrap());
    ear.join_multicast_v4(&GROUP, &HOME).unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut lies, mut buffer) = (0, [0; 2048]);
    let own = mouth.local_addr().unwrap().port();
    while !done.load(Ordering::Relaxed) {
        let Ok((n, from)) = ear.recv_from(&mut buffer) else { continue };
        if from.port() == own {
            continue;
        }
        // Its last byte, its number, its tag, its length; and once more as it was.
        for (at, more) in [(n - 1, 0), (9, 0), (3, 0), (n / 2, 900), (2047, 0)] {
            let mut packet = buffer;
            packet[at] ^= 0x55;
            lies += u64::from(mouth.send_to(&packet[..n + more], (GROUP, port)).is_ok());
        }
    }
    lies
}

#[test]
fn liars_and_replays_spoil_nothing_and_fill_no_memory() {
    let station = Station::new(2_000_000, BlockSize::KIB_64);
    let (port, done) = (free_port(), AtomicBool::new(false));
    let group = format!("{GROUP}:{port}");
    std::thread::scope(|scope| {
        let liar = scope.spawn(|| lie(port, &done));
        let source = station.source(&format!("{group}?interface={HOME}"), "a");
        let receiver = station.receive("lied", &["--source", &source]);
        let home = HOME.to_string();
        let (_sender, _) = station.broadcast(&["--udp", &group, "--interface", &home, "--rate", "2000"]);
        let peak = format!("/proc/{}/status", receiver.id());
        let watch = scope.spawn(move || {
            let mut most = 0;
            while let Ok(status) = std::fs::read_to_string(&peak) {
                let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let Some(line) = line else { break };
                most = line.trim().trim_end_matches(" kB").parse().unwrap_or(most);
                std::thread::sleep(Duration::from_millis(50));
            }
            most
        });
        let (_, said) = station.received("lied", receiver);
        done.store(true, Ordering::Relaxed);
        let (lies, peak_kib): (u64, u64) = (liar.join().unwrap(), watch.join().unwrap());
        println!("{lies} lies, {} wrong symbols, {peak_kib} KiB at most", number(&said, "wrong"));
        assert!(lies > 2000 && number(&said, "wrong") > 500.0, "{lies}: {said}");
        assert!((1000..65_536).contains(&peak_kib), "{peak_kib} KiB");
    });
}

#[test]
fn what_the_air_does_not_bring_comes_by_http_and_nothing_else_does() {
    let station = Station::new(2_000_000, BlockSize::KIB_64);
    let port = free_port();
    // One round, of which not enough comes: 1.2 of 2 million bytes.
    let (link, place) = air(Shape { loss_ppm: 700_000, seed: 3, ..Shape::default() }, 1.0, port);
    let _running = link.spawn();
    let cast = station.source(&format!("{GROUP}:{port}?interface={HOME}"), "a");
    let serve = Command::new(program("FARHOLD").unwrap());
    let repository = station.parcel.repository();
    std::fs::write(repository.join("announce"), [0x11; 198]).unwrap();
    let server = UdpSocket::bind((HOME, 0)).unwrap().local_addr().unwrap().to_string();
    let slow = ["--http", server.as_str(), "--rate-kbit", "1000"];
    let _serving = Serving::start(serve, repository, &slow).unwrap();
    std::fs::remove_file(repository.join("announce")).unwrap();
    let (_sender, _) = station.broadcast(&["--udp", &place, "--rate", "10000"]);
    let http = format!("http://{server}/");
    let receiver = station.receive("mended", &["--source", &http, "--listen", &cast]);
    let (fetched, _) = station.received("mended", receiver);
    println!("{} of {} bytes came by HTTP", fetched.paid, fetched.bytes);
    assert!(fetched.paid < fetched.bytes * 3 / 4, "{fetched:?}");
}
