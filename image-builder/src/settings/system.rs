//! Time, proxy, logs, certificates and registry mirrors as files of the image.

use super::TextFile;
use crate::finding::Finding;
use crate::profile::model::{Proxy, Settings};

/// Where CA certificates of the profile stand; the `os` pack's certificate step reads them there.
pub const CA_FOLDER: &str = "/usr/local/share/ca-certificates";

/// Files for everything but networks and users. One finding for each value that makes no sense.
pub fn files(settings: &Settings) -> (Vec<TextFile>, Vec<Finding>) {
    let mut files = Vec::new();
    let mut findings = Vec::new();
    let mut file = |path: &str, text: String| files.push(TextFile::public(path, text));
    if !settings.ntp.is_empty() {
        file(
            "/etc/systemd/timesyncd.conf.d/50-site.conf",
            format!("[Time]\nNTP={}\n", settings.ntp.join(" ")),
        );
    }
    file(
        "/etc/systemd/journald.conf.d/50-limits.conf",
        format!(
            "[Journal]\nStorage=persistent\nSystemMaxUse={}M\nRuntimeMaxUse=32M\n",
            settings.logs.journal_mib
        ),
    );
    if let Some(settings) = &settings.proxy {
        let (manager, profile) = proxy(settings, &mut findings);
        file("/etc/systemd/system.conf.d/50-proxy.conf", manager);
        file("/etc/profile.d/50-proxy.sh", profile);
    }
    for (n, certificate) in settings.ca_certificates.iter().enumerate() {
        if certificate.matches("-----BEGIN CERTIFICATE-----").count() == 1 {
            file(&format!("{CA_FOLDER}/site-{n}.crt"), format!("{}\n", certificate.trim()));
        } else {
            let next = "paste the text from `-----BEGIN CERTIFICATE-----` on";
            let place = format!("settings.ca_certificates[{n}]");
            findings.push(Finding::error(place, "is not one certificate in PEM form", next));
        }
    }
    if !settings.registry_mirrors.is_empty() {
        let mirrors: serde_json::Map<String, serde_json::Value> = settings
            .registry_mirrors
            .iter()
            .map(|(registry, endpoints)| (registry.clone(), serde_json::json!({ "endpoint": endpoints })))
            .collect();
        // JSON is YAML; k3s reads this file.
        file(
            "/etc/rancher/k3s/registries.yaml",
            format!("{:#}\n", serde_json::json!({ "mirrors": mirrors })),
        );
    }
    if let Some(hostname) = &settings.hostname {
        let plain = hostname.replacen('%', "00000000", 1);
        let label = |l: &str| {
            !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !plain.split('.').all(label) {
            let next = "use letters, digits and `-`; one `%` stands for the machine";
            findings.push(Finding::error("settings.hostname", format!("`{hostname}` is no host name"), next));
        }
        file(formats::device::HOST_NAME_PATTERN, format!("{hostname}\n"));
    }
    (files, findings)
}

/// For systemd's services, and for shells.
fn proxy(proxy: &Proxy, findings: &mut Vec<Finding>) -> (String, String) {
    let no_proxy = proxy.no_proxy.join(",");
    let pairs = [
        ("HTTP_PROXY", proxy.http.as_ref()),
        ("HTTPS_PROXY", proxy.https.as_ref()),
        ("NO_PROXY", Some(&no_proxy)),
    ];
    let (mut words, mut exports) = (Vec::new(), String::new());
    for (key, value) in pairs {
        let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
        if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b":/.,-_@[]*".contains(&b)) {
            let message = format!("{key} has characters that addresses do not have: `{value}`");
            findings.push(Finding::error(
                "settings.proxy",
                message,
                "correct it, or percent-encode them elsewhere",
            ));
        }
        for key in [key.to_owned(), key.to_ascii_lowercase()] {
            words.push(format!("\"{key}={value}\""));
            exports.push_str(&format!("export {key}='{value}'\n"));
        }
    }
    (format!("[Manager]\nDefaultEnvironment={}\n", words.join(" ")), exports)
}
