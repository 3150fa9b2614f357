//! A thousand devices and one broker that comes back after an outage: who asks when is bounded by what the server and the
//! waits allow, and everybody gets what it wants. Each device is the real session and the real transfer, in a thread of
//! this process.

use super::parts::{Broker, Repository, Serve, device};
use super::*;
use crate::update::policy;
use std::sync::atomic::{AtomicBool, Ordering};

const DEVICES: u64 = 1_000;
/// Devices that the server takes on at once.
const AT_ONCE: usize = 64;
/// The broker is away for so long: waits have grown to 10 to 20 s by then.
const OUTAGE: Duration = Duration::from_secs(25);
/// Most requests a second that the waits allow once the broker is back: all devices come within the 10 s by which waits
/// differ at least, twice as many in the worst second, and each that is served asks twice.
const RATE_MAX: usize = DEVICES as usize / 10 * 2 + 2 * AT_ONCE;

/// When requests came, as the broker passes them on.
fn listen(port: u16, ended: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<Instant>> {
    let mut options = MqttOptions::new("observer", "127.0.0.1", port);
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut connection) = Client::new(options, 100);
    std::thread::spawn(move || {
        let mut times = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            match connection.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(Event::Incoming(Incoming::ConnAck(_)))) => {
                    client.try_subscribe("farhold/get/+", QoS::AtMostOnce).unwrap();
                }
                Ok(Ok(Event::Incoming(Incoming::Publish(_)))) => times.push(Instant::now()),
                Ok(Ok(Event::Incoming(_) | Event::Outgoing(_))) | Err(_) => {}
                Ok(Err(_)) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        times
    })
}

/// A device fetches a file, and waits after failures as the update engine does. Gives its number of failures.
fn follow(url: &str, number: u64, path: &str, expected: &[u8]) -> u32 {
    let name = format!("device-{number}");
    // Spread as the digests of machine ids are.
    let seed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let identity = Identity { device: device(&name), retained: Vec::new(), seed };
    let mut carriers = Carriers::new(identity, |_| {});
    let mut failures = 0;
    loop {
        let came = carriers
            .open(url)
            .and_then(|mut carrier| carrier.whole(path, expected.len() as u64, &mut Tally::default()));
        match came {
            Ok(bytes) => {
                assert!(bytes == expected);
                return failures;
            }
            Err(Failure { fault: Fault::Unreachable(after_s), .. }) => {
                failures += 1;
                std::thread::sleep(Duration::from_millis(policy::backoff_ms(failures, after_s, seed)));
            }
            Err(failure) => panic!("{name}: {failure:?}"),
        }
    }
}

/// The most within a second.
fn peak(times: &[Instant]) -> usize {
    let second = Duration::from_secs(1);
    let from = |begun: Instant| times.iter().filter(|at| (begun..begun + second).contains(*at)).count();
    times.iter().map(|begun| from(*begun)).max().unwrap_or(0)
}

#[test]
#[ignore = "long: a thousand devices on one broker"]
fn a_thousand_devices_after_an_outage_are_no_storm() {
    // Sessions and threads take files, here and at the broker, which inherits the limit.
    let raised = std::process::Command::new("prlimit")
        .args(["--nofile=16384:", "--pid", &std::process::id().to_string()])
        .status();
    assert!(raised.unwrap().success(), "16384 open files are not allowed here");
    let repository = Repository::new(48 << 10);
    let mut broker = Broker::start(parts::Guard::Nothing);
    let most = AT_ONCE.to_string();
    let serve = Serve::mqtt(&repository, &broker.url("server"), &["--mqtt-devices", &most]);
    broker.stop();
    let path = repository::object(&repository.object.id);
    let expected = std::fs::read(format!("{}/{path}", repository.path())).unwrap();
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let ended = Arc::new(AtomicBool::new(false));
    let observer = listen(broker.port, ended.clone());
    std::thread::scope(|scope| {
        let start = |number| {
            let thread = std::thread::Builder::new().stack_size(256 << 10);
            let (url, path, expected) = (&url, &path, &expected);
            thread.spawn_scoped(scope, move || follow(url, number, path, expected)).unwrap()
        };
        let devices: Vec<_> = (0..DEVICES).map(start).collect();
        std::thread::sleep(OUTAGE);
        broker.resume();
        let back = Instant::now();
        let failures: u32 = devices.into_iter().map(|device| device.join().unwrap()).sum();
        let took = back.elapsed();
        ended.store(true, Ordering::Relaxed);
        let times = observer.join().unwrap();
        let (count, peak) = (times.len(), peak(&times));
        println!(
            "{DEVICES} devices, {AT_ONCE} served at once: all done {took:.1?} after the broker came back, {count} requests, \
             at most {peak} in a second, {failures} waits"
        );
        assert!(
            count >= DEVICES as usize && peak <= RATE_MAX,
            "{peak} requests in a second, {RATE_MAX} are allowed"
        );
    });
    drop(serve);
}
