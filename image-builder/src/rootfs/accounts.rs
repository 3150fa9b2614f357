//! Users and groups of an image: Debian's fixed ones (`base-passwd`), those of sysusers.d(5) in the tree, those that
//! rules declare, and the people of the profile. Ids come from the lock: `/var` outlives images.

mod allocate;
mod sysusers;
mod write;

use crate::resolved::User;
use crate::tree::{Ids, Tree};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// Debian's fixed accounts, by the package `base-passwd`.
const MASTERS: [&str; 2] = ["/usr/share/base-passwd/passwd.master", "/usr/share/base-passwd/group.master"];
/// Most bytes of a file of accounts.
const MAX_BYTES: u64 = 1 << 20;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    /// Who declares it.
    origin: String,
    /// Id, if it is declared.
    uid: Option<u32>,
    /// Primary group's name.
    group: String,
    gecos: String,
    home: String,
    shell: String,
    /// Field of shadow(5): `*` for no password.
    hash: String,
    /// Lines of `authorized_keys`.
    keys: Vec<String>,
    /// A person of the profile, not a service.
    person: bool,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    origin: String,
    gid: Option<u32>,
    members: BTreeSet<String>,
}

/// All accounts of an image.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    users: BTreeMap<String, Account>,
    groups: BTreeMap<String, Group>,
}

impl Accounts {
    /// Collects every account that a tree and a profile declare.
    ///
    /// # Errors
    /// If a declaration cannot be read, or two give one name different ids.
    pub fn collect(tree: &Tree, rules: &[(String, String)], people: &[User]) -> Result<Self> {
        let mut accounts = Self::default();
        accounts.masters(tree)?;
        for (origin, line) in rules {
            accounts.declare(origin, line).with_context(|| format!("{origin}: sysusers line `{line}`"))?;
        }
        // In order of file name, as systemd-sysusers reads them; /etc takes the place of /usr/lib.
        let mut files = BTreeMap::new();
        for folder in ["/usr/lib/sysusers.d", "/etc/sysusers.d"] {
            for (path, _) in tree.below(folder).filter(|(path, _)| path.ends_with(".conf")) {
                files.insert(crate::tree::name(path).to_owned(), path.to_owned());
            }
        }
        for path in files.values() {
            let Some(data) = tree.file(path) else { continue };
            let text = String::from_utf8_lossy(&data.bytes(MAX_BYTES)?).into_owned();
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
            {
                accounts.declare(path, line).with_context(|| format!("{path}: sysusers line `{line}`"))?;
            }
        }
        people.iter().try_for_each(|person| accounts.person(person))?;
        accounts.check_members()?;
        Ok(accounts)
    }

    fn masters(&mut self, tree: &Tree) -> Result<()> {
        let read = |path: &str| -> Result<String> {
            let data = tree.file(path).map(|data| data.bytes(MAX_BYTES)).transpose()?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&data).into_owned())
        };
        let (users, groups) = (read(MASTERS[0])?, read(MASTERS[1])?);
        for line in users.lines() {
            let [name, _, uid, gid, gecos, home, shell] = line.split(':').collect::<Vec<_>>()[..] else {
                continue;
            };
            let group = groups
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>())
                .find(|g| g.get(2) == Some(&gid));
            let account = Account {
                origin: "base-passwd".into(),
                uid: uid.parse().ok(),
                group: group.and_then(|g| g.first().copied()).unwrap_or(name).to_owned(),
                gecos: gecos.to_owned(),
                home: home.to_owned(),
                shell: shell.to_owned(),
                hash: "*".into(),
                keys: Vec::new(),
                person: false,
            };
            self.users.insert(name.to_owned(), account);
        }
        for line in groups.lines() {
            let [name, _, gid, ..] = line.split(':').collect::<Vec<_>>()[..] else { continue };
            self.group(name, gid.parse().ok(), "base-passwd")?;
        }
        Ok(())
    }

    /// Adds a group, or gives one that is there an id.
    fn group(&mut self, name: &str, gid: Option<u32>, origin: &str) -> Result<()> {
        check_name(name)?;
        let group = self
            .groups
            .entry(name.to_owned())
            .or_insert_with(|| Group { origin: origin.to_owned(), ..Group::default() });
        match (group.gid, gid) {
            (Some(a), Some(b)) if a != b => {
                bail!("group `{name}` has id {a} by {} and id {b} by {origin}", group.origin)
            }
            (None, Some(_)) => group.gid = gid,
            (Some(_) | None, _) => {}
        }
        Ok(())
    }

    fn person(&mut self, person: &User) -> Result<()> {
        check_name(&person.name)?;
        let hash = person.password_hash.clone().unwrap_or_else(|| "*".into());
        if hash.contains([':', '\n']) {
            bail!("user `{}`: the password hash must be one crypt(3) field", person.name);
        }
        let home = if person.name == "root" { "/root".into() } else { format!("/home/{}", person.name) };
        let account = self.users.entry(person.name.clone()).or_insert_with(|| Account {
            origin: "settings.users".into(),
            uid: None,
            group: person.name.clone(),
            gecos: String::new(),
            home,
            shell: String::new(),
            hash: String::new(),
            keys: Vec::new(),
            person: true,
        });
        if !account.person && person.name != "root" {
            bail!(
                "user `{}` of the profile is a system account by {}; choose another name",
                person.name,
                account.origin
            );
        }
        account.shell.clone_from(&person.shell);
        account.hash = hash;
        account.keys.clone_from(&person.ssh_keys);
        self.group(&person.name.clone(), None, "settings.users")?;
        for group in &person.groups {
            let members = self.groups.get_mut(group).map(|group| &mut group.members);
            let Some(members) = members else {
                let known: Vec<&str> = self.groups.keys().map(String::as_str).collect();
                bail!(
                    "user `{}`: the image has no group `{group}`; it has {}",
                    person.name,
                    known.join(", ")
                );
            };
            members.insert(person.name.clone());
        }
        Ok(())
    }

    fn check_members(&self) -> Result<()> {
        for (name, account) in &self.users {
            if !self.groups.contains_key(&account.group) {
                bail!(
                    "user `{name}` (by {}) is in group `{}`, which nothing declares",
                    account.origin,
                    account.group
                );
            }
        }
        Ok(())
    }

    /// Ids from a lock.
    ///
    /// # Errors
    /// If a name has none there, or was declared with another id.
    pub fn ids(&self, uids: &BTreeMap<String, u32>, gids: &BTreeMap<String, u32>) -> Result<Ids> {
        let allocated = self.allocate(uids, gids)?;
        let new = |kind: &str, all: &BTreeMap<String, u32>, locked: &BTreeMap<String, u32>| -> Vec<String> {
            all.keys()
                .filter(|name| !locked.contains_key(*name))
                .map(|name| format!("{kind} {name}"))
                .collect()
        };
        let mut missing = new("user", &allocated.uids, uids);
        missing.extend(new("group", &allocated.gids, gids));
        if !missing.is_empty() {
            bail!(
                "the lock has no id for {}; `farhold lock` gives them one and keeps all others",
                missing.join(", ")
            );
        }
        Ok(allocated)
    }
}

/// Names as systemd allows them (systemd.io, USER_NAMES, relaxed): they go into files of fields and paths.
fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= 31
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && !name.chars().all(|c| c.is_ascii_digit());
    if good {
        return Ok(());
    }
    bail!(
        "`{name}` cannot name a user or group: letters, digits, `_`, `-` and `.`, at most 31, not only digits"
    )
}

#[cfg(test)]
mod tests;
