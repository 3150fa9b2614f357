//! The configuration that k3s finds: what the image says, and below `config.yaml.d/` what belongs to the pair.
//!
//! JSON is YAML (YAML 1.2, section 1.2); k3s reads it as such. The text comes from values; only [`write`] touches a disk.

use super::settings::Settings;
use crate::durable;
use crate::ha::act::{Config, Secrets};
use anyhow::Result;
use reqwest::Url;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Read after the files of packs.
const NAME: &str = "90-farhold-pair.yaml";

/// Name of this node in Kubernetes.
pub fn node(settings: &Settings) -> String {
    let host = || nix::unistd::gethostname().map(|name| name.to_string_lossy().to_lowercase());
    settings.node.clone().or_else(|| host().ok()).unwrap_or_default()
}

/// What the pair adds to k3s' configuration.
pub fn text(config: &Config, settings: &Settings, secrets: &Secrets) -> Value {
    let mut value = json!({
        "datastore-endpoint": endpoint(config, secrets),
        "token": secrets.token,
        "data-dir": settings.data,
        "https-listen-port": settings.port,
        "node-name": node(settings),
        // Added to the image's list.
        "tls-san+": settings.names,
    });
    let address = settings.address.unwrap_or(config.listen.ip());
    if !address.is_unspecified() {
        value["node-ip"] = json!(address);
    }
    value
}

/// The port's socket, which costs less than its address and which no pod reaches. The agents' tunnel encrypts what leaves
/// this node.
fn endpoint(config: &Config, secrets: &Secrets) -> String {
    let folder = config.port_sockets();
    let query = [("host", &*folder.to_string_lossy()), ("sslmode", "disable")];
    // Only its query is used: a user and no host, as Go has it, is refused here.
    let url = Url::parse_with_params("postgres://localhost", query).expect("an address");
    let (name, password) = (&config.postgres.database, &secrets.datastore_password);
    format!("postgres://{name}:{password}@/{name}?{}", url.query().unwrap_or_default())
}

/// Writes it, readable for its owner only.
///
/// # Errors
/// The file system's.
pub fn write(config: &Config, settings: &Settings, secrets: &Secrets) -> Result<()> {
    let mut folder = settings.config.clone().into_os_string();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    durable::make_folder(&folder, 0o755)?;
    durable::write(&folder.join(NAME), format!("{:#}\n", text(config, settings, secrets)).as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, run: &str) -> Config {
        let value = json!({ "site": "00000000000000aa", "state": "/s", "run": run, "listen": listen, "port": "127.0.0.1:5000",
            "postgres": { "bin": "/b", "data": "/d", "database": "kine" }, "k3s": { "node": "a", "names": ["192.0.2.10"] } });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn k3s_is_led_to_the_local_port() {
        let secrets = Secrets { datastore_password: "pass".into(), token: "word".into() };
        let config = config("10.0.0.1:7600", "/run/a & b");
        let text = text(&config, config.k3s.as_ref().unwrap(), &secrets);
        let endpoint = text["datastore-endpoint"].as_str().unwrap();
        assert_eq!(endpoint, "postgres://kine:pass@/kine?host=%2Frun%2Fa+%26+b%2Fport&sslmode=disable");
        assert_eq!((&text["token"], &text["node-ip"]), (&json!("word"), &json!("10.0.0.1")));
        assert_eq!((&text["tls-san+"], &text["node-name"]), (&json!(["192.0.2.10"]), &json!("a")));
    }

    #[test]
    fn an_address_of_every_interface_is_none() {
        let secrets = Secrets { datastore_password: String::new(), token: String::new() };
        let config = config("[::]:7600", "/r");
        let text = text(&config, config.k3s.as_ref().unwrap(), &secrets);
        assert!(text["node-ip"].is_null());
    }
}
