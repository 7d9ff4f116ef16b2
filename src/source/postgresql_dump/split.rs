//! A dump on its way into `psql`: where its head ends, which makes the database and so cannot be in a transaction, and what of it is
//! for `psql` and not for the server.
//!
//! `pg_dump --create` writes the command that makes the database, `\connect`, perhaps its properties and `\connect` again,
//! and then what is in it. Newer ones let `psql` take no commands of its own in between: `\restrict KEY`, `\unrestrict KEY`. Whoever
//! makes a false snapshot knows that key. So the restore has one of its own from the beginning to the end, and these lines are left
//! out.

use std::io::{self, Write};

/// More bytes are in no head.
pub const LARGEST: usize = 1 << 20;

/// The length of the head, `\connect` included; `None` while it is not whole.
pub fn head(dump: &[u8]) -> Option<usize> {
    let (mut at, mut end) = (0, None);
    while let Some(length) = dump[at..].iter().position(|byte| *byte == b'\n') {
        let line = &dump[at..at + length];
        at += length + 1;
        if line.starts_with(b"\\connect ") {
            end = Some(at);
        }
        let begins = line.starts_with(b"-- Name: ") && !contains(line, PROPERTIES) || line == LAST;
        if begins && end.is_some() {
            return end;
        }
    }
    None
}

/// The only command that `psql` takes in its restricted mode. It carries out what stands in backquotes behind it before it looks at
/// the key.
const LEAVE: &[u8] = b"\\unrestrict";

/// Nothing that `psql` would act on itself: it takes no other command, and no dump has a NUL, behind which it looks no further.
///
/// # Errors
/// `InvalidData`.
fn is_for_the_server(bytes: &[u8]) -> io::Result<()> {
    if !bytes.contains(&0) && !contains(bytes, LEAVE) {
        return Ok(());
    }
    let text = "it holds a NUL, or \\unrestrict, which psql would act on: a false snapshot might; if it is right, restore it by hand";
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// The lines of a head that are for the server, and the dump's own key.
///
/// Invariant: nothing but such lines of `psql` is left out.
///
/// # Errors
/// `InvalidData`: something else is for `psql`.
pub fn commands(head: &[u8]) -> io::Result<(Vec<u8>, Option<Vec<u8>>)> {
    let (mut commands, mut key) = (Vec::new(), None);
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        if let Some(own) = bare.strip_prefix(b"\\restrict ") {
            key.get_or_insert_with(|| own.to_vec());
        } else if ![&b"\\connect "[..], b"\\unrestrict ", ENCODING].iter().any(|command| bare.starts_with(command)) {
            commands.extend_from_slice(line);
        }
    }
    is_for_the_server(&commands)?;
    Ok((commands, key))
}

/// Before a connection to a database whose name has more than letters.
const ENCODING: &[u8] = b"\\encoding SQL_ASCII";
const PROPERTIES: &[u8] = b"; Type: DATABASE PROPERTIES; ";
const LAST: &[u8] = b"-- PostgreSQL database dump complete";

/// Longer lines than this are none of those that count, but for the beginning and end of a copy's.
const SHORT: usize = 1024;

/// Passes on what is in a database, without the transactions that `pg_dump` puts large objects in: all of it is in one. And without
/// the lines that open and close `psql`'s restricted mode with the dump's own key.
///
/// Invariant: no line of a copy is touched. No line is held that is longer than [`SHORT`].
pub struct OneTransaction<W> {
    out: W,
    /// Lines that are for `psql`, with the dump's own key.
    left_out: Vec<Vec<u8>>,
    /// The line under way; of a long one, its last bytes.
    line: Vec<u8>,
    /// The line under way is long: it was passed on, but for `line`.
    long: bool,
    /// … and begins as a copy does.
    long_copy: bool,
    state: Within,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Commands,
    Copy,
    LargeObjects,
}

impl<W: Write> OneTransaction<W> {
    pub fn new(out: W, key: Option<&[u8]>) -> Self {
        let of = |key: &[u8]| [&b"\\restrict "[..], b"\\unrestrict "].map(|command| [command, key].concat());
        let left_out = key.map(of).into_iter().flatten().collect();
        Self { out, left_out, line: Vec::new(), long: false, long_copy: false, state: Within::Commands }
    }

    /// Gives back where it wrote to, with the last line in it.
    pub fn end(mut self) -> (W, io::Result<()>) {
        let wrote = self.checked().and_then(|()| self.out.write_all(&self.line));
        (self.out, wrote)
    }

    /// What is held of a line that was passed on is longer than the command, so that none is overlooked in between.
    fn checked(&mut self) -> io::Result<()> {
        is_for_the_server(&self.line).inspect_err(|_| self.line.clear())
    }

    /// `piece` belongs to the line under way, whole if it ends with a newline.
    fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        self.line.extend_from_slice(piece);
        if self.line.ends_with(b"\n") {
            if !self.ended() {
                self.checked()?;
                self.out.write_all(&self.line)?;
            }
            self.line.clear();
            self.long = false;
            return Ok(());
        }
        if self.line.len() > SHORT {
            if !self.long {
                (self.long, self.long_copy) = (true, self.line.starts_with(COPY));
            }
            self.checked()?;
            let passed = self.line.len() - COPY_END.len();
            self.out.write_all(&self.line[..passed])?;
            self.line.drain(..passed);
        }
        Ok(())
    }

    /// What the line that ended changes; true if it is left out.
    fn ended(&mut self) -> bool {
        let line = &self.line[..self.line.len() - 1];
        let copy = line.ends_with(COPY_END) && if self.long { self.long_copy } else { line.starts_with(COPY) };
        self.state = match self.state {
            Within::Copy if !self.long && line == b"\\." => Within::Commands,
            Within::Copy => Within::Copy,
            _ if !self.long && self.left_out.iter().any(|other| other == line) => return true,
            _ if copy => Within::Copy,
            _ if self.long => Within::Commands,
            Within::Commands if line.starts_with(b"-- Data for Name: ") && contains(line, LARGE) => {
                Within::LargeObjects
            }
            Within::LargeObjects if matches!(line, b"BEGIN;" | b"COMMIT;") => return true,
            Within::LargeObjects
                if matches!(line, b"" | b"--")
                    || line.starts_with(b"SELECT pg_catalog.lo")
                    || contains(line, LARGE) =>
            {
                Within::LargeObjects
            }
            Within::LargeObjects | Within::Commands => Within::Commands,
        };
        false
    }
}

const COPY: &[u8] = b"COPY ";
const COPY_END: &[u8] = b" FROM stdin;";
const LARGE: &[u8] = b"; Type: BLOBS; ";

fn contains(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len()).any(|part| part == text)
}

impl<W: Write> Write for OneTransaction<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.take(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: &str =
        "--\n-- Name: shop; Type: DATABASE; Schema: -; Owner: a\n--\n\nCREATE DATABASE shop;\n\\connect shop\n";
    const PROPERTY: &str = "--\n-- Name: shop; Type: DATABASE PROPERTIES; Schema: -; Owner: a\n--\n\
        ALTER DATABASE shop SET work_mem TO '9MB';\n\\connect shop\n";
    const TABLE: &str = "SET row_security = off;\n\n--\n-- Name: goods; Type: TABLE; Schema: public; Owner: a\n--\n\
        CREATE FUNCTION f() AS '\n\\connect other\n';\n";

    #[test]
    fn the_head_ends_behind_the_last_connection_before_the_first_object() {
        for head_of in [MADE.to_owned(), format!("{MADE}{PROPERTY}")] {
            assert_eq!(head(head_of.as_bytes()), None, "more may come");
            for rest in [TABLE, "--\n-- PostgreSQL database dump complete\n--\n"] {
                assert_eq!(head(format!("{head_of}{rest}").as_bytes()), Some(head_of.len()));
            }
        }
        assert_eq!(head(TABLE.replace("\\connect", "connect").as_bytes()), None);
        assert_eq!(head(b""), None);
    }

    #[test]
    fn what_is_for_psql_does_not_reach_it() {
        let head =
            format!("--\n\\restrict k3y\n\nSET a = b;\n{MADE}\\unrestrict k3y\n{PROPERTY}\\restrict k3y\n\\! id\n");
        assert!(commands(format!("{head}SELECT 1 \\unrestrict `id`\n").as_bytes()).is_err());
        assert!(commands(format!("{head}\\unres\0x\n").as_bytes()).is_err());
        let (commands, key) = commands(head.as_bytes()).unwrap();
        assert_eq!(key.as_deref(), Some(&b"k3y"[..]));
        let commands = String::from_utf8(commands).unwrap();
        assert!(!commands.contains("strict") && !commands.contains("connect"), "{commands}");
        // What no dump has goes to psql, which refuses it.
        assert!(
            commands.contains("CREATE DATABASE shop;\n")
                && commands.contains("'9MB';\n")
                && commands.ends_with("\\! id\n")
        );
    }

    #[test]
    fn nothing_leaves_the_restricted_mode() {
        let long = "x".repeat(3 * SHORT);
        for bad in [
            "\\unrestrict `id`\n".to_owned(),
            "\\unrestrict k3y `id`\n".into(),
            "SELECT 1 \\unrestrict `id`\n".into(),
            format!("SELECT '{long}' \\unrestrict `id`\n"),
            format!("{long}\\unrestrict `id`{long}\n"),
            "\\unres\0junk\ntrict `id`\n".into(),
            "COPY t FROM stdin;\n\\unrestrict `id`\n\\.\n".into(),
            "SELECT 1 \\unrestrict `id`".into(),
        ] {
            for piece in [1, 7, 4096, usize::MAX] {
                let mut filter = OneTransaction::new(Vec::new(), Some(b"k3y"));
                let wrote = bad.as_bytes().chunks(piece.min(bad.len())).try_for_each(|piece| filter.write_all(piece));
                let (out, ended) = filter.end();
                assert!(wrote.and(ended).is_err(), "{bad}");
                assert!(!contains(&out, LEAVE) && !out.contains(&0), "{bad}");
            }
        }
    }

    fn passed(dump: &str, piece: usize) -> String {
        let mut filter = OneTransaction::new(Vec::new(), Some(b"k3y"));
        dump.as_bytes().chunks(piece).for_each(|piece| filter.write_all(piece).unwrap());
        String::from_utf8(filter.end().0).unwrap()
    }

    #[test]
    fn large_objects_come_in_the_same_transaction() {
        const BEGIN: &str = "BEGIN;\n\nSELECT pg_catalog.lo_open('1', 131072);\nSELECT pg_catalog.lowrite(0, '\\x00');\n\
            SELECT pg_catalog.lo_close(0);\n\nCOMMIT;\n";
        let header = "--\n-- Data for Name: BLOBS; Type: BLOBS; Schema: -; Owner: -\n--\n\n";
        let inner = BEGIN.replace("BEGIN;\n", "").replace("COMMIT;\n", "");
        let columns = "a, ".repeat(SHORT);
        for copy in ["COPY public.t (a) FROM stdin;\n".to_owned(), format!("COPY public.t ({columns}b) FROM stdin;\n")]
        {
            // A table may hold the lines of a dump.
            let rows = format!("{}\n{header}{BEGIN}{}\\.x\n\\\\.\n\\.\n", "r".repeat(3 * SHORT), "r\n".repeat(9));
            let rest = format!("{header}{}CREATE FUNCTION f() AS '\nBEGIN;\nCOMMIT;\n'", "\n");
            for piece in [1, 7, 4096, usize::MAX] {
                let mode = "\\unrestrict k3y\n\\restrict k3y\n";
                let rest = format!("{rest};\n\\restrict other\n");
                let dump = format!("{mode}SET a = b;\n{copy}{rows}{header}{BEGIN}{rest}{mode}");
                assert_eq!(passed(&dump, piece), format!("SET a = b;\n{copy}{rows}{header}{inner}{rest}"), "{piece}");
            }
        }
    }
}
