//! `farhold forecast`: what a release takes on each carrier of a profile, before it is announced.

use super::check::ProfileArgs;
use crate::release::repository::{Held, Repository};
use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use formats::catalogue::{Catalogue, Way, ways};
use formats::frame::{MAX_FRAME_BYTES, target_tag};
use formats::hex::Digest;
use formats::manifest::TargetKind;
use formats::payload::Source;
use formats::repository as names;
use formats::roles::Root;
use formats::tariff::{CarrierSettings, PEER, Used, span};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Says what the newest release in a repository takes on each carrier of a profile: bytes, time, money.
#[derive(clap::Args)]
pub struct ForecastCmd {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Repository folder.
    #[arg(long, value_name = "DIR")]
    repo: PathBuf,
    /// Only for this processor [default: the profile's first].
    #[arg(long)]
    arch: Option<Arch>,
    /// How fast the line of a carrier is, for those whose settings have no rate; repeat for each.
    #[arg(long, value_name = "NAME=KBIT", value_parser = rate)]
    rate: Vec<(String, u64)>,
    /// Devices that take it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    devices: u64,
    /// The devices are nodes of pairs, of which one pays for a block; so they are where the profile has `ha`.
    #[arg(long)]
    pairs: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<(String, u64), String> {
    let pair = text.split_once('=').and_then(|(name, kbit)| Some((name.to_owned(), kbit.parse().ok()?)));
    pair.filter(|(_, kbit)| *kbit > 0).ok_or_else(|| format!("`{text}` must be NAME=KBIT, as radio=64"))
}

/// Bytes that a device needs.
#[derive(Clone, Copy)]
struct Needed {
    /// Announcement, manifest and catalogue, which each node of a pair reads for itself.
    said: u64,
    /// The payloads.
    payloads: u64,
}

/// One carrier for one kind of device.
#[derive(serde::Serialize)]
struct Row {
    /// What the device runs; absent for one that has nothing of use.
    from: Option<String>,
    carrier: String,
    bytes: u64,
    seconds: Option<u64>,
    /// For all devices.
    price: Option<String>,
}

impl ForecastCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the profile has no carriers, or the repository no release for it.
    pub fn run(&self) -> Result<ExitCode> {
        let device = self.profile.resolve(self.arch)?.device;
        let pairs = self.pairs || device.ha.is_some();
        let carriers = device.update.map(|update| update.carriers).unwrap_or_default();
        if carriers.is_empty() {
            bail!(
                "the profile has no `settings.update.carriers` whose budgets and prices could be looked at"
            );
        }
        let named = |name: &str| name == PEER || carriers.iter().any(|carrier| carrier.name == name);
        if let Some((name, _)) = self.rate.iter().find(|(name, _)| !named(name)) {
            let known: Vec<&str> = carriers.iter().map(|carrier| carrier.name.as_str()).collect();
            bail!("--rate names `{name}`, but the profile's carriers are {}", known.join(", "));
        }
        let repository = Repository::at(&self.repo)?;
        let held = repository.releases(&target_tag(&device.product, &device.board, device.arch))?;
        let Some(newest) = held.first() else {
            bail!(
                "{} has no release for {} on {} ({}): --board and --arch take others",
                self.repo.display(),
                device.product,
                device.board,
                device.arch
            )
        };
        let chain = repository.chain()?;
        let root = chain.as_ref().map(|chain| chain.verify()).transpose().context("follow the root chain")?;
        let earlier = held.iter().skip(1).filter_map(|old| {
            let (_, roothash, _) = old.manifest.slot()?;
            Some((Some(old.manifest.version.clone()), Some(roothash)))
        });
        let mut rows = Vec::new();
        for (from, base) in earlier.chain([(None, None)]) {
            let needed = needed(&repository, newest, root, base.as_ref())?;
            rows.extend(carriers.iter().map(|carrier| self.row(carrier, from.clone(), needed, pairs)));
            rows.extend(pairs.then(|| self.peer(from, needed)));
        }
        let text = if self.json {
            format!("{}\n", serde_json::to_string_pretty(&rows).context("print the forecast")?)
        } else {
            table(&newest.manifest.version, self.devices, &rows)
        };
        std::io::stdout().write_all(text.as_bytes()).context("write to standard output")?;
        Ok(ExitCode::SUCCESS)
    }

    fn line_bytes(&self, carrier: &str) -> Option<u64> {
        self.rate.iter().rev().find(|(name, _)| name == carrier).map(|(_, kbit)| kbit.saturating_mul(125))
    }

    /// What a carrier takes, of a pair for the node that pays for all.
    fn row(&self, carrier: &CarrierSettings, from: Option<String>, needed: Needed, pairs: bool) -> Row {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let bytes = needed.said + needed.payloads;
        let payers = if pairs { self.devices.div_ceil(2) } else { self.devices };
        let all =
            (needed.said.saturating_mul(self.devices)).saturating_add(needed.payloads.saturating_mul(payers));
        Row {
            from,
            carrier: carrier.name.clone(),
            bytes,
            seconds: carrier.forecast_s(Used::default(), now_s, bytes, self.line_bytes(&carrier.name)),
            price: carrier.price.as_ref().map(|price| price.of(all)),
        }
    }

    /// What the other node has from the one that paid.
    fn peer(&self, from: Option<String>, needed: Needed) -> Row {
        let line = self.line_bytes(PEER).map(|line| needed.payloads.div_ceil(line.max(1)));
        Row { from, carrier: PEER.to_owned(), bytes: needed.payloads, seconds: line, price: None }
    }
}

/// Bytes that a device fetches which runs `base`: announcement, manifest, catalogue, and the best payloads.
fn needed(
    repository: &Repository,
    held: &Held,
    root: Option<&Root>,
    base: Option<&Digest>,
) -> Result<Needed> {
    let (id, manifest) = (held.said.manifest, &held.manifest);
    let mut said = MAX_FRAME_BYTES as u64 + u64::from(held.said.manifest_bytes);
    let mut payloads = 0;
    let mut catalogue = None;
    for of in [base, None] {
        let Some(found) = repository.catalogue(&names::catalogue(&id, of))? else { continue };
        said += found.len() as u64;
        catalogue = root.and_then(|root| Catalogue::open(&found, root, &id, manifest).ok());
        break;
    }
    let has = |source: &Source| match source {
        Source::Slot { roothash, .. } => Some(roothash) == base,
        Source::Object(_) => base.is_some(),
    };
    for (position, target) in (0u16..).zip(&manifest.targets) {
        let wanted = target.known().is_some_and(|target| match target.kind {
            TargetKind::Slot { .. } | TargetKind::Uki => true,
            TargetKind::BootFile { .. } | TargetKind::Content { .. } => false,
        });
        // What an adaptive payload takes shows only on the device: it is less than the next.
        let adaptive = |way: &Way<'_>| way.payload.is_some_and(|payload| payload.kind.is_adaptive());
        let ways = ways(manifest, catalogue.as_ref(), position, &has);
        let best = ways.iter().find(|way| !adaptive(way)).map(|way| way.fetch_bytes);
        payloads += best.filter(|_| wanted).unwrap_or(0);
    }
    Ok(Needed { said, payloads })
}

fn table(version: &str, devices: u64, rows: &[Row]) -> String {
    let mut out = format!("Version {version}, {devices} device(s)\n");
    let mut line = |cells: [&str; 5]| {
        let [from, carrier, bytes, time, price] = cells;
        let text = format!("{from:20} {carrier:16} {bytes:>12} {time:>18}  {price}");
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(["FROM", "CARRIER", "KIB EACH", "TIME EACH", "PRICE OF ALL"]);
    for row in rows {
        let time = row.seconds.map_or_else(|| "unknown".to_owned(), span);
        line([
            row.from.as_deref().unwrap_or("anything else"),
            &row.carrier,
            &row.bytes.div_ceil(1024).to_string(),
            &time,
            row.price.as_deref().unwrap_or("-"),
        ]);
    }
    if rows.iter().any(|row| row.carrier == PEER) {
        out.push_str(
            "Of two nodes of a pair one pays for a block; the other has it from that one, as carrier peer.\n",
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};
    use formats::tariff::Price;

    fn asked(words: &[&str]) -> ForecastCmd {
        let command = ForecastCmd::augment_args(Command::new("forecast"));
        let all = [&["forecast", "profile.yaml", "--repo", "repo"], words].concat();
        ForecastCmd::from_arg_matches(&command.try_get_matches_from(all).unwrap()).unwrap()
    }

    #[test]
    fn of_a_pair_one_node_pays_and_the_other_has_it_from_that_one() {
        let price = Some(Price { currency: "EUR".into(), millis_per_mib: 1000 });
        let sat = CarrierSettings {
            name: "sat".into(),
            source: "serial:/dev/ttyS1".into(),
            day_kib: None,
            month_kib: None,
            rate_kbit: None,
            hours: None,
            price,
        };
        let needed = Needed { said: 1 << 20, payloads: 8 << 20 };
        let command = asked(&["--devices", "5", "--rate", "peer=8192", "--rate", "sat=1024"]);
        let alone = command.row(&sat, None, needed, false);
        assert_eq!((alone.bytes, alone.price.as_deref()), (9 << 20, Some("45.00 EUR")));
        // Each of five reads what is new; of payloads the fifth has nobody to share with.
        let paired = command.row(&sat, None, needed, true);
        assert_eq!((paired.bytes, paired.price.as_deref()), (9 << 20, Some("29.00 EUR")));
        let peer = command.peer(None, needed);
        assert_eq!((peer.bytes, peer.seconds, peer.price), (8 << 20, Some(9), None));
        let text = table("1.0.1", 5, &[paired, command.peer(None, needed)]);
        assert!(text.contains("anything else        peer                     8192"), "{text}");
    }
}
