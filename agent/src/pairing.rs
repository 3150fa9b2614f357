//! `farhold-agent pair …`: arguments, and what is printed. It does not know how two nodes meet; that is `ha::act::enrol`.

use crate::pair::print;
use agent::ha::act::enrol::{self, Pending, Places, Stage};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use formats::device::{DEVICE_PROFILE, OnPeerLoss};
use formats::pairing::{self, PORT, Request, Role, Witness};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the image says of every node of a pair.
const BASE: &str = "/usr/lib/farhold/pair.json";

/// Arguments of `pair`.
#[derive(Args)]
pub struct Pair {
    /// Folder of the pair's configuration
    #[arg(long, global = true, hide = true, default_value = "/var/lib/farhold-ha")]
    folder: PathBuf,
    /// The configuration but for who is who
    #[arg(long, global = true, hide = true, default_value = BASE)]
    base: PathBuf,
    /// The image's profile
    #[arg(long, global = true, hide = true, default_value = DEVICE_PROFILE)]
    profile: PathBuf,
    /// Where requests are left
    #[arg(long, global = true, hide = true, default_value = pairing::REQUEST)]
    request: PathBuf,
    #[command(subcommand)]
    command: PairCommand,
}

#[derive(Subcommand)]
enum PairCommand {
    /// This node has the data: make its database, print a code, and wait for the second node
    First {
        /// This node's fixed address in the network of the two
        #[arg(long)]
        address: IpAddr,
        /// The third voter, as `witness add` printed it and where it listens
        #[arg(long, value_name = "NUMBER:KEY@ADDRESS:PORT", value_parser = witness)]
        witness: Option<Witness>,
        /// A code that was agreed on, instead of a new one
        #[arg(long)]
        code: Option<String>,
    },
    /// Become the second node: call the first, and take its data
    Second {
        /// This node's fixed address in the network of the two
        #[arg(long)]
        address: IpAddr,
        /// The first node's address
        #[arg(long)]
        peer: IpAddr,
        /// The code that the first node printed
        code: String,
    },
    /// Say how far it is, or why it was refused
    Status {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Give it up: the code is void
    Cancel,
    /// Make keys, and the first node's database; the unit does it
    #[command(hide = true)]
    Prepare,
    /// Meet the other node; the unit does it
    #[command(hide = true)]
    Exchange,
    /// Wait until both are in sync; the unit does it
    #[command(hide = true)]
    Finish,
}

fn witness(text: &str) -> Result<Witness> {
    let parts = text.split_once('@').and_then(|(who, at)| Some((who.split_once(':')?, at)));
    let ((voter, key), at) = parts.context("must be NUMBER:KEY@ADDRESS:PORT")?;
    let address: SocketAddr = at.parse().with_context(|| format!("{at}: must be as 192.0.2.9:7601"))?;
    Ok(Witness { voter: voter.to_owned(), key: key.to_owned(), addresses: vec![address] })
}

/// What the profile wants of the third voter and the request does not name.
fn unmet(places: &Places, witness: Option<&Witness>) -> Result<String> {
    let wanted = places.wanted()?.filter(|wanted| wanted.on_peer_loss == OnPeerLoss::Witness);
    Ok(match (wanted.and_then(|wanted| wanted.witness), witness) {
        (Some(at), None) => format!(
            "The profile wants a witness at {at}, but only `--witness` names its key: until the pair has one (docs/pair.md), a node \
             that loses its peer writes nothing.\n"
        ),
        (Some(_) | None, _) => String::new(),
    })
}

impl Pair {
    /// Does what was asked.
    pub fn run(self) -> Result<ExitCode> {
        let places = Places { folder: self.folder, base: self.base, profile: self.profile };
        let ask = |request: Request| enrol::request(&places, &self.request, &request);
        match self.command {
            PairCommand::First { address, witness, code } => {
                let secret = code.map_or_else(enrol::draw_code, Ok)?;
                let missing = unmet(&places, witness.as_ref())?;
                ask(Request { role: Role::First, address, peer: None, secret: secret.clone(), witness })?;
                print(&format!(
                    "code {secret}\nAt the second node: farhold-agent pair second --address ITS-ADDRESS --peer {address} {secret}\n\
                     How far it is: farhold-agent pair status\n{missing}"
                ))
            }
            PairCommand::Second { address, peer, code } => {
                let peer = Some(peer);
                ask(Request { role: Role::Second, address, peer, secret: code, witness: None })?;
                print("The first node is called. How far it is: farhold-agent pair status\n")
            }
            PairCommand::Status { json } => {
                let (value, text) = status(&places, true)?;
                print(&if json { format!("{value:#}\n") } else { format!("{text}\n") })
            }
            PairCommand::Cancel => {
                if !places.folder.exists() {
                    return print("No pairing is under way here, and none was.\n");
                }
                if self.request.exists() {
                    std::fs::remove_file(&self.request)
                        .with_context(|| format!("remove {}", self.request.display()))?;
                }
                if places.load()?.is_some() {
                    places.refuse("an operator gave it up; `pair first` or `pair second` begins anew")?;
                }
                places.end()?;
                print("No code is valid here any more. What was made stays.\n")
            }
            PairCommand::Prepare => enrol::prepare(&places).map(|()| ExitCode::SUCCESS),
            PairCommand::Exchange => enrol::exchange(&places).map(|()| ExitCode::SUCCESS),
            PairCommand::Finish => enrol::finish(&places).map(|()| ExitCode::SUCCESS),
        }
    }
}

/// How far it is, for the device's status, which goes places where no code may go; nothing if nothing is under way.
pub fn look() -> Option<String> {
    let places =
        Places { folder: "/var/lib/farhold-ha".into(), base: BASE.into(), profile: DEVICE_PROFILE.into() };
    match (places.refused(), places.load()) {
        (Err(error), _) | (_, Err(error)) => Some(format!("{error:#}")),
        (Ok(None), Ok(None)) => None,
        (Ok(Some(_)), Ok(_)) | (Ok(None), Ok(Some(_))) => status(&places, false).ok().map(|(_, text)| text),
    }
}

fn status(places: &Places, code: bool) -> Result<(Value, String)> {
    if let Some(refused) = places.refused()? {
        return Ok((json!({ "stage": "refused", "why": refused.why }), format!("REFUSED: {}", refused.why)));
    }
    let Some(pending) = places.load()? else {
        let paired = places.config().exists();
        let text =
            if paired { "no pairing is under way; see `ha status`" } else { "this node is no one's pair" };
        return Ok((json!({ "stage": if paired { "done" } else { "none" } }), text.to_owned()));
    };
    let value = json!({
        "stage": pending.stage, "role": pending.request.role, "address": pending.request.address,
        "peer": pending.request.peer, "wrong_codes": pending.wrong,
    });
    Ok((value, words(&pending, code)?))
}

fn words(pending: &Pending, code: bool) -> Result<String> {
    let request = &pending.request;
    Ok(match (pending.stage, request.role, request.peer) {
        (Stage::Making, _, _) => "keys and database are being made".to_owned(),
        (Stage::Agreed, _, _) => "both nodes know each other; the second takes the data".to_owned(),
        (Stage::Waiting, Role::First, _) => {
            let code = if code && request.is_guessable() {
                format!("code {}, ", request.secret)
            } else {
                String::new()
            };
            let wrong = match pending.wrong {
                0 => String::new(),
                n => format!("; callers with another code: {n}"),
            };
            format!("waits for the second node at {} port {PORT}, {code}role first{wrong}", request.address)
        }
        (Stage::Waiting, Role::Second, Some(peer)) => format!("calls the first node at {peer} port {PORT}"),
        (Stage::Waiting, Role::Second, None) => bail!("nobody said where the first node is"),
    })
}
