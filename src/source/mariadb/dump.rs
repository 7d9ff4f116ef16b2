//! The dump as content: whole only if the program succeeded and wrote its last line.

use super::client::Client;
use crate::entry::{Content, Open, Verdict};
use crate::exec::Running;
use crate::source::command::into_io;
use crate::source::{Context, SourceError};
use std::io;

/// `mariadb-dump` writes it behind everything else.
const LAST_LINE: &[u8] = b"\n-- Dump completed";
/// Bytes at the end that the last line lies in.
const TAIL: usize = 128;

const OPTIONS: [&str; 10] = [
    "--single-transaction",
    "--quick",
    "--routines",
    "--events",
    "--triggers",
    "--hex-blob",
    "--max-allowed-packet=1G",
    "--flush-privileges",
    "--default-character-set=utf8mb4",
    "--all-databases",
];
/// Where the dump stands in the binary log, if there is one.
const POSITION: [&str; 2] = ["--master-data=2", "--gtid"];

pub fn open(client: &Client, context: &Context, binary_log: bool) -> Result<Open, SourceError> {
    let mut options = OPTIONS.to_vec();
    if binary_log {
        options.extend_from_slice(&POSITION);
    }
    let command = client.program(context, "mariadb-dump", context.deadline, &options)?;
    Ok(Box::new(move || {
        let running = command.start().map_err(into_io)?;
        Ok(Box::new(Dump { running, tail: Vec::new() }))
    }))
}

struct Dump {
    running: Running,
    tail: Vec<u8>,
}

impl Content for Dump {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.running.read(buffer).map_err(into_io)?;
        self.tail.extend_from_slice(&buffer[length.saturating_sub(TAIL)..length]);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        Ok(length)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        self.running.wait().map_err(into_io)?;
        if !self.tail.windows(LAST_LINE.len()).any(|bytes| bytes == LAST_LINE) {
            let text = "mariadb-dump succeeded, but its last line is missing: the dump is not whole";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(Verdict::Consistent)
    }
}
