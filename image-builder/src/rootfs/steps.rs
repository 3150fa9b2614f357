//! Performs declared steps on a tree.

use crate::resolved::Step;
use crate::tree::{Entry, Node, Tree};
use anyhow::{Context, Result, anyhow, bail};
use std::sync::Arc;

/// A step and the package whose rule declares it.
pub struct Owned<'a> {
    /// Package.
    pub package: String,
    /// Step.
    pub step: &'a Step,
}

/// What can only be done when every file is in the tree.
#[derive(Debug, Default)]
pub struct Late {
    /// sysusers.d lines, with the package that declares them.
    pub sysusers: Vec<(String, String)>,
    /// Folders of certificates to bundle.
    pub bundles: Vec<String>,
}

/// Performs steps in order and returns those for later.
///
/// # Errors
/// If a step names a path that is not there, or a mode or owner that cannot be; with package and step.
pub fn apply(tree: &mut Tree, steps: &[Owned<'_>]) -> Result<Late> {
    let mut late = Late::default();
    for owned in steps {
        let origin: Arc<str> = format!("rule of {}", owned.package).into();
        perform(tree, &origin, owned.step, &mut late).with_context(|| {
            format!("perform a step of the rule of {}: {}", owned.package, brief(owned.step))
        })?;
    }
    Ok(late)
}

fn brief(step: &Step) -> String {
    serde_json::to_string(step).unwrap_or_default().chars().take(200).collect()
}

fn perform(tree: &mut Tree, origin: &Arc<str>, step: &Step, late: &mut Late) -> Result<()> {
    match step {
        Step::Copy { from, to, mode } => {
            let (_, source) = tree.follow(from).ok_or_else(|| anyhow!("{from} is not in the image"))?;
            let Node::File(data) = &source.node else { bail!("{from} is not a file") };
            let mut copy = Entry::new(Node::File(data.clone()), source.mode, origin);
            if let Some(mode) = mode {
                copy.mode = octal(mode)?;
            }
            tree.replace(to, copy)
        }
        Step::Symlink { path, target } | Step::Alternative { link: path, target } => {
            tree.replace(path, Entry::symlink(target, origin))
        }
        Step::Directory { path, mode, owner } => {
            let mut entry = Entry::dir(origin);
            entry.mode = octal(mode)?;
            if let Some(owner) = owner {
                (entry.user, entry.group) = owners(owner)?;
            }
            tree.replace(path, entry)
        }
        Step::File { path, text, mode } => {
            let mut entry = Entry::text(text, origin);
            if let Some(mode) = mode {
                entry.mode = octal(mode)?;
            }
            tree.replace(path, entry)
        }
        Step::Owner { path, owner, mode } => {
            let entry = tree.get_mut(path).ok_or_else(|| anyhow!("{path} is not in the image"))?;
            (entry.user, entry.group) = owners(owner)?;
            if let Some(mode) = mode {
                entry.mode = octal(mode)?;
            }
            Ok(())
        }
        Step::Sysuser { line } => {
            late.sysusers.push((origin.to_string(), line.clone()));
            Ok(())
        }
        Step::CaBundle { folder } => {
            late.bundles.push(folder.clone());
            Ok(())
        }
        Step::Remove { path } => {
            tree.remove(path);
            Ok(())
        }
    }
}

/// Permission bits in octal, as `0755`.
///
/// # Errors
/// If it is no octal number up to 7777.
pub fn octal(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| anyhow!("mode `{text}` must be octal, as 0755"))
}

fn owners(text: &str) -> Result<(Arc<str>, Arc<str>)> {
    match text.split_once(':') {
        Some((user, group)) if !user.is_empty() && !group.is_empty() => Ok((user.into(), group.into())),
        Some(_) | None => bail!("owner `{text}` must be user:group"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tree: &mut Tree, step: Step) -> Result<Late> {
        apply(tree, &[Owned { package: "p".into(), step: &step }])
    }

    #[test]
    fn steps_do_what_they_say_and_errors_name_the_rule() {
        let mut tree = Tree::new(&"t".into());
        let step = Step::File { path: "/etc/x".into(), text: "x".into(), mode: Some("600".into()) };
        run(&mut tree, step).unwrap();
        assert_eq!(tree.get("/etc/x").unwrap().mode, 0o600);
        run(&mut tree, Step::Copy { from: "/etc/x".into(), to: "/etc/y".into(), mode: None }).unwrap();
        assert_eq!(tree.file("/etc/y").unwrap().bytes(9).unwrap(), b"x");
        run(&mut tree, Step::Owner { path: "/etc/y".into(), owner: "root:shadow".into(), mode: None })
            .unwrap();
        assert_eq!(&*tree.get("/etc/y").unwrap().group, "shadow");
        run(&mut tree, Step::Remove { path: "/etc/x".into() }).unwrap();
        let error =
            run(&mut tree, Step::Copy { from: "/etc/x".into(), to: "/z".into(), mode: None }).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "perform a step of the rule of p: {\"do\":\"copy\",\"from\":\"/etc/x\",\"to\":\"/z\",\"mode\":null}: \
             /etc/x is not in the image"
        );
        for bad in ["8", "10000", "rwx", ""] {
            assert!(octal(bad).is_err(), "{bad}");
        }
    }
}
