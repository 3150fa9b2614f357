//! Reads Debian binary packages (deb(5)): an `ar` archive of a version, a control tar and a data tar.
//!
//! Everything that comes from the file is bounded. Knows nothing of what is done with the contents.

use anyhow::{Context, Result, bail};
use std::io::{BufReader, Read};

/// Most bytes of one control file: the largest known (md5sums of a kernel) has under 1 MB.
const MAX_CONTROL_BYTES: u64 = 16 << 20;
/// Most members of the outer archive: deb(5) has three, plus a few that begin with `_`.
const MAX_OUTER: usize = 16;
/// Most files of one package: the largest of Debian 13 have about 60,000.
const MAX_MEMBERS: usize = 500_000;
/// Most bytes of one package's contents, unpacked.
const MAX_DATA_BYTES: u64 = 16 << 30;
/// Most bytes of a path (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Most memory that an xz decoder may ask for: `xz -9` needs 65 MiB.
const MAX_XZ_MEMORY: u64 = 80 << 20;

/// A path of a package.
#[derive(Clone, Debug)]
pub struct Member {
    /// Absolute path as the package spells it.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Name of its user.
    pub user: String,
    /// Name of its group.
    pub group: String,
    /// Bytes of data.
    pub size: u64,
}

/// What a path of a package is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A regular file; its data can be read while it is visited.
    File,
    /// A symbolic link and its target.
    Symlink(String),
    /// Another name of a file visited before, by its absolute path.
    Hardlink(String),
}

/// Takes what is in a package, in its order.
pub trait Visitor {
    /// One file of the control archive, as `postinst`.
    ///
    /// # Errors
    /// Ends the reading.
    fn control(&mut self, name: &str, bytes: Vec<u8>) -> Result<()>;
    /// One path of the data archive.
    ///
    /// # Errors
    /// Ends the reading.
    fn entry(&mut self, member: &Member, data: &mut dyn Read) -> Result<()>;
}

/// Reads a whole package.
///
/// # Errors
/// If it is no package, is cut short, goes beyond a limit, or the visitor fails.
pub fn read(package: impl Read, visitor: &mut impl Visitor) -> Result<()> {
    let mut outer = ar::Archive::new(BufReader::with_capacity(256 << 10, package));
    let mut seen: Vec<String> = Vec::new();
    while let Some(member) = outer.next_entry() {
        let member = member.context("read package: not a whole `ar` archive")?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        if seen.len() == MAX_OUTER {
            bail!("package has more than {MAX_OUTER} members");
        }
        match (seen.len(), name.as_str()) {
            (0, "debian-binary") => check_version(member)?,
            (0, _) => bail!("package starts with `{name}`, must start with `debian-binary`"),
            (_, name) if name.starts_with("control.tar") => {
                read_control(decompress(name, member)?, visitor).with_context(|| format!("read {name}"))?;
            }
            (_, name) if name.starts_with("data.tar") => {
                if !seen.iter().any(|name| name.starts_with("control.tar")) {
                    bail!("package has its data before its control archive");
                }
                read_tar(decompress(name, member)?, visitor).with_context(|| format!("read {name}"))?;
                return Ok(());
            }
            (_, name) if name.starts_with('_') => {}
            (_, name) => bail!("package has an unknown member `{name}`"),
        }
        seen.push(name);
    }
    bail!("package has no data.tar: it is cut short or not a Debian package")
}

fn check_version(member: impl Read) -> Result<()> {
    let mut text = String::new();
    member.take(16).read_to_string(&mut text).context("read debian-binary")?;
    if !text.starts_with("2.") {
        bail!("package format is `{}`, must be 2.x", text.trim());
    }
    Ok(())
}

/// A decompressing reader for a member or file name's ending: `.tar`, `.xz`, `.zst`, `.gz` or `.tgz`.
///
/// # Errors
/// If the ending is another, or a decoder cannot be set up.
pub fn decompress<'a>(name: &str, member: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let ending = name.rsplit('.').next().unwrap_or_default();
    Ok(match ending {
        "tar" => Box::new(member),
        "xz" => Box::new(xz(member)?),
        "zst" => Box::new(zstd::Decoder::new(member).context("start zstd")?),
        "gz" | "tgz" => Box::new(flate2::read::MultiGzDecoder::new(member)),
        _ => bail!("`{name}` is packed in an unknown way, must be .tar, .xz, .zst or .gz"),
    })
}

/// An xz decoder with bounded memory.
///
/// # Errors
/// If it cannot be set up.
pub fn xz<R: Read>(packed: R) -> Result<liblzma::read::XzDecoder<R>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(MAX_XZ_MEMORY, liblzma::stream::CONCATENATED)
        .context("start xz")?;
    Ok(liblzma::read::XzDecoder::new_stream(packed, stream))
}

fn read_control(data: impl Read, visitor: &mut impl Visitor) -> Result<()> {
    let mut archive = tar::Archive::new(data.take(MAX_MEMBERS as u64 * 512));
    for entry in archive.entries()? {
        let entry = entry?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            continue;
        }
        let path = entry.path()?.to_string_lossy().into_owned();
        let name = path.trim_start_matches("./").to_owned();
        if entry.size() > MAX_CONTROL_BYTES {
            bail!("control file `{name}` has {} bytes, limit is {MAX_CONTROL_BYTES}", entry.size());
        }
        let (size, mut bytes) = (entry.size(), Vec::new());
        entry.take(size).read_to_end(&mut bytes)?;
        visitor.control(&name, bytes)?;
    }
    Ok(())
}

/// Reads a tar archive (a package's data, or an artefact's) to its end.
///
/// # Errors
/// As [`read`].
pub fn read_tar(data: impl Read, visitor: &mut impl Visitor) -> Result<()> {
    let mut archive = tar::Archive::new(data);
    let mut left = MAX_DATA_BYTES;
    for (count, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        if count == MAX_MEMBERS {
            bail!("more than {MAX_MEMBERS} files");
        }
        let Some(member) = member(&entry)? else { continue };
        left = match left.checked_sub(member.size) {
            Some(left) => left,
            None => bail!("more than {MAX_DATA_BYTES} bytes unpacked"),
        };
        visitor.entry(&member, &mut entry).with_context(|| format!("unpack {}", member.path))?;
    }
    // The end must be there too: a decoder notices a cut or damaged stream only when it is read to its end.
    std::io::copy(&mut archive.into_inner().take(1 << 20), &mut std::io::sink())?;
    Ok(())
}

fn member(entry: &tar::Entry<'_, impl Read>) -> Result<Option<Member>> {
    let header = entry.header();
    let path = absolute(&entry.path_bytes())?;
    let link = || -> Result<String> {
        let target = entry.link_name_bytes().unwrap_or_default();
        match String::from_utf8(target.into_owned()) {
            Ok(target) if !target.is_empty() && target.len() <= MAX_PATH => Ok(target),
            Ok(_) | Err(_) => bail!("{path} links to a name that is empty, too long or not UTF-8"),
        }
    };
    // Types as tar(5) writes them.
    let kind = match header.entry_type().as_byte() {
        b'0' | b'7' | 0 => Kind::File,
        b'1' => Kind::Hardlink(absolute(link()?.as_bytes())?),
        b'2' => Kind::Symlink(link()?),
        b'5' => Kind::Dir,
        b'g' => return Ok(None),
        other => bail!("{path} is of tar type `{}`, which an image cannot hold", char::from(other)),
    };
    let named = |name: Option<&[u8]>, id: u64| match name.map(String::from_utf8_lossy) {
        Some(name) if !name.is_empty() => name.into_owned(),
        Some(_) | None if id == 0 => "root".to_owned(),
        Some(_) | None => id.to_string(),
    };
    let user = named(header.username_bytes(), header.uid()?);
    let group = named(header.groupname_bytes(), header.gid()?);
    let size = if kind == Kind::File { entry.size() } else { 0 };
    Ok(Some(Member { path, kind, mode: header.mode()? & 0o7777, user, group, size }))
}

/// Fields of one stanza of Debian control data (deb822(5)), in order; continued lines are joined by line feeds.
pub fn fields(stanza: &str) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in stanza.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    fields
}

/// An absolute path without `.`; `..` has no place in a package.
fn absolute(bytes: &[u8]) -> Result<String> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        bail!("path `{}` is not UTF-8", String::from_utf8_lossy(bytes));
    };
    if text.len() > MAX_PATH {
        bail!("path of {} bytes, limit is {MAX_PATH}", text.len());
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") || text.contains(['\0', '\n']) {
        bail!("path `{}` leads out of its folder", text.escape_default());
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests;
