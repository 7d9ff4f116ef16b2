//! Secrets by reference: documents say where a secret is, never what it is.

use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// Where a secret is kept. In a cluster, Kubernetes Secrets are mounted as files or set as environment variables.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SecretRef {
    /// The content of a file; one trailing line feed is not part of it.
    File(PathBuf),
    /// The value of an environment variable.
    #[serde(deserialize_with = "variable")]
    Env(String),
}

static NAMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A document names it: programs do not inherit it.
fn variable<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    NAMED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
    Ok(name)
}

/// The variables that documents take secrets from.
pub fn named() -> BTreeSet<String> {
    NAMED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("read the secret file {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the secret in {place} is not UTF-8 text")]
    NotText { place: String },
    #[error("the environment variable {name} is not set; it should hold a secret")]
    Unset { name: String },
}

impl SecretRef {
    /// Whether there is anything in that place: another machine's file is not here.
    pub fn is_here(&self) -> bool {
        match self {
            Self::File(path) => path.exists(),
            Self::Env(name) => {
                #[expect(clippy::disallowed_methods, reason = "this is where secrets in the environment are read")]
                let value = std::env::var_os(name);
                value.is_some()
            }
        }
    }

    /// Reads the secret, afresh every time: mounted Secrets are replaced while a process runs.
    pub fn read(&self) -> Result<Zeroizing<String>, SecretError> {
        match self {
            Self::File(path) => {
                let bytes = std::fs::read(path).map_err(|source| SecretError::File { path: path.clone(), source })?;
                let mut bytes = Zeroizing::new(bytes);
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                }
                match std::str::from_utf8(&bytes) {
                    Ok(text) => Ok(Zeroizing::new(text.to_owned())),
                    Err(_) => Err(SecretError::NotText { place: path.display().to_string() }),
                }
            }
            Self::Env(name) => {
                #[expect(clippy::disallowed_methods, reason = "this is where secrets in the environment are read")]
                let value = std::env::var(name);
                value.map(Zeroizing::new).map_err(|error| match error {
                    std::env::VarError::NotPresent => SecretError::Unset { name: name.clone() },
                    std::env::VarError::NotUnicode(_) => SecretError::NotText { place: name.clone() },
                })
            }
        }
    }
}
