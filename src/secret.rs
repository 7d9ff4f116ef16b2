//! Secrets by reference: documents say where a secret is, never what it is.

use serde::Deserialize;
use std::path::PathBuf;

/// Where a secret is kept. In a cluster, Kubernetes Secrets are mounted as files or set as environment variables.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SecretRef {
    /// The content of a file; one trailing line feed is not part of it.
    File(PathBuf),
    /// The value of an environment variable.
    Env(String),
}
