//! A program's standard output.

use crate::secret::SecretRef;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The program and its arguments; no shell is involved.
    pub argv: Vec<String>,
    /// Further environment variables, by reference.
    #[serde(default)]
    pub env: BTreeMap<String, SecretRef>,
    /// Name of the captured stream in the snapshot ("dump.sql").
    pub output: String,
    /// The program is stopped after this long ("1h"); default 1 hour.
    pub timeout: Option<String>,
}
