//! What a device writes onto a stick for the way back: who it is, what runs, how the last update ended. Pure.

use formats::status::Status;
use serde_json::{Value, json};

/// Folder on the stick.
pub const FOLDER: &str = "reports";
/// Longest report, bytes.
const MAX: usize = 4096;
/// Findings in it, at most.
const FINDINGS: usize = 8;

/// Its name: one a device, so that a stick does not fill up.
pub fn name(status: &Status) -> String {
    let id: String = status.machine_id.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    format!("{}.json", if id.is_empty() { "unknown" } else { &id })
}

/// Its contents.
pub fn bytes(status: &Status) -> Vec<u8> {
    let encode = |findings: usize| {
        let found: Vec<Value> = status.findings.iter().take(findings).map(|finding| json!(finding)).collect();
        let update = status.update.as_ref().map(|update| {
            json!({ "phase": update.phase, "version": update.version, "accepted": update.accepted,
                "last": update.last.as_ref().map(|text| text.chars().take(500).collect::<String>()) })
        });
        let report = json!({ "schema": status.schema, "machine_id": status.machine_id, "node": status.node,
            "agent": status.agent, "profile": status.profile, "observed": status.observed, "update": update,
            "uptime_ms": status.uptime_ms, "findings": found });
        report.to_string().into_bytes()
    };
    let mut report = encode(FINDINGS);
    for findings in (0..FINDINGS).rev() {
        if report.len() <= MAX {
            break;
        }
        report = encode(findings);
    }
    report
}
