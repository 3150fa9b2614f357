//! Promotions of which the other node saw a part, or nothing, and locks that outlive their servers: random faults found these.

use super::site::{Node, Site};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(180);

/// The new primary is cut off when it was promoted. The old one takes over again without having heard of that timeline, whose number
/// Postgres would take once more.
#[test]
fn a_timeline_that_nobody_heard_of_is_not_taken_twice() {
    let site = Site::paired_quickly("unheard");
    let mut clients = site.clients(1);
    clients.wait_for_more(20, LONG);
    site.ha(Node::A, &["switchover"]);
    site.wait(Node::A, LONG, |status| status["phase"] == "Following");
    site.net.isolate(Node::B);
    site.wait_alone(Node::A, LONG);
    site.wait(Node::A, LONG, |status| {
        status["phase"].as_str().is_some_and(|phase| phase.starts_with("Alone"))
    });
    site.net.heal();
    site.wait_paired(LONG);
    site.prove(clients);
}

/// The old primary begins to follow: it receives the segment in which the new timeline begins anew from its start. Then its power is
/// cut, and the new primary does not come back. It has all that was confirmed, in the segment of the timeline before.
#[test]
fn a_node_that_was_cut_off_in_a_new_timelines_first_segment_can_serve_alone() {
    let mut site = Site::paired_quickly("torn");
    site.ha(Node::A, &["switchover"]);
    site.wait(Node::A, LONG, |status| status["phase"] == "Following");
    site.kill(Node::A);
    site.wait_log(Node::B, "Postgres promoted", LONG);
    site.kill(Node::B);
    let (from, to) = (site.file(Node::B, "data/pg_wal"), site.file(Node::A, "data/pg_wal"));
    std::fs::copy(from.join("00000002.history"), to.join("00000002.history")).unwrap();
    let names =
        std::fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let first = names.filter(|name| name.len() == 24 && name.starts_with("00000002")).min();
    let first = first.expect("the new timeline has a segment");
    let mut segment = std::fs::read(from.join(&first)).unwrap();
    segment[8192..].fill(0);
    std::fs::write(to.join(&first), segment).unwrap();
    for name in ["00000002.history", &first] {
        let owner = std::fs::metadata(site.file(Node::A, "data/PG_VERSION")).unwrap();
        std::os::unix::fs::chown(to.join(name), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    site.start(Node::A);
    site.wait_alone(Node::A, LONG);
    let mut clients = site.clients_on(Node::A, 1);
    clients.wait_for_more(20, LONG);
    site.start(Node::B);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// After a power cut the number in the server's lock is that of another process, and Postgres would wait for that to end.
#[test]
fn a_lock_whose_number_lives_again_stops_nobody() {
    let mut site = Site::paired_quickly("lock");
    let mut clients = site.clients(1);
    clients.wait_for_more(20, LONG);
    site.kill(Node::A);
    let lock = site.file(Node::A, "data/postmaster.pid");
    let text = std::fs::read_to_string(&lock).expect("a killed server leaves its lock");
    let (_, rest) = text.split_once('\n').unwrap();
    let other = std::fs::read_to_string(site.file(Node::B, "data/postmaster.pid")).unwrap();
    let alive = other.lines().next().unwrap();
    std::fs::write(&lock, format!("{alive}\n{rest}")).unwrap();
    site.start(Node::A);
    site.wait_paired(LONG);
    site.prove(clients);
}
