//! A directory tree.

use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The root of what is captured; absolute.
    pub path: PathBuf,
    /// Glob patterns relative to the root; with any, only what matches one is captured.
    #[serde(default)]
    pub include: Vec<String>,
    /// Glob patterns relative to the root; what matches is left out, with all below it.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Stay on the root's file system.
    #[serde(default)]
    pub one_file_system: bool,
}
