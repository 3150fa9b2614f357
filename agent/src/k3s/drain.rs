//! Which pods leave a node before a planned reboot, and what is done about those that a disruption budget holds. Pure.
//!
//! Pods of a DaemonSet, of the node's own files, and finished ones stay. It never waits for ever: at the deadline the policy
//! answers, and whoever was held, and by what, is told.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// After the deadline, how long pods that were deleted may take to end.
const FORCED_MS: u64 = 60_000;

/// What happens at the deadline to pods that a budget holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The node stays and takes pods again; the reboot has to be asked for again.
    Wait,
    /// They are deleted although the budget does not allow it.
    Force,
}

/// A pod, as far as leaving goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `namespace/name`.
    pub id: String,
    /// Whether it was told to end.
    pub ending: bool,
}

/// What the API server said to an eviction or a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It will end, or is gone already.
    Taken,
    /// A budget does not allow it now; in the server's words.
    Held(String),
    /// Something else.
    Failed(String),
}

/// What is done to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Evict it: budgets are asked.
    Evict,
    /// Delete it: budgets are not asked.
    Delete,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pods are still there.
    Working,
    /// No pod that must leave is there, or the policy does not wait for it any longer.
    Left,
    /// The deadline passed, and the policy is to wait.
    Held,
}

/// A drain under way.
#[derive(Clone, Debug)]
pub struct Drain {
    deadline: u64,
    after: Policy,
    /// Pods that are not gone, and why.
    pub held: BTreeMap<String, String>,
    /// Pods that were deleted against their budget, and which it was.
    pub forced: BTreeMap<String, String>,
}

impl Drain {
    /// Begins; times in milliseconds on one clock.
    pub fn begin(deadline_s: u64, after: Policy, now: u64) -> Self {
        let deadline = now.saturating_add(deadline_s.saturating_mul(1000));
        Self { deadline, after, held: BTreeMap::new(), forced: BTreeMap::new() }
    }

    /// One round over the pods that must leave: what is done to which, and how far it is.
    pub fn round(&mut self, pods: &[Pod], now: u64) -> (Vec<(String, Act)>, Verdict) {
        self.held.retain(|id, _| pods.iter().any(|pod| pod.id == *id));
        if pods.is_empty() {
            return (Vec::new(), Verdict::Left);
        }
        let late = now >= self.deadline;
        for pod in pods.iter().filter(|pod| pod.ending) {
            self.held.insert(pod.id.clone(), "was told to end and has not yet".to_owned());
        }
        let there = pods.iter().filter(|pod| !pod.ending).map(|pod| pod.id.clone());
        match (late, self.after) {
            (false, _) => (there.map(|id| (id, Act::Evict)).collect(), Verdict::Working),
            (true, Policy::Wait) => {
                for id in there {
                    self.held.entry(id).or_insert_with(|| "was not asked in time".to_owned());
                }
                (Vec::new(), Verdict::Held)
            }
            (true, Policy::Force) if now >= self.deadline.saturating_add(FORCED_MS) => {
                (Vec::new(), Verdict::Left)
            }
            (true, Policy::Force) => {
                let acts: Vec<_> = there.map(|id| (id, Act::Delete)).collect();
                for (id, _) in &acts {
                    let why =
                        self.held.get(id).cloned().unwrap_or_else(|| "was not asked in time".to_owned());
                    self.forced.entry(id.clone()).or_insert(why);
                }
                (acts, Verdict::Working)
            }
        }
    }

    /// What became of one act.
    pub fn told(&mut self, id: &str, answer: Answer) {
        match answer {
            Answer::Taken => drop(self.held.remove(id)),
            Answer::Held(why) | Answer::Failed(why) => drop(self.held.insert(id.to_owned(), why)),
        }
    }
}

/// The pods of a PodList that must leave.
pub fn pods(list: &Value) -> Vec<Pod> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter(|pod| must_leave(pod)).filter_map(pod).collect()
}

fn must_leave(pod: &Value) -> bool {
    let mirror = !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null();
    let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let daemon = owners.iter().any(|owner| owner["kind"] == "DaemonSet");
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    !mirror && !daemon && !finished
}

fn pod(pod: &Value) -> Option<Pod> {
    let meta = &pod["metadata"];
    let id = format!("{}/{}", meta["namespace"].as_str()?, meta["name"].as_str()?);
    Some(Pod { id, ending: !meta["deletionTimestamp"].is_null() })
}

/// What an answer to an eviction or deletion means: HTTP status and the `Status` object.
pub fn answer(status: u16, body: &Value) -> Answer {
    match status {
        200..=299 | 404 | 409 => Answer::Taken,
        429 => {
            let causes = body["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
            let budget = causes.iter().find(|cause| cause["reason"] == "DisruptionBudget");
            let text = budget.and_then(|cause| cause["message"].as_str()).or(body["message"].as_str());
            Answer::Held(text.unwrap_or("a disruption budget does not allow it").to_owned())
        }
        _ => {
            let text = body["message"].as_str().unwrap_or("no reason was given");
            Answer::Failed(format!("HTTP status {status}: {text}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(id: &str) -> Pod {
        Pod { id: id.to_owned(), ending: false }
    }

    const BUDGET: &str = "The disruption budget web needs 2 healthy pods and has 2 currently";

    fn held() -> Value {
        json!({ "message": "Cannot evict pod as it would violate the pod's disruption budget.",
            "details": { "causes": [{ "reason": "DisruptionBudget", "message": BUDGET }] } })
    }

    #[test]
    fn pods_that_belong_to_the_node_stay() {
        let list = json!({ "items": [
            { "metadata": { "namespace": "a", "name": "plain" } },
            { "metadata": { "namespace": "a", "name": "ending", "deletionTimestamp": "2026-01-01T00:00:00Z" } },
            { "metadata": { "namespace": "a", "name": "mirror",
                "annotations": { "kubernetes.io/config.mirror": "x" } } },
            { "metadata": { "namespace": "a", "name": "daemon", "ownerReferences": [{ "kind": "DaemonSet" }] } },
            { "metadata": { "namespace": "a", "name": "job" }, "status": { "phase": "Succeeded" } },
            { "metadata": { "name": 7 } }, "nonsense",
        ] });
        assert_eq!(pods(&list), [pod("a/plain"), Pod { id: "a/ending".into(), ending: true }]);
        assert_eq!(pods(&json!(null)), []);
    }

    #[test]
    fn a_budget_that_yields_is_waited_for() {
        let mut drain = Drain::begin(60, Policy::Wait, 0);
        let pods = [pod("a/web")];
        assert_eq!(drain.round(&pods, 0), (vec![("a/web".into(), Act::Evict)], Verdict::Working));
        drain.told("a/web", answer(429, &held()));
        assert_eq!(drain.held["a/web"], BUDGET);
        drain.round(&pods, 5_000);
        drain.told("a/web", answer(201, &json!({})));
        let ending = [Pod { ending: true, ..pod("a/web") }];
        assert_eq!(drain.round(&ending, 6_000), (vec![], Verdict::Working));
        assert_eq!(drain.round(&[], 7_000), (vec![], Verdict::Left));
        assert!(drain.held.is_empty() && drain.forced.is_empty());
    }

    #[test]
    fn a_budget_that_never_yields_is_named_and_nothing_is_forced() {
        let mut drain = Drain::begin(60, Policy::Wait, 0);
        let pods = [pod("a/web"), pod("a/other")];
        drain.round(&pods, 0);
        drain.told("a/web", answer(429, &held()));
        drain.told("a/other", Answer::Taken);
        assert_eq!(drain.round(&pods[..1], 60_000), (vec![], Verdict::Held));
        assert_eq!(drain.held, BTreeMap::from([("a/web".to_owned(), BUDGET.to_owned())]));
    }

    #[test]
    fn force_deletes_after_the_deadline_and_says_against_which_budget() {
        let mut drain = Drain::begin(60, Policy::Force, 0);
        let pods = [pod("a/web")];
        drain.round(&pods, 0);
        drain.told("a/web", answer(429, &held()));
        assert_eq!(drain.round(&pods, 59_999).0, [("a/web".to_owned(), Act::Evict)]);
        assert_eq!(drain.round(&pods, 60_000), (vec![("a/web".into(), Act::Delete)], Verdict::Working));
        assert_eq!(drain.forced["a/web"], BUDGET);
        // A pod that does not even end when it was deleted goes down with the machine.
        let stuck = [Pod { ending: true, ..pod("a/web") }];
        assert_eq!(drain.round(&stuck, 60_000 + FORCED_MS).1, Verdict::Left);
    }

    #[test]
    fn other_answers_are_failures_with_their_status() {
        assert_eq!(answer(404, &json!({})), Answer::Taken);
        let failed = answer(500, &json!({ "message": "etcd is away" }));
        assert_eq!(failed, Answer::Failed("HTTP status 500: etcd is away".into()));
        assert_eq!(answer(429, &json!(null)), Answer::Held("a disruption budget does not allow it".into()));
    }
}
