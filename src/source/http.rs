//! HTTP APIs of the systems that have one.
//!
//! Every request ends when the run is cancelled or its time is over, and when nothing comes for a minute. Certificates
//! are always checked, proxies from the environment are not used, redirections are not followed: a token must not go
//! where a server says.

use super::connection::{AGAIN, REQUEST, read, resolve};
use super::{Context, Say, SourceError};
use crate::exec::causes;
use crate::secret::SecretRef;
use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Identity, Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::error::Error as _;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

const STALL: Duration = Duration::from_mins(1);
/// An answer that is read whole may have so many bytes.
const MAX_ANSWER: usize = 32 << 20;
/// Bytes of an upload that are sent at a time, and how many such pieces may wait.
const PIECE: usize = 512 << 10;
const PIECES: usize = 3;

/// How a server proves who it is, and we to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the authorities that are trusted; default: those of this machine.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl Tls {
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.ca, &self.certificate, &self.key].into_iter().flatten().map(PathBuf::as_path)
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if self.certificate.is_some() != self.key.is_some() {
            say("tls", "certificate and key belong together: give both or neither");
        }
        for path in [&mut self.ca, &mut self.certificate, &mut self.key].into_iter().flatten() {
            *path = directory.join(&*path);
        }
    }
}

/// Says what is wrong with the address of an API.
pub(super) fn check_address(address: &str, field: &str, say: &mut Say<'_>) {
    let host = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
        say(field, "expected https://HOST:PORT, without credentials");
    }
}

/// Says what is wrong with a user's name and password, or a token.
pub(super) fn check_login(
    username: Option<&String>,
    password: Option<&SecretRef>,
    token: Option<&SecretRef>,
    say: &mut Say<'_>,
) {
    if username.is_some() != password.is_some() {
        say("username", "username and password belong together: give both or neither");
    }
    if token.is_some() && username.is_some() {
        say("token", "expected either a token or a user");
    }
}

/// Who we are to a server, in every request.
pub(super) enum Login {
    Nobody,
    User(String, Zeroizing<String>),
    Token(Zeroizing<String>),
}

impl Login {
    pub fn read(
        username: Option<&String>,
        password: Option<&SecretRef>,
        token: Option<&SecretRef>,
    ) -> Result<Self, SourceError> {
        Ok(match (username, password, token) {
            (Some(user), Some(password), _) => Self::User(user.clone(), password.read()?),
            (_, _, Some(token)) => Self::Token(token.read()?),
            _ => Self::Nobody,
        })
    }

    pub fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::User(user, password) => request.basic_auth(user, Some(password.as_str())),
            Self::Token(token) => request.bearer_auth(token.as_str()),
        }
    }
}

/// A request that did not bring what was asked for.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub status: Option<StatusCode>,
    pub text: String,
}

impl Failure {
    fn of(error: reqwest::Error) -> Self {
        let error = error.without_url(); // whoever reports it names the server
        Self { status: error.status(), text: causes(error.to_string(), error.source()) }
    }

    pub fn is_denied(&self) -> bool {
        matches!(self.status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

/// A server that answers in JSON, and who we are to it.
pub(super) struct Api {
    /// What errors call it.
    system: &'static str,
    pub server: Server,
    login: Login,
}

impl Api {
    pub fn new(system: &'static str, server: Server, login: Login) -> Self {
        Self { system, server, login }
    }

    pub fn json(&self, context: &Context, request: RequestBuilder) -> Result<Result<Value, Failure>, SourceError> {
        json(context, self.login.sign(request))
    }

    pub fn get(&self, context: &Context, path: &str, attempt: &str) -> Result<Value, SourceError> {
        self.json(context, self.server.request(Method::GET, path))?
            .map_err(|failure| self.failed(attempt, &failure, ""))
    }

    /// `attempt` is a verb, with what it needs before the server's name; `need` says what to do, if more than that is known.
    pub fn failed(&self, attempt: &str, failure: &Failure, need: &str) -> SourceError {
        let (server, text) = (self.server.address.clone(), failure.text.clone());
        if failure.is_denied() {
            let advice = "look at username and password, or token, of the Source document";
            return SourceError::Refused { server, text, advice };
        }
        let leads_away = failure.status.is_some_and(|status| status.is_redirection());
        let need = if leads_away { "redirections are not followed: give the address that it leads to" } else { need };
        SourceError::System { attempt: format!("{attempt} {} at {server}", self.system), text, need: need.into() }
    }

    /// The answer is JSON, and not what was asked for.
    pub fn odd(&self, attempt: &str) -> SourceError {
        let text = format!("the answer is not that of {}; is it the right server?", self.system);
        self.failed(attempt, &Failure { status: None, text }, "")
    }
}

/// As for every other connection.
struct Names;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = resolve(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// One server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    client: reqwest::Client,
    /// Its requests wait for their answer as long as the run goes on: a body under way counts as waiting.
    patient: reqwest::Client,
    pub address: String,
}

impl Server {
    pub fn new(address: &str, tls: Option<&Tls>) -> Result<Self, SourceError> {
        let bad = |path: &Path, error: reqwest::Error| SourceError::Tls {
            path: path.display().to_string(),
            source: io::Error::new(io::ErrorKind::InvalidData, Failure::of(error).text),
        };
        let tls = tls.cloned().unwrap_or_default();
        Self::build(address, |mut builder| {
            if let Some(path) = &tls.ca {
                let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|error| bad(path, error))?;
                builder = builder.tls_certs_only(certificates);
            }
            if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
                let pem = Zeroizing::new([read(certificate)?, read(key)?].concat());
                builder = builder.identity(Identity::from_pem(&pem).map_err(|error| bad(key, error))?);
            }
            Ok(builder)
        })
    }

    /// One that listens on a Unix socket.
    pub fn on_socket(path: &Path) -> Result<Self, SourceError> {
        Self::build("http://localhost", |builder| Ok(builder.unix_socket(path)))
    }

    fn build(
        address: &str,
        configure: impl Fn(reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, SourceError>,
    ) -> Result<Self, SourceError> {
        let build = |builder: reqwest::ClientBuilder| {
            let builder = builder
                .connect_timeout(REQUEST)
                .dns_resolver(Names)
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none());
            configure(builder)?.build().map_err(|error| SourceError::System {
                attempt: format!("prepare the connection to {address}"),
                text: Failure::of(error).text,
                need: String::new(),
            })
        };
        Ok(Self {
            client: build(reqwest::Client::builder().read_timeout(STALL))?,
            patient: build(reqwest::Client::builder())?,
            address: address.trim_end_matches('/').to_owned(),
        })
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.address))
    }

    /// A request with a large body.
    pub fn upload(&self, path: &str, body: reqwest::Body) -> RequestBuilder {
        self.patient.request(Method::POST, format!("{}{path}", self.address)).body(body)
    }
}

/// Sends a request. The outer error is the run's, the inner the connection's.
pub(super) fn answer(context: &Context, request: RequestBuilder) -> Result<Result<Response, Failure>, SourceError> {
    for pause in AGAIN {
        let Some(copy) = request.try_clone() else { break }; // its body is a stream
        match sent(context, copy)? {
            Err(error) if is_unsent(&error) => context.sleep(pause)?,
            sent => return Ok(sent.map_err(Failure::of)),
        }
    }
    Ok(sent(context, request)?.map_err(Failure::of))
}

/// Likewise; an answer that is not a success is an error too.
pub(super) fn send(context: &Context, request: RequestBuilder) -> Result<Result<Response, Failure>, SourceError> {
    let answer = match answer(context, request)? {
        Ok(answer) => answer,
        Err(failure) => return Ok(Err(failure)),
    };
    let status = answer.status();
    if status.is_success() {
        return Ok(Ok(answer));
    }
    let said = whole(context, answer)?.unwrap_or_default();
    let said = String::from_utf8_lossy(&said[..said.len().min(500)]).trim().to_owned();
    let text = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
    Ok(Err(Failure { status: Some(status), text }))
}

fn sent(context: &Context, request: RequestBuilder) -> Result<reqwest::Result<Response>, SourceError> {
    let inside = context.runtime.enter(); // reqwest looks for its timers at once
    let sent = request.send();
    drop(inside);
    context.wait(sent)
}

/// The new connection ended before the request was given to it, so that the reason went with the connection: a server
/// that is stopping, or (TLS 1.3) one that refuses a client's certificate.
fn is_unsent(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_canceled))
}

/// Sends a request and decodes the answer; an empty one is `Null`.
pub(super) fn json(context: &Context, request: RequestBuilder) -> Result<Result<Value, Failure>, SourceError> {
    let answer = match send(context, request)? {
        Ok(answer) => answer,
        Err(failure) => return Ok(Err(failure)),
    };
    Ok(whole(context, answer)?.and_then(|bytes| {
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|_| Failure { status: None, text: "the answer is not JSON; is it the right server?".into() })
    }))
}

/// An answer of moderate size.
pub(super) fn whole(context: &Context, answer: Response) -> Result<Result<Vec<u8>, Failure>, SourceError> {
    let mut all = Vec::new();
    let read = Download::new(context, answer).take(MAX_ANSWER as u64 + 1).read_to_end(&mut all);
    match read {
        Ok(length) if length > MAX_ANSWER => {
            Ok(Err(Failure { status: None, text: format!("the answer has more than {MAX_ANSWER} bytes") }))
        }
        Ok(_) => Ok(Ok(all)),
        Err(error) => match error.downcast::<SourceError>() {
            Ok(run) => Err(run),
            Err(error) => Ok(Err(Failure { status: None, text: causes(error.to_string(), error.source()) })),
        },
    }
}

/// Reads an answer as it comes. Blocks; the run's own end is a [`SourceError`] inside the error.
pub(super) struct Download {
    context: Context,
    answer: Response,
    piece: Bytes,
}

impl Download {
    pub fn new(context: &Context, answer: Response) -> Self {
        Self { context: context.clone(), answer, piece: Bytes::new() }
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.context.wait(self.answer.chunk()).map_err(io::Error::other)? {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => return Ok(0),
                Err(error) => return Err(io::Error::other(Failure::of(error).text)),
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// The body of a request, written while it is sent. Blocks while the server is behind.
pub(super) struct Upload {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Upload {
    pub fn new() -> (Self, reqwest::Body) {
        let (pieces, receiver) = mpsc::channel(PIECES);
        (Self { pieces, buffer: Vec::with_capacity(PIECE) }, reqwest::Body::wrap_stream(Pieces(receiver)))
    }

    fn give(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        // The request has ended: its own answer says why.
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// The body is complete only with this.
    pub fn finish(mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.give() }
    }

    /// Breaks the request off.
    pub fn fail(self, why: &io::Error) {
        let _ = self.pieces.blocking_send(Err(io::Error::other(why.to_string()))); // it may have ended
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == PIECE {
            self.give()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(task)
    }
}
