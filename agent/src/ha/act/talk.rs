//! What a node says to the other parties and takes from them: sealed, to every address there is, and over a serial cable.
//!
//! It does not know what a message means.

use super::identity::Number;
use super::node::Loop;
use super::seal::{self, Envelope, Header, Stamp};
use crate::clock::{boot_ms, boot_us};
use crate::ha::message::{Body, Message};
use crate::ha::resume::{Start, blank};
use crate::ha::state::Event;
use anyhow::Result;
use std::net::SocketAddr;

impl Loop {
    pub(super) fn send(&mut self, message: &Message) {
        let others = self.site.others();
        let Some(party) = others.party(message.to) else {
            tracing::debug!(to = ?message.to, "the configuration does not name a voter");
            return;
        };
        let now = boot_us();
        self.stamp_us = now.max(self.stamp_us + 1);
        let stamp = Stamp { session: self.site.session, at_us: self.stamp_us };
        let echo = self.known.get(&message.to).map(|known| known.echo(now)).unwrap_or_default();
        let header = Header { site: self.site.config.site, from: message.from, to: message.to };
        let envelope = Envelope { stamp, echo, message: *message };
        match seal::seal(&self.site.identity, &party.key.point(), header, &envelope) {
            Ok(datagram) => {
                for address in &party.addresses {
                    if let Err(error) = self.udp.try_send_to(&datagram, *address) {
                        tracing::trace!(%error, %address, "a message did not leave");
                    }
                }
                if let Some(line) = self.serial.as_mut().filter(|_| others.is_peer(message.to)) {
                    line.send(&message.body, &datagram, now);
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "a message was not sent"),
        }
    }

    pub(super) fn hear(&mut self, datagram: &[u8], from: SocketAddr) -> Result<()> {
        let Some(envelope) = self.open(datagram, &from) else { return Ok(()) };
        self.take(&envelope)
    }

    /// The cable carries heartbeats only: whatever else comes over it is no word of the peer.
    pub(super) fn hear_serial(&mut self, frame: &[u8]) -> Result<()> {
        let Some(envelope) = self.open(frame, &"the serial cable") else { return Ok(()) };
        if !self.site.others().is_peer(envelope.message.from)
            || !matches!(envelope.message.body, Body::Beat(_))
        {
            return Ok(());
        }
        self.site.serial_heard.set(Some(boot_ms()));
        self.take(&envelope)
    }

    /// What a datagram says, if it is one of a party of this site.
    fn open(&self, datagram: &[u8], from: &dyn std::fmt::Display) -> Option<Envelope> {
        let header = Header::decode(datagram)?;
        let ours = header.site == self.site.config.site && header.to == self.site.voter();
        let others = self.site.others();
        let Some(party) = others.party(header.from).filter(|_| ours) else {
            tracing::debug!(%from, "a datagram of a stranger");
            return None;
        };
        match seal::open(&self.site.identity, &party.key.point(), datagram) {
            Ok(envelope) => Some(envelope),
            Err(error) => {
                tracing::debug!(%from, error = format!("{error:#}"), "a datagram was dropped");
                None
            }
        }
    }

    fn take(&mut self, envelope: &Envelope) -> Result<()> {
        let (message, life) = (envelope.message, envelope.stamp.session);
        // What answers an earlier life of this node is an old word that comes again; a clone that hears nothing answers none.
        let answered = envelope.echo.session;
        let timely = answered == 0 || answered == self.site.session;
        let doubled = self.site.watch.doubles(boot_ms()).contains(&message.from);
        if timely && self.site.watch.note_life(message.from, envelope.stamp, boot_ms()) && !doubled {
            tracing::error!(voter = ?message.from,
                "two machines speak under one identity: was a disk cloned? Stop one of them and replace it");
        }
        let register = message.register;
        let joins = self.site.node.borrow().is_none() && register.members.has_node(self.site.voter());
        if joins {
            let life = Number::draw()?.0;
            self.begin(blank(self.site.voter(), life, register), Start::Proven)?;
        }
        let known = self.known.entry(message.from).or_default();
        if known.accept(envelope, self.site.session, boot_us()) {
            if self.site.others().is_peer(message.from) {
                self.site.peer_session.set(life);
            }
            self.step(Event::Message(message))?;
        }
        Ok(())
    }
}
