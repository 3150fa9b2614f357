//! Makes `/etc/ssl/certs` as `update-ca-certificates` would: a bundle, a link per certificate, and the links by subject
//! hash that OpenSSL looks for (`openssl-rehash(1)`).

use crate::store::Store;
use crate::tools::{Tool, ToolsRoot};
use crate::tree::{Entry, Node, Tree, name};
use anyhow::{Context, Result, bail};
use formats::hex::Digest;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::sync::Arc;

/// Certificates of the operator, below which packs and profiles put theirs.
const LOCAL: &str = "/usr/local/share/ca-certificates";
/// Most bytes of one certificate file.
const MAX_BYTES: u64 = 1 << 20;
/// Changes when what is cached changes.
const LAYOUT: &str = "certificate links 1";

/// Bundles the certificates (`*.crt`, PEM) in `folder` and in [`LOCAL`].
///
/// # Errors
/// If a file is no PEM certificate.
pub fn bundle(tree: &mut Tree, folder: &str, store: &Store, tools: &ToolsRoot) -> Result<()> {
    let mut certificates: Vec<(String, String, Vec<u8>)> = Vec::new();
    for folder in [folder, LOCAL] {
        for (path, entry) in tree.below(folder).filter(|(path, _)| path.ends_with(".crt")) {
            let Node::File(data) = &entry.node else { continue };
            let bytes =
                data.bytes(MAX_BYTES).with_context(|| format!("read {path} (from {})", entry.origin))?;
            if !bytes.starts_with(b"-----BEGIN CERTIFICATE-----") {
                bail!(
                    "{path} (from {}) is no PEM certificate: it must start with BEGIN CERTIFICATE",
                    entry.origin
                );
            }
            let short = name(path).trim_end_matches(".crt").replace([' ', ','], "_").replace(['(', ')'], "=");
            certificates.push((format!("{short}.pem"), path.to_owned(), bytes));
        }
    }
    certificates.sort();
    let mut text = Vec::new();
    for (_, _, bytes) in &certificates {
        text.extend_from_slice(bytes);
        if !bytes.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    let origin: Arc<str> = "certificates".into();
    tree.replace("/etc/ssl/certs/ca-certificates.crt", Entry::text(&text, &origin))?;
    for (link, path, _) in &certificates {
        tree.replace(&format!("/etc/ssl/certs/{link}"), Entry::symlink(path, &origin))?;
    }
    for (link, target) in hash_links(&certificates, store, tools)? {
        tree.replace(&format!("/etc/ssl/certs/{link}"), Entry::symlink(target, &origin))?;
    }
    Ok(())
}

/// Names by subject hash, and what they link to.
fn hash_links(
    certificates: &[(String, String, Vec<u8>)],
    store: &Store,
    tools: &ToolsRoot,
) -> Result<Vec<(String, String)>> {
    let mut key = Sha256::new();
    key.update(format!("{LAYOUT} {}", tools.path().display()));
    for (link, _, bytes) in certificates {
        key.update(format!("\n{link} "));
        key.update(Sha256::digest(bytes));
    }
    let folder = store.derive("certificates", &Digest(key.finalize().into()), |folder| {
        let scratch = store.scratch()?;
        for (link, _, bytes) in certificates {
            fs::write(scratch.path().join(link), bytes).with_context(|| store.full())?;
        }
        tools.command(Tool::Openssl).arg("rehash").arg(scratch.path()).run().context("hash certificates")?;
        let mut links = Vec::new();
        for entry in fs::read_dir(scratch.path()).context("read hashed certificates")? {
            let entry = entry.context("read hashed certificates")?;
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                let target = fs::read_link(entry.path()).context("read hashed certificates")?;
                let link = entry.file_name().to_string_lossy().into_owned();
                links.push((link, target.to_string_lossy().into_owned()));
            }
        }
        links.sort();
        fs::write(folder.join("links.json"), serde_json::to_vec(&links)?).with_context(|| store.full())
    })?;
    let bytes = fs::read(folder.join("links.json")).context("read links of certificates")?;
    serde_json::from_slice(&bytes).context("read links of certificates")
}
