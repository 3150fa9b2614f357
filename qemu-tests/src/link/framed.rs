//! Packets in a stream, each after its length of four bytes in network order: what QEMU's network filters speak.
#![expect(clippy::big_endian_bytes, reason = "QEMU's lengths are in network order")]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Longest packet.
const PACKET: usize = 65_536;

/// Two streams: packets come on one and go on the other.
#[derive(Debug)]
pub struct Framed {
    from: UnixStream,
    to: UnixStream,
    came: Vec<u8>,
    unsent: Vec<u8>,
}

impl Framed {
    /// Takes both streams.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(from: UnixStream, to: UnixStream) -> io::Result<Self> {
        from.set_nonblocking(true)?;
        to.set_nonblocking(true)?;
        Ok(Self { from, to, came: Vec::new(), unsent: Vec::new() })
    }

    /// Where packets come from.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// The kernel's; the other side has ended, or says a length that no packet has.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.flush()?;
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(length) = self.whole()? {
                let packet = self.came.get(4..4 + length).unwrap_or_default();
                buffer.get_mut(..length).ok_or(ErrorKind::InvalidInput)?.copy_from_slice(packet);
                self.came.drain(..4 + length);
                return Ok(length);
            }
            match self.from.read(&mut piece)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n => self.came.extend_from_slice(&piece[..n]),
            }
        }
    }

    /// Length of the first packet, if all of it came.
    fn whole(&self) -> io::Result<Option<usize>> {
        let Some(length) = self.came.first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > PACKET {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("a packet of {length} bytes")));
        }
        Ok((self.came.len() >= 4 + length).then_some(length))
    }

    /// Writes a packet; one that there is no room for is lost.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&mut self, packet: &[u8]) -> io::Result<usize> {
        self.flush()?;
        if self.unsent.is_empty() {
            let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
            self.unsent.extend_from_slice(&length.to_be_bytes());
            self.unsent.extend_from_slice(packet);
            self.flush()?;
        }
        Ok(packet.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.to.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in_however_they_are_cut() {
        let ((a, mut other), (b, mut back)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let mut framed = Framed::new(a, b).unwrap();
        let mut buffer = [0; PACKET];
        let none = framed.read(&mut buffer).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::WouldBlock);
        other.write_all(&[0, 0, 0, 3, 7]).unwrap();
        assert_eq!(framed.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        other.write_all(&[8, 9, 0, 0, 0, 1, 5]).unwrap();
        assert_eq!((framed.read(&mut buffer).unwrap(), &buffer[..3]), (3, &[7, 8, 9][..]));
        assert_eq!((framed.read(&mut buffer).unwrap(), buffer[0]), (1, 5));
        framed.write(&[1, 2]).unwrap();
        let mut sent = [0; 6];
        back.read_exact(&mut sent).unwrap();
        assert_eq!(sent, [0, 0, 0, 2, 1, 2]);
        // A packet of no sense ends it, as the other side's end does.
        other.write_all(&[0xff; 4]).unwrap();
        assert_eq!(framed.read(&mut buffer).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn who_does_not_read_costs_packets_and_no_memory() {
        let ((a, _other), (b, _back)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let mut framed = Framed::new(a, b).unwrap();
        for _ in 0..10_000 {
            assert_eq!(framed.write(&[0; 1400]).unwrap(), 1400);
        }
        assert!(framed.unsent.len() <= 1404);
    }
}
