//! Reports on their way: what the device has to say goes over the broker that it is connected to, until a receipt comes.
//! What is to be said stands in the store; nothing is lost with the agent.

use crate::io::clock::boot_ms;
use crate::store::{Record, Store};
use crate::update::carrier::mqtt::Broker;
use formats::hex;
use formats::report::{ReportId, Standing};
use formats::status::{Severity, Status};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks while something waits.
pub const TURN: Duration = Duration::from_secs(5);
/// A report without a receipt is sent again after this time.
const AGAIN_MS: u64 = 60_000;
/// Reports that are under way at once.
const AT_ONCE: u32 = 16;

/// What was sent when.
#[derive(Default)]
pub struct Outgoing {
    sent: BTreeMap<ReportId, u64>,
    standing: Option<Standing>,
    /// Whether something waits.
    pub waiting: bool,
}

/// How the device stands, as a report has it.
pub fn standing(status: &Status, target: [u8; 8], site: Option<&str>) -> Standing {
    let update = status.update.as_ref();
    let serious = |severity: &Severity| matches!(severity, Severity::Error | Severity::Warning);
    let findings = status.findings.iter().filter(|finding| serious(&finding.severity)).count();
    let last = update.and_then(|update| update.last.clone()).unwrap_or_default();
    let text = update.filter(|update| update.phase != "idle").map_or(last, |update| update.text.clone());
    Standing {
        target,
        phase: Standing::phase_number(update.map_or("idle", |update| &update.phase)),
        roothash: status.observed.as_ref().map_or([0; 8], |seen| Standing::roothash(&seen.roothash)),
        accepted: update.and_then(|update| update.accepted).unwrap_or_default(),
        findings: u8::try_from(findings).unwrap_or(u8::MAX),
        version: status.observed.as_ref().map_or_else(String::new, |seen| seen.version.clone()),
        site: site.unwrap_or_default().to_owned(),
        node: status.node.clone(),
        text,
    }
}

impl Outgoing {
    /// Says how the device stands, if that changed.
    pub fn stands(&mut self, standing: Standing) -> Option<Record> {
        if self.standing.as_ref() == Some(&standing) {
            return None;
        }
        self.standing = Some(standing.clone());
        self.waiting = true;
        Some(Record::Standing(Box::new(standing)))
    }

    /// Takes receipts and sends what is due.
    ///
    /// # Errors
    /// SQLite's.
    pub fn turn(&mut self, store: &mut Store, broker: &Broker, machine_id: &str) -> rusqlite::Result<()> {
        let received = broker.receipts();
        if !received.is_empty() {
            self.sent.retain(|id, _| !received.contains(id));
            store.record(&[Record::Received(received)])?;
        }
        let device = hex::decode(machine_id).unwrap_or_default();
        let due = store.outbox(device, AT_ONCE)?;
        self.waiting = !due.is_empty();
        // What was taken out of the outbox by something newer is not waited for.
        self.sent.retain(|id, _| due.iter().any(|(known, _)| known == id));
        for (id, report) in due {
            let now_ms = boot_ms();
            let fresh = self.sent.get(&id).is_some_and(|at| now_ms < at + AGAIN_MS);
            if !fresh && broker.report(&report) {
                self.sent.insert(id, now_ms);
            }
        }
        Ok(())
    }
}
