//! Where the packs and boards of a profile are.

use crate::finding::Finding;
use std::path::{Path, PathBuf};

/// Folders that a profile is resolved against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// Folders that hold packs, the ones that win first: `packs` beside the profile, then those of the recipes.
    pub packs: Vec<PathBuf>,
    /// Folder that holds `x86_64` and `arm64`.
    pub boards: PathBuf,
}

impl Folders {
    /// Finds the folders of a profile. `recipes` is what `--recipes` or `FARHOLD_RECIPES` says; without it the first
    /// folder above the profile that holds `packs` or `recipes/packs`, or `recipes` in the working folder.
    ///
    /// # Errors
    /// If there are none.
    pub fn find(profile: &Path, recipes: Option<&Path>) -> Result<Self, Finding> {
        let next = "give the folder that holds `packs` with --recipes or FARHOLD_RECIPES";
        let profile = std::path::absolute(profile).unwrap_or_else(|_| profile.to_owned());
        let own = profile.parent().unwrap_or(Path::new("/")).join("packs");
        let above =
            profile.ancestors().skip(2).flat_map(|folder| [folder.to_owned(), folder.join("recipes")]);
        let working = std::path::absolute("recipes").ok();
        let recipes = match recipes {
            Some(recipes) => Some(recipes.to_owned()),
            None => above.chain(working).find(|folder| folder.join("packs").is_dir()),
        };
        let packs: Vec<PathBuf> = [Some(own.clone()), recipes.as_ref().map(|recipes| recipes.join("packs"))]
            .into_iter()
            .flatten()
            .collect();
        let mut packs: Vec<PathBuf> = packs.into_iter().filter(|folder| folder.is_dir()).collect();
        packs.dedup();
        let Some(base) = recipes.or_else(|| packs.first().map(|_| own)) else {
            return Err(Finding::error("", "no folder `packs` beside it, above it or in ./recipes", next)
                .in_file(profile.display().to_string()));
        };
        if packs.is_empty() {
            return Err(Finding::error("", "has no folder `packs`", next).in_file(base.display().to_string()));
        }
        let base = std::path::absolute(&base).unwrap_or(base);
        let boards = base.ancestors().find(|folder| folder.join("x86_64").join("boards").is_dir());
        match boards {
            Some(boards) => Ok(Self { packs, boards: boards.to_owned() }),
            None => {
                let message = "no folders `x86_64` and `arm64` with boards in it or above it";
                let next = "copy them from the source tree, or use its `recipes`";
                Err(Finding::error("", message, next).in_file(base.display().to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn packs_beside_the_profile_come_before_those_above() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["recipes/packs", "recipes/profiles/packs", "x86_64/boards"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let found = Folders::find(&root.join("recipes/profiles/site.yaml"), None).unwrap();
        assert_eq!(found.packs, [root.join("recipes/profiles/packs"), root.join("recipes/packs")]);
        assert_eq!(found.boards, root);
    }

    #[test]
    fn a_given_folder_without_packs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Folders::find(&dir.path().join("p.yaml"), Some(dir.path())).unwrap_err();
        assert!(error.to_string().contains("has no folder `packs`"), "{error}");
    }
}
