//! Clients as kine is one: revisions from a sequence, a unique index, compare-and-swap; and the proof over what they were told.

use super::site::{Node, Site};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// kine's own table and index.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS kine (id BIGSERIAL PRIMARY KEY, name TEXT COLLATE \"C\", created INTEGER, \
    deleted INTEGER, create_revision BIGINT, prev_revision BIGINT, lease INTEGER, value BYTEA, old_value BYTEA); \
    CREATE UNIQUE INDEX IF NOT EXISTS kine_name_prev_revision_uindex ON kine (name, prev_revision)";
const KEYS: u64 = 5;

/// One acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ack {
    pub node: u8,
    pub id: i64,
    pub prev: i64,
    pub name: String,
    pub value: String,
}

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// How a client reaches its node's port: by address, or at its socket as k3s does.
pub fn config_at(socket: bool) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    if socket {
        config.host_path(variable("FARHOLD_HA_PORT")).port(5432);
    } else {
        config.host("127.0.0.1").port(5000);
    }
    config.user("kine").dbname("kine").password(variable("FARHOLD_HA_PASSWORD"));
    config.connect_timeout(Duration::from_secs(2));
    config
}

/// The same in the way in which this client was started.
pub fn config() -> tokio_postgres::Config {
    config_at(std::env::var_os("FARHOLD_HA_AT_SOCKET").is_some())
}

pub async fn connect() -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config().connect(NoTls).await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// Runs inside a node's namespace: `write` tells each acknowledged write, `read` tells all rows, `table` makes the table.
pub fn work() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match variable("FARHOLD_HA_CLIENT").as_str() {
            "write" => write().await,
            "read" => read().await,
            "bench" => super::bench::work().await,
            "relay" => super::relay::work(&variable("FARHOLD_HA_RELAY")).await,
            "year" => year().await,
            "cancel" => cancel().await,
            "idle" => super::port::idle().await,
            "guests" => super::port::guests().await,
            "segments" => segments().await,
            "table" => connect().await.unwrap().batch_execute(TABLE).await.unwrap(),
            other => panic!("{other}"),
        }
    });
}

/// A write that waits for its standby, and a request to cancel it.
async fn cancel() {
    let client = connect().await.unwrap();
    let token = client.cancel_token();
    let insert = "INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) \
                  VALUES ('/cancelled', 0, 0, 0, 0, 0, 'x')";
    let write = client.batch_execute(insert);
    tokio::pin!(write);
    let patience = Duration::from_millis(700);
    assert!(
        tokio::time::timeout(patience, &mut write).await.is_err(),
        "the write did not wait for the standby"
    );
    // As pgx does when a context ends.
    token.cancel_query(NoTls).await.unwrap();
    assert!(tokio::time::timeout(patience, &mut write).await.is_err(), "the cancelled write came back");
    println!("WAITS AFTER CANCEL");
    write.await.unwrap();
    println!("COMMITTED");
}

/// As weeks of writes: so many segments of the log are begun, and a checkpoint lets go of those that nobody may keep. Directly
/// at the server, as its owner.
async fn segments() {
    let mut config = tokio_postgres::Config::new();
    config.host_path(variable("FARHOLD_HA_SOCKET")).port(5432).user("farhold").dbname("postgres");
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    for _ in 0..variable("FARHOLD_HA_SEGMENTS").parse().unwrap() {
        let next = "SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()";
        client.batch_execute(next).await.unwrap();
    }
    client.batch_execute("CHECKPOINT").await.unwrap();
}

/// The year that the database's own clock shows.
async fn year() {
    let row = connect().await.unwrap().query_one("SELECT extract(year FROM now())::int", &[]).await.unwrap();
    println!("YEAR {}", row.get::<_, i32>(0));
}

async fn read() {
    let client = connect().await.unwrap();
    let rows = client
        .query("SELECT id, prev_revision, name, convert_from(value, 'UTF8') FROM kine ORDER BY id", &[])
        .await
        .unwrap();
    for row in rows {
        let (id, prev, name, value): (i64, i64, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        println!("ROW {id} {prev} {name} {value}");
    }
    println!("END");
}

async fn write() {
    let me = variable("FARHOLD_HA_ME");
    let mut count = 0_u64;
    loop {
        if let Ok(client) = connect().await {
            // A write that is neither acknowledged nor refused for long is given up, as pgx does: it may or may not be there.
            while let Ok(Ok(told)) =
                tokio::time::timeout(Duration::from_secs(5), one(&client, &me, count)).await
            {
                count += 1;
                if let Some(told) = told {
                    println!("ACK {told}");
                }
            }
            count += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One compare-and-swap; nothing if another client was quicker.
async fn one(client: &Client, me: &str, count: u64) -> Result<Option<String>, tokio_postgres::Error> {
    let name = format!("/registry/key{}", count % KEYS);
    let last = client.query_opt("SELECT max(id) FROM kine WHERE name = $1", &[&name]).await?;
    let prev = last.and_then(|row| row.get::<_, Option<i64>>(0)).unwrap_or(0);
    let value = format!("{me}-{count}");
    let insert = "INSERT INTO kine (name, created, deleted, create_revision, prev_revision, lease, value) \
                  VALUES ($1, 0, 0, 0, $2, 0, $3) RETURNING id";
    match client.query_one(insert, &[&name, &prev, &value.as_bytes()]).await {
        Ok(row) => Ok(Some(format!("{} {prev} {name} {value}", row.get::<_, i64>(0)))),
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Clients on both nodes' ports.
pub struct Clients {
    children: Vec<Child>,
    told: Receiver<Ack>,
    acks: Vec<Ack>,
}

pub fn parse(node: u8, line: &str) -> Option<Ack> {
    // The test harness' own words may stand before it on the line.
    let at = line.find("ACK ").or_else(|| line.find("ROW "))?;
    let mut words = line[at + 4..].split_whitespace();
    let mut next = || words.next();
    Some(Ack {
        node,
        id: next()?.parse().ok()?,
        prev: next()?.parse().ok()?,
        name: next()?.to_owned(),
        value: next()?.to_owned(),
    })
}

impl Clients {
    /// So many on each of these nodes.
    pub fn new(site: &Site, nodes: &[Node], on_each: usize) -> Self {
        let (tell, told) = channel();
        let mut children = Vec::new();
        for (at, node) in nodes.iter().copied().cycle().take(nodes.len() * on_each).enumerate() {
            let mut client = site.client(node, "write");
            client.env("FARHOLD_HA_ME", format!("c{at}")).stdout(Stdio::piped()).stderr(Stdio::null());
            if (at / nodes.len()).is_multiple_of(2) {
                client.env("FARHOLD_HA_AT_SOCKET", "yes");
            }
            let mut child = client.spawn().unwrap();
            let (lines, tell) = (BufReader::new(child.stdout.take().unwrap()).lines(), tell.clone());
            std::thread::spawn(move || {
                for ack in lines.map_while(Result::ok).filter_map(|line| parse(node.number(), &line)) {
                    if tell.send(ack).is_err() {
                        return;
                    }
                }
            });
            children.push(child);
        }
        Self { children, told, acks: Vec::new() }
    }

    fn next(&mut self, patience: Duration) -> Option<Ack> {
        match self.told.recv_timeout(patience) {
            Ok(ack) => {
                self.acks.push(ack.clone());
                Some(ack)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("all clients ended"),
        }
    }

    fn drain(&mut self) {
        self.acks.extend(self.told.try_iter());
    }

    /// How many writes were acknowledged so far.
    pub fn acks(&mut self) -> usize {
        self.drain();
        self.acks.len()
    }

    /// Waits until so many are told from now on, whichever node acknowledges them.
    pub fn wait_for_more(&mut self, count: usize, patience: Duration) {
        self.drain();
        let until = Instant::now() + patience;
        for seen in 0..count {
            let left = until.saturating_duration_since(Instant::now());
            assert!(self.next(left).is_some(), "{seen} of {count} writes were acknowledged in {patience:?}");
        }
    }

    /// How long it takes until this node's port acknowledges again, from now; what was on its way does not count.
    pub fn outage(&mut self, node: Node, patience: Duration) -> Duration {
        let began = Instant::now();
        self.drain();
        while let Some(ack) = self.next(patience.saturating_sub(began.elapsed())) {
            if ack.node == node.number() && began.elapsed() > Duration::from_millis(200) {
                return began.elapsed();
            }
        }
        panic!("no write was acknowledged in {patience:?}");
    }

    /// The longest time without an acknowledged write within the next `span`.
    pub fn longest_pause(&mut self, span: Duration) -> Duration {
        self.drain();
        let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        while began.elapsed() < span {
            if self.next(Duration::from_millis(20)).is_some() {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        longest.max(last.elapsed())
    }

    /// Ends the clients; everything that they were told.
    pub fn end(mut self) -> Vec<Ack> {
        self.stop();
        while let Ok(ack) = self.told.recv_timeout(Duration::from_millis(500)) {
            self.acks.push(ack);
        }
        std::mem::take(&mut self.acks)
    }

    fn stop(&mut self) {
        for mut child in self.children.drain(..) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// A test that fails leaves no client behind.
impl Drop for Clients {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Every acknowledged write is there as it was told, no revision was given twice, and no swap succeeded twice.
pub fn check(acks: &[Ack], rows: &[Ack]) -> Result<(), String> {
    let by_id: BTreeMap<i64, &Ack> = rows.iter().map(|row| (row.id, row)).collect();
    let same = |a: &Ack, b: &Ack| (a.id, a.prev, &a.name, &a.value) == (b.id, b.prev, &b.name, &b.value);
    for ack in acks {
        match by_id.get(&ack.id) {
            None => return Err(format!("lost: {ack:?}")),
            Some(row) if !same(row, ack) => {
                return Err(format!("revision reused: told {ack:?}, found {row:?}"));
            }
            Some(_) => {}
        }
    }
    let told: BTreeSet<i64> = acks.iter().map(|ack| ack.id).collect();
    let swaps: BTreeSet<_> = acks.iter().map(|ack| (&ack.name, ack.prev)).collect();
    if told.len() != acks.len() || swaps.len() != acks.len() {
        return Err("two clients were told the same revision or the same swap".to_owned());
    }
    let broken = rows
        .iter()
        .find(|row| row.prev != 0 && by_id.get(&row.prev).is_none_or(|prev| prev.name != row.name));
    broken.map_or(Ok(()), |row| Err(format!("follows a revision that is not there: {row:?}")))
}

#[test]
fn the_checker_sees_what_it_is_for() {
    let row = |id, prev, value: &str| Ack { node: 1, id, prev, name: "/k".into(), value: value.into() };
    let rows = [row(1, 0, "a"), row(2, 1, "b")];
    assert_eq!(check(&rows, &rows), Ok(()));
    assert!(check(&rows, &rows[..1]).unwrap_err().starts_with("lost"));
    assert!(check(&[row(2, 1, "x")], &rows).unwrap_err().starts_with("revision reused"));
    assert!(check(&[row(1, 0, "a"), row(1, 0, "a")], &rows).unwrap_err().starts_with("two clients"));
    assert!(check(&[], &rows[1..]).unwrap_err().starts_with("follows"));
}
