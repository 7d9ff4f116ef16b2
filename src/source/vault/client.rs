//! The requests that are needed of Vault's HTTP API.

use super::{AppRole, Auth, Kubernetes, Spec};
use crate::source::http::{self, Failure, Server};
use crate::source::{Context, SourceError};
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use zeroize::Zeroizing;

pub(super) const SNAPSHOT: &str = "sys/storage/raft/snapshot";
pub(super) const SNAPSHOT_FORCE: &str = "sys/storage/raft/snapshot-force";
/// Where Kubernetes puts a pod's token.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

pub(super) struct Client {
    server: Server,
    /// How people call it.
    name: String,
    namespace: Option<String>,
    token: Option<Zeroizing<String>>,
}

/// `GET sys/health`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Health {
    pub initialized: bool,
    pub sealed: bool,
    pub standby: bool,
    pub version: String,
    pub cluster_name: Option<String>,
    pub cluster_id: Option<String>,
}

/// `GET sys/seal-status`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Seal {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "t")]
    pub threshold: u64,
    #[serde(rename = "n")]
    pub shares: u64,
}

impl Health {
    pub fn describe(&self) -> String {
        let state = match self {
            Self { initialized: false, .. } => "not initialised",
            Self { sealed: true, .. } => "sealed",
            Self { standby: true, .. } => "standby",
            _ => "active",
        };
        let name = self.cluster_name.as_deref().map(|name| format!(", {name}")).unwrap_or_default();
        format!("Vault {}, {state}{name}", self.version)
    }

    pub fn must_be_unsealed(&self, client: &Client) -> Result<(), SourceError> {
        let (text, need) = match self {
            Self { initialized: false, .. } => ("it is not initialised", "vault operator init, and unseal it"),
            Self { sealed: true, .. } => ("it is sealed", "unseal it"),
            _ => return Ok(()),
        };
        Err(client.error("use", text, need))
    }
}

impl Client {
    pub fn new(spec: &Spec) -> Result<Self, SourceError> {
        let server = Server::new(&spec.address, spec.tls.as_ref())?;
        let name = format!("the Vault at {}", server.address);
        Ok(Self { server, name, namespace: spec.namespace.clone(), token: None })
    }

    /// For a Vault of our own.
    pub fn on_socket(path: &Path, name: &str) -> Result<Self, SourceError> {
        Ok(Self { server: Server::on_socket(path)?, name: name.to_owned(), namespace: None, token: None })
    }

    pub fn address(&self) -> &str {
        &self.server.address
    }

    pub fn error(&self, attempt: &str, text: impl Into<String>, need: &str) -> SourceError {
        SourceError::System { attempt: format!("{attempt} {}", self.name), text: text.into(), need: need.to_owned() }
    }

    pub fn failed(&self, attempt: &str, failure: &Failure, need: &str) -> SourceError {
        self.error(attempt, said(&failure.text), need)
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.authorised(self.server.request(method, &format!("/v1/{path}")))
    }

    pub fn upload(&self, path: &str, body: reqwest::Body) -> RequestBuilder {
        self.authorised(self.server.upload(&format!("/v1/{path}"), body))
    }

    fn authorised(&self, mut request: RequestBuilder) -> RequestBuilder {
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        match &self.token {
            Some(token) => request.header("X-Vault-Token", token.as_str()),
            None => request,
        }
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, attempt: &str, value: Value) -> Result<T, SourceError> {
        serde_json::from_value(value)
            .map_err(|why| self.error(attempt, format!("unexpected answer: {why}"), "is this a Vault?"))
    }

    pub fn health(&self, context: &Context) -> Result<Health, SourceError> {
        // Any state is a success: it is told in the answer.
        let any = "sys/health?standbyok=true&perfstandbyok=true&sealedcode=200&uninitcode=200&drsecondarycode=200";
        let answer = http::json(context, self.request(Method::GET, any))?;
        let answer = answer.map_err(|failure| {
            self.failed("reach", &failure, "check the address, which must be that of Vault's API, and the TLS files")
        })?;
        self.decode("reach", answer)
    }

    pub fn seal(&self, context: &Context) -> Result<Seal, SourceError> {
        let answer = http::json(context, self.request(Method::GET, "sys/seal-status"))?;
        let answer = answer.map_err(|failure| self.failed("read the seal of", &failure, ""))?;
        self.decode("read the seal of", answer)
    }

    pub fn log_in(&mut self, context: &Context, auth: &Auth) -> Result<(), SourceError> {
        let (mount, body) = match auth {
            Auth::Token(token) => {
                self.token = Some(token.read()?);
                return Ok(());
            }
            Auth::AppRole(AppRole { mount, role_id, secret_id }) => {
                let (role, secret) = (role_id.read()?, secret_id.read()?);
                (mount.as_deref().unwrap_or("approle"), json!({"role_id": *role, "secret_id": *secret}))
            }
            Auth::Kubernetes(Kubernetes { mount, role, token }) => {
                let file = token.as_deref().unwrap_or(Path::new(POD_TOKEN)).to_owned();
                let jwt = crate::secret::SecretRef::File(file).read()?;
                (mount.as_deref().unwrap_or("kubernetes"), json!({"role": role, "jwt": *jwt}))
            }
        };
        let path = format!("auth/{mount}/login");
        let answer = http::json(context, self.request(Method::POST, &path).json(&body))?;
        let answer = answer.map_err(|failure| {
            self.failed("log in to", &failure, &format!("check the role of auth/{mount}, and that it is not expired"))
        })?;
        let token = answer["auth"]["client_token"].as_str();
        let token = token.ok_or_else(|| self.error("log in to", "the answer holds no token", ""))?;
        self.token = Some(Zeroizing::new(token.to_owned()));
        Ok(())
    }

    pub fn use_token(&mut self, token: Zeroizing<String>) {
        self.token = Some(token);
    }

    /// Refuses to go on without `capability` on the snapshots.
    pub fn must_be_allowed(&self, context: &Context, capability: &str) -> Result<(), SourceError> {
        let request = self.request(Method::POST, "sys/capabilities-self").json(&json!({"paths": [SNAPSHOT]}));
        let need = format!("the login's policy needs: path \"{SNAPSHOT}\" {{ capabilities = [\"{capability}\"] }}");
        let answer = http::json(context, request)?.map_err(|failure| self.failed("use", &failure, &need))?;
        let allowed = answer["capabilities"].as_array().is_some_and(|all| {
            all.iter().filter_map(Value::as_str).any(|given| given == "root" || given == capability)
        });
        if allowed { Ok(()) } else { Err(self.error("use", "permission denied", &need)) }
    }

    /// Turns to the active node, if it is reachable under the address that it gives itself. It must be of the same cluster,
    /// and no less protected on the way: the token goes there.
    pub fn follow_leader(&mut self, context: &Context, spec: &Spec, own: &Health) -> Result<(), SourceError> {
        let Ok(leader) = http::json(context, self.request(Method::GET, "sys/leader"))? else { return Ok(()) };
        let address = leader["leader_address"].as_str().unwrap_or_default().trim_end_matches('/');
        let scheme = |address: &str| address.split_once("://").map(|(scheme, _)| scheme.to_owned());
        if leader["is_self"] == true || address == self.address() || scheme(address) != scheme(self.address()) {
            return Ok(());
        }
        let mut other = Self::new(&Spec { address: address.to_owned(), ..spec.clone() })?;
        match other.health(context) {
            Ok(health) if !health.sealed && !health.standby && health.cluster_id == own.cluster_id => {
                other.token.clone_from(&self.token);
                *self = other;
            }
            Err(stop @ (SourceError::Cancelled | SourceError::Deadline)) => return Err(stop),
            // A standby forwards the request.
            _ => tracing::debug!(leader = address, "the active node is not reachable under its own address"),
        }
        Ok(())
    }

    pub fn snapshot(&self, context: &Context) -> Result<Response, SourceError> {
        let answer = http::send(context, self.request(Method::GET, SNAPSHOT))?;
        answer.map_err(|failure| {
            let need = if failure.is_denied() {
                format!("the login's policy needs: path \"{SNAPSHOT}\" {{ capabilities = [\"read\"] }}")
            } else {
                "only Vault with integrated storage (raft) gives snapshots; other storage is a source of its own".into()
            };
            self.failed("take a snapshot of", &failure, &need)
        })
    }
}

/// Vault's errors without their JSON.
fn said(text: &str) -> String {
    let Some((status, body)) = text.split_once(": ") else { return text.to_owned() };
    let errors = serde_json::from_str::<Value>(body).ok();
    let errors = errors.as_ref().and_then(|value| value["errors"].as_array());
    match errors {
        Some(errors) => {
            let errors: Vec<_> = errors.iter().filter_map(Value::as_str).map(str::trim).collect();
            format!("{status}: {}", errors.join("; ").split_whitespace().collect::<Vec<_>>().join(" "))
        }
        None => text.to_owned(),
    }
}
