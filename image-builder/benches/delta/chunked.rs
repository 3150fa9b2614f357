//! casync and desync: a device fetches an index, and the chunks of the new image that the old one has not.

use crate::measure::{Figures, Outcome, limit_s, measured, same, text};
use crate::pairs::Pair;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of a chunk store with their lengths.
fn chunks(store: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for folder in fs::read_dir(store).with_context(|| format!("read {}", store.display()))? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder)? {
            let file = file?;
            found.insert(file.path().strip_prefix(store)?.to_owned(), file.metadata()?.len());
        }
    }
    Ok(found)
}

/// Measures `program`, one of the two.
///
/// # Errors
/// If it fails, or gives other bytes than the new image's.
pub fn measure(program: &str, pair: &Pair, work: &Path) -> Result<Outcome> {
    let folder = work.join("chunked");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let outcome = compare(program, pair, work, &folder);
    fs::remove_dir_all(&folder)?;
    outcome
}

fn compare(program: &str, pair: &Pair, work: &Path, folder: &Path) -> Result<Outcome> {
    let place = |name: &str| folder.join(name);
    let casync = !program.ends_with("desync");
    let make = |side: &str, image: &Path| -> Result<_> {
        let (store, index) = (place(&format!("{side}.castr")), place(&format!("{side}.caibx")));
        fs::create_dir_all(&store)?;
        let (store, index, image) = (text(&store)?, text(&index)?, text(image)?);
        if casync {
            let store = format!("--store={store}");
            return measured(work, &[program, "make", "--chunk-size=65536", &store, index, image]);
        }
        measured(work, &[program, "make", "-n", "1", "-m", "16:64:256", "-s", store, index, image])
    };
    let (Some(_), Some(made)) = (make("old", &pair.old)?, make("new", &pair.new)?) else {
        return Ok(Outcome::Left(format!("did not end in {} s", limit_s())));
    };
    let (old, new) = (chunks(&place("old.castr"))?, chunks(&place("new.castr"))?);
    let missing: u64 = new.iter().filter(|(name, _)| !old.contains_key(*name)).map(|(_, len)| len).sum();
    let (store, index, out) = (place("new.castr"), place("new.caibx"), place("out"));
    let (store, index_text, out_text) = (text(&store)?, text(&index)?, text(&out)?);
    let applied = if casync {
        let (store, seed) = (format!("--store={store}"), format!("--seed={}", text(&pair.old)?));
        measured(work, &[program, "extract", &store, &seed, index_text, out_text])?
    } else {
        let seed = format!("{}:{}", text(&place("old.caibx"))?, text(&pair.old)?);
        measured(work, &[program, "extract", "-n", "1", "-s", store, "--seed", &seed, index_text, out_text])?
    };
    let Some(applied) = applied else { bail!("{program} extract did not end") };
    ensure!(same(&out, &pair.new)?, "{}: {program} gave other bytes back", pair.name);
    let bytes = fs::metadata(&index)?.len() + missing;
    Ok(Outcome::Done(Figures { bytes, make: made, apply: applied }, String::new()))
}
