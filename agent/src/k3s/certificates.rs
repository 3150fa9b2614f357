//! Until when the certificates that k3s made are valid, read from its data directory. It does not judge.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Most files that are read, and the longest, bytes: k3s keeps some twenty of a few kilobytes.
const FILES_MAX: usize = 200;
const FILE_MAX: u64 = 256 << 10;

/// Dates in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// End of the first that ends.
    pub first_end_s: i64,
    /// Begin of the last that begins.
    pub last_begin_s: i64,
    /// End of the first authority that ends.
    pub authority_end_s: i64,
}

/// Reads what k3s made below its data directory; nothing if it made none yet.
///
/// # Errors
/// If a file cannot be read or holds no certificate.
pub fn read(data: &Path) -> Result<Option<Validity>> {
    let mut validity = None;
    for path in ["server/tls", "agent"]
        .iter()
        .map(|folder| list(&data.join(folder)))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let authority = name.ends_with("-ca.crt") || name.ends_with("-ca.nochain.crt");
        let found = merge(validity, &file(&path)?, authority);
        validity = Some(found);
    }
    Ok(validity.filter(|found| found.first_end_s != i64::MAX))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "crt")).collect();
    ensure!(paths.len() <= FILES_MAX, "list {}: more than {FILES_MAX} certificates", folder.display());
    paths.sort();
    Ok(paths)
}

/// Begin and end of each certificate of a file. A leaf stands first, its authority may follow.
fn file(path: &Path) -> Result<Vec<(i64, i64)>> {
    let what = || format!("read the certificate {}", path.display());
    let size = std::fs::metadata(path).with_context(what)?.len();
    ensure!(size <= FILE_MAX, "{}: it has {size} bytes, at most {FILE_MAX} are read", what());
    dates(&std::fs::read(path).with_context(what)?).with_context(what)
}

fn dates(pem: &[u8]) -> Result<Vec<(i64, i64)>> {
    let chain = x509_cert::Certificate::load_pem_chain(pem)?;
    ensure!(!chain.is_empty(), "it is empty");
    let seconds =
        |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    let dates = chain.iter().map(|one| {
        let validity = one.tbs_certificate().validity();
        (seconds(validity.not_before), seconds(validity.not_after))
    });
    Ok(dates.collect())
}

fn merge(known: Option<Validity>, chain: &[(i64, i64)], authority: bool) -> Validity {
    let mut known = known.unwrap_or(Validity {
        first_end_s: i64::MAX,
        last_begin_s: i64::MIN,
        authority_end_s: i64::MAX,
    });
    for (at, (begin, end)) in chain.iter().enumerate() {
        known.last_begin_s = known.last_begin_s.max(*begin);
        if authority || at > 0 {
            known.authority_end_s = known.authority_end_s.min(*end);
        } else {
            known.first_end_s = known.first_end_s.min(*end);
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn pem(begin: i32, end: i32) -> String {
        let mut params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(begin, 1, 1), date_time_ymd(end, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    const Y2030: i64 = 1_893_456_000;

    #[test]
    fn the_first_end_counts_and_authorities_count_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        let tls = folder.path().join("server/tls");
        std::fs::create_dir_all(&tls).unwrap();
        std::fs::write(tls.join("server-ca.crt"), pem(2020, 2029)).unwrap();
        assert_eq!(read(folder.path()).unwrap(), None, "only an authority yet");
        std::fs::write(tls.join("client-admin.crt"), pem(2021, 2031) + &pem(2020, 2029)).unwrap();
        std::fs::write(tls.join("serving.crt"), pem(2021, 2030)).unwrap();
        std::fs::write(tls.join("serving.key"), "no certificate").unwrap();
        let found = read(folder.path()).unwrap().unwrap();
        assert_eq!(found.first_end_s, Y2030);
        assert_eq!(found.authority_end_s, 1_861_920_000);
        assert_eq!(found.last_begin_s, 1_609_459_200);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let tls = folder.path().join("server/tls");
        std::fs::create_dir_all(&tls).unwrap();
        std::fs::write(tls.join("x.crt"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        assert!(format!("{:#}", read(folder.path()).unwrap_err()).contains("server/tls/x.crt"));
    }
}
