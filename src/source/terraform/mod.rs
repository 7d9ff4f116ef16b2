//! Terraform's and OpenTofu's states: every workspace of one configuration, as its backend keeps them.
//!
//! A state is an entry `WORKSPACE/terraform.tfstate`, byte for byte; one that OpenTofu has encrypted stays so. What the
//! guard looks at is the workspace `default`, or the first by name: its lineage is the source's identity, its serial the
//! position. Deliberately absent: the Kubernetes, azurerm and gcs backends, and everything outside the state.

mod backend;
mod local;
mod remote;
mod restore;
mod s3;
mod state;

pub use restore::Restoring;

use super::command::plain_file;
use super::http::{self, Tls};
use super::{Context, Needs, Say, Source, SourceError, unpack};
use crate::entry::{Facts, Layout, Sink};
use crate::secret::SecretRef;
use serde::Deserialize;
use state::State;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    pub backend: Backend,
}

/// Where the states are; the names and meanings are those of Terraform's `backend` blocks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Backend {
    Local(Local),
    Http(Http),
    S3(S3),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Local {
    /// The directory that holds `terraform.tfstate` and `terraform.tfstate.d`; absolute.
    pub directory: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    pub address: String,
    /// Where `LOCK` and `UNLOCK` are sent; without it the state is not locked while it is restored.
    pub lock_address: Option<String>,
    pub username: Option<String>,
    pub password: Option<SecretRef>,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3 {
    pub bucket: String,
    pub key: String,
    /// Default `env:`.
    pub workspace_key_prefix: Option<String>,
    pub region: Option<String>,
    pub endpoint: Option<String>,
    #[serde(default)]
    pub path_style: bool,
    /// Default: what the environment gives.
    pub credentials: Option<Credentials>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    pub access_key_id: SecretRef,
    pub secret_access_key: SecretRef,
}

/// The workspace that there always is.
const DEFAULT: &str = "default";
const FILE: &str = "terraform.tfstate";

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        match &self.backend {
            Backend::Local(local) => Needs { files: vec![&local.directory], ..Needs::default() },
            Backend::Http(http) => Needs {
                files: http.tls.iter().flat_map(Tls::files).collect(),
                secrets: http.password.iter().collect(),
                account: false,
            },
            Backend::S3(s3) => Needs {
                secrets: s3.credentials.iter().flat_map(|c| [&c.access_key_id, &c.secret_access_key]).collect(),
                ..Needs::default()
            },
        }
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        match &mut self.backend {
            Backend::Local(local) if !local.directory.is_absolute() => {
                say("backend.local.directory", "expected an absolute path");
            }
            Backend::Local(_) => {}
            Backend::Http(http) => {
                http::check_address(&http.address, "backend.http.address", say);
                if let Some(address) = &http.lock_address {
                    http::check_address(address, "backend.http.lockAddress", say);
                }
                if http.username.is_some() != http.password.is_some() {
                    say("backend.http", "username and password belong together: give both or neither");
                }
                if let Some(tls) = &mut http.tls {
                    tls.check(directory, say);
                }
            }
            Backend::S3(s3) => {
                for (name, value) in [("bucket", &s3.bucket), ("key", &s3.key)] {
                    if value.is_empty() {
                        say(&format!("backend.s3.{name}"), "expected a name");
                    }
                }
            }
        }
    }

    fn open(&self, context: &Context) -> Result<Box<dyn backend::Backend>, SourceError> {
        Ok(match &self.backend {
            Backend::Local(spec) => Box::new(local::Local::new(spec.clone())),
            Backend::Http(spec) => Box::new(remote::Http::new(spec.clone())?),
            Backend::S3(spec) => Box::new(s3::Bucket::new(context, spec.clone())?),
        })
    }
}

#[derive(Debug)]
pub struct Terraform {
    spec: Spec,
}

impl Terraform {
    pub fn new(spec: Spec) -> Self {
        Self { spec }
    }
}

/// One workspace's state, as it was read.
struct Found {
    workspace: String,
    bytes: Vec<u8>,
    state: State,
}

/// All states that there are, by workspace.
fn read_all(context: &Context, backend: &dyn backend::Backend) -> Result<Vec<Found>, SourceError> {
    let mut all = Vec::new();
    let mut workspaces = backend.workspaces(context)?;
    workspaces.sort();
    for workspace in workspaces {
        context.go_on()?;
        // One that is gone since it was listed is gone.
        let Some(bytes) = backend.read(context, &workspace)? else { continue };
        let state = State::parse(&bytes).map_err(|why| SourceError::System {
            attempt: format!("read the state of workspace {workspace} from {}", backend.place()),
            text: why,
            need: "is it Terraform's or OpenTofu's?".into(),
        })?;
        all.push(Found { workspace, bytes, state });
    }
    Ok(all)
}

impl Source for Terraform {
    fn kind(&self) -> &'static str {
        "terraform"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let backend = self.spec.open(context)?;
        let all = read_all(context, backend.as_ref())?;
        let names: Vec<_> = all.iter().map(|found| found.workspace.as_str()).collect();
        if names.is_empty() {
            return Err(SourceError::Empty { path: backend.place() });
        }
        Ok(vec![format!("{}: workspaces {}", backend.place(), names.join(", "))])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        let backend = self.spec.open(context)?;
        let asked = context.now();
        let all = read_all(context, backend.as_ref())?;
        let Some(main) = all.iter().find(|found| found.workspace == DEFAULT).or(all.first()) else {
            return Err(SourceError::Empty { path: backend.place() });
        };
        let mut facts = Facts {
            system: Some(main.state.lineage.clone()),
            position: Some(main.state.serial),
            objects: Some(all.iter().map(|found| found.state.resources).sum()),
            recovery_point_ms: Some(asked.as_millisecond()),
            details: [("place".to_owned(), backend.place())].into(),
        };
        for Found { workspace, state, .. } in &all {
            let State { lineage, serial, resources, .. } = state;
            let text = format!("serial {serial}, lineage {lineage}, {resources} resources");
            facts.details.insert(format!("workspace {workspace}"), text);
        }
        for Found { workspace, bytes, .. } in all {
            let entry = plain_file(format!("{workspace}/{FILE}").into_bytes(), bytes.len() as u64, context.started);
            unpack::hand_over(context, sink, entry, Layout::Records, &mut &bytes[..])?;
        }
        Ok(facts)
    }
}
