//! Private keys in files, and the root documents that appoint them.
//!
//! A key file is PKCS#8 (RFC 8410) in PEM, mode 0600, as OpenSSL reads and writes it; a public key is the SPKI PEM
//! beside it. File names are for people: which key may sign what follows from the root documents. Knows nothing of
//! releases.

use anyhow::{Context, Result, anyhow, bail};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use formats::keys::{PublicKey, Role, SIGNATURE_BYTES};
use formats::roles::{Chain, MAX_CHAIN_BYTES, Root, SignedRoot};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// File of root documents in a key folder and in a release.
pub const ROOTS: &str = "roots";
/// In front of the names of keys that were all made in one place.
const DEVELOPMENT: &str = "dev-";
const NOTE: &str = "DEVELOPMENT-KEYS.txt";
const NOTE_TEXT: &str = "\
These keys were all made on one machine and lie in one folder: whoever reads it can sign releases for every
device that trusts the file `roots` here. They are for development and demonstrations.

For devices that matter, make each key where it stays (farhold keys generate), collect the public keys in a
root document (farhold keys root), and let each holder sign it (farhold sign). See docs/keys.md.
";
/// Longest key file that is read, bytes.
const MAX_KEY_FILE: u64 = 4096;

/// How many keys of each role, and how many of them must sign.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Root keys.
    pub root: u8,
    /// Root keys that must sign.
    pub root_threshold: u8,
    /// Release keys.
    pub release: u8,
    /// Release keys that must sign.
    pub release_threshold: u8,
}

/// A private key that can sign.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// A new key from the kernel's generator.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn generate() -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| anyhow!("get random bytes for a key: {error}"))?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// If it is no Ed25519 key in PKCS#8 PEM, or others than its owner may read it.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open private key {}", path.display()))?;
        let mode = file.metadata().with_context(|| format!("read {}", path.display()))?.permissions().mode();
        if mode & 0o077 != 0 {
            let path = path.display();
            bail!("private key {path} has mode {:o}, but must be 600: run `chmod 600 {path}`", mode & 0o777);
        }
        let text = read_text(file, path)?;
        let key = SigningKey::from_pkcs8_pem(&text).map_err(|error| {
            anyhow!("{} is no Ed25519 private key in PKCS#8 PEM: {error}", path.display())
        })?;
        Ok(Self(key))
    }

    /// Writes a new key file with mode 0600, and the public key beside it as `<path>.pub`.
    ///
    /// # Errors
    /// If either file exists or cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<()> {
        // Without the public key: version 1 of PKCS#8, the only one that OpenSSL reads.
        let private = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None }
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| anyhow!("encode private key {}: {error}", path.display()))?;
        let public = self
            .0
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| anyhow!("encode public key {}: {error}", path.display()))?;
        write_new(path, private.as_bytes(), 0o600)?;
        write_new(&public_path(path), public.as_bytes(), 0o644)
    }

    /// The public key.
    ///
    /// # Errors
    /// If it is weak, which no generated key is.
    pub fn public(&self) -> Result<PublicKey> {
        PublicKey::from_bytes(&self.0.verifying_key().to_bytes())
            .ok_or_else(|| anyhow!("private key is weak"))
    }

    /// Signs; the same message always gives the same signature (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).to_bytes()
    }
}

/// The catalogue key from its file or from a key folder.
///
/// # Errors
/// If it is not there, or cannot be read.
pub fn catalogue_key(path: &Path) -> Result<PrivateKey> {
    if !path.is_dir() {
        return PrivateKey::read(path);
    }
    let folder = KeyFolder::open(path)?;
    let role = Role::new(1, vec![folder.root().catalogue])?;
    let signer = folder.signers(&role)?.into_iter().next();
    signer.map(|signer| signer.key).ok_or_else(|| {
        anyhow!(
            "{} does not hold the private catalogue key of root version {}: do this where it is",
            path.display(),
            folder.root().version
        )
    })
}

/// Reads a public key file as [`PrivateKey::write_new`] writes it.
///
/// # Errors
/// If it is no Ed25519 public key in SPKI PEM.
pub fn read_public(path: &Path) -> Result<PublicKey> {
    let file = File::open(path).with_context(|| format!("open public key {}", path.display()))?;
    let key = VerifyingKey::from_public_key_pem(&read_text(file, path)?)
        .map_err(|error| anyhow!("{} is no Ed25519 public key in PEM: {error}", path.display()))?;
    PublicKey::from_bytes(&key.to_bytes()).ok_or_else(|| anyhow!("public key {} is weak", path.display()))
}

fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

fn read_text(file: File, path: &Path) -> Result<String> {
    let mut text = String::new();
    file.take(MAX_KEY_FILE).read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("write {} (keys are never overwritten)", path.display()))
}

/// A folder with root documents and some or all of the private keys that they appoint.
pub struct KeyFolder {
    path: PathBuf,
    roots: Vec<u8>,
    chain: Chain,
}

/// A private key and its number in a role.
pub struct Signer {
    /// Number in the role, from 0.
    pub number: u8,
    /// The key.
    pub key: PrivateKey,
}

impl KeyFolder {
    /// Makes a folder of development keys with a first root document. The folder appears complete or not at all.
    ///
    /// # Errors
    /// If it exists and is not empty, a count or threshold is impossible, or it cannot be written.
    pub fn create(path: &Path, counts: Counts, signed_s: u32) -> Result<Self> {
        if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) || path.is_file() {
            bail!("{} exists: keys are never overwritten, name a new folder", path.display());
        }
        let parent = parent(path);
        fs::create_dir_all(&parent).with_context(|| format!("make folder {}", parent.display()))?;
        let staged = tempfile::Builder::new()
            .prefix(".farhold-keys-")
            .tempdir_in(&parent)
            .with_context(|| format!("make folder in {}", parent.display()))?;
        let make = |role: &str, count: u8| -> Result<Vec<PrivateKey>> {
            (1..=count).map(|n| new_key(staged.path(), &format!("{DEVELOPMENT}{role}-{n}.pem"))).collect()
        };
        let roots = make("root", counts.root)?;
        let releases = make("release", counts.release)?;
        let catalogue = new_key(staged.path(), &format!("{DEVELOPMENT}catalogue.pem"))?;
        let role = |threshold, keys: &[PrivateKey], what: &str| -> Result<Role> {
            let keys = keys.iter().map(PrivateKey::public).collect::<Result<_>>()?;
            Role::new(threshold, keys).with_context(|| format!("choose {what} keys"))
        };
        let root = Root {
            version: 1,
            signed_s,
            root: role(counts.root_threshold, &roots, "root")?,
            release: role(counts.release_threshold, &releases, "release")?,
            catalogue: catalogue.public()?,
            ignored: Default::default(),
        };
        let mut signed = SignedRoot::unsigned(root);
        sign_root(&mut signed, roots.iter().take(counts.root_threshold.into()))?;
        let chain = Chain::new(vec![signed])?;
        chain.verify().context("check the new root document")?;
        write_new(&staged.path().join(ROOTS), &chain.encode(), 0o644)?;
        write_new(&staged.path().join(NOTE), NOTE_TEXT.as_bytes(), 0o644)?;
        // Renaming onto an empty folder is allowed, onto one that was filled meanwhile it is not.
        fs::rename(staged.path(), path)
            .with_context(|| format!("put keys in place at {}", path.display()))?;
        Self::open(path)
    }

    /// Opens a folder and verifies its chain of root documents.
    ///
    /// # Errors
    /// If there is none, or it does not verify.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.join(ROOTS);
        if !file.exists() {
            let path = path.display();
            bail!("no keys at {path}: run `farhold keys new {path}` for development keys");
        }
        let (roots, chain) = read_chain(&file)?;
        chain.verify().with_context(|| format!("verify root documents {}", file.display()))?;
        Ok(Self { path: path.to_owned(), roots, chain })
    }

    /// The file with those bytes.
    pub fn roots_file(&self) -> PathBuf {
        self.path.join(ROOTS)
    }

    /// The chain of root documents as it stands in a release and, as trust anchor, in an image
    /// (`formats::roles::TRUST_ANCHOR`).
    pub fn roots(&self) -> &[u8] {
        &self.roots
    }
    /// The chain, parsed and verified.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
    /// The root document in force.
    pub fn root(&self) -> &Root {
        self.chain.newest()
    }

    /// The release keys of the folder, as many as the threshold asks for, lowest numbers first, so that signatures are
    /// reproducible. May be fewer: other holders then add theirs with `farhold sign`.
    ///
    /// # Errors
    /// If a key file cannot be read.
    pub fn release_signers(&self) -> Result<Vec<Signer>> {
        let mut signers = self.signers(&self.root().release)?;
        signers.truncate(self.root().release.threshold().into());
        Ok(signers)
    }

    /// The private keys of `role` that are in the folder, by number.
    ///
    /// # Errors
    /// If a key file cannot be read.
    pub fn signers(&self, role: &Role) -> Result<Vec<Signer>> {
        let mut found = Vec::new();
        for path in self.key_files()? {
            let key = PrivateKey::read(&path)?;
            let public = key.public()?;
            if let Some(number) = role.keys().iter().position(|known| *known == public) {
                found.push(Signer { number: number as u8, key });
            }
        }
        found.sort_by_key(|signer| signer.number);
        found.dedup_by_key(|signer| signer.number);
        Ok(found)
    }

    /// Key files of the folder, sorted by name.
    fn key_files(&self) -> Result<Vec<PathBuf>> {
        let entries = self.path.read_dir().with_context(|| format!("read {}", self.path.display()))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("read {}", self.path.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "pem") {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// Appoints new keys in place of those named (as `release-1`, counted from 1, or `catalogue`): writes their files,
    /// then the chain with a new root document signed by old and new root keys.
    ///
    /// # Errors
    /// If a name is unknown, a root key that must sign is not in the folder, or a file cannot be written.
    pub fn rotate(&mut self, replace: &[String], signed_s: u32) -> Result<()> {
        let old = self.root().clone();
        let version = old.version.checked_add(1).ok_or_else(|| anyhow!("root version 65535 is the last"))?;
        let mut keys = [old.root.keys().to_vec(), old.release.keys().to_vec(), vec![old.catalogue]];
        let mut fresh = Vec::new();
        for name in replace {
            let place = place(&mut keys, name).ok_or_else(|| {
                let (roots, releases) = (old.root.keys().len(), old.release.keys().len());
                anyhow!("no key `{name}`: there are root-1 to root-{roots}, release-1 to release-{releases}, catalogue")
            })?;
            let key = PrivateKey::generate()?;
            *place = key.public()?;
            fresh.push((format!("{DEVELOPMENT}{name}.v{version}.pem"), key));
        }
        let [root, release, catalogue] = keys;
        let root = Root {
            version,
            signed_s,
            root: Role::new(old.root.threshold(), root)?,
            release: Role::new(old.release.threshold(), release)?,
            catalogue: catalogue[0],
            ignored: Default::default(),
        };
        root.check().context("check the new root document")?;
        let mut signed = SignedRoot::unsigned(root);
        let holders = self.signers(&old.root)?;
        let old_and_new = holders.iter().map(|signer| &signer.key).chain(fresh.iter().map(|(_, key)| key));
        let appointed =
            |key: &PublicKey, roots: [&Root; 2]| roots.iter().any(|r| r.root.keys().contains(key));
        let mut signing = Vec::new();
        for key in old_and_new {
            if appointed(&key.public()?, [&old, &signed.root]) {
                signing.push(key);
            }
        }
        sign_root(&mut signed, signing.into_iter())?;
        let chain = Chain::new(self.chain.documents().iter().cloned().chain([signed]).collect())?;
        chain.verify().context("sign the new root document with old and new root keys")?;
        for (name, key) in &fresh {
            key.write_new(&self.path.join(name))?;
        }
        replace_file(&self.path.join(ROOTS), &chain.encode())?;
        *self = Self::open(&self.path)?;
        Ok(())
    }
}

fn place<'k>(keys: &'k mut [Vec<PublicKey>; 3], name: &str) -> Option<&'k mut PublicKey> {
    let [root, release, catalogue] = keys;
    let (role, number) = match name.split_once('-') {
        Some(("root", number)) => (root, number),
        Some(("release", number)) => (release, number),
        None if name == "catalogue" => return catalogue.first_mut(),
        Some(_) | None => return None,
    };
    role.get_mut(number.parse::<usize>().ok()?.checked_sub(1)?)
}

fn sign_root<'k>(signed: &mut SignedRoot, keys: impl Iterator<Item = &'k PrivateKey>) -> Result<()> {
    let message = signed.root.signed_bytes();
    for key in keys {
        signed.sign(key.public()?, key.sign(&message));
    }
    Ok(())
}

fn new_key(folder: &Path, name: &str) -> Result<PrivateKey> {
    let key = PrivateKey::generate()?;
    key.write_new(&folder.join(name))?;
    Ok(key)
}

/// Reads a chain of root documents; it is not verified.
///
/// # Errors
/// If the file cannot be read or is no chain.
pub fn read_chain(path: &Path) -> Result<(Vec<u8>, Chain)> {
    let bytes = super::folder::read_limited(path, MAX_CHAIN_BYTES as u64)?;
    let chain =
        Chain::parse(&bytes).with_context(|| format!("{} is no chain of root documents", path.display()))?;
    Ok((bytes, chain))
}

/// Replaces a file by temporary file, sync and rename.
///
/// # Errors
/// If it cannot be written.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(parent(path))?;
        file.write_all(bytes)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// The folder that a path stands in.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}
