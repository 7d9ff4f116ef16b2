//! A sink that keeps everything in memory.

use lifeboat::entry::{Body, Entry, Facts, Input, OnError, Problem, Sink, Stopped, Supply, Verdict, Visit};
use lifeboat::source::{Cancel, Context};
use std::io;
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Collect {
    pub entries: Vec<(Entry, Vec<u8>)>,
    pub problems: Vec<Problem>,
    /// The first content that failed the capture.
    pub failure: Option<String>,
}

impl Sink for Collect {
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
        let mut content = Vec::new();
        if let Some(input) = input {
            match drain(input.open, &mut content) {
                Ok(Verdict::Consistent) => {}
                Ok(Verdict::Changed(text)) => self.problem(Problem { path: entry.path.clone(), text }),
                Err(error) if input.on_error == OnError::Fail => {
                    self.failure = Some(error.to_string());
                    return Err(Stopped);
                }
                Err(error) => {
                    self.problem(Problem { path: entry.path.clone(), text: error.to_string() });
                    return Ok(());
                }
            }
        }
        self.entries.push((entry, content));
        Ok(())
    }

    fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

pub struct Bytes<'a>(pub &'a [u8]);

impl Body for Bytes<'_> {
    fn copy(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(self.0)
    }
}

/// A snapshot without a repository around it.
pub struct Held {
    pub facts: Facts,
    pub entries: Vec<(Entry, Vec<u8>)>,
}

impl Supply for Held {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn entries(&self, visit: &mut Visit<'_>) -> io::Result<()> {
        supply(&self.entries, visit)
    }
}

/// Gives captured entries to whoever restores them.
pub fn supply(entries: &[(Entry, Vec<u8>)], visit: &mut Visit<'_>) -> io::Result<()> {
    entries.iter().try_for_each(|(entry, content)| visit(entry, &Bytes(content)))
}

fn drain(open: lifeboat::entry::Open, all: &mut Vec<u8>) -> io::Result<Verdict> {
    let mut content = open()?;
    let mut buffer = vec![0; 100_000];
    loop {
        match content.read(&mut buffer)? {
            0 => return content.finish(),
            length => all.extend_from_slice(&buffer[..length]),
        }
    }
}

pub fn context(runtime: &tokio::runtime::Runtime) -> Context {
    Context {
        runtime: runtime.handle().clone(),
        cancel: Cancel::default(),
        started: jiff::Timestamp::UNIX_EPOCH,
        begun: Instant::now(),
        deadline: Instant::now() + Duration::from_mins(2),
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}
