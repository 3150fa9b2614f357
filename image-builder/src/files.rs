//! Files that a pack brings: `files/` as they stand in the image, those that end in `.j2` rendered; `manifests/` and
//! `charts/` where the device's Kubernetes finds them.

use crate::finding::Finding;
use crate::pack::repository::Pack;
use crate::resolved::{FileContent, ImageFile};
use crate::template::{self, RenderError, Scope};
use crate::yaml;
use std::fs;
use std::path::{Path, PathBuf};

/// Where manifests stand in the image, one folder a layer, in layer order.
const MANIFESTS: &str = "/usr/share/farhold/manifests";
/// Deepest folder that is read.
const DEPTH: usize = 24;

/// A text file owned by root, mode 644.
pub fn text(path: String, text: String, origin: &str) -> ImageFile {
    ImageFile {
        path,
        mode: 0o644,
        owner: ("root".into(), "root".into()),
        content: FileContent::Text { text },
        origin: origin.into(),
    }
}

/// All files of a pack, rendered, and one finding for each that cannot be read or rendered, and for modes that no file
/// has.
pub fn of_pack(pack: &Pack, order: usize, origin: &str, scope: &Scope) -> (Vec<ImageFile>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut files = Vec::new();
    let manifests = format!("{MANIFESTS}/{order:02}-{}", pack.file.name);
    for (folder, prefix) in [("files", ""), ("manifests", manifests.as_str()), ("charts", manifests.as_str())]
    {
        let mut found = Vec::new();
        let root = pack.folder.join(folder);
        if root.is_dir()
            && let Err(error) = walk(&root, DEPTH, &mut found)
        {
            let finding = Finding::error("", format!("cannot be read: {error}"), "make it readable");
            findings.push(finding.in_file(root.display().to_string()));
        }
        found.sort();
        for path in found {
            match one(&path, &root, prefix, scope) {
                Ok(file) => files.push(ImageFile { origin: origin.into(), ..file }),
                Err(RenderError { line, message }) => {
                    let finding = Finding::error("", message, "correct the pack's file");
                    let place = line.map(|line| (line, 0));
                    findings.push(finding.in_file(path.display().to_string()).at_line(place));
                }
            }
        }
    }
    for (path, mode) in &pack.file.modes {
        let bits = u32::from_str_radix(mode, 8).ok().filter(|bits| *bits <= 0o7777);
        let problem = match (files.iter_mut().find(|file| file.path == *path), bits) {
            (Some(file), Some(bits)) => {
                file.mode = bits;
                continue;
            }
            (None, _) if !findings.is_empty() => continue,
            (None, _) => ("the pack has no such file".to_owned(), "correct the path"),
            (Some(_), None) => (format!("`{mode}` is not an octal mode"), "write it as \"0755\""),
        };
        let finding = Finding::error(format!("modes.{path}"), problem.0, problem.1);
        findings.push(finding.in_file(pack.folder.join("pack.yaml").display().to_string()));
    }
    (files, findings)
}

fn one(path: &Path, root: &Path, prefix: &str, scope: &Scope) -> Result<ImageFile, RenderError> {
    let wrong = |message: String| RenderError { line: None, message };
    let inside = path.strip_prefix(root).map_err(|error| wrong(error.to_string()))?;
    let inside = inside.to_str().ok_or_else(|| wrong("the name is not UTF-8".into()))?;
    let target = |name: &str| format!("{prefix}/{name}");
    if let Ok(link) = fs::read_link(path) {
        let link = link.to_str().ok_or_else(|| wrong("the link is not UTF-8".into()))?.to_owned();
        let file = text(target(inside), String::new(), "");
        return Ok(ImageFile { content: FileContent::Symlink { target: link }, ..file });
    }
    if let Some(name) = inside.strip_suffix(".j2") {
        let source = yaml::text(path).map_err(|finding| wrong(finding.message))?;
        return Ok(text(target(name), template::render(&source, scope)?, ""));
    }
    let file = text(target(inside), String::new(), "");
    Ok(ImageFile { content: FileContent::Copy { from: path.to_owned() }, ..file })
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if depth == 0 {
        return Err(std::io::Error::other("folders are nested too deep"));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), depth - 1, found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}
