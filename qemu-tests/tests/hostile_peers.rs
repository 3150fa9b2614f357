//! The device's program against peers that lie, at the other end of a line, behind a modem, and as a web server: it ends with
//! an error, in bounded time and memory. Brokers, broadcasts and the other node of a pair have such tests of their own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use formats::link::line::{Deframer, frame};
use formats::link::message::Message;
use formats::object::BlockSize;
use nix::sys::resource::{UsageWho, getrusage};
use qemu_tests::link::ends::End;
use qemu_tests::link::parcel::{Parcel, program};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most memory of the agent, KiB.
const MEMORY_MAX_KIB: u64 = 64 << 10;
/// By when the program must have given up, on a busy host; at the end of a line it listens for 240 s.
const PATIENCE: Duration = Duration::from_secs(500);
/// Noise that is sent at once.
const PIECE: usize = 4096;

/// What came of fetching the object: whether it succeeded, its words, and the most memory that any program of this test has
/// had so far, KiB, as the kernel counted it.
fn fetch(parcel: &Parcel, source: &str) -> (bool, String, u64) {
    let geometry = parcel.object.geometry;
    let mut command = Command::new(program("FARHOLD_AGENT").unwrap());
    command.args([
        "fetch",
        "--tries",
        "1",
        "--pause",
        "0.1",
        "--source",
        source,
        &parcel.object.id.to_string(),
    ]);
    command.args(["--bytes", &geometry.length().to_string()]);
    command.args(["--block-log2", &geometry.block().log2().to_string(), "--out"]);
    command.arg(parcel.repository().join("out")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.env("NO_PROXY", "*").spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "{source}: it goes on for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let most = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss().try_into().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned(), most)
}

/// Ends a liar also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn noise(seed: &mut u64) -> Vec<u8> {
    (0..PIECE)
        .map(|_| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 56) as u8
        })
        .collect()
}

fn terminal() -> (File, OwnedFd, PathBuf) {
    let (end, path) = End::terminal().unwrap();
    let End::Terminal(file, held) = end else { panic!("no terminal") };
    (file, held, path)
}

/// Reads what is there of a line that does not block.
fn heard(line: &mut File) -> Vec<u8> {
    let mut buffer = vec![0; PIECE];
    match line.read(&mut buffer) {
        Ok(n) => buffer.truncate(n),
        Err(error) if error.kind() == ErrorKind::WouldBlock => buffer.clear(),
        Err(error) => panic!("{error}"),
    }
    buffer
}

/// Writes as much as there is room for.
fn say(line: &mut File, bytes: &[u8]) {
    match line.write(bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
        Err(error) => panic!("{error}"),
    }
}

/// What a liar at the end of a line does beside noise.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Nothing: noise without end, most of it without the end of a frame.
    Noise,
    /// Wrong chunks of the right numbers.
    Chunks,
    /// Numbers beyond the file, and the last chunk too early, again and again.
    Numbers,
    /// An announcement that nobody asked for, repeated.
    Announcements,
}

fn answer(lie: Lie, message: &Message) -> Vec<Message> {
    let Message::Want(want) = message else { return Vec::new() };
    let chunk =
        |index, last, length: usize| Message::Chunk { tag: want.tag, index, last, bytes: vec![7; length] };
    let length = usize::from(want.chunk);
    match lie {
        Lie::Noise => Vec::new(),
        Lie::Chunks => want.chunks().map(|index| chunk(index, false, length)).collect(),
        Lie::Numbers => (0..50).flat_map(|n| [chunk(u32::MAX - n, false, 1024), chunk(n, true, 0)]).collect(),
        Lie::Announcements => vec![Message::Announcement([[0x11].as_slice(), &[9; 1000]].concat()); 200],
    }
}

fn against(lie: Lie) {
    let parcel = Parcel::new(64 << 10, BlockSize::KIB_4).unwrap();
    let (mut line, _held, path) = terminal();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&done);
        scope.spawn(|| {
            let (mut deframer, mut seed) = (Deframer::default(), 1);
            while !done.load(Ordering::Relaxed) {
                let messages = deframer.push(&heard(&mut line));
                for message in messages.iter().filter_map(|bytes| Message::parse(bytes)) {
                    answer(lie, &message).iter().for_each(|said| say(&mut line, &frame(&said.encode())));
                }
                let mut bytes = noise(&mut seed);
                if let Lie::Noise = lie {
                    bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = 1);
                }
                say(&mut line, &bytes);
                say(&mut line, &[0]);
            }
        });
        let source = format!("serial:{}?wait_ms=300", path.display());
        let (came, said, most) = fetch(&parcel, &source);
        println!("{lie:?}: {most} KiB at most, {}", said.trim());
        assert!(!came && said.contains("fetch "), "{lie:?}: {said}");
        assert!((1000..MEMORY_MAX_KIB).contains(&most), "{lie:?}: {most} KiB");
    });
}

#[test]
#[cfg_attr(not(feature = "long"), ignore = "takes minutes: make test-all")]
fn a_liar_at_the_end_of_a_line_ends_with_an_error_and_fills_no_memory() {
    std::thread::scope(|scope| {
        for lie in [Lie::Noise, Lie::Chunks, Lie::Numbers, Lie::Announcements] {
            scope.spawn(move || against(lie));
        }
    });
}

#[test]
fn a_modem_that_lies_ends_with_an_error_and_fills_no_memory() {
    let parcel = Parcel::new(4 << 10, BlockSize::from_log2(8).unwrap()).unwrap();
    // To any command: a line without end; lengths that no message has; a session that never ends well.
    let lies: [&[u8]; 3] = [
        &[b'A'; PIECE],
        b"\r\n+SBDIX: 0, 1, 1, 65535, 4294967295, 65535\r\nOK\r\n\xff\xff\xff\xff",
        b"\r\nSBDRING\r\nREADY\r\n+SBDIX: 32, 1, 2, 0, 0, 0\r\nERROR\r\n",
    ];
    for lie in lies {
        let (mut line, _held, path) = terminal();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    drop(heard(&mut line));
                    say(&mut line, lie);
                }
            });
            let kept = parcel.repository().join("kept");
            let source = format!(
                "serial:{}?modem=sbd&session_ms=50&wait_ms=300&kept={}",
                path.display(),
                kept.display()
            );
            let (came, said, most) = fetch(&parcel, &source);
            println!("{most} KiB at most, {}", said.trim());
            assert!(!came && said.contains("fetch "), "{said}");
            assert!((1000..MEMORY_MAX_KIB).contains(&most), "{most} KiB");
        });
    }
}

/// What a web server answers to everything, and goes on with until it is hung up.
const ANSWERS: [(&str, &str); 4] = [
    ("a body without end", "HTTP/1.1 200 OK\r\n\r\n"),
    (
        "a length of exabytes",
        "HTTP/1.1 206 Partial Content\r\nContent-Length: 9223372036854775807\r\nContent-Range: bytes 0-9223372036854775806/9223372036854775807\r\n\r\n",
    ),
    ("a head without end", "HTTP/1.1 200 OK\r\nX: "),
    (
        "the right range with wrong bytes",
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-65535/65536\r\nContent-Length: 65536\r\n\r\n",
    ),
];

fn serve(mut stream: TcpStream, head: &str, done: &AtomicBool) {
    let mut asked = [0; 2048];
    stream.set_nonblocking(false).unwrap();
    if stream.read(&mut asked).is_err() || stream.write_all(head.as_bytes()).is_err() {
        return;
    }
    // A megabyte a second is enough to fill a memory that is not bounded.
    for _ in 0..60_000 {
        if done.load(Ordering::Relaxed) || stream.write_all(&[b'z'; 16 << 10]).is_err() {
            return;
        }
    }
}

#[test]
fn a_web_server_that_lies_ends_with_an_error_and_fills_no_memory() {
    let parcel = Parcel::new(64 << 10, BlockSize::KIB_4).unwrap();
    for (what, head) in ANSWERS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (done, _stop) = (&done, Stop(&done));
            listener.set_nonblocking(true).unwrap();
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => drop(scope.spawn(move || serve(stream, head, done))),
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            });
            let (came, said, most) = fetch(&parcel, &format!("http://{address}/"));
            println!("{what}: {most} KiB at most, {}", said.trim());
            assert!(!came && said.contains("fetch "), "{what}: {said}");
            assert!((1000..MEMORY_MAX_KIB).contains(&most), "{what}: {most} KiB");
        });
    }
}
