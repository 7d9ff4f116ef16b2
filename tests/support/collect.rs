//! A sink that keeps everything in memory.

use lifeboat::entry::{Entry, Input, OnError, Problem, Sink, Stopped, Verdict};
use lifeboat::source::{Cancel, Context};
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

fn drain(open: lifeboat::entry::Open, all: &mut Vec<u8>) -> std::io::Result<Verdict> {
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
