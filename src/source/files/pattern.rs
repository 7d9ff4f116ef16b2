//! Include and exclude patterns, in the manner of .gitignore: a pattern without a slash (other than at its end) matches
//! at any depth, one with a slash is relative to the root, `*` does not cross a slash, `**` does, and a trailing slash
//! matches directories only. There is no negation.

use crate::source::SourceError;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[derive(Debug)]
pub struct Patterns {
    any: GlobSet,
    directories: GlobSet,
}

impl Patterns {
    pub fn new(patterns: &[String]) -> Result<Self, SourceError> {
        let (mut any, mut directories) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let bad = |why: String| SourceError::Spec { what: format!("the pattern {pattern:?} is not valid: {why}") };
            let body = pattern.strip_suffix('/').unwrap_or(pattern);
            let anchored = body.contains('/');
            let body = body.strip_prefix('/').unwrap_or(body);
            if body.is_empty() {
                return Err(bad("it is empty".to_owned()));
            }
            let body = if anchored { body.to_owned() } else { format!("**/{body}") };
            let glob = GlobBuilder::new(&body)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| bad(error.kind().to_string()))?;
            if pattern.ends_with('/') { &mut directories } else { &mut any }.add(glob);
        }
        let build = |builder: &GlobSetBuilder| {
            builder.build().map_err(|error| SourceError::Spec { what: format!("the patterns are not valid: {error}") })
        };
        Ok(Self { any: build(&any)?, directories: build(&directories)? })
    }

    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.directories.is_empty()
    }

    pub fn is_match(&self, path: &[u8], directory: bool) -> bool {
        let path = OsStr::from_bytes(path);
        (!self.any.is_empty() && self.any.is_match(path))
            || (directory && !self.directories.is_empty() && self.directories.is_match(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_like_gitignore() {
        for (pattern, path, directory, expected) in [
            ("*.log", "a.log", false, true),
            ("*.log", "deep/down/a.log", false, true),
            ("*.log", "a.log.gz", false, false),
            ("/a.log", "a.log", false, true),
            ("/a.log", "x/a.log", false, false),
            ("x/*.log", "x/a.log", false, true),
            ("x/*.log", "x/y/a.log", false, false),
            ("x/**/*.log", "x/y/z/a.log", false, true),
            ("cache/", "cache", true, true),
            ("cache/", "a/cache", true, true),
            ("cache/", "cache", false, false),
            ("a/cache/", "b/a/cache", true, false),
            ("[ab]", "b", false, true),
            (r"\*", "*", false, true),
            (r"\*", "x", false, false),
        ] {
            let patterns = Patterns::new(&[pattern.to_owned()]).unwrap();
            assert_eq!(patterns.is_match(path.as_bytes(), directory), expected, "{pattern} on {path}");
        }
        assert!(Patterns::new(&["*.b".to_owned()]).unwrap().is_match(b"\xff.b", false));
        for bad in ["", "/", "[", "a{"] {
            assert!(Patterns::new(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }
}
