//! Signs EFI programs for Secure Boot with `sbsign`, and believes the result only after `sbverify`.
//!
//! Knows nothing of what the programs are or of how firmware gets the certificate.

use crate::tools::{Tool, ToolsRoot};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The operator's Secure Boot key pair, PEM.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Private key.
    pub key: PathBuf,
    /// Certificate that the firmware trusts.
    pub certificate: PathBuf,
}

impl Keys {
    /// Key and certificate as given: both or none.
    ///
    /// # Errors
    /// If one is given without the other, or is no file.
    pub fn given(key: Option<PathBuf>, certificate: Option<PathBuf>) -> Result<Option<Self>> {
        let (key, certificate) = match (key, certificate) {
            (None, None) => return Ok(None),
            (Some(key), Some(certificate)) => (key, certificate),
            (Some(_), None) => bail!("--secure-boot-key needs --secure-boot-cert"),
            (None, Some(_)) => bail!("--secure-boot-cert needs --secure-boot-key"),
        };
        for path in [&key, &certificate] {
            if !path.is_file() {
                bail!("no Secure Boot key or certificate at {}", path.display());
            }
        }
        Ok(Some(Self { key, certificate }))
    }
}

/// Signs `program` into `signed`, which is a scratch path.
///
/// # Errors
/// If key and certificate do not fit, or the signature does not check afterwards.
pub fn sign(tools: &ToolsRoot, keys: &Keys, program: &Path, signed: &Path) -> Result<()> {
    let mut sbsign = tools.command(Tool::Sbsign);
    sbsign.arg("--key").arg(&keys.key).arg("--cert").arg(&keys.certificate);
    sbsign.arg("--output").arg(signed).arg(program).run().context("sign for Secure Boot")?;
    let mut sbverify = tools.command(Tool::Sbverify);
    sbverify.arg("--cert").arg(&keys.certificate).arg(signed).run().context("check Secure Boot signature")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_certificate_come_together_and_exist() {
        let given = |key: Option<&str>, cert: Option<&str>| {
            Keys::given(key.map(PathBuf::from), cert.map(PathBuf::from)).map(|keys| keys.is_some())
        };
        assert!(!given(None, None).unwrap());
        let says = |result: Result<bool>| result.unwrap_err().to_string();
        assert_eq!(says(given(Some("k"), None)), "--secure-boot-key needs --secure-boot-cert");
        assert_eq!(says(given(None, Some("c"))), "--secure-boot-cert needs --secure-boot-key");
        assert_eq!(says(given(Some("/no/k"), Some("c"))), "no Secure Boot key or certificate at /no/k");
    }
}
