//! Flags and files as k3s reads them: `config.yaml`, then `config.yaml.d/*.yaml` by name, then flags; `name+` adds to a list.

use serde_json::{Map, Value};
use std::path::PathBuf;

pub struct Config {
    pub endpoint: String,
    pub token: String,
    pub data: PathBuf,
    pub node: String,
    pub port: u16,
    pub names: Vec<String>,
}

impl Config {
    pub fn read(flags: &[String]) -> Result<Self, String> {
        let flags = parse(flags)?;
        let main =
            flags.get("config").and_then(Value::as_str).unwrap_or("/etc/rancher/k3s/config.yaml").to_owned();
        let mut files = vec![PathBuf::from(&main)];
        let mut more: Vec<PathBuf> = std::fs::read_dir(format!("{main}.d"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        more.retain(|path| path.extension().is_some_and(|end| end == "yaml" || end == "yml"));
        more.sort();
        files.extend(more);
        let mut all = Map::new();
        for file in files.iter().filter(|file| file.exists()) {
            let text =
                std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let value: Option<Map<String, Value>> =
                serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
            value.unwrap_or_default().into_iter().for_each(|(name, value)| merge(&mut all, &name, value));
        }
        flags.into_iter().for_each(|(name, value)| merge(&mut all, &name, value));
        Self::of(&all)
    }

    fn of(all: &Map<String, Value>) -> Result<Self, String> {
        let text = |name: &str| all.get(name).and_then(Value::as_str).map(str::to_owned);
        let file = text("token-file").and_then(|path| std::fs::read_to_string(path).ok());
        let port = all.get("https-listen-port").map_or(Ok(6443), |port| {
            let number =
                port.as_u64().or_else(|| port.as_str()?.parse().ok()).and_then(|n| u16::try_from(n).ok());
            number.ok_or_else(|| format!("https-listen-port is {port}"))
        })?;
        let names = all.get("tls-san").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut names: Vec<String> =
            names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
        names.extend(text("node-ip"));
        Ok(Self {
            endpoint: text("datastore-endpoint").ok_or("the stand-in needs --datastore-endpoint")?,
            token: text("token").or(file).ok_or("the stand-in needs --token")?.trim().to_owned(),
            data: text("data-dir").unwrap_or_else(|| "/var/lib/rancher/k3s".to_owned()).into(),
            node: text("node-name").ok_or("the stand-in needs --node-name")?,
            port,
            names,
        })
    }
}

fn merge(all: &mut Map<String, Value>, name: &str, value: Value) {
    match (name.strip_suffix('+'), value) {
        (Some(name), Value::Array(more)) => {
            let list = all.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if let Some(list) = list.as_array_mut() {
                list.extend(more);
            }
        }
        (_, value) => drop(all.insert(name.to_owned(), value)),
    }
}

fn parse(flags: &[String]) -> Result<Map<String, Value>, String> {
    let mut found = Map::new();
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        let name = flag.strip_prefix("--").ok_or_else(|| format!("`{flag}` is no flag"))?;
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (name, flags.next().ok_or_else(|| format!("`{flag}` has no value"))?.clone()),
        };
        let value = if name == "tls-san" { Value::Array(vec![value.into()]) } else { value.into() };
        merge(&mut found, if name == "tls-san" { "tls-san+" } else { name }, value);
    }
    Ok(found)
}
