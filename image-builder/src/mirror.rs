//! Which Debian mirrors to use: those given, else those that the apt sources of this machine name.
//!
//! Reads sources.list(5) in both styles. Knows no mirror by name and asks none.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Role of the mirror of ordinary suites, in locks.
pub const ARCHIVE: &str = "archive";
/// Role of the mirror of `*-security` suites, in locks.
pub const SECURITY: &str = "security";
/// Debian's releases that a machine of today may run. Other words are other distributions' suites.
const CODENAMES: [&str; 9] =
    ["bookworm", "trixie", "forky", "duke", "sid", "stable", "oldstable", "testing", "unstable"];
/// Where Debian and Ubuntu install Debian's archive keys.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Mirrors as given on the command line or by the environment.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct MirrorOptions {
    /// Debian mirror, instead of the one in this machine's apt sources.
    #[arg(long, value_name = "URL", env = "FARHOLD_MIRROR")]
    pub mirror: Option<String>,
    /// Mirror of Debian's security suites, instead of the one in this machine's apt sources.
    #[arg(long, value_name = "URL", env = "FARHOLD_SECURITY_MIRROR")]
    pub security_mirror: Option<String>,
    /// Keys that the archive is signed with.
    #[arg(long, value_name = "FILE", env = "FARHOLD_KEYRING")]
    pub keyring: Option<PathBuf>,
}

/// Mirrors to resolve from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// Base address of the archive, without a slash at the end.
    pub archive: String,
    /// Base address of the security archive.
    pub security: Option<String>,
    /// File with the archive's keys.
    pub keyring: PathBuf,
}

impl Mirrors {
    /// The mirrors that the options name, completed from the apt sources below `root` (`/` on a real machine).
    ///
    /// # Errors
    /// If there is no Debian mirror or no keyring; says what to do.
    pub fn find(options: &MirrorOptions, root: &Path) -> Result<Self> {
        let sources = read_sources(root)?;
        let of = |security: bool| {
            let found =
                sources.iter().find(|s| s.suites.iter().any(|suite| debian_suite(suite) == Some(security)));
            found.map(|source| source.uri.clone())
        };
        let Some(archive) = options.mirror.clone().or_else(|| of(false)) else {
            bail!(
                "no Debian mirror: the apt sources of this machine name none (not a Debian machine?); \
                 give one with --mirror URL or FARHOLD_MIRROR"
            );
        };
        // A mirror given by hand is not mixed with the machine's security mirror: a snapshot must stay a snapshot.
        let security = options
            .security_mirror
            .clone()
            .or_else(|| if options.mirror.is_some() { None } else { of(true) });
        let keyring = options.keyring.clone().or_else(|| {
            let candidates = KEYRINGS.iter().map(|path| root.join(path.trim_start_matches('/')));
            candidates.into_iter().find(|path| path.is_file())
        });
        let Some(keyring) = keyring else {
            bail!(
                "no keys to check the Debian archive with: install the package `debian-archive-keyring`, \
                 or give its keyring with --keyring FILE"
            );
        };
        let trim = |url: String| url.trim_end_matches('/').to_owned();
        Ok(Self { archive: trim(archive), security: security.map(trim), keyring })
    }

    /// The mirror that has a suite, and its role; `None` if there is no security mirror and this suite needs it.
    pub fn of_suite(&self, suite: &str) -> Option<(&'static str, &str)> {
        if suite.ends_with("-security") {
            self.security.as_deref().map(|url| (SECURITY, url))
        } else {
            Some((ARCHIVE, &self.archive))
        }
    }
}

/// Whether a suite is Debian's, and if so whether it is a security suite.
fn debian_suite(suite: &str) -> Option<bool> {
    let (base, rest) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
    CODENAMES.contains(&base).then_some(rest == "security" || rest == "updates" && suite.contains('/'))
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
}

fn read_sources(root: &Path) -> Result<Vec<Source>> {
    let etc = root.join("etc/apt");
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let mut sources = Vec::new();
    for path in files.iter().filter(|path| path.is_file()) {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        match path.extension().and_then(|e| e.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            Some("list") => sources.extend(parse_one_line(&text)),
            Some(_) | None => {}
        }
    }
    sources.iter_mut().for_each(|source| source.uri = through_list(root, &source.uri));
    sources.retain(|source| ["http://", "https://", "file:/"].iter().any(|s| source.uri.starts_with(s)));
    Ok(sources)
}

/// The first mirror of an address of the kind `mirror+file:/etc/apt/mirrors/debian.list` (apt-transport-mirror(1)),
/// which Debian's cloud images use.
fn through_list(root: &Path, uri: &str) -> String {
    let Some(path) = uri.strip_prefix("mirror+file:") else { return uri.to_owned() };
    let text = fs::read_to_string(root.join(path.trim_start_matches('/'))).unwrap_or_default();
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    first.and_then(|line| line.split_whitespace().next()).unwrap_or(uri).to_owned()
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.replace("\r\n", "\n").split("\n\n") {
        let fields = crate::deb::fields(stanza);
        let words = |name: &str| -> Vec<String> {
            let field = fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            field.map(|(_, value)| value.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
        };
        if words("Types").iter().any(|kind| kind == "deb") && words("Enabled") != ["no"] {
            sources.extend(words("URIs").into_iter().map(|uri| Source { uri, suites: words("Suites") }));
        }
    }
    sources
}

fn parse_one_line(text: &str) -> Vec<Source> {
    let parse = |line: &str| {
        let line = line.split('#').next().unwrap_or_default().trim().strip_prefix("deb ")?.trim_start();
        let line = if line.starts_with('[') { line.split_once(']')?.1 } else { line };
        let mut words = line.split_whitespace();
        Some(Source { uri: words.next()?.to_owned(), suites: vec![words.next()?.to_owned()] })
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    const KEYS: (&str, &str) = ("usr/share/keyrings/debian-archive-keyring.gpg", "keys");

    fn find(files: &[(&str, &str)]) -> Result<Mirrors> {
        Mirrors::find(&MirrorOptions::default(), machine(files).path())
    }

    #[test]
    fn reads_both_styles_and_passes_over_others() {
        let deb822 = "Types: deb\n# a comment\nURIs: http://m.example/debian/\nSuites: bookworm bookworm-updates\n\
                      Components: main\nSigned-By: /x\n\nTypes: deb\nURIs: http://m.example/security\n\
                      Suites: bookworm-security\nComponents: main\n";
        let node = ("etc/apt/sources.list.d/a.list", "deb https://other.example nodistro main\n");
        let found = find(&[KEYS, node, ("etc/apt/sources.list.d/debian.sources", deb822)]).unwrap();
        assert_eq!(found.archive, "http://m.example/debian");
        assert_eq!(found.security.as_deref(), Some("http://m.example/security"));

        let one_line = "# deb http://old.example/debian trixie main\n\
                        deb [signed-by=/k arch=amd64] https://n.example/debian trixie main # x\n";
        let found = find(&[KEYS, ("etc/apt/sources.list", one_line)]).unwrap();
        assert_eq!((found.archive.as_str(), found.security), ("https://n.example/debian", None));
    }

    #[test]
    fn follows_the_mirror_lists_of_cloud_images() {
        let sources =
            "Types: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\n";
        let list = ("etc/apt/mirrors/debian.list", "# here\nhttps://cloud.example/debian priority:1\n");
        let found = find(&[KEYS, list, ("etc/apt/sources.list.d/debian.sources", sources)]).unwrap();
        assert_eq!(found.archive, "https://cloud.example/debian");
    }

    #[test]
    fn another_distribution_is_told_what_to_do() {
        let ubuntu = ("etc/apt/sources.list", "deb http://u.example/ubuntu noble main\n");
        assert_eq!(
            find(&[KEYS, ubuntu]).unwrap_err().to_string(),
            "no Debian mirror: the apt sources of this machine name none (not a Debian machine?); give one with \
             --mirror URL or FARHOLD_MIRROR"
        );
        let given = MirrorOptions { mirror: Some("http://given.example/d/".into()), ..Default::default() };
        let found = Mirrors::find(&given, machine(&[KEYS, ubuntu]).path()).unwrap();
        assert_eq!(found.of_suite("trixie"), Some((ARCHIVE, "http://given.example/d")));
        assert_eq!(found.of_suite("trixie-security"), None);
        let error = Mirrors::find(&given, machine(&[ubuntu]).path()).unwrap_err().to_string();
        assert!(error.contains("install the package `debian-archive-keyring`"), "{error}");
    }
}
