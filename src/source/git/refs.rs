//! What a repository says it holds: the names of its branches, tags and notes, and what each of them is.

use super::program::Program;
use crate::source::{Context, SourceError};
use std::collections::BTreeMap;

pub(super) const BRANCHES: &str = "refs/heads/";

/// Ids by the full names of the refs.
pub(super) type Refs = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Advertised {
    /// The branch that `HEAD` names.
    pub head: Option<String>,
    pub refs: Refs,
}

/// Asks the repository at the document's URL; all is of one moment.
pub(super) fn advertised(context: &Context, git: &Program) -> Result<Advertised, SourceError> {
    let answer = git.ask(context, "list the refs", &["ls-remote", "--symref", "--", &git.url])?;
    parse(&answer).ok_or_else(|| SourceError::Server {
        action: "list the refs",
        server: git.url.clone(),
        text: "the answer is not git's".into(),
    })
}

/// What the program's own repository holds.
pub(super) fn held(context: &Context, git: &Program) -> Result<Refs, SourceError> {
    let answer = git.ask(context, "list what was fetched", &["for-each-ref", "--format=%(objectname)%09%(refname)"])?;
    Ok(parse(&answer).unwrap_or_default().refs)
}

fn parse(answer: &str) -> Option<Advertised> {
    let mut found = Advertised::default();
    for line in answer.lines() {
        let (id, name) = line.split_once('\t')?;
        if let Some(target) = id.strip_prefix("ref: ") {
            if name == "HEAD" {
                found.head = Some(target.to_owned());
            }
        } else if name.starts_with("refs/") && !name.ends_with("^{}") {
            is_id(id).then_some(())?;
            found.refs.insert(name.to_owned(), id.to_owned());
        }
    }
    Some(found)
}

pub(super) fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let answer = format!(
            "ref: refs/heads/main\tHEAD\n{a}\tHEAD\n{a}\trefs/heads/main\n{b}\trefs/tags/v1\n{a}\trefs/tags/v1^{{}}\n"
        );
        let found = parse(&answer).unwrap();
        assert_eq!(found.head.as_deref(), Some("refs/heads/main"));
        assert_eq!(found.refs, Refs::from([("refs/heads/main".into(), a), ("refs/tags/v1".into(), b)]));
        assert_eq!(parse(""), Some(Advertised::default()));
        assert_eq!(parse("<html>"), None);
        assert_eq!(parse("abc\trefs/heads/main"), None);
    }
}
