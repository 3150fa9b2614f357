//! How far a boot has come, told by the console and the agent, and what took how long, told by the agent's status.
//!
//! Pure: who reads the console and asks the agent is [`crate::site`].

use formats::status::Status;

/// A point that every boot passes, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The firmware speaks.
    Firmware,
    /// The firmware starts systemd-boot.
    Loader,
    /// The kernel's EFI stub speaks, or the kernel itself.
    Kernel,
    /// `farhold-init` began.
    Init,
    /// `farhold-init` hands over to systemd.
    System,
    /// The agent answered and the system has settled.
    Agent,
}

/// What the console shows of each stage. With `quiet` and a silent boot menu some stay unseen; the next one tells.
const SIGNS: [(&str, Stage); 8] = [
    ("BdsDxe: loading", Stage::Firmware),
    ("BdsDxe: starting", Stage::Loader),
    ("EFI stub:", Stage::Kernel),
    ("Linux version", Stage::Kernel),
    ("farhold-init: start", Stage::Init),
    ("farhold-init: handing over", Stage::System),
    ("systemd[1]:", Stage::System),
    (" login:", Stage::System),
];

/// What the console shows when a boot has failed for good.
const ENDS: [&str; 3] = ["farhold-init: STOPPED", "Kernel panic", "BdsDxe: No bootable option"];

impl Stage {
    /// What is going on in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Loader => "boot loader",
            Self::Kernel => "kernel",
            Self::Init => "init opens the root",
            Self::System => "system starts",
            Self::Agent => "agent running",
        }
    }
}

/// Something seen on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A stage began.
    Stage(Stage),
    /// The boot ended without a system.
    End,
}

/// All texts to look for, in the order of [`sign`]'s index.
pub fn patterns() -> Vec<&'static str> {
    SIGNS.iter().map(|(text, _)| *text).chain(ENDS).collect()
}

/// The meaning of a pattern of [`patterns`].
pub fn sign(index: usize) -> Sign {
    SIGNS.get(index).map_or(Sign::End, |(_, stage)| Sign::Stage(*stage))
}

/// One part of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What went on.
    pub what: &'static str,
    /// Milliseconds since power-on when it began.
    pub from_ms: u64,
    /// Milliseconds since power-on when it ended.
    pub to_ms: u64,
}

impl Part {
    /// How long it took, ms.
    pub fn ms(&self) -> u64 {
        self.to_ms.saturating_sub(self.from_ms)
    }
}

/// Splits a boot into its parts by the facts that init and agent noted; `wall_ms` is the time since power-on at which
/// `status` came. Empty if the init left no facts.
pub fn parts(status: &Status, wall_ms: u64) -> Vec<Part> {
    let Some(boot) = &status.boot else { return Vec::new() };
    let mut out = Vec::new();
    let mut now = 0;
    let mut add = |what, to_ms: u64| {
        out.push(Part { what, from_ms: now, to_ms });
        now = to_ms;
    };
    // The kernel's clock begins at its start. The firmware tells when that was, or the host's clock does.
    let kernel = match boot.firmware_us {
        Some([loader, exec]) => {
            add("firmware", loader / 1000);
            add("boot loader, image and signature", exec / 1000);
            exec / 1000
        }
        None => {
            let started = wall_ms.saturating_sub(status.uptime_ms);
            add("firmware and boot loader", started);
            started
        }
    };
    add("kernel", kernel + boot.init_ms[0]);
    match status.early_ms {
        Some([from, to]) => {
            add("init: disk, dm-verity, root", kernel + from);
            add("early: state partition, /etc", kernel + to);
            add("init: hand-over", kernel + boot.init_ms[1]);
        }
        None => add("init: root, state partition, /etc", kernel + boot.init_ms[1]),
    }
    add("systemd up to the agent", kernel + status.ready_ms);
    out
}

/// The table of parts, the longest marked, and the whole; `wall_ms` is what the host's clock measured from power-on
/// to the first settled answer.
pub fn table(status: &Status, wall_ms: u64) -> String {
    let parts = parts(status, wall_ms);
    let whole = parts.last().map_or(wall_ms, |part| part.to_ms).max(1);
    let longest = parts.iter().map(Part::ms).max();
    let mut out = String::from("boot time and what dominates it\n");
    for part in &parts {
        let mark = if Some(part.ms()) == longest { "  <- dominates" } else { "" };
        let (seconds, share) = (part.ms() as f64 / 1000.0, part.ms() * 100 / whole);
        out.push_str(&format!("  {:34} {seconds:7.1} s {share:3} %{mark}\n", part.what));
    }
    if !parts.is_empty() {
        out.push_str(&format!("  {:34} {:7.1} s\n", "power-on to agent ready", whole as f64 / 1000.0));
    }
    out.push_str(&format!(
        "  {:34} {:7.1} s\n",
        "power-on to settled, host's clock",
        wall_ms as f64 / 1000.0
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let json = serde_json::json!({
            "schema": 1, "agent": "running", "agent_version": "0.0.0", "node": "n", "machine_id": "", "boot_id": "",
            "profile": {"name": "", "product": "", "arch": "", "board": ""},
            "observed": null, "desired": null, "state": null,
            "boot": {
                "slot": "a", "roothash": "00".repeat(32), "version": "1", "disk": "/dev/vda",
                "partitions": {"esp": "", "root": ["", ""], "verity": ["", ""], "state": null},
                "trial": false, "slots": [], "watchdog": null, "init_ms": [4000, 6000],
                "firmware_us": [3_000_000, 5_000_000], "notes": []
            },
            "system": "running", "failed_units": [], "uptime_ms": 0, "ready_ms": 20_000, "agent_rss_bytes": 0,
            "findings": []
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn parts_follow_each_other_without_gaps() {
        let mut status = status();
        status.early_ms = Some([4500, 5800]);
        let parts = parts(&status, 0);
        assert!(parts.windows(2).all(|pair| pair[0].to_ms == pair[1].from_ms));
        let ms: Vec<u64> = parts.iter().map(Part::ms).collect();
        assert_eq!(ms, [3000, 2000, 4000, 500, 1300, 200, 14_000]);
        assert_eq!(parts.last().unwrap().to_ms, 25_000);
    }

    #[test]
    fn the_longest_part_is_marked_and_the_whole_told() {
        let table = table(&status(), 26_500);
        let marked: Vec<&str> =
            table.lines().filter(|line| line.contains("dominates") && line.contains('%')).collect();
        assert_eq!(marked.len(), 1);
        assert!(marked[0].contains("systemd up to the agent"), "{table}");
        assert!(table.contains("25.0 s") && table.contains("26.5 s"), "{table}");
    }

    #[test]
    fn where_the_firmware_is_silent_the_hosts_clock_tells_when_the_kernel_began() {
        let mut silent = Status { uptime_ms: 22_000, ..status() };
        silent.boot.as_mut().unwrap().firmware_us = None;
        let parts = parts(&silent, 26_500);
        assert_eq!((parts[0].what, parts[0].to_ms), ("firmware and boot loader", 4500));
        assert_eq!(parts.last().unwrap().to_ms, 24_500);
    }

    #[test]
    fn without_facts_only_the_hosts_clock_speaks() {
        let bare = Status { boot: None, ..status() };
        assert!(parts(&bare, 1500).is_empty());
        assert!(table(&bare, 1500).contains("1.5 s"));
    }

    #[test]
    fn every_pattern_has_its_meaning() {
        let patterns = patterns();
        let at = |text: &str| patterns.iter().position(|pattern| *pattern == text).unwrap();
        assert_eq!(sign(at("farhold-init: start")), Sign::Stage(Stage::Init));
        assert_eq!(sign(at("farhold-init: STOPPED")), Sign::End);
    }
}
