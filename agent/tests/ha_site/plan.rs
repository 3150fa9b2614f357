//! The parties of a site, and how a site may differ from an ordinary one.

use serde_json::{Value, json};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    A,
    B,
    W,
    /// A fourth machine, which belongs to no site at first.
    C,
}

impl Node {
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::W];

    pub fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::W => 3,
            Self::C => 4,
        }
    }

    pub fn address(self) -> String {
        format!("10.77.0.{}", self.number())
    }

    /// At the second cable.
    pub fn second_address(self) -> String {
        format!("10.78.0.{}", self.number())
    }

    /// The other node of the pair.
    pub fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }
}

/// Changes a node's configuration.
pub type Tweak = Box<dyn Fn(Node, &mut Value)>;

/// How a site differs from an ordinary one.
pub struct Plan {
    /// Times of the nodes.
    pub times: Value,
    /// Whether there is a witness.
    pub witness: bool,
    /// Last changes to a node's configuration.
    pub tweak: Tweak,
    /// More of the environment of every party.
    pub env: Vec<(String, String)>,
    /// What stands before the agent on one node's command line.
    pub wrap: Option<(Node, Vec<String>)>,
    /// A disk of so many MiB for one node.
    pub small_disk: Option<(Node, u32)>,
    /// A disk for every party, which power cuts can strike.
    pub own_disks: bool,
    /// Every message and stream takes so long on its way.
    pub delay_ms: Option<u64>,
    /// With a delay: messages that arrived once arrive again and again.
    pub replays: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            times: json!({}),
            witness: true,
            tweak: Box::new(|_, _| {}),
            env: Vec::new(),
            wrap: None,
            small_disk: None,
            own_disks: false,
            delay_ms: None,
            replays: false,
        }
    }
}

impl Plan {
    /// Shorter times.
    pub fn quick() -> Self {
        let times = json!({ "peer_lost_ms": 1000, "retry_ms": 300, "stale_ms": 2000, "rejoin_pause_ms": 100,
            "hand_over_ms": 5000 });
        Self { times, ..Self::default() }
    }

    /// Each flush of this node takes so much longer.
    pub fn slow_disk(self, node: Node, delay: Duration) -> Self {
        // Without the filter every call of every process would wait for strace.
        let calls =
            ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"];
        let inject = format!("inject=fsync,fdatasync:delay_enter={}", delay.as_micros());
        let words = calls.into_iter().map(str::to_owned).chain([inject]).collect();
        Self { wrap: Some((node, words)), ..self }
    }

    /// More settings of the databases.
    pub fn with_settings(self, settings: &'static [(&'static str, &'static str)]) -> Self {
        let tweak = move |_, config: &mut Value| {
            for (name, value) in settings {
                config["postgres"]["settings"][*name] = (*value).into();
            }
        };
        Self { tweak: Box::new(tweak), ..self }
    }
}
