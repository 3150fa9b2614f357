//! Keys: this party's own, and the public keys of the others as the site's enrolment gave them.
//!
//! Ed25519 keys name the parties; Noise needs the same points on the Montgomery curve (RFC 7748, section 4.1). A key has
//! no date and never expires. It does not know what is said under a key.

use crate::durable;
use crate::ha::register::VoterId;
use anyhow::{Context, Result, bail, ensure};
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::path::Path;

/// The key's file in the state folder.
const FILE: &str = "key";

/// This party's secret key.
pub struct Identity(SigningKey);

/// A public key, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// A public key as Diffie-Hellman wants it.
pub type Point = [u8; 32];

/// A number that names a site or a voter, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Number(pub u64);

impl Identity {
    /// Makes a new key and keeps it.
    ///
    /// # Errors
    /// If there is one already, or it cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        ensure!(!path.exists(), "make a key: {} exists already, and nothing replaces it", path.display());
        let seed: [u8; 32] = random()?;
        durable::make_folder(folder, 0o700)?;
        durable::write(&path, &seed, 0o600)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads the key.
    ///
    /// # Errors
    /// If there is none or it is damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("read the key {} (`ha init` makes one)", path.display()))?;
        let Ok(seed) = <[u8; 32]>::try_from(bytes.as_slice()) else {
            bail!("read the key {}: it has {} bytes, but must have 32", path.display(), bytes.len());
        };
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The secret scalar for Diffie-Hellman.
    pub fn secret(&self) -> [u8; 32] {
        self.0.to_scalar_bytes()
    }
}

impl PublicKey {
    /// The point for Diffie-Hellman.
    pub fn point(&self) -> Point {
        self.0.to_montgomery().to_bytes()
    }

    fn parse(text: &str) -> Result<Self> {
        let bytes = unhex::<32>(text).context("a public key is 64 hexadecimal digits")?;
        let key = VerifyingKey::from_bytes(&bytes).context("this is no Ed25519 public key")?;
        ensure!(!key.is_weak(), "this public key is one of the few that anybody can use");
        Ok(Self(key))
    }
}

impl Number {
    /// A number that nobody has drawn before.
    ///
    /// # Errors
    /// If the kernel has no random numbers.
    pub fn draw() -> Result<Self> {
        Ok(Self(u64::from_le_bytes(random()?).max(1)))
    }

    /// The voter of this number.
    pub fn voter(self) -> VoterId {
        VoterId(self.0)
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("draw random bytes")?;
    Ok(bytes)
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for PublicKey {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl std::str::FromStr for Number {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let bytes = unhex::<8>(text).with_context(|| format!("{text:?} must be 16 hexadecimal digits"))?;
        Ok(Self(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))))
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {
        $(impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|error: anyhow::Error| D::Error::custom(format!("{error:#}")))
            }
        })*
    };
}

as_text!(PublicKey, Number);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let made = Identity::create(folder.path()).unwrap().public();
        assert_eq!(Identity::open(folder.path()).unwrap().public(), made);
        assert_eq!(made.to_string().parse::<PublicKey>().unwrap(), made);
        let again = Identity::create(folder.path()).err().unwrap().to_string();
        assert!(again.contains("exists already"), "{again}");
        std::fs::write(folder.path().join(FILE), b"short").unwrap();
        let short = Identity::open(folder.path()).err().unwrap().to_string();
        assert!(short.contains("5 bytes, but must have 32"), "{short}");
    }

    #[test]
    fn weak_and_malformed_keys_are_refused() {
        let weak = format!("01{}", "00".repeat(31));
        assert!(weak.parse::<PublicKey>().unwrap_err().to_string().contains("anybody"));
        assert!("zz".parse::<PublicKey>().is_err());
        assert_eq!("00000000000000ff".parse::<Number>().unwrap(), Number(255));
        assert!("ff".parse::<Number>().is_err());
    }
}
