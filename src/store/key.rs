//! Which keys exist: the same rule for every store, so that what one takes every other takes too.
//!
//! A key is one or more parts joined by `/`. A part is printable ASCII without space and backslash, at most 200 bytes,
//! and does not begin with a dot: no key can climb out of a directory or name what a directory store keeps for itself.

use super::{Result, StoreError, StoreErrorKind};

const MAX_KEY: usize = 800;
const MAX_PART: usize = 200;

#[derive(Debug, thiserror::Error)]
#[error("not a valid key: parts of printable ASCII, joined by '/', none of them empty or beginning with a dot")]
struct InvalidKey;

/// # Errors
/// `Other` if `key` cannot name an object.
pub(crate) fn check_key(action: &'static str, key: &str) -> Result<()> {
    if key.len() <= MAX_KEY && key.split('/').all(is_part) { Ok(()) } else { Err(invalid(action, key)) }
}

/// # Errors
/// `Other` if no key begins with `prefix`.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    let (parents, last) = prefix.rsplit_once('/').map_or((None, prefix), |(parents, last)| (Some(parents), last));
    let valid = prefix.len() <= MAX_KEY
        && parents.is_none_or(|parents| parents.split('/').all(is_part))
        && (last.is_empty() || is_part(last));
    if valid { Ok(()) } else { Err(invalid("list", prefix)) }
}

pub(crate) fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= MAX_PART
        && !part.starts_with('.')
        && part.bytes().all(|b| b.is_ascii_graphic() && b != b'\\' && b != b'/')
}

fn invalid(action: &'static str, key: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Other, action, format!("{key:?}")).because(InvalidKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cannot_leave_the_store() {
        for good in ["a", "a/b", "_check/1f/x", "lifeboat.json", "db/packs/0a", "x/y..z"] {
            assert!(check_key("read", good).is_ok(), "{good}");
        }
        let long = "a/".repeat(500) + "a";
        for bad in
            ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", ".tmp/a", "a/.b", "a b", "a\\b", "é"]
        {
            assert!(check_key("read", bad).is_err(), "{bad}");
        }
        assert!(check_key("read", &long).is_err());
        assert!(check_key("read", "a\0b").is_err());
    }

    #[test]
    fn prefixes_may_end_anywhere_in_a_key() {
        for good in ["", "a", "a/", "a/b", "a/b/"] {
            assert!(check_prefix(good).is_ok(), "{good}");
        }
        for bad in ["/", "/a", "..", "../", "a/../", "a//", ".tmp", "a/."] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
    }
}
