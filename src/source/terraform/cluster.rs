//! The kubernetes backend: a Secret `tfstate-WORKSPACE-SUFFIX` per workspace, which holds its state gzipped, and a Lease
//! `lock-tfstate-WORKSPACE-SUFFIX`, whose holder has the lock. Names, labels and annotations are those that Terraform and
//! OpenTofu give them (`internal/backend/remote-state/kubernetes`).

use super::backend::{Backend, Lock, told};
use super::state::MAX_STATE;
use super::{DEFAULT, Kubernetes};
use crate::source::kubernetes::{self, Api, Ask, Failure};
use crate::source::{Context, SourceError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use kube::api::ListParams;
use serde_json::{Value, json};
use std::io::{self, Read as _, Write as _};

/// The Secret's key with the state, and the label that all its objects have.
const STATE: &str = "tfstate";
const WORKSPACE: &str = "tfstateWorkspace";
const SUFFIX: &str = "tfstateSecretSuffix";
const LOCK_INFO: &str = "app.terraform.io/lock-info";
const PAGE: u32 = 100;

pub(super) struct Cluster {
    spec: Kubernetes,
    api: Api,
}

impl Cluster {
    pub fn new(context: &Context, spec: Kubernetes) -> Result<Self, SourceError> {
        let (kubeconfig, name) = (spec.kubeconfig.clone(), spec.context.clone());
        let cluster = kubernetes::Spec { kubeconfig, context: name, ..kubernetes::Spec::default() };
        Ok(Self { api: Api::connect(context, &cluster)?, spec })
    }

    fn namespace(&self) -> &str {
        self.spec.namespace.as_deref().unwrap_or("default")
    }

    fn secrets(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.namespace())
    }

    fn leases(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace())
    }

    fn secret(&self, workspace: &str) -> String {
        format!("{STATE}-{workspace}-{}", self.spec.secret_suffix)
    }

    fn lease(&self, workspace: &str) -> String {
        format!("lock-{}", self.secret(workspace))
    }

    fn metadata(&self, name: &str, workspace: &str, annotations: &Value) -> Value {
        let mut labels = json!({
            STATE: "true", SUFFIX: self.spec.secret_suffix, WORKSPACE: workspace,
            "app.kubernetes.io/managed-by": "terraform",
        });
        for (label, value) in &self.spec.labels {
            labels[label] = json!(value);
        }
        json!({"name": name, "namespace": self.namespace(), "labels": labels, "annotations": annotations})
    }

    fn failed(&self, attempt: &str, failure: &Failure) -> SourceError {
        if matches!(failure.code(), 0 | 401) {
            return self.api.fatal(attempt, failure).into();
        }
        let need = match failure.code() {
            403 => "grant get and list on secrets and leases; to restore, also create and update",
            // What the server says of an object that is too large.
            413 | 422 => "a Secret holds at most 1 MiB",
            _ => "",
        };
        SourceError::System {
            attempt: format!("{attempt} at {}", self.place()),
            text: failure.text().to_owned(),
            need: need.to_owned(),
        }
    }

    fn get(&self, context: &Context, path: &str, name: &str, attempt: &str) -> Result<Option<Value>, SourceError> {
        match self.api.ask(context, path, &Ask::Get(name))? {
            Ok(found) => Ok(Some(found)),
            Err(failure) if failure.code() == 404 => Ok(None),
            Err(failure) => Err(self.failed(attempt, &failure)),
        }
    }

    fn unpacked(&self, workspace: &str, packed: &str) -> Result<Vec<u8>, SourceError> {
        let bad = |why: String| SourceError::System {
            attempt: format!("read the Secret {} at {}", self.secret(workspace), self.place()),
            text: why,
            need: "is it the state of a kubernetes backend?".into(),
        };
        let packed = STANDARD.decode(packed).map_err(|_| bad("it is not base64".into()))?;
        let mut state = Vec::new();
        let read = MultiGzDecoder::new(&packed[..]).take(MAX_STATE as u64 + 1).read_to_end(&mut state);
        match read {
            Ok(length) if length > MAX_STATE => Err(bad("it is too large for a state".into())),
            Ok(_) => Ok(state),
            Err(error) => Err(bad(format!("it is not gzipped as it should be: {error}"))),
        }
    }
}

/// Who holds a lease.
fn holder(lease: &Value) -> Option<String> {
    let id = lease["spec"]["holderIdentity"].as_str()?;
    let info = lease["metadata"]["annotations"][LOCK_INFO].as_str();
    Some(info.map_or_else(|| format!("somebody (lock {id})"), |info| told(info.as_bytes())))
}

fn packed(state: &[u8]) -> io::Result<String> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(state)?;
    Ok(STANDARD.encode(out.finish()?))
}

impl Backend for Cluster {
    fn place(&self) -> String {
        format!("{}, {}/{STATE}-*-{}", self.api.server, self.namespace(), self.spec.secret_suffix)
    }

    fn workspaces(&self, context: &Context) -> Result<Vec<String>, SourceError> {
        let mut names = vec![DEFAULT.to_owned()];
        let selector = format!("{STATE}=true,{SUFFIX}={}", self.spec.secret_suffix);
        let mut parameters = ListParams::default().labels(&selector).limit(PAGE);
        loop {
            let page = self.api.ask(context, &self.secrets(), &Ask::List(&parameters))?;
            let page = page.map_err(|failure| self.failed("list the states", &failure))?;
            let secrets = page["items"].as_array().into_iter().flatten();
            let found = secrets.filter_map(|secret| secret["metadata"]["labels"][WORKSPACE].as_str());
            names.extend(found.filter(|name| *name != DEFAULT).map(str::to_owned));
            match page["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() => parameters = parameters.continue_token(next),
                _ => return Ok(names),
            }
        }
    }

    fn read(&self, context: &Context, workspace: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let found = self.get(context, &self.secrets(), &self.secret(workspace), "read the state")?;
        // Terraform makes the Secret first, and fills it then.
        found
            .as_ref()
            .and_then(|found| found["data"][STATE].as_str())
            .map(|text| self.unpacked(workspace, text))
            .transpose()
    }

    fn write(&self, context: &Context, workspace: &str, state: &[u8], _lock: &Lock) -> Result<(), SourceError> {
        let (path, name) = (self.secrets(), self.secret(workspace));
        let packed = packed(state).map_err(|error| SourceError::System {
            attempt: format!("pack the state of workspace {workspace}"),
            text: error.to_string(),
            need: String::new(),
        })?;
        let written = if let Some(mut found) = self.get(context, &path, &name, "read the state")? {
            found["data"][STATE] = packed.into();
            self.api.ask(context, &path, &Ask::Put { name: &name, body: &found, dry: false })?
        } else {
            let metadata = self.metadata(&name, workspace, &json!({"encoding": "gzip"}));
            let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {STATE: packed}});
            self.api.ask(context, &path, &Ask::Create { body: &body })?
        };
        written.map(drop).map_err(|failure| self.failed("write the state", &failure))
    }

    fn holder(&self, context: &Context, workspace: &str) -> Result<Option<String>, SourceError> {
        let lease = self.get(context, &self.leases(), &self.lease(workspace), "read the lock")?;
        Ok(lease.as_ref().and_then(holder))
    }

    fn lock(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<Result<(), String>, SourceError> {
        let (path, name) = (self.leases(), self.lease(workspace));
        let info = lock.info(&self.place()).to_string();
        let taken = if let Some(mut lease) = self.get(context, &path, &name, "read the lock")? {
            if let Some(holder) = holder(&lease) {
                return Ok(Err(holder));
            }
            lease["spec"]["holderIdentity"] = json!(lock.id);
            lease["metadata"]["annotations"][LOCK_INFO] = info.into();
            // With the resource version that was read: whoever is faster has it.
            self.api.ask(context, &path, &Ask::Put { name: &name, body: &lease, dry: false })?
        } else {
            let metadata = self.metadata(&name, workspace, &json!({LOCK_INFO: info}));
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata,
                "spec": {"holderIdentity": lock.id}});
            self.api.ask(context, &path, &Ask::Create { body: &lease })?
        };
        match taken {
            Ok(_) => Ok(Ok(())),
            Err(failure) if failure.code() == 409 => {
                Ok(Err(self.holder(context, workspace)?.unwrap_or_else(|| "somebody".into())))
            }
            Err(failure) => Err(self.failed("lock the state", &failure)),
        }
    }

    fn unlock(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<(), SourceError> {
        let (path, name) = (self.leases(), self.lease(workspace));
        let Some(mut lease) = self.get(context, &path, &name, "read the lock")? else { return Ok(()) };
        // Somebody may have broken it meanwhile, and hold one of his own.
        if lease["spec"]["holderIdentity"] != json!(lock.id) {
            return Ok(());
        }
        lease["spec"]["holderIdentity"] = Value::Null;
        if let Some(annotations) = lease["metadata"]["annotations"].as_object_mut() {
            annotations.remove(LOCK_INFO);
        }
        let done = self.api.ask(context, &path, &Ask::Put { name: &name, body: &lease, dry: false })?;
        done.map(drop).map_err(|failure| self.failed("unlock the state", &failure))
    }
}
