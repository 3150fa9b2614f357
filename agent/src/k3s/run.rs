//! The loop: look → `step` → effect → look. What it sees and does is in the files beside it.

use super::api::Api;
use super::certificates::{self, Validity};
use super::process::Server;
use super::renew::{self, Due, Facts};
use super::settings::Settings;
use super::step::{Effect, Life, Look, State, step, words};
use super::{files, leave};
use crate::clock::boot_ms;
use crate::durable;
use crate::ha::act::{self, Ask, Config, Secrets};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// Between two looks.
const TICK: Duration = Duration::from_secs(1);
/// How long an answer of the pair's process, or of its database, may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Says which node restarts for its certificates.
const TURN: &str = "/api/v1/namespaces/kube-system/configmaps";
const TURN_NAME: &str = "farhold-certificate-renewal";
/// A report is written at least so often, and is stale after three times that; milliseconds.
const REPORT_MS: u64 = 10_000;
const REPORT: &str = "status.json";

/// What is known between two looks.
struct Runner {
    config: Config,
    settings: Settings,
    server: Server,
    secrets: Option<Secrets>,
    api: Option<Api>,
    validity: Option<Validity>,
    validity_at: Option<u64>,
    peer_ready: Option<bool>,
    is_back: bool,
    reported: Option<(u64, String)>,
}

/// What the pair's process says.
struct Pair {
    port_open: bool,
    primary: bool,
}

/// Runs k3s until this process is told to stop; `tell` hears each change in words.
///
/// # Errors
/// If it cannot begin. What fails later is tried again.
pub fn run(config: Config, tell: impl Fn(&str)) -> Result<()> {
    let settings = config.k3s()?.clone();
    durable::make_folder(&settings.run, 0o700)?;
    durable::make_folder(&settings.state, 0o700)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_stack_size(256 << 10)
        .build()
        .context("start the loop")?;
    let runner = Runner {
        server: Server::find(&settings.run),
        secrets: kept(&settings.state),
        config,
        settings,
        api: None,
        validity: None,
        validity_at: None,
        peer_ready: None,
        is_back: false,
        reported: None,
    };
    tokio::task::LocalSet::new().block_on(&runtime, runner.serve(tell))
}

/// What was last reported; nothing if k3s is not run by the agent here.
pub fn report(config: &Config) -> Option<Value> {
    let settings = config.k3s.as_ref()?;
    let text = std::fs::read(settings.run.join(REPORT)).unwrap_or_default();
    let mut value: Value = serde_json::from_slice(&text).unwrap_or_default();
    let at = value["at_ms"].as_u64().unwrap_or(0);
    if boot_ms().saturating_sub(at) > 3 * REPORT_MS || value.is_null() {
        value = json!({ "state": "nobody runs k3s here: `systemctl status k3s`", "ready": false });
    }
    value["drain"] = leave::last(config).unwrap_or_default();
    Some(value)
}

/// Secrets of an earlier boot: the node may start while its own database is copied anew.
fn kept(state: &Path) -> Option<Secrets> {
    serde_json::from_slice(&std::fs::read(state.join("secrets")).ok()?).ok()
}

impl Runner {
    async fn serve(mut self, tell: impl Fn(&str)) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut state, effect) = State::begin(self.server.is_leftover(), boot_ms());
        if self.server.is_leftover() {
            tracing::warn!("k3s: an earlier run of the agent left it behind; it is stopped first");
        }
        self.perform(effect);
        let mut wanted = true;
        loop {
            let pair = self.pair().await;
            let look = self.look(wanted, &state, &pair).await;
            let before = state;
            let effect;
            (state, effect) = step(state, &look, &self.settings.times, boot_ms());
            self.perform(effect);
            let said = words(&state, &look);
            if std::mem::discriminant(&before.life) != std::mem::discriminant(&state.life) {
                tracing::info!(from = ?before.life, to = ?state.life, failures = state.failures, "k3s: {said}");
            }
            if self.report(&said, matches!(state.life, Life::Ready { .. })) {
                tell(&said);
            }
            if !wanted && matches!(state.life, Life::Waiting { .. }) {
                return Ok(());
            }
            if matches!(state.life, Life::Ready { .. }) {
                self.come_back().await;
            }
            tokio::select! {
                _ = terminate.recv() => wanted = false,
                _ = ticks.tick() => {}
            }
        }
    }

    /// Asked anew each time: the pair's process may have been restarted, and its port is closed while it is away.
    async fn pair(&self) -> Pair {
        let run = self.config.run.clone();
        let asked = tokio::task::spawn_blocking(move || act::ask(&run, Ask::Status));
        let status = match timeout(PATIENCE, asked).await {
            Ok(Ok(Ok(status))) => status,
            Ok(_) | Err(_) => Value::Null,
        };
        let port_open = matches!(status["port"].as_str(), Some("Local" | "Peer"));
        Pair { port_open, primary: status["is_primary"] == true }
    }

    async fn look(&mut self, wanted: bool, state: &State, pair: &Pair) -> Look {
        let process = self.server.look().unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "k3s cannot be looked at");
            super::step::Process::Running
        });
        if self.secrets.is_none() {
            self.learn_secrets().await;
        }
        let runs = matches!(process, super::step::Process::Running);
        let ready = runs && self.ready().await;
        if ready {
            self.refresh().await;
        }
        let asks = ready && state.may_renew(&self.settings.times, boot_ms());
        let renew = asks && self.renewal(pair).await;
        Look { wanted, port_open: pair.port_open, prepared: self.secrets.is_some(), process, ready, renew }
    }

    async fn learn_secrets(&mut self) {
        let run = self.config.run.clone();
        match timeout(PATIENCE, act::secrets(&run)).await {
            Ok(Ok(secrets)) => {
                let kept = serde_json::to_vec(&secrets).context("encode the secrets");
                let path = self.settings.state.join("secrets");
                if let Err(error) = kept.and_then(|bytes| durable::write(&path, &bytes, 0o600)) {
                    tracing::warn!(error = format!("{error:#}"), "the secrets are not kept");
                }
                self.secrets = Some(secrets);
            }
            Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "no secrets yet"),
            Err(_) => tracing::debug!("the database does not answer"),
        }
    }

    async fn ready(&mut self) -> bool {
        if self.api.is_none() {
            let here = SocketAddr::from((Ipv4Addr::LOCALHOST, self.settings.port));
            self.api = Api::open(&self.settings.data, here).ok();
        }
        let Some(api) = &self.api else { return false };
        match api.ready().await {
            Ok(ready) => ready,
            Err(error) => {
                tracing::trace!(error = format!("{error:#}"), "k3s does not answer");
                // Its certificates may be new.
                self.api = None;
                false
            }
        }
    }

    /// Looks at the certificates, and, if it is near, at the other node.
    async fn refresh(&mut self) {
        let now = boot_ms();
        let seldom = self.settings.times.seldom_ms;
        if self.validity_at.is_some_and(|at| now.saturating_sub(at) < seldom) {
            return;
        }
        self.validity_at = Some(now);
        self.validity = certificates::read(&self.settings.data).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "k3s' certificates cannot be looked at");
            None
        });
        let near = self.validity.is_some_and(|validity| renew::near(&validity, wall_s()));
        self.peer_ready = if near { self.ask_peer().await } else { None };
    }

    async fn renewal(&self, pair: &Pair) -> bool {
        let facts = Facts { now_s: wall_s(), primary: pair.primary, peer_ready: self.peer_ready };
        match self.validity.map_or(Due::No, |validity| renew::due(&validity, &facts)) {
            Due::No => false,
            Due::Now => true,
            Due::InTurn => self.take_turn().await.unwrap_or_else(|error| {
                tracing::debug!(error = format!("{error:#}"), "no turn to restart");
                false
            }),
        }
    }

    /// Whether this node may restart for its certificates: who has the turn stands in the datastore, which gives it to one.
    async fn take_turn(&self) -> Result<bool> {
        let api = self.api.as_ref().context("the API server was not asked yet")?;
        let node = files::node(&self.settings);
        let turn = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": TURN_NAME }, "data": { "node": node } });
        match api.call(Method::POST, TURN, Some(("application/json", turn))).await?.0 {
            200..=299 => Ok(true),
            _ => Ok(self.turn(api).await?.as_deref() == Some(&node)),
        }
    }

    /// Who has the turn.
    async fn turn(&self, api: &Api) -> Result<Option<String>> {
        let (_, held) = api.call(Method::GET, &format!("{TURN}/{TURN_NAME}"), None).await?;
        Ok(held["data"]["node"].as_str().map(str::to_owned))
    }

    /// After a start: the turn goes back, and a node that was closed for a reboot is opened.
    async fn settle(&self, api: &Api) -> Result<()> {
        if self.turn(api).await?.as_deref() == Some(&files::node(&self.settings)) {
            api.must(Method::DELETE, &format!("{TURN}/{TURN_NAME}"), None).await?;
        }
        leave::back(api, &self.config).await
    }

    /// Whether the other node serves Kubernetes; both have the same authorities.
    async fn ask_peer(&self) -> Option<bool> {
        let peer = self.config.peer.as_ref()?.addresses.first()?;
        let api = Api::open(&self.settings.data, SocketAddr::new(peer.ip(), self.settings.port)).ok()?;
        Some(api.ready().await.unwrap_or(false))
    }

    fn perform(&mut self, effect: Option<Effect>) {
        let done = match effect {
            None => return,
            Some(Effect::Start) => {
                (self.api, self.validity_at, self.is_back) = (None, None, false);
                self.start()
            }
            Some(Effect::Terminate) => self.server.signal(Signal::SIGTERM),
            Some(Effect::Kill) => self.server.signal(Signal::SIGKILL),
        };
        if let Err(error) = done {
            // A start that failed is seen as an end; a signal that failed is sent again.
            tracing::error!(error = format!("{error:#}"), ?effect, "k3s");
        }
    }

    fn start(&mut self) -> Result<()> {
        let secrets = self.secrets.as_ref().context("the secrets are not known")?;
        files::write(&self.config, &self.settings, secrets)?;
        let path = self.settings.config.display().to_string();
        self.server.start(&self.settings.program, &["server", "--config", &path])
    }

    /// What follows a start, tried until it was heard.
    async fn come_back(&mut self) {
        let Some(api) = self.api.as_ref().filter(|_| !self.is_back) else { return };
        match self.settle(api).await {
            Ok(()) => self.is_back = true,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "k3s has started and knows the node not yet")
            }
        }
    }

    /// Writes the report; gives whether it is a new one.
    fn report(&mut self, said: &str, ready: bool) -> bool {
        let certificates = self.validity.map(|validity| renew::words(&validity, wall_s()));
        let now = boot_ms();
        let (at, last) = self.reported.clone().unwrap_or_default();
        if last == said && now.saturating_sub(at) < REPORT_MS {
            return false;
        }
        let value = json!({ "state": said, "ready": ready, "certificates": certificates, "at_ms": now });
        let path = self.settings.run.join(REPORT);
        if let Err(error) = durable::write(&path, value.to_string().as_bytes(), 0o600) {
            tracing::warn!(error = format!("{error:#}"), "no report");
        }
        self.reported = Some((now, said.to_owned()));
        last != said
    }
}

/// Seconds since 1970 on the wall clock, which may be wrong: certificates are judged by it, by everybody.
fn wall_s() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME);
    now.map_or(0, |now| now.tv_sec())
}
