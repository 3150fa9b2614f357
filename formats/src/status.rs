//! What the agent reports, locally and to the outside: one JSON object, also what `farhold-agent status --json` prints.

use crate::boot::{BootFacts, StateFacts};
use crate::hex::Digest;
use crate::layout::Slot;
use serde::{Deserialize, Serialize};

/// Version of this object; readers accept newer ones and ignore what they do not know.
pub const STATUS_SCHEMA: u32 = 1;
/// Unix socket on which the agent answers: one word and a newline (`status`, `why`), one line of JSON back.
pub const SOCKET: &str = "/run/farhold/agent.sock";
/// Name of the virtio-serial port on which the agent answers the same words, for a lab outside the machine.
pub const VIRTIO_PORT: &str = "org.farhold.agent.0";

/// The state of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// State of the agent itself.
    pub agent: AgentState,
    /// Version of the agent program.
    pub agent_version: String,
    /// Host name.
    pub node: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Profile, product, processor and board, as text.
    pub profile: ProfileId,
    /// What runs.
    pub observed: Option<Observed>,
    /// What is meant to run.
    pub desired: Option<Desired>,
    /// Where `/var` is.
    pub state: Option<StateFacts>,
    /// Facts from the init, as it left them.
    pub boot: Option<BootFacts>,
    /// Milliseconds since the kernel started when the early stage began and ended, where it ran.
    #[serde(default)]
    pub early_ms: Option<[u64; 2]>,
    /// systemd's view: `running`, `degraded`, `starting`…
    pub system: String,
    /// Units that failed.
    pub failed_units: Vec<String>,
    /// Milliseconds since the kernel started, when this was made.
    pub uptime_ms: u64,
    /// Milliseconds since the kernel started, when the agent was ready.
    pub ready_ms: u64,
    /// Resident memory of the agent, bytes.
    pub agent_rss_bytes: u64,
    /// Most that it was since the agent started, bytes.
    #[serde(default)]
    pub agent_peak_rss_bytes: u64,
    /// What an operator should know, worst first.
    pub findings: Vec<Finding>,
    /// The update in progress and what became of the last one; `None` before the agent has looked.
    #[serde(default)]
    pub update: Option<UpdateStatus>,
    /// The pair, as this node knows it; `None` where it belongs to none.
    #[serde(default)]
    pub ha: Option<HaStatus>,
}

/// The pair as one of its nodes knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaStatus {
    /// All of it in one line.
    pub text: String,
    /// `paired`, `solo`, or empty if nobody says.
    pub mode: String,
    /// What the node does, as `Leading`, `Following`, `Alone(Apart)`.
    pub phase: String,
    /// Whether it is the database's primary.
    pub primary: bool,
    /// Number of the decision that is in force.
    pub epoch: u64,
    /// What k3s does, where the agent runs it.
    #[serde(default)]
    pub k3s: Option<String>,
    /// Resident memory of all processes of the agent on this node, bytes; pages that several of them share count once (the
    /// kernel's Pss). 0 if it is not known.
    #[serde(default)]
    pub agent_bytes: u64,
}

/// Updates as an operator sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// `idle`, `fetching`, `installing`, `trial`, `committing`, `leaving` or `returning`.
    pub phase: String,
    /// What goes on, in words.
    pub text: String,
    /// Release that is being installed, tried or left.
    pub version: Option<String>,
    /// Its roothash.
    pub roothash: Option<Digest>,
    /// Where updates come from.
    pub source: Option<String>,
    /// What is measured below, as `payload`.
    pub part: Option<String>,
    /// Bytes done of the current part.
    pub done_bytes: u64,
    /// Bytes of the current part.
    pub total_bytes: u64,
    /// Bytes a second over the current part; 0 if unknown.
    pub rate_bytes: u64,
    /// Seconds until the current part is done, at that rate.
    pub eta_s: Option<u64>,
    /// Bytes fetched for this release since the agent started.
    pub fetched_bytes: u64,
    /// Checks of a trial boot that have not passed yet.
    pub waiting: Vec<String>,
    /// Newest release that was accepted, as root version and sequence number.
    pub accepted: Option<(u16, u32)>,
    /// What became of the last update, in words.
    pub last: Option<String>,
    /// Whether the other slot holds a system to go back to.
    pub can_roll_back: bool,
    /// What the last update took, or the one on trial takes.
    #[serde(default)]
    pub cost: Option<UpdateCost>,
}

/// What an update takes of a device, counted by the agent that installed it, since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateCost {
    /// Bytes written to the partitions of the other slot.
    pub slot_bytes: u64,
    /// Bytes written to files on the ESP.
    pub esp_bytes: u64,
    /// Bytes written to where objects are staged on the state partition.
    pub staged_bytes: u64,
    /// Most memory that the agent had resident, bytes.
    pub peak_rss_bytes: u64,
}

/// State of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// Started, not all is known yet.
    Starting,
    /// Everything works.
    Running,
    /// Works with something missing; see the findings.
    Degraded,
}

/// Names of what the image was built from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileId {
    /// Profile name.
    pub name: String,
    /// Product.
    pub product: String,
    /// Processor.
    pub arch: String,
    /// Board.
    pub board: String,
}

/// What runs, as observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Slot, from the device-mapper table.
    pub slot: Slot,
    /// Roothash, from the device-mapper table.
    pub roothash: Digest,
    /// Release version.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
}

/// What is meant to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Release version.
    pub version: String,
    /// Roothash.
    pub roothash: Digest,
    /// Who asked for it: `factory`, `operator`, or a carrier.
    pub source: String,
}

/// One thing an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Stable code, as `state-ephemeral`.
    pub code: String,
    /// What is so, and where.
    pub message: String,
    /// What to do next.
    pub next: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// An operator must act.
    Error,
    /// Works with less.
    Warning,
    /// Good to know.
    Info,
}

/// Why the device is as it is: the answer to `why`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// One sentence for each thing that was decided: slot, release, state partition.
    pub because: Vec<String>,
    /// What an operator should know, worst first.
    pub findings: Vec<Finding>,
    /// What happened last, newest first.
    pub events: Vec<EventLine>,
}

/// One recorded event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// Boot in which it happened.
    pub boot_id: String,
    /// Milliseconds since that boot's kernel started.
    pub uptime_ms: u64,
    /// Stable code, as `boot`.
    pub code: String,
    /// What happened.
    pub text: String,
}
