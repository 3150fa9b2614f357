//! Files that a pack brings: `files/` as they stand in the image, those that end in `.j2` rendered; `manifests/` and
//! `charts/` where the device's Kubernetes finds them.

use crate::pack::repository::Pack;
use crate::resolved::{FileContent, ImageFile};
use crate::template::{self, Scope};
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

/// All files of a pack, rendered.
///
/// # Errors
/// Place and message of each file that cannot be read or rendered, and of modes that no file has.
pub fn of_pack(
    pack: &Pack,
    order: usize,
    origin: &str,
    scope: &Scope,
) -> Result<Vec<ImageFile>, Vec<(String, String)>> {
    let mut errors = Vec::new();
    let mut files = Vec::new();
    let manifests = format!("{MANIFESTS}/{order:02}-{}", pack.file.name);
    for (folder, prefix) in [("files", ""), ("manifests", manifests.as_str()), ("charts", manifests.as_str())]
    {
        let mut found = Vec::new();
        let root = pack.folder.join(folder);
        if root.is_dir()
            && let Err(error) = walk(&root, DEPTH, &mut found)
        {
            errors.push((root.display().to_string(), error.to_string()));
        }
        found.sort();
        for path in found {
            match one(&path, &root, prefix, origin, scope) {
                Ok(file) => files.push(file),
                Err(message) => errors.push((path.display().to_string(), message)),
            }
        }
    }
    for (path, mode) in &pack.file.modes {
        let bits = u32::from_str_radix(mode, 8).ok().filter(|bits| *bits <= 0o7777);
        match (files.iter_mut().find(|file| file.path == *path), bits) {
            (Some(file), Some(bits)) => file.mode = bits,
            (None, _) => errors.push((format!("modes.{path}"), "the pack has no such file".into())),
            (_, None) => errors.push((format!("modes.{path}"), format!("`{mode}` is not an octal mode"))),
        }
    }
    if errors.is_empty() { Ok(files) } else { Err(errors) }
}

fn one(path: &Path, root: &Path, prefix: &str, origin: &str, scope: &Scope) -> Result<ImageFile, String> {
    let inside = path.strip_prefix(root).map_err(|error| error.to_string())?;
    let inside = inside.to_str().ok_or("the name is not UTF-8")?;
    let target = |name: &str| format!("{prefix}/{name}");
    if let Ok(link) = fs::read_link(path) {
        let link = link.to_str().ok_or("the link is not UTF-8")?.to_owned();
        let file = text(target(inside), String::new(), origin);
        return Ok(ImageFile { content: FileContent::Symlink { target: link }, ..file });
    }
    if let Some(name) = inside.strip_suffix(".j2") {
        let source = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let rendered =
            template::render(&source, inside, scope).map_err(|error| error.root_cause().to_string())?;
        return Ok(text(target(name), rendered, origin));
    }
    let file = text(target(inside), String::new(), origin);
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
