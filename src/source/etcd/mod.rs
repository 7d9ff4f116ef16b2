//! An etcd cluster, through its Maintenance API.
//!
//! The snapshot comes from one healthy member, a follower where one has caught up with the leader. It is one entry,
//! `db`: the bbolt file, in its own pages. The SHA-256 that etcd sends behind it is checked and kept among the facts; [`Export`]
//! puts it there again, so that etcd's own tools hold what comes back against what etcd sent. The revision recorded is the member's just before the
//! snapshot began: the snapshot holds that revision and perhaps a few later ones; likewise the recovery point is no
//! later than the moment that the stream began. Deliberately absent: reading members' data directories.

mod member;
mod stream;

pub use super::connection::Tls;
pub use stream::Export;
#[doc(hidden)]
pub use stream::page_size;

use super::command::plain_file;
use super::connection::{self, read};
use super::http;
use super::{Context, Native, Needs, Say, Source, SourceError};
use crate::entry::{Facts, Input, Layout, OnError, Sink, Supply};
use crate::exec::causes;
use crate::secret::SecretRef;
use crossbeam_channel::RecvTimeoutError;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use member::Member;
use serde::Deserialize;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// What went wrong, for people: a status by itself shows its cause as programmers see it.
fn told(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            let text =
                if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
            causes(text, std::error::Error::source(status))
        }
        error => causes(error.to_string(), std::error::Error::source(error)),
    }
}

/// For a connection, a status, any small request.
const REQUEST: Duration = Duration::from_secs(5);
/// So long an answer is waited for before somebody looks whether the run goes on.
const TICK: Duration = Duration::from_millis(200);
/// What the facts call it.
const DIGEST: &str = "sha256";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Client URLs of the members.
    pub endpoints: Vec<String>,
    pub tls: Option<Tls>,
    pub user: Option<User>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    pub name: String,
    pub password: SecretRef,
}

impl Spec {
    pub(super) fn needs(&self) -> Needs<'_> {
        connection::needs(self.tls.as_ref(), self.user.as_ref().map(|user| &user.password))
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if self.endpoints.is_empty() {
            say("endpoints", "expected the client URL of at least one member");
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            http::check_address(endpoint, &format!("endpoints[{index}]"), say);
        }
        if let Some(tls) = &mut self.tls {
            tls.check(directory, say);
        }
    }
}

#[derive(Debug)]
pub struct Etcd {
    spec: Spec,
}

impl Etcd {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        let bad = |what: &str| Err(SourceError::Spec { what: what.to_owned() });
        if spec.endpoints.is_empty() {
            return bad("no etcd endpoints are given");
        }
        if spec.tls.as_ref().is_some_and(|tls| tls.certificate.is_some() != tls.key.is_some()) {
            return bad("a client certificate and its key are given together or not at all");
        }
        Ok(Self { spec })
    }

    fn options(&self) -> Result<ConnectOptions, SourceError> {
        let mut options = ConnectOptions::new().with_connect_timeout(REQUEST).with_keep_alive(REQUEST, REQUEST);
        if let Some(tls) = &self.spec.tls {
            let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
            if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
                config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            if let Some(name) = &tls.server_name {
                config = config.domain_name(name);
            }
            options = options.with_tls(config);
        }
        if let Some(user) = &self.spec.user {
            options = options.with_user(&user.name, user.password.read()?.as_str());
        }
        Ok(options)
    }
}

/// The revision of the best member.
pub(super) fn revision(context: &Context, spec: &Spec) -> Result<u64, SourceError> {
    let etcd = Etcd::new(spec.clone())?;
    let survey = context.runtime.block_on(member::survey(&spec.endpoints, &etcd.options()?));
    let mut failures = survey.failures.clone();
    for mut member in survey.candidates()? {
        context.go_on()?;
        match context.runtime.block_on(member.facts()) {
            Ok(facts) => return Ok(facts.position.unwrap_or(0)),
            Err(text) => failures.push(format!("{}: {text}", member.endpoint)),
        }
    }
    Err(SourceError::NoMember { failures })
}

impl Source for Etcd {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let survey = context.runtime.block_on(member::survey(&self.spec.endpoints, &self.options()?));
        let mut lines: Vec<String> = survey.members.iter().map(Member::describe).collect();
        lines.extend(survey.failures.iter().cloned());
        survey.candidates()?;
        Ok(lines)
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let begun = Instant::now();
        let options = self.options()?;
        let survey = context.runtime.block_on(member::survey(&self.spec.endpoints, &options));
        let mut failures = survey.failures.clone();
        for mut member in survey.candidates()? {
            context.go_on()?;
            let waited = i64::try_from(begun.elapsed().as_millis()).unwrap_or(0);
            let mut facts = match context.runtime.block_on(member.facts()) {
                Ok(facts) => facts,
                Err(text) => {
                    failures.push(format!("{}: {text}", member.endpoint));
                    continue;
                }
            };
            let started = match context.runtime.block_on(stream::start(&mut member, context)) {
                Ok(started) => started,
                Err(denied @ SourceError::Denied { .. }) => return Err(denied),
                Err(error) => {
                    failures.push(error.to_string());
                    continue;
                }
            };
            facts.recovery_point_ms = Some(context.started.as_millisecond().saturating_add(waited));
            let entry = plain_file(b"db".to_vec(), started.size, context.started);
            let layout = Layout::Pages(started.page_size);
            let (open, digest) = started.into_open();
            sink.add(entry, Some(Input { layout, fingerprint: None, on_error: OnError::Fail, open }))?;
            // Whoever reads it may be another thread.
            loop {
                match digest.recv_timeout(TICK) {
                    Ok(digest) => _ = facts.details.insert(DIGEST.to_owned(), stream::show_digest(digest)),
                    Err(RecvTimeoutError::Timeout) => {
                        context.go_on()?;
                        continue;
                    }
                    // It failed, and the run with it.
                    Err(RecvTimeoutError::Disconnected) => {}
                }
                return Ok(facts);
            }
        }
        Err(SourceError::NoMember { failures })
    }
}

/// The format of `etcdctl snapshot save`.
pub(super) struct Snapshot;

impl Native for Snapshot {
    fn label(&self) -> &'static str {
        "etcd snapshot"
    }

    fn write(&self, supply: &dyn Supply, out: &mut dyn io::Write) -> io::Result<()> {
        let mut file = Export::new(out, supply.facts().details.get(DIGEST).map(String::as_str));
        supply.entries(&mut |_, body| body.copy(&mut file))?;
        file.finish()
    }
}
