//! HashiCorp Vault with integrated storage (raft), and what is compatible with it.
//!
//! The snapshot is what `GET sys/storage/raft/snapshot` gives: a gzipped tar of `meta.json`, `state.bin` (still sealed by
//! Vault's barrier), `SHA256SUMS` and `SHA256SUMS.sealed`. It is unpacked, since gzip hides what two snapshots have in
//! common, and its sums are checked; [`Snapshot`] packs it again. It is asked of the active node.
//! Restoring sends it back. What the server holds then is sealed with the *captured* Vault's keys: whether those are at
//! hand is looked at before anything is overwritten.
//! Single secrets come back by a Vault beside the live one, which opens the snapshot ([`Secrets`]).
//! Deliberately absent: reading secrets out of a snapshot without a Vault.

mod archive;
mod aside;
mod client;
mod keyvalue;
mod restore;
mod secrets;

pub use archive::Snapshot;
pub use restore::{Restore, Restoring};
pub use secrets::Secrets;

use super::http::{self, Tls};
use super::target::{Options, Target};
use super::{Context, Needs, Say, Source, SourceError};
use crate::entry::{Facts, Sink};
use crate::secret::SecretRef;
use client::{Client, Health};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// API address, `https://HOST:8200`.
    pub address: String,
    pub tls: Option<Tls>,
    /// The namespace that `auth` logs in to (Vault Enterprise, OpenBao). Snapshots are always of all of Vault.
    pub namespace: Option<String>,
    pub auth: Auth,
    /// Only for restoring.
    #[serde(default)]
    pub restore: Restore,
}

/// Who we are to Vault. Capturing needs `read` on `sys/storage/raft/snapshot`, restoring `update`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Auth {
    Token(SecretRef),
    AppRole(AppRole),
    Kubernetes(Kubernetes),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppRole {
    /// Where the method is mounted; default `approle`.
    pub mount: Option<String>,
    pub role_id: SecretRef,
    pub secret_id: SecretRef,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// Where the method is mounted; default `kubernetes`.
    pub mount: Option<String>,
    pub role: String,
    /// File of the service account's token; default: where every pod has it.
    pub token: Option<PathBuf>,
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        let mut needs = Needs { files: self.tls.iter().flat_map(Tls::files).collect(), ..Needs::default() };
        match &self.auth {
            Auth::Token(token) => needs.secrets.push(token),
            Auth::AppRole(role) => needs.secrets.extend([&role.role_id, &role.secret_id]),
            Auth::Kubernetes(role) => {
                needs.files.extend(role.token.as_deref());
                needs.account = role.token.is_none();
            }
        }
        needs
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        http::check_address(&self.address, "address", say);
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
        if let Auth::Kubernetes(Kubernetes { token: Some(token), .. }) = &mut self.auth {
            *token = directory.join(&*token);
        }
        self.restore.check(directory, say);
    }
}

#[derive(Debug)]
pub struct Vault {
    spec: Spec,
}

impl Vault {
    pub fn new(spec: Spec) -> Self {
        Self { spec }
    }
}

/// Brings all of a Vault back, or the secrets that are asked for.
pub(super) fn target(spec: &Spec, options: Options) -> Box<dyn Target> {
    if options.vault_paths.is_empty() {
        Box::new(Restoring::new(spec.clone(), options))
    } else {
        Box::new(Secrets::new(spec.clone(), options))
    }
}

/// Says what is wrong with paths of secrets.
pub(super) fn check_paths(paths: &[String], say: &mut Say<'_>) {
    for path in paths {
        if path.is_empty() || path.starts_with('/') || !path.contains('/') {
            say(
                "vaultPaths",
                &format!("expected an API path such as secret/data/NAME, or secret/data/FOLDER/: {path}"),
            );
        }
    }
}

/// Whether a secret can be read, with the token for checks or the usual login. What it says is thrown away.
pub(super) fn read(context: &Context, spec: &Spec, path: &str) -> Result<String, SourceError> {
    let mut client = Client::new(spec)?;
    client.health(context)?.must_be_unsealed(&client)?;
    match &spec.restore.token {
        Some(token) => client.use_token(token.read()?),
        None => client.log_in(context, &spec.auth)?,
    }
    match http::json(context, client.request(reqwest::Method::GET, path))? {
        Ok(_) => Ok(format!("{path} is readable")),
        Err(failure) => Err(client.failed(&format!("read {path} of"), &failure, "")),
    }
}

impl Source for Vault {
    fn kind(&self) -> &'static str {
        "vault"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let mut client = Client::new(&self.spec)?;
        let health = client.health(context)?;
        health.must_be_unsealed(&client)?;
        client.log_in(context, &self.spec.auth)?;
        client.must_be_allowed(context, "read")?;
        Ok(vec![format!("{}: {}; the login may read snapshots", client.address(), health.describe())])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let mut client = Client::new(&self.spec)?;
        let health = client.health(context)?;
        health.must_be_unsealed(&client)?;
        client.log_in(context, &self.spec.auth)?;
        client.follow_leader(context, &self.spec, &health)?;
        let health = client.health(context)?;
        health.must_be_unsealed(&client)?;
        let seal = client.seal(context)?;
        let asked = context.now();
        let answer = client.snapshot(context)?;
        let meta = archive::unpack(context, sink, http::Download::new(context, answer), client.address())?;
        Ok(facts(client.address(), &health, &seal, &meta, asked))
    }
}

/// The data is of the moment that the snapshot was asked for, or a little later.
fn facts(address: &str, health: &Health, seal: &client::Seal, meta: &archive::Meta, asked: jiff::Timestamp) -> Facts {
    let details = [
        ("address", address.to_owned()),
        ("version", health.version.clone()),
        ("cluster_name", health.cluster_name.clone().unwrap_or_default()),
        ("index", meta.index.to_string()),
        ("term", meta.term.to_string()),
        (SEAL, seal.kind.clone()),
        (THRESHOLD, seal.threshold.to_string()),
        (SHARES, seal.shares.to_string()),
    ];
    Facts {
        system: health.cluster_id.clone(),
        position: Some(meta.index),
        objects: None,
        recovery_point_ms: Some(asked.as_millisecond()),
        details: details.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

/// Names of facts that a restore looks at.
const SEAL: &str = "seal";
const THRESHOLD: &str = "unseal_threshold";
const SHARES: &str = "unseal_shares";
