//! Dumps as content: whole only if the program succeeded and wrote its last line.

use super::server::{Server, State};
use crate::entry::{Content, Open, Verdict};
use crate::exec::{self, Running};
use crate::source::command::into_io;
use crate::source::{Context, SourceError};
use std::io;

/// Bytes at the end that the last line lies in: behind it comes the key that ends psql's restricted mode.
const TAIL: usize = 512;

/// Roles and tablespaces.
pub fn globals(server: &Server, context: &Context, state: &State) -> Result<Open, SourceError> {
    let command = server.program(context, "pg_dumpall", state.common, &global_options(state))?;
    Ok(open(command, "roles and tablespaces".into(), b"\n-- PostgreSQL database cluster dump complete\n"))
}

/// Only who may read the passwords of roles can dump them.
pub fn global_options(state: &State) -> Vec<&'static str> {
    let mut options = vec!["--globals-only", "--no-sync", "--no-password"];
    if !state.passwords {
        options.push("--no-role-passwords");
    }
    options
}

pub fn database(server: &Server, context: &Context, name: &str) -> Result<Open, SourceError> {
    let options = ["--create", "--format=plain", "--no-sync", "--no-password"];
    let command = server.program(context, "pg_dump", name, &options)?;
    Ok(open(command, format!("the database {name}"), b"\n-- PostgreSQL database dump complete\n"))
}

fn open(command: exec::Command, what: String, last: &'static [u8]) -> Open {
    Box::new(move || {
        let running = command.start().map_err(|error| named(&what, &into_io(error)))?;
        Ok(Box::new(Dump { running, what, last, tail: Vec::new() }))
    })
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("dump {what}: {error}"))
}

struct Dump {
    running: Running,
    what: String,
    last: &'static [u8],
    tail: Vec<u8>,
}

impl Content for Dump {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.running.read(buffer).map_err(|error| named(&self.what, &into_io(error)))?;
        self.tail.extend_from_slice(&buffer[length.saturating_sub(TAIL)..length]);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        Ok(length)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        self.running.wait().map_err(|error| named(&self.what, &into_io(error)))?;
        if !self.tail.windows(self.last.len()).any(|bytes| bytes == self.last) {
            let text = "the program succeeded, but its last line is missing: the dump is not whole";
            return Err(named(&self.what, &io::Error::new(io::ErrorKind::UnexpectedEof, text)));
        }
        Ok(Verdict::Consistent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// What becomes of what `printf` writes.
    fn taken(text: &str) -> io::Result<Verdict> {
        let command = exec::Command {
            program: "printf".into(),
            inherits: exec::Inherits::Little,
            arguments: vec![text.into()],
            env: Vec::new(),
            deadline: Instant::now() + Duration::from_mins(1),
            stop: Box::new(|| false),
        };
        let mut content = open(command, "the database shop".into(), b"\n-- PostgreSQL database dump complete\n")()?;
        while content.read(&mut [0; 7])? > 0 {}
        content.finish()
    }

    #[test]
    fn a_dump_without_its_last_line_is_none() {
        let whole = "SELECT 1;\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\\\unrestrict abc\n\n";
        assert_eq!(taken(whole).unwrap(), Verdict::Consistent);
        for cut in ["SELECT 1;\n", "", "--\n-- PostgreSQL database dump compl"] {
            let text = taken(cut).unwrap_err().to_string();
            assert!(text.contains("dump the database shop") && text.contains("last line is missing"), "{text}");
        }
    }
}
