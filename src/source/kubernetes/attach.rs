//! A program in a container of a running pod, through the API server: the subresource `pods/exec` over WebSockets, for which
//! a Role needs the verbs `create` and `get`. Its streams are read and written as those of a child process are; what it
//! last wrote to standard error is kept for the error that its end may be.
//!
//! Deliberately absent: ending it. A program whose connection is given up goes on in its pod. Closing its standard input
//! needs version 5 of the protocol, which API servers have from 1.30 on.

use super::api::{Api, Failure};
use crate::source::{Context, SourceError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, SimplexStream, WriteHalf};
use tokio::task::JoinHandle;

/// Bytes under way in each direction.
const BUFFER: usize = 256 << 10;
/// Of standard error.
const KEPT: usize = 4 << 10;
/// For the rest of standard error, when the program has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A program that takes nothing for so long is gone, whatever the connection says: what is under way to it keeps the client from
/// reading of its end.
const STALL: Duration = Duration::from_mins(5);

/// Where a program is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub namespace: String,
    pub pod: String,
    pub name: String,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} of pod {}/{}", self.name, self.namespace, self.pod)
    }
}

type Ended = Pin<Box<dyn Future<Output = Option<Status>> + Send>>;

/// What is known of its end.
enum End {
    Unknown,
    Status(Box<Status>),
    /// The connection ended first.
    Broken,
}

impl From<Option<Status>> for End {
    fn from(status: Option<Status>) -> Self {
        status.map_or(Self::Broken, |status| Self::Status(Box::new(status)))
    }
}

/// A program under way. Dropped, it is left to itself.
pub struct Attached {
    context: Context,
    /// Where, for errors.
    place: String,
    // Holds the connection.
    _process: AttachedProcess,
    stdin: Option<WriteHalf<SimplexStream>>,
    stdout: Option<ReadHalf<SimplexStream>>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    listening: JoinHandle<()>,
    ended: Ended,
    end: End,
}

impl Attached {
    /// Starts it; with `fed` it has a standard input.
    ///
    /// # Errors
    /// The outer: the run was given up. The inner: the server did not start it.
    pub fn start(
        context: &Context,
        api: &Api,
        at: &Container,
        command: &[String],
        fed: bool,
    ) -> Result<Result<Self, Failure>, SourceError> {
        let parameters = AttachParams::default()
            .container(&at.name)
            .stdin(fed)
            .stdout(true)
            .stderr(true)
            .max_stdin_buf_size(BUFFER)
            .max_stdout_buf_size(BUFFER)
            .max_stderr_buf_size(BUFFER);
        let started = context.wait(api.exec(&at.namespace, &at.pod, command, &parameters))?;
        Ok(started.map(|process| Self::of(context, at, process)))
    }

    fn of(context: &Context, at: &Container, mut process: AttachedProcess) -> Self {
        let (stdin, stdout, stderr) = (process.stdin(), process.stdout(), process.stderr());
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&tail);
        let listening = context.runtime.spawn(async move {
            let (Some(mut stderr), mut buffer) = (stderr, vec![0; 4096]) else { return };
            while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..length]);
                let excess = kept.len().saturating_sub(KEPT);
                kept.drain(..excess);
            }
        });
        let ended = process.take_status();
        Self {
            context: context.clone(),
            place: at.to_string(),
            _process: process,
            stdin,
            stdout,
            stderr: tail,
            listening,
            ended: Box::pin(async move {
                match ended {
                    Some(ended) => ended.await,
                    None => None,
                }
            }),
            end: End::Unknown,
        }
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// The run was given up.
    pub fn close(&mut self) -> Result<(), SourceError> {
        if let Some(mut stdin) = self.stdin.take() {
            // Its end tells more than what could not be sent.
            let _ = self.context.wait(stdin.shutdown())?;
        }
        Ok(())
    }

    /// Waits for its end; what it still writes is dropped.
    ///
    /// # Errors
    /// It did not end with exit status 0, its connection broke, or the run was given up.
    pub fn wait(mut self) -> Result<(), SourceError> {
        let mut rest = [0; 4096];
        while self.next(&mut rest)? > 0 {}
        if matches!(self.end, End::Unknown) {
            self.end = self.context.wait(&mut self.ended)?.into();
        }
        let text = match &self.end {
            End::Status(status) if status.status.as_deref() == Some("Success") => return Ok(()),
            End::Status(status) => how(status),
            End::Unknown | End::Broken => "the connection to it ended before it did".into(),
        };
        Err(self.failed(text))
    }

    fn failed(&mut self, text: String) -> SourceError {
        let listening = &mut self.listening;
        let _ = self.context.runtime.block_on(async { tokio::time::timeout(LAST_WORDS, listening).await });
        let tail: Vec<u8> = self.stderr.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = match String::from_utf8_lossy(&tail).trim() {
            "" => text,
            said => format!("{text}: {said}"),
        };
        SourceError::System { attempt: format!("run a program in {}", self.place), text, need: String::new() }
    }

    /// As [`Read::read`].
    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        // Nobody says then that the output is at its end.
        let stdout = self.stdout.as_mut().filter(|_| !matches!(self.end, End::Broken));
        let Some(stdout) = stdout else { return Ok(0) };
        let (ended, end) = (&mut self.ended, &mut self.end);
        let read = self.context.wait(async {
            loop {
                tokio::select! {
                    biased;
                    read = stdout.read(buffer) => return read.unwrap_or(0),
                    status = &mut *ended, if matches!(end, End::Unknown) => {
                        *end = status.into();
                        if matches!(end, End::Broken) {
                            return 0;
                        }
                    }
                }
            }
        })?;
        if read == 0 {
            self.stdout = None;
        }
        Ok(read)
    }
}

/// Its standard output. The end says nothing of success: see [`Attached::wait`].
impl Read for Attached {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer).map_err(io::Error::other)
    }
}

/// Its standard input.
impl Write for Attached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(stdin) = &mut self.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
        if !matches!(self.end, End::Unknown) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let (ended, end) = (&mut self.ended, &mut self.end);
        let written = self.context.wait(async {
            tokio::select! {
                written = stdin.write(bytes) => written,
                // It reads no further.
                status = &mut *ended => {
                    *end = status.into();
                    Err(io::ErrorKind::BrokenPipe.into())
                }
                () = tokio::time::sleep(STALL) => {
                    *end = End::Broken;
                    Err(io::ErrorKind::TimedOut.into())
                }
            }
        });
        written.map_err(io::Error::other)?
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// How a program failed, as the kubelet tells it.
fn how(status: &Status) -> String {
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code =
        causes.filter(|cause| cause.reason.as_deref() == Some("ExitCode")).find_map(|cause| cause.message.clone());
    match (code, &status.message) {
        (Some(code), _) => format!("it failed with exit status {code}"),
        (None, Some(message)) => message.clone(),
        (None, None) => "it failed".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_status_is_told() {
        let status = r#"{"status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated with exit code 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}}"#;
        assert_eq!(how(&serde_json::from_str(status).unwrap()), "it failed with exit status 3");
        let status = r#"{"status": "Failure", "message": "no such file"}"#;
        assert_eq!(how(&serde_json::from_str(status).unwrap()), "no such file");
    }
}
