//! Why a step is stale: the inputs of now against those of the last time. Pure.

use crate::plan::{Inputs, Plan, StepName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Digests are shown by this many characters.
const SHORT: usize = 12;

/// Inputs of each step when it was last done.
pub type Before = BTreeMap<StepName, Inputs>;

/// What is known of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Which one.
    pub step: StepName,
    /// What it makes.
    pub makes: String,
    /// Whether its output is in the cache.
    pub cached: bool,
    /// Whether it was ever done for this profile.
    pub known: bool,
    /// Inputs that differ from the last time.
    pub changes: Vec<Change>,
}

/// An input that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name.
    pub input: String,
    /// Value of the last time; `None` if there was no such input.
    pub from: Option<String>,
    /// Value of now; `None` if there is no such input any more.
    pub to: Option<String>,
}

/// Explains every step of a plan; `cached` tells whether a step's output is there.
pub fn explain(plan: &Plan, before: &Before, cached: impl Fn(StepName) -> bool) -> Vec<Explained> {
    let one = |step: &crate::plan::Step| {
        let last = before.get(&step.step);
        Explained {
            step: step.step,
            makes: step.step.makes().into(),
            cached: cached(step.step),
            known: last.is_some(),
            changes: last.map(|last| changes(last, &step.inputs)).unwrap_or_default(),
        }
    };
    plan.steps.iter().map(one).collect()
}

fn changes(from: &Inputs, to: &Inputs) -> Vec<Change> {
    let mut names: Vec<&String> = from.keys().chain(to.keys()).collect();
    names.sort();
    names.dedup();
    let change = |name: &String| Change {
        input: name.clone(),
        from: from.get(name).cloned(),
        to: to.get(name).cloned(),
    };
    names.into_iter().filter(|name| from.get(*name) != to.get(*name)).map(change).collect()
}

impl Explained {
    /// One line that says whether the step has to be done.
    pub fn summary(&self) -> String {
        let state = match (self.cached, self.known, self.changes.len()) {
            (true, ..) => "cached".into(),
            (false, false, _) => "stale: not built before with this cache".into(),
            (false, true, 0) => "stale: its output is not there any more".into(),
            (false, true, 1) => "stale: 1 input changed".into(),
            (false, true, n) => format!("stale: {n} inputs changed"),
        };
        format!("{:8} {:30} {state}", self.step.name(), self.makes)
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{}: {} -> {}", self.input, short(from), short(to)),
            (None, Some(to)) => write!(f, "{}: new, {}", self.input, short(to)),
            (Some(from), None) => write!(f, "{}: gone, was {}", self.input, short(from)),
            (None, None) => write!(f, "{}", self.input),
        }
    }
}

/// Shortens the digests in a value.
fn short(value: &str) -> String {
    let is_digest = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = value.split(' ').map(|word| if is_digest(word) { &word[..SHORT] } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Step;
    use formats::hex::Digest;

    fn inputs(list: &[(&str, &str)]) -> Inputs {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn explained(before: &[(&str, &str)], now: &[(&str, &str)], cached: bool) -> Explained {
        let step = Step { step: StepName::Root, key: Digest([0; 32]), inputs: inputs(now) };
        let before = Before::from([(StepName::Root, inputs(before))]);
        explain(&Plan { steps: vec![step] }, &before, |_| cached).remove(0)
    }

    #[test]
    fn changed_new_and_gone_inputs_are_named() {
        let (old, new) = (format!("6.12.1 {}", "a".repeat(64)), format!("6.12.2 {}", "b".repeat(64)));
        let found = explained(
            &[("package linux", &old), ("file /a", "x"), ("same", "1")],
            &[("package linux", &new), ("user u", "y"), ("same", "1")],
            false,
        );
        let lines: Vec<_> = found.changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "file /a: gone, was x",
                "package linux: 6.12.1 aaaaaaaaaaaa -> 6.12.2 bbbbbbbbbbbb",
                "user u: new, y"
            ]
        );
        assert!(found.summary().ends_with("stale: 3 inputs changed"));
    }

    #[test]
    fn an_output_that_was_removed_is_told_from_a_change() {
        assert!(explained(&[("a", "1")], &[("a", "1")], false).summary().ends_with("not there any more"));
        assert!(explained(&[("a", "1")], &[("a", "1")], true).summary().ends_with("cached"));
    }
}
