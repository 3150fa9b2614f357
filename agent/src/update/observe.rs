//! Reads what the update engine must know of this boot: trust anchor, signs of a crash, the profile's settings.

use crate::step::Facts as BootFacts;
use crate::store::Condition;
use crate::update::engine::Surroundings;
use crate::update::machine::Machine;
use crate::update::state::{Memory, Release};
use crate::update::step::{Facts, words};
use formats::arch::Arch;
use formats::boot::StateFacts;
use formats::device::{
    DEVICE_PROFILE, DeviceProfile, SITE, SITE_FILE, SITE_FILE_MAX, SITE_MAX, SiteFile, check_carriers,
};
use formats::frame::Scope;
use formats::roles::{Chain, MAX_CHAIN_BYTES, Root, TRUST_ANCHOR};
use formats::tariff::CarrierSettings;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Largest profile that is read, bytes.
const PROFILE_MAX: u64 = 1 << 20;
/// Why the last reset happened (`Documentation/watchdog/watchdog-api.rst`): bit 5 is the watchdog itself.
const BOOT_STATUS: &str = "/sys/class/watchdog/watchdog0/bootstatus";
const CARD_RESET: u32 = 0x20;
/// Records that a crashed kernel left.
const CRASHES: &str = "/sys/fs/pstore";
/// How often a source is asked where the profile does not say.
const POLL_S: u32 = 3600;

fn profile() -> Option<DeviceProfile> {
    let mut text = Vec::new();
    File::open(DEVICE_PROFILE).ok()?.take(PROFILE_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn anchor() -> Result<Root, String> {
    let mut bytes = Vec::new();
    let file = File::open(TRUST_ANCHOR).map_err(|error| format!("open {TRUST_ANCHOR}: {error}"))?;
    file.take(MAX_CHAIN_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("read {TRUST_ANCHOR}: {error}"))?;
    let chain = Chain::parse(&bytes).map_err(|error| format!("{TRUST_ANCHOR}: {}", words(&error)))?;
    chain.verify().cloned().map_err(|error| format!("{TRUST_ANCHOR}: {}", words(&error)))
}

/// A site without a name gets what is for everybody, and for itself.
fn site() -> Option<String> {
    let mut text = String::new();
    File::open(SITE).ok()?.take(SITE_MAX as u64 + 1).read_to_string(&mut text).ok()?;
    let name = text.trim();
    (!name.is_empty() && name.len() <= SITE_MAX).then(|| name.to_owned())
}

/// The carriers that an installer left for this device.
fn site_carriers(path: &Path) -> Result<Option<Vec<CarrierSettings>>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = Vec::new();
    file.take(SITE_FILE_MAX + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > SITE_FILE_MAX {
        return Err(format!("it has more than {SITE_FILE_MAX} bytes"));
    }
    let site: SiteFile = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let carriers = site.carriers.filter(|carriers| !carriers.is_empty());
    if let Some(carriers) = &carriers {
        check_carriers(carriers).map_err(|(n, why)| format!("carriers[{n}]: {why}"))?;
    }
    Ok(carriers)
}

/// The site's carriers, or else the profile's: a site's file that cannot be used must not keep updates away.
fn carriers(profile: Option<Vec<CarrierSettings>>) -> Vec<CarrierSettings> {
    let site = site_carriers(Path::new(SITE_FILE)).unwrap_or_else(|why| {
        tracing::error!(file = SITE_FILE, why, "the site's carriers cannot be used; the image's are");
        None
    });
    site.or(profile).unwrap_or_default()
}

fn evidence() -> Option<String> {
    let status = fs::read_to_string(BOOT_STATUS).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if status.is_some_and(|status| status & CARD_RESET != 0) {
        return Some("the watchdog reset the machine".into());
    }
    let crashed = fs::read_dir(CRASHES).is_ok_and(|mut records| records.next().is_some());
    crashed.then(|| format!("the kernel left a crash record in {CRASHES}"))
}

fn durable(facts: &BootFacts, condition: &Condition) -> Result<(), String> {
    match facts.early.as_ref().map(|early| &early.state) {
        Some(StateFacts::Persistent { .. }) => {}
        Some(StateFacts::ReadOnly { why, .. } | StateFacts::Ephemeral { why }) => return Err(why.clone()),
        None => return Err("/var was not prepared".into()),
    }
    match condition {
        Condition::Ready | Condition::Salvaged { .. } => Ok(()),
        Condition::Newer { .. } => Err("the database belongs to a newer agent".into()),
        Condition::ReadOnly { why } | Condition::Full { why } | Condition::Unavailable { why } => {
            Err(why.clone())
        }
    }
}

/// Facts for the engine. `restarted` says whether the agent was started before in this boot.
pub fn facts(boot: &BootFacts, condition: &Condition, memory: &Memory, restarted: bool) -> Facts {
    let profile = profile();
    let settings = profile.as_ref().and_then(|profile| profile.update.clone());
    let running = boot.observed.as_ref().map(|observed| Release {
        version: observed.version.clone(),
        roothash: observed.roothash,
        manifest: memory.current,
    });
    let slots = boot.boot.iter().flat_map(|facts| &facts.slots);
    let other = slots
        .filter(|slot| boot.observed.as_ref().is_some_and(|observed| observed.slot != slot.slot))
        .find_map(|slot| slot.complete);
    let digest = Sha256::digest(boot.machine_id.as_bytes());
    let seed = digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Facts {
        running,
        other,
        durable: durable(boot, condition),
        counted: boot.boot.as_ref().is_some_and(|facts| facts.trial),
        restarted,
        evidence: evidence(),
        fallback: boot.fallback.as_ref().map(|fallback| fallback.why.clone()),
        product: boot.profile.product.clone(),
        board: boot.profile.board.clone(),
        arch: Arch::host().unwrap_or(Arch::X86_64),
        channel: settings.as_ref().map_or(0, |settings| settings.channel),
        site: site(),
        id: boot.machine_id.clone(),
        anchor: anchor(),
        source: settings.as_ref().map(|settings| settings.source.clone()),
        poll_s: settings.as_ref().map_or(POLL_S, |settings| settings.poll_s),
        carriers: carriers(settings.map(|settings| settings.carriers)),
        checks: profile.map(|profile| profile.health).unwrap_or_default(),
        seed,
    }
}

/// Whom an announcement may be for to concern this device.
fn scopes(facts: &Facts) -> Vec<Scope> {
    let site = facts.site.as_deref().map(Scope::site);
    [Scope::All].into_iter().chain(site).chain([Scope::device(&facts.id)]).collect()
}

/// What jobs need; nothing where the root is not a Farhold slot.
pub fn surroundings(boot: &BootFacts, facts: &Facts) -> Option<Surroundings> {
    let observed = boot.observed.as_ref()?;
    let partitions = boot.boot.as_ref()?.partitions.clone();
    let carriers = facts.carriers.iter().map(|carrier| &carrier.source);
    let sources: Vec<&String> = [&facts.source].into_iter().flatten().chain(carriers).collect();
    let broker = |source: &&String| formats::mqtt::Address::is_meant(source);
    Some(Surroundings {
        machine: Machine { partitions, other: observed.slot.other(), written: Default::default() },
        running: observed.roothash,
        target: (facts.product.clone(), facts.board.clone(), facts.arch),
        scopes: scopes(facts),
        channel: facts.channel,
        id: facts.id.clone(),
        seed: facts.seed,
        source: sources.iter().copied().find(broker).cloned(),
        sources: sources.into_iter().cloned().collect(),
        checks: facts.checks.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(text: &str) -> Result<Option<Vec<CarrierSettings>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.json");
        fs::write(&path, text).unwrap();
        site_carriers(&path)
    }

    #[test]
    fn a_site_s_carriers_are_taken_and_what_else_an_installer_left_is_passed_over() {
        let text = r#"{"site": "north", "node": "pump-1", "pair": {"role": "first"}, "enrolment_token": "abc",
            "carriers": [{"name": "sat", "source": "serial:/dev/ttyUSB0", "day_kib": 100}]}"#;
        let carriers = left(text).unwrap().unwrap();
        assert_eq!((carriers[0].name.as_str(), carriers[0].day_kib), ("sat", Some(100)));
        for none in ["{}", r#"{"carriers": null}"#, r#"{"carriers": []}"#] {
            assert_eq!(left(none).unwrap(), None, "{none}");
        }
        assert_eq!(site_carriers(Path::new("/nonexistent/site.json")).unwrap(), None);
    }

    #[test]
    fn carriers_that_make_no_sense_are_named() {
        let twice = r#"{"carriers": [{"name": "a", "source": "/mnt"}, {"name": "a", "source": "/srv"}]}"#;
        assert_eq!(left(twice).unwrap_err(), "carriers[1]: there are two carriers `a`");
        let odd = r#"{"carriers": [{"name": "a", "source": "gopher://x"}]}"#;
        assert_eq!(left(odd).unwrap_err(), "carriers[0]: `gopher://x` is no source of updates");
        assert!(left("{").is_err() && left(&" ".repeat(70_000)).unwrap_err().contains("more than"));
    }
}
