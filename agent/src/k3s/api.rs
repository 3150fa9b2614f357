//! The Kubernetes API of this node or the other, asked with the administrator's certificate that k3s made here: both nodes
//! have the same authorities, which live in the datastore.

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Certificate, Client, Identity, Method};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes: the pods of a node are at most some hundred.
const ANSWER_MAX: usize = 16 << 20;

/// An API server.
pub struct Api {
    client: Client,
    base: String,
}

impl Api {
    /// Prepares questions to the server at `address`; nothing is sent yet.
    ///
    /// # Errors
    /// If k3s has not made its certificates yet, or they cannot be used.
    pub fn open(data: &Path, address: SocketAddr) -> Result<Self> {
        // Fails only if a provider is installed already, which is what is wanted.
        drop(rustls::crypto::ring::default_provider().install_default());
        let read = |name: &str| {
            let path = data.join("server/tls").join(name);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let authorities =
            Certificate::from_pem_bundle(&read("server-ca.crt")?).context("use k3s' authority")?;
        let both = [read("client-admin.key")?, read("client-admin.crt")?].concat();
        let client = Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .tls_certs_only(authorities)
            .identity(Identity::from_pem(&both).context("use the administrator's certificate")?)
            .pool_max_idle_per_host(1)
            .build()
            .context("set up HTTPS")?;
        Ok(Self { client, base: format!("https://{address}") })
    }

    /// Whether the server says that it is ready.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn ready(&self) -> Result<bool> {
        let answer = self
            .client
            .get(format!("{}/readyz", self.base))
            .send()
            .await
            .context("ask whether k3s is ready")?;
        Ok(answer.status().is_success())
    }

    /// A question; gives HTTP status and body, null if that is no JSON.
    ///
    /// # Errors
    /// If there is no whole answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Value)>,
    ) -> Result<(u16, Value)> {
        let what = || format!("ask k3s: {method} {path}");
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base));
        if let Some((kind, value)) = body {
            request = request.header("content-type", kind).body(value.to_string());
        }
        let mut answer = request.send().await.with_context(what)?;
        let status = answer.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.with_context(what)? {
            ensure!(
                bytes.len() + chunk.len() <= ANSWER_MAX,
                "{}: the answer is longer than {ANSWER_MAX} bytes",
                what()
            );
            bytes.extend_from_slice(&chunk);
        }
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// As [`Api::call`], and every status but success is an error.
    ///
    /// # Errors
    /// Also the server's.
    pub async fn must(&self, method: Method, path: &str, body: Option<(&str, Value)>) -> Result<Value> {
        let name = method.clone();
        let (status, value) = self.call(method, path, body).await?;
        if !(200..300).contains(&status) {
            let why = value["message"].as_str().unwrap_or("no reason was given");
            bail!("k3s does not take {name} {path}: HTTP status {status}: {why}");
        }
        Ok(value)
    }
}
