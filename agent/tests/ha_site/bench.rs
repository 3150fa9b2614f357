//! Measurements for `make bench`: outages at the local port, and what the port costs beside a direct session.

use super::client::{config_at, variable};
use super::site::{Node, Site};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, Statement};

const LONG: Duration = Duration::from_secs(180);
/// Writers at once where throughput is measured.
const WRITERS: usize = 8;
/// Slices of each way, in turn; short ones, so that a checkpoint or a burst of another program meets all ways.
const SLICES: usize = 60;
const SLICE: Duration = Duration::from_millis(300);

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn number(name: &str, ordinary: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(ordinary)
}

fn report(what: &str, goal: &str, mut outages: Vec<Duration>) {
    outages.sort();
    let seconds = |at: usize| outages[at].as_secs_f64();
    println!(
        "BENCH {what}: median {:.2} s, best {:.2} s, worst {:.2} s of {} (goal {goal}), load {}",
        seconds(outages.len() / 2),
        seconds(0),
        seconds(outages.len() - 1),
        outages.len(),
        load()
    );
}

/// Outages of writes, detection included, at default settings: `FARHOLD_HA_BENCH` says of how many.
pub fn outages() {
    let times = number("FARHOLD_HA_BENCH", 20);
    let mut site = Site::paired("bench-outage");
    let mut clients = site.clients(3);
    let mut primary = Node::A;
    let (mut kills, mut partitions, mut hand_overs) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..3 * times {
        clients.wait_for_more(30, LONG);
        let other = primary.other();
        let outage = match turn % 3 {
            0 => {
                site.kill(primary);
                clients.outage(other, LONG)
            }
            1 => {
                site.net.isolate(primary);
                clients.outage(other, LONG)
            }
            _ => {
                site.ha(primary, &["switchover"]);
                clients.longest_pause(Duration::from_secs(5))
            }
        };
        println!("  {turn}: {outage:?}, load {}", load());
        [&mut kills, &mut partitions, &mut hand_overs][turn % 3].push(outage);
        site.net.heal();
        if turn % 3 == 0 {
            site.start(primary);
        }
        site.wait_paired(LONG);
        primary = other;
    }
    report("writes on the other port after kill -9 of the primary's processes", "5 s", kills);
    report("writes on the other port after the primary was isolated", "5 s", partitions);
    report("longest pause between acknowledged writes in a planned hand-over", "2 s", hand_overs);
    for node in [Node::A, Node::B] {
        println!(
            "BENCH resident memory of the agent on {node:?}: {} KiB (goal 24576 KiB)",
            site.resident_kib(node)
        );
    }
    site.prove(clients);
}

/// What the port costs: the worker below, on the primary.
pub fn port() {
    let site = Site::paired("bench-port");
    let worker =
        site.client(Node::A, "bench").env("FARHOLD_HA_SOCKET", site.socket(Node::A)).output().unwrap();
    let text = String::from_utf8_lossy(&worker.stdout);
    assert!(worker.status.success(), "{text}{}", String::from_utf8_lossy(&worker.stderr));
    text.lines()
        .filter_map(|line| line.find("BENCH").map(|at| &line[at..]))
        .for_each(|line| println!("{line}"));
}

/// Port as k3s reaches it, direct, and direct once more: the last two are equal, so their difference is the noise; and the
/// port by its address.
const WAYS: [&str; 4] = ["port", "direct", "direct again", "port over TCP"];

async fn session(way: usize) -> Client {
    let mut direct = tokio_postgres::Config::new();
    direct.host_path(variable("FARHOLD_HA_SOCKET")).port(5432).user("kine").dbname("kine");
    direct.password(variable("FARHOLD_HA_PASSWORD"));
    let config = [config_at(true), direct.clone(), direct, config_at(false)];
    let (client, connection) = config[way].connect(NoTls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client
}

/// One writer. Its statement is prepared once, as kine's driver does: a write is one question and one answer.
struct Writer {
    client: Client,
    insert: Statement,
}

impl Writer {
    async fn new(way: usize) -> Self {
        let client = session(way).await;
        let insert = "INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) \
                      VALUES ($1, 0, 0, 0, $2, 0, $3)";
        let insert = client.prepare(insert).await.unwrap();
        Self { client, insert }
    }

    async fn write(&self, key: &str, count: i64) {
        self.client.execute(&self.insert, &[&key, &count, &[b'x'; 300].as_slice()]).await.unwrap();
    }
}

/// Runs on the primary: one write after the other, each way in turn; then many writers, each way in slices in turn.
pub async fn work() {
    latency().await;
    throughput().await;
}

async fn latency() {
    let mut sessions = Vec::new();
    for way in 0..WAYS.len() {
        sessions.push((Writer::new(way).await, Vec::new()));
    }
    for count in 0..number("FARHOLD_HA_BENCH_WRITES", 3000) {
        // Who is first changes, so that nobody always follows the same one.
        for turn in 0..WAYS.len() {
            let way = (turn + count) % WAYS.len();
            let (writer, times) = &mut sessions[way];
            let began = Instant::now();
            writer.write(&format!("/bench/{way}"), i64::try_from(count).unwrap()).await;
            times.push(began.elapsed());
        }
    }
    let ms =
        |times: &[Duration], per_mille: usize| times[times.len() * per_mille / 1000].as_secs_f64() * 1000.0;
    for (_, times) in &mut sessions {
        times.sort();
    }
    for (way, (_, times)) in sessions.iter().enumerate() {
        println!(
            "BENCH one writer, {}: median {:.2} ms, p99 {:.2} ms",
            WAYS[way],
            ms(times, 500),
            ms(times, 990)
        );
    }
    let p = |way: usize, per_mille| ms(&sessions[way].1, per_mille);
    println!(
        "BENCH added by the port: median {:.2} ms, p99 {:.2} ms (goal 1 ms); null pair: median {:.2} ms, p99 {:.2} ms; load {}",
        p(0, 500) - p(1, 500),
        p(0, 990) - p(1, 990),
        p(2, 500) - p(1, 500),
        p(2, 990) - p(1, 990),
        load()
    );
}

async fn throughput() {
    let mut sessions: Vec<Vec<Writer>> = Vec::new();
    for way in 0..WAYS.len() {
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            writers.push(Writer::new(way).await);
        }
        sessions.push(writers);
    }
    let mut rates = [const { Vec::new() }; WAYS.len()];
    let mut count = 1_i64 << 20;
    for slice in 0..SLICES * WAYS.len() {
        let way = (slice + slice / WAYS.len()) % WAYS.len();
        let began = Instant::now();
        let writers = sessions[way].iter().enumerate().map(|(number, writer)| async move {
            let mut written = 0_i64;
            while began.elapsed() < SLICE {
                writer.write(&format!("/slice/{way}/{number}"), count + written).await;
                written += 1;
            }
            written
        });
        let written: i64 = join_all(writers).await.into_iter().sum();
        rates[way].push(written as f64 / began.elapsed().as_secs_f64());
        count += 1 << 20;
    }
    let ratio = |way: usize, to: usize| {
        let pairs = rates[way].iter().zip(&rates[to]);
        median(pairs.map(|(rate, other)| rate / other).collect())
    };
    let (to_direct, null, by_tcp) = (ratio(0, 1), ratio(2, 1), ratio(3, 1));
    let [port, direct, again, tcp] = rates.map(median);
    println!(
        "BENCH {WRITERS} writers: port {port:.0}, direct {direct:.0}, direct again {again:.0}, port over TCP {tcp:.0} writes/s; \
         port/direct {to_direct:.3} (median of {SLICES} pairs; goal 0.9), null pair {null:.3}, port over TCP/direct {by_tcp:.3}; load {}",
        load()
    );
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// All at once, on this thread.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, done) in &mut running {
            if done.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().map(|(_, done)| done.unwrap()).collect()
}
