//! Objects of a Kubernetes cluster, through its API.
//!
//! One entry per object, `<namespace>/<resource.group>/<name>.yaml` (`_cluster/…` for what has no namespace), as the API
//! gives it but without `managedFields`: what a restore may not repeat (uids, versions, status) is taken out by the
//! restore, so that the snapshot shows what was there. Every kind is listed at one resource version; kinds are listed one
//! after the other, so two of them may be moments apart. What cannot be listed is reported, never left out silently. The
//! values of Secrets are in the entries and nowhere else. Deliberately absent: the content of volumes, and what controllers
//! make again by themselves (events, endpoints, heartbeats, metrics).

pub(super) mod api;
mod argocd;
pub(super) mod attach;
mod capture;
pub mod check;
mod choose;
pub mod escrow;
mod export;
pub mod fence;
pub(super) mod flags;
pub mod helm;
mod index;
pub mod job;
mod kinds;
mod needed;
pub(super) mod normal;
mod order;
mod pages;
mod releases;
mod restore;
mod rewrite;
pub mod service;
pub(super) mod yaml;

pub(super) use api::{Api, Ask, Failure};
pub(super) use argocd::Backup;
pub(super) use export::Manifests;
pub(super) use releases::Releases;
pub(super) use restore::Cluster;

use super::target::Options;
use super::{Context, Say, Source, SourceError};
use crate::entry::{Facts, Sink};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Where the cluster is and who asks; in the cluster itself, if it is not given, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context, if it is not the current one.
    pub context: Option<String>,
    /// All, if none is named.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// A label selector, as `kubectl get -l` takes it.
    pub selector: Option<String>,
    /// Resources, such as `configmaps` or `deployments.apps`; all, if none is named.
    #[serde(default)]
    pub include_kinds: Vec<String>,
    #[serde(default)]
    pub exclude_kinds: Vec<String>,
    #[serde(default)]
    pub cluster_scoped: ClusterScoped,
}

/// Which of the objects that belong to no namespace are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClusterScoped {
    /// Those that captured objects refer to or cannot be without, and the namespaces themselves.
    #[default]
    Needed,
    All,
    None,
}

impl Spec {
    /// How the cluster is reached: the same for two documents that mean the same cluster in the same way.
    #[must_use]
    pub fn way(&self) -> String {
        let kubeconfig =
            self.kubeconfig.as_ref().map_or_else(|| "the pod's own".into(), |path| path.display().to_string());
        format!("{kubeconfig} {}", self.context.as_deref().unwrap_or_default())
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if self.context.is_some() && self.kubeconfig.is_none() {
            say("context", "a context is one of a kubeconfig: give kubeconfig too");
        }
        if let Some(path) = &mut self.kubeconfig {
            *path = directory.join(&*path);
        }
        for (index, name) in self.namespaces.iter().enumerate() {
            if !is_namespace(name) {
                say(&format!("namespaces[{index}]"), "expected the name of a namespace");
            }
        }
        for (field, words) in [("includeKinds", &self.include_kinds), ("excludeKinds", &self.exclude_kinds)] {
            for (index, word) in words.iter().enumerate() {
                if word.is_empty() || word.chars().any(|c| c.is_ascii_uppercase() || c.is_whitespace() || c == '/') {
                    say(
                        &format!("{field}[{index}]"),
                        "expected a resource and its group, such as configmaps or deployments.apps",
                    );
                }
            }
        }
        if self.selector.as_deref().is_some_and(|text| text.trim().is_empty()) {
            say("selector", "expected a label selector such as \"app=shop\"");
        }
    }
}

pub(super) fn is_namespace(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(fits)
}

/// Says what is wrong with the options of a restore.
pub(super) fn check_options(options: &Options, say: &mut Say<'_>) {
    choose::check(options, say);
    rewrite::check(options, say);
}

/// Where in a snapshot the objects without a namespace lie. No namespace can have this name.
const CLUSTER: &str = "_cluster";
/// What Lifeboat's changes are signed with.
const MANAGER: &str = "lifeboat";

#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("read the kubeconfig {path}: {text}")]
    Kubeconfig { path: String, text: String },
    #[error(
        "the kubeconfig's user logs in by a program (exec, auth-provider), which is not supported: it might wait for a \
         person for ever; give a kubeconfig with a token or a client certificate"
    )]
    Login,
    #[error(
        "find the cluster that this runs in: {text}; a pod's service account must be mounted \
         (automountServiceAccountToken), outside of a cluster give a kubeconfig"
    )]
    NotInside { text: String },
    #[error("reach the API server {server}: {text}")]
    Unreachable { server: String, text: String },
    #[error(
        "{server} does not accept the credentials: {text}; renew the token or the certificate, which are the kubeconfig's \
         or, without one, the pod's service account's"
    )]
    Unauthorized { server: String, text: String },
    #[error("{what} at {server}: {text}")]
    Request { server: String, what: String, text: String },
    #[error(
        "{server} lets this user list nothing that is to be captured: {first}; grant get and list on the resources"
    )]
    Forbidden { server: String, first: String },
    #[error(
        "there is nothing to capture in {what} at {server}; if that is right, remove the source, otherwise look for a wrong cluster, namespace or selector"
    )]
    Nothing { server: String, what: String },
    #[error("read {path} of the snapshot: {text}")]
    Object { path: String, text: String },
}

#[derive(Debug)]
pub struct Kubernetes {
    spec: Spec,
}

impl Kubernetes {
    #[must_use]
    pub fn new(spec: Spec) -> Self {
        Self { spec }
    }
}

/// Tells a cluster from every other: the uid of its `kube-system` namespace, if it may be read.
pub fn identity(context: &Context, spec: &Spec) -> Result<Option<String>, SourceError> {
    Api::connect(context, spec)?.system(context)
}

impl Source for Kubernetes {
    fn kind(&self) -> &'static str {
        "kubernetes"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let api = Api::connect(context, &self.spec)?;
        let version = api.version(context)?;
        let found = kinds::discover(context, &api)?;
        let mut lines = vec![format!("{}: Kubernetes {version}, {} kinds of objects", api.server, found.kinds.len())];
        lines.extend(api.system(context)?.map(|uid| format!("cluster {uid}")));
        lines.extend(found.problems.into_iter().map(|problem| problem.text));
        Ok(lines)
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        capture::capture(context, &self.spec, sink)
    }
}
