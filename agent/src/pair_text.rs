//! What `ha status` and `ha replace` say to people. It does not ask the node.

use serde_json::Value;
use std::fmt::Write;

/// The state of the pair, one line per fact.
pub fn status(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, said: String| {
        if !said.is_empty() {
            writeln!(text, "{name:<16}{said}").unwrap_or_default();
        }
    };
    let word = |name: &str| word(&status[name]);
    line("this node", [word("voter"), word("role")].join("  "));
    line("", word("says"));
    if status["epoch"].is_null() {
        return text;
    }
    line(
        "mode",
        format!("{}, epoch {}, policy {}{}", word("mode"), word("epoch"), word("policy"), forced(status)),
    );
    line("primary", primary(status));
    line("local port", port(status));
    line(
        "database",
        format!("{}, data {}, phase {}", word("server"), word("data").to_lowercase(), word("phase")),
    );
    line("disk", format!("finished a flush {} ms ago", word("disk_flushed_ms")));
    line("peer", peer(status));
    line("lag", lag(status));
    line("witness", witness(status));
    line("copy", copy(&status["copy"]));
    line("k3s", word("k3s"));
    for (kind, trouble) in status["troubles"].as_object().into_iter().flatten() {
        line("trouble", format!("{kind}: {}", self::word(trouble)));
    }
    for voter in status["two_machines_speak_as"].as_array().into_iter().flatten() {
        line(
            "CLONE",
            format!("two machines speak as {}: stop one of them and replace it", self::word(voter)),
        );
    }
    if status["moved_to_another_machine"] == true {
        line("MOVED", "this disk was in another machine before, or is a clone".to_owned());
    }
    let last = &status["last_command"];
    if !last.is_null() {
        line(
            "last command",
            format!(
                "{} by {} at {}",
                self::word(&last["command"]),
                self::word(&last["who"]),
                self::word(&last["at"])
            ),
        );
    }
    line("on peer loss", word("if_the_peer_died_now"));
    text
}

/// How far a copy is, on one line; nothing if there is none.
pub fn copy(copy: &Value) -> String {
    let number = |name: &str| copy[name].as_u64();
    let (Some(bytes), Some(total)) = (number("bytes"), number("total")) else { return String::new() };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let rate = number("bytes_per_s").map(|rate| format!(", {}/s", mib(rate))).unwrap_or_default();
    let eta = number("eta_s").map(|eta| format!(", about {eta} s left")).unwrap_or_default();
    format!("{} of about {}{rate}{eta}", mib(bytes), mib(total))
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    }
}

fn forced(status: &Value) -> String {
    match status["forced"].as_u64() {
        None | Some(0) => String::new(),
        Some(times) => format!(", forced by an operator {times} times"),
    }
}

fn primary(status: &Value) -> String {
    let here = if status["is_primary"] == true { " (this node)" } else { "" };
    format!("{}{here}", word(&status["primary"]))
}

fn port(status: &Value) -> String {
    match status["port"].as_str() {
        Some("Local") => "open, to the database here",
        Some("Peer") => "open, to the peer's database",
        Some(_) | None => "closed",
    }
    .to_owned()
}

fn ago(value: &Value) -> String {
    value.as_u64().map_or_else(|| "never".to_owned(), |ms| format!("{:.1} s ago", ms as f64 / 1000.0))
}

fn peer(status: &Value) -> String {
    let Some(peer) = status["peer"].as_str() else { return "none".to_owned() };
    let able = match status["peer_able"].as_bool() {
        Some(true) => ", able to serve",
        Some(false) => ", not able to serve",
        None => "",
    };
    let leaves = if status["peer_leaves"] == true { ", asks to leave" } else { "" };
    let serial = &status["serial_heard_ms"];
    let serial =
        if serial.is_null() { String::new() } else { format!("; over the serial cable {}", ago(serial)) };
    format!("{peer}, heard {}{able}{leaves}{serial}", ago(&status["peer_heard_ms"]))
}

fn lag(status: &Value) -> String {
    match (status["lag_bytes"].as_u64(), status["lag_s"].as_f64()) {
        (Some(bytes), Some(seconds)) => format!("{bytes} bytes, {seconds:.1} s"),
        _ => String::new(),
    }
}

fn witness(status: &Value) -> String {
    match status["witness"].as_str() {
        Some(witness) => format!("{witness}, heard {}", ago(&status["witness_heard_ms"])),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_fact_has_its_line() {
        let said = status(&json!({
            "voter": "a1", "role": "primary, in sync", "phase": "Leading", "epoch": 7, "forced": 1, "mode": "paired",
            "policy": "witness", "primary": "a1", "is_primary": true, "port": "Local", "server": "primary",
            "data": "Led", "disk_flushed_ms": 12, "peer": "b2", "peer_heard_ms": 80, "peer_able": true,
            "peer_leaves": false, "lag_bytes": 4096, "lag_s": 0.25, "witness": "c3", "witness_heard_ms": 90,
            "copy": { "bytes": 1048576, "total": 4194304, "bytes_per_s": 524288, "eta_s": 6 },
            "troubles": { "server": "it is stuck" }, "two_machines_speak_as": ["b2"], "moved_to_another_machine": false,
            "last_command": { "at": "2026-11-21T09:50:45Z", "who": "ann (uid 0)", "command": "force-solo" },
            "if_the_peer_died_now": "this node goes on alone",
        }));
        let expected = "\
this node       a1  primary, in sync
mode            paired, epoch 7, policy witness, forced by an operator 1 times
primary         a1 (this node)
local port      open, to the database here
database        primary, data led, phase Leading
disk            finished a flush 12 ms ago
peer            b2, heard 0.1 s ago, able to serve
lag             4096 bytes, 0.2 s
witness         c3, heard 0.1 s ago
copy            1.0 MiB of about 4.0 MiB, 0.5 MiB/s, about 6 s left
trouble         server: it is stuck
CLONE           two machines speak as b2: stop one of them and replace it
last command    force-solo by ann (uid 0) at 2026-11-21T09:50:45Z
on peer loss    this node goes on alone
";
        assert_eq!(said, expected);
        let unjoined =
            status(&json!({ "voter": "a1", "phase": "Unjoined", "says": "this node belongs to no pair" }));
        assert_eq!(unjoined, "this node       a1  \n                this node belongs to no pair\n");
    }
}
