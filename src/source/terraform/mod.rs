//! Terraform's and OpenTofu's states: every workspace of one configuration, as its backend keeps them.
//!
//! A state is an entry `WORKSPACE/terraform.tfstate`, byte for byte; one that OpenTofu has encrypted stays so. What the
//! guard looks at is the workspace `default`, or the first by name: its lineage is the source's identity, its serial the
//! position. Deliberately absent: the azurerm and gcs backends, and everything outside the state.

mod backend;
mod cluster;
mod dynamodb;
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
use std::collections::BTreeMap;
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
    Kubernetes(Kubernetes),
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
    /// Default `POST`.
    pub update_method: Option<String>,
    /// Without it the state is not locked while it is restored.
    pub lock_address: Option<String>,
    /// Default `LOCK`.
    pub lock_method: Option<String>,
    /// Default: `lockAddress`. (Terraform has no default, and leaves the state locked.)
    pub unlock_address: Option<String>,
    /// Default `UNLOCK`.
    pub unlock_method: Option<String>,
    pub username: Option<String>,
    pub password: Option<SecretRef>,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// Where the cluster is and who asks; in the cluster itself, if it is not given, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context, if it is not the current one.
    pub context: Option<String>,
    /// Default `default`.
    pub namespace: Option<String>,
    pub secret_suffix: String,
    /// Further labels of what a restore makes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
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
    /// Of locks and digests (`dynamodb_table`).
    pub dynamodb_table: Option<String>,
    /// The server's URL; none means Amazon's.
    pub dynamodb_endpoint: Option<String>,
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
            Backend::Kubernetes(cluster) => Needs {
                files: cluster.kubeconfig.iter().map(PathBuf::as_path).collect(),
                account: cluster.kubeconfig.is_none(),
                ..Needs::default()
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
            Backend::Http(http) => http.check(directory, say),
            Backend::Kubernetes(cluster) => cluster.check(directory, say),
            Backend::S3(s3) => {
                for (name, value) in [("bucket", &s3.bucket), ("key", &s3.key)] {
                    if value.is_empty() {
                        say(&format!("backend.s3.{name}"), "expected a name");
                    }
                }
                if s3.dynamodb_endpoint.is_some() && s3.dynamodb_table.is_none() {
                    say("backend.s3.dynamodbEndpoint", "it is for a table: give dynamodbTable too");
                }
            }
        }
    }

    fn open(&self, context: &Context) -> Result<Box<dyn backend::Backend>, SourceError> {
        Ok(match &self.backend {
            Backend::Local(spec) => Box::new(local::Local::new(spec.clone())),
            Backend::Http(spec) => Box::new(remote::Http::new(spec.clone())?),
            Backend::Kubernetes(spec) => Box::new(cluster::Cluster::new(context, spec.clone())?),
            Backend::S3(spec) => Box::new(s3::Bucket::new(context, spec.clone())?),
        })
    }
}

impl Http {
    fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        http::check_address(&self.address, "backend.http.address", say);
        let addresses = [("lockAddress", &self.lock_address), ("unlockAddress", &self.unlock_address)];
        for (name, address) in addresses {
            if let Some(address) = address {
                http::check_address(address, &format!("backend.http.{name}"), say);
            }
        }
        let methods = [
            ("updateMethod", &self.update_method),
            ("lockMethod", &self.lock_method),
            ("unlockMethod", &self.unlock_method),
        ];
        for (name, method) in methods {
            let is_method = |method: &String| !method.is_empty() && method.chars().all(|c| c.is_ascii_uppercase());
            if !method.as_ref().is_none_or(is_method) {
                say(&format!("backend.http.{name}"), "expected a method such as POST");
            }
        }
        if self.username.is_some() != self.password.is_some() {
            say("backend.http", "username and password belong together: give both or neither");
        }
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
    }
}

impl Kubernetes {
    fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if self.context.is_some() && self.kubeconfig.is_none() {
            say("backend.kubernetes.context", "a context is one of a kubeconfig: give kubeconfig too");
        }
        if let Some(path) = &mut self.kubeconfig {
            *path = directory.join(&*path);
        }
        if self.secret_suffix.is_empty() {
            say("backend.kubernetes.secretSuffix", "expected the backend's secret_suffix");
        }
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
