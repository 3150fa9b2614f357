//! Two nodes that were told one code become a pair by themselves; whoever was told another does not.

use super::LONG;
use super::site::{Node, Plan, Site, agent};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};

const CODE: &str = "1234-5678";

/// `farhold-agent pair …` on a node.
fn pair(site: &Site, node: Node, args: &[&str]) -> Command {
    let home = site.home(node);
    let mut command = site.net.as_user(node, agent());
    command.args(["pair", "--folder"]).arg(&home).arg("--base").arg(home.join("base.json"));
    command.arg("--request").arg(home.join("pair-request.json")).args(args).stdin(Stdio::null());
    command
}

fn done(site: &Site, node: Node, args: &[&str]) -> String {
    let output = pair(site, node, args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{node:?} pair {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn begun(site: &Site, node: Node, args: &[&str]) -> Child {
    pair(site, node, args).stdout(Stdio::null()).spawn().unwrap()
}

/// What the image says of every node: all but who is who.
fn base(site: &Site, node: Node) {
    let path = site.configure_as(node, &[]);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config.as_object_mut().unwrap().remove("site").unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(site.file(node, "base.json"), config.to_string()).unwrap();
}

fn stage(site: &Site, node: Node) -> Value {
    serde_json::from_str(&done(site, node, &["status", "--json"])).unwrap()
}

/// Whether any file of a node's own folder has these bytes; the database's are not looked at.
fn holds(site: &Site, node: Node, secret: &str) -> bool {
    let files = std::fs::read_dir(site.file(node, "")).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.is_file())
        .any(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains(secret))
}

#[test]
fn two_nodes_with_one_code_become_a_pair_and_one_with_another_code_does_not() {
    let mut site = Site::empty("pairing", Plan { witness: false, ..Plan::quick() });
    [Node::A, Node::B, Node::C].into_iter().for_each(|node| base(&site, node));
    let (a, b, c) = (Node::A.address(), Node::B.address(), Node::C.address());
    let said = done(&site, Node::A, &["first", "--address", &a, "--code", CODE]);
    assert!(said.contains(&format!("--peer {a} {CODE}")), "{said}");
    done(&site, Node::A, &["prepare"]);
    // The first serves before there is a second.
    site.start(Node::A);
    site.wait(Node::A, LONG, |status| status["phase"] == "Alone(Apart)");
    let mut first = begun(&site, Node::A, &["exchange"]);

    done(&site, Node::C, &["second", "--address", &c, "--peer", &a, "8765-4321"]);
    done(&site, Node::C, &["prepare"]);
    done(&site, Node::C, &["exchange"]);
    let refused = stage(&site, Node::C);
    assert_eq!(refused["stage"], "refused");
    assert!(refused["why"].as_str().unwrap().contains("was told another code"), "{refused}");
    assert!(!site.file(Node::C, "ha.json").exists() && !holds(&site, Node::C, "8765-4321"));
    assert_eq!(stage(&site, Node::A)["wrong_codes"], 1);

    // Somebody mistyped it at the second node, and types it again.
    for code in ["1234-5679", CODE] {
        done(&site, Node::B, &["second", "--address", &b, "--peer", &a, code]);
        done(&site, Node::B, &["prepare"]);
        done(&site, Node::B, &["exchange"]);
        let refused = stage(&site, Node::B)["stage"] == "refused";
        assert_eq!(refused, code != CODE);
    }
    assert!(first.wait().unwrap().success());
    assert_eq!(
        (stage(&site, Node::A)["stage"].clone(), holds(&site, Node::A, CODE)),
        (json!("agreed"), false)
    );
    site.start(Node::B);
    for mut end in [Node::A, Node::B].map(|node| begun(&site, node, &["finish"])) {
        assert!(end.wait().unwrap().success());
    }
    site.wait_paired(LONG);
    for node in [Node::A, Node::B] {
        assert_eq!(stage(&site, node)["stage"], "done");
        assert!(!holds(&site, node, CODE));
        let again = pair(&site, node, &["first", "--address", &node.address()]).output().unwrap();
        let again = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(!again.is_empty() && again.contains("one of a pair already"), "{again}");
    }
    site.make_table();
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.kill(Node::B);
    site.start(Node::B);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// The second was cut off after it had kept the first's introduction and before it was told so: it calls again.
#[test]
fn a_power_cut_while_they_meet_is_survived() {
    let mut site = Site::empty("pairingcut", Plan { witness: false, ..Plan::quick() });
    [Node::A, Node::B].into_iter().for_each(|node| base(&site, node));
    // As a stick's installer leaves it: a secret that nobody can guess, and no line typed.
    let secret = "0123456789abcdef0123456789abcdef";
    let (a, b) = (Node::A.address(), Node::B.address());
    for (node, request) in [
        (Node::A, json!({ "role": "first", "address": a, "secret": secret })),
        (Node::B, json!({ "role": "second", "address": b, "peer": a, "secret": secret })),
    ] {
        std::fs::write(site.file(node, "pair-request.json"), request.to_string()).unwrap();
        done(&site, node, &["prepare"]);
    }
    site.start(Node::A);
    let kept = [Node::A, Node::B].map(|node| std::fs::read(site.file(node, "pair.json")).unwrap());
    let mut first = begun(&site, Node::A, &["exchange"]);
    done(&site, Node::B, &["exchange"]);
    assert!(first.wait().unwrap().success());
    // The disks of both as they were when the last confirmation was under way: the introductions are there, the stage is not.
    for (node, bytes) in [Node::A, Node::B].into_iter().zip(&kept) {
        std::fs::write(site.file(node, "pair.json"), bytes).unwrap();
    }
    let mut first = begun(&site, Node::A, &["exchange"]);
    site.start(Node::B);
    let mut second = begun(&site, Node::B, &["finish"]);
    assert!(first.wait().unwrap().success());
    assert!(begun(&site, Node::A, &["finish"]).wait().unwrap().success());
    assert!(second.wait().unwrap().success());
    site.wait_paired(LONG);
    assert!([Node::A, Node::B].into_iter().all(|node| !holds(&site, node, secret)));
}
