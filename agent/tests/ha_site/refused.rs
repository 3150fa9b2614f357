//! What is refused, with the reason, and that nothing is overwritten: other keys, clones, strangers, other databases, other versions.

use super::site::{Node, Site, agent, output, postgres};
use serde_json::Value;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(120);

/// A node with another key than the enrolled one is not heard, and nothing of it is taken.
#[test]
fn a_peer_with_another_key_is_refused() {
    let mut site = Site::paired("otherkey");
    site.kill(Node::B);
    site.forge_key(Node::B);
    site.start(Node::B);
    site.wait_alone(Node::A, LONG);
    site.wait_log(Node::A, "it is not the sender's", LONG);
    site.wait_deaf(Node::A, Duration::from_secs(3));
    assert!(site.is_alone(Node::A));
}

/// The disk of B, cloned into a fourth machine: it may not vote, gets no stream, and is reported.
#[test]
fn a_clone_of_a_node_is_mute_and_reported() {
    let mut site = Site::paired("clone");
    let clients = site.clients(2);
    let (a, b) = (site.status(Node::A).unwrap(), site.status(Node::B).unwrap());
    site.kill(Node::B);
    site.clone_disk(Node::B, Node::C);
    site.start(Node::B);
    site.wait_paired(LONG);
    site.start(Node::C);
    site.wait_log(Node::C, "this disk was in another machine before, or was cloned", LONG);
    site.wait(Node::C, LONG, |status| {
        status["phase"] == "Mute" && status["moved_to_another_machine"] == true
    });
    site.wait(Node::A, LONG, |status| {
        status["two_machines_speak_as"].as_array().is_some_and(|clones| clones.contains(&b["voter"]))
    });
    assert!(site.ha(Node::A, &["status"]).contains("CLONE"), "people are told, too");
    // With the real one gone, the clone still gets nothing and gives nothing.
    site.kill(Node::B);
    site.wait_alone(Node::A, LONG);
    site.wait_deaf(Node::A, Duration::from_secs(4));
    let clone = site.status(Node::C).unwrap();
    assert_eq!((&clone["phase"], &clone["server"]), (&"Mute".into(), &"down".into()), "{clone}");
    assert_eq!(site.status(Node::A).unwrap()["voter"], a["voter"]);
    site.kill(Node::C);
    site.start(Node::B);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// Both nodes from one image of a disk: the second is the first's clone.
#[test]
fn a_second_node_cloned_from_the_first_is_mute() {
    let mut site = Site::paired("clonedfirst");
    site.kill(Node::A);
    site.wait_alone(Node::B, LONG);
    site.clone_disk(Node::A, Node::C);
    site.start(Node::A);
    site.wait_paired(LONG);
    let epoch = site.status(Node::B).unwrap()["epoch"].clone();
    site.start(Node::C);
    site.wait(Node::C, LONG, |status| status["phase"] == "Mute");
    site.wait_deaf(Node::C, Duration::from_secs(4));
    assert_eq!(site.status(Node::C).unwrap()["port"], "Closed");
    assert_eq!(site.status(Node::B).unwrap()["epoch"], epoch);
}

/// A third node that names A as its peer: nobody listens, and neither its database nor theirs changes.
#[test]
fn a_third_node_that_claims_the_pair_is_refused() {
    let mut site = Site::paired("third");
    let clients = site.clients(1);
    let stranger = site.enrol(Node::C, &["--first"]);
    let (a, w) = (site.party(Node::A), site.party(Node::W));
    site.configure_as(Node::C, &[("peer", Node::A, &a), ("witness", Node::W, &w)]);
    let before = control(&site, Node::C);
    let epoch = site.status(Node::A).unwrap()["epoch"].clone();
    site.start(Node::C);
    site.wait(Node::C, LONG, |status| status["phase"] == "Alone(Apart)");
    // It alone is all voters of its own register, so it may name whom it likes; nobody takes that for theirs.
    site.ha(Node::C, &["apply"]);
    site.wait_log(Node::A, "a datagram of a stranger", LONG);
    site.wait_deaf(Node::C, Duration::from_secs(4));
    let (a, c) = (site.status(Node::A).unwrap(), site.status(Node::C).unwrap());
    assert_eq!((&a["epoch"], &a["mode"]), (&epoch, &"paired".into()), "{a}");
    assert_ne!(a["peer"], stranger["voter"]);
    assert_ne!(c["mode"], "paired", "{c}");
    assert_eq!(control(&site, Node::C).0, before.0, "its database is another one now");
    site.kill(Node::C);
    site.prove(clients);
}

/// The database's number, and the whole of the file that has it.
fn control(site: &Site, node: Node) -> (u64, Vec<u8>) {
    let bytes = std::fs::read(site.file(node, "data/global/pg_control")).unwrap();
    (u64::from_le_bytes(*bytes.first_chunk::<8>().unwrap()), bytes)
}

/// B's directory holds a database of another site: it is not started, not followed and not overwritten.
#[test]
fn a_database_with_another_system_identifier_is_not_touched() {
    let mut site = Site::paired_quickly("otherdatabase");
    site.kill(Node::B);
    std::fs::remove_dir_all(site.file(Node::B, "data")).unwrap();
    let data = site.home(Node::B).join("data").display().to_string();
    let initdb = postgres().join("initdb").display().to_string();
    let made = site.net.as_user(Node::B, &initdb).args(["-D", &data, "--auth=trust"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let before = control(&site, Node::B);
    site.start(Node::B);
    site.wait(Node::B, LONG, |status| {
        status["phase"] == "Refused(OtherDatabase)"
            && status["says"].as_str().is_some_and(|says| says.contains("another system identifier"))
    });
    site.wait_alone(Node::A, LONG);
    assert_eq!(control(&site, Node::B), before, "a foreign database was changed");
}

/// Programs that say they are another major version. A stand-in: the other version itself is not installed here.
fn pretend(site: &Site, node: Node, version: &str) {
    let folder = site.file(node, "bin");
    std::fs::create_dir_all(&folder).unwrap();
    for tool in std::fs::read_dir(postgres()).unwrap().filter_map(Result::ok) {
        std::os::unix::fs::symlink(tool.path(), folder.join(tool.file_name())).unwrap();
    }
    let program = folder.join("postgres");
    std::fs::remove_file(&program).unwrap();
    let script =
        format!("#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'postgres (PostgreSQL) {version}'\nexit 1\n");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    site.change_config(node, |config| {
        config["postgres"]["bin"] = site.home(node).join("bin").to_str().into()
    });
}

/// The image brought another Postgres major: the node says so and starts nothing on the old data.
#[test]
fn another_postgres_major_is_refused() {
    let mut site = Site::paired_quickly("othermajor");
    site.kill(Node::B);
    let before = control(&site, Node::B);
    pretend(&site, Node::B, "99.1");
    site.start(Node::B);
    site.wait(Node::B, LONG, |status| {
        status["phase"] == "Refused(OtherPlatform)"
            && status["says"]
                .as_str()
                .is_some_and(|says| says.contains("replication works only between equals"))
    });
    site.wait_alone(Node::A, LONG);
    assert_eq!(control(&site, Node::B), before);
}

/// The directory was made by another major than the node's: named, not touched.
#[test]
fn a_directory_of_another_major_is_not_touched() {
    let mut site = Site::paired_quickly("otherfiles");
    site.kill(Node::B);
    std::fs::write(site.file(Node::B, "data/PG_VERSION"), "99\n").unwrap();
    let before = control(&site, Node::B);
    site.start(Node::B);
    site.wait(Node::B, LONG, |status| {
        status["troubles"]["server"].as_str().is_some_and(|said| said.contains("was made by Postgres 99"))
    });
    site.wait_alone(Node::A, LONG);
    assert_eq!(control(&site, Node::B), before);
    assert_eq!(std::fs::read_to_string(site.file(Node::B, "data/PG_VERSION")).unwrap(), "99\n");
}

/// A second enrolment, a second database: nothing that exists is replaced.
#[test]
fn what_exists_is_not_made_again() {
    let site = Site::empty("again", super::site::Plan::default());
    let first: Value = site.enrol(Node::A, &["--first"]);
    let before = control(&site, Node::A);
    for args in [&["--first"][..], &[]] {
        let config = site.configure(Node::A, None, None);
        let mut again = site.net.as_user(Node::A, agent());
        let said = again.args(["ha", "--config"]).arg(config).arg("init").args(args).output().unwrap();
        assert!(!said.status.success());
        assert!(String::from_utf8_lossy(&said.stderr).contains("nothing replaces it"));
    }
    assert_eq!(control(&site, Node::A), before);
    assert_ne!(
        first["voter"],
        output(
            site.net
                .as_user(Node::C, agent())
                .args(["ha", "--config"])
                .arg(site.configure(Node::C, None, None))
                .arg("init")
        )["voter"]
    );
}
