//! Where the head of a dump ends: what makes the database, and so cannot be in a transaction.
//!
//! `pg_dump --create` writes the command that makes the database, `\connect`, perhaps its properties and `\connect` again,
//! and then what is in it.

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
        let properties = line.windows(PROPERTIES.len()).any(|part| part == PROPERTIES);
        let begins = line.starts_with(b"-- Name: ") && !properties || line == LAST;
        if begins && end.is_some() {
            return end;
        }
    }
    None
}

const PROPERTIES: &[u8] = b"; Type: DATABASE PROPERTIES; ";
const LAST: &[u8] = b"-- PostgreSQL database dump complete";

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
}
