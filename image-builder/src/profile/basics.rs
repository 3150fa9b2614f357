//! What can be wrong with a profile by itself: names, versions, health checks, two-node settings. Pure.

use super::model::{Carrier, Ha, Health, OnPeerLoss, Profile, Settings};
use super::variables::is_version;
use crate::finding::{Finding, nearest};
use crate::pack::model::LayerKind;
use crate::template;
use formats::device::{check_carriers, check_source};
use formats::mqtt::Address;

/// Names, versions, and variables that nothing uses.
pub fn check(profile: &Profile, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let names = [
        ("metadata.name", Some(&profile.metadata.name)),
        ("metadata.product", profile.metadata.product.as_ref()),
    ];
    for (path, name) in names {
        if let Some(name) = name.filter(|name| !is_label(name)) {
            let message = format!("`{name}` must be 1 to 48 of a-z, 0-9 and `-`");
            findings.push(Finding::error(path, message, "choose another name"));
        }
    }
    if !is_version(&profile.metadata.version) {
        let message = format!("`{}` is not a version", profile.metadata.version);
        let next = "use digits, letters, `.` and `-`, as 1.4.0";
        findings.push(Finding::error("metadata.version", message, next));
    }
    if !profile.layers.iter().any(|layer| layer.layer == LayerKind::Os) {
        let next = "add one, as `{layer: os, pack: debian, version: \"13\"}`";
        findings.push(Finding::error("layers", "no layer `os`", next));
    }
    let used: Vec<&str> = template::variables(text).collect();
    for name in profile.variables.keys().filter(|name| !used.contains(&name.as_str())) {
        let finding = Finding::error(format!("variables.{name}"), "is not used", "use it or remove it");
        findings.push(finding.warning());
    }
    findings
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 48
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What checks can see: units that the image enables or brings, and whether it has Kubernetes.
#[derive(Debug)]
pub struct Visible<'a> {
    /// Unit names.
    pub units: Vec<&'a str>,
    /// Whether there is a layer `kubernetes`.
    pub kubernetes: bool,
}

/// Health checks: unique names, and things that exist.
pub fn health(checks: &[Health], visible: &Visible<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (n, check) in checks.iter().enumerate() {
        let path = format!("health[{n}]");
        if checks[..n].iter().any(|other| name(other) == name(check)) {
            let message = format!("two checks are named `{}`", name(check));
            findings.push(Finding::error(format!("{path}.name"), message, "rename one"));
        }
        match check {
            Health::Unit { unit, .. } if !visible.units.contains(&unit.as_str()) => {
                let next = match nearest(unit, visible.units.iter().copied()) {
                    Some(near) => {
                        format!("did you mean `{near}`? if a Debian package enables it, ignore this")
                    }
                    None => "if a Debian package enables it, ignore this".into(),
                };
                let message = format!("no pack enables `{unit}`");
                findings.push(Finding::error(format!("{path}.unit"), message, next).warning());
            }
            Health::NodeReady { .. } if !visible.kubernetes => {
                let next = "add the layer, or remove the check";
                findings.push(Finding::error(path, "`node-ready` needs a layer `kubernetes`", next));
            }
            Health::Http { url, .. } if !is_local(url) => {
                let message = format!("`{url}` is not an address of this machine");
                let next = "use http://127.0.0.1, http://[::1] or http://localhost";
                findings.push(Finding::error(format!("{path}.url"), message, next));
            }
            Health::Unit { .. }
            | Health::Port { .. }
            | Health::Http { .. }
            | Health::NodeReady { .. }
            | Health::Disk { .. }
            | Health::Command { .. } => {}
        }
    }
    findings
}

fn name(check: &Health) -> &str {
    match check {
        Health::Unit { name, .. }
        | Health::Port { name, .. }
        | Health::Http { name, .. }
        | Health::NodeReady { name, .. }
        | Health::Disk { name, .. }
        | Health::Command { name, .. } => name,
    }
}

fn is_local(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let hosts = ["127.0.0.1", "[::1]", "localhost"];
    let rest = rest.and_then(|rest| hosts.iter().find_map(|host| rest.strip_prefix(host)));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
}

/// The address that follows the primary: with it, the length of its network's prefix.
pub fn virtual_ip(ha: &Ha) -> Option<Finding> {
    let text = ha.virtual_ip.as_ref().filter(|text| formats::device::virtual_ip(text).is_none())?;
    let message = format!("`{text}` is no IPv4 address of a host with the length of its network's prefix");
    Some(Finding::error("ha.virtual_ip", message, "write it like 192.0.2.10/24"))
}

/// Two-node settings (design section 8): `prefer` and a witness exclude each other.
pub fn ha(ha: &Ha) -> Option<Finding> {
    match (&ha.on_peer_loss, &ha.witness) {
        (OnPeerLoss::Prefer(_), Some(_)) => Some(Finding::error(
            "ha.witness",
            "`prefer` and a witness exclude each other: both halves could win",
            "remove the witness, or use `on_peer_loss: witness`",
        )),
        (OnPeerLoss::Hold, Some(_)) => Some(Finding::error(
            "ha.witness",
            "`hold` never asks a witness",
            "remove it, or use `on_peer_loss: witness`",
        )),
        (OnPeerLoss::Witness, None) => Some(Finding::error(
            "ha.on_peer_loss",
            "`witness` needs the address of one",
            "add `witness: HOST:PORT`, or use `hold` or `prefer`",
        )),
        (OnPeerLoss::Prefer(node), None) => {
            let message = format!("if {node} dies, the other writes nothing until an operator confirms");
            Some(Finding::error("ha.on_peer_loss", message, "a witness lets either of them go on").warning())
        }
        (OnPeerLoss::Hold, None) | (OnPeerLoss::Witness, Some(_)) => None,
    }
}

/// Where updates come from: something that the agent can open, not asked without pause.
pub fn update(settings: &Settings) -> Option<Finding> {
    let update = settings.update.as_ref()?;
    let all: Vec<_> = update.carriers.iter().map(Carrier::settings).collect();
    let carriers = check_carriers(&all).err().map(|(n, why)| {
        Finding::error(
            format!("settings.update.carriers[{n}]"),
            why,
            "see docs/profiles.md, \"Carriers\"; give each its own name",
        )
    });
    let found = source(&update.source, "settings.update.source").or(carriers);
    found.or_else(|| {
        (update.poll_s < 60).then(|| {
            let message = format!("poll_s is {}, but must be 60 or more", update.poll_s);
            Finding::error("settings.update.poll_s", message, "an hour, 3600, is usual")
        })
    })
}

/// An address that the agent can open.
fn source(source: &str, place: &str) -> Option<Finding> {
    let next = if Address::is_meant(source) {
        "as mqtts://USER@HOST/PREFIX?ca=FILE&password-file=FILE"
    } else {
        "name an address that begins with http://, https://, mqtt://, mqtts://, serial:/dev/ or cast:, or a folder on the device"
    };
    check_source(source).err().map(|why| Finding::error(place, why, next))
}

/// Settings that need something of the layers.
pub fn settings(settings: &Settings, kubernetes: Option<&str>) -> Option<Finding> {
    if settings.registry_mirrors.is_empty() || kubernetes == Some("k3s") {
        return None;
    }
    let message = match kubernetes {
        None => "there is no layer `kubernetes` that would use them".to_owned(),
        Some(pack) => format!("are written for k3s, which reads registries.yaml; {pack} would not see them"),
    };
    Some(Finding::error("settings.registry_mirrors", message, "remove them, or use the pack k3s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_local() {
        for good in ["http://127.0.0.1:6443/readyz", "https://localhost/x", "http://[::1]"] {
            assert!(is_local(good), "{good}");
        }
        for bad in ["http://127.0.0.1.example.net/", "ftp://localhost", "http://example.net", "localhost"] {
            assert!(!is_local(bad), "{bad}");
        }
    }

    #[test]
    fn a_virtual_ip_is_a_hosts_with_its_prefix() {
        let refused = |text: &str| {
            virtual_ip(&Ha { on_peer_loss: OnPeerLoss::Hold, witness: None, virtual_ip: Some(text.into()) })
                .is_some()
        };
        assert!(!refused("192.0.2.10/24") && !refused("10.0.0.0/31") && !refused("10.0.1.255/16"));
        for wrong in [
            "192.0.2.10",
            "192.0.2.10/0",
            "192.0.2.10/33",
            "10.0.0.1/32",
            "192.0.2.0/24",
            "192.0.2.255/24",
            "224.0.0.1/24",
            "::1/64",
            "{}/24",
            "127.0.0.1/8",
        ] {
            assert!(refused(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_witness_goes_with_its_policy_only() {
        let with = |on_peer_loss, witness: Option<&str>| {
            ha(&Ha { on_peer_loss, witness: witness.map(str::to_owned), virtual_ip: None })
                .map(|f| f.severity)
        };
        use crate::finding::Severity::{Error, Warning};
        assert_eq!(with(OnPeerLoss::Witness, Some("w:1")), None);
        assert_eq!(with(OnPeerLoss::Witness, None), Some(Error));
        assert_eq!(with(OnPeerLoss::Hold, None), None);
        assert_eq!(with(OnPeerLoss::Hold, Some("w:1")), Some(Error));
        assert_eq!(with(OnPeerLoss::Prefer("a".into()), Some("w:1")), Some(Error));
        assert_eq!(with(OnPeerLoss::Prefer("a".into()), None), Some(Warning));
    }
}
