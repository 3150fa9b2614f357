//! Two nodes that were told one code, or one secret of a stick, become a pair by themselves.
//!
//! Three steps, each of which may be cut off and done again: [`prepare`] makes keys, and on the first node the database;
//! [`exchange`] lets the two meet (`wire`); [`finish`] waits until both are in sync. Between them units are started, which
//! is systemd's. `kept`: what stands on the disk meanwhile.

mod kept;
mod wanted;
mod wire;

pub use kept::{Made, Pending, Places, Refused, Stage};

use super::config::Config;
use super::control::{Ask, ask};
use super::identity::Number;
use super::setup;
use crate::clock::boot_ms;
use anyhow::{Context, Result, ensure};
use formats::pairing::{PORT, Role, code};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;
use wire::{Answer, Desk, End, Introduction};

/// So many wrong codes, and the code is dead: of 10^8 codes an attacker has tried ten.
const WRONG_MAX: u32 = 10;
/// Between two calls of the second node.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a call may take to be answered.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two questions to the pair's process.
const POLL: Duration = Duration::from_millis(500);
/// Between two attempts to have the pair formed, or to learn of the first node's confirmation.
const AGAIN_MS: u64 = 10_000;

/// Takes a request, and makes what this node needs before it meets the other.
///
/// # Errors
/// If something cannot be made; what makes no sense, or would replace what is there, ends as refused.
pub fn prepare(places: &Places) -> Result<()> {
    let mut pending = match places.load()? {
        // What is under way goes on, whatever else is asked for meanwhile.
        Some(pending) => {
            places.drop_request()?;
            pending
        }
        None => match begin(places)? {
            Some(pending) => pending,
            None => return Ok(()),
        },
    };
    let role = pending.request.role;
    if pending.stage == Stage::Making {
        // The site's number of the second is the first's; nothing that is made here depends on it.
        let site = pending.site.unwrap_or(Number(1));
        let config = config(places, &places.configuration(&pending.request, site, None)?)?;
        clear(&config)?;
        let party = match role {
            Role::First => setup::first(&config),
            Role::Second => setup::joining(&config),
        }?;
        pending.own = Some((party.voter, party.key));
        pending.stage = Stage::Waiting;
        places.save(&pending)?;
    }
    if let Some(site) = pending.site.filter(|_| !places.config().exists()) {
        places.configure(&places.configuration(&pending.request, site, None)?)?;
    }
    Ok(())
}

/// Takes a request; one that makes no sense, or would replace what is there, is refused.
fn begin(places: &Places) -> Result<Option<Pending>> {
    let request = match places.asked() {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(None),
        Err(error) => return places.refuse(&format!("{error:#}")).map(|()| None),
    };
    let pending = match request.check().and_then(|()| possible(places, request.role)) {
        Err(why) => return places.refuse(&why).map(|()| None),
        Ok(Some(Made { site, own: own @ Some(_), .. })) => {
            Pending { request, stage: Stage::Waiting, wrong: 0, site, own }
        }
        Ok(_) => {
            let site = (request.role == Role::First).then(Number::draw).transpose()?;
            Pending { request, stage: Stage::Making, wrong: 0, site, own: None }
        }
    };
    places.begin(&pending)?;
    Ok(Some(pending))
}

/// What an earlier request made that this one goes on with; or what this one would replace.
fn possible(places: &Places, role: Role) -> Result<Option<Made>, String> {
    let text = |error: anyhow::Error| format!("{error:#}");
    if places.load().map_err(text)?.is_some() {
        return Err("another pairing is under way here; `farhold-agent pair cancel` ends it".to_owned());
    }
    let paired = || Ok::<_, anyhow::Error>(Config::read(&places.config())?.peer.is_some());
    let alone = !places.config().exists() || !paired().map_err(text)?;
    match places.refused().map_err(text)?.and_then(|refused| refused.made).filter(|_| alone) {
        Some(made) if made.role == role => return Ok(Some(made)),
        // A second node that never met its first has nothing to lose.
        Some(Made { role: Role::Second, .. }) => return Ok(None),
        Some(Made { role: Role::First, .. }) | None => {}
    }
    let base: serde_json::Value = std::fs::read(&places.base)
        .ok()
        .and_then(|base| serde_json::from_slice(&base).ok())
        .unwrap_or_default();
    let path = |value: &serde_json::Value| value.as_str().map(std::path::PathBuf::from);
    let all = [Some(places.config()), path(&base["state"]), path(&base["postgres"]["data"])];
    match all.into_iter().flatten().find(|path| path.exists()) {
        Some(there) => Err(format!(
            "this node is one of a pair already, and stays it: {} exists. `ha replace` takes new hardware in place of its \
             peer",
            there.display()
        )),
        None => Ok(None),
    }
}

/// Removes what an attempt that was cut off left.
fn clear(config: &Config) -> Result<()> {
    for folder in [&config.state, &config.postgres.data] {
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
    }
    Ok(())
}

fn config(places: &Places, value: &serde_json::Value) -> Result<Config> {
    let text = value.to_string();
    Config::parse(&text).with_context(|| format!("understand {}", places.base.display()))
}

/// Meets the other node; returns when both have kept the other's introduction, or the pairing was refused.
///
/// # Errors
/// If something cannot be kept; it may be tried again.
pub fn exchange(places: &Places) -> Result<()> {
    let Some(pending) = places.load()?.filter(|pending| pending.stage == Stage::Waiting) else {
        return Ok(());
    };
    match pending.request.role {
        Role::First => wait_for_call(places),
        Role::Second => loop {
            if places.load()?.is_none() {
                return Ok(());
            }
            match call(places) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => tracing::info!(error = format!("{error:#}"), "the first node was not met"),
            }
            std::thread::sleep(PAUSE);
        },
    }
}

fn wait_for_call(places: &Places) -> Result<()> {
    let mut desk = At::open(places)?;
    let any = match desk.pending.request.address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let listener =
        TcpListener::bind((any, PORT)).with_context(|| format!("wait for the second node on port {PORT}"))?;
    tracing::info!(port = PORT, address = %desk.pending.request.address, "waits for the second node");
    // An operator may give it up meanwhile.
    listener.set_nonblocking(true).context("wait for the second node")?;
    while places.load()?.is_some() {
        let Ok((tcp, from)) = listener.accept() else {
            std::thread::sleep(POLL);
            continue;
        };
        tcp.set_nonblocking(false).context("hear the second node")?;
        let secret = desk.pending.request.secret.clone();
        match wire::hear(tcp, &secret, &mut desk) {
            Ok(End::Agreed) => return Ok(()),
            Ok(End::Wrong) => {
                if desk.another_code(&from.to_string())? {
                    return Ok(());
                }
            }
            Ok(End::No(why)) => tracing::warn!(%from, why, "a node that knows the code was sent away"),
            Ok(End::Kept) => {}
            Err(error) => {
                tracing::info!(%from, error = format!("{error:#}"), "a caller was not heard out");
            }
        }
    }
    Ok(())
}

/// One call of the second node; true when there is nothing more to do here.
fn call(places: &Places) -> Result<bool> {
    let mut desk = At::open(places)?;
    if desk.pending.stage != Stage::Waiting {
        return Ok(true);
    }
    let peer = desk.pending.peer().context("nobody said where the first node is")?;
    let peer = SocketAddr::new(peer, PORT);
    let tcp = TcpStream::connect_timeout(&peer, CONNECT)
        .with_context(|| format!("call the first node at {peer}"))?;
    let own = desk.pending.introduction(desk.listen)?;
    let secret = desk.pending.request.secret.clone();
    let end = wire::call(tcp, &secret, &own, &mut desk)?;
    match end {
        End::Agreed => desk.agreed().map(|()| true),
        // The pair will show whether the first has kept it too; until then the secret stays.
        End::Kept => Ok(true),
        End::No(why) => places.refuse(&format!("the first node at {peer} says no: {why}")).map(|()| true),
        End::Wrong if desk.pending.request.is_guessable() => {
            let why = format!(
                "the node at {peer} was told another code. Read the code at the first node (`farhold-agent pair status`), \
                 then `farhold-agent pair second` with it here"
            );
            places.refuse(&why).map(|()| true)
        }
        End::Wrong => {
            tracing::error!(%peer, "the first node was told another secret: were both installed from one stick, for one site?");
            Ok(false)
        }
    }
}

/// Waits until both nodes are in sync; the first has the pair formed.
///
/// # Errors
/// If what is under way cannot be read.
pub fn finish(places: &Places) -> Result<()> {
    let mut next_ms = 0;
    while let Some(pending) = places.load()? {
        if !places.config().exists() {
            return Ok(());
        }
        let config = Config::read(&places.config())?;
        let status = ask(&config.run, Ask::Status).unwrap_or_default();
        if status["mode"] == "paired" {
            tracing::info!("this node is one of a pair");
            return places.end();
        }
        if boot_ms() >= next_ms {
            next_ms = boot_ms() + AGAIN_MS;
            let done = match pending.request.role {
                Role::First if status["phase"] == "Alone(Apart)" => ask(&config.run, Ask::Apply).map(drop),
                Role::First => Ok(()),
                Role::Second => call(places).map(drop),
            };
            if let Err(error) = done {
                tracing::info!(error = format!("{error:#}"), "the pair is not formed yet");
            }
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// A conversation's memory: this node's.
struct At<'a> {
    places: &'a Places,
    pending: Pending,
    listen: SocketAddr,
}

impl<'a> At<'a> {
    fn open(places: &'a Places) -> Result<Self> {
        let pending = places.load()?.context("no pairing is under way")?;
        let site = pending.site.unwrap_or(Number(1));
        let config = config(places, &places.configuration(&pending.request, site, None)?)?;
        Ok(Self { places, pending, listen: config.listen })
    }

    /// Counts a wrong code; true if it was the last.
    fn another_code(&mut self, from: &str) -> Result<bool> {
        self.pending.wrong = self.pending.wrong.saturating_add(1);
        self.places.save(&self.pending)?;
        tracing::warn!(%from, times = self.pending.wrong, "a caller was told another code");
        let last = self.pending.request.is_guessable() && self.pending.wrong >= WRONG_MAX;
        if last {
            let why = format!(
                "{WRONG_MAX} callers had another code, the last from {from}: somebody may be guessing, and this code is void. \
                 `farhold-agent pair first` draws a new one"
            );
            self.places.refuse(&why)?;
        }
        Ok(last)
    }

    fn agreed(&mut self) -> Result<()> {
        self.pending.stage = Stage::Agreed;
        self.pending.request.secret.clear();
        self.places.save(&self.pending)
    }

    /// Number and key of the peer that the configuration names already.
    fn named(&self) -> Result<Option<(String, String)>> {
        if !self.places.config().exists() {
            return Ok(None);
        }
        let config = Config::read(&self.places.config())?;
        Ok(config.peer.map(|peer| (peer.voter.to_string(), peer.key.to_string())))
    }
}

impl Desk for At<'_> {
    fn proves(&mut self) -> Result<()> {
        self.pending.wrong = self.pending.wrong.saturating_add(1);
        let first_time = !self.places.config().exists();
        if first_time && self.pending.request.is_guessable() && self.pending.wrong > WRONG_MAX {
            self.places.refuse(&format!(
                "{WRONG_MAX} calls ended before the first node answered: somebody may be between the two, and this code is \
                 void. `farhold-agent pair first` and `pair second` make a new one"
            ))?;
            anyhow::bail!("the code is void");
        }
        self.places.save(&self.pending)
    }

    fn answer(&mut self, other: &Introduction) -> Result<Answer> {
        ensure!(self.places.load()?.is_some(), "the pairing was given up");
        let own = self.pending.introduction(self.listen)?;
        if other.voter == own.voter || other.key == own.key {
            return Ok(Answer::No("both nodes are copies of one disk; install the second anew".into()));
        }
        let same = (other.voter.to_string(), other.key.to_string());
        if self.named()?.is_some_and(|named| named != same) {
            return Ok(Answer::No("it met another second node before".into()));
        }
        Ok(Answer::Welcome(Box::new(own)))
    }

    fn keep(&mut self, other: &Introduction) -> Result<()> {
        let site = self.pending.site.or(other.site).context("the first node did not say its site")?;
        let value = self.places.configuration(&self.pending.request, site, Some(other))?;
        config(self.places, &value)?;
        self.places.configure(&value)?;
        match self.pending.request.role {
            Role::First => self.agreed(),
            Role::Second => Ok(()),
        }
    }
}

/// A new code.
///
/// # Errors
/// If the kernel has no random numbers.
pub fn draw_code() -> Result<String> {
    Ok(code(Number::draw()?.0.to_le_bytes()))
}

/// Leaves a request where the pairing takes it from.
///
/// # Errors
/// If it makes no sense, or this node cannot be paired.
pub fn request(places: &Places, at: &Path, request: &formats::pairing::Request) -> Result<()> {
    if let Err(why) = request.check().and_then(|()| possible(places, request.role)) {
        anyhow::bail!("{why}");
    }
    ensure!(
        places.base.exists(),
        "{} is not there: this image has no layer for a pair (postgresql)",
        places.base.display()
    );
    let text = serde_json::to_vec_pretty(request).context("encode a request")?;
    crate::durable::write(at, &text, 0o600)
}

#[cfg(test)]
mod tests;
