//! `farhold keys`: makes, shows and replaces keys and the root documents that appoint them.

use crate::release::keys::{Counts, KeyFolder, PrivateKey, ROOTS, read_chain, read_public, replace_file};
use anyhow::{Context, Result, anyhow, bail};
use formats::keys::{PublicKey, Role};
use formats::roles::{Chain, Root, SignedRoot};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Makes, shows and replaces keys and the root documents that appoint them.
#[derive(clap::Args)]
pub struct KeysCmd {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a folder of development keys: all private keys in one place, for demonstrations.
    New {
        /// New folder.
        dir: PathBuf,
        /// Number of release keys (at most 8).
        #[arg(long, default_value_t = 3)]
        release_keys: u8,
        /// Release keys that must sign a release.
        #[arg(long, default_value_t = 2)]
        threshold: u8,
        /// Number of root keys (at most 8).
        #[arg(long, default_value_t = 3)]
        root_keys: u8,
        /// Root keys that must sign a root document or a rescue.
        #[arg(long, default_value_t = 2)]
        root_threshold: u8,
    },
    /// Make one key pair where it will stay: FILE and FILE.pub.
    Generate {
        /// New private key file.
        file: PathBuf,
    },
    /// Write a root document that appoints public keys, for its holders to sign with `farhold sign`.
    Root(RootCmd),
    /// Show who may sign what, and which private keys are here.
    Show {
        /// Key folder, or a file of root documents.
        path: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Appoint new keys in place of old ones, in a folder that holds enough root keys.
    Rotate {
        /// Key folder.
        dir: PathBuf,
        /// Key to replace: root-N, release-N or catalogue; may be given more than once, or not at all (a new root
        /// version alone resets sequence numbers and time watermark).
        #[arg(long, value_name = "KEY")]
        replace: Vec<String>,
    },
}

#[derive(clap::Args)]
struct RootCmd {
    /// File of root documents: made, or a new version added.
    file: PathBuf,
    /// Public key file of a root key; repeat for each.
    #[arg(long, value_name = "FILE", required = true)]
    root_key: Vec<PathBuf>,
    /// Root keys that must sign.
    #[arg(long)]
    root_threshold: u8,
    /// Public key file of a release key; repeat for each.
    #[arg(long, value_name = "FILE", required = true)]
    release_key: Vec<PathBuf>,
    /// Release keys that must sign.
    #[arg(long)]
    threshold: u8,
    /// Public key file of the catalogue key.
    #[arg(long, value_name = "FILE")]
    catalogue_key: PathBuf,
}

impl KeysCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If a file exists that would be overwritten, or cannot be read or written.
    pub fn run(&self) -> Result<ExitCode> {
        match &self.command {
            Command::New { dir, release_keys, threshold, root_keys, root_threshold } => {
                let (release, release_threshold) = (*release_keys, *threshold);
                let (root, root_threshold) = (*root_keys, *root_threshold);
                let counts = Counts { root, root_threshold, release, release_threshold };
                KeyFolder::create(dir, counts, signing_time()?)?;
                println!(
                    "{}: {root} root keys ({root_threshold} must sign), {release} release keys \
                     ({release_threshold} must sign), 1 catalogue key: all for development only",
                    dir.display()
                );
            }
            Command::Generate { file } => {
                let key = PrivateKey::generate()?;
                key.write_new(file)?;
                println!("{}: public key {}", file.display(), key.public()?);
            }
            Command::Root(root) => root.run()?,
            Command::Show { path, json } => show(path, *json)?,
            Command::Rotate { dir, replace } => {
                let mut keys = KeyFolder::open(dir)?;
                keys.rotate(replace, signing_time()?)?;
                println!("{}: root version {} is in force", dir.display(), keys.root().version);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl RootCmd {
    fn run(&self) -> Result<()> {
        let mut documents = Vec::new();
        if self.file.exists() {
            let (_, chain) = read_chain(&self.file)?;
            chain
                .verify()
                .context("a new version needs a complete predecessor: collect its signatures first")?;
            documents = chain.documents().to_vec();
        }
        let last = documents.last().map_or(0, |last| last.root.version);
        let root = Root {
            version: last.checked_add(1).ok_or_else(|| anyhow!("root version 65535 is the last"))?,
            signed_s: signing_time()?,
            root: role(self.root_threshold, &self.root_key, "root")?,
            release: role(self.threshold, &self.release_key, "release")?,
            catalogue: read_public(&self.catalogue_key)?,
            ignored: Default::default(),
        };
        root.check().context("check the new root document")?;
        let version = root.version;
        documents.push(SignedRoot::unsigned(root));
        replace_file(&self.file, &Chain::new(documents)?.encode())?;
        println!(
            "{}: root version {version}, not signed yet; holders of {}: farhold sign {} --key FILE",
            self.file.display(),
            if last == 0 { "its root keys" } else { "the old and the new root keys" },
            self.file.display()
        );
        Ok(())
    }
}

fn role(threshold: u8, files: &[PathBuf], what: &str) -> Result<Role> {
    let keys = files.iter().map(|file| read_public(file)).collect::<Result<Vec<PublicKey>>>()?;
    Role::new(threshold, keys).with_context(|| format!("choose {what} keys"))
}

/// The time to sign with: SOURCE_DATE_EPOCH, else the clock. Seconds since 1970.
pub(crate) fn signing_time() -> Result<u32> {
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => {
            text.parse().with_context(|| format!("SOURCE_DATE_EPOCH is `{text}`, must be seconds"))?
        }
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs(),
    };
    u32::try_from(seconds).with_context(|| format!("time {seconds} is beyond the year 2106"))
}

fn show(path: &Path, as_json: bool) -> Result<()> {
    let file = if path.is_dir() { path.join(ROOTS) } else { path.to_owned() };
    let (chain, folder) = if path.is_dir() {
        let folder = KeyFolder::open(path)?;
        (folder.chain().clone(), Some(folder))
    } else if path.exists() {
        (read_chain(path)?.1, None)
    } else {
        bail!("no keys at {0}: run `farhold keys new {0}` for development keys", path.display());
    };
    let trusted = chain.verify();
    let root = chain.newest();
    let here = |role: &Role| -> Result<Vec<u8>> {
        let signers = folder.as_ref().map_or(Ok(Vec::new()), |folder| folder.signers(role))?;
        Ok(signers.iter().map(|signer| signer.number).collect())
    };
    let catalogue = Role::new(1, vec![root.catalogue])?;
    let roles = [("root", &root.root), ("release", &root.release), ("catalogue", &catalogue)];
    let mut rows = Vec::new();
    for (name, role) in roles {
        let here = here(role)?;
        for (number, key) in (0u8..).zip(role.keys()) {
            rows.push((name, role.threshold(), number, *key, here.contains(&number)));
        }
    }
    if as_json {
        let keys: Vec<Value> = rows
            .iter()
            .map(|(role, threshold, number, key, here)| {
                json!({ "role": role, "threshold": threshold, "number": number + 1, "public": key.to_string(), "private_here": here })
            })
            .collect();
        let error = trusted.as_ref().err().map(|error| format!("{:#}", anyhow!(error.clone())));
        let versions = chain.documents().len();
        println!(
            "{}",
            json!({ "version": root.version, "versions": versions, "signed_s": root.signed_s, "complete": error.is_none(), "error": error, "keys": keys })
        );
        return Ok(());
    }
    println!("root version {} of {} in {}", root.version, chain.documents().len(), file.display());
    match trusted {
        Ok(_) => println!("complete: signed by enough root keys"),
        Err(error) => println!("NOT complete: {:#}", anyhow!(error)),
    }
    for (role, threshold, number, key, here) in rows {
        let place = if here { "private key here" } else { "" };
        println!("  {role:9} {} (of which {threshold} must sign)  {key}  {place}", number + 1);
    }
    Ok(())
}
