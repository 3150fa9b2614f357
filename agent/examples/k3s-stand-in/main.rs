//! A stand-in for k3s where the real one is not at hand. It is NOT Kubernetes: it runs no pod.
//!
//! What it keeps of k3s is what the pair depends on: the same flags and configuration files; kine's real table and unique
//! index in the real Postgres behind `--datastore-endpoint`; authorities that live in that datastore under the token, so that
//! two servers share them; certificates made at the start and renewed at a start 90 days before they end; an HTTPS API that
//! wants a client certificate, with `/readyz` and `/livez`, objects with revisions, and evictions that budgets may refuse.
//!
//! Data flow: `config` → `store` (kine) → `tls` → `api`.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a program of the tests")]

mod api;
mod config;
mod store;
mod tls;

use config::Config;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::rc::Rc;
use store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = words.split_first().filter(|(command, _)| *command == "server") else {
        eprintln!("k3s-stand-in: only `server` is there, not {words:?}");
        std::process::exit(2);
    };
    let config = Config::read(rest).unwrap_or_else(|why| {
        eprintln!("k3s-stand-in {command}: {why}");
        std::process::exit(1);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, serve(config));
}

async fn serve(config: Config) {
    eprintln!("k3s-stand-in: this is not k3s; it serves what the tests of the pair need");
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        () = work(config) => {}
        _ = terminate.recv() => eprintln!("k3s-stand-in: told to end"),
    }
}

async fn work(config: Config) {
    let store = Rc::new(Store::open(&config.endpoint).await);
    let tls = tls::prepare(&config, &store).await;
    let node = format!("/registry/nodes/{}", config.node);
    let object = serde_json::json!({ "kind": "Node", "metadata": { "name": config.node } });
    if store.get(&node).await.unwrap_or_default().is_none() {
        drop(store.create(&node, &object).await);
    }
    let listener = TcpListener::bind(("0.0.0.0", config.port)).await.unwrap();
    eprintln!("k3s-stand-in: {} serves on port {}", config.node, config.port);
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (store, tls) = (Rc::clone(&store), tls.clone());
        tokio::task::spawn_local(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let known = stream.get_ref().1.peer_certificates().is_some();
            let service = service_fn(move |request| {
                let store = Rc::clone(&store);
                async move { api::answer(&store, known, request).await }
            });
            drop(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}
