//! `farhold sign`: adds one signature to an announcement frame or to a root document, on the machine where the key is.

use crate::release::folder::{ANNOUNCE, read_limited};
use crate::release::keys::{PrivateKey, ROOTS, read_chain, replace_file};
use anyhow::{Context, Result, anyhow, bail};
use formats::frame::{Frame, MAX_FRAME_BYTES};
use formats::hex;
use formats::keys::Role;
use formats::roles::Chain;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Adds one signature to a release's announcement or to the newest root document of a file.
#[derive(clap::Args)]
pub struct SignCmd {
    /// Release folder, announcement file, or file of root documents.
    path: PathBuf,
    /// Private key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Root documents, if an announcement file is given without its release.
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
}

impl SignCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the key may not sign this, or a file cannot be read or written.
    pub fn run(&self) -> Result<ExitCode> {
        let key = PrivateKey::read(&self.key)?;
        let announce = if self.path.is_dir() { self.path.join(ANNOUNCE) } else { self.path.clone() };
        let done = if self.path.is_file() && self.roots.is_none() && read_chain(&self.path).is_ok() {
            sign_roots(&self.path, &key)
        } else {
            let roots = match &self.roots {
                Some(roots) => roots.clone(),
                None => announce.with_file_name(ROOTS),
            };
            sign_frame(&announce, &roots, &key)
        };
        println!("{}", done?);
        Ok(ExitCode::SUCCESS)
    }
}

pub(crate) fn sign_frame(path: &Path, roots: &Path, key: &PrivateKey) -> Result<String> {
    let bytes = read_limited(path, MAX_FRAME_BYTES as u64)?;
    let mut frame = Frame::parse(&bytes).with_context(|| format!("read announcement {}", path.display()))?;
    let (_, chain) = read_chain(roots)?;
    let root = chain.verify().with_context(|| format!("verify root documents {}", roots.display()))?;
    let said = frame.unverified().clone();
    if said.root_version != root.version {
        bail!(
            "{} is to be signed under root version {}, but {} ends with version {}",
            path.display(),
            said.root_version,
            roots.display(),
            root.version
        );
    }
    let (name, role) = if said.rescue { ("root", &root.root) } else { ("release", &root.release) };
    frame.sign(number(role, name, key)?, key.sign(&said.signed_bytes()?))?;
    let enough = standing(frame.verify(role).err().map(|error| error.to_string()));
    replace_file(path, &frame.encode()?)?;
    Ok(format!(
        "{}: target {}, sequence {}.{}, manifest {}: signed by {} of {} {name} keys{enough}",
        path.display(),
        hex::encode(&said.target),
        said.root_version,
        said.sequence,
        said.manifest,
        frame.signers().len(),
        role.keys().len()
    ))
}

fn number(role: &Role, name: &str, key: &PrivateKey) -> Result<u8> {
    let public = key.public()?;
    let at = role.keys().iter().position(|known| *known == public);
    at.map(|at| at as u8)
        .ok_or_else(|| anyhow!("key {public} is none of the {name} keys: it may not sign this"))
}

fn sign_roots(path: &Path, key: &PrivateKey) -> Result<String> {
    let (_, chain) = read_chain(path)?;
    let mut documents = chain.documents().to_vec();
    let (public, last) = (key.public()?, documents.len() - 1);
    let recent = &documents[last.saturating_sub(1)..];
    if !recent.iter().any(|document| document.root.root.keys().contains(&public)) {
        bail!("key {public} is no root key of the newest document or its predecessor: it may not sign this");
    }
    let signature = key.sign(&documents[last].root.signed_bytes());
    documents[last].sign(public, signature);
    let version = documents[last].root.version;
    let chain = Chain::new(documents)?;
    let enough = standing(chain.verify().err().map(|error| format!("{:#}", anyhow!(error))));
    replace_file(path, &chain.encode())?;
    Ok(format!("{}: root version {version} signed by {public}{enough}", path.display()))
}

fn standing(missing: Option<String>) -> String {
    missing.map_or(": complete".to_owned(), |missing| format!(": not complete: {missing}"))
}
