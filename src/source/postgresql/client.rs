//! A small client for PostgreSQL's frontend/backend protocol 3.0, in the replication mode or with a database.
//!
//! Protocol: "Frontend/Backend Protocol" in PostgreSQL's documentation. Invariants: a password is sent as it is only over
//! TLS or a socket file; a server that was asked by SCRAM must prove that it knows the password too; no message is larger
//! than [`LARGEST`]. Deliberately absent: channel binding (the certificate is checked), the extended query protocol.

use crate::source::connection::{Place, Wire, told};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{DataRowBody, ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

/// Bytes; a backup comes in messages of 32 KiB.
const LARGEST: i32 = 16 << 20;
/// Warnings that are kept.
const WARNINGS: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{}", told(.0))]
    Io(#[from] io::Error),
    #[error("{text}")]
    Server { code: String, text: String },
    #[error("{0}")]
    Protocol(String),
}

type Result<T> = std::result::Result<T, Failure>;

/// The values of a row, as text.
pub type Row = Vec<Option<String>>;

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
pub enum Session<'a> {
    Replication,
    Database(&'a str),
}

pub struct Client {
    wire: Box<dyn Wire>,
    buffer: BytesMut,
    /// What the server reported of its settings (`server_version`, `in_hot_standby`).
    pub parameters: BTreeMap<String, String>,
    /// Warnings since they were last taken.
    pub warnings: Vec<String>,
}

fn protocol(text: &str) -> Failure {
    Failure::Protocol(format!("{text}; is this a PostgreSQL server?"))
}

impl Failure {
    /// The SQLSTATE begins so.
    pub fn is(&self, class: &str) -> bool {
        matches!(self, Self::Server { code, .. } if code.starts_with(class))
    }
}

impl Client {
    pub async fn connect(
        place: &Place,
        connector: Option<&TlsConnector>,
        user: &str,
        password: Option<&str>,
        session: Session<'_>,
    ) -> Result<Self> {
        let mut wire = place.connect().await?;
        if let Some(connector) = connector {
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            wire.write_all(&request).await?;
            wire.flush().await?;
            match wire.read_u8().await? {
                b'S' => wire = place.secure(connector, wire).await?,
                b'N' => {
                    return Err(Failure::Protocol("the server does not offer TLS; nothing was sent in plain".into()));
                }
                _ => return Err(protocol("the answer to the request for TLS is no answer")),
            }
        }
        let (parameters, warnings) = (BTreeMap::new(), Vec::new());
        let mut client = Self { wire, buffer: BytesMut::new(), parameters, warnings };
        let session = match session {
            Session::Replication => ("replication", "true"),
            Session::Database(name) => ("database", name),
        };
        let start = [("user", user), session, ("application_name", "lifeboat")];
        client.send(|out| frontend::startup_message(start, out)).await?;
        let private = connector.is_some() || place.socket.is_some();
        client.authenticate(user, password, private).await?;
        Ok(client)
    }

    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        let mut out = BytesMut::new();
        write(&mut out)?;
        self.wire.write_all(&out).await?;
        self.wire.flush().await?;
        Ok(())
    }

    async fn authenticate(&mut self, user: &str, password: Option<&str>, private: bool) -> Result<()> {
        let needed = || password.ok_or_else(|| Failure::Protocol("the server asks for a password; give one".into()));
        let mut scram = None;
        loop {
            match self.next().await? {
                Message::AuthenticationOk if scram.is_some() => {
                    return Err(protocol("the server did not prove that it knows the password"));
                }
                Message::AuthenticationOk | Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                Message::AuthenticationCleartextPassword if !private => {
                    let text =
                        "the server asks for the password in plain over a connection without TLS; it was not sent";
                    return Err(Failure::Protocol(text.into()));
                }
                Message::AuthenticationCleartextPassword => {
                    let password = needed()?.as_bytes();
                    self.send(|out| frontend::password_message(password, out)).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), needed()?.as_bytes(), body.salt());
                    self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
                }
                Message::AuthenticationSasl(body) => {
                    if !body.mechanisms().any(|offered| Ok(offered == sasl::SCRAM_SHA_256))? {
                        return Err(protocol("the server offers no SASL mechanism but such with channel binding"));
                    }
                    let client = sasl::ScramSha256::new(needed()?.as_bytes(), sasl::ChannelBinding::unsupported());
                    let first = client.message();
                    self.send(|out| frontend::sasl_initial_response(sasl::SCRAM_SHA_256, first, out)).await?;
                    scram = Some(client);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let client = scram.as_mut().ok_or_else(|| protocol("SASL went on before it began"))?;
                    client.update(body.data())?;
                    let next = client.message();
                    self.send(|out| frontend::sasl_response(next, out)).await?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let mut client = scram.take().ok_or_else(|| protocol("SASL ended before it began"))?;
                    client.finish(body.data())?;
                }
                _ => return Err(protocol("the server asks for a way of authentication that is not supported")),
            }
        }
    }

    /// The next message that is an answer; what the server tells on the way is noted.
    pub async fn next(&mut self) -> Result<Message> {
        loop {
            if Header::parse(&self.buffer)?.is_some_and(|header| header.len() > LARGEST) {
                return Err(protocol("the server announces a message of more than 16 MiB"));
            }
            match Message::parse(&mut self.buffer)? {
                None => {
                    if self.wire.read_buf(&mut self.buffer).await? == 0 {
                        return Err(Failure::Io(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                Some(Message::ParameterStatus(body)) => {
                    self.parameters.insert(body.name()?.to_owned(), body.value()?.to_owned());
                }
                Some(Message::NoticeResponse(body)) => {
                    let said = Said::of(body.fields())?;
                    if said.severity == "WARNING" && self.warnings.len() < WARNINGS {
                        self.warnings.push(said.text);
                    }
                }
                Some(Message::NotificationResponse(_)) => {}
                Some(Message::ErrorResponse(body)) => {
                    let said = Said::of(body.fields())?;
                    return Err(Failure::Server { code: said.code, text: said.text });
                }
                Some(other) => return Ok(other),
            }
        }
    }

    /// Sends a command; its answers are taken by [`Client::next`].
    pub async fn ask(&mut self, command: &str) -> Result<()> {
        self.send(|out| frontend::query(command, out)).await
    }

    /// All rows that a command answers with.
    pub async fn rows(&mut self, command: &str) -> Result<Vec<Row>> {
        self.ask(command).await?;
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            match self.next().await {
                Ok(Message::DataRow(body)) if rows.len() < 10_000 => rows.push(row(&body)?),
                Ok(Message::ReadyForQuery(_)) => return failure.map_or(Ok(rows), Err),
                Ok(Message::RowDescription(_) | Message::CommandComplete(_)) => {}
                Ok(_) => return Err(protocol("the answer to a command is no table")),
                Err(refused @ Failure::Server { .. }) => failure = Some(refused),
                Err(error) => return Err(failure.unwrap_or(error)),
            }
        }
    }

    /// The value of a setting.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        let rows = self.rows(&format!("SHOW {setting}")).await?;
        let value = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        value.ok_or_else(|| protocol("a setting has no value"))
    }
}

pub fn row(body: &DataRowBody) -> Result<Row> {
    let bytes = body.buffer();
    let values = body
        .ranges()
        .map(|range| Ok(range.map(|range| String::from_utf8_lossy(bytes.get(range).unwrap_or_default()).into_owned())));
    Ok(values.collect()?)
}

struct Said {
    severity: String,
    code: String,
    text: String,
}

impl Said {
    /// Protocol: "Error and Notice Message Fields".
    fn of(mut fields: ErrorFields<'_>) -> io::Result<Self> {
        let mut said = Self { severity: String::new(), code: String::new(), text: String::new() };
        while let Some(field) = fields.next()? {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'V' => said.severity = value,
                b'C' => said.code = value,
                b'M' => said.text.push_str(&value),
                b'D' | b'H' => said.text.push_str(&format!(" ({value})")),
                _ => {}
            }
        }
        Ok(said)
    }
}
