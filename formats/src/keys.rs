//! Public keys, roles and threshold signatures: Ed25519 (RFC 8032), strictly verified.
//!
//! A signature counts once per distinct public key, and every signature that is there must be good. Knows nothing of
//! what is signed: callers give the bytes, with a domain string in front.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// Most keys of a role: the signer bitmap of a frame has one bit for each.
pub const MAX_KEYS: usize = 8;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// An Ed25519 public key that is a valid point and not of small order; kept as it stands in documents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Checks 32 bytes; `None` if they are no usable public key.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak()).map(|_| Self(*bytes))
    }
    /// The key as it stands in documents.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }
    /// The first four bytes of SHA-256 over the key: how a signature in a root document names it.
    pub fn hint(self) -> [u8; 4] {
        let digest = Sha256::digest(self.to_bytes());
        [digest[0], digest[1], digest[2], digest[3]]
    }
    /// Whether `signature` over `message` is good, by the strict rules: canonical encodings, no small-order points.
    pub fn verifies(self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::hex::encode(&self.to_bytes()))
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Keys and how many of them must sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    threshold: u8,
    keys: Vec<PublicKey>,
}

/// Why a role was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// No key, or more than [`MAX_KEYS`].
    #[error("a role has {0} keys, but must have 1 to {MAX_KEYS}")]
    Count(usize),
    /// The threshold cannot be met, or is zero.
    #[error("a role's threshold is {threshold}, but must be 1 to {keys}, its number of keys")]
    Threshold {
        /// The threshold.
        threshold: u8,
        /// Number of keys.
        keys: usize,
    },
    /// A key is there twice, or two keys have the same hint.
    #[error("key {0} is there twice; distinct keys are counted, so each may stand in one place only")]
    Twice(PublicKey),
}

/// Why a set of signatures was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A signature by a key that the role does not have.
    #[error("signed by key {key}, but the role has {count} keys, 0 to {}", count - 1)]
    UnknownKey {
        /// Number of the key.
        key: u8,
        /// Number of keys of the role.
        count: usize,
    },
    /// A signature that does not verify.
    #[error("signature of key {key} ({public}) is wrong: other contents, or another private key")]
    Wrong {
        /// Number of the key.
        key: u8,
        /// The public key.
        public: PublicKey,
    },
    /// Fewer distinct keys than the threshold.
    #[error("signed by {is} distinct keys, but the threshold is {must}")]
    TooFew {
        /// Distinct keys whose signature is good.
        is: usize,
        /// The threshold.
        must: u8,
    },
}

impl Role {
    /// A role whose keys are distinct and whose threshold can be met.
    ///
    /// # Errors
    /// [`RoleError`].
    pub fn new(threshold: u8, keys: Vec<PublicKey>) -> Result<Self, RoleError> {
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(RoleError::Count(keys.len()));
        }
        if threshold == 0 || usize::from(threshold) > keys.len() {
            return Err(RoleError::Threshold { threshold, keys: keys.len() });
        }
        distinct(keys.iter())?;
        Ok(Self { threshold, keys })
    }
    /// Signatures that are needed.
    pub fn threshold(&self) -> u8 {
        self.threshold
    }
    /// The keys; a signer bitmap counts them from 0.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// Checks signatures, each with the number of its key, over `message`.
    ///
    /// # Errors
    /// [`SignatureError`]: the first that is unknown or wrong, or too few distinct keys.
    pub fn verify<'s>(
        &self,
        message: &[u8],
        signatures: impl IntoIterator<Item = (u8, &'s [u8; SIGNATURE_BYTES])>,
    ) -> Result<(), SignatureError> {
        let mut good: Vec<PublicKey> = Vec::new();
        for (key, signature) in signatures {
            let count = self.keys.len();
            let public = *self.keys.get(usize::from(key)).ok_or(SignatureError::UnknownKey { key, count })?;
            if !public.verifies(message, signature) {
                return Err(SignatureError::Wrong { key, public });
            }
            if !good.contains(&public) {
                good.push(public);
            }
        }
        if good.len() < usize::from(self.threshold) {
            return Err(SignatureError::TooFew { is: good.len(), must: self.threshold });
        }
        Ok(())
    }
}

/// Refuses a key, or a hint, that is there twice.
pub(crate) fn distinct<'k>(keys: impl Iterator<Item = &'k PublicKey>) -> Result<(), RoleError> {
    let mut hints = Vec::new();
    for key in keys {
        if hints.contains(&key.hint()) {
            return Err(RoleError::Twice(*key));
        }
        hints.push(key.hint());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    fn key(seed: u8) -> (SigningKey, PublicKey) {
        let private = SigningKey::from_bytes(&[seed; 32]);
        let public = PublicKey::from_bytes(&private.verifying_key().to_bytes()).unwrap();
        (private, public)
    }

    #[test]
    fn one_key_signing_twice_counts_once() {
        let ((private, a), (_, b)) = (key(1), key(2));
        let role = Role::new(2, vec![a, b]).unwrap();
        let signature = private.sign(b"message").to_bytes();
        let twice = [(0, &signature), (0, &signature)];
        assert_eq!(role.verify(b"message", twice), Err(SignatureError::TooFew { is: 1, must: 2 }));
    }

    #[test]
    fn weak_and_repeated_keys_make_no_role() {
        // The neutral element: small order, so that it "verifies" crafted signatures under lax rules.
        let mut neutral = [0u8; 32];
        neutral[0] = 1;
        assert_eq!(PublicKey::from_bytes(&neutral), None);
        let (_, a) = key(1);
        assert_eq!(Role::new(1, vec![a, a]), Err(RoleError::Twice(a)));
        assert_eq!(Role::new(2, vec![a]), Err(RoleError::Threshold { threshold: 2, keys: 1 }));
        assert_eq!(Role::new(0, vec![a]), Err(RoleError::Threshold { threshold: 0, keys: 1 }));
        assert_eq!(Role::new(1, vec![]), Err(RoleError::Count(0)));
    }

    #[test]
    fn malleable_signatures_are_refused() {
        let (private, public) = key(1);
        let mut signature = private.sign(b"message").to_bytes();
        assert!(public.verifies(b"message", &signature));
        // s + l: the same signature to a verifier that does not insist on the canonical scalar (RFC 8032, 5.1.7).
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut carry = 0u16;
        for (byte, add) in signature[32..].iter_mut().zip(L) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }
        assert!(!public.verifies(b"message", &signature));
    }
}
