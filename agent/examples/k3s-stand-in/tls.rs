//! Authorities that live in the datastore under the token, and the certificates of this server, signed by them.
//!
//! k3s encrypts the authorities with the token; the stand-in only files them under it.

use crate::config::Config;
use crate::store::Store;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

const DAY_S: u64 = 86_400;
/// As k3s has it, up to 1.33 or so.
const RENEW_S: u64 = 90 * DAY_S;

struct Authority {
    pem: String,
    begin_s: u64,
    issuer: Issuer<'static, KeyPair>,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn authority_params(name: &str, begin_s: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("k3s-{name}-ca@{begin_s}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = (UNIX_EPOCH + Duration::from_secs(begin_s)).into();
    params.not_after = (UNIX_EPOCH + Duration::from_secs(begin_s + 3650 * DAY_S)).into();
    params
}

fn make(name: &str) -> Value {
    let (key, begin_s) = (KeyPair::generate().unwrap(), now_s());
    let pem = authority_params(name, begin_s).self_signed(&key).unwrap().pem();
    json!({ "pem": pem, "key": key.serialize_pem(), "begin_s": begin_s })
}

fn load(name: &str, value: &Value) -> Authority {
    let begin_s = value["begin_s"].as_u64().unwrap();
    let key = KeyPair::from_pem(value["key"].as_str().unwrap()).unwrap();
    let issuer = Issuer::new(authority_params(name, begin_s), key);
    Authority { pem: value["pem"].as_str().unwrap().to_owned(), begin_s, issuer }
}

/// Whichever server is first makes the authorities; the other takes those that are there.
async fn bootstrap(config: &Config, store: &Store) -> Value {
    let digest: String =
        Sha256::digest(&config.token).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("/bootstrap/{digest}");
    loop {
        match store.get(&name).await {
            Ok(Some((_, value))) => return value,
            Ok(None) => {
                let made = json!({ "server": make("server"), "client": make("client") });
                if let Err(error) = store.create(&name, &made).await {
                    eprintln!(
                        "k3s-stand-in: the other server was quicker, or the datastore is away: {error:?}"
                    );
                }
            }
            Err(error) => eprintln!("k3s-stand-in: the datastore is away: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Makes a certificate, unless there is one of this authority that is good for long enough.
fn leaf(folder: &Path, name: &str, authority: &Authority, params: impl FnOnce() -> CertificateParams) {
    let path = folder.join(format!("{name}.crt"));
    if end_s(&path).is_some_and(|end| end > now_s() + RENEW_S) {
        return;
    }
    let days =
        std::env::var("CATTLE_NEW_SIGNED_CERT_EXPIRATION_DAYS").ok().and_then(|days| days.parse().ok());
    let mut params = params();
    params.not_before = (UNIX_EPOCH + Duration::from_secs(authority.begin_s)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(days.unwrap_or(365) * DAY_S)).into();
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, &authority.issuer).unwrap().pem();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    std::fs::write(path, pem + &authority.pem).unwrap();
    eprintln!("k3s-stand-in: made the certificate {name}");
}

fn end_s(path: &Path) -> Option<u64> {
    let chain = x509_cert::Certificate::load_pem_chain(&std::fs::read(path).ok()?).ok()?;
    Some(chain.first()?.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

/// Makes what is missing below the data directory, and what is needed to serve.
pub async fn prepare(config: &Config, store: &Store) -> TlsAcceptor {
    let stored = bootstrap(config, store).await;
    let (server, client) = (load("server", &stored["server"]), load("client", &stored["client"]));
    let folder = config.data.join("server/tls");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("server-ca.crt"), &server.pem).unwrap();
    std::fs::write(folder.join("client-ca.crt"), &client.pem).unwrap();
    leaf(&folder, "serving-kube-apiserver", &server, || {
        let mut names: Vec<String> = ["127.0.0.1", "localhost", "kubernetes"].map(str::to_owned).to_vec();
        names.extend(config.names.iter().cloned());
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params
    });
    leaf(&folder, "client-admin", &client, || {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "system:admin");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
    });
    acceptor(&folder)
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
    let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(folder.join(name)).unwrap().map(Result::unwrap).collect()
    };
    let mut roots = RootCertStore::empty();
    certificates("client-ca.crt").into_iter().for_each(|authority| roots.add(authority).unwrap());
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build().unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("serving-kube-apiserver.key")).unwrap();
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates("serving-kube-apiserver.crt"), key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
