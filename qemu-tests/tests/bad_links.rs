//! Both programs on links as bad as they get: everything arrives, and little is paid twice.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use formats::object::BlockSize;
use qemu_tests::link::ends::End;
use qemu_tests::link::modem::{Faults, Modem};
use qemu_tests::link::namespaces::{NEAR, Namespaces};
use qemu_tests::link::parcel::{Fetched, Parcel, Serving, program};
use qemu_tests::link::run::{Both, Link};
use qemu_tests::link::shape::{Outage, Shape};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn farhold() -> std::path::PathBuf {
    program("FARHOLD").unwrap()
}

fn agent() -> Command {
    Command::new(program("FARHOLD_AGENT").unwrap())
}

/// A line of ten bits a byte, as serial lines are.
fn line(bits_per_s: u64) -> Shape {
    Shape { bits_per_s: Some(bits_per_s), bits_per_byte: 10, queue_bytes: 256, ..Shape::default() }
}

/// Fetches a parcel over a serial line with these words in its address; gives what the line carried, and how often the fetching began again.
fn over_serial(parcel: &Parcel, shape: Shape, scale: f64, words: &str) -> (Both, Fetched, Duration) {
    let ((a, server), (b, device)) = (End::terminal().unwrap(), End::terminal().unwrap());
    let mut link = Link::new(shape, shape.back(), scale);
    link.join(a, b);
    let running = link.spawn();
    let at = ["--http", "127.0.0.1:0", "--serial", server.to_str().unwrap()];
    let _serving = Serving::start(Command::new(farhold()), parcel.repository(), &at).unwrap();
    let begun = Instant::now();
    let source = format!("serial:{}{words}", device.display());
    let fetched = parcel.fetch(agent(), &source, "out").unwrap();
    (running.counts(), fetched, begun.elapsed())
}

#[test]
fn a_serial_line_without_loss_carries_little_else_than_the_object() {
    let parcel = Parcel::new(64 << 10, BlockSize::KIB_4).unwrap();
    let (counts, fetched, _) = over_serial(&parcel, line(9_600), 20.0, "");
    let used = fetched.bytes as f64 / counts[0].delivered_bytes as f64;
    assert!(used >= 0.9, "{used} of what the line carried: {counts:?}");
    assert!(counts[1].bytes * 30 < counts[0].bytes, "requests are small: {counts:?}");
}

#[test]
fn a_line_of_2400_bits_with_loss_garbage_and_duplicates_is_survived() {
    let parcel = Parcel::new(16 << 10, BlockSize::KIB_1).unwrap();
    let shape = Shape {
        loss_ppm: 20_000,
        garble_ppm: 10_000,
        duplicate_ppm: 10_000,
        delay_us: 600_000,
        seed: 3,
        ..line(2_400)
    };
    let (counts, fetched, _) = over_serial(&parcel, shape, 40.0, "");
    assert!(counts[0].lost > 5 && counts[0].garbled > 2 && counts[0].duplicated > 2, "{counts:?}");
    assert_eq!(fetched.bytes, 16 << 10);
}

#[test]
fn a_line_that_is_up_a_minute_in_ten_is_enough() {
    let parcel = Parcel::new(128 << 10, BlockSize::KIB_4).unwrap();
    let outage = Some(Outage { up_us: 60_000_000, every_us: 600_000_000 });
    let shape = Shape { outage, ..line(9_600) };
    let (counts, fetched, _) = over_serial(&parcel, shape, 100.0, "?wait_ms=120");
    assert!(counts[0].down > 0, "it never was down: {counts:?}");
    assert_eq!(fetched.bytes, 128 << 10);
}

fn satellite(modem: &Modem, folder: &Path) -> String {
    let kept = folder.join("kept");
    format!("serial:{}?modem=sbd&session_ms=60&kept={}", modem.path.display(), kept.display())
}

fn small(source: &str, name: &str, out: &Path) -> std::process::Output {
    let mut command = agent();
    command.args(["fetch", "--json", "--tries", "3", "--pause", "0.1", "--source", source, name, "--out"]);
    command.arg(out).output().unwrap()
}

#[test]
fn a_routine_check_by_satellite_is_one_message_and_none_if_nothing_is_new() {
    let parcel = Parcel::new(1_000, BlockSize::from_log2(8).unwrap()).unwrap();
    let modem =
        Modem::start(parcel.repository().to_owned(), Duration::from_millis(30), Faults::default()).unwrap();
    let (source, out) = (satellite(&modem, parcel.repository()), parcel.repository().join("frame"));
    let unheard = small(&source, "announce", &out);
    assert!(!unheard.status.success() && modem.bill().sessions == 0, "{unheard:?}");
    let frame: Vec<u8> = [&[0x11], [7; 197].as_slice()].concat();
    modem.push(frame.clone());
    let heard = small(&source, "announce", &out);
    assert!(heard.status.success(), "{heard:?}");
    assert_eq!(std::fs::read(&out).unwrap(), frame);
    let bill = modem.bill();
    assert_eq!((bill.sessions, bill.empty, bill.credits, bill.longest), (1, 0, 4, [0, 198]), "{bill:?}");
    std::fs::remove_file(&out).unwrap();
    let again = small(&source, "announce", &out);
    assert!(again.status.success(), "{again:?}");
    assert_eq!((std::fs::read(&out).unwrap(), modem.bill().sessions), (frame, 1), "no ring, no session");
}

#[test]
fn a_satellite_modem_that_fails_in_every_way_still_brings_the_object() {
    let parcel = Parcel::new(4_000, BlockSize::from_log2(8).unwrap()).unwrap();
    let clean =
        Modem::start(parcel.repository().to_owned(), Duration::from_millis(20), Faults::default()).unwrap();
    parcel.fetch(agent(), &satellite(&clean, parcel.repository()), "clean").unwrap();
    let bill = clean.bill();
    // 16 chunks of six credits and their lists, two requests of one.
    let down = 16 + parcel.object.lists.len().div_ceil(256) as u64;
    assert_eq!(bill.messages, [2, down], "{bill:?}");
    assert!(bill.longest[0] <= 50 && bill.longest[1] <= 270 && bill.empty == 0, "{bill:?}");
    drop(clean);
    let some = 50_000;
    let faults = Faults {
        no_network: 2 * some,
        down_lost: some,
        down_twice: some,
        up_lost: some,
        error: some,
        silent: some / 5,
        garbage: 2 * some,
        damaged: some,
        seed: 11,
    };
    let bad = Modem::start(parcel.repository().to_owned(), Duration::from_millis(20), faults).unwrap();
    parcel.fetch(agent(), &satellite(&bad, parcel.repository()), "bad").unwrap();
    assert!(bad.bill().credits < 3 * bill.credits, "{:?} instead of {bill:?}", bad.bill());
}

/// Fetches a parcel by HTTP through two namespaces joined by a link with these options.
fn over_http(parcel: &Parcel, options: &[&str]) -> Fetched {
    let namespaces = Namespaces::new(&farhold(), options).unwrap();
    let address = format!("{NEAR}:8480");
    let server = namespaces.command(1, &farhold());
    let _serving = Serving::start(server, parcel.repository(), &["--http", &address]).unwrap();
    let agent = program("FARHOLD_AGENT").unwrap();
    parcel.fetch(namespaces.command(2, &agent), &format!("http://{address}"), "out").unwrap()
}

#[test]
fn http_finishes_on_slow_late_and_lossy_links() {
    let parcel = Parcel::new(48 << 10, BlockSize::KIB_4).unwrap();
    let cases: [&[&str]; 5] = [
        &["--rate", "64kbit", "--scale", "10"],
        &["--rate", "2400bit", "--scale", "200"],
        &["--rate", "64kbit", "--delay", "600ms", "--loss", "5%", "--scale", "10"],
        &["--rate", "64kbit", "--delay", "1.5s", "--jitter", "200ms", "--scale", "10"],
        &["--rate", "64kbit", "--loss", "20%", "--reorder", "5%", "--duplicate", "5%", "--scale", "10"],
    ];
    for options in cases {
        let fetched = over_http(&parcel, options);
        eprintln!("{}: {:.1} s, {} interruptions", options.join(" "), fetched.seconds, fetched.failures);
        assert!(fetched.paid < 2 * fetched.bytes, "{options:?}: {fetched:?}");
    }
}

#[test]
#[cfg_attr(not(feature = "long"), ignore = "takes minutes: make test-all")]
fn http_finishes_at_40_percent_loss_and_when_up_a_minute_in_ten() {
    let parcel = Parcel::new(48 << 10, BlockSize::KIB_4).unwrap();
    let cases: [&[&str]; 2] = [
        &["--rate", "64kbit", "--loss", "40%", "--scale", "10"],
        &["--rate", "2400bit", "--up", "60s/10min", "--scale", "60"],
    ];
    for options in cases {
        let fetched = over_http(&parcel, options);
        eprintln!("{}: {:.1} s, {} interruptions", options.join(" "), fetched.seconds, fetched.failures);
    }
}

#[test]
#[ignore = "a benchmark, for `make bench`"]
fn bench_serial_beside_the_raw_line() {
    let parcel = Parcel::new(256 << 10, BlockSize::KIB_64).unwrap();
    println!(
        "256 KiB over a serial line, ten times as fast where it says so: raw line beside the whole program"
    );
    for (bits_per_s, delay_us, scale) in
        [(9_600, 0, 10.0), (9_600, 600_000, 10.0), (115_200, 0, 1.0), (115_200, 0, 10.0)]
    {
        let shape = Shape { delay_us, seed: 1, ..line(bits_per_s) };
        let (_, fetched, took) = over_serial(&parcel, shape, scale, "");
        let raw = fetched.bytes as f64 * 10.0 / bits_per_s as f64 / scale;
        let ratio = raw / took.as_secs_f64();
        println!(
            "{bits_per_s} bit/s × {scale}, {} ms late: {took:.1?}, {ratio:.2} of the raw line",
            delay_us / 1000
        );
    }
}
