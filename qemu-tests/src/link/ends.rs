//! What a link ends in: a TAP device, a UDP socket, a stream (a TCP connection or a pseudo-terminal).

use super::framed::Framed;
use super::tap;
use anyhow::{Context, Result};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// One end.
#[derive(Debug)]
pub enum End {
    /// Ethernet frames of a TAP device.
    Tap(File),
    /// Datagrams; without a peer, whoever sends first is it.
    Udp(UdpSocket, Option<SocketAddr>),
    /// Packets of a machine's network.
    Framed(Framed),
    /// A TCP connection.
    Tcp(TcpStream),
    /// Our side of a pseudo-terminal; the other side is held open, so that its users may come and go.
    Terminal(File, OwnedFd),
}

/// A name that cannot be had does not stop a link that carries others.
fn none_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused)
}

impl End {
    /// Makes a TAP device in this network namespace, or takes one that is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn tap(name: &str) -> Result<Self> {
        let file = tap::open(name).with_context(|| {
            format!("make the TAP device {name}: run this as root, or in a namespace of your own")
        })?;
        Ok(Self::Tap(file))
    }

    /// Receives datagrams at an address and sends to a peer, if it is known.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn udp(listen: SocketAddr, peer: Option<SocketAddr>) -> Result<Self> {
        let socket = UdpSocket::bind(listen).with_context(|| format!("receive at {listen}"))?;
        socket.set_nonblocking(true).context("prepare a socket")?;
        Ok(Self::Udp(socket, peer))
    }

    /// Takes a connection.
    ///
    /// # Errors
    /// The kernel's.
    pub fn tcp(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(true).context("prepare a connection")?;
        stream.set_nodelay(true).context("prepare a connection")?;
        Ok(Self::Tcp(stream))
    }

    /// Makes a pseudo-terminal in raw mode; gives the path of the side that programs open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn terminal() -> Result<(Self, PathBuf)> {
        let OpenptyResult { master, slave } = openpty(None, None).context("make a pseudo-terminal")?;
        let mut modes = tcgetattr(&slave).context("ask for a terminal's modes")?;
        cfmakeraw(&mut modes);
        tcsetattr(&slave, SetArg::TCSANOW, &modes).context("set a terminal's modes")?;
        let path = ttyname(&slave).context("ask for a terminal's name")?;
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags)).context("prepare a terminal")?;
        Ok((Self::Terminal(File::from(master), slave), path))
    }

    /// Whether it carries a stream of bytes, not packets.
    pub fn stream(&self) -> bool {
        match self {
            Self::Tap(_) | Self::Udp(..) | Self::Framed(_) => false,
            Self::Tcp(_) | Self::Terminal(..) => true,
        }
    }

    /// What to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(file) | Self::Terminal(file, _) => file.as_fd(),
            Self::Udp(socket, _) => socket.as_fd(),
            Self::Framed(framed) => framed.fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }

    /// Reads a packet or a piece of a stream: `None` if there is nothing, 0 bytes at the end of a stream.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let read = match self {
            Self::Tap(file) | Self::Terminal(file, _) => file.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
            Self::Framed(framed) => framed.read(buffer),
            Self::Udp(socket, peer) => socket.recv_from(buffer).map(|(n, from)| {
                peer.get_or_insert(from);
                n
            }),
        };
        match read {
            Ok(n) => Ok(Some(n)),
            Err(error) if none_yet(&error) => Ok(None),
            Err(error) if error.kind() == ErrorKind::ConnectionReset && matches!(self, Self::Tcp(_)) => {
                Ok(Some(0))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a packet, or as much of a stream as there is room for; gives the bytes that are done with.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self {
            Self::Tap(file) | Self::Terminal(file, _) => file.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
            Self::Framed(framed) => framed.write(bytes),
            Self::Udp(socket, Some(peer)) => socket.send_to(bytes, *peer),
            Self::Udp(_, None) => Ok(bytes.len()),
        };
        match written {
            Ok(n) => Ok(n),
            // A packet that the device has no room for, or that nobody hears, is lost, as on any wire.
            Err(_) if !self.stream() => Ok(bytes.len()),
            Err(error) if none_yet(&error) => Ok(0),
            // What is sent to a connection that is gone has nowhere to go.
            Err(_) => Ok(bytes.len()),
        }
    }

    /// Says that nothing more follows.
    pub fn close(&mut self) {
        if let Self::Tcp(stream) = self {
            // It may be closed already.
            drop(stream.shutdown(Shutdown::Write));
        }
    }
}
