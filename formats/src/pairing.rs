//! What a node is told so that it finds the other one of its pair by itself: left by an installer, or by
//! `farhold-agent pair`. Knows neither how the two meet nor what they do then.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Where it stands until the pairing takes it.
pub const REQUEST: &str = "/var/lib/farhold/pair.json";
/// TCP port at which the first node waits for the second.
pub const PORT: u16 = 7602;
/// Fewest letters and digits of a code that people type.
pub const CODE_MIN: usize = 8;
/// From so many on, letters and digits, nobody guesses a secret; below it, guesses are counted.
pub const SECRET_MIN: usize = 26;
/// Most.
pub const SECRET_MAX: usize = 128;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Has the data at first, and waits for the other.
    First,
    /// Calls the first.
    Second,
}

impl Role {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

/// A node that shall become one of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Which of the two.
    pub role: Role,
    /// This node's fixed address in the network of the two.
    pub address: IpAddr,
    /// The first node's; only the second has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// What both know and nobody else: a code that people typed, or what a stick carried.
    pub secret: String,
    /// The third voter, as `farhold-agent witness add` printed it; only the first has it, and tells the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
}

/// The third voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Its number, 16 hexadecimal digits.
    pub voter: String,
    /// Its key, 64 hexadecimal digits.
    pub key: String,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
}

/// A code or secret without what people put between its parts, in small letters.
pub fn plain(secret: &str) -> String {
    secret.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// A code for people, of random bytes: two groups of four digits.
pub fn code(random: [u8; 8]) -> String {
    // 10^8 divides 2^64 to within one part in 10^11.
    let number = u64::from_le_bytes(random) % 100_000_000;
    format!("{:04}-{:04}", number / 10_000, number % 10_000)
}

impl Request {
    /// Whether every value makes sense.
    ///
    /// # Errors
    /// The first that does not, and what it must be.
    pub fn check(&self) -> Result<(), String> {
        if self.address.is_unspecified() || self.address.is_loopback() || self.address.is_multicast() {
            return Err(format!("pair.address {}: must be an address of this node", self.address));
        }
        match (self.role, self.peer, &self.witness) {
            (Role::First, Some(_), _) => {
                return Err("pair.peer: only the second node has it; the first waits to be called".into());
            }
            (Role::Second, None, _) => {
                return Err("pair.peer: the second node must have the first one's address".into());
            }
            (Role::Second, Some(peer), _) if peer == self.address => {
                return Err(format!("pair.peer {peer}: is this node's own address"));
            }
            (Role::Second, Some(_), Some(_)) => {
                return Err("pair.witness: only the first node has it; it tells the second".into());
            }
            (Role::First, None, _) | (Role::Second, Some(_), None) => {}
        }
        let length = plain(&self.secret).len();
        if !(CODE_MIN..=SECRET_MAX).contains(&length) {
            return Err(format!(
                "pair.code: has {length} letters and digits, but must have {CODE_MIN} to {SECRET_MAX}"
            ));
        }
        self.witness.as_ref().map_or(Ok(()), Witness::check)
    }

    /// Whether the secret is one that an attacker could come upon by trying.
    pub fn is_guessable(&self) -> bool {
        plain(&self.secret).len() < SECRET_MIN
    }
}

impl Witness {
    fn check(&self) -> Result<(), String> {
        for (name, text, length) in [("voter", &self.voter, 16), ("key", &self.key, 64)] {
            if text.len() != length || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("pair.witness.{name}: must be {length} hexadecimal digits"));
            }
        }
        if self.addresses.is_empty() {
            return Err("pair.witness.addresses: must have one, as 192.0.2.9:7601".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<Request, String> {
        let request: Request = serde_json::from_str(text).map_err(|error| error.to_string())?;
        request.check().map(|()| request)
    }

    #[test]
    fn codes_are_eight_digits() {
        assert_eq!(code([0; 8]), "0000-0000");
        assert_eq!(code(1_234_567_812_345_678_u64.to_le_bytes()), "1234-5678");
    }

    #[test]
    fn both_roles_are_told_what_they_need_and_nothing_else() {
        let first = r#"{"role": "first", "address": "10.0.0.1", "secret": "1234-5678"}"#;
        assert!(request(first).unwrap().is_guessable());
        let second =
            r#"{"role": "second", "address": "10.0.0.2", "peer": "10.0.0.1", "secret": "AB CD 12 34"}"#;
        assert_eq!(plain(&request(second).unwrap().secret), "abcd1234");
        for (text, why) in [
            (first.replace("1234-5678", "1234-567"), "has 7 letters"),
            (first.replace("10.0.0.1", "0.0.0.0"), "an address of this node"),
            (first.replace("\"first\"", "\"third\""), "unknown variant"),
            (first.replace('}', r#", "peer": "10.0.0.2"}"#), "only the second"),
            (second.replace(r#""peer": "10.0.0.1", "#, ""), "must have the first"),
            (second.replace("10.0.0.2", "10.0.0.1"), "own address"),
            (
                first.replace('}', r#", "witness": {"voter": "1", "key": "2", "addresses": []}}"#),
                "16 hexadecimal digits",
            ),
        ] {
            let error = request(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
