//! What two nodes say to each other once, before they know each other's keys.
//!
//! SPAKE2 (RFC 9382) makes a strong key of what both were told: whoever listens, or stands between, learns nothing to try
//! codes on, and has one guess a conversation. Under that key Noise `NNpsk0` (revision 34, section 9) proves it and carries
//! the introductions. Then each side says that it has kept the other's, so that both are done or neither is. It does not
//! know where anything is kept.

use super::super::identity::{Number, PublicKey};
use crate::clock::boot_ms;
use anyhow::{Context, Result, bail, ensure};
use formats::pairing::{Role, Witness, plain};
use serde::{Deserialize, Serialize};
use spake2::{Ed25519Group, Identity, Password, Spake2};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const HELLO: [u8; 8] = *b"fh-pair\x01";
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// A SPAKE2 element with its side.
const ELEMENT: usize = 33;
/// Longest frame, bytes.
const FRAME_MAX: usize = 4096;
/// Longest conversation: someone who says nothing keeps nobody else waiting for longer.
const PATIENCE_MS: u64 = 20_000;
/// The first byte of the first node's answer: the code was another, or an encrypted answer follows.
const WRONG: u8 = 1;
const RIGHT: u8 = 0;
const KEPT: &[u8] = b"kept";

/// What the other must know of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its number as a voter.
    pub voter: Number,
    /// Its key.
    pub key: PublicKey,
    /// Where it listens as a node of the pair.
    pub address: SocketAddr,
    /// The site's number; the first node drew it.
    #[serde(default)]
    pub site: Option<Number>,
    /// The third voter; the first node was told.
    #[serde(default)]
    pub witness: Option<Witness>,
}

/// What the first node answers to one that knows the code.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Who it is.
    Welcome(Box<Introduction>),
    /// Why it will not be a pair with that one.
    No(String),
}

/// How a conversation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Both have kept the other's introduction, and know it of each other.
    Agreed,
    /// This side has kept it; whether the other has is not known.
    Kept,
    /// The other side was told another code.
    Wrong,
    /// The first node knows the code, and does not want this second one.
    No(String),
}

/// The side that is asked what to answer, and keeps what it hears. Each is durable when it returns.
pub trait Desk {
    /// The second node is about to show that it knows the code: one guess for whoever is at the other end.
    fn proves(&mut self) -> Result<()>;
    /// The answer of the first node.
    fn answer(&mut self, other: &Introduction) -> Result<Answer>;
    /// Keeps the other's introduction.
    fn keep(&mut self, other: &Introduction) -> Result<()>;
}

struct Line {
    tcp: TcpStream,
    until_ms: u64,
}

impl Line {
    fn new(tcp: TcpStream) -> Result<Self> {
        tcp.set_write_timeout(Some(Duration::from_millis(PATIENCE_MS))).context("set a time limit")?;
        Ok(Self { tcp, until_ms: boot_ms() + PATIENCE_MS })
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let left = self.until_ms.saturating_sub(boot_ms());
            ensure!(left > 0, "the other side took too long");
            self.tcp.set_read_timeout(Some(Duration::from_millis(left))).context("set a time limit")?;
            match self.tcp.read(&mut bytes[done..]).context("hear the other side")? {
                0 => bail!("the other side hung up"),
                n => done += n,
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut length = [0; 2];
        self.read(&mut length)?;
        let length = usize::from(u16::from_le_bytes(length));
        ensure!(length <= FRAME_MAX, "the other side sent {length} bytes, at most {FRAME_MAX} are read");
        let mut bytes = vec![0; length];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u16::try_from(bytes.len()).context("a frame is too long")?;
        let frame = [&length.to_le_bytes(), bytes].concat();
        self.tcp.write_all(&frame).context("answer the other side")
    }
}

/// Begins SPAKE2; the names bind the roles, so that nobody's own words come back to it.
fn begin(role: Role, secret: &str) -> (Spake2<Ed25519Group>, Vec<u8>) {
    let password = Password::new(plain(secret));
    let [first, second] =
        [Role::First, Role::Second].map(|role| Identity::new(format!("farhold {}", role.name()).as_bytes()));
    match role {
        Role::First => Spake2::start_a(&password, &first, &second),
        Role::Second => Spake2::start_b(&password, &first, &second),
    }
}

fn noise(spake: Spake2<Ed25519Group>, theirs: &[u8], role: Role) -> Result<snow::HandshakeState> {
    let key = spake.finish(theirs).ok().context("the other side's first word is none of this protocol")?;
    let key: [u8; 32] = key.try_into().ok().context("the key has another length")?;
    let builder = snow::Builder::new(PATTERN.parse().context("name the Noise pattern")?)
        .prologue(&HELLO)
        .and_then(|builder| builder.psk(0, &key));
    builder
        .and_then(|builder| match role {
            Role::First => builder.build_responder(),
            Role::Second => builder.build_initiator(),
        })
        .context("prepare the handshake")
}

fn sealed(noise: &mut snow::HandshakeState, value: &impl Serialize) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(value).context("encode an introduction")?;
    let mut frame = vec![0; FRAME_MAX];
    let length = noise.write_message(&text, &mut frame).context("encrypt an introduction")?;
    frame.truncate(length);
    Ok(frame)
}

/// As the first node: hears one caller out.
///
/// # Errors
/// If the conversation breaks, or something cannot be kept.
pub fn hear(tcp: TcpStream, secret: &str, desk: &mut dyn Desk) -> Result<End> {
    let mut line = Line::new(tcp)?;
    let mut hello = [0; HELLO.len() + ELEMENT];
    line.read(&mut hello)?;
    ensure!(hello.starts_with(&HELLO), "the caller speaks another protocol");
    let (spake, mine) = begin(Role::First, secret);
    line.tcp.write_all(&mine).context("answer the other side")?;
    let mut noise = noise(spake, &hello[HELLO.len()..], Role::First)?;
    let frame = line.receive()?;
    let mut plain = vec![0; FRAME_MAX];
    let Ok(length) = noise.read_message(&frame, &mut plain) else {
        line.send(&[WRONG])?;
        return Ok(End::Wrong);
    };
    let other: Introduction =
        serde_json::from_slice(&plain[..length]).context("understand the other's introduction")?;
    let answer = desk.answer(&other)?;
    let mut frame = vec![RIGHT];
    frame.extend(sealed(&mut noise, &answer)?);
    line.send(&frame)?;
    if let Answer::No(why) = answer {
        return Ok(End::No(why));
    }
    let mut transport = noise.into_transport_mode().context("end the handshake")?;
    let frame = line.receive()?;
    let length = transport.read_message(&frame, &mut plain).context("the confirmation was forged")?;
    ensure!(plain[..length] == *KEPT, "the other side confirmed something else");
    desk.keep(&other)?;
    let mut frame = vec![0; 64];
    let length = transport.write_message(KEPT, &mut frame).context("encrypt the confirmation")?;
    line.send(&frame[..length])?;
    Ok(End::Agreed)
}

/// As the second node: introduces itself to the first.
///
/// # Errors
/// If the conversation breaks, or something cannot be kept.
pub fn call(tcp: TcpStream, secret: &str, own: &Introduction, desk: &mut dyn Desk) -> Result<End> {
    let mut line = Line::new(tcp)?;
    let (spake, mine) = begin(Role::Second, secret);
    line.tcp.write_all(&[&HELLO, mine.as_slice()].concat()).context("call the other side")?;
    let mut theirs = [0; ELEMENT];
    line.read(&mut theirs)?;
    let mut noise = noise(spake, &theirs, Role::Second)?;
    desk.proves()?;
    line.send(&sealed(&mut noise, own)?)?;
    let frame = line.receive()?;
    let mut plain = vec![0; FRAME_MAX];
    let Some((&RIGHT, frame)) = frame.split_first() else { return Ok(End::Wrong) };
    let Ok(length) = noise.read_message(frame, &mut plain) else { return Ok(End::Wrong) };
    let answer: Answer =
        serde_json::from_slice(&plain[..length]).context("understand the other's introduction")?;
    let other = match answer {
        Answer::Welcome(other) => *other,
        Answer::No(why) => return Ok(End::No(why)),
    };
    desk.keep(&other)?;
    let mut transport = noise.into_transport_mode().context("end the handshake")?;
    let mut frame = vec![0; 64];
    let length = transport.write_message(KEPT, &mut frame).context("encrypt the confirmation")?;
    let confirmed = line.send(&frame[..length]).and_then(|()| line.receive());
    let confirmed = confirmed.ok().and_then(|frame| transport.read_message(&frame, &mut plain).ok());
    Ok(if confirmed.is_some_and(|length| plain[..length] == *KEPT) { End::Agreed } else { End::Kept })
}
