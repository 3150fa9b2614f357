//! The local datastore port: clients reach the confirmed primary of the current epoch, here or on the other node.
//!
//! Each first packet is looked at, cancel requests are swallowed, a waiting backend is never ended, and the decision is asked
//! before each chunk. It does not know why the port is open.

use super::filter::Filter;
use super::gate::Verdict;
use super::relay::{Sink, Source, both, pump};
use super::site::Site;
use super::startup::{First, STARTUP_MAX, error, parse};
use super::stream::{self, Purpose};
use crate::clock::boot_ms;
use crate::ha::port::{Port, forward};
use anyhow::{Context, Result, bail, ensure};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

/// Clients at once.
const CLIENTS_MAX: usize = 150;
/// How long a client may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes clients until the agent ends.
pub async fn serve(site: Rc<Site>, listener: TcpListener) {
    let clients = Rc::new(tokio::sync::Semaphore::new(CLIENTS_MAX));
    loop {
        let (client, _) = super::listen::remote(&listener).await;
        let (site, clients) = (Rc::clone(&site), Rc::clone(&clients));
        tokio::task::spawn_local(async move {
            let Ok(_place) = clients.try_acquire() else {
                refuse(client, "53300", "the datastore port has too many clients").await;
                return;
            };
            if let Err(error) = client_session(&site, client).await {
                tracing::debug!(error = format!("{error:#}"), "a client of the port ended");
            }
        });
    }
}

async fn refuse(mut client: TcpStream, code: &str, message: &str) {
    if let Err(error) = client.write_all(&error(code, message)).await {
        tracing::debug!(%error, "a client did not wait for the reason");
    }
}

/// The first packet that begins a session, with its length; encryption is declined, cancel requests are swallowed.
async fn first_packet(client: &mut TcpStream) -> Result<Option<(Vec<u8>, super::startup::Session)>> {
    for _ in 0..3 {
        let length = usize::try_from(client.read_u32().await?).context("a length")?;
        ensure!((8..=STARTUP_MAX).contains(&length), "a first packet of {length} bytes");
        let mut packet = vec![0; length];
        packet[..4].copy_from_slice(&startup_length(length));
        client.read_exact(&mut packet[4..]).await?;
        match parse(&packet[4..]) {
            Ok(First::Encryption) => client.write_all(b"N").await?,
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

async fn client_session(site: &Rc<Site>, mut client: TcpStream) -> Result<()> {
    client.set_nodelay(true)?;
    let first = timeout(PATIENCE, first_packet(&mut client)).await.context("a client says nothing")??;
    let Some((packet, session)) = first else { return Ok(()) };
    if let Err(problem) = session.check_client(&site.config.postgres.database) {
        refuse(client, "28000", problem).await;
        return Ok(());
    }
    let pass = site.port_gate.pass();
    let leads = site.forward();
    let verdict = || if site.forward() == leads { Verdict::Go } else { Verdict::Stop };
    let (source, sink) = match leads {
        Port::Closed => {
            refuse(client, "57P03", "the database serves nothing at the moment; try again").await;
            return Ok(());
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
    let (read, write) = client.into_split();
    let forth = pump(Source::Plain(Box::new(read)), sink, &pass, &verdict, Some(Filter::default()));
    let back = pump(source, Sink::Plain(Box::new(write)), &pass, &verdict, None);
    both(forth, back, &pass).await
}

impl Site {
    /// Where the port may forward at this moment.
    pub fn forward(&self) -> Port {
        self.node.borrow().as_ref().map_or(Port::Closed, |node| forward(node, boot_ms()))
    }
}
