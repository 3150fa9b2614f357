//! The pair in the status of the device: asked of its own process, in one line. It decides nothing and knows no more than `ha status`.

use agent::ha::act::{self, Ask, Config};
use formats::status::HaStatus;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What the pair's process says; nothing if this node was not enrolled in one.
pub fn look() -> Option<HaStatus> {
    let path = Path::new(crate::pair::CONFIG);
    let pairing = crate::pairing::look().map(|text| format!("pairing: {text}"));
    if !path.exists() {
        return pairing.map(|text| HaStatus { text, ..HaStatus::default() });
    }
    let said = Config::read(path).and_then(|config| {
        let mut status = act::ask(&config.run, Ask::Status)?;
        status["k3s"] = agent::k3s::report(&config).unwrap_or_default();
        Ok(status)
    });
    let mut status = said.map_or_else(
        |error| HaStatus { text: format!("NOT RUNNING: {error:#}"), ..HaStatus::default() },
        |status| line(&status),
    );
    if let Some(pairing) = pairing {
        status.text = format!("{pairing}; {}", status.text);
    }
    status.agent_bytes = memory_bytes().unwrap_or_default();
    if status.agent_bytes > 0 {
        status.text += &format!("; the agent takes {} MiB", status.agent_bytes.div_ceil(1 << 20));
    }
    Some(status)
}

/// Folders of processes; `self` and `thread-self` would name one of them again.
fn processes() -> Option<impl Iterator<Item = PathBuf>> {
    let entries = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    Some(
        entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
            .map(|entry| entry.path()),
    )
}

/// Resident memory of all processes of this program.
fn memory_bytes() -> Option<u64> {
    let own = std::fs::read_link("/proc/self/exe").ok()?;
    let kib = |folder: &Path| -> Option<u64> {
        let same = std::fs::read_link(folder.join("exe")).is_ok_and(|exe| exe == own);
        let rollup = std::fs::read_to_string(folder.join("smaps_rollup")).ok().filter(|_| same)?;
        rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()
    };
    Some(processes()?.filter_map(|folder| kib(&folder)).sum::<u64>() << 10)
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
    HaStatus { text, mode, phase, primary, epoch, k3s, agent_bytes: 0 }
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
        assert!(memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
        let own = std::fs::canonicalize("/proc/self").unwrap();
        let same = |folder: &PathBuf| std::fs::canonicalize(folder).is_ok_and(|folder| folder == own);
        assert_eq!(processes().unwrap().filter(same).count(), 1);
        let alone = line(&json!({ "phase": "Unjoined", "says": "x" }));
        assert_eq!((alone.text.as_str(), alone.primary), ("Unjoined", false));
    }
}
