//! Pushing what was captured to a repository: one that is there, or a bare one that is made at a local path.
//!
//! The bundle becomes a repository in a temporary directory, and what the target has that is not in it is fetched, so that
//! the plan knows what a push would lose. Every ref is pushed on the condition that it is still what the plan saw.

use super::bundle::{BUNDLE, HEAD, Parts};
use super::program::Program;
use super::refs::{self, Advertised, BRANCHES, Refs};
use super::{OBJECT_FORMAT, Place, Spec, sound};
use crate::entry::{Body, Supply};
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, SourceError};
use std::io;
use std::path::PathBuf;

/// Where the copy keeps what the target has.
const THERE: &str = "refs/lifeboat-target/";
const UNPACK: &str = "unpack the snapshot";
/// Refs of one push: they are arguments.
const BATCH: usize = 200;

pub struct Restoring {
    spec: Spec,
    options: Options,
    /// Made by the plan.
    ready: Option<Ready>,
}

struct Ready {
    git: Program,
    /// How ids are made.
    format: String,
    captured: Advertised,
    there: Advertised,
    /// Nothing is there, and this is where a bare repository is to be made.
    make: Option<PathBuf>,
}

impl Restoring {
    pub fn new(spec: Spec, options: Options) -> Result<Self, SourceError> {
        sound(&spec)?;
        Ok(Self { spec, options, ready: None })
    }

    /// The path of the document, if nothing is there.
    fn vacant(&self) -> Option<PathBuf> {
        let Some(Place::Local(path)) = self.spec.place() else { return None };
        match std::fs::read_dir(&path) {
            Ok(mut entries) => entries.next().is_none().then_some(path),
            Err(error) => (error.kind() == io::ErrorKind::NotFound).then_some(path),
        }
    }

    /// What becomes of a ref. `lost`: how many commits there would be no more.
    fn action(&self, name: &str, lost: u64) -> Action {
        match self.options.existing {
            Existing::Skip => Action::Skip,
            Existing::Replace if lost > 0 || !name.starts_with(BRANCHES) => Action::Replace,
            Existing::Update if lost > 0 => Action::Conflict(format!(
                "{lost} commits there are not in the snapshot; --existing replace takes it back to what was captured"
            )),
            Existing::Update if !name.starts_with(BRANCHES) => {
                Action::Conflict("it is something else there; --existing replace takes it back".into())
            }
            Existing::Update | Existing::Replace => Action::Update,
        }
    }

    fn changes(&self, context: &Context, ready: &Ready) -> Result<Vec<Change>, SourceError> {
        let Ready { git, captured, there, .. } = ready;
        let mut changes = Vec::new();
        for (name, id) in &captured.refs {
            context.go_on()?;
            let action = match there.refs.get(name) {
                None => Action::Create,
                Some(now) if now == id => Action::Unchanged,
                Some(now) => self.action(name, lost(context, git, now, id)?),
            };
            changes.push(Change { what: name.clone(), action });
        }
        if let (Some(head), Some(Place::Local(_))) = (&captured.head, self.spec.place()) {
            let action = match &there.head {
                Some(now) if now == head => Action::Unchanged,
                // Git itself names a branch in an empty repository.
                _ if there.refs.is_empty() => Action::Create,
                _ if self.options.existing == Existing::Skip => Action::Skip,
                _ => Action::Update,
            };
            changes.push(Change { what: HEAD.into(), action });
        }
        Ok(changes)
    }
}

/// How many commits the one has that the other has not; 1 if they are no commits.
fn lost(context: &Context, git: &Program, now: &str, captured: &str) -> Result<u64, SourceError> {
    let range = [now, &format!("^{captured}")];
    if !git.holds(context, &["rev-parse", "--quiet", "--verify", &format!("{now}^{{commit}}")])? {
        return Ok(1);
    }
    let count = git.ask(
        context,
        "compare the snapshot with the repository",
        &["rev-list", "--count", range[0], range[1], "--"],
    )?;
    Ok(count.trim().parse().unwrap_or(1))
}

/// Makes the temporary repository what the snapshot holds.
fn unbundle(context: &Context, git: &Program, supply: &dyn Supply) -> Result<Advertised, SourceError> {
    let (mut head, mut found) = (Vec::new(), None);
    let read = supply.entries(&mut |entry, body| {
        match &entry.path[..] {
            path if path == HEAD.as_bytes() && entry.size < 4096 => body.copy(&mut head)?,
            path if path == BUNDLE.as_bytes() => found = Some(index(context, git, body)?),
            _ => {}
        }
        Ok(())
    });
    let snapshot = |source| SourceError::Snapshot { what: "the repository".into(), source };
    read.map_err(|error| error.downcast::<SourceError>().unwrap_or_else(snapshot))?;
    let invalid = || snapshot(io::Error::new(io::ErrorKind::InvalidData, format!("it holds no {BUNDLE}")));
    let refs: Refs = found.ok_or_else(invalid)?;
    let create: String = refs.iter().map(|(name, id)| format!("create {name} {id}\n")).collect();
    git.tell(context, UNPACK, &["update-ref", "--stdin"], &create)?;
    git.ask(context, "examine the snapshot", &["fsck", "--connectivity-only", "--no-dangling", "--no-progress"])?;
    let head = String::from_utf8(head).ok();
    let head = head.and_then(|text| Some(text.trim().strip_prefix("ref: ")?.to_owned()));
    Ok(Advertised { head, refs })
}

/// Gives the bundle's pack to git, and its refs back.
fn index(context: &Context, git: &Program, body: &dyn Body) -> io::Result<Refs> {
    let failed = |error| io::Error::other(git.failed(context, UNPACK, &error));
    let running = git.command(context, &["index-pack", "--stdin"]).start_fed().map_err(failed)?;
    let mut parts = Parts::new(running);
    let copied = body.copy(&mut parts);
    let (refs, mut running) = parts.finish();
    match copied {
        // Its own end tells why it ended early.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => running.close(),
    }
    let refs = refs.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not a git bundle"))?;
    running.wait().map_err(failed)?;
    Ok(refs)
}

impl Target for Restoring {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        let git = Program::new(&self.spec)?;
        let make = self.vacant();
        let there = if make.is_some() { Advertised::default() } else { refs::advertised(context, &git)? };
        let facts = supply.facts();
        let format = facts.details.get(OBJECT_FORMAT).map_or("sha1", String::as_str).to_owned();
        git.init(context, &format)?;
        let captured = unbundle(context, &git, supply)?;
        let differing = there.refs.iter().filter(|(name, id)| captured.refs.get(*name).is_some_and(|was| was != *id));
        let mut wanted: String = differing.map(|(name, _)| format!("+{name}:{THERE}{name}\n")).collect();
        let akin = there.refs.iter().any(|(name, id)| captured.refs.get(name) == Some(id));
        if wanted.is_empty() && !akin && !there.refs.is_empty() {
            wanted = format!("+refs/*:{THERE}refs/*\n");
        }
        if !wanted.is_empty() {
            git.tell(context, "fetch", &[&super::FETCH[..], &["--", &git.url]].concat(), &wanted)?;
        }
        if !akin && !there.refs.is_empty() {
            self.same_system(context, &git, facts.system.as_deref())?;
        }
        let further = there.refs.keys().filter(|name| !captured.refs.contains_key(*name)).count();
        let mut about = vec![match (&make, there.refs.len()) {
            (Some(_), _) => "nothing is there: a bare repository will be made".to_owned(),
            (None, 0) => "an empty repository is there".to_owned(),
            (None, number) => format!("a repository with {number} refs is there"),
        }];
        about.push(format!("the snapshot holds {} refs", captured.refs.len()));
        if further > 0 {
            about.push(format!("{further} refs that the snapshot does not hold stay as they are"));
        }
        let ready = Ready { git, format, captured, there, make };
        let plan = Plan { target: self.spec.url.clone(), about, changes: self.changes(context, &ready)? };
        self.ready = Some(ready);
        Ok(plan)
    }

    fn apply(&mut self, context: &Context, _supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        let Some(ready) = self.ready.take() else {
            return Err(SourceError::System {
                attempt: "restore a repository".into(),
                text: "it was not planned".into(),
                need: String::new(),
            });
        };
        let Ready { git, captured, format, make, .. } = &ready;
        if let Some(path) = make {
            git.make(context, path, format)?;
        }
        let mut applied = Applied::default();
        let said = push(context, &ready, plan)?;
        if let (Some(head), Some(Place::Local(path))) = (&captured.head, self.spec.place())
            && plan.changes.iter().any(|change| change.what == HEAD && writes(&change.action))
        {
            git.name_head(context, &path, head)?;
        }
        // What a push says of itself is not enough.
        let now = refs::advertised(context, git)?;
        for Change { what, action } in &plan.changes {
            let right = match captured.refs.get(what) {
                Some(id) => now.refs.get(what) == Some(id),
                None => now.head == captured.head,
            };
            let action = match action {
                written if writes(written) && !right => Action::Conflict(refusal(what, &said)),
                other => other.clone(),
            };
            applied.changes.push(Change { what: what.clone(), action });
        }
        let right = captured.refs.iter().filter(|(name, id)| now.refs.get(*name) == Some(*id)).count();
        applied.checked.push(format!("{right} of {} refs are what the snapshot holds", captured.refs.len()));
        if let Some(head) = captured.head.as_ref().filter(|head| now.head.as_ref() != Some(head)) {
            let branch = head.strip_prefix(BRANCHES).unwrap_or(head);
            applied.to_do.push(format!("make {branch} the default branch, which cannot be pushed"));
        }
        Ok(applied)
    }
}

impl Restoring {
    /// Something of the captured history must be in what is there.
    fn same_system(&self, context: &Context, git: &Program, root: Option<&str>) -> Result<(), SourceError> {
        if self.options.foreign {
            return Ok(());
        }
        let pattern = format!("--glob={THERE}*");
        let roots =
            git.ask(context, "compare the snapshot with the repository", &["rev-list", "--max-parents=0", &pattern])?;
        let own = git.ask(
            context,
            "compare the snapshot with the repository",
            &["rev-list", "--max-parents=0", "--exclude", &format!("{THERE}*"), "--all"],
        )?;
        if roots.is_empty() || roots.lines().any(|id| own.lines().any(|own| own == id)) {
            return Ok(());
        }
        Err(SourceError::System {
            attempt: format!("restore into {}", git.url),
            text: format!(
                "another repository is there: it does not begin with the commit {}",
                root.unwrap_or("captured")
            ),
            need: "if its branches are to become the captured ones, add --foreign".into(),
        })
    }
}

fn writes(action: &Action) -> bool {
    matches!(action, Action::Create | Action::Update | Action::Replace)
}

/// Pushes what the plan says, the branch that clones begin with first: forges take the first one for that. Returns what
/// git said of what was refused.
fn push(context: &Context, ready: &Ready, plan: &Plan) -> Result<String, SourceError> {
    let Ready { git, captured, there, .. } = ready;
    let mut names: Vec<_> =
        plan.changes.iter().filter(|change| writes(&change.action) && change.what != HEAD).collect();
    names.sort_by_key(|change| Some(&change.what) != captured.head.as_ref());
    let first = usize::from(names.first().is_some_and(|change| Some(&change.what) == captured.head.as_ref()));
    let (first, others) = names.split_at(first);
    let mut said = String::new();
    for some in [first].into_iter().chain(others.chunks(BATCH)).filter(|some| !some.is_empty()) {
        let mut arguments = vec!["push".to_owned(), "--quiet".into(), "--no-verify".into()];
        for Change { what, .. } in some {
            let now = there.refs.get(what).map_or("", String::as_str);
            arguments.push(format!("--force-with-lease={what}:{now}"));
        }
        arguments.extend(["--".into(), git.url.clone()]);
        arguments.extend(some.iter().map(|change| format!("{0}:{0}", change.what)));
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        match git.ask(context, "push", &arguments) {
            Ok(_) => {}
            // Some refs were refused, and others may have been taken: what is there then says it.
            Err(SourceError::Server { text, .. }) if text.contains("! [") => said += &text,
            Err(error) => return Err(error),
        }
    }
    Ok(said)
}

/// The line that git wrote about a ref that was not taken.
fn refusal(name: &str, said: &str) -> String {
    let short = name.strip_prefix(BRANCHES).or(name.strip_prefix("refs/tags/")).unwrap_or(name);
    let line = said.lines().find(|line| line.contains('!') && line.contains(short)).or(said.lines().last());
    let line = line.unwrap_or("it is not what was pushed; did somebody else push meanwhile?");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
