//! `lifeboat diff REF REF`: by names, metadata and the ids of contents; contents themselves are not read, except for those of
//! Helm's releases.

mod releases;

use super::context::{Context, Use};
use super::fault::{Exit, Failure};
use super::ls::describe;
use super::output::{bytes, name, print, print_json};
use super::reference::Reference;
use crate::entry::{Entry, Kind};
use crate::repo::{Catalogue, Item, Reader, RepoError};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    /// The earlier snapshot: SOURCE[@latest | @TIME | @NUMBER | @ID]
    #[arg(value_name = "REF")]
    from: Reference,
    /// The later snapshot
    #[arg(value_name = "REF")]
    to: Reference,
}

enum Change {
    Added(Entry),
    Removed(Entry),
    Changed(Entry, Vec<&'static str>),
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let opened = context.open(Use::Read).await?;
    let access = context.access_to_contents(&opened)?;
    let (lineage, snapshot) = args.from.find(&opened, &access).await?;
    let from = Arc::new(Reader::open(lineage, snapshot).await?);
    let (lineage, snapshot) = args.to.find(&opened, &access).await?;
    let to = Arc::new(Reader::open(lineage, snapshot).await?);
    let (changes, not_compared) = changes(&from, &to).await?;
    let facts = facts(from.catalogue(), to.catalogue());
    let rewritten: BTreeSet<_> = changes.iter().map(|change| &entry(change).path[..]).collect();
    let releases = releases::compare(&from, &to, &rewritten).await?;
    if context.globals.json {
        let all: Vec<_> = changes.iter().map(document).collect();
        let mut document = json!({ "changes": all, "facts": facts, "contentsNotCompared": not_compared });
        if !releases.is_empty() {
            document["releases"] = releases.iter().map(releases::Compared::document).collect();
        }
        print_json(&document)?;
        return Ok(Exit::Ok);
    }
    let mut text: String = changes.iter().map(line).collect();
    let count = |wanted: fn(&Change) -> bool| changes.iter().filter(|c| wanted(c)).count();
    let (added, removed) = (count(|c| matches!(c, Change::Added(_))), count(|c| matches!(c, Change::Removed(_))));
    for (label, was, is) in &facts {
        text += &format!("{label}: {was} -> {is}\n");
    }
    for release in &releases {
        text += &release.text().lines().map(|line| name(line.as_bytes()) + "\n").collect::<String>();
    }
    let differ = changes.len() - added - removed;
    let (was, is) = (bytes(from.catalogue().bytes), bytes(to.catalogue().bytes));
    text += &format!("{added} added, {removed} removed, {differ} changed; {was} -> {is}\n");
    if not_compared > 0 {
        text += &format!(
            "the contents of {not_compared} files that kept their size were not compared: other keys made their ids\n"
        );
    }
    print(&text)?;
    Ok(Exit::Ok)
}

/// Two files of one name and one size, whose contents lie in different places.
struct Pair {
    old: Item,
    new: Item,
    what: Vec<&'static str>,
}

/// What differs, and how many contents could not be compared.
async fn changes(from: &Reader, to: &Reader) -> Result<(Vec<Change>, usize), RepoError> {
    let mut before: HashMap<Vec<u8>, Item> = HashMap::new();
    from.segments_unlike::<RepoError>(to, |items| {
        before.extend(items.into_iter().map(|item| (item.entry.path.clone(), item)));
        Ok(())
    })
    .await?;
    let (mut changes, mut pairs) = (Vec::new(), Vec::new());
    to.segments_unlike::<RepoError>(from, |items| {
        for new in items {
            let Some(old) = before.remove(&new.entry.path) else {
                changes.push(Change::Added(new.entry));
                continue;
            };
            let what = differences(&old.entry, &new.entry);
            let file = |item: &Item| item.entry.kind == Kind::File;
            let same_size = file(&old) && file(&new) && old.entry.size == new.entry.size;
            if same_size && !from.same_chunks(&old, to, &new) {
                pairs.push(Pair { old, new, what });
            } else if !what.is_empty() {
                changes.push(Change::Changed(new.entry, what));
            }
        }
        Ok(())
    })
    .await?;
    changes.extend(before.into_values().map(|item| Change::Removed(item.entry)));
    let mut not_compared = 0;
    for Pair { old, new, mut what } in pairs {
        match from.same_content(&old, to, &new).await? {
            Some(true) => {}
            Some(false) => what.push("content"),
            None => not_compared += 1,
        }
        if !what.is_empty() {
            changes.push(Change::Changed(new.entry, what));
        }
    }
    changes.sort_by(|a, b| entry(a).path.cmp(&entry(b).path));
    Ok((changes, not_compared))
}

fn differences(a: &Entry, b: &Entry) -> Vec<&'static str> {
    let pairs = [
        ("kind", a.kind != b.kind || a.rdev != b.rdev),
        ("size", a.size != b.size),
        ("time", a.mtime_ns != b.mtime_ns),
        ("mode", a.mode != b.mode),
        ("owner", (a.uid, a.gid) != (b.uid, b.gid)),
        ("link", a.link != b.link),
        ("attributes", a.xattrs != b.xattrs),
    ];
    pairs.into_iter().filter_map(|(what, differs)| differs.then_some(what)).collect()
}

/// What the systems said of themselves, where it differs.
fn facts(a: &Catalogue, b: &Catalogue) -> Vec<(&'static str, Value, Value)> {
    let all = [
        ("system", json!(a.facts.system), json!(b.facts.system)),
        ("position", json!(a.facts.position), json!(b.facts.position)),
        ("objects", json!(a.facts.objects), json!(b.facts.objects)),
    ];
    all.into_iter().filter(|(_, was, is)| was != is).collect()
}

fn entry(change: &Change) -> &Entry {
    match change {
        Change::Added(entry) | Change::Removed(entry) | Change::Changed(entry, _) => entry,
    }
}

fn line(change: &Change) -> String {
    let path = name(&entry(change).path);
    match change {
        Change::Added(_) => format!("+ {path}\n"),
        Change::Removed(_) => format!("- {path}\n"),
        Change::Changed(_, what) => format!("M {path} ({})\n", what.join(", ")),
    }
}

fn document(change: &Change) -> Value {
    let (kind, what): (_, &[&str]) = match change {
        Change::Added(_) => ("added", &[]),
        Change::Removed(_) => ("removed", &[]),
        Change::Changed(_, what) => ("changed", what),
    };
    json!({ "change": kind, "what": what, "entry": describe(entry(change)) })
}
