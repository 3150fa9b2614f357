//! The pair in the status of the device: asked of its own process, in one line. It decides nothing and knows no more than `ha status`.

use agent::ha::act::{self, Ask, Config};
use formats::status::HaStatus;
use serde_json::Value;
use std::path::Path;

/// What the pair's process says; nothing if this node was not enrolled in one.
pub fn look() -> Option<HaStatus> {
    let path = Path::new(crate::pair::CONFIG);
    if !path.exists() {
        return None;
    }
    let said = Config::read(path).and_then(|config| {
        let mut status = act::ask(&config.run, Ask::Status)?;
        status["k3s"] = agent::k3s::report(&config).unwrap_or_default();
        Ok(status)
    });
    Some(said.map_or_else(
        |error| HaStatus { text: format!("NOT RUNNING: {error:#}"), ..HaStatus::default() },
        |status| line(&status),
    ))
}

fn line(status: &Value) -> HaStatus {
    let word = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    let primary = status["is_primary"] == true;
    let epoch = status["epoch"].as_u64().unwrap_or(0);
    let (mode, phase) = (word("mode"), word("phase"));
    let k3s = status["k3s"]["state"].as_str().map(str::to_owned);
    let role = if primary { "primary" } else { "standby" };
    let lag =
        status["lag_bytes"].as_u64().map(|bytes| format!(", peer {bytes} bytes behind")).unwrap_or_default();
    let held = status["k3s"]["drain"]["held"].as_object().and_then(|held| held.iter().next());
    let drain = held
        .map(|(pod, why)| format!(", drain held by {pod}: {}", why.as_str().unwrap_or_default()))
        .unwrap_or_default();
    let runs = k3s.as_ref().map(|state| format!("; k3s {state}{drain}")).unwrap_or_default();
    let prospect = word("if_the_peer_died_now");
    let text = if mode.is_empty() {
        format!("{phase}{runs}")
    } else {
        format!("{mode}, {role} ({phase}), epoch {epoch}{lag}{runs}; if the peer died now: {prospect}")
    };
    HaStatus { text, mode, phase, primary, epoch, k3s }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_pair_is_one_line() {
        let status = json!({ "mode": "paired", "phase": "Leading", "is_primary": true, "epoch": 7, "lag_bytes": 0,
            "if_the_peer_died_now": "this node goes on alone, if the witness answers",
            "k3s": { "state": "ready", "drain": { "held": { "default/web": "The disruption budget web needs 1" } } } });
        let ha = line(&status);
        assert_eq!(
            (ha.mode.as_str(), ha.primary, ha.epoch, ha.k3s.as_deref()),
            ("paired", true, 7, Some("ready"))
        );
        assert_eq!(
            ha.text,
            "paired, primary (Leading), epoch 7, peer 0 bytes behind; k3s ready, drain held by default/web: The \
             disruption budget web needs 1; if the peer died now: this node goes on alone, if the witness answers"
        );
        let alone = line(&json!({ "phase": "Unjoined", "says": "x" }));
        assert_eq!((alone.text.as_str(), alone.primary), ("Unjoined", false));
    }
}
