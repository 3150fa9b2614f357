//! The local datastore port: clients reach the confirmed primary of the current epoch, here or on the other node.
//!
//! Each first packet is looked at, cancel requests are swallowed, a waiting backend is never ended, and the decision is asked
//! before each chunk. It does not know why the port is open.

use super::filter::Filter;
use super::gate::Verdict;
use super::listen;
use super::relay::{Sink, Source, both, pump};
use super::site::Site;
use super::startup::{First, STARTUP_MAX, error, parse};
use super::stream::{self, Purpose};
use crate::clock::boot_ms;
use crate::ha::port::{Port, forward};
use anyhow::{Context, Result, bail, ensure};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Clients at once; as many more are told that there is no place.
const CLIENTS_MAX: usize = 150;
/// How long a client may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same if it will be refused.
const PATIENCE_REFUSED: Duration = Duration::from_secs(1);

/// What comes from a client, and what goes to it.
type Client = (Box<dyn AsyncRead + Unpin>, Box<dyn AsyncWrite + Unpin>);

fn remote(client: TcpStream) -> Result<Client> {
    client.set_nodelay(true)?;
    let (read, write) = client.into_split();
    Ok((Box::new(read), Box::new(write)))
}

fn local(client: UnixStream) -> Client {
    let (read, write) = client.into_split();
    (Box::new(read), Box::new(write))
}

/// Takes clients of both sockets until the agent ends.
pub async fn serve(site: Rc<Site>, network: TcpListener, here: UnixListener) {
    let places = Rc::new([Semaphore::new(CLIENTS_MAX), Semaphore::new(CLIENTS_MAX)]);
    loop {
        let client = tokio::select! {
            (client, _) = listen::remote(&network) => remote(client),
            client = listen::local(&here) => Ok(local(client)),
        };
        let (site, places) = (Rc::clone(&site), Rc::clone(&places));
        tokio::task::spawn_local(async move {
            if let Err(error) = taken(&site, &places, client).await {
                tracing::debug!(error = format!("{error:#}"), "a client of the port ended");
            }
        });
    }
}

async fn taken(site: &Rc<Site>, [inside, refused]: &[Semaphore; 2], client: Result<Client>) -> Result<()> {
    let mut client = client?;
    if let Ok(_place) = inside.try_acquire() {
        return client_session(site, client).await;
    }
    let Ok(_place) = refused.try_acquire() else { bail!("too many clients to tell them so") };
    // At a socket, whoever is refused before it has spoken finds the socket closed and no reason.
    timeout(PATIENCE_REFUSED, first_packet(&mut client)).await.context("a client says nothing")??;
    refuse(&mut client, "53300", "the datastore port has too many clients").await
}

async fn refuse(client: &mut Client, code: &str, message: &str) -> Result<()> {
    client.1.write_all(&error(code, message)).await.context("a client did not wait for the reason")
}

/// The first packet that begins a session, with its length; encryption is declined, cancel requests are swallowed.
async fn first_packet((read, write): &mut Client) -> Result<Option<(Vec<u8>, super::startup::Session)>> {
    for _ in 0..3 {
        let length = usize::try_from(read.read_u32().await?).context("a length")?;
        ensure!((8..=STARTUP_MAX).contains(&length), "a first packet of {length} bytes");
        let mut packet = vec![0; length];
        packet[..4].copy_from_slice(&startup_length(length));
        read.read_exact(&mut packet[4..]).await?;
        match parse(&packet[4..]) {
            Ok(First::Encryption) => write.write_all(b"N").await?,
            Ok(First::Cancel) => return Ok(None),
            Ok(First::Session(session)) => return Ok(Some((packet, session))),
            Err(problem) => bail!(problem),
        }
    }
    bail!("a client asks for encryption again and again")
}

fn startup_length(length: usize) -> [u8; 4] {
    [24, 16, 8, 0].map(|shift| (length >> shift & 0xff) as u8)
}

async fn client_session(site: &Rc<Site>, mut client: Client) -> Result<()> {
    let first = timeout(PATIENCE, first_packet(&mut client)).await.context("a client says nothing")??;
    let Some((packet, session)) = first else { return Ok(()) };
    if let Err(problem) = session.check_client(&site.config.postgres.database) {
        return refuse(&mut client, "28000", problem).await;
    }
    let pass = site.port_gate.pass();
    let leads = site.forward();
    let verdict = || if site.forward() == leads { Verdict::Go } else { Verdict::Stop };
    let (source, sink) = match leads {
        Port::Closed => {
            return refuse(&mut client, "57P03", "the database serves nothing at the moment; try again")
                .await;
        }
        Port::Local => {
            let mut server =
                UnixStream::connect(site.server_socket()).await.context("connect to Postgres")?;
            server.write_all(&packet).await?;
            let (read, write) = server.into_split();
            (Source::Plain(Box::new(read)), Sink::Plain(Box::new(write)))
        }
        Port::Peer => {
            let epoch = site.epoch().context("no epoch")?;
            let (ends, addresses) = site.peer_ends().context("no peer")?;
            let (read, mut write) = stream::connect(&ends, &addresses, Purpose::Client(epoch)).await?;
            write.write(&packet, verdict, || pass.changed()).await?;
            (Source::Sealed(read), Sink::Sealed(write))
        }
    };
    let forth = pump(Source::Plain(client.0), sink, &pass, &verdict, Some(Filter::default()));
    let back = pump(source, Sink::Plain(client.1), &pass, &verdict, None);
    both(forth, back, &pass).await
}

impl Site {
    /// Where the port may forward at this moment.
    pub fn forward(&self) -> Port {
        self.node.borrow().as_ref().map_or(Port::Closed, |node| forward(node, boot_ms()))
    }
}
