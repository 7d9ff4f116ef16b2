//! What was fetched, examined: is it whole, whose is it, and what does it point at that a bundle does not hold.

use super::bundle::BUNDLE;
use super::program::Program;
use super::refs::{BRANCHES, Refs};
use super::sops;
use crate::entry::{Facts, Problem, Sink};
use crate::source::{Context, SourceError};
use std::collections::BTreeSet;

const EXAMINE: &str = "examine what was fetched";
/// So many branches and submodules are among the facts; all refs are in the bundle.
const NAMED: usize = 100;
/// So many trees are looked through at a time.
const TREES: usize = 200;
const ATTRIBUTES: &str = ":(glob)**/.gitattributes";
const POINTER: &str = "^version https://git-lfs.github.com/spec/v1";

pub(super) fn facts(
    context: &Context,
    git: &Program,
    head: Option<&str>,
    refs: &Refs,
    sink: &mut dyn Sink,
) -> Result<Facts, SourceError> {
    let mut facts = Facts { objects: Some(refs.len() as u64), ..Facts::default() };
    let details = &mut facts.details;
    let mut note = |name: &str, value: String| _ = details.insert(name.into(), value);
    note("url", git.url.clone());
    if let Some(malformed) = whole(context, git)? {
        note("malformed", malformed);
    }
    let branches = refs.iter().filter(|(name, _)| name.starts_with(BRANCHES));
    for (name, id) in branches.clone().take(NAMED) {
        note(&format!("branch {}", &name[BRANCHES.len()..]), id.clone());
    }
    note("branches", branches.count().to_string());
    note("tags", refs.keys().filter(|name| name.starts_with("refs/tags/")).count().to_string());
    note("git_objects", objects(context, git)?);
    let newest = git.ask(context, EXAMINE, &["log", "-1", "--all", "--format=%cI"])?;
    note("newest_commit", newest.trim().to_owned());
    let trees = trees(context, git)?;
    let modules = submodules(context, git, &trees)?;
    if !modules.is_empty() {
        let named: Vec<_> = modules.iter().take(NAMED).map(String::as_str).collect();
        note("submodules_not_captured", named.join(" "));
    }
    if let Some(pointers) = pointers(context, git, &trees)? {
        let text = format!("it uses Git LFS ({pointers}): the files that the pointers stand for are not captured");
        note("lfs_not_captured", pointers);
        sink.problem(Problem { path: BUNDLE.into(), text });
    }
    if let Some(head) = head {
        note("head", head.to_owned());
        if !refs.contains_key(head) {
            let text = format!("HEAD is {head}, which is not among what is captured");
            sink.problem(Problem { path: b"HEAD".to_vec(), text });
        }
    }
    let main = head.filter(|head| refs.contains_key(*head)).or_else(|| refs.keys().next().map(String::as_str));
    // It may be a tag of something that is no commit.
    if let Some(main) = main
        && git.holds(context, &["rev-parse", "--quiet", "--verify", &format!("{main}^{{commit}}")])?
    {
        let root = git.ask(context, EXAMINE, &["rev-list", "--first-parent", "--max-parents=0", main, "--"])?;
        facts.system = Some(root.trim().to_owned());
        facts.position = git.ask(context, EXAMINE, &["rev-list", "--count", main, "--"])?.trim().parse().ok();
        let told = search(context, git, &["-l", "-z", "-e", ""], &[main.to_owned()], &sops::FILES)?;
        facts.details.extend(sops::facts(context, git, &told)?);
    }
    Ok(facts)
}

/// Every object that a ref leads to is there and is what its id says. Some: what git does not like about how old objects
/// are written, which it reads all the same.
fn whole(context: &Context, git: &Program) -> Result<Option<String>, SourceError> {
    let all = ["fsck", "--full", "--no-dangling", "--no-progress"];
    let error = match git.ask(context, EXAMINE, &all) {
        Ok(_) => return Ok(None),
        Err(error @ SourceError::Server { .. }) => error,
        Err(ended) => return Err(ended),
    };
    if git.holds(context, &["fsck", "--connectivity-only", "--no-dangling", "--no-progress"])? {
        Ok(Some(error.to_string()))
    } else {
        Err(error)
    }
}

fn objects(context: &Context, git: &Program) -> Result<String, SourceError> {
    let counts = git.ask(context, EXAMINE, &["count-objects", "-v"])?;
    let number = |name: &str| counts.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Ok((number("count:").unwrap_or(0) + number("in-pack:").unwrap_or(0)).to_string())
}

/// The trees that the refs lead to, each once.
fn trees(context: &Context, git: &Program) -> Result<Vec<String>, SourceError> {
    let answer = git.ask(context, EXAMINE, &["for-each-ref", "--format=%(tree)%(*tree)"])?;
    let trees: BTreeSet<_> = answer.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Ok(trees.into_iter().collect())
}

/// What `git grep` finds in the trees; nothing if nothing matches.
fn search(
    context: &Context,
    git: &Program,
    how: &[&str],
    trees: &[String],
    paths: &[&str],
) -> Result<Vec<String>, SourceError> {
    let mut found = BTreeSet::new();
    for some in trees.chunks(TREES) {
        let some: Vec<_> = some.iter().map(String::as_str).collect();
        let arguments = [&["grep", "--threads=1"], how, &some, &["--"], paths].concat();
        let answer = git.find(context, EXAMINE, &arguments)?;
        found.extend(answer.split(['\n', '\0']).filter(|part| !part.is_empty()).map(str::to_owned));
    }
    Ok(found.into_iter().collect())
}

/// The addresses that `.gitmodules` names, without credentials.
fn submodules(context: &Context, git: &Program, trees: &[String]) -> Result<BTreeSet<String>, SourceError> {
    let lines = search(context, git, &["-h", "-e", "^[[:space:]]*url[[:space:]]*="], trees, &[".gitmodules"])?;
    let urls = lines.iter().filter_map(|line| Some(line.split_once('=')?.1.trim()));
    Ok(urls.map(without_credentials).collect())
}

fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit_once('@').map_or(host, |(_user, host)| host);
    format!("{scheme}://{host}/{path}")
}

/// How many files stand for something in Git LFS, and which is one; none if it is not used.
fn pointers(context: &Context, git: &Program, trees: &[String]) -> Result<Option<String>, SourceError> {
    let mark = ["-l", "-z", "-e", "filter=lfs"];
    let attributes = search(context, git, &mark, trees, &[ATTRIBUTES])?;
    let marked: BTreeSet<_> = attributes.iter().filter_map(|found| Some(found.split_once(':')?.0.to_owned())).collect();
    let marked: Vec<_> = marked.into_iter().collect();
    let files = search(context, git, &["-l", "-z", "-I", "-e", POINTER], &marked, &[])?;
    let files: BTreeSet<_> = files.iter().filter_map(|found| Some(found.split_once(':')?.1)).collect();
    Ok(files.first().map(|first| match files.len() {
        1 => format!("the pointer {first}"),
        number => format!("{number} pointers, {first} is one"),
    }))
}

#[cfg(test)]
mod tests {
    use super::without_credentials;

    #[test]
    fn addresses_are_told_without_credentials() {
        assert_eq!(without_credentials("https://me:secret@forge/a.git"), "https://forge/a.git");
        assert_eq!(without_credentials("https://forge/a@b"), "https://forge/a@b");
        assert_eq!(without_credentials("../a.git"), "../a.git");
    }
}
