//! One datagram between parties of a site: encrypted, authenticated, and fresh.
//!
//! Each is a Noise message of the one-way pattern K (Noise Protocol Framework, revision 34, section 7.4): both keys are
//! known beforehand, nothing is kept between datagrams, so a witness of thousands of sites needs no sessions. What a
//! replay could do is bounded by the envelope: a node listens only to a datagram that repeats a stamp which it sent
//! itself a moment ago, and only once. The decisions tolerate repetition anyway; freshness is for liveness.
//! It does not know sockets, nor what a message means.

use super::identity::{Identity, Number, Point};
use crate::ha::message::Message;
use crate::ha::register::VoterId;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The first byte: version of the protocol. A later one will be accepted beside this one.
const VERSION: u8 = 1;
/// Version, site, sender, addressee.
const HEADER: usize = 25;
/// Longest datagram, bytes: passes any IPv6 path unfragmented.
pub const DATAGRAM_MAX: usize = 1200;
/// A datagram that answers a stamp older than this is stale, microseconds: two slow ways and a heartbeat's pause.
const FRESH_US: u64 = 2_000_000;
const PATTERN: &str = "Noise_K_25519_ChaChaPoly_BLAKE2s";

/// A moment of a party's life: which life, and microseconds that only grow within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Drawn at random at each start.
    pub session: u64,
    /// Grows with every datagram.
    pub at_us: u64,
}

/// A message with what shows that it is new.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender's moment.
    pub stamp: Stamp,
    /// The last moment of the addressee that the sender has seen.
    pub echo: Stamp,
    /// What is said.
    pub message: Message,
}

/// Who speaks to whom, readable by all, authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The site.
    pub site: Number,
    /// The sender.
    pub from: VoterId,
    /// The addressee.
    pub to: VoterId,
}

impl Header {
    fn encode(self) -> [u8; HEADER] {
        let mut bytes = [VERSION; HEADER];
        for (at, number) in [self.site.0, self.from.0, self.to.0].into_iter().enumerate() {
            bytes[1 + 8 * at..9 + 8 * at].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads the header of a datagram; it is not authenticated yet.
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let (header, _) = datagram.split_first_chunk::<HEADER>()?;
        let number = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        (header[0] == VERSION).then_some(Self {
            site: Number(number(1)?),
            from: VoterId(number(9)?),
            to: VoterId(number(17)?),
        })
    }
}

/// Encrypts for one addressee.
///
/// # Errors
/// If the content does not fit a datagram.
pub fn seal(me: &Identity, to: &Point, header: Header, envelope: &Envelope) -> Result<Vec<u8>> {
    let (secret, clear) = (me.secret(), header.encode());
    let builder = snow::Builder::new(PATTERN.parse().context("name the Noise pattern")?);
    let mut noise = builder
        .local_private_key(&secret)
        .and_then(|builder| builder.remote_public_key(to))
        .and_then(|builder| builder.prologue(&clear))
        .and_then(snow::Builder::build_initiator)
        .context("prepare a datagram")?;
    let content = postcard::to_allocvec(envelope).context("encode a message")?;
    let mut datagram = vec![0; DATAGRAM_MAX];
    datagram[..HEADER].copy_from_slice(&clear);
    let length = noise.write_message(&content, &mut datagram[HEADER..]).context("encrypt a message")?;
    datagram.truncate(HEADER + length);
    Ok(datagram)
}

/// Decrypts a datagram of this sender.
///
/// # Errors
/// If it is not from the sender, not for us, or malformed.
pub fn open(me: &Identity, from: &Point, datagram: &[u8]) -> Result<Envelope> {
    ensure!(datagram.len() <= DATAGRAM_MAX, "a datagram has {} bytes", datagram.len());
    let (clear, sealed) = datagram.split_first_chunk::<HEADER>().context("a datagram is too short")?;
    let header = Header::decode(datagram).context("a datagram is of another protocol version")?;
    let secret = me.secret();
    let builder = snow::Builder::new(PATTERN.parse().context("name the Noise pattern")?);
    let mut noise = builder
        .local_private_key(&secret)
        .and_then(|builder| builder.remote_public_key(from))
        .and_then(|builder| builder.prologue(clear))
        .and_then(snow::Builder::build_responder)
        .context("prepare for a datagram")?;
    let mut content = [0; DATAGRAM_MAX];
    let length =
        noise.read_message(sealed, &mut content).context("decrypt a datagram: it is not the sender's")?;
    let envelope: Envelope = postcard::from_bytes(&content[..length]).context("a message is malformed")?;
    let message = &envelope.message;
    ensure!((message.from, message.to) == (header.from, header.to), "a message contradicts its header");
    Ok(envelope)
}

/// What a node knows of the moments of one other party.
#[derive(Clone, Copy, Debug, Default)]
pub struct Freshness {
    /// Of the last datagram that was fresh.
    accepted: Stamp,
    accepted_at_us: u64,
    /// Of the last datagram that was authentic.
    seen: Stamp,
}

impl Freshness {
    /// What to repeat to the party.
    pub fn echo(&self, now_us: u64) -> Stamp {
        let lately =
            now_us.saturating_sub(self.accepted_at_us) <= FRESH_US && self.accepted != Stamp::default();
        if lately { self.accepted } else { self.seen }
    }

    /// Whether to listen to an authentic datagram; `session` is our own life.
    pub fn accept(&mut self, envelope: &Envelope, session: u64, now_us: u64) -> bool {
        let Stamp { session: life, at_us } = envelope.stamp;
        let repeated = life == self.accepted.session && at_us <= self.accepted.at_us;
        if repeated {
            return false;
        }
        self.seen = envelope.stamp;
        let echo = envelope.echo;
        let fresh = echo.session == session && now_us.saturating_sub(echo.at_us) <= FRESH_US;
        if fresh {
            (self.accepted, self.accepted_at_us) = (envelope.stamp, now_us);
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::message::Body;
    use crate::ha::register::{Platform, Register};

    fn keys() -> (tempfile::TempDir, Identity, tempfile::TempDir, Identity) {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let keys = (Identity::create(a.path()).unwrap(), Identity::create(b.path()).unwrap());
        (a, keys.0, b, keys.1)
    }

    fn envelope(stamp: Stamp, echo: Stamp) -> Envelope {
        let platform = Platform { postgres_major: 17, machine: 62 };
        let register = Register::first(VoterId(1), 77, platform);
        let message = Message { from: VoterId(1), to: VoterId(2), register, body: Body::Seen };
        Envelope { stamp, echo, message }
    }

    #[test]
    fn only_the_addressee_reads_it_and_only_the_sender_wrote_it() {
        let (_a, alice, _b, bob) = keys();
        let (_c, carol, _d, _) = keys();
        let header = Header { site: Number(9), from: VoterId(1), to: VoterId(2) };
        let said = envelope(Stamp { session: 5, at_us: 6 }, Stamp::default());
        let datagram = seal(&alice, &bob.public().point(), header, &said).unwrap();
        assert!(datagram.len() < 200, "{} bytes", datagram.len());
        assert_eq!(Header::decode(&datagram), Some(header));
        assert_eq!(open(&bob, &alice.public().point(), &datagram).unwrap(), said);
        assert!(open(&carol, &alice.public().point(), &datagram).is_err());
        assert!(open(&bob, &carol.public().point(), &datagram).is_err());
        for at in 0..datagram.len() {
            let mut forged = datagram.clone();
            forged[at] ^= 1;
            assert!(open(&bob, &alice.public().point(), &forged).is_err(), "byte {at}");
        }
        for length in 0..datagram.len() {
            assert!(open(&bob, &alice.public().point(), &datagram[..length]).is_err());
        }
    }

    #[test]
    fn a_header_that_differs_from_the_message_is_refused() {
        let (_a, alice, _b, bob) = keys();
        let header = Header { site: Number(9), from: VoterId(3), to: VoterId(2) };
        let datagram =
            seal(&alice, &bob.public().point(), header, &envelope(Stamp::default(), Stamp::default()))
                .unwrap();
        let error = open(&bob, &alice.public().point(), &datagram).unwrap_err().to_string();
        assert!(error.contains("contradicts"), "{error}");
    }

    #[test]
    fn replays_and_old_sessions_are_not_listened_to() {
        let (mine, theirs) = (11, 22);
        let mut freshness = Freshness::default();
        let ours = |at_us| Stamp { session: mine, at_us };
        let said = |at_us, echo| envelope(Stamp { session: theirs, at_us }, echo);
        // Before it has heard us, it is only remembered.
        assert!(!freshness.accept(&said(1, Stamp::default()), mine, 1_000));
        assert_eq!(freshness.echo(1_000), Stamp { session: theirs, at_us: 1 });
        let good = said(2, ours(1_500));
        assert!(freshness.accept(&good, mine, 2_000));
        assert!(!freshness.accept(&good, mine, 2_001), "a repetition");
        assert!(!freshness.accept(&said(3, ours(1_500)), mine, 3_000_000), "an answer to something long ago");
        assert!(
            !freshness.accept(&said(4, Stamp { session: 7, at_us: 2_999_999 }), mine, 3_000_000),
            "an earlier life"
        );
        assert!(freshness.accept(&said(5, ours(2_999_999)), mine, 3_000_000));
        // A replay of another life does not change what is repeated to the party.
        let old = envelope(Stamp { session: 1, at_us: 99 }, Stamp::default());
        assert!(!freshness.accept(&old, mine, 3_000_001));
        assert_eq!(freshness.echo(3_000_002), Stamp { session: theirs, at_us: 5 });
    }
}
