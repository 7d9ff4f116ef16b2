//! How the servers of databases are reached: over TCP or a socket file, in plain or by TLS.
//!
//! Invariants: a server's certificate is always checked against the given authority and name; nothing is sent in plain to
//! another machine unless the document asks for it; everything waits no longer than its own limit, and ends when the run
//! does. Deliberately absent: what the servers say, which is each source's own.

use super::{Context, Needs, Say, SourceError};
use crate::exec::causes;
use crate::secret::SecretRef;
use serde::Deserialize;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

/// For a connection, a greeting, any small request.
pub(super) const REQUEST: Duration = Duration::from_secs(15);
/// Before a name is asked for again (a cluster's DNS loses questions under load), or an unsent request is sent.
pub(super) const AGAIN: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(2)];

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the authorities that may have signed the server's certificate.
    pub ca: PathBuf,
    /// PEM files of a client certificate and its key.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name that the server's certificate is checked against, if it is not the host's.
    pub server_name: Option<String>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub host: Option<String>,
    pub port: u16,
    /// Instead of a host.
    pub socket: Option<PathBuf>,
    pub tls: Option<Tls>,
    /// TLS is not wanted, although the server may be another machine.
    pub insecure: bool,
}

/// A connection's bytes, whatever carries them.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Tls {
    /// All that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.ca), self.certificate.as_ref(), self.key.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Relative paths are taken from `directory`.
    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if self.certificate.is_some() != self.key.is_some() {
            say("tls", "certificate and key belong together: give both or neither");
        }
        for path in [Some(&mut self.ca), self.certificate.as_mut(), self.key.as_mut()].into_iter().flatten() {
            *path = directory.join(&*path);
        }
    }

    fn connector(&self) -> Result<TlsConnector, SourceError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| bad_file(&self.ca, error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad_file(&self.ca, error))?
            .with_root_certificates(roots);
        let config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| bad_file(key, error))?;
                let chain = certificates(certificate)?;
                builder.with_client_auth_cert(chain, private).map_err(|error| bad_file(certificate, error))?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// A file that a connection needs.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    std::fs::read(path).map_err(|source| SourceError::Tls { path: path.display().to_string(), source })
}

/// What a server that asks for a password, or nothing, takes to be reached.
pub(super) fn needs<'a>(tls: Option<&'a Tls>, password: Option<&'a SecretRef>) -> Needs<'a> {
    let files = tls.into_iter().flat_map(Tls::files).collect();
    Needs { files, secrets: password.into_iter().collect(), account: false }
}

fn bad_file(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::Tls { path: path.display().to_string(), source: io::Error::other(error) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| bad_file(path, error))?;
    if found.is_empty() {
        return Err(bad_file(path, io::Error::other("it holds no certificate in PEM form")));
    }
    Ok(found)
}

impl Place {
    pub fn check(&self, say: &mut Say<'_>) {
        match (&self.host, &self.socket) {
            (Some(host), None) if host.is_empty() => say("host", "expected a host's name or address"),
            (Some(_), None) => {}
            (None, Some(socket)) if socket.is_absolute() => {}
            (None, Some(_)) => say("socket", "expected an absolute path"),
            _ => say("host", "expected either host or socket"),
        }
        match &self.tls {
            Some(_) if self.insecure => say("insecure", "tls is given: leave one of them out"),
            Some(_) if self.socket.is_some() => say("tls", "there is no TLS over a socket file"),
            None if !self.insecure && !self.is_this_machine() => {
                say("tls", "expected tls with a ca for another machine; insecure: true goes without");
            }
            _ => {}
        }
    }

    /// What is sent stays on this machine.
    pub fn is_this_machine(&self) -> bool {
        let Some(host) = &self.host else { return true };
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// As people write it.
    pub fn name(&self) -> String {
        match (&self.host, &self.socket) {
            (_, Some(socket)) => socket.display().to_string(),
            (Some(host), None) if host.contains(':') => format!("[{host}]:{}", self.port),
            (host, None) => format!("{}:{}", host.as_deref().unwrap_or_default(), self.port),
        }
    }

    /// In plain, even if TLS is to follow.
    pub async fn connect(&self) -> io::Result<Box<dyn Wire>> {
        if let Some(socket) = &self.socket {
            return Ok(Box::new(UnixStream::connect(socket).await?));
        }
        let addresses = resolve(self.host.as_deref().unwrap_or_default(), self.port).await?;
        let stream = TcpStream::connect(addresses.as_slice()).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    /// Goes on by TLS.
    pub async fn secure(&self, connector: &TlsConnector, wire: Box<dyn Wire>) -> io::Result<Box<dyn Wire>> {
        let host = self.host.as_deref().unwrap_or_default();
        let name = self.tls.as_ref().and_then(|tls| tls.server_name.as_deref()).unwrap_or(host).to_owned();
        let name = ServerName::try_from(name.clone())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is not a server's name")))?;
        Ok(Box::new(connector.connect(name, wire).await?))
    }

    pub fn connector(&self) -> Result<Option<TlsConnector>, SourceError> {
        self.tls.as_ref().map(Tls::connector).transpose()
    }
}

/// The addresses of a host.
pub(super) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    for pause in AGAIN {
        if let Ok(found) = lookup_host((host, port)).await {
            return Ok(found.collect());
        }
        sleep(pause).await;
    }
    Ok(lookup_host((host, port)).await?.collect())
}

/// What kept an answer away.
#[derive(Debug)]
pub(super) enum Waited {
    /// The run ended.
    Ended(SourceError),
    /// It took longer than it may.
    TooLong,
}

/// Waits for `answer`, at most for `limit`, and only while the run goes on. Blocks.
pub(super) fn wait<T>(context: &Context, limit: Duration, answer: impl Future<Output = T>) -> Result<T, Waited> {
    match context.wait(async { timeout(limit, answer).await }) {
        Ok(answer) => answer.map_err(|_| Waited::TooLong),
        Err(ended) => Err(Waited::Ended(ended)),
    }
}

/// An error of a connection, with what is behind it.
pub(super) fn told(error: &io::Error) -> String {
    let text = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        _ => error.to_string(),
    };
    causes(text, error.get_ref().and_then(std::error::Error::source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(place: &Place) -> Vec<String> {
        let mut found = Vec::new();
        place.check(&mut |field, message| found.push(format!("{field}: {message}")));
        found
    }

    #[test]
    fn plain_text_to_another_machine_must_be_asked_for() {
        let mut place =
            Place { host: Some("db.example.org".into()), port: 5432, socket: None, tls: None, insecure: false };
        assert!(complaints(&place)[0].starts_with("tls: expected tls"));
        place.insecure = true;
        assert!(complaints(&place).is_empty());
        place.tls = Some(Tls { ca: "/ca".into(), certificate: None, key: None, server_name: None });
        assert!(complaints(&place)[0].starts_with("insecure"));
        place.insecure = false;
        assert!(complaints(&place).is_empty());
        place.tls = None;
        for loopback in ["127.0.0.1", "::1", "localhost"] {
            place.host = Some(loopback.into());
            assert!(complaints(&place).is_empty(), "{loopback}");
        }
        place.socket = Some("/run/db".into());
        assert!(complaints(&place)[0].starts_with("host: expected either"));
        place.host = None;
        assert!(complaints(&place).is_empty());
        assert_eq!(place.name(), "/run/db");
    }
}
