//! The few words of the Kubernetes API that the agent and the tests use: objects by path, merge patches, evictions, budgets.

use crate::store::{Failure, Store};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use std::convert::Infallible;

const BODY_MAX: usize = 1 << 20;

type Answer = (u16, Value);

/// Where an object is: kind, namespace, name, and what is asked of it.
#[derive(Default)]
struct Path {
    kind: String,
    namespace: Option<String>,
    name: Option<String>,
    part: Option<String>,
}

impl Path {
    fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/api/v1/").or_else(|| path.strip_prefix("/apis/policy/v1/"))?;
        let mut words = rest.split('/').map(str::to_owned);
        let mut kind = words.next()?;
        let mut namespace = None;
        if kind == "namespaces" {
            namespace = words.next();
            kind = words.next()?;
        }
        Some(Self { kind, namespace, name: words.next(), part: words.next() })
    }

    fn key(&self) -> String {
        let words = [self.namespace.as_deref(), self.name.as_deref()];
        words
            .into_iter()
            .flatten()
            .fold(format!("/registry/{}", self.kind), |key, word| format!("{key}/{word}"))
    }
}

pub async fn answer(
    store: &Store,
    known: bool,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = head.uri.path().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let (status, value) = if !known {
        (401, message("Unauthorized"))
    } else {
        match path.as_str() {
            "/livez" => (200, json!("ok")),
            "/readyz" | "/healthz" if store.answers().await => (200, json!("ok")),
            "/readyz" | "/healthz" => (500, json!("[-]etcd failed")),
            "/version" => (200, json!({ "gitVersion": "stand-in" })),
            _ => {
                let value = serde_json::from_slice(&body).unwrap_or_default();
                objects(store, &head.method, &path, &query, value).await
            }
        }
    };
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
}

fn message(text: &str) -> Value {
    json!({ "kind": "Status", "message": text })
}

fn failed(failure: Failure) -> Answer {
    match failure {
        Failure::Conflict => (409, message("the object has been modified or exists")),
        Failure::Away(why) => (500, message(&format!("the datastore is away: {why}"))),
    }
}

async fn objects(store: &Store, method: &Method, path: &str, query: &str, body: Value) -> Answer {
    let Some(path) = Path::parse(path) else { return (404, message("no such path")) };
    let done = match (method.as_str(), &path.name, path.part.as_deref()) {
        ("GET", None, None) => list(store, &path, query).await,
        ("POST", None, None) => create(store, path, body).await,
        ("GET", Some(_), None) => store.get(&path.key()).await.map(|found| match found {
            Some((_, value)) => (200, value),
            None => (404, message("not found")),
        }),
        ("PATCH", Some(_), None) => patch(store, &path, &body).await,
        ("DELETE", Some(_), None) => delete(store, &path).await,
        ("POST", Some(_), Some("eviction")) => evict(store, &path).await,
        _ => Ok((405, message("the stand-in does not do that"))),
    };
    done.unwrap_or_else(failed)
}

async fn list(store: &Store, path: &Path, query: &str) -> Result<Answer, Failure> {
    let on = query.split('&').find_map(|part| part.strip_prefix("fieldSelector=spec.nodeName%3D"));
    let items = store.list(&format!("{}/", path.key())).await?.into_iter().map(|(_, value)| value);
    let items: Vec<Value> =
        items.filter(|item| on.is_none_or(|node| item["spec"]["nodeName"] == node)).collect();
    Ok((200, json!({ "items": items })))
}

async fn create(store: &Store, mut path: Path, mut body: Value) -> Result<Answer, Failure> {
    let Some(name) = body["metadata"]["name"].as_str().map(str::to_owned) else {
        return Ok((422, message("metadata.name is missing")));
    };
    path.name = Some(name);
    if let Some(namespace) = &path.namespace {
        body["metadata"]["namespace"] = namespace.as_str().into();
    }
    let revision = store.create(&path.key(), &body).await?;
    body["metadata"]["resourceVersion"] = revision.to_string().into();
    Ok((201, body))
}

async fn patch(store: &Store, path: &Path, change: &Value) -> Result<Answer, Failure> {
    let Some((revision, mut value)) = store.get(&path.key()).await? else {
        return Ok((404, message("not found")));
    };
    merge(&mut value, change);
    store.update(&path.key(), revision, &value).await?;
    Ok((200, value))
}

/// RFC 7396.
fn merge(value: &mut Value, change: &Value) {
    let Some(change) = change.as_object() else {
        *value = change.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    let Some(fields) = value.as_object_mut() else { return };
    for (name, change) in change {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), change);
        }
    }
}

async fn delete(store: &Store, path: &Path) -> Result<Answer, Failure> {
    let Some((revision, value)) = store.get(&path.key()).await? else {
        return Ok((404, message("not found")));
    };
    // There is no kubelet whose word would have to be waited for.
    store.delete(&path.key(), revision).await?;
    Ok((200, value))
}

async fn evict(store: &Store, path: &Path) -> Result<Answer, Failure> {
    let Some((_, pod)) = store.get(&path.key()).await? else { return Ok((404, message("not found"))) };
    let namespace = path.namespace.as_deref().unwrap_or_default();
    let budgets = store.list(&format!("/registry/poddisruptionbudgets/{namespace}/")).await?;
    for (_, budget) in budgets {
        let labels = &budget["spec"]["selector"]["matchLabels"];
        if !matches(labels, &pod) {
            continue;
        }
        let pods = store.list(&format!("/registry/pods/{namespace}/")).await?;
        let healthy = pods.iter().filter(|(_, pod)| matches(labels, pod)).count() as u64;
        let needs = budget["spec"]["minAvailable"].as_u64().unwrap_or(0);
        if healthy <= needs {
            let name = budget["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!(
                "The disruption budget {name} needs {needs} healthy pods and has {healthy} currently"
            );
            let mut status = message("Cannot evict pod as it would violate the pod's disruption budget.");
            status["details"] = json!({ "causes": [{ "reason": "DisruptionBudget", "message": why }] });
            return Ok((429, status));
        }
    }
    delete(store, path).await.map(|(status, value)| (if status == 200 { 201 } else { status }, value))
}

fn matches(labels: &Value, object: &Value) -> bool {
    let wanted = labels.as_object().into_iter().flatten();
    wanted.into_iter().all(|(name, value)| object["metadata"]["labels"][name] == *value)
}
