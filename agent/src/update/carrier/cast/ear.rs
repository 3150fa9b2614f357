//! Listens: sockets and lines as packets, and files that vanish by themselves.

use super::super::serial::Port;
use super::address::Medium;
use crate::io::clock::boot_ms;
use crate::update::carrier::Failure;
use crate::update::step::Fault;
use formats::link::cast::packet::MAX_PACKET;
use formats::link::cast::store::Store;
use formats::link::cast::tune::Room;
use formats::link::line::Deframer;
use socket2::{Domain, Socket, Type};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// How long nothing is heard before the wish to end is looked at.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes that the kernel keeps while others have the processor; it gives what it may.
const QUEUE: usize = 1 << 20;

/// Something that is listened to.
pub enum Ear {
    /// Datagrams.
    Udp(UdpSocket),
    /// A serial line.
    Serial(Box<(Port, Deframer)>),
}

fn udp(group: SocketAddrV4, interface: std::net::Ipv4Addr) -> std::io::Result<UdpSocket> {
    // Several programs may listen to one group.
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&group.into())?;
    // What more than the usual the kernel does not grant is not needed.
    drop(socket.set_recv_buffer_size(QUEUE));
    let socket = UdpSocket::from(socket);
    if group.ip().is_multicast() {
        socket.join_multicast_v4(group.ip(), &interface)?;
    }
    socket.set_read_timeout(Some(PAUSE))?;
    Ok(socket)
}

impl Ear {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`Fault::Unreachable`]: interfaces and adapters come and go.
    pub fn open(medium: &Medium) -> Result<Self, Failure> {
        match medium {
            Medium::Udp(group, interface) => udp(*group, *interface).map(Self::Udp).map_err(|error| {
                Failure::new(Fault::Unreachable(None), format!("listen to {group} at {interface}: {error}"))
            }),
            Medium::Serial(address) => {
                Ok(Self::Serial(Box::new((Port::open(address)?, Deframer::default()))))
            }
        }
    }

    /// What came, and how many bytes that took; nothing after a pause.
    ///
    /// # Errors
    /// [`Fault::Unreachable`].
    pub fn hear(&mut self) -> Result<(Vec<Vec<u8>>, u64), Failure> {
        match self {
            Self::Udp(socket) => {
                let mut buffer = [0; MAX_PACKET + 1];
                match socket.recv(&mut buffer) {
                    Ok(n) => Ok((vec![buffer[..n].to_vec()], n as u64)),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                        Ok((Vec::new(), 0))
                    }
                    Err(error) => {
                        Err(Failure::new(Fault::Unreachable(None), format!("listen to a broadcast: {error}")))
                    }
                }
            }
            Self::Serial(line) => {
                let (port, deframer) = line.as_mut();
                let mut buffer = [0; 1024];
                let n = port.read(&mut buffer, boot_ms() + PAUSE.as_millis() as u64)?;
                Ok((deframer.push(&buffer[..n]), n as u64))
            }
        }
    }
}

/// A file without a name, for what came of one cast.
pub struct Spool(File);

impl Store for Spool {
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        self.0.write_all_at(bytes, at).map_err(|error| format!("keep what was broadcast: {error}"))
    }
    fn get(&self, at: u64, into: &mut [u8]) -> Result<(), String> {
        self.0.read_exact_at(into, at).map_err(|error| format!("read what was broadcast: {error}"))
    }
}

/// A folder for such files.
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    /// Files so far.
    pub made: u32,
}

impl Room for Folder {
    type Place = Spool;

    fn place(&mut self, _bytes: u64) -> Result<Spool, String> {
        self.made += 1;
        let path = self.path.join(format!("{}-{}", std::process::id(), self.made));
        let make = || {
            std::fs::create_dir_all(&self.path)?;
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            // It goes with the last who has it open.
            std::fs::remove_file(&path)?;
            Ok(Spool(file))
        };
        make().map_err(|error: std::io::Error| format!("make a file in {}: {error}", self.path.display()))
    }
}
