//! What a node is told about k3s: the part `k3s` of the pair's configuration. Everything has a value that fits the image.

use super::drain::Policy;
use super::step::{TIMES, Times};
use anyhow::{Result, ensure};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;

/// k3s on this node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Program and first arguments, before `server`.
    pub program: Vec<String>,
    /// Its main configuration file, the image's. What the pair adds is written below `<file>.d/`.
    pub config: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    /// What this node keeps: the datastore's password and the token.
    pub state: PathBuf,
    /// Gone after a boot: number of the process, what is reported.
    pub run: PathBuf,
    /// Name of the node in Kubernetes; the host name if absent.
    pub node: Option<String>,
    /// This node's address for the other; the address of `listen` if absent.
    pub address: Option<IpAddr>,
    /// Further names and addresses in the API server's certificate, as a virtual IP.
    pub names: Vec<String>,
    /// Port of the API server.
    pub port: u16,
    /// How pods leave before a planned reboot.
    pub drain: Drain,
    /// Times that differ from the shipped ones.
    pub times: Times,
}

/// How pods leave before a planned reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Seconds that disruption budgets are waited for.
    pub deadline_s: u64,
    /// What happens to pods that a budget holds longer.
    pub after: Policy,
}

impl Default for Drain {
    fn default() -> Self {
        Self { deadline_s: 300, after: Policy::Wait }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            program: vec!["/usr/bin/k3s".to_owned()],
            config: "/etc/rancher/k3s/config.yaml".into(),
            data: "/var/lib/rancher/k3s".into(),
            state: "/var/lib/farhold-k3s".into(),
            run: "/run/farhold-k3s".into(),
            node: None,
            address: None,
            names: Vec::new(),
            port: 6443,
            drain: Drain::default(),
            times: TIMES,
        }
    }
}

impl Settings {
    /// Refuses what cannot be.
    ///
    /// # Errors
    /// Which value, and what it must be.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.program.is_empty(), "k3s.program is empty, but must name a program");
        let folders =
            [("config", &self.config), ("data", &self.data), ("state", &self.state), ("run", &self.run)];
        for (name, path) in folders {
            ensure!(path.is_absolute(), "k3s.{name} is {}, but must be an absolute path", path.display());
        }
        let plain = |name: &String| {
            let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            (1..=63).contains(&name.len()) && name.chars().all(known)
        };
        ensure!(
            self.node.as_ref().is_none_or(plain),
            "k3s.node is {:?}, but must be 1 to 63 small letters, digits, dots or hyphens",
            self.node
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_part_fits_the_image_and_nonsense_is_refused() {
        let settings: Settings = serde_json::from_str("{}").unwrap();
        settings.check().unwrap();
        assert_eq!((settings.port, settings.drain.after), (6443, Policy::Wait));
        let told = |text: &str| {
            let settings: Settings = serde_json::from_str(text).unwrap();
            settings.check().unwrap_err().to_string()
        };
        assert!(told(r#"{"program": []}"#).contains("k3s.program"));
        assert!(told(r#"{"data": "x"}"#).contains("absolute"));
        assert!(told(r#"{"node": "A/b"}"#).contains("k3s.node"));
        assert!(serde_json::from_str::<Settings>(r#"{"drain": {"after": "maybe"}}"#).is_err());
    }
}
