//! What the lab prints: stages of a boot while they pass, and what the nodes report.

use anyhow::{Context, Result};
use formats::status::{Severity, Status};
use qemu_tests::boot;
use qemu_tests::site::Site;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// One node as `farhold lab status --json` shows it.
#[derive(Serialize)]
struct Node {
    node: String,
    /// Seconds since power-on; `null` if it is off.
    up_s: Option<u64>,
    ssh_port: Option<u16>,
    /// The agent's own report; `null` if it did not answer.
    status: Option<Status>,
}

/// Prints what every node reports.
///
/// # Errors
/// If a node's folder cannot be read or its agent answers nonsense.
pub fn status(site: &Site, json: bool) -> Result<ExitCode> {
    let nodes: Vec<Node> = site.nodes().iter().map(|name| node(site, name)).collect::<Result<_>>()?;
    if json {
        say(&format!("{}\n", serde_json::to_string_pretty(&nodes).context("encode the status")?))?;
    } else {
        say(&nodes.iter().map(words).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints; a reader that has seen enough is no error.
fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn node(site: &Site, name: &str) -> Result<Node> {
    let vm = site.vm(Some(name))?;
    Ok(Node {
        node: name.to_owned(),
        up_s: vm.up_time()?.map(|up| up.as_secs()),
        ssh_port: vm.machine()?.ssh_port,
        status: vm.ask_status()?,
    })
}

/// A node in words, some lines.
fn words(node: &Node) -> String {
    let head = match (node.up_s, node.ssh_port) {
        (None, _) => return format!("{}: off\n", node.node),
        (Some(up), Some(port)) => format!("{}: on for {up} s, ssh on port {port}", node.node),
        (Some(up), None) => format!("{}: on for {up} s", node.node),
    };
    let Some(status) = &node.status else {
        return format!("{head}\n  the agent does not answer (yet); `farhold lab console` shows the boot\n");
    };
    let mut out =
        format!("{head}\n  agent      {}, {} KiB\n", text(&status.agent), status.agent_rss_bytes >> 10);
    out.push_str(&format!("  system     {}", status.system));
    match status.failed_units.as_slice() {
        [] => out.push('\n'),
        failed => out.push_str(&format!(", failed: {}\n", failed.join(", "))),
    }
    if let Some(seen) = &status.observed {
        out.push_str(&format!(
            "  runs       {} in slot {}, roothash {}\n",
            seen.version,
            seen.slot,
            seen.roothash.short()
        ));
    }
    out.push_str(&format!("  device     {} (machine-id {})\n", status.node, status.machine_id));
    if let Some(state) = &status.state {
        out.push_str(&format!("  state      {}\n", state_words(state)));
    }
    if let Some(ha) = &status.ha {
        out.push_str(&format!("  pair       {}\n", ha.text));
    }
    for finding in &status.findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        out.push_str(&format!(
            "  {severity:10} {}: {} Next: {}\n",
            finding.code, finding.message, finding.next
        ));
    }
    out
}

fn state_words(state: &formats::boot::StateFacts) -> String {
    use formats::boot::StateFacts;
    match state {
        StateFacts::Persistent { device, bytes, made, .. } => {
            format!("{} MiB on {device}{}", bytes >> 20, if *made { ", made in this boot" } else { "" })
        }
        StateFacts::ReadOnly { device, why } => format!("read-only on {device}: {why}"),
        StateFacts::Ephemeral { why } => format!("in memory, nothing is kept: {why}"),
    }
}

/// An enum as it is spelled in JSON.
fn text(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Follows the boot of nodes until they have settled; prints the stages on a terminal and the times at the end.
///
/// # Errors
/// If one does not boot. It is left as it is, for a look.
pub fn follow(site: &Site, nodes: &[String], patience: Duration) -> Result<()> {
    let terminal = std::io::stderr().is_terminal();
    for name in nodes {
        let vm = site.vm(Some(name))?;
        let (status, since) = vm
            .follow_boot(patience, |stage, since| {
                if terminal {
                    eprintln!("{name}  {:6.1} s  {}", since.as_secs_f64(), stage.text());
                }
            })
            .with_context(|| {
                format!("{name} does not come up; it is left as it is: `farhold lab console {name}`, `farhold lab down`")
            })?;
        say(&boot::table(&status, u64::try_from(since.as_millis())?))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_off_says_only_that() {
        let node = Node { node: "node1".into(), up_s: None, ssh_port: Some(1), status: None };
        assert_eq!(words(&node), "node1: off\n");
    }

    #[test]
    fn a_silent_agent_is_told_with_what_to_look_at() {
        let node = Node { node: "node1".into(), up_s: Some(7), ssh_port: Some(2201), status: None };
        let words = words(&node);
        assert!(words.starts_with("node1: on for 7 s, ssh on port 2201\n"), "{words}");
        assert!(words.contains("farhold lab console"), "{words}");
    }
}
