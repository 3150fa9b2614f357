//! A pair while one node has an agent of an earlier state, as between the updates of its two nodes.

use super::LONG;
use super::site::{Node, Plan, Site};
use std::path::Path;

/// Stands before today's agent on a command line, and runs the other one in its place.
fn in_place(old: &str) -> Vec<String> {
    ["sh", "-c", r#"old=$0; shift; exec "$old" "$@""#, old].map(str::to_owned).into()
}

/// Everything that the nodes ask of each other: a copy, a take-over, a hand-over in both directions, a rejoin; then the other
/// node is the one with the earlier agent, and at last none is.
#[test]
#[ignore = "needs an agent of an earlier state in FARHOLD_OLD_AGENT"]
fn an_agent_of_an_earlier_state_and_todays_are_a_pair() {
    let old =
        std::env::var("FARHOLD_OLD_AGENT").expect("FARHOLD_OLD_AGENT names an agent of an earlier state");
    assert!(Path::new(&old).is_file(), "{old} is no file");
    let mut site = Site::with("versions", Plan { wrap: Some((Node::B, in_place(&old))), ..Plan::default() });
    let mut clients = site.clients(2);
    for (earlier, next) in [(Node::B, Some(Node::A)), (Node::A, None)] {
        for off in [Node::A, Node::B] {
            clients.wait_for_more(20, LONG);
            site.kill(off);
            clients.wait_for_more(20, LONG);
            site.start(off);
            site.wait_paired(LONG);
            let primary = site.primary(LONG);
            site.switch_over(primary, LONG);
            clients.wait_for_more(20, LONG);
        }
        println!("{earlier:?} had the earlier agent: well");
        site.kill(earlier);
        site.plan.wrap = next.map(|node| (node, in_place(&old)));
        site.start(earlier);
        if let Some(node) = next {
            site.wait_paired(LONG);
            site.kill(node);
            site.start(node);
        }
        site.wait_paired(LONG);
    }
    site.prove(clients);
}
