//! A program's standard output.
//!
//! The program must end with status 0 and write something; otherwise nothing is captured.

use super::{Context, Say, Source, SourceError};
use crate::entry::{Content, Entry, Facts, Input, Kind, Layout, OnError, Sink, Verdict};
use crate::exec::{self, ExecError};
use crate::secret::{self, SecretRef};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The program and its arguments; no shell is involved.
    pub argv: Vec<String>,
    /// Further environment variables, by reference.
    #[serde(default)]
    pub env: BTreeMap<String, SecretRef>,
    /// Name of the captured stream in the snapshot ("dump.sql").
    pub output: String,
    /// The program is stopped after this long ("1h"); default 1 hour.
    pub timeout: Option<String>,
}

impl Spec {
    pub(super) fn check(&self, say: &mut Say<'_>) {
        if self.argv.first().is_none_or(String::is_empty) {
            say("argv", "expected the program and its arguments");
        }
        if self.output.is_empty() || self.output.contains('/') || matches!(&*self.output, "." | "..") {
            say("output", "expected a file name, without slashes, such as \"dump.sql\"");
        }
    }
}

#[derive(Debug)]
pub struct Command {
    spec: Spec,
    timeout: Duration,
}

impl Command {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        let bad = |what: String| Err(SourceError::Spec { what });
        if spec.argv.first().is_none_or(String::is_empty) {
            return bad("argv names no program".to_owned());
        }
        if spec.argv.iter().any(|argument| argument.contains('\0')) {
            return bad("argv holds a NUL character".to_owned());
        }
        if spec.output.is_empty() || spec.output.contains(['/', '\0']) || matches!(spec.output.as_str(), "." | "..") {
            return bad(format!("the output {:?} is not a file name", spec.output));
        }
        if let Some(name) = spec.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return bad(format!("{name:?} cannot be the name of an environment variable"));
        }
        let text = spec.timeout.as_deref().unwrap_or("1h");
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|parsed| Duration::try_from(parsed).ok());
        match parsed {
            Some(timeout) if !timeout.is_zero() => Ok(Self { spec, timeout }),
            _ => bad(format!("the timeout {text:?} is not a duration such as \"90s\" or \"1h 30m\"")),
        }
    }

    fn program(&self) -> &str {
        &self.spec.argv[0]
    }
}

impl Source for Command {
    fn kind(&self) -> &'static str {
        "command"
    }

    /// The program is not run: it may be expensive.
    fn check(&mut self, _context: &Context) -> Result<Vec<String>, SourceError> {
        for secret in self.spec.env.values() {
            secret.read()?;
        }
        let program = self.program();
        if !program.contains('/') {
            return Ok(vec![format!("{program} will be looked up on the PATH; it was not run")]);
        }
        rustix::fs::access(program, rustix::fs::Access::EXEC_OK).map_err(|error| SourceError::Program {
            program: program.to_owned(),
            text: format!("it cannot be executed: {}", io::Error::from(error)),
        })?;
        Ok(vec![format!("{program} is executable; it was not run")])
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let mut env = Vec::new();
        for (name, secret) in &self.spec.env {
            env.push((name.clone(), secret.read()?));
        }
        let cancel = context.cancel.clone();
        let (timeout, latest) = (self.timeout, context.deadline);
        let (program, arguments) = (self.program().to_owned(), self.spec.argv[1..].to_vec());
        let open = Box::new(move || {
            let now = Instant::now();
            let deadline = now.checked_add(timeout).map_or(latest, |own| own.min(latest));
            let stop = Box::new(move || cancel.is_cancelled());
            let (inherits, secrets) = (exec::Inherits::AllBut(secret::named()), env.clone());
            let running = exec::Command { program: program.clone(), arguments, inherits, env, deadline, stop }.start();
            let running = running.map_err(into_io)?;
            Ok(Box::new(Stream { running, program, secrets, empty: true }) as Box<dyn Content>)
        });
        sink.add(
            plain_file(self.spec.output.clone().into_bytes(), 0, context.started),
            Some(Input { layout: Layout::Content, fingerprint: None, on_error: OnError::Fail, open }),
        )?;
        Ok(Facts { details: [("program".to_owned(), self.program().to_owned())].into(), ..Facts::default() })
    }
}

/// The entry of content that no file system knows. The size is 0 where only reading tells it.
pub(super) fn plain_file(path: Vec<u8>, size: u64, at: jiff::Timestamp) -> Entry {
    Entry {
        path,
        kind: Kind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime_ns: i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX),
        size,
        link: None,
        rdev: None,
        xattrs: None,
        sparse: None,
    }
}

struct Stream {
    running: exec::Running,
    program: String,
    /// That it was given, and may print.
    secrets: Vec<(String, Zeroizing<String>)>,
    empty: bool,
}

impl Content for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.running.read(buffer).map_err(|error| hidden(error, &self.secrets))?;
        self.empty &= length == 0;
        Ok(length)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        let Self { running, program, secrets, empty } = *self;
        running.wait().map_err(|error| hidden(error, &secrets))?;
        if empty {
            return Err(io::Error::other(format!("{program} succeeded but wrote nothing to its standard output")));
        }
        Ok(Verdict::Consistent)
    }
}

fn hidden(error: ExecError, secrets: &[(String, Zeroizing<String>)]) -> io::Error {
    let error = into_io(error);
    io::Error::new(error.kind(), exec::hide(&error.to_string(), secrets))
}

pub(super) fn into_io(error: ExecError) -> io::Error {
    match error {
        ExecError::Start { program, source } => {
            io::Error::new(source.kind(), format!("start {program} (is it installed, and on the PATH?): {source}"))
        }
        ExecError::Output { program, source } => {
            io::Error::new(source.kind(), format!("read the output of {program}: {source}"))
        }
        ExecError::Deadline { .. } => io::Error::new(io::ErrorKind::TimedOut, error.to_string()),
        other => io::Error::other(other.to_string()),
    }
}
