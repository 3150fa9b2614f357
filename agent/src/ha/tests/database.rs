//! A stand-in for one node's Postgres with its tunnel end and port, as adverse as the real one is known to be:
//! names in force lag behind the names in the file by two steps, a start begins with none in force, a killed server
//! makes waiting rows visible, acknowledgements are on the way when the tunnel closes.

use crate::ha::message::{Flushed, StandbyName};
use crate::ha::port::Port;
use crate::ha::register::{Lsn, VoterId};
use crate::ha::state::{Copying, Server};
use crate::ha::want::{Names, Postgres, Task, Tunnel, nobody};

/// The log: one byte a record, a write's number or, from 0x80, a promotion to a timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Log {
    records: [u8; 24],
    len: u8,
}

impl Log {
    pub fn push(&mut self, record: u8) {
        self.records[usize::from(self.len)] = record;
        self.len += 1;
    }

    pub fn full(&self) -> bool {
        usize::from(self.len) + 2 >= self.records.len()
    }

    pub fn end(&self) -> Lsn {
        Lsn::from(self.len)
    }

    pub fn starts(&self, longer: &Self) -> bool {
        self.len <= longer.len && self.records().iter().zip(longer.records()).all(|(a, b)| a == b)
    }

    pub fn records(&self) -> &[u8] {
        &self.records[..usize::from(self.len)]
    }

    /// The writes in the first `end` records, as bits.
    pub fn writes(&self, end: Lsn) -> u32 {
        self.records().iter().zip(0..end).filter(|(r, _)| **r < 0x80).fold(0, |set, (r, _)| set | 1 << r)
    }

    fn position(&self, write: u8) -> Lsn {
        self.records().iter().position(|r| *r == write).map_or(Lsn::MAX, |at| at as Lsn + 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Up {
    Down { clean: bool },
    Primary,
    Standby,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    pub me: VoterId,
    pub up: Up,
    pub want: Postgres,
    pub log: Log,
    pub timeline: u32,
    /// A copy into the directory began and did not end.
    pub ruined: bool,
    pub file: Names,
    /// What the checkpointer has read and not published yet.
    pub read: Option<Names>,
    pub force: Names,
    pub confirmed: Option<Flushed>,
    /// An acknowledgement on its way through the tunnel.
    pub arriving: Option<Flushed>,
    pub tunnel: Tunnel,
    pub port: Port,
    pub task: Task,
    /// What the agent was told last.
    pub told: Server,
    /// Rows before this are visible to readers.
    pub visible: Lsn,
    /// Writes whose clients still wait.
    pub waits: u32,
}

impl Database {
    pub fn new(me: VoterId) -> Self {
        Self {
            me,
            up: Up::Down { clean: false },
            want: Postgres::Stopped,
            log: Log::default(),
            timeline: 1,
            ruined: false,
            file: Names::Only(nobody(me)),
            read: None,
            force: Names::Off,
            confirmed: None,
            arriving: None,
            tunnel: Tunnel::Closed,
            port: Port::Closed,
            task: Task::Rest,
            told: Server::Down { end: None },
            visible: 0,
            waits: 0,
        }
    }

    /// The whole machine goes down; the log's flushed records stay.
    pub fn crash(&mut self) {
        *self = Self { log: self.log, timeline: self.timeline, ruined: self.ruined, ..Self::new(self.me) };
    }

    pub fn kill(&mut self) {
        self.up = Up::Down { clean: false };
        (self.read, self.confirmed, self.arriving, self.waits) = (None, None, None, 0);
    }

    pub fn set_tunnel(&mut self, tunnel: Tunnel) {
        if tunnel == Tunnel::Closed {
            (self.arriving, self.confirmed) = (None, None);
        }
        self.tunnel = tunnel;
    }

    pub fn set_port(&mut self, port: Port) {
        if port == Port::Closed {
            self.waits = 0;
        }
        self.port = port;
    }

    pub fn set_task(&mut self, task: Task) {
        self.task = task;
        if let Task::Copy { how: Copying::Rewind | Copying::Reseed, .. } = task {
            self.ruined = true;
        }
    }

    pub fn server(&self) -> Server {
        let (timeline, lsn) = (self.timeline, self.log.end());
        match self.up {
            Up::Down { clean } => Server::Down { end: clean.then_some(lsn) },
            Up::Primary => Server::Primary { timeline, lsn, standby: self.confirmed },
            Up::Standby => Server::Standby { timeline, lsn },
        }
    }

    /// Moves towards the wanted role by one step; says whether it could.
    pub fn run(&mut self) -> Result<bool, &'static str> {
        let known_down = matches!(self.told, Server::Down { .. });
        match (self.want, self.up) {
            (Postgres::Stopped, Up::Primary | Up::Standby) => {
                self.kill();
                self.up = Up::Down { clean: true };
            }
            (Postgres::Standby { .. }, Up::Primary) => {
                self.kill();
                self.up = Up::Down { clean: true };
            }
            (Postgres::Standby { .. } | Postgres::Primary { .. }, Up::Down { .. }) if !known_down => {
                return Ok(false);
            }
            (Postgres::Standby { .. } | Postgres::Primary { .. }, Up::Down { .. }) if self.ruined => {
                return Err("Postgres was started on a directory that was being overwritten");
            }
            (Postgres::Standby { .. }, Up::Down { .. }) => self.up = Up::Standby,
            (Postgres::Primary { timeline, start_names }, Up::Down { .. } | Up::Standby) => {
                if timeline > self.timeline {
                    self.timeline = timeline;
                    self.log.push(0x80 | timeline as u8);
                }
                self.up = Up::Primary;
                (self.file, self.read, self.force) = (Names::Only(start_names), None, Names::Off);
                (self.confirmed, self.arriving) = (None, None);
                self.visible = self.log.end();
            }
            (Postgres::Stopped, Up::Down { .. })
            | (Postgres::Standby { .. }, Up::Standby)
            | (Postgres::Primary { .. }, Up::Primary) => return Ok(false),
        }
        Ok(true)
    }

    /// The checkpointer reads the file.
    pub fn read_names(&mut self) -> bool {
        let due = self.up == Up::Primary && self.read.is_none() && self.force != self.file;
        if due {
            self.read = Some(self.file);
        }
        due
    }

    /// The checkpointer publishes what it has read.
    pub fn publish_names(&mut self) -> bool {
        let Some(read) = self.read.take() else { return false };
        self.force = read;
        true
    }

    /// Under which name this primary and that standby are connected.
    pub fn connection(&self, standby: &Self) -> Option<StandbyName> {
        match (self.tunnel, standby.tunnel) {
            (Tunnel::Serve { name, .. }, Tunnel::Follow { name: used })
                if name == used
                    && name.node == standby.me
                    && self.up == Up::Primary
                    && standby.up == Up::Standby
                    && !standby.ruined =>
            {
                Some(name)
            }
            (Tunnel::Serve { .. } | Tunnel::Closed | Tunnel::Follow { .. }, _) => None,
        }
    }

    /// A withheld acknowledgement stays where it is.
    pub fn arrive(&mut self) -> bool {
        let Some(flushed) = self.arriving else { return false };
        if self.up != Up::Primary || self.tunnel != (Tunnel::Serve { name: flushed.name, withhold: false }) {
            return false;
        }
        self.arriving = None;
        let news = self.confirmed.is_none_or(|old| old < flushed);
        self.confirmed = if news { Some(flushed) } else { self.confirmed };
        news
    }

    pub fn serves(&self) -> bool {
        self.port == Port::Local && self.up == Up::Primary
    }

    /// Whether a commit written now would be acknowledged without any further decision.
    pub fn can_acknowledge(&self, other: &Self) -> bool {
        self.serves()
            && match self.force {
                Names::Off => true,
                Names::Only(name) => {
                    self.connection(other) == Some(name)
                        && self.tunnel == Tunnel::Serve { name, withhold: false }
                        && other.log.starts(&self.log)
                }
            }
    }

    /// Acknowledges one waiting write, if the names in force allow it.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let write = (0..32).find(|write| self.waits & (1 << write) != 0)?;
        let position = self.log.position(write);
        let durable = match (self.force, self.confirmed) {
            (Names::Off, _) => true,
            (Names::Only(name), Some(flushed)) => flushed.name == name && flushed.lsn >= position,
            (Names::Only(_), None) => false,
        };
        if !self.serves() || !durable {
            return None;
        }
        self.waits &= !(1 << write);
        self.visible = self.visible.max(position);
        Some(write)
    }
}
