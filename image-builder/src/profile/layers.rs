//! Layers against each other: order, dependencies, circles, resources. Pure: packs were read before.

use super::model::Layer;
use crate::finding::{Finding, join};
use crate::pack::model::{Dependency, DependencyKind, LayerKind, Resources};
use crate::pack::repository::{Pack, Repository};
use crate::pack::version::compare;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

/// A layer with its pack.
#[derive(Debug)]
pub struct Loaded<'a> {
    /// Place in the profile's list.
    pub index: usize,
    /// As the profile has it.
    pub layer: &'a Layer,
    /// The pack, with the profile's values.
    pub pack: Pack,
    /// Whether all its values could be filled in.
    pub complete: bool,
}

/// Everything that is wrong between layers. `all` also has those whose pack could not be read: what needs them is not
/// to blame.
pub fn check(
    all: &[Layer],
    loaded: &[Loaded<'_>],
    packs: &Repository,
    board: Option<(&str, Resources)>,
) -> Vec<Finding> {
    let mut findings = order(all);
    for Loaded { index, layer, pack, .. } in loaded {
        let path = format!("layers[{index}]");
        if pack.file.layer != layer.layer {
            let made_for = pack.file.layer.name();
            let message = format!("pack {} is made for layer {made_for}", layer.pack);
            let finding = Finding::error(format!("{path}.layer"), message, format!("write `{made_for}`"));
            findings.push(finding.at(layer.id()));
        }
        for dependency in &pack.file.constraints.dependencies {
            if let Some((message, next)) = unmet(dependency, all, packs) {
                findings.push(Finding::error(path.as_str(), message, next).at(layer.id()));
            }
        }
    }
    findings.extend(circle(loaded));
    if let Some((name, resources)) = board {
        findings.extend(resources_of(loaded, name, resources));
    }
    findings
}

fn order(layers: &[Layer]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (n, pair) in layers.windows(2).enumerate() {
        let (before, after) = (&pair[0], &pair[1]);
        if after.layer < before.layer {
            let message = format!("stands after the {} layer {}", before.layer.name(), before.pack);
            let next = "put layers in the order os, kubernetes, cni, csi, addon";
            findings.push(Finding::error(format!("layers[{}]", n + 1), message, next).at(after.id()));
        }
    }
    for (n, layer) in layers.iter().enumerate() {
        let path = format!("layers[{n}]");
        if layers[..n].iter().any(|other| other.pack == layer.pack) {
            let message = format!("pack {} is in the profile twice", layer.pack);
            findings.push(Finding::error(path, message, "remove one").at(layer.id()));
        } else if [LayerKind::Os, LayerKind::Kubernetes, LayerKind::Cni].contains(&layer.layer)
            && let Some(other) = layers[..n].iter().find(|other| other.layer == layer.layer)
        {
            let message = format!("layer {} is filled by {} already", layer.layer.name(), other.pack);
            findings.push(Finding::error(path, message, "keep one of them").at(layer.id()));
        }
    }
    findings
}

fn in_range(version: &str, dependency: &Dependency) -> bool {
    let low = dependency.min_version.as_deref();
    let high = dependency.max_version.as_deref();
    low.is_none_or(|low| compare(version, low) != Ordering::Less)
        && high.is_none_or(|high| compare(version, high) != Ordering::Greater)
}

fn range(dependency: &Dependency) -> String {
    match (&dependency.min_version, &dependency.max_version) {
        (None, None) => String::new(),
        (Some(low), None) => format!(" {low} or newer"),
        (None, Some(high)) => format!(" {high} or older"),
        (Some(low), Some(high)) => format!(" {low} to {high}"),
    }
}

/// What is wrong and what to do, if a dependency is not met.
fn unmet(wants: &Dependency, layers: &[Layer], packs: &Repository) -> Option<(String, String)> {
    let name = match (&wants.pack, wants.layer) {
        (Some(pack), _) => pack.clone(),
        (None, Some(kind)) => format!("layer {}", kind.name()),
        (None, None) => {
            let message = "a dependency in pack.yaml has neither `pack` nor `layer`".into();
            return Some((message, "name one of them there".into()));
        }
    };
    let there = layers.iter().find(|other| match &wants.pack {
        Some(pack) => *pack == other.pack,
        None => wants.layer == Some(other.layer),
    });
    let fitting = || {
        let versions = wants.pack.as_deref().map_or(&[][..], |pack| packs.versions(pack));
        join(versions.iter().map(String::as_str).filter(|version| in_range(version, wants)))
    };
    match (wants.kind, there) {
        (DependencyKind::Required, None) => Some((
            format!("needs {name}{}, which is not in the profile", range(wants)),
            match wants.pack {
                Some(_) => format!("add it; versions that would do: {}", fitting()),
                None => "add a pack of that layer".into(),
            },
        )),
        (DependencyKind::Required | DependencyKind::Optional, Some(other))
            if !in_range(&other.version, wants) =>
        {
            Some((
                format!("needs {name}{}, but the profile has {}", range(wants), other.version),
                format!("versions of {name} that would do: {}", fitting()),
            ))
        }
        (DependencyKind::NotSupported, Some(other)) if in_range(&other.version, wants) => {
            Some((format!("does not work with {name} {}", other.version), "remove one of the two".into()))
        }
        (
            DependencyKind::Required
            | DependencyKind::Optional
            | DependencyKind::NotSupported
            | DependencyKind::Upgrade,
            _,
        ) => None,
    }
}

/// A circle of `required`: none of its packs could come first.
fn circle(layers: &[Loaded<'_>]) -> Option<Finding> {
    let mut needs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Loaded { layer, pack, .. } in layers {
        let required =
            pack.file.constraints.dependencies.iter().filter(|d| d.kind == DependencyKind::Required);
        needs.insert(&layer.pack, required.filter_map(|d| d.pack.as_deref()).collect());
    }
    let mut walk = Walk { needs: &needs, open: Vec::new(), done: Vec::new() };
    let circle = needs.keys().find_map(|name| walk.visit(name))?;
    let message = format!("packs need each other in a circle: {circle}");
    Some(Finding::error("layers", message, "remove one `required` from their pack.yaml"))
}

struct Walk<'m, 'a> {
    needs: &'m BTreeMap<&'a str, Vec<&'a str>>,
    open: Vec<&'a str>,
    done: Vec<&'a str>,
}

impl<'a> Walk<'_, 'a> {
    fn visit(&mut self, at: &'a str) -> Option<String> {
        if let Some(from) = self.open.iter().position(|name| *name == at) {
            return Some([&self.open[from..], &[at]].concat().join(" needs "));
        }
        if self.done.contains(&at) {
            return None;
        }
        self.open.push(at);
        let next = self.needs.get(at).cloned().unwrap_or_default();
        let found = next.into_iter().find_map(|name| self.visit(name));
        self.open.pop();
        self.done.push(at);
        found
    }
}

fn resources_of(layers: &[Loaded<'_>], board: &str, has: Resources) -> Vec<Finding> {
    type Amount = fn(&Resources) -> u64;
    let kinds: [(&str, &str, Amount); 3] = [
        ("processor time", "m", |r| r.cpu_m),
        ("memory", " MiB", |r| r.memory_mib),
        ("disk", " MiB", |r| r.disk_mib),
    ];
    let mut findings = Vec::new();
    for (what, unit, of) in kinds {
        let mut amounts: Vec<(u64, &str)> = layers
            .iter()
            .map(|loaded| (of(&loaded.pack.file.constraints.resources), loaded.layer.pack.as_str()))
            .collect();
        let (needed, given) = (amounts.iter().map(|(amount, _)| amount).sum::<u64>(), of(&has));
        amounts.sort_by_key(|(amount, _)| Reverse(*amount));
        if needed > given
            && let Some((amount, pack)) = amounts.first()
        {
            let message = format!("layers need {needed}{unit} of {what}, board {board} has {given}{unit}");
            let next = format!("{pack} alone needs {amount}{unit}; choose a larger board or fewer layers");
            findings.push(Finding::error("board", message, next));
        }
    }
    findings
}
