//! Cellular modems: connection files of NetworkManager (nm-settings-keyfile(5)), which drives ModemManager.
//!
//! systemd-networkd cannot dial; NetworkManager is told to leave every other interface to it.

use super::TextFile;
use crate::finding::Finding;
use crate::profile::model::Modem;

/// Debian packages that modems need.
pub const PACKAGES: [&str; 3] = ["modemmanager", "network-manager", "usb-modeswitch"];
/// Units that modems need.
pub const ENABLE: [&str; 2] = ["ModemManager.service", "NetworkManager.service"];
/// Would hold up the boot for a network that may be days away.
pub const DISABLE: [&str; 1] = ["NetworkManager-wait-online.service"];

const LEAVE_OTHERS: &str = "\
[main]
plugins=keyfile
dns=systemd-resolved

[keyfile]
unmanaged-devices=*,except:type:gsm
";

/// Files for all modems. One finding for each value that makes no sense.
pub fn files(modems: &[Modem]) -> (Vec<TextFile>, Vec<Finding>) {
    let mut files = Vec::new();
    let mut findings = Vec::new();
    if !modems.is_empty() {
        files.push(TextFile::public("/etc/NetworkManager/conf.d/50-modems-only.conf", LEAVE_OTHERS));
    }
    for (n, modem) in modems.iter().enumerate() {
        check(modem, &format!("settings.modems[{n}]"), &mut findings);
        let path = format!("/etc/NetworkManager/system-connections/modem{n}.nmconnection");
        files.push(TextFile::secret(path, text(modem, n)));
    }
    (files, findings)
}

fn text(modem: &Modem, n: usize) -> String {
    let mut text =
        format!("[connection]\nid=modem{n}\ntype=gsm\nautoconnect=true\nautoconnect-retries=0\n\n[gsm]\n");
    let pairs = [
        ("apn", Some(&modem.apn)),
        ("username", modem.user.as_ref()),
        ("password", modem.password.as_ref()),
        ("pin", modem.pin.as_ref()),
    ];
    for (key, value) in pairs {
        if let Some(value) = value {
            text.push_str(&format!("{key}={value}\n"));
        }
    }
    for family in ["ipv4", "ipv6"] {
        text.push_str(&format!("\n[{family}]\nmethod=auto\nroute-metric={}\n", modem.metric));
    }
    text
}

fn check(modem: &Modem, path: &str, findings: &mut Vec<Finding>) {
    let mut bad = |key: &str, message: &str, next: &str| {
        findings.push(Finding::error(format!("{path}.{key}"), message, next));
    };
    let line = |text: &str| !text.is_empty() && !text.contains(['\n', '\r']);
    if !line(&modem.apn) || modem.apn.len() > 100 {
        bad("apn", "must be one line of 1 to 100 bytes", "correct the value");
    }
    for (key, value) in [("user", &modem.user), ("password", &modem.password)] {
        if value.as_deref().is_some_and(|value| !line(value)) {
            bad(key, "must be one line", "correct the value");
        }
    }
    let digits = |pin: &str| (4..=8).contains(&pin.len()) && pin.bytes().all(|b| b.is_ascii_digit());
    if modem.pin.as_deref().is_some_and(|pin| !digits(pin)) {
        bad("pin", "must have 4 to 8 digits", "correct the value");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modem(yaml: &str) -> Modem {
        crate::yaml::parse(yaml, "test").unwrap()
    }

    #[test]
    fn a_connection_is_secret_and_alone_managed() {
        let (files, findings) = files(&[modem("{apn: internet.example, pin: '1234'}")]);
        assert_eq!(findings, []);
        assert!(files[0].text.contains("unmanaged-devices=*,except:type:gsm"));
        assert_eq!(files[1].mode, 0o600);
        assert_eq!(
            files[1].text,
            "[connection]\nid=modem0\ntype=gsm\nautoconnect=true\nautoconnect-retries=0\n\n[gsm]\n\
             apn=internet.example\npin=1234\n\n[ipv4]\nmethod=auto\nroute-metric=2000\n\n\
             [ipv6]\nmethod=auto\nroute-metric=2000\n"
        );
    }

    #[test]
    fn nonsense_is_found_and_no_modem_needs_no_file() {
        let (_, findings) = files(&[modem("{apn: \"a\\nb\", user: \"\", pin: \"12\"}")]);
        assert_eq!(findings.len(), 3, "{findings:#?}");
        assert_eq!(files(&[]), (vec![], vec![]));
    }
}
