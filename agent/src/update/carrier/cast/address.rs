//! Where a broadcast is heard: `cast:239.255.84.7:5084?interface=192.0.2.9`, or `cast:/dev/ttyUSB1?baud=9600`.

use super::super::serial;
use crate::update::carrier::Failure;
use crate::update::step::Fault;
use formats::roles::TRUST_ANCHOR;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// Where what comes is kept until it is enough.
const KEPT: &str = "/var/lib/farhold/cast";
/// How long nothing of use may come before another carrier is taken.
const WAIT_S: u32 = 300;
/// Room for all casts together, MiB.
const ROOM_MIB: u32 = 128;

/// What is listened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Datagrams to this group, or address of this machine, that come in at this interface's address.
    Udp(SocketAddrV4, Ipv4Addr),
    /// A serial line.
    Serial(serial::Address),
}

/// An address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// What is listened to.
    pub medium: Medium,
    /// File of the trusted root documents.
    pub roots: String,
    /// Folder for what came.
    pub kept: String,
    /// How long nothing of use may come.
    pub wait: Duration,
    /// Bytes that all casts may take together.
    pub room: u64,
}

impl Address {
    /// Whether a source is a broadcast.
    pub fn is_meant(source: &str) -> bool {
        source.starts_with("cast:")
    }

    /// Reads `cast:GROUP:PORT[?interface=ADDRESS&wait_s=N&room_mib=N&roots=FILE&kept=DIR]` or
    /// `cast:DEVICE[?baud=N&…]`.
    ///
    /// # Errors
    /// Which word is wrong.
    pub fn parse(source: &str) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::new(Fault::Absent, format!("{source} is not a source: {why}"));
        let rest = source.strip_prefix("cast:").unwrap_or(source);
        let (place, words) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut roots, mut kept) = (TRUST_ANCHOR.to_owned(), KEPT.to_owned());
        let (mut wait_s, mut room_mib, mut interface, mut line) =
            (WAIT_S, ROOM_MIB, Ipv4Addr::UNSPECIFIED, format!("serial:{place}"));
        for word in words.split('&').filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || value.parse::<u32>().ok().filter(|number| *number > 0);
            let no_number = || wrong(format!("{key}={value} is no number"));
            match key {
                "wait_s" => wait_s = number().ok_or_else(no_number)?,
                "room_mib" => room_mib = number().ok_or_else(no_number)?,
                "roots" => roots = value.to_owned(),
                "kept" => kept = value.to_owned(),
                "interface" => {
                    interface = value
                        .parse()
                        .ok()
                        .ok_or_else(|| wrong(format!("{value} is no IPv4 address of an interface")))?;
                }
                "baud" => line = format!("{line}?baud={value}"),
                _ => {
                    return Err(wrong(format!(
                        "`{word}` must be interface=…, baud=…, wait_s=…, room_mib=…, roots=… or kept=…"
                    )));
                }
            }
        }
        let medium = if place.starts_with('/') {
            Medium::Serial(serial::Address::parse(&line)?)
        } else {
            let must = || {
                wrong(
                    "an IPv4 group and port follow `cast:`, as 239.255.84.7:5084, or a serial device".into(),
                )
            };
            Medium::Udp(place.parse().ok().ok_or_else(must)?, interface)
        };
        let wait = Duration::from_secs(wait_s.into());
        Ok(Self { medium, roots, kept, wait, room: u64::from(room_mib) << 20 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let address =
            Address::parse("cast:239.255.84.7:5084?interface=127.0.0.1&wait_s=9&room_mib=2&roots=/r&kept=/k")
                .unwrap();
        let medium = Medium::Udp("239.255.84.7:5084".parse().unwrap(), Ipv4Addr::LOCALHOST);
        let wait = Duration::from_secs(9);
        assert_eq!(address, Address { medium, roots: "/r".into(), kept: "/k".into(), wait, room: 2 << 20 });
        let address = Address::parse("cast:/dev/ttyS1?baud=9600").unwrap();
        let Medium::Serial(line) = address.medium else { panic!("no line") };
        assert_eq!(
            (line.device.as_str(), line.baud, address.roots.as_str()),
            ("/dev/ttyS1", 9600, TRUST_ANCHOR)
        );
        for source in
            ["cast:", "cast:239.1.1.1", "cast:[ff02::1]:5", "cast:1.2.3.4:5?baud", "cast:1.2.3.4:5?wait_s=0"]
        {
            let refused = Address::parse(source);
            assert!(source.ends_with("baud") || refused.unwrap_err().fault == Fault::Absent, "{source}");
        }
    }
}
