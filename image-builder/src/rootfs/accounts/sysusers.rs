//! Lines of sysusers.d(5).

use super::{Account, Accounts};
use anyhow::{Result, bail};

const NOLOGIN: &str = "/usr/sbin/nologin";

impl Accounts {
    /// Takes one line.
    pub(super) fn declare(&mut self, origin: &str, line: &str) -> Result<()> {
        let fields = split(line)?;
        let field =
            |at: usize| fields.get(at).map(String::as_str).filter(|text| !text.is_empty() && *text != "-");
        let (Some(kind), Some(name)) = (field(0), field(1)) else { bail!("needs a type and a name") };
        match kind.trim_end_matches('!') {
            "u" => self.user(origin, name, [field(2), field(3), field(4), field(5)]),
            "g" => self.group(name, number(field(2))?, origin),
            "m" => {
                let Some(group) = field(2) else { bail!("type m needs a group") };
                self.group(group, None, origin)?;
                if !self.users.contains_key(name) {
                    self.user(origin, name, [None; 4])?;
                }
                if let Some(group) = self.groups.get_mut(group) {
                    group.members.insert(name.to_owned());
                }
                Ok(())
            }
            // A range for automatic ids; ids come from the lock.
            "r" => Ok(()),
            _ => bail!("type `{kind}` is none of u, g, m, r"),
        }
    }

    fn user(&mut self, origin: &str, name: &str, fields: [Option<&str>; 4]) -> Result<()> {
        super::check_name(name)?;
        let [id, gecos, home, shell] = fields;
        // `uid`, `uid:gid`, `uid:group`, `-:group`
        let (uid, group) = match id.and_then(|id| id.split_once(':')) {
            Some((uid, group)) => (Some(uid).filter(|uid| *uid != "-"), Some(group)),
            None => (id, None),
        };
        let uid = number(uid)?;
        let group_name = match group {
            Some(group) if group.parse::<u32>().is_err() => group.to_owned(),
            Some(gid) => {
                let gid = number(Some(gid))?;
                let named =
                    self.groups.iter().find(|(_, group)| group.gid == gid).map(|(name, _)| name.clone());
                match named {
                    Some(named) => named,
                    None => {
                        self.group(name, gid, origin)?;
                        name.to_owned()
                    }
                }
            }
            None => {
                self.group(name, uid, origin)?;
                name.to_owned()
            }
        };
        if let Some(there) = self.users.get_mut(name) {
            match (there.uid, uid) {
                (Some(a), Some(b)) if a != b => {
                    bail!("user `{name}` has id {a} by {} and id {b} by {origin}", there.origin)
                }
                (None, Some(_)) => there.uid = uid,
                (Some(_) | None, _) => {}
            }
            return Ok(());
        }
        let account = Account {
            origin: origin.to_owned(),
            uid,
            group: group_name,
            gecos: gecos.unwrap_or_default().replace([':', '\n'], " "),
            home: home.unwrap_or("/").to_owned(),
            shell: shell.unwrap_or(NOLOGIN).to_owned(),
            hash: "!*".into(),
            keys: Vec::new(),
            person: false,
        };
        if account.home.contains(':') || account.shell.contains(':') {
            bail!("home and shell must not contain `:`");
        }
        self.users.insert(name.to_owned(), account);
        Ok(())
    }
}

fn number(text: Option<&str>) -> Result<Option<u32>> {
    match text {
        None => Ok(None),
        // An id taken from the owner of a path: that path is not in the image yet, so the lock gives one.
        Some(path) if path.starts_with('/') => Ok(None),
        Some(text) => match text.parse() {
            Ok(id) => Ok(Some(id)),
            Err(_) => bail!("id `{text}` is not a number"),
        },
    }
}

/// Splits at blanks; double or single quotes hold a field together.
fn split(line: &str) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line.trim();
    while let Some(first) = rest.chars().next() {
        let (field, after) = if first == '"' || first == '\'' {
            match rest[1..].split_once(first) {
                Some(parts) => parts,
                None => bail!("a quote does not end"),
            }
        } else {
            rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
        };
        fields.push(field.to_owned());
        rest = after.trim_start();
    }
    Ok(fields)
}
