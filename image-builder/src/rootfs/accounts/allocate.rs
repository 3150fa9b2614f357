//! Gives every name an id: declared ones, else the one it had, else a free one. The same input gives the same ids.

use super::Accounts;
use crate::tree::Ids;
use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// Automatic ids of services, taken from the top (Debian Policy 9.2.2 and systemd's `SYSTEM_UID_MAX`).
const SYSTEM: std::ops::RangeInclusive<u32> = 100..=999;
/// Ids of people, taken from the bottom.
const PEOPLE: std::ops::RangeInclusive<u32> = 1000..=59999;

impl Accounts {
    /// Ids for every account; what `uids` and `gids` have is kept, also of names that are gone, so that no id is ever
    /// given to a second name.
    ///
    /// # Errors
    /// If an id changed, or two names have the same.
    pub fn allocate(&self, uids: &BTreeMap<String, u32>, gids: &BTreeMap<String, u32>) -> Result<Ids> {
        let mut groups = Table::new("group", gids);
        for (name, group) in &self.groups {
            if let Some(gid) = group.gid {
                groups.fix(name, gid, &group.origin)?;
            }
        }
        let mut users = Table::new("user", uids);
        for (name, account) in &self.users {
            if let Some(uid) = account.uid {
                users.fix(name, uid, &account.origin)?;
            }
        }
        for (name, account) in &self.users {
            // A service and its group of the same name share a number where both are free, as people expect.
            let twin = groups.ids.get(name).copied().filter(|_| account.group == *name);
            users.give(name, account.person, twin)?;
        }
        for name in self.groups.keys() {
            let account = self.users.get(name);
            let twin = users.ids.get(name).copied().filter(|_| account.is_some_and(|a| a.group == *name));
            groups.give(name, account.is_some_and(|a| a.person), twin)?;
        }
        Ok(Ids { uids: users.ids, gids: groups.ids })
    }
}

/// Ids given so far, by name and by number.
struct Table {
    kind: &'static str,
    ids: BTreeMap<String, u32>,
    names: BTreeMap<u32, String>,
}

impl Table {
    fn new(kind: &'static str, locked: &BTreeMap<String, u32>) -> Self {
        let names = locked.iter().map(|(name, id)| (*id, name.clone())).collect();
        Self { kind, ids: locked.clone(), names }
    }

    fn fix(&mut self, name: &str, id: u32, origin: &str) -> Result<()> {
        let kind = self.kind;
        match self.ids.get(name) {
            Some(had) if *had != id => bail!(
                "{kind} `{name}` has id {had} in the lock and is declared with {id} (by {origin}): its files in /var of \
                 devices in the field would be somebody else's. Keep id {had} by a declaration of your own, or lock \
                 without the old lock file if no device runs it"
            ),
            Some(_) => return Ok(()),
            None => {}
        }
        if let Some(other) = self.names.get(&id) {
            bail!("{kind}s `{name}` (by {origin}) and `{other}` both have id {id}");
        }
        self.put(name, id);
        Ok(())
    }

    fn give(&mut self, name: &str, person: bool, twin: Option<u32>) -> Result<()> {
        if self.ids.contains_key(name) {
            return Ok(());
        }
        let free = |id: &u32| !self.names.contains_key(id);
        let next = if person { PEOPLE.clone().find(free) } else { SYSTEM.clone().rev().find(free) };
        match twin.filter(free).or(next) {
            Some(id) => {
                self.put(name, id);
                Ok(())
            }
            None => bail!("no id is free for {} `{name}`", self.kind),
        }
    }

    fn put(&mut self, name: &str, id: u32) {
        self.ids.insert(name.to_owned(), id);
        self.names.insert(id, name.to_owned());
    }
}
