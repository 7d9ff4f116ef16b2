//! What a path in a data directory says of its file.

/// Files with numbers from here on belong to what users created (`FirstNormalObjectId`); they hold for the catalogues of
/// a new database below.
const FIRST_OF_USERS: u32 = 16_384;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A relation's first file, of something that a user created.
    UserRelation,
    /// Other files in pages of the server's block size.
    Pages,
    /// Anything else.
    Content,
}

/// Source: "Database File Layout" in PostgreSQL's documentation.
pub fn holds(path: &str) -> Holds {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["global", file] | ["base", _, file] | ["pg_tblspc", _, _, _, file] => relation(file),
        // Statuses of transactions, in segments of up to 32 pages.
        ["pg_xact" | "pg_commit_ts", file] | ["pg_multixact", "members" | "offsets", file]
            if file.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            Holds::Pages
        }
        _ => Holds::Content,
    }
}

/// `NUMBER[_FORK][.SEGMENT]`
fn relation(file: &str) -> Holds {
    let (stem, segment) = file.split_once('.').map_or((file, None), |(stem, segment)| (stem, Some(segment)));
    let (number, fork) = stem.split_once('_').map_or((stem, None), |(number, fork)| (number, Some(fork)));
    let Ok(number) = number.parse::<u32>() else { return Holds::Content };
    match (fork, segment) {
        (None, None) if number >= FIRST_OF_USERS => Holds::UserRelation,
        (None | Some("fsm" | "vm" | "init"), None) => Holds::Pages,
        (None | Some("fsm" | "vm" | "init"), Some(segment)) if segment.parse::<u32>().is_ok() => Holds::Pages,
        _ => Holds::Content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_told_from_other_files() {
        for (path, expected) in [
            ("base/5/1259", Holds::Pages),
            ("base/16384/1259", Holds::Pages),
            ("base/5/16385", Holds::UserRelation),
            ("base/5/16385.1", Holds::Pages),
            ("base/5/16385_fsm", Holds::Pages),
            ("base/5/16385_vm.2", Holds::Pages),
            ("base/5/16385_init", Holds::Pages),
            ("pg_tblspc/16390/PG_15_202209061/5/16391", Holds::UserRelation),
            ("global/1262", Holds::Pages),
            ("global/pg_control", Holds::Content),
            ("base/5/pg_filenode.map", Holds::Content),
            ("base/5/PG_VERSION", Holds::Content),
            ("base/5/16385_other", Holds::Content),
            ("base/5/16385.old", Holds::Content),
            ("pg_xact/0000", Holds::Pages),
            ("pg_multixact/members/0000", Holds::Pages),
            ("pg_wal/000000010000000000000002", Holds::Content),
            ("postgresql.conf", Holds::Content),
        ] {
            assert_eq!(holds(path), expected, "{path}");
        }
    }
}
