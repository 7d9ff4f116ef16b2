//! Requests to the API server. Each has a deadline, sees whether the run goes on, and is repeated when the server asks for
//! that. Failures never hold what was sent: a Secret's values could be in it.

use super::{KubernetesError, MANAGER, Spec};
use crate::exec::causes;
use crate::source::{Context, SourceError};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    AttachParams, AttachedProcess, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::Request;
use reqwest::StatusCode;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const CONNECT: Duration = Duration::from_secs(10);
/// For one answer, however long it is.
const REQUEST: Duration = Duration::from_mins(1);
/// The most of a log, in bytes.
const LOG: i64 = 64 << 10;
/// Before a request is repeated.
const AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

pub struct Api {
    pub server: String,
    client: kube::Client,
}

/// What is asked of a path.
pub enum Ask<'a> {
    List(&'a ListParams),
    Get(&'a str),
    /// Server-side apply; fields that others manage are taken over.
    Apply {
        name: &'a str,
        body: &'a Value,
        dry: bool,
    },
    Create {
        body: &'a Value,
    },
    Put {
        name: &'a str,
        body: &'a Value,
        dry: bool,
    },
    Merge {
        name: &'a str,
        body: &'a Value,
    },
    Delete {
        name: &'a str,
        uid: &'a str,
    },
}

/// Why a request failed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The server said so.
    Status {
        code: u16,
        text: String,
        /// Where a list that has expired can be gone on with.
        go_on: Option<String>,
    },
    /// There was no answer, or it was not one.
    Transport(String),
}

impl Failure {
    pub fn code(&self) -> u16 {
        match self {
            Self::Status { code, .. } => *code,
            Self::Transport(_) => 0,
        }
    }

    pub fn text(&self) -> &str {
        match self {
            Self::Status { text, .. } | Self::Transport(text) => text,
        }
    }

    fn again(&self, ask: &Ask<'_>) -> bool {
        match self {
            Self::Status { code, .. } => matches!(code, 429 | 503 | 504),
            Self::Transport(_) => matches!(ask, Ask::List(_) | Ask::Get(_) | Ask::Apply { .. }),
        }
    }
}

impl Api {
    /// Reads the configuration. The server is contacted by the first request.
    pub fn connect(context: &Context, spec: &Spec) -> Result<Self, SourceError> {
        let mut config = match &spec.kubeconfig {
            Some(path) => {
                let file = kubeconfig(path).map_err(|(path, error)| bad(&path, &error))?;
                let options = KubeConfigOptions { context: spec.context.clone(), ..KubeConfigOptions::default() };
                let read = kube::Config::from_custom_kubeconfig(file, &options);
                context.wait(read)?.map_err(|error| bad(path, &error))?
            }
            None => kube::Config::incluster().map_err(|error| KubernetesError::NotInside {
                text: causes(error.to_string(), std::error::Error::source(&error)),
            })?,
        };
        if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
            return Err(KubernetesError::Login.into());
        }
        if config.accept_invalid_certs {
            let server = config.cluster_url.to_string();
            tracing::warn!(
                server,
                "the kubeconfig says insecure-skip-tls-verify: anybody may answer in the server's place"
            );
        }
        config.connect_timeout = Some(CONNECT);
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let _inside = context.runtime.enter();
        let client = kube::Client::try_from(config).map_err(|error| KubernetesError::Unreachable {
            server: server.clone(),
            text: causes(error.to_string(), std::error::Error::source(&error)),
        })?;
        Ok(Self { server, client })
    }

    /// The answer as JSON.
    pub async fn send(&self, path: &str, ask: &Ask<'_>) -> Result<Value, Failure> {
        self.send_sized(path, ask).await.map(|(answer, _)| answer)
    }

    /// The answer as JSON, and how many bytes it had.
    pub async fn send_sized(&self, path: &str, ask: &Ask<'_>) -> Result<(Value, usize), Failure> {
        let mut pauses = AGAIN.iter();
        loop {
            match self.once(path, ask).await {
                Err(failure) if failure.again(ask) => match pauses.next() {
                    Some(pause) => sleep(*pause).await,
                    None => return Err(failure),
                },
                other => return other,
            }
        }
    }

    async fn once(&self, path: &str, ask: &Ask<'_>) -> Result<(Value, usize), Failure> {
        let to = Request::new(path);
        let built = match ask {
            Ask::List(parameters) => to.list(parameters),
            Ask::Get(name) => to.get(name, &kube::api::GetParams::default()),
            Ask::Apply { name, body, dry } => {
                let parameters = PatchParams { dry_run: *dry, ..PatchParams::apply(MANAGER).force() };
                to.patch(name, &parameters, &Patch::Apply(body))
            }
            Ask::Merge { name, body } => {
                let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                to.patch(name, &parameters, &Patch::Merge(body))
            }
            Ask::Put { name, body, dry } => {
                let parameters = PostParams { dry_run: *dry, field_manager: Some(MANAGER.to_owned()) };
                to.replace(name, &parameters, body.to_string().into_bytes())
            }
            Ask::Create { body } => {
                let parameters = PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) };
                to.create(&parameters, body.to_string().into_bytes())
            }
            Ask::Delete { name, uid } => {
                let only = Preconditions { uid: Some((*uid).to_owned()), ..Preconditions::default() };
                let parameters = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Background),
                    preconditions: Some(only),
                    ..DeleteParams::default()
                };
                to.delete(name, &parameters)
            }
        };
        let request = built.map_err(|error| Failure::Transport(format!("the request cannot be made: {error}")))?;
        let text = match timeout(REQUEST, self.client.request_text(request)).await {
            Ok(answer) => answer.map_err(|error| into_failure(&error))?,
            Err(_) => return Err(Failure::Transport(format!("no answer within {} s", REQUEST.as_secs()))),
        };
        // The parser's own message would repeat the text.
        let parsed = serde_json::from_str(&text);
        parsed.map(|value| (value, text.len())).map_err(|_| Failure::Transport("the answer is not JSON".to_owned()))
    }

    /// What is answered to a GET at a path, whatever the status: what a service says through the server's proxy.
    pub async fn fetch(&self, path: &str) -> Result<(StatusCode, Vec<u8>), Failure> {
        let request = Request::new(path).list(&ListParams::default());
        let request = request.map_err(|error| Failure::Transport(format!("the request cannot be made: {error}")))?;
        let answer = async {
            let answer = self.client.send(request.map(Body::from)).await.map_err(|error| into_failure(&error))?;
            let status = answer.status();
            let body = answer.into_body().collect_bytes().await.map_err(|error| into_failure(&error))?;
            Ok((status, body.to_vec()))
        };
        match timeout(REQUEST, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Transport(format!("no answer within {} s", REQUEST.as_secs()))),
        }
    }

    /// The last lines of a container's log, below the path of a namespace's pods.
    pub async fn log(&self, pods: &str, pod: &str, container: &str, lines: i64) -> Result<String, Failure> {
        let parameters = LogParams {
            container: Some(container.to_owned()),
            tail_lines: Some(lines),
            limit_bytes: Some(LOG),
            ..LogParams::default()
        };
        let request = Request::new(pods).logs(pod, &parameters);
        let request = request.map_err(|error| Failure::Transport(format!("the request cannot be made: {error}")))?;
        match timeout(REQUEST, self.client.request_text(request)).await {
            Ok(answer) => answer.map_err(|error| into_failure(&error)),
            Err(_) => Err(Failure::Transport(format!("no answer within {} s", REQUEST.as_secs()))),
        }
    }

    /// Starts a program in a container of a running pod.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        command: &[String],
        parameters: &AttachParams,
    ) -> Result<AttachedProcess, Failure> {
        let pods = kube::Api::<Pod>::namespaced(self.client.clone(), namespace);
        match timeout(REQUEST, pods.exec(pod, command.to_vec(), parameters)).await {
            Ok(started) => started.map_err(|error| into_failure(&error)),
            Err(_) => Err(Failure::Transport(format!("no answer within {} s", REQUEST.as_secs()))),
        }
    }

    /// Blocks for one request.
    pub fn ask(&self, context: &Context, path: &str, ask: &Ask<'_>) -> Result<Result<Value, Failure>, SourceError> {
        context.wait(self.send(path, ask))
    }

    /// The first request: whatever is wrong with the connection or the credentials shows here.
    pub fn version(&self, context: &Context) -> Result<String, SourceError> {
        let answer = self.ask(context, "/version", &Ask::List(&ListParams::default()))?;
        let answer = answer.map_err(|failure| self.fatal("ask for the version", &failure))?;
        Ok(answer["gitVersion"].as_str().unwrap_or("of unknown version").to_owned())
    }

    /// What tells this cluster from every other: the UID of its namespace kube-system. `None`: not ours to see.
    pub fn system(&self, context: &Context) -> Result<Option<String>, SourceError> {
        match self.ask(context, "/api/v1/namespaces", &Ask::Get("kube-system"))? {
            Ok(found) => Ok(found["metadata"]["uid"].as_str().map(str::to_owned)),
            Err(failure) if matches!(failure.code(), 403 | 404) => Ok(None),
            Err(failure) => Err(self.fatal("identify the cluster", &failure).into()),
        }
    }

    /// Does the server as a whole still work? Tells the failure of one kind from the failure of all.
    pub fn is_well(&self, context: &Context) -> Result<bool, SourceError> {
        let path = "/api/v1/namespaces";
        let limit = ListParams::default().limit(1);
        // Whether or not the list is permitted does not matter; that asking for it is.
        Ok(match self.ask(context, path, &Ask::List(&limit))? {
            Ok(_) => true,
            Err(failure) => failure.code() == 403,
        })
    }

    pub fn fatal(&self, what: &str, failure: &Failure) -> KubernetesError {
        let (server, text) = (self.server.clone(), failure.text().to_owned());
        match failure {
            Failure::Transport(_) => KubernetesError::Unreachable { server, text },
            Failure::Status { code: 401, .. } => KubernetesError::Unauthorized { server, text },
            Failure::Status { .. } => KubernetesError::Request { server, what: what.to_owned(), text },
        }
    }
}

fn into_failure(error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => {
            let go_on = status.metadata.as_ref().and_then(|list| list.continue_.clone());
            let fields = status.details.iter().flat_map(|details| &details.causes).map(|cause| cause.field.as_str());
            let fields: Vec<_> = fields.filter(|field| !field.is_empty()).collect();
            // What a refused object holds may be in the message: the fields alone say enough.
            let text = match status.code {
                400 | 422 | 500 if !fields.is_empty() => format!("{} ({})", status.reason, fields.join(", ")),
                _ if status.message.is_empty() => status.reason.clone(),
                _ => status.message.clone(),
            };
            Failure::Status { code: status.code, text: format!("{text} (HTTP {})", status.code), go_on }
        }
        kube::Error::Service(inner) => {
            Failure::Transport(causes(inner.to_string(), std::error::Error::source(&**inner)))
        }
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            Failure::Transport("the answer cannot be read".to_owned())
        }
        other => Failure::Transport(causes(other.to_string(), std::error::Error::source(other))),
    }
}

/// One file or several, as kubectl takes KUBECONFIG: whichever names something first counts, and those that are not there are
/// passed over, unless none is.
fn kubeconfig(paths: &Path) -> Result<Kubeconfig, (PathBuf, KubeconfigError)> {
    // A colon may be part of a name.
    let files: Vec<_> = if paths.is_file() { vec![paths.to_owned()] } else { std::env::split_paths(paths).collect() };
    let (mut merged, mut missing) = (None, None);
    for path in files.into_iter().filter(|path| !path.as_os_str().is_empty()) {
        let mut file = match Kubeconfig::read_from(&path) {
            Err(KubeconfigError::ReadConfig(error, file)) if error.kind() == ErrorKind::NotFound => {
                missing.get_or_insert((path, KubeconfigError::ReadConfig(error, file)));
                continue;
            }
            read => read.map_err(|error| (path.clone(), error))?,
        };
        // As kubectl writes it where none is chosen.
        file.current_context = file.current_context.filter(|name| !name.is_empty());
        let before = merged.unwrap_or_default();
        merged = Some(Kubeconfig::merge(before, file).map_err(|error| (path, error))?);
    }
    merged.ok_or_else(|| missing.unwrap_or_else(|| (paths.to_owned(), KubeconfigError::FindPath)))
}

fn bad(path: &Path, error: &KubeconfigError) -> KubernetesError {
    KubernetesError::Kubeconfig { path: path.display().to_string(), text: told(error) }
}

/// Without the file's text, which holds credentials.
fn told(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => match error.location() {
            Some(at) => format!("line {} is not as a kubeconfig's should be", at.line()),
            None => "it is not a kubeconfig".to_owned(),
        },
        KubeconfigError::ReadConfig(error, _) => error.to_string(),
        other => causes(other.to_string(), std::error::Error::source(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn several_kubeconfigs_are_one() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let context = |name: &str, cluster: &str| {
            format!("contexts: [{{name: {name}, context: {{cluster: {cluster}, user: ann}}}}]\n")
        };
        let first = write("first", &("current-context: ''\n".to_owned() + &context("both", "first")));
        let second = write("second", &("current-context: both\n".to_owned() + &context("both", "second")));
        let third = write("th:ird", &("current-context: other\n".to_owned() + &context("other", "third")));
        let read = |paths: &str| {
            let file = kubeconfig(Path::new(paths)).map_err(|(path, error)| bad(&path, &error).to_string())?;
            let contexts =
                file.contexts.into_iter().map(|one| format!("{} {}", one.name, one.context.unwrap().cluster));
            Ok::<_, String>((file.current_context, contexts.collect::<Vec<_>>()))
        };
        let both = || Some("both".to_owned());
        assert_eq!(read(&format!("{first}::/nowhere:{second}")), Ok((both(), vec!["both first".into()])));
        assert_eq!(read(&format!("{second}:{first}")), Ok((both(), vec!["both second".into()])));
        assert_eq!(read(&third), Ok((Some("other".into()), vec!["other third".into()])));
        assert!(read("/nowhere:/else").unwrap_err().contains("/nowhere:"));
        let broken = write("broken", "contexts: secret");
        let why = read(&format!("{first}:{broken}")).unwrap_err();
        assert!(why.contains(&broken) && !why.contains("secret"), "{why}");
    }
}
