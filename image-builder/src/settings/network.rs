//! Networks as systemd-networkd files (systemd.network(5), systemd.netdev(5)) and wpa_supplicant configuration.

use super::TextFile;
use crate::finding::Finding;
use crate::profile::model::{Network, Vlan, Wifi};
use std::net::IpAddr;

/// What a Wi-Fi adapter is called where the profile gives no name.
pub const WIFI_INTERFACE: &str = "wlan0";
const FOLDER: &str = "/etc/systemd/network";

/// Files for all networks; DHCP on every wired interface if there are none. One finding for each value that makes no
/// sense.
pub fn files(networks: &[Network]) -> (Vec<TextFile>, Vec<Finding>) {
    let mut files = Vec::new();
    let mut findings = Vec::new();
    if networks.is_empty() {
        let text = "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n";
        files.push(TextFile::public(format!("{FOLDER}/80-wired.network"), text));
    }
    for (n, network) in networks.iter().enumerate() {
        check(network, &format!("settings.networks[{n}]"), &mut findings);
        let priority = 20 + n;
        files.push(TextFile::public(format!("{FOLDER}/{priority}-network.network"), text(network, n)));
        for vlan in &network.vlans {
            let name = vlan_name(n, vlan);
            let netdev = format!("[NetDev]\nName={name}\nKind=vlan\n\n[VLAN]\nId={}\n", vlan.id);
            files.push(TextFile::public(format!("{FOLDER}/{priority}-{name}.netdev"), netdev));
            let mut text = format!("[Match]\nName={name}\n\n[Network]\n");
            addresses(&mut text, vlan.addresses.is_empty(), &vlan.addresses, &vlan.gateways);
            files.push(TextFile::public(format!("{FOLDER}/{priority}-{name}.network"), text));
        }
        if let Some(wifi) = &network.wifi {
            files.extend(wireless(wifi, network.interface.as_deref()));
        }
    }
    (files, findings)
}

/// The adapter gets a fixed name, since the one that the kernel gives depends on where it is plugged in.
fn wireless(wifi: &Wifi, interface: Option<&str>) -> [TextFile; 2] {
    let interface = interface.unwrap_or(WIFI_INTERFACE);
    let link = format!("[Match]\nType=wlan\n\n[Link]\nName={interface}\n");
    let text = format!(
        "ctrl_interface=/run/wpa_supplicant\nupdate_config=0\ncountry={}\n\nnetwork={{\n  ssid={}\n  psk={}\n}}\n",
        wifi.country,
        formats::hex::encode(wifi.ssid.as_bytes()),
        wifi.psk
    );
    [
        TextFile::public(format!("{FOLDER}/10-{interface}.link"), link),
        TextFile::secret(format!("/etc/wpa_supplicant/wpa_supplicant-{interface}.conf"), text),
    ]
}

fn vlan_name(network: usize, vlan: &Vlan) -> String {
    format!("vlan{network}.{}", vlan.id)
}

fn text(network: &Network, n: usize) -> String {
    let mut text = String::from("[Match]\n");
    match (&network.mac, &network.interface) {
        (Some(mac), _) => push(&mut text, "MACAddress", mac),
        (None, Some(interface)) => push(&mut text, "Name", interface),
        (None, None) if network.wifi.is_some() => push(&mut text, "Name", WIFI_INTERFACE),
        (None, None) => push(&mut text, "Name", "en* eth*"),
    }
    if let Some(mtu) = network.mtu {
        text.push_str("\n[Link]\n");
        push(&mut text, "MTUBytes", &mtu.to_string());
    }
    text.push_str("\n[Network]\n");
    let dhcp = network.dhcp.unwrap_or(network.addresses.is_empty());
    addresses(&mut text, dhcp, &network.addresses, &network.gateways);
    for dns in &network.dns {
        push(&mut text, "DNS", dns);
    }
    for vlan in &network.vlans {
        push(&mut text, "VLAN", &vlan_name(n, vlan));
    }
    if let Some(metric) = network.metric {
        text.push_str(&format!("\n[DHCPv4]\nRouteMetric={metric}\n\n[IPv6AcceptRA]\nRouteMetric={metric}\n"));
    }
    text
}

fn addresses(text: &mut String, dhcp: bool, addresses: &[String], gateways: &[String]) {
    push(text, "DHCP", if dhcp { "yes" } else { "no" });
    for address in addresses {
        push(text, "Address", address);
    }
    for gateway in gateways {
        push(text, "Gateway", gateway);
    }
}

fn push(text: &mut String, key: &str, value: &str) {
    text.push_str(&format!("{key}={value}\n"));
}

fn check(network: &Network, place: &str, findings: &mut Vec<Finding>) {
    let mut bad = |key: &str, value: &str, wanted: &str| {
        let message = format!("`{value}` is not {wanted}");
        let next = match key {
            "wifi.psk" => "derive it with `wpa_passphrase SSID`",
            _ => "correct the value",
        };
        findings.push(Finding::error(format!("{place}.{key}"), message, next));
    };
    for address in network.addresses.iter().chain(network.vlans.iter().flat_map(|vlan| &vlan.addresses)) {
        let fits = address.split_once('/').is_some_and(|(ip, bits)| match (ip.parse(), bits.parse::<u8>()) {
            (Ok(IpAddr::V4(_)), Ok(bits)) => bits <= 32,
            (Ok(IpAddr::V6(_)), Ok(bits)) => bits <= 128,
            (Err(_), _) | (_, Err(_)) => false,
        });
        if !fits {
            bad("addresses", address, "an address with prefix length, as 192.0.2.10/24");
        }
    }
    for (key, list) in [("gateways", &network.gateways), ("dns", &network.dns)] {
        for value in list.iter().filter(|value| value.parse::<IpAddr>().is_err()) {
            bad(key, value, "an IP address");
        }
    }
    for vlan in network.vlans.iter().filter(|vlan| !(1..=4094).contains(&vlan.id)) {
        bad("vlans", &vlan.id.to_string(), "a VLAN number from 1 to 4094");
    }
    if let Some(mac) = network.mac.as_deref()
        && !(mac.len() == 17 && mac.split(':').filter(|p| u8::from_str_radix(p, 16).is_ok()).count() == 6)
    {
        bad("mac", mac, "a hardware address, as 02:00:5e:00:53:01");
    }
    if let Some(name) = network.interface.as_deref()
        && (name.is_empty()
            || name.len() > 15
            || name.contains(['\n', '/', ' '])
            || (network.wifi.is_some() && name.contains(['*', '?', '['])))
    {
        bad("interface", name, "an interface name or pattern");
    }
    if let Some(wifi) = &network.wifi {
        if formats::hex::decode::<32>(&wifi.psk).is_none() {
            bad("wifi.psk", "…", "64 lower-case hexadecimal digits");
        }
        if wifi.ssid.is_empty() || wifi.ssid.len() > 32 {
            bad("wifi.ssid", &wifi.ssid, "1 to 32 bytes long");
        }
        if wifi.country.len() != 2 || !wifi.country.bytes().all(|b| b.is_ascii_uppercase()) {
            bad("wifi.country", &wifi.country, "a country code of two capital letters");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(yaml: &str) -> Network {
        crate::yaml::parse(yaml, "test").unwrap()
    }

    #[test]
    fn static_address_with_vlan() {
        let networks = [network(
            "{interface: enp1s0, addresses: [192.0.2.10/24], gateways: [192.0.2.1], dns: [192.0.2.53], vlans: [{id: 7}]}",
        )];
        let (files, findings) = files(&networks);
        assert_eq!(findings, []);
        assert_eq!(
            files[0].text,
            "[Match]\nName=enp1s0\n\n[Network]\nDHCP=no\nAddress=192.0.2.10/24\nGateway=192.0.2.1\nDNS=192.0.2.53\nVLAN=vlan0.7\n"
        );
        assert_eq!(files[1].text, "[NetDev]\nName=vlan0.7\nKind=vlan\n\n[VLAN]\nId=7\n");
        assert_eq!(files[2].text, "[Match]\nName=vlan0.7\n\n[Network]\nDHCP=yes\n");
    }

    #[test]
    fn wifi_names_its_adapter_and_keeps_its_key_secret() {
        let psk = "0123456789abcdef".repeat(4);
        let networks = [network(&format!("{{wifi: {{ssid: plant, psk: {psk}, country: NO}}}}"))];
        let (files, findings) = files(&networks);
        assert_eq!(findings, []);
        assert_eq!(files[0].text, "[Match]\nName=wlan0\n\n[Network]\nDHCP=yes\n");
        assert_eq!(files[1].text, "[Match]\nType=wlan\n\n[Link]\nName=wlan0\n");
        assert_eq!(files[2].mode, 0o600);
        assert!(files[2].text.contains("  ssid=706c616e74\n"), "{}", files[2].text);
    }

    #[test]
    fn every_nonsense_is_found() {
        let networks = [network(
            "{mac: 'zz', addresses: [192.0.2.10, 'fe80::1/129'], gateways: [x], vlans: [{id: 4095}], wifi: {ssid: s, psk: secret, country: no-such}}",
        )];
        let (_, findings) = files(&networks);
        assert_eq!(findings.len(), 7, "{findings:#?}");
    }
}
