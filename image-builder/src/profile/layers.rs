//! Layers against each other: order, dependencies, circles, resources. Pure: packs were read before.

use super::model::Layer;
use crate::finding::{Finding, join};
use crate::pack::model::{Dependency, DependencyKind, LayerKind, Resources};
use crate::pack::repository::{Pack, Repository};
use crate::pack::version::compare;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

/// A layer with its pack.
pub type Loaded<'a> = (&'a Layer, Pack);

/// Everything that is wrong between layers.
pub fn check(layers: &[Loaded<'_>], packs: &Repository, board: Option<(&str, Resources)>) -> Vec<Finding> {
    let mut findings = order(layers);
    for (layer, pack) in layers {
        for dependency in &pack.file.constraints.dependencies {
            findings.extend(dependency_of(layer, dependency, layers, packs));
        }
    }
    findings.extend(circle(layers));
    if let Some((name, resources)) = board {
        findings.extend(resources_of(layers, name, resources));
    }
    findings
}

fn order(layers: &[Loaded<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pair in layers.windows(2) {
        let ((before, _), (after, _)) = (&pair[0], &pair[1]);
        if after.layer < before.layer {
            let message = format!("stands after {}", before.label());
            let next = "put layers in the order os, kubernetes, cni, csi, addon";
            findings.push(Finding::error("layers", message, next).at(after.label()));
        }
    }
    for (n, (layer, pack)) in layers.iter().enumerate() {
        if layers[..n].iter().any(|(other, _)| other.pack == layer.pack) {
            findings
                .push(Finding::error("layers", "is in the profile twice", "remove one").at(layer.label()));
        }
        if pack.file.layer != layer.layer {
            let message = format!("pack {} is made for layer {}", layer.pack, pack.file.layer.name());
            findings.push(Finding::error("layer", message, "use it there").at(layer.label()));
        }
    }
    for kind in [LayerKind::Os, LayerKind::Kubernetes, LayerKind::Cni] {
        let of_kind: Vec<&str> = layers
            .iter()
            .filter(|(layer, _)| layer.layer == kind)
            .map(|(layer, _)| layer.pack.as_str())
            .collect();
        if of_kind.len() > 1 {
            let message = format!("{} packs fill layer {}: {}", of_kind.len(), kind.name(), join(of_kind));
            findings.push(Finding::error("layers", message, "keep one"));
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

fn dependency_of(
    layer: &Layer,
    wants: &Dependency,
    layers: &[Loaded<'_>],
    packs: &Repository,
) -> Option<Finding> {
    let finding =
        |message: String, next: String| Some(Finding::error("constraints", message, next).at(layer.label()));
    let name = match (&wants.pack, wants.layer) {
        (Some(pack), _) => pack.clone(),
        (None, Some(kind)) => format!("layer {}", kind.name()),
        (None, None) => {
            return finding("a dependency has neither `pack` nor `layer`".into(), "name one of them".into());
        }
    };
    let there = layers.iter().map(|(other, _)| *other).find(|other| match &wants.pack {
        Some(pack) => *pack == other.pack,
        None => wants.layer == Some(other.layer),
    });
    let fitting = || {
        let versions = wants.pack.as_deref().map_or(&[][..], |pack| packs.versions(pack));
        join(versions.iter().map(String::as_str).filter(|version| in_range(version, wants)))
    };
    match (wants.kind, there) {
        (DependencyKind::Required, None) => finding(
            format!("needs {name}{}, which is not in the profile", range(wants)),
            match wants.pack {
                Some(_) => format!("add it; versions that would do: {}", fitting()),
                None => "add a pack of that layer".into(),
            },
        ),
        (DependencyKind::Required | DependencyKind::Optional, Some(other))
            if !in_range(&other.version, wants) =>
        {
            finding(
                format!("needs {name}{}, but the profile has {}", range(wants), other.version),
                format!("versions of {name} that would do: {}", fitting()),
            )
        }
        (DependencyKind::NotSupported, Some(other)) if in_range(&other.version, wants) => {
            finding(format!("does not work with {name} {}", other.version), "remove one of the two".into())
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
    for (layer, pack) in layers {
        let required =
            pack.file.constraints.dependencies.iter().filter(|d| d.kind == DependencyKind::Required);
        needs.insert(&layer.pack, required.filter_map(|d| d.pack.as_deref()).collect());
    }
    let mut walk = Walk { needs: &needs, open: Vec::new(), done: Vec::new() };
    let circle = needs.keys().find_map(|name| walk.visit(name))?;
    let message = format!("packs need each other in a circle: {circle}");
    Some(Finding::error("constraints", message, "remove one `required`"))
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
            .map(|(layer, pack)| (of(&pack.file.constraints.resources), layer.pack.as_str()))
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
