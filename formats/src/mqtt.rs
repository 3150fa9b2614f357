//! Where a broker is and which topics are used on it. Topics: `docs/formats.md`, "MQTT".
//!
//! ```text
//! mqtt[s]://[USER@]HOST[:PORT][/PREFIX][?ca=FILE&password-file=FILE&packet=BYTES]
//! ```

use crate::repository::{ANNOUNCEMENTS, WAVES};

/// Prefix of all topics where the address has none.
const PREFIX: &str = "farhold";
/// Bytes of a message, header and topic included, where the address does not say: brokers that limit it allow this.
const PACKET: u32 = 16 << 10;
/// Least and most bytes of a message.
const PACKETS: std::ops::RangeInclusive<u32> = 512..=60_000;
/// Longest name of a device in topics.
const NAME_MAX: usize = 64;

/// A broker and how to use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Whether the connection is under TLS.
    pub tls: bool,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// First levels of all topics.
    pub prefix: String,
    /// User name; a device's topics carry it.
    pub user: Option<String>,
    /// File with the certificates that are trusted, instead of the system's.
    pub ca: Option<String>,
    /// File whose first line is the password.
    pub password_file: Option<String>,
    /// Most bytes of a message that the broker lets through.
    pub packet: u32,
}

impl Address {
    /// Whether a source is meant as a broker.
    pub fn is_meant(source: &str) -> bool {
        source.starts_with("mqtt://") || source.starts_with("mqtts://")
    }

    /// Reads an address.
    ///
    /// # Errors
    /// Words: what is wrong, and what it must be.
    pub fn parse(source: &str) -> Result<Self, String> {
        let (tls, rest) = match (source.strip_prefix("mqtts://"), source.strip_prefix("mqtt://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(format!("`{source}` must begin with mqtt:// or mqtts://")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, server) = match authority.rsplit_once('@') {
            Some((user, server)) => (Some(user), server),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(
                "a password does not stand in the address: name a file with `?password-file=FILE`".into()
            );
        }
        if let Some(user) = user.filter(|user| !is_name(user)) {
            return Err(format!("user `{user}` must be 1 to {NAME_MAX} of A-Z, a-z, 0-9, `.`, `_` and `-`"));
        }
        let (host, port) = host_and_port(server, if tls { 8883 } else { 1883 })?;
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        if !prefix.split('/').all(is_name) {
            return Err(format!(
                "topic prefix `{prefix}` must be names of A-Z, a-z, 0-9, `.`, `_`, `-` joined by `/`"
            ));
        }
        let user = user.map(str::to_owned);
        let (ca, password_file) = (None, None);
        let mut address =
            Self { tls, host, port, prefix: prefix.to_owned(), user, ca, password_file, packet: PACKET };
        query.split('&').filter(|pair| !pair.is_empty()).try_for_each(|pair| address.option(pair))?;
        if address.ca.is_some() && !tls {
            return Err("`ca` needs mqtts://".into());
        }
        if address.password_file.is_some() && address.user.is_none() && !tls {
            // The device's own name is the user then; a password in the clear must at least be meant.
            return Err("a password without TLS needs a user in the address, as mqtt://USER@HOST".into());
        }
        Ok(address)
    }

    fn option(&mut self, pair: &str) -> Result<(), String> {
        match pair.split_once('=') {
            Some(("ca", path)) if path.starts_with('/') => self.ca = Some(path.to_owned()),
            Some(("password-file", path)) if path.starts_with('/') => {
                self.password_file = Some(path.to_owned());
            }
            Some((name @ ("ca" | "password-file"), path)) => {
                return Err(format!("`{name}={path}` must be an absolute path"));
            }
            Some(("packet", bytes)) => {
                let known = bytes.parse().ok().filter(|bytes| PACKETS.contains(bytes));
                self.packet = known.ok_or_else(|| {
                    format!("`packet={bytes}` must be {} to {} bytes", PACKETS.start(), PACKETS.end())
                })?;
            }
            Some(_) | None => {
                return Err(format!("`{pair}` is no option: there are ca, password-file and packet"));
            }
        }
        Ok(())
    }

    /// Topic of a retained file: an announcement or a wave.
    pub fn retained(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }
    /// Filters of everything that is retained.
    pub fn retained_filters(&self) -> [String; 2] {
        [ANNOUNCEMENTS, WAVES].map(|folder| format!("{}/{folder}/+", self.prefix))
    }
    /// Topic of a device's requests; `+` for those of all.
    pub fn get(&self, device: &str) -> String {
        format!("{}/get/{device}", self.prefix)
    }
    /// Topic of what is sent to a device.
    pub fn to(&self, device: &str) -> String {
        format!("{}/to/{device}", self.prefix)
    }
    /// Topic of a device's reports; `+` for those of all.
    pub fn report(&self, device: &str) -> String {
        format!("{}/report/{device}", self.prefix)
    }
    /// Whom a topic is from: the kind, `get` or `report`, and the device.
    pub fn from<'t>(&self, topic: &'t str) -> Option<(&'t str, &'t str)> {
        let (kind, device) = topic.strip_prefix(&self.prefix)?.strip_prefix('/')?.split_once('/')?;
        is_name(device).then_some((kind, device))
    }
    /// Bytes of a part that fit one message to this device.
    pub fn part_bytes(&self, device: &str) -> u16 {
        // Fixed header of up to five bytes, length of the topic, topic.
        let overhead = 7 + self.to(device).len();
        u16::try_from(self.packet)
            .unwrap_or(u16::MAX)
            .saturating_sub(u16::try_from(overhead).unwrap_or(u16::MAX))
    }
}

fn host_and_port(server: &str, usual: u16) -> Result<(String, u16), String> {
    let (host, port) = match server.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(|| format!("`{server}` has no closing bracket"))?,
        None => server.find(':').map_or((server, ""), |at| server.split_at(at)),
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(format!("`{server}` names no host"));
    }
    let port = match port.strip_prefix(':') {
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("port `{digits}` must be 1 to 65535"))?,
        None if port.is_empty() => usual,
        None => return Err(format!("`{server}` is no host and port")),
    };
    Ok((host.to_owned(), port))
}

/// Whether a text may stand as one level of a topic.
pub fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_wrong_ones_are_named() {
        let plain = Address::parse("mqtt://broker").unwrap();
        assert_eq!((plain.port, plain.prefix.as_str(), plain.packet), (1883, "farhold", 16384));
        let full =
            Address::parse("mqtts://a-1@[fd00::1]:99/x/y?ca=/c.pem&password-file=/p&packet=1024").unwrap();
        assert_eq!((full.host.as_str(), full.port, full.prefix.as_str()), ("fd00::1", 99, "x/y"));
        assert_eq!(full.get("d"), "x/y/get/d");
        assert_eq!(full.from("x/y/report/d"), Some(("report", "d")));
        assert_eq!(full.from("x/y/report/d/e"), None);
        assert_eq!(full.part_bytes("d"), 1024 - 7 - 8);
        for (bad, why) in [
            ("http://x", "must begin"),
            ("mqtt://u:p@h", "password-file"),
            ("mqtt://u+@h", "user"),
            ("mqtt://", "no host"),
            ("mqtt://h:0x", "port"),
            ("mqtt://h/a/+", "prefix"),
            ("mqtt://h?ca=/x", "mqtts"),
            ("mqtts://h?ca=x", "absolute"),
            ("mqtt://h?packet=1", "packet"),
            ("mqtt://h?x=1", "no option"),
            ("mqtt://h?password-file=/p", "user"),
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
