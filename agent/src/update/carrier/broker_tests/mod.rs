//! Real brokers, the real `farhold serve`, real files: what a device gets over MQTT, alone and together with other carriers.

mod fleet;
pub(crate) mod parts;

use super::mqtt::{Handle, Identity};
use super::*;
use crate::reports::Outgoing;
use crate::update::fetch::{Control, Interval, fetch};
use crate::update::staging::Staging;
use formats::report::Standing;
use parts::{Broker, Repository, Serve, device};
use rumqttc::{Client, Event, Incoming, MqttOptions, QoS};
use std::time::{Duration, Instant};

const LENGTH: usize = 1 << 20;

/// Counts bytes, and ends the job after so many.
#[derive(Default)]
struct Meter {
    paid: u64,
    most: Option<u64>,
}

impl Control for Meter {
    fn stopped(&self) -> bool {
        self.most.is_some_and(|most| self.paid >= most)
    }
    fn now_ms(&self) -> u64 {
        crate::io::clock::boot_ms()
    }
    fn progress(&mut self, _: &'static str, _: u64, _: u64) {}
    fn fetched(&mut self, bytes: u64) {
        self.paid += bytes;
    }
}

fn carriers(name: &str) -> Carriers {
    let retained = vec!["announcements/33b3343b4722dc34-0".to_owned()];
    Carriers::new(Identity { device: device(name), retained, seed: 7 }, |_| {})
}

fn fetch_all(repository: &Repository, carrier: &mut dyn Carrier, meter: &mut Meter) -> Result<(), Failure> {
    let mut staging = Staging::open(repository.disk(), &repository.object).unwrap();
    fetch(&mut staging, carrier, Interval::USUAL, meter)
}

#[test]
fn a_release_comes_over_tls_with_password_and_access_lists() {
    let repository = Repository::new(LENGTH);
    let broker = Broker::start(parts::Guard::Everything);
    let serve = Serve::mqtt(&repository, &broker.url("server"), &[]);
    let mut carriers = carriers("node");
    let mut carrier = carriers.open(&broker.url(&device("node"))).unwrap();
    let mut tally = Tally::default();
    let frame = carrier.whole("announcements/33b3343b4722dc34-0", 700, &mut tally).unwrap();
    assert_eq!(frame, repository.announcement);
    let roots = carrier.whole("roots", 10_000, &mut tally).unwrap();
    assert_eq!(roots, repository.roots);
    assert_eq!(carrier.whole("roots", 100, &mut tally).unwrap_err().fault, Fault::Damaged);
    let absent = repository::object(&Digest([3; 32]));
    assert_eq!(carrier.whole(&absent, 100, &mut tally).unwrap_err().fault, Fault::Absent);
    let absent = carrier.whole("announcements/33b3343b4722dc34-1", 700, &mut tally);
    assert_eq!(absent.unwrap_err().fault, Fault::Absent);
    let mut meter = Meter::default();
    fetch_all(&repository, carrier.as_mut(), &mut meter).unwrap();
    assert!(repository.complete());
    let overhead = meter.paid as f64 / (LENGTH as f64) - 1.0;
    println!("{} bytes for an object of {LENGTH}: {:.1} % more", meter.paid, overhead * 100.0);
    // A machine that is late with reading asks a second time; nothing else is paid twice.
    assert!(overhead < 0.10, "{overhead}");
    // Others are kept out by the broker, with the same words as for a wrong password.
    let mut other = self::carriers("other");
    let stranger = broker.url(&device("stranger"));
    let failure = other.open(&stranger).unwrap().whole("roots", 10_000, &mut tally).unwrap_err();
    assert_eq!(failure.fault, Fault::Unreachable(None));
    drop(serve);
}

#[test]
fn broker_and_server_go_away_in_the_middle_and_come_back() {
    let repository = Repository::new(LENGTH);
    let mut broker = Broker::start(parts::Guard::Nothing);
    let mut serve = Serve::mqtt(&repository, &broker.url("server"), &["--rate-kbit", "4000"]);
    let mut carriers = carriers("node");
    let mut carrier = carriers.open(&broker.url("node")).unwrap();
    let half = LENGTH as u64 / 2;
    let mut meter = Meter { most: Some(half), ..Meter::default() };
    assert!(fetch_all(&repository, carrier.as_mut(), &mut meter).is_err());
    broker.restart();
    let mut meter = Meter { most: Some(half / 2), ..Meter::default() };
    let deadline = Instant::now() + Duration::from_secs(120);
    while fetch_all(&repository, carrier.as_mut(), &mut meter).is_err() && !meter.stopped() {
        assert!(Instant::now() < deadline, "it does not come back");
    }
    serve.stop();
    let serve = Serve::mqtt(&repository, &broker.url("server"), &[]);
    let mut meter = Meter::default();
    while fetch_all(&repository, carrier.as_mut(), &mut meter).is_err() {
        assert!(Instant::now() < deadline, "it does not come back");
    }
    assert!(repository.complete());
    drop(serve);
}

#[test]
fn a_look_goes_on_beside_a_fetch() {
    let repository = Repository::new(LENGTH);
    let broker = Broker::start(parts::Guard::Nothing);
    let serve = Serve::mqtt(&repository, &broker.url("server"), &["--rate-kbit", "1000"]);
    let mut carriers = carriers("node");
    let session = carriers.broker(&broker.url("node")).unwrap();
    let (mut meter, mut looks) = (Meter::default(), 0);
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch_all(&repository, &mut Handle(session.clone()), &mut meter));
        let mut look = Handle(session.clone());
        while !fetching.is_finished() {
            let roots = look.whole("roots", 10_000, &mut Tally::default()).unwrap();
            assert_eq!(roots, repository.roots);
            looks += u32::from(!fetching.is_finished());
        }
        fetching.join().unwrap().unwrap();
    });
    assert!(repository.complete() && looks > 0, "{looks}");
    println!("{looks} looks beside a fetch of {} bytes for {LENGTH}", meter.paid);
    assert!(meter.paid < LENGTH as u64 * 5 / 4, "{}", meter.paid);
    drop(serve);
}

#[test]
fn what_a_device_reports_is_seen_in_the_fleet() {
    let repository = Repository::new(1 << 16);
    let broker = Broker::start(parts::Guard::Everything);
    let serve = Serve::mqtt(&repository, &broker.url("server"), &[]);
    let folder = tempfile::tempdir().unwrap();
    let mut store = crate::store::open(folder.path()).0.unwrap();
    let standing = Standing { version: "1.2.0".into(), node: "node-1".into(), ..Standing::default() };
    let mut outgoing = Outgoing::default();
    store.record(&[outgoing.stands(standing.clone()).unwrap()]).unwrap();
    assert!(outgoing.stands(standing).is_none() && outgoing.waiting);
    let mut carriers = carriers("node");
    let session = carriers.broker(&broker.url(&device("node"))).unwrap();
    let deadline = Instant::now() + Duration::from_secs(150);
    while outgoing.waiting {
        outgoing.turn(&mut store, &session, "0123456789abcdef0123456789abcdef").unwrap();
        assert!(Instant::now() < deadline, "no receipt comes");
        std::thread::sleep(Duration::from_millis(50));
    }
    let fleet = parts::fleet(&repository);
    assert!(fleet.contains("node-1") && fleet.contains("1.2.0"), "{fleet}");
    drop(serve);
}

/// What a cut may cost: a flush each two blocks, so that a run has many.
const INTERVAL: Interval = Interval { bytes: 128 << 10, ms: 2_000 };

/// A carrier's bytes that were paid and did not stay, in all transfers of a release.
struct Account<'r> {
    repository: &'r Repository,
    done: u64,
    lines: Vec<(&'static str, u64, u64)>,
}

impl Account<'_> {
    /// Looks at what stayed, as an agent that starts does.
    fn close(&mut self, name: &'static str, paid: u64) {
        let staging = Staging::open(self.repository.disk(), &self.repository.object).unwrap();
        let done = staging.done();
        self.lines.push((name, paid, paid.saturating_sub(done - self.done)));
        self.done = done;
    }
}

/// The release begins on HTTP, the server is cut off, it goes on over MQTT, the agent is killed, and it ends from a stick.
#[test]
fn one_release_over_three_carriers_pays_next_to_nothing_twice() {
    let repository = Repository::new(2 * LENGTH);
    let broker = Broker::start(parts::Guard::Nothing);
    let mut account = Account { repository: &repository, done: 0, lines: Vec::new() };
    let third = 2 * LENGTH as u64 / 3;

    let mut http = Serve::http(&repository, &["--rate-kbit", "16000"]);
    let url = http.url.clone();
    let mut staging = Staging::open(repository.disk(), &repository.object).unwrap();
    let mut carriers = carriers("node");
    let mut cut = Cut { meter: Meter::default(), at: third, server: Some(&mut http) };
    let failure = fetch(&mut staging, carriers.open(&url).unwrap().as_mut(), INTERVAL, &mut cut);
    assert!(matches!(failure.unwrap_err().fault, Fault::Unreachable(_)));
    drop(staging);
    account.close("HTTP", cut.meter.paid);

    let serve = Serve::mqtt(&repository, &broker.url("server"), &["--rate-kbit", "16000"]);
    let mut killed = Killed { meter: Meter::default(), at: third };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // What is not flushed when this unwinds is as lost as with a process that is killed.
        let mut staging = Staging::open(repository.disk(), &repository.object).unwrap();
        let mut carrier = carriers.open(&broker.url("node")).unwrap();
        fetch(&mut staging, carrier.as_mut(), INTERVAL, &mut killed)
    }));
    assert!(ended.unwrap_err().downcast_ref() == Some(&"killed"));
    drop((carriers, serve));
    account.close("MQTT", killed.meter.paid);

    let stick = crate::stick::Stick::open(repository.path().as_ref()).unwrap();
    let mut meter = Meter::default();
    let folder = stick.folder().to_str().unwrap().to_owned();
    fetch_all(&repository, open(&folder).unwrap().as_mut(), &mut meter).unwrap();
    account.close("stick", meter.paid);
    assert!(repository.complete());

    println!("carrier, bytes paid, of them without lasting use: {:?}", account.lines);
    let most = (1u64 << repository.object.block_log2) + INTERVAL.bytes;
    for (name, paid, lost) in &account.lines {
        assert!(*lost <= most && *paid > LENGTH as u64 / 4, "{name}: {:?}", account.lines);
    }
    // The lists, and what MQTT adds to each message, are not paid twice.
    let paid: u64 = account.lines.iter().map(|(_, paid, _)| paid).sum();
    let overhead = killed.meter.paid / 50;
    assert!(paid <= repository.bytes() + overhead + most, "{:?}", account.lines);
}

/// Ends without a word after so many bytes.
struct Killed {
    meter: Meter,
    at: u64,
}

impl Control for Killed {
    fn stopped(&self) -> bool {
        false
    }
    fn now_ms(&self) -> u64 {
        self.meter.now_ms()
    }
    fn progress(&mut self, _: &'static str, _: u64, _: u64) {}
    fn fetched(&mut self, bytes: u64) {
        self.meter.fetched(bytes);
        if self.meter.paid >= self.at {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

/// Ends the server after so many bytes.
struct Cut<'c> {
    meter: Meter,
    at: u64,
    server: Option<&'c mut Serve>,
}

impl Control for Cut<'_> {
    fn stopped(&self) -> bool {
        false
    }
    fn now_ms(&self) -> u64 {
        self.meter.now_ms()
    }
    fn progress(&mut self, _: &'static str, _: u64, _: u64) {}
    fn fetched(&mut self, bytes: u64) {
        self.meter.fetched(bytes);
        if self.meter.paid >= self.at
            && let Some(server) = self.server.take()
        {
            server.stop();
        }
    }
}

#[test]
fn a_hostile_peer_wastes_little_and_other_carriers_go_on() {
    let repository = Repository::new(LENGTH);
    // A broker without access lists, where anybody may write to the device.
    let broker = Broker::start(parts::Guard::Nothing);
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let hostile = std::thread::spawn({
        let (ended, port) = (ended.clone(), broker.port);
        move || flood(port, &ended)
    });
    let before = parts::resident();
    let mut carriers = carriers("node");
    let mut carrier = carriers.open(&broker.url("node")).unwrap();
    let mut meter = Meter { most: Some(64 << 20), ..Meter::default() };
    let failure = fetch_all(&repository, carrier.as_mut(), &mut meter).unwrap_err();
    assert!(failure.fault == Fault::Damaged && meter.paid < 8 << 20, "{} bytes, {}", meter.paid, failure.why);
    println!("{} bytes of lies, then: {}", meter.paid, failure.why);
    let mut meter = Meter::default();
    let begun = Instant::now();
    fetch_all(&repository, open(repository.path()).unwrap().as_mut(), &mut meter).unwrap();
    println!(
        "the folder took {:?}; {} KiB more resident",
        begun.elapsed(),
        (parts::resident() - before) >> 10
    );
    assert!(repository.complete());
    assert!(parts::resident() < before + (32 << 20));
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    hostile.join().unwrap();
}

/// Answers every request with lies, repeats them, and says things that nobody asked.
fn flood(port: u16, ended: &std::sync::atomic::AtomicBool) {
    use formats::pull::{Body, Get, Part, Tag};
    let mut options = MqttOptions::new("hostile", "127.0.0.1", port);
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut connection) = Client::new(options, 100);
    client.subscribe("farhold/get/+", QoS::AtMostOnce).unwrap();
    let mut tag = Tag::default();
    while !ended.load(std::sync::atomic::Ordering::Relaxed) {
        if let Ok(Ok(Event::Incoming(Incoming::Publish(message)))) =
            connection.recv_timeout(Duration::from_millis(5))
            && let Ok(get) = Get::parse(&message.payload)
        {
            tag = get.tag;
        }
        let lies = [(LENGTH as u64, 0), (LENGTH as u64, 3), (u64::MAX, 1), (LENGTH as u64, u32::MAX), (0, 0)];
        for (length, index) in lies {
            for offset in [0, 4096, u32::MAX] {
                let body = Body::Data { length, index, offset, bytes: &[0xee; 4096] };
                drop(client.try_publish(
                    "farhold/to/node",
                    QoS::AtMostOnce,
                    false,
                    Part { tag, body }.encode(),
                ));
            }
        }
        drop(client.try_publish("farhold/to/node", QoS::AtMostOnce, false, vec![0x51; 5000]));
    }
}
