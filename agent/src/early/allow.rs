//! What may come from the state store into `/etc`. Everything else of `/etc` is the image's (invariant I1).

/// The state store's `/etc`.
pub const STORE: &str = "/var/lib/farhold/etc";
/// Largest file that is taken over, bytes.
pub const FILE_MAX: u64 = 1 << 20;
/// Most files that are taken over.
pub const FILES_MAX: usize = 256;

/// A pattern of paths below `/etc`, and why a device may have its own. `*` stands for one name without dots at its
/// start.
pub struct Rule {
    /// The pattern.
    pub pattern: &'static str,
    /// Why.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "read by people, and by the test that no rule lacks one")
    )]
    pub because: &'static str,
}

/// The allow-list.
pub const RULES: [Rule; 8] = [
    Rule { pattern: "machine-id", because: "identity: logs, DHCP and Kubernetes know the device by it" },
    Rule { pattern: "hostname", because: "an operator may name a device; the image is the same for all" },
    Rule {
        pattern: "ssh/ssh_host_ed25519_key",
        because: "made on the device; a key in an image would be shared by all",
    },
    Rule { pattern: "ssh/ssh_host_ed25519_key.pub", because: "belongs to the key" },
    Rule { pattern: "ssh/authorized_keys.d/*", because: "people come and go between releases" },
    Rule { pattern: "systemd/network/*", because: "addresses and VLANs differ by site" },
    Rule { pattern: "systemd/resolved.conf.d/*", because: "name servers differ by site" },
    Rule { pattern: "wpa_supplicant/*", because: "Wi-Fi networks and their keys differ by site" },
];

/// Folders that have to be looked through for files of a rule, relative to `/etc`; `""` is `/etc` itself.
pub fn folders() -> Vec<&'static str> {
    let mut folders: Vec<&str> =
        RULES.iter().map(|r| r.pattern.rsplit_once('/').map_or("", |(folder, _)| folder)).collect();
    folders.sort_unstable();
    folders.dedup();
    folders
}

/// Whether a path relative to `/etc` is allowed.
pub fn allows(path: &str) -> bool {
    RULES.iter().any(|rule| match rule.pattern.strip_suffix('*') {
        Some(folder) => path
            .strip_prefix(folder)
            .is_some_and(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('.')),
        None => path == rule.pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_paths_pass() {
        for good in ["machine-id", "ssh/ssh_host_ed25519_key", "systemd/network/10-lan.network"] {
            assert!(allows(good), "{good}");
        }
        for bad in [
            "",
            "passwd",
            "shadow",
            "ssh/sshd_config",
            "machine-id/x",
            "systemd/network/",
            "systemd/network/../system/x.service",
            "systemd/network/a/b",
            "systemd/network/.hidden",
            "systemd/system/x.service",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }

    #[test]
    fn every_rule_has_a_reason_and_its_folder_is_searched() {
        for rule in &RULES {
            assert!(rule.because.len() > 10);
            assert!(folders().iter().any(|folder| rule.pattern.starts_with(folder)));
        }
    }
}
