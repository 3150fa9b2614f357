//! Machine id and host name. Pure: text in, text out; randomness is given.

use sha2::{Digest, Sha256};

/// A machine id from sixteen random bytes, with a newline, as `machine-id(5)` wants it (a version 4 UUID).
pub fn machine_id(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    format!("{}\n", formats::hex::encode(&random))
}

/// Whether a file holds a usable machine id; `uninitialized` and zeros do not count.
pub fn is_machine_id(text: &str) -> bool {
    let id = text.trim_end_matches('\n');
    formats::hex::decode::<16>(id).is_some_and(|bytes| bytes != [0; 16])
}

/// The host name of this device: the first `%` of the pattern becomes eight digits that only this machine id gives.
///
/// The id is hashed first, so that a name does not tell it.
pub fn host_name(pattern: &str, machine_id: &str) -> String {
    let hash = Sha256::new().chain_update("farhold host name\n").chain_update(machine_id.trim()).finalize();
    pattern.replacen('%', &formats::hex::encode(&hash[..4]), 1)
}

/// Whether the kernel and DNS take a name: labels of letters, digits and inner hyphens, 64 characters at most.
pub fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 64 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_valid_and_damaged_ones_are_seen() {
        let id = machine_id([0xff; 16]);
        assert_eq!(id, "ffffffffffff4fffbfffffffffffffff\n");
        assert!(is_machine_id(&id));
        for bad in ["", "\n", "uninitialized\n", &"0".repeat(32), &"A".repeat(32), &"a".repeat(31)] {
            assert!(!is_machine_id(bad), "{bad}");
        }
    }

    #[test]
    fn names_differ_by_device_and_stay_valid() {
        let (one, two) = (host_name("edge-%", "a\n"), host_name("edge-%", "b\n"));
        assert_ne!(one, two);
        assert_eq!(host_name("edge-%", "a"), one);
        assert!(one.starts_with("edge-") && one.len() == 13 && is_host_name(&one));
        assert_eq!(host_name("fixed", "a\n"), "fixed");
        for bad in ["", "-a", "a-", "a..b", "a b", "a%", &"a".repeat(65)] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
