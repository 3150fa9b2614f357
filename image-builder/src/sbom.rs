//! The software bill of materials: SPDX 2.3 as JSON (ISO/IEC 5962:2021 and its 2.3 revision).
//!
//! A pure function of what was built; the creation time is SOURCE_DATE_EPOCH and the document's name space follows from
//! its contents, so the same build gives the same document. Licences that a Debian copyright file names are quoted, not
//! judged: the declared licence is NOASSERTION. Knows no package format and no network.

use crate::lock::LockedArtefact;
use crate::rootfs::PackageFacts;
use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use formats::hex::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::Write;

/// What the document describes.
#[derive(Clone, Copy, Debug)]
pub struct SbomInput<'a> {
    /// Product.
    pub product: &'a str,
    /// Version.
    pub version: &'a str,
    /// Board.
    pub board: &'a str,
    /// Processor.
    pub arch: Arch,
    /// Profile name.
    pub profile: &'a str,
    /// SOURCE_DATE_EPOCH.
    pub epoch_s: u64,
    /// Debian version, as `13`.
    pub debian: &'a str,
    /// Every Debian package in the image.
    pub packages: &'a [PackageFacts],
    /// Every artefact in the image, by name.
    pub artefacts: &'a BTreeMap<String, LockedArtefact>,
    /// What was made.
    pub outputs: &'a [Output],
}

/// A file that was made.
#[derive(Clone, Debug)]
pub struct Output {
    /// Name, as `slot image`.
    pub name: String,
    /// SHA-256.
    pub sha256: Digest,
    /// Length in bytes.
    pub bytes: u64,
}

const IMAGE: &str = "SPDXRef-image";
const BUILDER: &str = "SPDXRef-farhold";
const NO_ASSERTION: &str = "NOASSERTION";

/// Writes the document, indented, with a newline at the end.
///
/// # Errors
/// As [`render`], or if it cannot be written.
pub fn write(input: &SbomInput<'_>, out: &mut impl Write) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, &render(input)?).context("write SBOM")?;
    out.write_all(b"\n").context("write SBOM")
}

/// The document.
///
/// # Errors
/// If the epoch is beyond the year 9999, or two things in the image have the same name.
pub fn render(input: &SbomInput<'_>) -> Result<Value> {
    let created = timestamp(input.epoch_s)?;
    let mut packages = vec![image(input), builder()];
    packages.extend(input.packages.iter().map(|package| debian(package, input.debian)));
    packages.extend(input.artefacts.iter().map(|(name, locked)| artefact(name, locked)));
    packages.extend(input.outputs.iter().map(|made| output(made, input.version)));
    let ids: Vec<String> = packages.iter().map(|package| text(&package["SPDXID"])).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("two parts of the image have the SBOM id {}", pair[0]);
    }
    let relationships: Vec<Value> = ids.iter().map(|id| relationship(id)).collect();
    let name = format!("{}-{}-{}-{}", input.product, input.version, input.board, input.arch);
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentDescribes": [IMAGE],
        "creationInfo": {
            "created": created,
            "creators": [format!("Tool: farhold-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships,
    });
    let digest: [u8; 32] = Sha256::digest(document.to_string()).into();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    document["documentNamespace"] = json!(format!("urn:uuid:{}", uuid_text(uuid)));
    Ok(document)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn relationship(id: &str) -> Value {
    let (from, kind, to) = match id {
        IMAGE => ("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE),
        BUILDER => (BUILDER, "BUILD_TOOL_OF", IMAGE),
        made if made.starts_with("SPDXRef-output-") => (made, "GENERATED_FROM", IMAGE),
        part => (IMAGE, "CONTAINS", part),
    };
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

/// A package with what all have in common.
fn package(id: &str, name: &str, version: &str, purpose: &str) -> Value {
    json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "primaryPackagePurpose": purpose,
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
    })
}

fn image(input: &SbomInput<'_>) -> Value {
    let mut image = package(IMAGE, input.product, input.version, "OPERATING_SYSTEM");
    image["comment"] = json!(format!("profile {}, board {}, {}", input.profile, input.board, input.arch));
    image
}

fn builder() -> Value {
    package(BUILDER, "farhold", env!("CARGO_PKG_VERSION"), "APPLICATION")
}

fn debian(facts: &PackageFacts, release: &str) -> Value {
    let id = format!("SPDXRef-deb-{}-{}", spdx_id(&facts.name), spdx_id(&facts.architecture));
    let mut package = package(&id, &facts.name, &facts.version, "INSTALL");
    package["supplier"] = json!("Organization: Debian");
    package["summary"] = json!(facts.summary);
    package["checksums"] = checksums(&facts.sha256);
    let (source, source_version) = source(facts);
    package["sourceInfo"] = json!(format!("built from Debian source package {source} {source_version}"));
    if !facts.licences.is_empty() {
        let names: Vec<&str> = facts.licences.iter().map(String::as_str).collect();
        package["licenseComments"] = json!(format!("its copyright file names: {}", names.join(", ")));
    }
    // purl-spec, type `deb`; scanners match advisories by the source package in `upstream`.
    let locator = format!(
        "pkg:deb/debian/{}@{}?arch={}&distro=debian-{release}&upstream={}",
        percent(&facts.name),
        percent(&facts.version),
        percent(&facts.architecture),
        percent(&format!("{source}@{source_version}"))
    );
    package["externalRefs"] = json!([{
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": locator,
    }]);
    package
}

/// Source package and its version: `Source: glibc (2.41-1)` names both, or the field is absent.
fn source(facts: &PackageFacts) -> (&str, &str) {
    let Some(source) = facts.source.as_deref() else { return (&facts.name, &facts.version) };
    match source.split_once(" (").and_then(|(name, rest)| Some((name, rest.strip_suffix(')')?))) {
        Some(named) => named,
        None => (source, &facts.version),
    }
}

fn artefact(name: &str, locked: &LockedArtefact) -> Value {
    let short = locked.sha256.get(..12).unwrap_or(&locked.sha256);
    let mut package = package(
        &format!("SPDXRef-artefact-{}", spdx_id(name)),
        name,
        &format!("sha256-{short}"),
        "APPLICATION",
    );
    package["checksums"] = checksums(&locked.sha256);
    if let Some(url) = &locked.url {
        package["downloadLocation"] = json!(url);
    }
    package
}

fn output(made: &Output, version: &str) -> Value {
    let id = format!("SPDXRef-output-{}", spdx_id(&made.name));
    let mut package = package(&id, &made.name, version, "FILE");
    package["checksums"] = checksums(&made.sha256.to_string());
    package["comment"] = json!(format!("{} bytes", made.bytes));
    package
}

fn checksums(sha256: &str) -> Value {
    json!([{ "algorithm": "SHA256", "checksumValue": sha256 }])
}

/// SPDX ids have letters, digits, `.` and `-`; other characters become their code between two `-`.
fn spdx_id(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    name.chars().map(|c| if plain(c) { c.to_string() } else { format!("-u{:x}-", u32::from(c)) }).collect()
}

/// Percent-encoding of a purl component.
fn percent(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn uuid_text(mut bytes: [u8; 16]) -> String {
    // Version 8, made from a hash (RFC 9562, 5.8).
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = formats::hex::encode(&bytes);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// `YYYY-MM-DDThh:mm:ssZ`, by the calendar of RFC 3339.
fn timestamp(epoch_s: u64) -> Result<String> {
    let (days, second) = (epoch_s / 86_400, epoch_s % 86_400);
    // Gregorian eras of 400 years, each beginning on a 1 March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    if year > 9999 {
        bail!("SOURCE_DATE_EPOCH {epoch_s} is in the year {year}, must be before 10000");
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    Ok(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, source: Option<&str>) -> PackageFacts {
        PackageFacts {
            name: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
            source: source.map(str::to_owned),
            maintainer: "Debian".into(),
            summary: "one line".into(),
            sha256: "ab".repeat(32),
            licences: ["GPL-2+".to_owned()].into(),
        }
    }

    fn sample() -> Value {
        let packages = [
            package("libc6", "2.41-12", Some("glibc")),
            package("libstdc++6", "1:14.2.0-19", Some("gcc-14 (14.2.0-19)")),
            package("bash", "5.2.37-2+b5", None),
        ];
        let agent = LockedArtefact { url: None, sha256: "cd".repeat(32), size: 7 };
        let artefacts = BTreeMap::from([("farhold-agent".to_owned(), agent)]);
        let outputs = [Output { name: "slot image".into(), sha256: Digest([7; 32]), bytes: 4096 }];
        let input = SbomInput {
            product: "edge",
            version: "1.0.0",
            board: "vm",
            arch: Arch::X86_64,
            profile: "edge-minimal",
            epoch_s: 1_700_000_000,
            debian: "13",
            packages: &packages,
            artefacts: &artefacts,
            outputs: &outputs,
        };
        let mut bytes = Vec::new();
        write(&input, &mut bytes).unwrap();
        let mut again = Vec::new();
        write(&input, &mut again).unwrap();
        assert_eq!(bytes, again);
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn packages_have_purls_that_scanners_match() {
        let document = sample();
        let purls: Vec<&str> = document["packages"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|package| package["externalRefs"][0]["referenceLocator"].as_str())
            .collect();
        assert_eq!(
            purls,
            [
                "pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=debian-13&upstream=glibc%402.41-12",
                "pkg:deb/debian/libstdc%2B%2B6@1%3A14.2.0-19?arch=amd64&distro=debian-13&upstream=gcc-14%4014.2.0-19",
                "pkg:deb/debian/bash@5.2.37-2%2Bb5?arch=amd64&distro=debian-13&upstream=bash%405.2.37-2%2Bb5",
            ]
        );
    }

    #[test]
    fn everything_is_related_to_the_image() {
        let document = sample();
        let related = document["relationships"].as_array().unwrap();
        assert_eq!(related.len(), document["packages"].as_array().unwrap().len());
        let kinds: Vec<&str> = related.iter().map(|r| r["relationshipType"].as_str().unwrap()).collect();
        assert_eq!(
            kinds,
            ["DESCRIBES", "BUILD_TOOL_OF", "CONTAINS", "CONTAINS", "CONTAINS", "CONTAINS", "GENERATED_FROM"]
        );
    }

    #[test]
    fn times_follow_the_calendar() {
        for (epoch, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(epoch).unwrap(), expected);
        }
        assert!(timestamp(u64::MAX / 2).is_err());
    }
}
