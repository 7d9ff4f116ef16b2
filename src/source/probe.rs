//! Looking whether something works: what a restore plan asks of the outside before it goes on.
//!
//! One look, no waiting: whoever waits looks again. A look changes nothing.

use super::http::{self, Tls};
use super::kubernetes::service::Service;
use super::{Context, Say, SourceError, Spec, etcd, kubernetes, mariadb, postgresql, redis, vault};
use crate::exec;
use crate::id::SourceName;
use crate::secret;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// For a connection, an answer, a small program.
const LOOK: Duration = Duration::from_secs(15);
/// Bytes of what a program says.
const LARGEST: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Probe {
    Http(Http),
    Tcp(Tcp),
    /// The system of a Source document answers: reached, logged in, healthy.
    Source(SourceName),
    Sql(Sql),
    Redis(Key),
    Etcd(Revision),
    Vault(Secret),
    Kubernetes(Object),
    /// A program ends with status 0.
    Command(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    pub url: String,
    pub tls: Option<Tls>,
    /// A Source document of kind kubernetes: the URL is of one of its services, which is asked through the API server.
    pub cluster: Option<SourceName>,
    #[serde(default = "ok")]
    pub status: u16,
    /// A text that the answer holds.
    pub contains: Option<String>,
}

fn ok() -> u16 {
    200
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tcp {
    /// `HOST:PORT`.
    pub address: String,
}

/// A query to PostgreSQL or MariaDB whose first value is compared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sql {
    /// A Source document.
    pub source: SourceName,
    /// PostgreSQL's database; default: the user's own.
    pub database: Option<String>,
    pub query: String,
    /// The first value of the first row; without it, there must be a row.
    pub equals: Option<String>,
    /// Likewise, as a number.
    pub at_least: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    pub source: SourceName,
    pub key: String,
    /// Without it, the key must be there.
    pub equals: Option<String>,
}

/// An etcd cluster that has a quorum and has come so far.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revision {
    pub source: SourceName,
    pub at_least: u64,
}

/// A secret that can be read; what it says is not shown.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    pub source: SourceName,
    /// As in the API, `secret/data/canary`.
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object {
    /// A Source document of kind kubernetes.
    pub cluster: SourceName,
    pub object: kubernetes::check::Check,
}

impl Probe {
    /// The Source document that it needs.
    #[must_use]
    pub fn document(&self) -> Option<&SourceName> {
        match self {
            Self::Tcp(_) | Self::Command(_) => None,
            Self::Http(http) => http.cluster.as_ref(),
            Self::Source(source) => Some(source),
            Self::Sql(sql) => Some(&sql.source),
            Self::Redis(key) => Some(&key.source),
            Self::Etcd(revision) => Some(&revision.source),
            Self::Vault(secret) => Some(&secret.source),
            Self::Kubernetes(object) => Some(&object.cluster),
        }
    }

    /// What is asked, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Http(http) => format!("{} answers {}", http.url, http.status),
            Self::Tcp(tcp) => format!("{} takes connections", tcp.address),
            Self::Source(source) => format!("{source} answers"),
            Self::Sql(sql) => format!("{} answers a query", sql.source),
            Self::Redis(key) => format!("{} has the key {:?}", key.source, key.key),
            Self::Etcd(wanted) => format!("{} has reached revision {}", wanted.source, wanted.at_least),
            Self::Vault(secret) => format!("{} gives {}", secret.source, secret.path),
            Self::Kubernetes(object) => {
                format!("{} {} of {} is as it should be", object.object.resource, object.object.name, object.cluster)
            }
            Self::Command(words) => format!("{} ends well", words.join(" ")),
        }
    }

    /// Says what no type can. Relative paths are taken from `directory`.
    pub fn lint(&mut self, directory: &Path, say: &mut Say<'_>) {
        match self {
            Self::Http(probe) => {
                http::check_address(&probe.url, "http.url", say);
                if probe.cluster.is_some() && (Service::parse(&probe.url).is_none() || probe.tls.is_some()) {
                    say("http.url", "expected http(s)://SERVICE.NAMESPACE.svc, without tls: the API server asks it");
                }
                if let Some(tls) = &mut probe.tls {
                    tls.check(directory, &mut |field, text| say(&format!("http.{field}"), text));
                }
            }
            Self::Tcp(tcp) => {
                let parts = tcp.address.rsplit_once(':');
                if parts.is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
                    say("tcp.address", "expected HOST:PORT");
                }
            }
            Self::Sql(sql) if sql.query.trim().is_empty() => say("sql.query", "expected a query"),
            Self::Sql(sql) if sql.equals.is_some() && sql.at_least.is_some() => {
                say("sql", "expected at most one of equals and atLeast");
            }
            Self::Command(words) if words.first().is_none_or(String::is_empty) => {
                say("command", "expected a program and its arguments");
            }
            Self::Kubernetes(object) => {
                object.object.check(&mut |field, text| say(&format!("kubernetes.object.{field}"), text));
            }
            Self::Sql(_) | Self::Command(_) | Self::Source(_) | Self::Redis(_) | Self::Etcd(_) | Self::Vault(_) => {}
        }
    }

    /// Says what was seen. `document` is what [`Probe::document`] names. Blocks.
    pub fn look(&self, context: &Context, document: Option<&Spec>) -> Result<String, SourceError> {
        match (self, document) {
            (Self::Http(probe), Some(Spec::Kubernetes(spec))) => probe.look_through(context, spec),
            (Self::Http(probe), None) if probe.cluster.is_none() => probe.look(context),
            (Self::Tcp(probe), _) => probe.look(context),
            (Self::Command(words), _) => command(context, words),
            (Self::Source(name), Some(spec)) => {
                let lines = spec.open()?.check(context)?;
                Ok(format!("{name}: {}", lines.join("; ")))
            }
            (Self::Sql(sql), Some(Spec::Postgresql(spec))) => {
                sql.judge(postgresql::query(context, spec, sql.database.as_deref(), &sql.query)?)
            }
            (Self::Sql(sql), Some(Spec::PostgresqlDump(spec))) => {
                sql.judge(postgresql::query(context, &spec.connection(), sql.database.as_deref(), &sql.query)?)
            }
            (Self::Sql(sql), Some(Spec::Mariadb(spec))) => sql.judge(mariadb::query(context, spec, &sql.query)?),
            (Self::Redis(key), Some(Spec::Redis(spec))) => key.judge(redis::get(context, spec, &key.key)?),
            (Self::Etcd(wanted), Some(Spec::Etcd(spec))) => wanted.judge(etcd::revision(context, spec)?),
            (Self::Vault(secret), Some(Spec::Vault(spec))) => vault::read(context, spec, &secret.path),
            (Self::Kubernetes(object), Some(Spec::Kubernetes(spec))) => {
                kubernetes::check::check(context, spec, &object.object)
            }
            (_, Some(spec)) => {
                Err(SourceError::Spec { what: format!("this probe does not fit a source of kind {}", spec.field()) })
            }
            (_, None) => Err(SourceError::Spec { what: "the probe's Source document is missing".into() }),
        }
    }
}

/// What was looked at is not as it should be.
fn unlike(what: &str, text: impl Into<String>) -> SourceError {
    SourceError::System { attempt: format!("look at {what}"), text: text.into(), need: String::new() }
}

impl Http {
    fn look(&self, context: &Context) -> Result<String, SourceError> {
        let host = self.url.find("://").map_or(0, |at| at + 3);
        let path = self.url[host..].find('/').map_or(self.url.len(), |at| host + at);
        let server = http::Server::new(&self.url[..path], self.tls.as_ref())?;
        let answer = http::answer(context, server.request(Method::GET, &self.url[path..]).timeout(LOOK))?;
        let answer = answer.map_err(|failure| unlike(&self.url, failure.text))?;
        let status = answer.status();
        self.judge(status, || http::whole(context, answer)?.map_err(|failure| unlike(&self.url, failure.text)))
    }

    fn look_through(&self, context: &Context, cluster: &kubernetes::Spec) -> Result<String, SourceError> {
        let service = Service::parse(&self.url).ok_or_else(|| unlike(&self.url, "it is no service's"))?;
        let (status, body) = service.fetch(context, cluster)?;
        self.judge(status, || Ok(body))
    }

    fn judge(
        &self,
        status: StatusCode,
        body: impl FnOnce() -> Result<Vec<u8>, SourceError>,
    ) -> Result<String, SourceError> {
        if status.as_u16() != self.status {
            return Err(unlike(&self.url, format!("it answers {status}, and should {}", self.status)));
        }
        let Some(text) = &self.contains else { return Ok(format!("{} answers {status}", self.url)) };
        if String::from_utf8_lossy(&body()?).contains(text) {
            Ok(format!("{} answers {status}, with {text:?} in it", self.url))
        } else {
            Err(unlike(&self.url, format!("it answers {status}, without {text:?} in it")))
        }
    }
}

impl Tcp {
    fn look(&self, context: &Context) -> Result<String, SourceError> {
        let connect = tokio::net::TcpStream::connect(self.address.clone());
        match context.wait(async { tokio::time::timeout(LOOK, connect).await })? {
            Ok(Ok(_)) => Ok(format!("{} takes connections", self.address)),
            Ok(Err(error)) => Err(unlike(&self.address, error.to_string())),
            Err(_) => Err(unlike(&self.address, "no answer")),
        }
    }
}

impl Sql {
    fn judge(&self, found: Option<String>) -> Result<String, SourceError> {
        let Some(value) = found else { return Err(unlike(self.source.as_str(), "the query answers with no row")) };
        if let Some(wanted) = self.equals.as_ref().filter(|wanted| **wanted != value) {
            return Err(unlike(self.source.as_str(), format!("the query answers {value:?}, and should {wanted:?}")));
        }
        if let Some(least) = self.at_least
            && value.trim().parse::<i64>().ok().is_none_or(|number| number < least)
        {
            let text = format!("the query answers {value:?}, and should at least {least}");
            return Err(unlike(self.source.as_str(), text));
        }
        Ok(format!("{}: the query answers {value:?}", self.source))
    }
}

impl Key {
    fn judge(&self, found: Option<String>) -> Result<String, SourceError> {
        match (found, &self.equals) {
            (None, _) => Err(unlike(self.source.as_str(), format!("there is no key {:?}", self.key))),
            (Some(is), Some(wanted)) if is != *wanted => {
                Err(unlike(self.source.as_str(), format!("the key {:?} holds another value", self.key)))
            }
            (Some(_), _) => Ok(format!("{}: the key {:?} is there", self.source, self.key)),
        }
    }
}

impl Revision {
    fn judge(&self, is: u64) -> Result<String, SourceError> {
        if is >= self.at_least {
            return Ok(format!("{} is at revision {is}", self.source));
        }
        Err(unlike(
            self.source.as_str(),
            format!("it is at revision {is}, and should be at {} or beyond", self.at_least),
        ))
    }
}

fn command(context: &Context, words: &[String]) -> Result<String, SourceError> {
    let (program, arguments) = words.split_first().ok_or_else(|| unlike("a program", "none is named"))?;
    let cancel = context.cancel.clone();
    let command = exec::Command {
        program: program.clone(),
        inherits: exec::Inherits::AllBut(secret::named()),
        arguments: arguments.to_vec(),
        env: Vec::new(),
        deadline: context.deadline.min(Instant::now() + Duration::from_mins(1)),
        stop: Box::new(move || cancel.is_cancelled()),
    };
    match command.run(LARGEST) {
        Ok(said) => {
            let said = String::from_utf8_lossy(&said);
            let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it ended well");
            Ok(format!("{program}: {last}"))
        }
        Err(error) => {
            context.go_on()?;
            let text = exec::causes(error.to_string(), std::error::Error::source(&error));
            Err(SourceError::Program { program: program.clone(), text })
        }
    }
}
