//! Pods leave this node before a planned reboot, and come back after it: `drain` carried out.
//!
//! That a node is closed for a reboot stands on the node in Kubernetes, with the boot in which it was closed: in the next boot
//! the agent opens it again. It decides nothing about budgets.

use super::api::Api;
use super::drain::{Act, Drain, Verdict, answer, pods};
use super::{files, settings};
use crate::clock::boot_ms;
use crate::durable;
use crate::ha::act::Config;
use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Names the boot in which a node was closed.
const MARK: &str = "farhold/left-in-boot";
const MERGE: &str = "application/merge-patch+json";
/// Between two rounds, as `kubectl drain` has it.
const ROUND: Duration = Duration::from_secs(2);
/// What the last drain said, in the folder that is gone after a boot.
const NOTE: &str = "drain.json";

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// No pod that must leave is here; these were deleted against a budget.
    Left(BTreeMap<String, String>),
    /// These are still here, and why; the node takes pods again.
    Held(BTreeMap<String, String>),
}

/// Closes this node and lets its pods leave; `tell` hears of each change.
///
/// # Errors
/// If the API server cannot be asked; the node may then be closed.
pub async fn leave(config: &Config, drain: settings::Drain, mut tell: impl FnMut(&str)) -> Result<Leaving> {
    let (api, node) = here(config)?;
    let run = &config.k3s()?.run;
    api.must(Method::PATCH, &node, Some((MERGE, mark(&boot_id()?))))
        .await
        .context("close the node for pods")?;
    let name = node.rsplit('/').next().unwrap_or_default();
    let query = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}&limit=500");
    let mut work = Drain::begin(drain.deadline_s, drain.after, boot_ms());
    let mut said = String::new();
    loop {
        let here = pods(&api.must(Method::GET, &query, None).await.context("list the pods of this node")?);
        let (acts, verdict) = work.round(&here, boot_ms());
        for (id, act) in acts {
            let told = one(&api, &id, act).await;
            work.told(&id, told);
        }
        let now = said_of(here.len(), &work.held);
        if now != said {
            tell(&now);
            note(run, &json!({ "state": "drains", "pods": here.len(), "held": work.held }))?;
            said = now;
        }
        match verdict {
            Verdict::Working => tokio::time::sleep(ROUND).await,
            Verdict::Left => {
                note(run, &json!({ "state": "drained", "forced": work.forced }))?;
                return Ok(Leaving::Left(work.forced));
            }
            Verdict::Held => {
                note(run, &json!({ "state": "not drained: the deadline passed", "held": work.held }))?;
                stay(config).await?;
                return Ok(Leaving::Held(work.held));
            }
        }
    }
}

/// Lets this node take pods again.
///
/// # Errors
/// If the API server cannot be asked.
pub async fn stay(config: &Config) -> Result<()> {
    let (api, node) = here(config)?;
    open(&api, &node).await
}

/// Opens the node if it was closed in an earlier boot.
///
/// # Errors
/// If the API server cannot be asked, or does not know the node yet.
pub async fn back(api: &Api, config: &Config) -> Result<()> {
    let node = path(config)?;
    let known = api.must(Method::GET, &node, None).await?;
    let closed_in = known["metadata"]["annotations"][MARK].as_str();
    match closed_in {
        Some(boot) if boot != boot_id()? => {
            tracing::info!("the reboot is over: the node takes pods again");
            open(api, &node).await
        }
        Some(_) | None => Ok(()),
    }
}

/// What the last drain of this boot said.
pub fn last(config: &Config) -> Option<Value> {
    let path = config.k3s().ok()?.run.join(NOTE);
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn here(config: &Config) -> Result<(Api, String)> {
    let settings = config.k3s()?;
    let api = Api::open(&settings.data, SocketAddr::from((Ipv4Addr::LOCALHOST, settings.port)))?;
    Ok((api, path(config)?))
}

fn path(config: &Config) -> Result<String> {
    Ok(format!("/api/v1/nodes/{}", files::node(config.k3s()?)))
}

fn mark(boot: &str) -> Value {
    json!({ "metadata": { "annotations": { MARK: boot } }, "spec": { "unschedulable": true } })
}

async fn open(api: &Api, node: &str) -> Result<()> {
    let opened = json!({ "metadata": { "annotations": { MARK: null } }, "spec": { "unschedulable": null } });
    api.must(Method::PATCH, node, Some((MERGE, opened))).await.context("open the node for pods").map(drop)
}

async fn one(api: &Api, id: &str, act: Act) -> super::drain::Answer {
    let (namespace, name) = id.split_once('/').unwrap_or_default();
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let told = match act {
        Act::Evict => {
            let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": { "namespace": namespace, "name": name } });
            api.call(Method::POST, &format!("{path}/eviction"), Some(("application/json", eviction))).await
        }
        Act::Delete => api.call(Method::DELETE, &path, None).await,
    };
    match told {
        Ok((status, body)) => answer(status, &body),
        Err(error) => super::drain::Answer::Failed(format!("{error:#}")),
    }
}

fn said_of(pods: usize, held: &BTreeMap<String, String>) -> String {
    let held: String = held.iter().map(|(id, why)| format!("; {id}: {why}")).collect();
    format!("{pods} pods to leave{held}")
}

fn note(run: &std::path::Path, value: &Value) -> Result<()> {
    durable::make_folder(run, 0o700)?;
    durable::write(&run.join(NOTE), value.to_string().as_bytes(), 0o600)
}

fn boot_id() -> Result<String> {
    let id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the number of this boot")?;
    Ok(id.trim().to_owned())
}
