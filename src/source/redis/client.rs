//! A small client for Redis, in its protocol RESP2.
//!
//! Protocol: "Redis serialization protocol specification". Deliberately absent: RESP3, arrays in answers.

use crate::source::connection::{Place, Wire, told};
use bytes::{Buf as _, BytesMut};
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

/// Bytes of an answer; those of INFO are a few thousand.
const LARGEST: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{}", told(.0))]
    Io(#[from] io::Error),
    /// The server's own words.
    #[error("{0}")]
    Refused(String),
    #[error("{0}; is this a Redis server?")]
    Protocol(&'static str),
}

type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// It is about who may do what.
    pub fn denies(&self) -> bool {
        matches!(self, Self::Refused(text)
            if ["NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH"].iter().any(|word| text.starts_with(word)))
    }
}

pub struct Client {
    wire: Box<dyn Wire>,
    buffer: BytesMut,
}

impl Client {
    pub async fn connect(place: &Place, connector: Option<&TlsConnector>) -> Result<Self> {
        let mut wire = place.connect().await?;
        if let Some(connector) = connector {
            wire = place.secure(connector, wire).await?;
        }
        Ok(Self { wire, buffer: BytesMut::new() })
    }

    /// Sends a command and takes its answer, a text. A server that waits before it forks sends empty lines meanwhile.
    pub async fn ask(&mut self, words: &[&str]) -> Result<String> {
        let mut out = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        self.wire.write_all(&out).await?;
        self.wire.flush().await?;
        zeroize::Zeroize::zeroize(&mut out);
        let mut line = self.line().await?;
        while line.is_empty() {
            line = self.line().await?;
        }
        match (line.get(..1), line.get(1..).unwrap_or_default()) {
            (Some("+" | ":"), text) => Ok(text.to_owned()),
            (Some("-"), text) => Err(Failure::Refused(text.to_owned())),
            (Some("$"), length) => {
                let length = length.parse().ok().filter(|length| *length <= LARGEST);
                let length = length.ok_or(Failure::Protocol("an answer is too long"))?;
                while self.buffer.len() < length + 2 {
                    self.more().await?;
                }
                let text = String::from_utf8_lossy(&self.buffer[..length]).into_owned();
                self.buffer.advance(length + 2);
                Ok(text)
            }
            _ => Err(Failure::Protocol("the answer is no text")),
        }
    }

    /// A line, without its end.
    pub async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            if self.buffer.len() > LARGEST {
                return Err(Failure::Protocol("a line is too long"));
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<()> {
        match self.wire.read_buf(&mut self.buffer).await? {
            0 => Err(Failure::Io(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }

    /// Bytes as they come; 0 at the end of the connection.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            return self.wire.read(buffer).await;
        }
        let length = buffer.len().min(self.buffer.len());
        self.buffer.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
