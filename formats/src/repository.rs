//! Under which names a repository holds announcements, root documents, objects and catalogues: the same on a web server,
//! a stick, in a folder or as MQTT topics. Layout: `docs/formats.md`, "Repository". Knows no carriers and no contents.
//!
//! All names are relative, with `/`, of lower-case hexadecimal digits and the words below: safe on any file system.

use crate::frame::{Announcement, Scope};
use crate::hex::{self, Digest};

/// The announcement of a folder that holds one release.
pub const ANNOUNCE: &str = "announce";
/// The chain of root documents.
pub const ROOTS: &str = "roots";
/// Folder of objects and their lists.
pub const OBJECTS: &str = "objects";
/// Folder of the newest announcement for each target, channel and scope.
pub const ANNOUNCEMENTS: &str = "announcements";
/// Folder of the announcements of all releases, by manifest: for those who publish, not for devices.
pub const RELEASES: &str = "releases";
/// Folder of waves: how many of the devices that an announcement is for may take it by now.
pub const WAVES: &str = "waves";
/// Folder of payload catalogues.
pub const CATALOGUES: &str = "catalogues";

/// Name of the newest announcement for a target tag, a channel and a scope.
///
/// A device asks for [`Scope::All`] and, if it belongs to a site, for the site's and its own; where there is none,
/// [`ANNOUNCE`] may be.
pub fn announcement(target: &[u8; 8], channel: u8, scope: Scope) -> String {
    format!("{ANNOUNCEMENTS}/{}", scoped(target, channel, scope))
}

/// Name of the wave of the announcement with the same target tag, channel and scope.
pub fn wave(target: &[u8; 8], channel: u8, scope: Scope) -> String {
    format!("{WAVES}/{}", scoped(target, channel, scope))
}

fn scoped(target: &[u8; 8], channel: u8, scope: Scope) -> String {
    let scope = match scope {
        Scope::All => String::new(),
        Scope::Site(tag) => format!("-site-{}", hex::encode(&tag)),
        Scope::Device(tag) => format!("-device-{}", hex::encode(&tag)),
    };
    format!("{}-{channel}{scope}", hex::encode(target))
}

/// Name under which a repository announces what `said` announces.
pub fn announcement_of(said: &Announcement) -> String {
    announcement(&said.target, said.channel, said.scope)
}

/// Name of an announcement in the list of all releases.
pub fn release(manifest: &Digest) -> String {
    format!("{RELEASES}/{manifest}")
}

/// Name of an object's bytes.
pub fn object(id: &Digest) -> String {
    format!("{OBJECTS}/{id}")
}

/// Name of an object's hash file; there is one if the object has more than one block.
pub fn lists(id: &Digest) -> String {
    format!("{OBJECTS}/{id}.lists")
}

/// Name of the catalogue of a release for devices that run the slot image `base`, or for all others.
pub fn catalogue(manifest: &Digest, base: Option<&Digest>) -> String {
    match base {
        Some(roothash) => format!("{CATALOGUES}/{manifest}/{roothash}"),
        None => format!("{CATALOGUES}/{manifest}/any"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::frame::target_tag;

    #[test]
    fn names_are_as_the_document_says() {
        let tag = target_tag("edge", "vm", Arch::X86_64);
        assert_eq!(announcement(&tag, 0, Scope::All), "announcements/33b3343b4722dc34-0");
        let site = announcement(&tag, 7, Scope::Site([1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(site, "announcements/33b3343b4722dc34-7-site-01020304050607");
        let (manifest, base) = (Digest([0xaa; 32]), Digest([0xbb; 32]));
        assert_eq!(lists(&manifest), format!("objects/{}.lists", "aa".repeat(32)));
        let name = catalogue(&manifest, Some(&base));
        assert_eq!(name, format!("catalogues/{}/{}", "aa".repeat(32), "bb".repeat(32)));
        assert_eq!(catalogue(&manifest, None), format!("catalogues/{}/any", "aa".repeat(32)));
    }
}
