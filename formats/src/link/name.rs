//! Names of a repository in few bytes: `objects/<64 digits>` takes 33.

use super::array;
use crate::hex::{self, Digest};
use crate::repository as names;

/// A name that a device may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// The announcement of a folder with one release.
    Announce,
    /// The chain of root documents.
    Roots,
    /// An object.
    Object(Digest),
    /// An object's hash lists.
    Lists(Digest),
    /// The newest announcement for a target and channel; scope as in a frame: kind, then seven bytes.
    Announcement([u8; 8], u8, [u8; 8]),
    /// A catalogue for those who run a slot image.
    Catalogue(Digest, Digest),
    /// A catalogue for all others.
    CatalogueAny(Digest),
    /// The wave of the announcement for the same target, channel and scope.
    Wave([u8; 8], u8, [u8; 8]),
}

/// Whom an announcement or a wave is for: target, channel, scope as in a frame.
type Whom = ([u8; 8], u8, [u8; 8]);

const SCOPES: [(u8, &str); 2] = [(1, "site"), (2, "device")];

impl Name {
    /// Longest encoding, bytes.
    pub const MAX_BYTES: usize = 65;

    /// Reads a name of [`crate::repository`]; `None` for those that no device asks for.
    pub fn from_path(path: &str) -> Option<Self> {
        if path == names::ANNOUNCE {
            return Some(Self::Announce);
        }
        if path == names::ROOTS {
            return Some(Self::Roots);
        }
        let (folder, rest) = path.split_once('/')?;
        match folder {
            names::OBJECTS => match rest.strip_suffix(".lists") {
                Some(id) => Digest::parse(id).map(Self::Lists),
                None => Digest::parse(rest).map(Self::Object),
            },
            names::CATALOGUES => {
                let (manifest, base) = rest.split_once('/')?;
                let manifest = Digest::parse(manifest)?;
                match base {
                    "any" => Some(Self::CatalogueAny(manifest)),
                    base => Some(Self::Catalogue(manifest, Digest::parse(base)?)),
                }
            }
            names::ANNOUNCEMENTS => {
                whom(rest).map(|(target, channel, scope)| Self::Announcement(target, channel, scope))
            }
            names::WAVES => whom(rest).map(|(target, channel, scope)| Self::Wave(target, channel, scope)),
            _ => None,
        }
    }

    /// The name as [`crate::repository`] has it.
    pub fn path(&self) -> String {
        match self {
            Self::Announce => names::ANNOUNCE.to_owned(),
            Self::Roots => names::ROOTS.to_owned(),
            Self::Object(id) => names::object(id),
            Self::Lists(id) => names::lists(id),
            Self::Catalogue(manifest, base) => names::catalogue(manifest, Some(base)),
            Self::CatalogueAny(manifest) => names::catalogue(manifest, None),
            Self::Announcement(target, channel, scope) => {
                format!("{}/{}", names::ANNOUNCEMENTS, spelled(target, *channel, scope))
            }
            Self::Wave(target, channel, scope) => {
                format!("{}/{}", names::WAVES, spelled(target, *channel, scope))
            }
        }
    }

    /// Appends the name.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, parts): (u8, [&[u8]; 3]) = match self {
            Self::Announce => (0, [&[], &[], &[]]),
            Self::Roots => (1, [&[], &[], &[]]),
            Self::Object(id) => (2, [&id.0, &[], &[]]),
            Self::Lists(id) => (3, [&id.0, &[], &[]]),
            Self::Announcement(target, channel, scope) => (4, [target, &[*channel], scope]),
            Self::Catalogue(manifest, base) => (5, [&manifest.0, &base.0, &[]]),
            Self::CatalogueAny(manifest) => (6, [&manifest.0, &[], &[]]),
            Self::Wave(target, channel, scope) => (7, [target, &[*channel], scope]),
        };
        out.push(kind);
        parts.iter().for_each(|part| out.extend_from_slice(part));
    }

    /// Reads a name; what follows stays.
    pub(crate) fn parse(rest: &mut &[u8]) -> Option<Self> {
        let [kind] = array(rest)?;
        Some(match kind {
            0 => Self::Announce,
            1 => Self::Roots,
            2 => Self::Object(Digest(array(rest)?)),
            3 => Self::Lists(Digest(array(rest)?)),
            4 => {
                let (target, channel, scope) = encoded(rest)?;
                Self::Announcement(target, channel, scope)
            }
            5 => Self::Catalogue(Digest(array(rest)?), Digest(array(rest)?)),
            6 => Self::CatalogueAny(Digest(array(rest)?)),
            7 => {
                let (target, channel, scope) = encoded(rest)?;
                Self::Wave(target, channel, scope)
            }
            _ => return None,
        })
    }
}

fn spelled(target: &[u8; 8], channel: u8, [kind, tag @ ..]: &[u8; 8]) -> String {
    let scope = SCOPES.iter().find(|(number, _)| number == kind);
    let scope = scope.map_or_else(String::new, |(_, word)| format!("-{word}-{}", hex::encode(tag)));
    format!("{}-{channel}{scope}", hex::encode(target))
}

fn encoded(rest: &mut &[u8]) -> Option<Whom> {
    let (target, [channel], scope): (_, _, [u8; 8]) = (array(rest)?, array(rest)?, array(rest)?);
    let good = match scope[0] {
        0 => scope == [0; 8],
        kind => SCOPES.iter().any(|(known, _)| *known == kind),
    };
    good.then_some((target, channel, scope))
}

fn whom(rest: &str) -> Option<Whom> {
    let mut words = rest.split('-');
    let target = hex::decode(words.next()?)?;
    let digits = words.next()?;
    let channel: u8 = digits.parse().ok().filter(|channel: &u8| channel.to_string() == digits)?;
    let mut scope = [0; 8];
    if let Some(word) = words.next() {
        let (kind, _) = SCOPES.iter().find(|(_, known)| *known == word)?;
        let tag: [u8; 7] = hex::decode(words.next()?)?;
        scope[0] = *kind;
        scope[1..].copy_from_slice(&tag);
    }
    words.next().is_none().then_some((target, channel, scope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Scope;

    #[test]
    fn names_come_back_in_both_spellings() {
        let (a, b) = (Digest([0xaa; 32]), Digest([0xbb; 32]));
        let all = [
            Name::Announce,
            Name::Roots,
            Name::Object(a),
            Name::Lists(a),
            Name::Announcement([7; 8], 0, [0; 8]),
            Name::Announcement([7; 8], 200, [1, 2, 3, 4, 5, 6, 7, 8]),
            Name::Announcement([7; 8], 3, [2, 2, 3, 4, 5, 6, 7, 8]),
            Name::Catalogue(a, b),
            Name::CatalogueAny(b),
            Name::Wave([7; 8], 0, [0; 8]),
            Name::Wave([7; 8], 200, [1, 2, 3, 4, 5, 6, 7, 8]),
            Name::Wave([7; 8], 3, [2, 2, 3, 4, 5, 6, 7, 8]),
        ];
        for name in all {
            assert_eq!(Name::from_path(&name.path()), Some(name), "{}", name.path());
            let mut bytes = Vec::new();
            name.encode(&mut bytes);
            assert!(bytes.len() <= Name::MAX_BYTES);
            assert_eq!(Name::parse(&mut bytes.as_slice()), Some(name));
        }
    }

    #[test]
    fn other_paths_have_no_name() {
        let paths = [
            "",
            "/",
            "objects/",
            "objects/..",
            "releases/aa",
            "announcements/0011223344556677-07",
            "roots/x",
        ];
        let more =
            ["announcements/0011223344556677-7-city-01020304050607", "waves/0011223344556677-07", "waves/x"];
        for path in paths.into_iter().chain(more) {
            assert_eq!(Name::from_path(path), None, "{path}");
        }
    }

    #[test]
    fn waves_are_spelled_as_repositories_spell_them() {
        let site = Scope::Site([1, 2, 3, 4, 5, 6, 7]);
        let path = names::wave(&[7; 8], 9, site);
        assert_eq!(Name::from_path(&path), Some(Name::Wave([7; 8], 9, [1, 1, 2, 3, 4, 5, 6, 7])));
        let parse = |kind: u8, scope: [u8; 8]| {
            Name::parse(&mut [&[kind; 1], [7; 8].as_slice(), &[9], &scope].concat().as_slice())
        };
        assert_eq!(parse(7, [0; 8]), Some(Name::Wave([7; 8], 9, [0; 8])));
        assert_eq!(parse(4, [0; 8]), Some(Name::Announcement([7; 8], 9, [0; 8])));
        for bad in [[3, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]] {
            assert_eq!((parse(7, bad), parse(4, bad)), (None, None));
        }
    }
}
