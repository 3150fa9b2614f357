//! A benchmark: one object over one bad link with `curl -C -`, with SWUpdate as Debian has it, and with `farhold-agent`, in two
//! network namespaces. curl's is a plain bulk TCP stream that takes up what it has.
//!
//! RAUC cannot be here: what it streams goes through the kernel's nbd, dm-verity and loop devices, so it needs a machine of its own
//! (`beside_rauc`), and outside of one it downloads nothing. `FARHOLD_BENCH_LINKS` runs only the links whose words have it (`2400bit`).
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking, also in its helpers")]

use formats::object::BlockSize;
use formats::repository;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qemu_tests::link::namespaces::{NEAR, Namespaces};
use qemu_tests::link::parcel::{Parcel, Serving, program};
use qemu_tests::programs::run;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Under which name of a repository SWUpdate's file is served: no object has it.
const BUNDLE: &str = "objects/0000000000000000000000000000000000000000000000000000000000000000";
/// Both begin again for ever, as a unit of systemd's would have them do.
const CURL: &str = "echo begun; until curl --silent --fail --speed-limit 1 --speed-time 60 -C - -o \"$1\" \"$2\"; \
    do echo again; sleep 0.1; done; echo complete";
const SWUPDATE: &str = "echo begun; until swupdate -l 4 -f \"$1/swupdate.cfg\" -M -m -H board:1.0 -k \"$1/cert.pem\" \
    -d \"-u $2 -r 0 -t 60\" 2>&1; do echo again; sleep 0.1; done; echo complete";
/// How long others may take: so many times as long as we did, and so much more.
const PATIENCE: (u32, Duration) = (3, Duration::from_secs(120));

/// What a download took.
struct Took {
    seconds: f64,
    /// Bytes that were given to the link, in both directions, with the headers of IP and TCP.
    link_bytes: u64,
    /// Times that it began again.
    again: u32,
    /// Whether it came to its end.
    done: bool,
}

/// Serves a parcel at one end of a link and lets `fetch` take it in at the other.
fn over(parcel: &Parcel, options: &[&str], fetch: impl FnOnce(&Namespaces, &str) -> Took) -> Took {
    let farhold = program("FARHOLD").unwrap();
    let namespaces = Namespaces::new(&farhold, options).unwrap();
    let address = format!("{NEAR}:8480");
    let server = namespaces.command(1, &farhold);
    let serving = Serving::start(server, parcel.repository(), &["--http", &address]).unwrap();
    let took = fetch(&namespaces, &format!("http://{address}"));
    drop(serving);
    let link_bytes = namespaces.end().unwrap().iter().map(|counts| counts.bytes).sum();
    Took { link_bytes, ..took }
}

fn ours(parcel: &Parcel, options: &[&str]) -> Took {
    over(parcel, options, |namespaces, url| {
        let agent = namespaces.command(2, &program("FARHOLD_AGENT").unwrap());
        let fetched = parcel.fetch(agent, url, "out").unwrap();
        Took { seconds: fetched.seconds, link_bytes: 0, again: fetched.failures, done: true }
    })
}

/// Runs a script with two arguments in the far namespace until it says `end`, or time is up.
fn peer(namespaces: &Namespaces, script: [&str; 3], folder: &Path, (end, limit): (&str, Duration)) -> Took {
    let mut command = namespaces.command(2, Path::new("timeout"));
    command.args(["--kill-after=5", &limit.as_secs().to_string(), "sh", "-c", script[0], "sh"]);
    command.args(&script[1..]).env("TMPDIR", folder).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.process_group(0).spawn().unwrap();
    let mut begun = Instant::now();
    let mut took = Took { seconds: 0.0, link_bytes: 0, again: 0, done: false };
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.as_str() {
            "begun" => begun = Instant::now(),
            "again" => took.again += 1,
            _ if !took.done && line.contains(end) => {
                took.seconds = begun.elapsed().as_secs_f64();
                took.done = true;
                // It may begin anew for reasons of its own.
                kill(Pid::from_raw(-i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
                break;
            }
            _ => {}
        }
    }
    child.wait().unwrap();
    if !took.done {
        took.seconds = begun.elapsed().as_secs_f64();
    }
    took
}

fn with_curl(parcel: &Parcel, options: &[&str], limit: Duration) -> Took {
    let out = parcel.repository().join("curl");
    let took = over(parcel, options, |namespaces, url| {
        let url = format!("{url}/{}", repository::object(&parcel.object.id));
        peer(namespaces, [CURL, out.to_str().unwrap(), &url], parcel.repository(), ("complete", limit))
    });
    assert!(!took.done || fs::read(&out).unwrap() == served(parcel), "curl brought something else");
    took
}

fn with_swupdate(parcel: &Parcel, options: &[&str], limit: Duration) -> Took {
    let folder = tempfile::Builder::new().prefix("farhold-swupdate-").tempdir().unwrap();
    let out = bundle(parcel, folder.path());
    let took = over(parcel, options, |namespaces, url| {
        let script = [SWUPDATE, folder.path().to_str().unwrap(), &format!("{url}/{BUNDLE}")];
        peer(namespaces, script, folder.path(), ("SWUPDATE successful", limit))
    });
    assert!(!took.done || fs::read(out).unwrap() == served(parcel), "SWUpdate installed something else");
    took
}

fn served(parcel: &Parcel) -> Vec<u8> {
    fs::read(parcel.repository().join(repository::object(&parcel.object.id))).unwrap()
}

/// Makes the same object a signed file of SWUpdate's in the repository; gives where it would be installed.
fn bundle(parcel: &Parcel, folder: &Path) -> PathBuf {
    let (made, out) = (folder.join("made"), folder.join("installed"));
    fs::create_dir(&made).unwrap();
    let image = served(parcel);
    fs::write(made.join("image"), &image).unwrap();
    let sum = formats::hex::encode(&<sha2::Sha256 as sha2::Digest>::digest(&image));
    let description = format!(
        "software = {{ version = \"1.0\"; hardware-compatibility: [ \"1.0\" ]; images: ( {{ filename = \"image\"; type = \"rawfile\"; \
         path = \"{}\"; sha256 = \"{sum}\"; }} ); }}\n",
        out.display()
    );
    fs::write(made.join("sw-description"), description).unwrap();
    fs::write(folder.join("swupdate.cfg"), "globals: { bootloader = \"none\"; };\n").unwrap();
    let script = "set -e; cd \"$1\"; openssl req -x509 -newkey rsa:2048 -nodes -keyout ../key.pem -out ../cert.pem -subj /CN=bench -days 2 \
        -addext keyUsage=digitalSignature -addext extendedKeyUsage=emailProtection 2>/dev/null; \
        openssl cms -sign -in sw-description -out sw-description.sig -signer ../cert.pem -inkey ../key.pem -outform DER -nosmimecap -binary; \
        printf 'sw-description\\nsw-description.sig\\nimage\\n' | cpio --quiet -o -H crc > \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&made).arg(parcel.repository().join(BUNDLE));
    run(&mut command).unwrap();
    out
}

#[test]
#[ignore = "a benchmark, for `make bench`"]
fn bench_http_beside_peers() {
    // KiB and options. Where time is scaled, less of it is TCP's waits, which are the kernel's own.
    let cases: [(usize, &str); 10] = [
        (256, "--rate 64kbit"),
        (256, "--rate 64kbit --delay 600ms"),
        (256, "--rate 64kbit --delay 1.5s"),
        (256, "--rate 64kbit --loss 5%"),
        (256, "--rate 64kbit --loss 5% --delay 600ms"),
        (128, "--rate 64kbit --loss 20%"),
        (48, "--rate 64kbit --loss 40%"),
        (64, "--rate 2400bit --scale 10"),
        (64, "--rate 2400bit --loss 5% --scale 10"),
        (1024, "--rate 64kbit --up 60s/10min --scale 60"),
    ];
    let control = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    println!("the kernel's congestion control: {}", control.trim());
    println!(
        "seconds, bytes over the link beside the object's, times begun again; ratio: their seconds beside ours"
    );
    let wanted = std::env::var("FARHOLD_BENCH_LINKS").unwrap_or_default();
    for (kib, words) in cases.into_iter().filter(|(_, words)| words.contains(&wanted)) {
        let parcel = Parcel::new(kib << 10, BlockSize::KIB_64).unwrap();
        let options: Vec<&str> = words.split(' ').chain(["--seed", "1"]).collect();
        let ours = ours(&parcel, &options);
        let limit = Duration::from_secs_f64(ours.seconds) * PATIENCE.0 + PATIENCE.1;
        println!("{kib} KiB, {words}");
        let say = |name: &str, took: &Took| {
            let overhead = took.link_bytes as f64 / (kib << 10) as f64;
            let ratio = took.seconds / ours.seconds;
            let end = if took.done { "" } else { ", and was not done" };
            println!(
                "  {name:14} {:8.1} s {overhead:6.2} × {:3} again, ratio {ratio:.2}{end}",
                took.seconds, took.again
            );
        };
        say("farhold-agent", &ours);
        say("curl -C -", &with_curl(&parcel, &options, limit));
        say("swupdate", &with_swupdate(&parcel, &options, limit));
    }
}
