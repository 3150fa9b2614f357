//! Writes passwd(5), group(5), shadow(5), gshadow(5), authorized keys and home folders into a tree.

use super::{Account, Accounts};
use crate::tree::{Entry, Ids, Tree};
use anyhow::Result;
use std::sync::Arc;

impl Accounts {
    /// Writes the account files; `ids` must have every name.
    ///
    /// # Errors
    /// If a package owns one of the files as a folder.
    pub fn write(&self, tree: &mut Tree, ids: &Ids) -> Result<()> {
        let origin: Arc<str> = "accounts".into();
        let uid = |name: &str| ids.uids.get(name).copied().unwrap_or(u32::MAX);
        let gid = |name: &str| ids.gids.get(name).copied().unwrap_or(u32::MAX);
        let mut users: Vec<(&String, &Account)> = self.users.iter().collect();
        users.sort_by_key(|(name, _)| uid(name));
        let (mut passwd, mut shadow) = (String::new(), String::new());
        for (name, a) in &users {
            let (u, g) = (uid(name), gid(&a.group));
            passwd.push_str(&format!("{name}:x:{u}:{g}:{}:{}:{}\n", a.gecos, a.home, a.shell));
            // No date of change: the image has no day on which a password could age.
            shadow.push_str(&format!("{name}:{}::0:99999:7:::\n", a.hash));
        }
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(name, _)| gid(name));
        let (mut group, mut gshadow) = (String::new(), String::new());
        for (name, g) in &groups {
            let members = g.members.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            group.push_str(&format!("{name}:x:{}:{members}\n", gid(name)));
            gshadow.push_str(&format!("{name}:*::{members}\n"));
        }
        let shadow_group: Arc<str> =
            if self.groups.contains_key("shadow") { "shadow" } else { "root" }.into();
        for (path, text, secret) in [
            ("/etc/passwd", &passwd, false),
            ("/etc/group", &group, false),
            ("/etc/shadow", &shadow, true),
            ("/etc/gshadow", &gshadow, true),
        ] {
            let mut entry = Entry::text(text, &origin);
            if secret {
                entry.mode = 0o640;
                entry.group = shadow_group.clone();
            }
            tree.replace(path, entry)?;
        }
        self.homes(tree, &origin)
    }

    fn homes(&self, tree: &mut Tree, origin: &Arc<str>) -> Result<()> {
        let mut lines = String::new();
        for (name, account) in &self.users {
            if !account.keys.is_empty() {
                let path = format!("/etc/ssh/authorized_keys.d/{name}");
                tree.replace(&path, Entry::text(format!("{}\n", account.keys.join("\n")), origin))?;
            }
            if account.person {
                let group = &account.group;
                lines.push_str(&format!("d /var{} 0700 {name} {group} -\n", account.home));
            }
        }
        if !lines.is_empty() {
            tree.replace("/usr/lib/tmpfiles.d/farhold-users.conf", Entry::text(lines, origin))?;
        }
        Ok(())
    }
}
