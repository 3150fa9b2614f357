//! What the parts of one node share: what it was told, what is wanted, what is known.
//!
//! One thread, so cells are enough. It does not act.

use super::config::{Config, Others};
use super::gate::Gate;
use super::identity::{Identity, Number};
use super::stream::Ends;
use super::watch::Watch;
use crate::ha::message::StandbyName;
use crate::ha::register::{Platform, Register, VoterId};
use crate::ha::state::{Event, Node};
use crate::ha::want::{Names, Postgres, Task, Tunnel, nobody};
use anyhow::Result;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::sync::{Notify, mpsc, oneshot};

/// Something that happened, and whom to tell when its effects are done.
pub struct Input {
    /// What happened.
    pub event: Event,
    /// Told when the effects are done.
    pub done: oneshot::Sender<()>,
}

/// What the parts of one node share.
pub struct Site {
    /// What the node was told.
    pub config: Config,
    /// Its key.
    pub identity: Identity,
    /// Its number.
    pub me: Number,
    /// The decisions' state; nothing before a register was told.
    pub node: RefCell<Option<Node>>,
    /// Cut when the port closes.
    pub port_gate: Rc<Gate>,
    /// Cut when the tunnel closes.
    pub tunnel_gate: Rc<Gate>,
    /// Cut when a copy ends.
    pub copy_gate: Rc<Gate>,
    /// The wanted tunnel.
    pub tunnel: Cell<Tunnel>,
    /// The wanted job.
    pub task: Cell<Task>,
    /// The wanted role.
    pub postgres: Cell<Postgres>,
    /// The wanted names.
    pub names: Cell<Names>,
    /// Told when the role changes.
    pub server_wanted: Notify,
    /// Whether a server runs on the directory, or is about to.
    pub server_runs: Cell<bool>,
    /// The server's process.
    pub server_pid: Cell<Option<i32>>,
    /// The database's number.
    pub system_id: Cell<u64>,
    /// Who else there is, as the configuration was read last.
    others: RefCell<Rc<Others>>,
    /// What operators are told.
    pub watch: Watch,
    /// What the node runs on.
    pub platform: Platform,
    /// Whether the disk was in another machine before.
    pub moved: bool,
    /// This life of the node.
    pub session: u64,
    /// The peer's life that is listened to.
    pub peer_session: Cell<u64>,
    /// When the serial cable last brought a word.
    pub serial_heard: Cell<Option<u64>>,
    inputs: mpsc::UnboundedSender<Input>,
}

impl Site {
    /// A node that has not begun; its platform, whether it moved, and where events go.
    ///
    /// # Errors
    /// If the kernel has no random numbers.
    pub fn new(
        config: Config,
        identity: Identity,
        me: Number,
        (platform, moved, inputs): (Platform, bool, mpsc::UnboundedSender<Input>),
    ) -> Result<Self> {
        Ok(Self {
            me,
            identity,
            node: RefCell::new(None),
            port_gate: Rc::default(),
            tunnel_gate: Rc::default(),
            copy_gate: Rc::default(),
            tunnel: Cell::new(Tunnel::Closed),
            task: Cell::new(Task::Rest),
            postgres: Cell::new(Postgres::Stopped),
            names: Cell::new(Names::Only(nobody(me.voter()))),
            server_wanted: Notify::new(),
            server_runs: Cell::new(false),
            server_pid: Cell::new(None),
            system_id: Cell::new(0),
            others: RefCell::new(Rc::new(config.others())),
            watch: Watch::default(),
            platform,
            moved,
            session: Number::draw()?.0,
            peer_session: Cell::new(0),
            serial_heard: Cell::new(None),
            inputs,
            config,
        })
    }

    /// Reports an event, and returns when its effects are done.
    pub async fn report(&self, event: Event) {
        let (done, waits) = oneshot::channel();
        if self.inputs.send(Input { event, done }).is_ok() && waits.await.is_err() {
            tracing::debug!("an event was dropped");
        }
    }

    /// This node's number.
    pub fn voter(&self) -> VoterId {
        self.me.voter()
    }

    /// The newest register that is known.
    pub fn register(&self) -> Option<Register> {
        self.node.borrow().as_ref().map(|node| node.saved.voter.register)
    }

    /// The epoch that is known.
    pub fn epoch(&self) -> Option<u64> {
        self.register().map(|register| register.epoch)
    }

    /// The standby's name in this epoch.
    pub fn standby_name(&self) -> Option<StandbyName> {
        self.node.borrow().as_ref().and_then(Node::standby_name)
    }

    /// Folder of the server's socket.
    pub fn sockets(&self) -> PathBuf {
        self.config.run.join("db")
    }

    /// The server's socket.
    pub fn server_socket(&self) -> PathBuf {
        self.sockets().join(".s.PGSQL.5432")
    }

    /// Folder of the tunnel's end for the standby.
    pub fn tunnel_sockets(&self) -> PathBuf {
        self.config.run.join("tunnel")
    }

    /// Folder of the tunnel's end for copies.
    pub fn copy_sockets(&self) -> PathBuf {
        self.config.run.join("copy")
    }

    /// The server's main file.
    pub fn main_file(&self) -> PathBuf {
        self.config.state.join("postgresql.conf")
    }

    /// Who else there is.
    pub fn others(&self) -> Rc<Others> {
        Rc::clone(&self.others.borrow())
    }

    /// Reads again who else there is.
    ///
    /// # Errors
    /// If the configuration cannot be read or is wrong; what was known before stands.
    pub fn read_others(&self) -> Result<()> {
        let read = Config::read(&self.config.path)?;
        let later = self.others().replaced_by(read.others());
        self.others.replace(Rc::new(later));
        Ok(())
    }

    /// Both ends of a stream with the peer, and where it listens.
    pub fn peer_ends(&self) -> Option<(Ends<'_>, Vec<SocketAddr>)> {
        let others = self.others();
        let peer = others.peer.as_ref()?;
        let ends = Ends {
            site: self.config.site,
            me: &self.identity,
            voter: self.voter(),
            session: self.session,
            peer: peer.voter.voter(),
            key: peer.key,
        };
        Some((ends, peer.addresses.clone()))
    }
}
