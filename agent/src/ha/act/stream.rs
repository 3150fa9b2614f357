//! One encrypted TCP stream between the two nodes.
//!
//! Noise pattern KK (revision 34, section 7.5): both keys are known beforehand, the handshake proves both, its ephemeral keys
//! go with the stream, nothing expires. Frames are a length of two bytes and a ciphertext. The first frame says
//! what the stream is for; a replayed handshake never gets that far. It does not know what flows.

use super::gate::Verdict;
use super::identity::{Identity, Number, PublicKey};
use super::relay::write_guarded;
use crate::ha::message::StandbyName;
use crate::ha::register::VoterId;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

const VERSION: u8 = 1;
const PATTERN: &str = "Noise_KK_25519_ChaChaPoly_BLAKE2s";
/// Plain bytes in one frame.
pub const CHUNK: usize = 16 << 10;
const FRAME_MAX: usize = CHUNK + 16;
/// How long a connection or a handshake may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The same while there is another address to try: a cable that is cut must not cost each stream all that time.
const GLANCE: Duration = Duration::from_millis(500);
/// A stream on which nothing comes is asked whether it is alive after so long, then again and again, so many times.
const KEEP_IDLE: Duration = Duration::from_secs(10);
const KEEP_AGAIN: Duration = Duration::from_secs(5);
const KEEP_TIMES: u32 = 4;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// The standby's replication under this name.
    Replicate(StandbyName),
    /// A full copy or a rewind.
    Copy,
    /// A client of the other node's port; the sender's epoch.
    Client(u64),
    /// Blocks of releases, from agent to agent.
    Blocks,
}

/// The first frame.
#[derive(Serialize, Deserialize)]
struct Opening {
    /// The sender's life: a stream is let in only from the life whose messages are listened to, so that a clone of the
    /// peer's disk gets none.
    session: u64,
    purpose: Purpose,
}

/// Who connects to whom.
pub struct Ends<'a> {
    /// The site.
    pub site: Number,
    /// Our key.
    pub me: &'a Identity,
    /// Our number.
    pub voter: VoterId,
    /// Our life.
    pub session: u64,
    /// Their number.
    pub peer: VoterId,
    /// Their key.
    pub key: PublicKey,
}

/// The receiving half.
pub struct Reader {
    /// A length and what follows it are taken with one call: frames are small and many.
    tcp: BufReader<OwnedReadHalf>,
    noise: Rc<RefCell<snow::TransportState>>,
    frame: Vec<u8>,
    plain: Vec<u8>,
}

/// The sending half.
pub struct Writer {
    tcp: OwnedWriteHalf,
    noise: Rc<RefCell<snow::TransportState>>,
    frame: Vec<u8>,
}

fn prologue(ends: &Ends<'_>, from: VoterId, to: VoterId) -> Vec<u8> {
    let numbers = [ends.site.0, from.0, to.0];
    [vec![VERSION], numbers.iter().flat_map(|number| number.to_le_bytes()).collect()].concat()
}

fn noise(ends: &Ends<'_>, prologue: &[u8], first: bool) -> Result<snow::HandshakeState> {
    let (secret, point) = (ends.me.secret(), ends.key.point());
    snow::Builder::new(PATTERN.parse().context("name the Noise pattern")?)
        .local_private_key(&secret)
        .and_then(|builder| builder.remote_public_key(&point))
        .and_then(|builder| builder.prologue(prologue))
        .and_then(|builder| if first { builder.build_initiator() } else { builder.build_responder() })
        .context("prepare a handshake")
}

/// Connects to the first address that answers, and says what for.
///
/// # Errors
/// If none answers as the peer.
pub async fn connect(
    ends: &Ends<'_>,
    addresses: &[SocketAddr],
    purpose: Purpose,
) -> Result<(Reader, Writer)> {
    let mut last = anyhow::anyhow!("the peer has no address");
    let glances = addresses.iter().filter(|_| addresses.len() > 1).map(|address| (address, GLANCE));
    for (address, patience) in glances.chain(addresses.iter().map(|address| (address, PATIENCE))) {
        match timeout(patience, connect_to(ends, *address, purpose)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error.context(format!("connect to the peer at {address}")),
            Err(_) => last = anyhow::anyhow!("connect to the peer at {address}: no answer in {patience:?}"),
        }
    }
    Err(last)
}

async fn connect_to(ends: &Ends<'_>, address: SocketAddr, purpose: Purpose) -> Result<(Reader, Writer)> {
    let mut tcp = TcpStream::connect(address).await?;
    prepare(&tcp)?;
    let prologue = prologue(ends, ends.voter, ends.peer);
    let mut noise = noise(ends, &prologue, true)?;
    let mut buffer = vec![0; 256];
    let length = noise.write_message(&[], &mut buffer).context("begin the handshake")?;
    tcp.write_all(&prologue).await?;
    send(&mut tcp, &buffer[..length]).await?;
    let answer = receive(&mut tcp, 256).await?;
    noise.read_message(&answer, &mut buffer).context("the other side has another key than the peer's")?;
    let (reader, mut writer) = halves(tcp, noise)?;
    let opening = Opening { session: ends.session, purpose };
    let opening = postcard::to_allocvec(&opening).context("encode what the stream is for")?;
    writer.write(&opening, || Verdict::Go, std::future::pending).await?;
    Ok((reader, writer))
}

/// Answers a handshake of the peer in this life of it; says what the peer wants.
///
/// # Errors
/// If the other side is not the peer.
pub async fn accept(ends: &Ends<'_>, life: u64, tcp: TcpStream) -> Result<(Purpose, Reader, Writer)> {
    timeout(PATIENCE, answer(ends, life, tcp)).await.context("a handshake took too long")?
}

async fn answer(ends: &Ends<'_>, life: u64, mut tcp: TcpStream) -> Result<(Purpose, Reader, Writer)> {
    prepare(&tcp)?;
    let expected = prologue(ends, ends.peer, ends.voter);
    let mut said = vec![0; expected.len()];
    tcp.read_exact(&mut said).await?;
    ensure!(said == expected, "a stream of another site, another node or another version of the protocol");
    let mut noise = noise(ends, &expected, false)?;
    let mut buffer = vec![0; 256];
    let first = receive(&mut tcp, 256).await?;
    noise.read_message(&first, &mut buffer).context("the other side has another key than the peer's")?;
    let length = noise.write_message(&[], &mut buffer).context("answer the handshake")?;
    send(&mut tcp, &buffer[..length]).await?;
    let (mut reader, writer) = halves(tcp, noise)?;
    let Some(purpose) = reader.read().await? else { bail!("a stream ended before it said what it is for") };
    let opening: Opening = postcard::from_bytes(purpose).context("a stream does not say what it is for")?;
    ensure!(opening.session == life, "a stream of another life of the peer than the one that is listened to");
    Ok((opening.purpose, reader, writer))
}

/// Chunks leave at once, and a peer whose power is gone is noticed by who waits for its word: nobody else ends that stream (tcp(7)).
fn prepare(tcp: &TcpStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    let alive = TcpKeepalive::new().with_time(KEEP_IDLE).with_interval(KEEP_AGAIN).with_retries(KEEP_TIMES);
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&alive)?;
    socket.set_tcp_user_timeout(Some(KEEP_IDLE + KEEP_TIMES * KEEP_AGAIN))?;
    Ok(())
}

async fn send(tcp: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    let length = u16::try_from(bytes.len()).context("a frame is too long")?;
    tcp.write_all(&length.to_le_bytes()).await?;
    Ok(tcp.write_all(bytes).await?)
}

async fn receive(tcp: &mut TcpStream, most: usize) -> Result<Vec<u8>> {
    let length = usize::from(tcp.read_u16_le().await?);
    ensure!(length <= most, "a frame of {length} bytes, at most {most} fit here");
    let mut bytes = vec![0; length];
    tcp.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn halves(tcp: TcpStream, noise: snow::HandshakeState) -> Result<(Reader, Writer)> {
    let noise = Rc::new(RefCell::new(noise.into_transport_mode().context("end the handshake")?));
    let (read, write) = tcp.into_split();
    let tcp = BufReader::with_capacity(2 + FRAME_MAX, read);
    let reader = Reader { tcp, noise: Rc::clone(&noise), frame: Vec::new(), plain: vec![0; CHUNK] };
    Ok((reader, Writer { tcp: write, noise, frame: vec![0; 2 + FRAME_MAX] }))
}

impl Reader {
    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// If the stream breaks or a frame was forged.
    pub async fn read(&mut self) -> Result<Option<&[u8]>> {
        let length = match self.tcp.read_u16_le().await {
            Ok(length) => usize::from(length),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        ensure!(length <= FRAME_MAX, "a frame of {length} bytes, at most {FRAME_MAX} are sent");
        self.frame.resize(length, 0);
        self.tcp.read_exact(&mut self.frame).await?;
        let length = self
            .noise
            .borrow_mut()
            .read_message(&self.frame, &mut self.plain)
            .context("a frame was forged")?;
        Ok(Some(&self.plain[..length]))
    }
}

impl Writer {
    /// Sends one chunk of at most [`CHUNK`] bytes while the verdict is `Go`; `changed` resolves when to ask again.
    ///
    /// # Errors
    /// If the stream breaks or the verdict is `Stop`.
    pub async fn write<F: Future<Output = ()>>(
        &mut self,
        chunk: &[u8],
        verdict: impl Fn() -> Verdict,
        changed: impl Fn() -> F,
    ) -> Result<()> {
        let length =
            self.noise.borrow_mut().write_message(chunk, &mut self.frame[2..]).context("encrypt a frame")?;
        let written = u16::try_from(length).context("a frame is too long")?;
        self.frame[..2].copy_from_slice(&written.to_le_bytes());
        write_guarded(&mut self.tcp, &self.frame[..2 + length], verdict, changed).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_whose_other_end_vanished_does_not_last() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = SockRef::from(&tcp);
        assert!(!socket.keepalive().unwrap());
        prepare(&tcp).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEP_IDLE);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
    }
}
