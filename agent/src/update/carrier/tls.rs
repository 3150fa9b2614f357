//! TLS for sources: whose certificate is accepted. A wrong name or an unknown authority is refused; dates never are.
//!
//! What a release is worth is proved by its signatures, and a device whose clock says 1970, or whose server's certificate
//! ran out while it was in a drawer, must still be able to fetch a rescue (design, I9). Decision 21 has what that costs.

use anyhow::{Context, Result, ensure};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// The image's certificate authorities, those of the profile among them.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Certificates of a chain whose dates do not overlap with the others' cannot be accepted at one time: so many are tried.
const TIMES: usize = 6;

/// What connections of this device begin with.
///
/// # Errors
/// If the authorities cannot be read.
pub fn config() -> Result<ClientConfig> {
    config_with(Path::new(AUTHORITIES), Arc::new(DefaultTimeProvider))
}

fn config_with(authorities: &Path, clock: Arc<dyn TimeProvider>) -> Result<ClientConfig> {
    let what = || format!("read the certificate authorities {}", authorities.display());
    let found: Vec<CertificateDer<'_>> =
        CertificateDer::pem_file_iter(authorities).with_context(what)?.filter_map(Result::ok).collect();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found);
    ensure!(added > 0, "{} has no certificate", authorities.display());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .context("set up the verification of certificates")?;
    let config = ClientConfig::builder_with_details(provider, clock)
        .with_safe_default_protocol_versions()
        .context("set up TLS")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AtAnyTime { inner }))
        .with_no_client_auth();
    Ok(config)
}

/// The usual verification, at a time that suits the certificates.
#[derive(Debug)]
struct AtAnyTime {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AtAnyTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify =
            |at| self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at);
        let (mut at, mut verdict) = (now, verify(now));
        for _ in 0..TIMES {
            at = match &verdict {
                Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before, ..
                })) => *not_before,
                Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                    *not_after
                }
                Ok(_) | Err(_) => break,
            };
            verdict = verify(at);
        }
        if verdict.is_ok() && at != now {
            tracing::warn!(
                clock_s = now.as_secs(),
                valid_s = at.as_secs(),
                "the source's certificate does not fit this clock; releases are checked by their own signatures"
            );
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    const YEAR: u64 = 365 * 24 * 3600;
    /// Late in 2026.
    const NOW: u64 = 1_795_000_000;

    #[derive(Debug)]
    struct Clock(u64);

    impl TimeProvider for Clock {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
        }
    }

    struct Authority {
        folder: tempfile::TempDir,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2040, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
        Authority { folder, issuer: Issuer::new(params, key) }
    }

    /// A server with a certificate for `name` that is valid from 2026 to the end of `until`; it answers every request alike.
    fn server(authority: &Authority, name: &str, until: i32) -> u16 {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(until, 12, 31));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = ServerConnection::new(config.clone()).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
                let mut line = String::new();
                // A client that refuses the certificate hangs up.
                while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                    line.clear();
                }
                let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nframe";
                drop(stream.get_mut().write_all(answer).and_then(|()| stream.get_mut().flush()));
            }
        });
        port
    }

    fn ask(authority: &Authority, port: u16, clock_s: u64) -> Result<String, String> {
        let config = config_with(&authority.folder.path().join("ca.crt"), Arc::new(Clock(clock_s))).unwrap();
        let client = reqwest::blocking::Client::builder().no_proxy().tls_backend_preconfigured(config);
        let answer = client.build().unwrap().get(format!("https://localhost:{port}/announce")).send();
        answer.and_then(|answer| answer.text()).map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            cause.to_string()
        })
    }

    #[test]
    fn the_profile_s_own_authority_is_trusted_and_no_other() {
        let (ours, theirs) = (authority(), authority());
        let port = server(&ours, "localhost", 2030);
        assert_eq!(ask(&ours, port, NOW).as_deref(), Ok("frame"));
        let refused = ask(&theirs, port, NOW).unwrap_err();
        // Both authorities have one name, so the signature tells.
        assert!(refused.contains("BadSignature") || refused.contains("UnknownIssuer"), "{refused}");
    }

    #[test]
    fn a_certificate_for_another_name_is_refused_at_any_time() {
        let authority = authority();
        let port = server(&authority, "other.example", 2026);
        for clock_s in [NOW, 0, NOW + 20 * YEAR] {
            let refused = ask(&authority, port, clock_s).unwrap_err();
            assert!(refused.contains("not valid for name"), "{refused}");
        }
    }

    #[test]
    fn neither_a_clock_in_1970_nor_an_expired_certificate_strands_a_device() {
        let authority = authority();
        let good = server(&authority, "localhost", 2030);
        let expired = server(&authority, "localhost", 2026);
        for clock_s in [0, NOW, NOW + 20 * YEAR] {
            assert_eq!(ask(&authority, good, clock_s).as_deref(), Ok("frame"), "{clock_s}");
            assert_eq!(ask(&authority, expired, clock_s).as_deref(), Ok("frame"), "{clock_s}");
        }
    }
}
