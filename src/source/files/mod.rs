//! A directory tree.
//!
//! The walk holds open directories and names files relative to them: it follows no symbolic link and knows no limit on
//! the length of a path. Its order is stable: names by their bytes, a directory before its content. What cannot be read
//! is reported and left out; a root that cannot be read, or holds nothing, is an error. The root's own metadata is the
//! entry `.`. Deliberately absent: freezing the file system (a file that changes while it is read is reported).

mod ahead;
mod content;
pub mod control_plane;
mod pattern;
mod walk;
mod xattrs;

use super::{Context, Say, Source, SourceError};
use crate::entry::{Facts, Sink};
use pattern::Patterns;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The root of what is captured; absolute.
    pub path: PathBuf,
    /// Glob patterns relative to the root; with any, only what matches one is captured, with all below it.
    #[serde(default)]
    pub include: Vec<String>,
    /// Glob patterns relative to the root; what matches is left out, with all below it.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Stay on the root's file system.
    #[serde(default)]
    pub one_file_system: bool,
}

impl Spec {
    pub(super) fn check(&self, say: &mut Say<'_>) {
        if !self.path.is_absolute() {
            say("path", "expected an absolute path");
        }
        for (name, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            for (index, pattern) in patterns.iter().enumerate() {
                if let Err(why) = globset::Glob::new(pattern) {
                    say(&format!("{name}[{index}]"), &why.to_string());
                }
            }
        }
    }
}

#[derive(Debug)]
pub struct Files {
    spec: Spec,
    include: Patterns,
    exclude: Patterns,
}

impl Files {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        if !spec.path.is_absolute() {
            return Err(SourceError::Spec { what: format!("the path {} is not absolute", spec.path.display()) });
        }
        Ok(Self { include: Patterns::new(&spec.include)?, exclude: Patterns::new(&spec.exclude)?, spec })
    }
}

impl Source for Files {
    fn kind(&self) -> &'static str {
        "files"
    }

    fn check(&mut self, _context: &Context) -> Result<Vec<String>, SourceError> {
        walk::check(&self.spec.path)?;
        Ok(vec![format!("{} is readable", self.spec.path.display())])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        walk::Walk::new(&self.spec, &self.include, &self.exclude, context, sink).run()
    }
}
