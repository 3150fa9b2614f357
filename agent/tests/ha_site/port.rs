//! The local datastore port as its clients see it: who gets in, and when a session ends.

use super::LONG;
use super::client;
use super::site::{Node, Plan, Site};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

/// As many as the port takes.
const CROWD: usize = 150;

/// Runs inside a node's namespace: a session that asks nothing, until it is ended.
pub async fn idle() {
    let (client, connection) = client::config().connect(NoTls).await.unwrap();
    println!("CONNECTED");
    drop(connection.await);
    println!("ENDED");
    drop(client);
}

/// Why the port refuses whoever comes so.
async fn refused(
    mut config: tokio_postgres::Config,
    change: impl Fn(&mut tokio_postgres::Config),
) -> SqlState {
    change(&mut config);
    let error = config.connect(NoTls).await.err().expect("a stranger was let in");
    error.code().cloned().unwrap_or_else(|| panic!("{error}"))
}

/// Runs inside a node's namespace: guests whom the port knows, and others, at its socket and at its address.
pub async fn guests() {
    for socket in [true, false] {
        let config = client::config_at(socket);
        let wrong = refused(config.clone(), |config| {
            config.password("wrong");
        })
        .await;
        assert_eq!(wrong, SqlState::INVALID_PASSWORD);
        let owner = refused(config.clone(), |config| {
            config.user("farhold");
        })
        .await;
        assert_eq!(owner, SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        let lowered = refused(config.clone(), |config| {
            config.options("-c synchronous_commit=off");
        })
        .await;
        assert_eq!(lowered, SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        let (guest, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        assert!(guest.batch_execute("SET synchronous_commit = off").await.is_err(), "durability was lowered");
        assert!(guest.batch_execute("SELECT 1").await.is_err(), "the session went on");
    }

    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(tokio::net::TcpStream::connect("127.0.0.1:5000").await.unwrap());
    }
    // By address first: behind the crowd, which is inside when this one is refused.
    for socket in [false, true] {
        assert_eq!(refused(client::config_at(socket), |_| ()).await, SqlState::TOO_MANY_CONNECTIONS);
    }
    drop(crowd);
    while client::connect().await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("GUESTS SEEN");
}

struct Session {
    child: Child,
    lines: Receiver<String>,
}

impl Session {
    fn open(site: &Site, node: Node) -> Self {
        let mut child = site.client(node, "idle").stdout(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = channel();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || said.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let session = Self { child, lines };
        session.wait("CONNECTED", LONG);
        session
    }

    fn wait(&self, word: &str, patience: Duration) {
        while let Ok(line) = self.lines.recv_timeout(patience) {
            if line.contains(word) {
                return;
            }
        }
        panic!("a session did not come to {word}");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Sessions of the time before a change of roles are over when the next primary serves, on both nodes, also where nobody
/// says anything.
#[test]
fn sessions_end_when_the_primary_changes() {
    let site = Site::paired_quickly("sessions");
    for planned in [true, false] {
        let primary = site.primary(LONG);
        let sessions = [Node::A, Node::B].map(|node| Session::open(&site, node));
        if planned {
            site.ha(primary, &["switchover"]);
            site.wait_leading(primary.other(), LONG);
        } else {
            site.net.isolate(primary);
            site.wait_alone(primary.other(), LONG);
            // The isolated one closes its port when it has heard nobody for a while.
            site.wait(primary, LONG, |status| status["port"] == "Closed");
        }
        sessions.iter().for_each(|session| session.wait("ENDED", Duration::from_secs(2)));
        site.net.heal();
        site.wait_paired(LONG);
    }
}

#[test]
fn the_port_lets_in_whom_it_knows_and_not_too_many() {
    let tweak =
        |_, config: &mut serde_json::Value| config["postgres"]["settings"]["max_connections"] = json!("200");
    let site = Site::with("guests", Plan { tweak: Box::new(tweak), ..Plan::quick() });
    for node in [Node::A, Node::B] {
        let seen = site.client(node, "guests").output().unwrap();
        let said = String::from_utf8_lossy(&seen.stdout);
        assert!(
            seen.status.success() && said.contains("GUESTS SEEN"),
            "{node:?}: {said}{}",
            String::from_utf8_lossy(&seen.stderr)
        );
    }
}
