//! What operators do: status, forcing, holding, preferring, replacing, one node to two and back, all while writes go on.

use super::client::Ack;
use super::site::{Node, Plan, Site};
use serde_json::{Value, json};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(180);

fn without_witness(policy: fn(Node) -> &'static str) -> Plan {
    let tweak = move |node, config: &mut Value| config["on_peer_loss"] = policy(node).into();
    Plan { witness: false, tweak: Box::new(tweak), ..Plan::quick() }
}

#[test]
fn status_says_everything_and_what_would_happen() {
    let mut site = Site::paired_quickly("status");
    let mut clients = site.clients(1);
    clients.wait_for_more(20, LONG);
    let (a, b) = (site.status(Node::A).unwrap(), site.status(Node::B).unwrap());
    for (status, role, other) in [(&a, "primary, in sync", &b), (&b, "standby, in sync", &a)] {
        assert_eq!(
            (&status["role"], &status["peer"], &status["primary"]),
            (&role.into(), &other["voter"], &a["voter"])
        );
        assert_eq!((&status["standby"], &status["peer_able"]), (&b["voter"], &true.into()));
        assert!(status["witness_heard_ms"].as_u64().is_some_and(|ms| ms < 5_000), "{status}");
        let prospect = status["if_the_peer_died_now"].as_str().unwrap();
        assert!(prospect.starts_with("this node goes on alone after about 1000 ms"), "{prospect}");
    }
    assert!(a["lag_bytes"].is_u64() && a["lag_s"].is_number() && b["lag_bytes"].is_null(), "{a}");
    assert_eq!(
        (&a["copy"], &a["troubles"], &a["two_machines_speak_as"]),
        (&Value::Null, &json!({}), &json!([]))
    );
    let said = site.ha(Node::A, &["status"]);
    for words in ["primary, in sync", "(this node)", "lag  ", "witness  ", "on peer loss  "] {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    // What it lacks grows while it gets nothing.
    site.net.deafen(Node::B, Node::A);
    site.wait(Node::A, LONG, |status| {
        status["mode"] == "solo"
            || status["lag_s"].as_f64().is_some_and(|lag| lag > 0.3) && status["lag_bytes"] != 0
    });
    site.net.heal();
    site.kill(Node::W);
    site.wait(Node::B, LONG, |status| {
        status["mode"] == "paired"
            && status["if_the_peer_died_now"]
                .as_str()
                .is_some_and(|said| said.contains("the witness has been silent"))
    });
    assert!(site.resident_kib(Node::A) <= 24 << 10, "{} KiB", site.resident_kib(Node::A));
    site.prove(clients);
}

/// `hold`: nothing is written without the peer, until an operator forces it; who did that and when is on record.
#[test]
fn hold_waits_for_the_operator_who_is_recorded() {
    let mut site = Site::with("hold", without_witness(|_| "hold"));
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.kill(Node::B);
    site.wait_deaf(Node::A, Duration::from_secs(3));
    let before = clients.acks();
    site.wait_deaf(Node::A, Duration::from_secs(4));
    assert_eq!(clients.acks(), before, "a write was acknowledged although nobody decided");
    let status = site.status(Node::A).unwrap();
    assert_eq!(status["if_the_peer_died_now"], "nothing is written until an operator says `ha force-solo`");
    // Without the words nothing is done.
    assert!(site.try_ha(Node::A, &["force-solo"]).unwrap_err().contains("nothing was done"));
    assert_eq!(site.status(Node::A).unwrap()["forced"], 0);
    site.ha(Node::A, &["force-solo", "--they-are-off"]);
    clients.wait_for_more(20, LONG);
    let status = site.status(Node::A).unwrap();
    assert_eq!(
        (&status["forced"], &status["last_command"]["command"]),
        (&1.into(), &"force-solo".into()),
        "{status}"
    );
    let who = status["last_command"]["who"].as_str().unwrap();
    assert!(
        who.contains("(uid ") && status["last_command"]["at"].as_str().unwrap().ends_with('Z'),
        "{status}"
    );
    // It outlives the process.
    site.kill(Node::A);
    let record = std::fs::read_to_string(site.file(Node::A, "state/operators.jsonl")).unwrap();
    assert!(
        record.lines().any(|line| line.contains("\"force-solo\"") && line.contains("\"epoch\":")),
        "{record}"
    );
    site.start(Node::A);
    site.start(Node::B);
    site.wait_paired(LONG);
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

/// `prefer`: the preferred node goes on at once; the other one never does.
#[test]
fn the_preferred_node_goes_on_and_the_other_never() {
    let prefer_a = |node| if node == Node::A { "prefer-this" } else { "prefer-peer" };
    let mut site = Site::with("prefer", without_witness(prefer_a));
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.kill(Node::B);
    site.wait_alone(Node::A, LONG);
    clients.wait_for_more(20, LONG);
    site.start(Node::B);
    site.wait_paired(LONG);
    clients.wait_for_more(20, LONG);
    site.kill(Node::A);
    site.wait_deaf(Node::B, Duration::from_secs(3));
    let before = clients.acks();
    site.wait_deaf(Node::B, Duration::from_secs(5));
    assert_eq!(clients.acks(), before, "the node that is not preferred went on");
    assert!(
        site.status(Node::B).unwrap()["if_the_peer_died_now"]
            .as_str()
            .unwrap()
            .contains("only the peer is preferred")
    );
    site.start(Node::A);
    site.wait_paired(LONG);
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

/// `ha hold` takes the witness' vote away and `ha apply` gives it back, while writes go on.
#[test]
fn hold_and_apply_change_the_policy_while_writes_go_on() {
    let site = Site::paired_quickly("policy");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    assert!(site.try_ha(Node::A, &["hold"]).is_err(), "without the words nothing is done");
    site.ha(Node::A, &["hold", "--it-stops-writes"]);
    site.wait(Node::B, LONG, |status| status["policy"] == "hold" && status["mode"] == "paired");
    clients.wait_for_more(20, LONG);
    site.ha(Node::A, &["apply"]);
    site.wait(Node::B, LONG, |status| status["policy"] == "witness" && status["mode"] == "paired");
    clients.wait_for_more(20, LONG);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// An operator forces the other node although the primary, alone, runs and acknowledges: what only the loser has is in a
/// report before its database is copied anew. `knows`: whether the forced node had heard that it lost its role.
fn forced(name: &str, knows: bool) {
    let site = Site::paired_quickly(name);
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.net.isolate(Node::B);
    site.wait_alone(Node::A, LONG);
    if knows {
        site.net.heal_between(Node::B, Node::W);
        site.wait(Node::B, LONG, |status| status["phase"] == "Outside");
        site.net.part(Node::B, Node::W);
    }
    clients.wait_for_more(20, LONG);
    site.ha(Node::B, &["force-solo", "--they-are-off"]);
    site.wait_alone(Node::B, LONG);
    clients.wait_for_more(60, LONG);
    let acks = clients.end();
    site.net.heal();
    site.wait_paired(Duration::from_secs(300));
    let rows = site.rows(Node::B);
    let same = |ack: &Ack, row: &Ack| (ack.id, &ack.name, &ack.value) == (row.id, &row.name, &row.value);
    let gone: Vec<&Ack> = acks.iter().filter(|ack| !rows.iter().any(|row| same(ack, row))).collect();
    assert!(!gone.is_empty() && gone.iter().all(|ack| ack.node == Node::A.number()), "{gone:?}");
    let exports = site.exports(Node::A).concat();
    let exported: Vec<Value> = exports.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for ack in &gone {
        let hex: String = ack.value.bytes().map(|byte| format!("{byte:02x}")).collect();
        let found = exported.iter().any(|row| {
            row["table"] == "public.kine"
                && row["row"]["id"] == ack.id
                && row["row"]["name"] == ack.name.as_str()
                && row["row"]["value"] == format!("\\x{hex}")
        });
        assert!(found, "acknowledged by the loser and in no report: {ack:?}\n{exports}");
    }
    println!(
        "{} writes of the loser are gone, all of them in a report of {} rows",
        gone.len(),
        exported.len()
    );
    let status = site.status(Node::A).unwrap();
    assert_eq!((&status["forced"], &status["phase"]), (&1.into(), &"Following".into()), "{status}");
}

#[test]
fn rows_of_a_forced_loser_are_exported_before_they_go() {
    forced("forced", false);
}

#[test]
fn rows_of_a_forced_loser_are_exported_when_the_winner_had_stopped() {
    forced("forcedoutside", true);
}

/// One node becomes two, two become one again, and new hardware takes the place of the old, while clients write.
#[test]
fn one_node_to_two_and_back_and_new_hardware_while_writes_go_on() {
    let mut site = Site::empty("grow", Plan::quick());
    let a = site.enrol(Node::A, &["--first"]);
    site.start(Node::A);
    site.wait(Node::A, LONG, |status| status["phase"] == "Alone(Apart)");
    assert_eq!(site.status(Node::A).unwrap()["policy"], "one node");
    site.make_table();
    let mut clients = site.clients_on(Node::A, 2);
    clients.wait_for_more(20, LONG);

    // A second machine and a witness are enrolled; the running node is told.
    let b = site.enrol(Node::B, &[]);
    let w = site.enrol_witness(&a, &b);
    site.configure(Node::A, Some(&b), Some(&w));
    site.configure(Node::B, Some(&a), Some(&w));
    site.start(Node::B);
    site.start(Node::W);
    let said = site.ha(Node::A, &["replace"]);
    assert!(said.contains("primary, in sync"), "`replace` waits until the new node is in sync: {said}");
    site.wait_paired(LONG);
    clients.wait_for_more(20, LONG);

    // Back to one.
    site.ha(Node::B, &["leave"]);
    site.wait_alone(Node::A, LONG);
    site.configure(Node::A, None, Some(&w));
    site.ha(Node::A, &["apply"]);
    site.wait(Node::A, LONG, |status| status["policy"] == "one node" && status["phase"] == "Alone(Apart)");
    site.wait(Node::B, LONG, |status| status["phase"] == "Refused(NotMember)");
    clients.wait_for_more(20, LONG);
    site.kill(Node::B);

    // New hardware in the old one's place: another key, another number, no data.
    let c = site.enrol(Node::C, &[]);
    let w = site.enrol_witness(&a, &c);
    site.configure_as(Node::A, &[("peer", Node::C, &c), ("witness", Node::W, &w)]);
    site.configure_as(Node::C, &[("peer", Node::A, &a), ("witness", Node::W, &w)]);
    site.kill(Node::W);
    site.start(Node::W);
    site.start(Node::C);
    site.ha(Node::A, &["replace"]);
    site.wait(Node::C, LONG, |status| status["phase"] == "Following" && status["primary"] == a["voter"]);
    clients.wait_for_more(20, LONG);
    // It is a full member: it takes over.
    site.ha(Node::A, &["switchover"]);
    site.wait_leading(Node::C, LONG);
    clients.wait_for_more(20, LONG);
    site.prove_on(clients, &[Node::A, Node::C]);
}

/// With `hold` and a dead peer no vote can come: the change of members waits, and a forced decision carries it along.
#[test]
fn a_dead_peer_is_replaced_without_a_witness() {
    let mut site = Site::with("holdreplace", without_witness(|_| "hold"));
    let clients = site.clients_on(Node::A, 2);
    let a = site.party(Node::A);
    site.kill(Node::B);
    let c = site.enrol(Node::C, &[]);
    site.configure_as(Node::A, &[("peer", Node::C, &c)]);
    site.configure_as(Node::C, &[("peer", Node::A, &a)]);
    site.start(Node::C);
    site.wait_deaf(Node::A, Duration::from_secs(2));
    site.ha(Node::A, &["force-solo", "--they-are-off"]);
    site.wait_alone(Node::A, LONG);
    site.ha(Node::A, &["replace", "--no-wait"]);
    site.ha(Node::A, &["force-solo", "--they-are-off"]);
    site.wait(Node::C, LONG, |status| status["phase"] == "Following");
    site.prove_on(clients, &[Node::A, Node::C]);
}
