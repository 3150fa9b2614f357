//! Secure Boot keys written into an empty variable store of EDK II firmware, as a factory would enrol them.
//!
//! Follows EDK II `MdeModulePkg/Include/Guid/VariableFormat.h` (store of authenticated variables in a firmware volume)
//! and UEFI 2.10, section 32.4 (signature lists). Appends only; knows nothing of what the keys sign.

use anyhow::{Context, Result, bail};

/// `gEfiAuthenticatedVariableGuid`, as it stands on disk.
const STORE: [u8; 16] = *b"\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92";
/// `EFI_GLOBAL_VARIABLE`.
const GLOBAL: [u8; 16] = *b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
/// `EFI_IMAGE_SECURITY_DATABASE_GUID`.
const DATABASE: [u8; 16] = *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
/// `gEfiSecureBootEnableDisableGuid`.
const ENABLE: [u8; 16] = *b"\x7b\xc0\xa3\xf0\x08\xaf\x56\x45\x99\xc4\x00\x10\x09\xc9\x3a\x44";
/// `EFI_CERT_X509_GUID`.
const X509: [u8; 16] = *b"\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72";
/// Owner of the lab's signatures; any value will do.
const OWNER: [u8; 16] = *b"farhold-lab-key\0";
const NON_VOLATILE: u32 = 1;
const BOOT_SERVICE: u32 = 2;
const RUNTIME: u32 = 4;
const TIME_BASED: u32 = 0x20;
/// `VAR_ADDED`: the variable is in force.
const ADDED: u8 = 0x3f;
const START: [u8; 2] = [0xaa, 0x55];
const VARIABLE_HEADER: usize = 60;
const STORE_HEADER: usize = 28;

/// Enrols one certificate (DER) as platform key, key exchange key and allowed signer, and switches Secure Boot on.
///
/// # Errors
/// If `vars` is no empty store of authenticated variables, or too small.
pub fn enrol(vars: &mut [u8], certificate: &[u8]) -> Result<()> {
    let (first, end) = empty_store(vars)?;
    let list = signature_list(certificate)?;
    let signed = NON_VOLATILE | BOOT_SERVICE | RUNTIME | TIME_BASED;
    let variables = [
        ("SecureBootEnable", ENABLE, NON_VOLATILE | BOOT_SERVICE, [1u8].as_slice()),
        ("db", DATABASE, signed, &list),
        ("KEK", GLOBAL, signed, &list),
        ("PK", GLOBAL, signed, &list),
    ];
    let mut at = first;
    for (name, vendor, attributes, data) in variables {
        let bytes = variable(name, vendor, attributes, data)?;
        let place = at..at + bytes.len();
        if place.end > end {
            bail!("enrol `{name}`: the variable store is full");
        }
        vars[place.clone()].copy_from_slice(&bytes);
        // The next variable begins at a multiple of four; erased flash reads as ones.
        at = place.end.next_multiple_of(4);
    }
    Ok(())
}

/// First free byte and end of the store.
fn empty_store(vars: &[u8]) -> Result<(usize, usize)> {
    let header = number::<2>(vars, 48).context("the variable store is cut short")?;
    let signature = vars.get(40..44).context("the variable store is cut short")?;
    if signature != b"_FVH" {
        bail!("the variable store is no firmware volume");
    }
    let store = usize::try_from(header)?;
    let guid = vars.get(store..store + 16).context("the variable store is cut short")?;
    if guid != STORE {
        bail!("the variable store is not one of authenticated variables");
    }
    let bytes = usize::try_from(number::<4>(vars, store + 16).context("the variable store is cut short")?)?;
    let (first, end) = ((store + STORE_HEADER).next_multiple_of(4), store + bytes);
    let free = vars.get(first..end).context("the variable store is cut short")?;
    if free.iter().any(|byte| *byte != 0xff) {
        bail!("the variable store is not empty");
    }
    Ok((first, end))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut value = [0; 8];
    value[..N].copy_from_slice(bytes.get(at..at + N)?);
    Some(u64::from_le_bytes(value))
}

fn variable(name: &str, vendor: [u8; 16], attributes: u32, data: &[u8]) -> Result<Vec<u8>> {
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let mut out = Vec::with_capacity(VARIABLE_HEADER + name.len() + data.len());
    out.extend(START);
    out.extend([ADDED, 0]);
    out.extend(attributes.to_le_bytes());
    // Monotonic count, time stamp (the earliest: any signed change is newer) and key index.
    out.extend([0; 8 + 16 + 4]);
    out.extend(u32::try_from(name.len())?.to_le_bytes());
    out.extend(u32::try_from(data.len())?.to_le_bytes());
    out.extend(vendor);
    out.extend(name);
    out.extend(data);
    Ok(out)
}

/// A list of one certificate.
fn signature_list(certificate: &[u8]) -> Result<Vec<u8>> {
    const HEADER: usize = 28;
    let signature = OWNER.len() + certificate.len();
    let mut out = Vec::with_capacity(HEADER + signature);
    out.extend(X509);
    out.extend(u32::try_from(HEADER + signature)?.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(u32::try_from(signature)?.to_le_bytes());
    out.extend(OWNER);
    out.extend(certificate);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume with an empty store of 64 KiB, as OVMF's build makes it.
    fn empty() -> Vec<u8> {
        let mut vars = vec![0xff; 0x11000];
        vars[..72].fill(0);
        vars[40..44].copy_from_slice(b"_FVH");
        vars[48..50].copy_from_slice(&72u16.to_le_bytes());
        vars[72..88].copy_from_slice(&STORE);
        vars[88..92].copy_from_slice(&0x10000u32.to_le_bytes());
        vars[92..100].copy_from_slice(&[0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
        vars
    }

    #[test]
    fn variables_follow_each_other_aligned_with_their_data() {
        let mut vars = empty();
        enrol(&mut vars, &[7; 701]).unwrap();
        let mut at = 100;
        let mut names = Vec::new();
        while vars[at..at + 2] == START {
            let size = |offset| usize::try_from(number::<4>(&vars, at + offset).unwrap()).unwrap();
            let (name, data) = (size(36), size(40));
            let text: Vec<u8> = vars[at + 60..at + 60 + name].iter().copied().filter(|b| *b != 0).collect();
            names.push((String::from_utf8(text).unwrap(), data));
            at = (at + 60 + name + data).next_multiple_of(4);
        }
        let list = 28 + 16 + 701;
        let expected = [("SecureBootEnable", 1), ("db", list), ("KEK", list), ("PK", list)];
        assert_eq!(names, expected.map(|(name, data)| (name.to_owned(), data)));
        assert!(vars[at..].iter().all(|byte| *byte == 0xff));
    }

    #[test]
    fn a_store_with_variables_or_of_another_kind_is_refused() {
        let mut used = empty();
        enrol(&mut used, &[7; 10]).unwrap();
        let error = enrol(&mut used, &[7; 10]).unwrap_err().to_string();
        assert_eq!(error, "the variable store is not empty");
        assert!(enrol(&mut [0; 200], &[7; 10]).is_err());
        assert!(enrol(&mut empty()[..100].to_vec(), &[7; 10]).is_err());
        assert!(enrol(&mut empty(), &[7; 30_000]).unwrap_err().to_string().contains("full"));
    }
}
