//! `farhold push`: lets a release out to a share of the devices that it is announced to, wave by wave.

use crate::release::folder::read_limited;
use crate::release::keys::replace_file;
use anyhow::{Context, Result, bail, ensure};
use formats::frame::{Announcement, Frame, MAX_FRAME_BYTES, Scope};
use formats::repository as names;
use formats::wave::{EVERYBODY, Wave};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lets the release that a repository announces out to a share of the devices; more each time, or none to stop it. Every
/// carrier that serves the repository takes it over. An announcement to a site or a device is made by `farhold announce`.
#[derive(clap::Args)]
pub struct PushCmd {
    /// Repository.
    repo: PathBuf,
    /// Percent of the devices that may take the release by now; 0 stops it, 100 lets it out to all.
    #[arg(long, value_name = "PERCENT", default_value = "100", value_parser = percent)]
    wave: u16,
    /// Channel that it is announced to; needed if there are several.
    #[arg(long, value_name = "N")]
    channel: Option<u8>,
    /// The announcement to this site.
    #[arg(long, value_name = "NAME", conflicts_with = "device")]
    site: Option<String>,
    /// The announcement to this device.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    plan: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Pushed {
    announcement: String,
    rank: String,
    share_percent: f64,
    plan: bool,
}

/// Hundredths of a percent.
fn percent(text: &str) -> Result<u16> {
    let value: f64 = text.trim_end_matches('%').parse().context("must be a percentage, as 12.5")?;
    ensure!((0.0..=100.0).contains(&value), "must be 0 to 100");
    Ok((value * 100.0).round() as u16)
}

impl PushCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the repository has no such announcement or several, or a file cannot be read or written.
    pub fn run(&self) -> Result<ExitCode> {
        if !self.repo.join(names::ANNOUNCEMENTS).is_dir() {
            bail!(
                "{0} is no repository: `farhold publish RELEASE --repo {0}` makes one",
                self.repo.display()
            );
        }
        let scope = match (&self.site, &self.device) {
            (Some(site), _) => Scope::site(site),
            (None, Some(device)) => Scope::device(device),
            (None, None) => Scope::All,
        };
        let fits = |said: &Announcement| {
            said.scope == scope && self.channel.is_none_or(|channel| said.channel == channel)
        };
        let found = announced(&self.repo)?.into_iter().filter(fits).collect::<Vec<_>>();
        let [said] = found.as_slice() else {
            let repo = self.repo.display();
            match found.len() {
                0 => bail!(
                    "{repo} announces nothing to them: `farhold announce RELEASE` says whom a release is for, \
                     `farhold publish RELEASE --repo {repo}` puts it there"
                ),
                n => bail!(
                    "{repo} has {n} such announcements, for other products, boards or channels: name a --channel"
                ),
            }
        };
        let wave = Wave { manifest: said.manifest, share: self.wave };
        let name = names::wave(&said.target, said.channel, said.scope);
        if !self.plan {
            let path = self.repo.join(&name);
            let folder = self.repo.join(names::WAVES);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            replace_file(&path, &wave.encode())?;
        }
        let pushed = Pushed {
            announcement: names::announcement_of(said),
            rank: format!("{}.{}", said.root_version, said.sequence),
            share_percent: f64::from(self.wave) / 100.0,
            plan: self.plan,
        };
        if self.json {
            println!("{}", serde_json::to_string(&pushed).context("print the report")?);
        } else {
            let done = if self.plan { "would go" } else { "goes" };
            let whom = match self.wave {
                0 => "nobody any more; who has begun goes on".to_owned(),
                EVERYBODY => "all devices that it is announced to".to_owned(),
                _ => format!("{} % of the devices that it is announced to", pushed.share_percent),
            };
            println!("{}, announced as {}: {done} to {whom}", pushed.announcement, pushed.rank);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What a repository announces.
fn announced(repo: &Path) -> Result<Vec<Announcement>> {
    let folder = repo.join(names::ANNOUNCEMENTS);
    let entries = fs::read_dir(&folder).with_context(|| {
        let (folder, repo) = (folder.display(), repo.display());
        format!("read {folder}: `farhold publish RELEASE --repo {repo}` announces a release there")
    })?;
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let bytes = read_limited(&path, MAX_FRAME_BYTES as u64)?;
        let frame = Frame::parse(&bytes).with_context(|| format!("read {}", path.display()))?;
        all.push(frame.unverified().clone());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percentages() {
        assert_eq!(
            [percent("0").unwrap(), percent("12.5%").unwrap(), percent("100").unwrap()],
            [0, 1250, EVERYBODY]
        );
        for bad in ["", "x", "-1", "100.1", "nan"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
