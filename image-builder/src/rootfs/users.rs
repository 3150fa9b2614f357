//! Accounts of the image: Debian's base accounts, what packages declare in sysusers.d, and the profile's users.
//!
//! Ids are given out here and pinned in the lock, because `/var` outlives images: a name keeps its id for ever and an
//! id is never given to another name. Syntax: sysusers.d(5). Knows nothing of where the lock is kept.

use crate::resolved::User;
use crate::tree::{Entry, Ids, Tree};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

const PASSWD_MASTER: &str = "/usr/share/base-passwd/passwd.master";
const GROUP_MASTER: &str = "/usr/share/base-passwd/group.master";
const SYSUSERS: &str = "/usr/lib/sysusers.d";
/// Ids that system accounts without a fixed one get, highest first (Debian policy 9.2.2: 100 to 999).
const SYSTEM_IDS: std::ops::RangeInclusive<u32> = 100..=999;
/// Ids of people, lowest first (Debian policy 9.2.2).
const PEOPLE_IDS: std::ops::RangeInclusive<u32> = 1000..=59_999;
const TEXT_LIMIT: u64 = 1 << 20;

/// Who is in the image, before ids are given out.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    users: BTreeMap<String, Account>,
    groups: BTreeMap<String, Group>,
}

#[derive(Clone, Debug)]
struct Account {
    fixed: Option<u32>,
    group: String,
    comment: String,
    home: String,
    shell: String,
    password: String,
    person: bool,
    origin: Arc<str>,
}

#[derive(Clone, Debug)]
struct Group {
    fixed: Option<u32>,
    members: BTreeSet<String>,
    person: bool,
    origin: Arc<str>,
}

impl Accounts {
    /// Reads the accounts that a tree declares and adds `lines` (sysusers.d syntax, with who asks) and `people`.
    ///
    /// # Errors
    /// A line that cannot be read, two declarations that contradict each other, or a group that does not exist.
    pub fn collect(tree: &Tree, lines: &[(Arc<str>, String)], people: &[User]) -> Result<Self> {
        let mut accounts = Self::default();
        accounts.base(tree)?;
        let files: Vec<(String, Arc<str>)> = tree
            .below(SYSUSERS)
            .filter(|(path, _)| path.ends_with(".conf"))
            .map(|(path, entry)| (path.to_owned(), entry.origin.clone()))
            .collect();
        for (path, origin) in files {
            let text = text(tree, &path)?;
            for (number, line) in text.lines().enumerate() {
                accounts
                    .line(line, &origin)
                    .with_context(|| format!("{path}:{} (from {origin})", number + 1))?;
            }
        }
        for (origin, line) in lines {
            accounts.line(line, origin).with_context(|| format!("sysusers line `{line}` (from {origin})"))?;
        }
        for person in people {
            accounts.person(person)?;
        }
        accounts.groups_exist()?;
        Ok(accounts)
    }

    /// Gives every name its id: the locked one, else the declared one, else a free one. Locked names that are gone
    /// keep their ids, so that these are never reused.
    ///
    /// # Errors
    /// If a declared id differs from the locked one or belongs to another name, or none is free.
    pub fn allocate(&self, locked: &Ids) -> Result<Ids> {
        let mut ids = locked.clone();
        for (name, group) in self.groups.iter().filter(|(_, group)| group.fixed.is_some()) {
            claim(&mut ids.gids, "group", name, group.fixed, &group.origin)?;
        }
        for (name, account) in self.users.iter().filter(|(_, account)| account.fixed.is_some()) {
            claim(&mut ids.uids, "user", name, account.fixed, &account.origin)?;
        }
        for (name, account) in self.users.iter().filter(|(name, _)| self.groups.contains_key(*name)) {
            if let (None, None) = (ids.uids.get(name), ids.gids.get(name)) {
                let id = free(&[&ids.uids, &ids.gids], account.person)
                    .with_context(|| format!("user `{name}`: no id is free"))?;
                ids.uids.insert(name.clone(), id);
                ids.gids.insert(name.clone(), id);
            }
        }
        for (name, account) in &self.users {
            if !ids.uids.contains_key(name) {
                let id = free(&[&ids.uids], account.person)
                    .with_context(|| format!("user `{name}`: no id is free"))?;
                ids.uids.insert(name.clone(), id);
            }
        }
        for (name, group) in &self.groups {
            if !ids.gids.contains_key(name) {
                let id = free(&[&ids.gids], group.person)
                    .with_context(|| format!("group `{name}`: no id is free"))?;
                ids.gids.insert(name.clone(), id);
            }
        }
        Ok(ids)
    }

    /// Writes `/etc/passwd`, `group`, `shadow`, `gshadow` and what people need: keys and a home below `/var/home`.
    ///
    /// # Errors
    /// If `ids` lacks a name (a stale lock) or a path is taken.
    pub fn write(&self, ids: &Ids, people: &[User], tree: &mut Tree) -> Result<()> {
        let origin: Arc<str> = "accounts".into();
        let (mut passwd, mut shadow) = (String::new(), String::new());
        let mut users: Vec<(u32, &String, &Account)> = Vec::new();
        for (name, account) in &self.users {
            users.push((id(&ids.uids, "user", name)?, name, account));
        }
        users.sort_by_key(|(uid, name, _)| (*uid, *name));
        for (uid, name, account) in users {
            let gid = id(&ids.gids, "group", &account.group)?;
            let Account { comment, home, shell, password, .. } = account;
            writeln!(passwd, "{name}:x:{uid}:{gid}:{comment}:{home}:{shell}")?;
            writeln!(shadow, "{name}:{password}:::::::")?;
        }
        let (mut groups, mut gshadow) = (String::new(), String::new());
        let mut sorted: Vec<(u32, &String, &Group)> = Vec::new();
        for (name, group) in &self.groups {
            sorted.push((id(&ids.gids, "group", name)?, name, group));
        }
        sorted.sort_by_key(|(gid, name, _)| (*gid, *name));
        for (gid, name, group) in sorted {
            let members = group.members.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            writeln!(groups, "{name}:x:{gid}:{members}")?;
            writeln!(gshadow, "{name}:*::{members}")?;
        }
        for (path, text, mode) in [
            ("/etc/passwd", passwd, 0o644),
            ("/etc/group", groups, 0o644),
            ("/etc/shadow", shadow, 0o640),
            ("/etc/gshadow", gshadow, 0o640),
        ] {
            let mut entry = Entry::text(text, &origin);
            entry.mode = mode;
            if mode == 0o640 && self.groups.contains_key("shadow") {
                entry.group = "shadow".into();
            }
            tree.replace(path, entry)?;
        }
        write_people(people, tree, &origin)
    }

    fn base(&mut self, tree: &Tree) -> Result<()> {
        let origin: Arc<str> = "base-passwd".into();
        for line in text(tree, GROUP_MASTER)?.lines() {
            let field: Vec<&str> = line.split(':').collect();
            let [name, _, gid, _] = field[..] else { bail!("{GROUP_MASTER}: `{line}` must have 4 fields") };
            let fixed = Some(gid.parse().with_context(|| format!("{GROUP_MASTER}: `{line}`"))?);
            self.groups.insert(
                name.to_owned(),
                Group { fixed, members: BTreeSet::new(), person: false, origin: origin.clone() },
            );
        }
        for line in text(tree, PASSWD_MASTER)?.lines() {
            let field: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, comment, home, shell] = field[..] else {
                bail!("{PASSWD_MASTER}: `{line}` must have 7 fields")
            };
            let gid: u32 = gid.parse().with_context(|| format!("{PASSWD_MASTER}: `{line}`"))?;
            let group = self.groups.iter().find(|(_, group)| group.fixed == Some(gid));
            let group = group
                .map(|(name, _)| name.clone())
                .with_context(|| format!("{PASSWD_MASTER}: no group {gid}"))?;
            self.users.insert(
                name.to_owned(),
                Account {
                    fixed: Some(uid.parse().with_context(|| format!("{PASSWD_MASTER}: `{line}`"))?),
                    group,
                    comment: comment.to_owned(),
                    home: home.to_owned(),
                    shell: shell.to_owned(),
                    password: "*".to_owned(),
                    person: false,
                    origin: origin.clone(),
                },
            );
        }
        Ok(())
    }

    fn line(&mut self, line: &str, origin: &Arc<str>) -> Result<()> {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return Ok(());
        }
        let words = words(line)?;
        let word = |at: usize| words.get(at).map(String::as_str).filter(|w| *w != "-");
        let name = word(1);
        match (words[0].as_str(), name) {
            ("u" | "u!", Some(name)) => {
                let options = Options { id: word(2), comment: word(3), home: word(4), shell: word(5) };
                self.user(name, &options, origin)
            }
            ("g", Some(name)) => {
                let fixed =
                    word(2).map(|id| id.parse().with_context(|| format!("group id `{id}`"))).transpose()?;
                self.group(name, fixed, origin)
            }
            ("m", Some(user)) => {
                let group = word(2).context("`m` needs a user and a group")?;
                self.group(group, None, origin)?;
                self.groups.entry(group.to_owned()).and_modify(|g| {
                    g.members.insert(user.to_owned());
                });
                Ok(())
            }
            ("r", _) => Ok(()),
            (kind, _) => bail!("kind `{kind}` or its name cannot be read, must be one of u, g, m, r"),
        }
    }

    fn user(&mut self, name: &str, options: &Options<'_>, origin: &Arc<str>) -> Result<()> {
        valid(name)?;
        let (uid, group) =
            match options.id.map(|id| id.split_once(':').map_or((id, None), |(u, g)| (u, Some(g)))) {
                None => (None, None),
                Some((uid, group)) => (Some(uid).filter(|uid| *uid != "-"), group),
            };
        let fixed = uid.map(|uid| uid.parse().with_context(|| format!("user id `{uid}`"))).transpose()?;
        let group = match group.map(|group| (group, group.parse::<u32>())) {
            Some((_, Ok(gid))) => {
                self.group(name, Some(gid), origin)?;
                name.to_owned()
            }
            Some((group, Err(_))) => group.to_owned(),
            None => {
                // sysusers.d(5): the group of the same name gets the same id, if it is not fixed otherwise.
                let taken = self.groups.contains_key(name);
                self.group(name, fixed.filter(|_| !taken), origin)?;
                name.to_owned()
            }
        };
        if let Some(there) = self.users.get(name) {
            ensure!(
                fixed.is_none() || there.fixed.is_none() || fixed == there.fixed,
                "user `{name}` has two ids: {:?} from {} and {fixed:?} from {origin}",
                there.fixed,
                there.origin
            );
            return Ok(());
        }
        let account = Account {
            fixed,
            group,
            comment: options.comment.unwrap_or_default().to_owned(),
            home: options.home.unwrap_or("/").to_owned(),
            shell: options.shell.unwrap_or("/usr/sbin/nologin").to_owned(),
            password: "!*".to_owned(),
            person: false,
            origin: origin.clone(),
        };
        ensure!(
            [&account.comment, &account.home, &account.shell].iter().all(|f| !f.contains([':', '\n', '%'])),
            "user `{name}`: a field has `:` or a `%` specifier, which images do not support"
        );
        self.users.insert(name.to_owned(), account);
        Ok(())
    }

    fn group(&mut self, name: &str, fixed: Option<u32>, origin: &Arc<str>) -> Result<()> {
        valid(name)?;
        let group = self.groups.entry(name.to_owned()).or_insert_with(|| Group {
            fixed,
            members: BTreeSet::new(),
            person: false,
            origin: origin.clone(),
        });
        ensure!(
            fixed.is_none() || group.fixed.is_none() || fixed == group.fixed,
            "group `{name}` has two ids: {:?} from {} and {fixed:?} from {origin}",
            group.fixed,
            group.origin
        );
        group.fixed = group.fixed.or(fixed);
        Ok(())
    }

    fn person(&mut self, person: &User) -> Result<()> {
        let name = &person.name;
        valid(name).with_context(|| format!("settings.users: `{name}`"))?;
        let origin: Arc<str> = "settings.users".into();
        if let Some(there) = self.users.get(name) {
            bail!("settings.users: `{name}` is already an account of {}; choose another name", there.origin);
        }
        self.groups.entry(name.clone()).or_insert_with(|| Group {
            fixed: None,
            members: BTreeSet::new(),
            person: true,
            origin: origin.clone(),
        });
        for group in &person.groups {
            let Some(group) = self.groups.get_mut(group) else {
                bail!(
                    "settings.users: `{name}` is in group `{group}`, which no package of the image declares"
                )
            };
            group.members.insert(name.clone());
        }
        self.users.insert(
            name.clone(),
            Account {
                fixed: None,
                group: name.clone(),
                comment: String::new(),
                home: format!("/var/home/{name}"),
                shell: person.shell.clone(),
                password: person.password_hash.clone().unwrap_or_else(|| "!*".to_owned()),
                person: true,
                origin,
            },
        );
        Ok(())
    }

    fn groups_exist(&self) -> Result<()> {
        for (name, account) in &self.users {
            ensure!(
                self.groups.contains_key(&account.group),
                "user `{name}` (from {}) has group `{}`, which nothing declares",
                account.origin,
                account.group
            );
        }
        for (name, group) in &self.groups {
            if let Some(member) = group.members.iter().find(|member| !self.users.contains_key(*member)) {
                bail!(
                    "group `{name}` (from {}) has member `{member}`, who is no user of the image",
                    group.origin
                );
            }
        }
        Ok(())
    }
}

/// Optional fields of a `u` line.
struct Options<'a> {
    id: Option<&'a str>,
    comment: Option<&'a str>,
    home: Option<&'a str>,
    shell: Option<&'a str>,
}

fn write_people(people: &[User], tree: &mut Tree, origin: &Arc<str>) -> Result<()> {
    let mut homes = String::new();
    for person in people {
        let name = &person.name;
        ensure!(
            tree.file(&person.shell).is_some(),
            "settings.users: `{name}` has shell {}, which is not in the image",
            person.shell
        );
        writeln!(homes, "d /var/home/{name} 0700 {name} {name} -")?;
        if !person.ssh_keys.is_empty() {
            let keys = person.ssh_keys.iter().map(|key| format!("{}\n", key.trim())).collect::<String>();
            tree.replace(&format!("/etc/ssh/authorized_keys.d/{name}"), Entry::text(keys, origin))?;
        }
    }
    if !homes.is_empty() {
        tree.replace(
            "/usr/lib/tmpfiles.d/farhold-homes.conf",
            Entry::text(format!("d /var/home 0755 root root -\n{homes}"), origin),
        )?;
    }
    Ok(())
}

fn claim(
    ids: &mut BTreeMap<String, u32>,
    what: &str,
    name: &str,
    fixed: Option<u32>,
    origin: &str,
) -> Result<()> {
    let Some(fixed) = fixed else { return Ok(()) };
    if let Some(locked) = ids.get(name).filter(|locked| **locked != fixed) {
        bail!(
            "{what} `{name}` has id {locked} in the lock, but {origin} now declares {fixed}; files on devices belong to \
             {locked}: keep the older package, or start a new product with a new lock"
        );
    }
    if let Some((other, _)) = ids.iter().find(|(other, id)| **id == fixed && other.as_str() != name) {
        bail!("{what} `{name}` (from {origin}) declares id {fixed}, which belongs to `{other}`");
    }
    ids.insert(name.to_owned(), fixed);
    Ok(())
}

fn free(taken: &[&BTreeMap<String, u32>], person: bool) -> Option<u32> {
    let taken: BTreeSet<u32> = taken.iter().flat_map(|ids| ids.values().copied()).collect();
    let open = |id: &u32| !taken.contains(id);
    if person { PEOPLE_IDS.into_iter().find(open) } else { SYSTEM_IDS.rev().find(open) }
}

fn id(ids: &BTreeMap<String, u32>, what: &str, name: &str) -> Result<u32> {
    ids.get(name)
        .copied()
        .with_context(|| format!("{what} `{name}` has no id in the lock; run `farhold lock` again"))
}

fn text(tree: &Tree, path: &str) -> Result<String> {
    let data =
        tree.file(path).with_context(|| format!("{path} is not in the image; the os pack must bring it"))?;
    let bytes = data.bytes(TEXT_LIMIT).with_context(|| format!("read {path}"))?;
    String::from_utf8(bytes).with_context(|| format!("read {path}"))
}

/// Names as Debian's adduser accepts them, and sysusers.d's with `_` first.
fn valid(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    ensure!(
        first && rest && name.len() <= 31,
        "name `{name}` must be at most 31 of a-z, 0-9, `_` and `-`, and start with a letter or `_`"
    );
    Ok(())
}

/// Splits a line at blanks; double quotes hold words together.
fn words(line: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').context("a quote is not closed")?,
            None => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(sysusers: &str) -> Tree {
        let origin: Arc<str> = "base-passwd".into();
        let mut tree = Tree::new(&origin);
        tree.add(GROUP_MASTER, Entry::text("root:*:0:\nshadow:*:42:\nsudo:*:27:\n", &origin)).unwrap();
        tree.add(PASSWD_MASTER, Entry::text("root:*:0:0:root:/root:/bin/bash\n", &origin)).unwrap();
        tree.add("/usr/bin/bash", Entry::text("", &origin)).unwrap();
        tree.add("/usr/lib/sysusers.d/x.conf", Entry::text(sysusers, &"x".into())).unwrap();
        tree
    }

    fn person(name: &str, groups: &[&str]) -> User {
        User {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            shell: "/bin/bash".into(),
            password_hash: None,
            ssh_keys: vec!["ssh-ed25519 AAAA admin".into()],
        }
    }

    #[test]
    fn writes_the_four_files() {
        let mut tree = tree(
            "# c\nu messagebus - \"System Message Bus\"\ng render - -\nm messagebus render\nu! x 700 - /var/x\n",
        );
        let people = [person("admin", &["sudo"])];
        let accounts =
            Accounts::collect(&tree, &[("ssh".into(), "u sshd -:65534 - /run/sshd".into())], &people)
                .unwrap();
        let ids = accounts.allocate(&Ids::default()).unwrap();
        accounts.write(&ids, &people, &mut tree).unwrap();
        let read = |path: &str| String::from_utf8(tree.file(path).unwrap().bytes(9999).unwrap()).unwrap();
        assert_eq!(
            read("/etc/passwd"),
            "root:x:0:0:root:/root:/bin/bash\nx:x:700:700::/var/x:/usr/sbin/nologin\n\
             sshd:x:998:65534::/run/sshd:/usr/sbin/nologin\n\
             messagebus:x:999:999:System Message Bus:/:/usr/sbin/nologin\nadmin:x:1000:1000::/var/home/admin:/bin/bash\n"
        );
        assert_eq!(
            read("/etc/group"),
            "root:x:0:\nsudo:x:27:admin\nshadow:x:42:\nx:x:700:\nrender:x:998:messagebus\nmessagebus:x:999:\nadmin:x:1000:\nsshd:x:65534:\n"
        );
        assert!(read("/etc/shadow").starts_with("root:*:::::::\n"));
        assert_eq!(read("/etc/ssh/authorized_keys.d/admin"), "ssh-ed25519 AAAA admin\n");
        assert_eq!(tree.get("/etc/shadow").unwrap().group.as_ref(), "shadow");
    }

    #[test]
    fn ids_outlive_order_and_absence() {
        let both = Accounts::collect(&tree("u a -\nu b -\n"), &[], &[]).unwrap();
        let first = both.allocate(&Ids::default()).unwrap();
        let only_b = Accounts::collect(&tree("u b -\nu c -\n"), &[], &[]).unwrap().allocate(&first).unwrap();
        assert_eq!(only_b.uids["b"], first.uids["b"]);
        assert_eq!(only_b.uids["a"], first.uids["a"], "a retired name keeps its id");
        assert_ne!(only_b.uids["c"], first.uids["a"]);
    }

    #[test]
    fn a_changed_id_is_an_error() {
        let mut locked = Ids::default();
        locked.uids.insert("a".into(), 998);
        let accounts = Accounts::collect(&tree("u a 321\n"), &[], &[]).unwrap();
        let error = accounts.allocate(&locked).unwrap_err().to_string();
        assert!(error.starts_with("user `a` has id 998 in the lock, but x now declares 321;"), "{error}");
        locked.uids.insert("a".into(), 321);
        locked.uids.insert("z".into(), 654);
        let taken = Accounts::collect(&tree("u a 321\nu q 654\n"), &[], &[]).unwrap();
        let error = taken.allocate(&locked).unwrap_err().to_string();
        assert_eq!(error, "user `q` (from x) declares id 654, which belongs to `z`");
    }

    #[test]
    fn bad_lines_name_file_and_line() {
        for (line, end) in [
            ("q a -", "kind `q` or its name cannot be read, must be one of u, g, m, r"),
            ("u A -", "name `A` must be at most 31 of a-z, 0-9, `_` and `-`, and start with a letter or `_`"),
            ("u a \"x", "a quote is not closed"),
        ] {
            let error = format!("{:#}", Accounts::collect(&tree(line), &[], &[]).unwrap_err());
            assert_eq!(error, format!("/usr/lib/sysusers.d/x.conf:1 (from x): {end}"));
        }
        let error =
            Accounts::collect(&tree(""), &[], &[person("admin", &["wheel"])]).unwrap_err().to_string();
        assert_eq!(
            error,
            "settings.users: `admin` is in group `wheel`, which no package of the image declares"
        );
    }
}
