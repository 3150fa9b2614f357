//! A publication as a test wants it.

use super::super::Desk;
use crate::progress::Progress;
use crate::release::keys::PrivateKey;
use crate::release::publish::{Publish, Published, publish};
use crate::release::repository::Repository;
use formats::object::BlockSize;
use std::path::PathBuf;

/// What a test changes about a publication.
pub struct Run<'a> {
    pub from: Vec<PathBuf>,
    pub key: Option<&'a str>,
    pub level: Option<i32>,
    pub keep: Option<usize>,
    pub plan: bool,
    pub adaptive: bool,
    pub renumber: bool,
    pub sequence: Option<u32>,
}

pub const PLAIN: Run<'_> = Run {
    from: Vec::new(),
    key: Some("dev-catalogue.pem"),
    level: None,
    keep: None,
    plan: false,
    adaptive: false,
    renumber: false,
    sequence: None,
};

impl Desk {
    pub fn publish(&self, name: &str, run: &Run<'_>) -> anyhow::Result<Published> {
        let repository = Repository::at(&self.at("repo"))?;
        let key = run.key.map(|key| PrivateKey::read(&self.at("keys").join(key))).transpose()?;
        publish(&Publish {
            release: &self.at(name),
            repository: &repository,
            from: &run.from,
            bases: 3,
            key: key.as_ref(),
            keep: run.keep,
            level: run.level,
            adaptive: run.adaptive,
            keys: run.renumber.then_some(&self.keys),
            sequence: run.sequence,
            block: BlockSize::KIB_4,
            plan: run.plan,
            progress: &Progress::quiet(),
        })
    }

    pub fn failure(&self, name: &str, run: &Run<'_>) -> String {
        let error = format!("{:#}", self.publish(name, run).unwrap_err());
        error.replace(&format!("{}/", self.folder.path().display()), "")
    }
}
