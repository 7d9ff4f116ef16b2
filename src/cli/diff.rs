//! `lifeboat diff REF REF`: by names and metadata; contents are not read.

use super::context::{Context, Use};
use super::fault::{Exit, Failure};
use super::ls::describe;
use super::output::{bytes, name, print, print_json};
use super::reference::Reference;
use crate::entry::Entry;
use crate::repo::{Catalogue, Reader, RepoError};
use serde_json::{Value, json};
use std::collections::HashMap;

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
    let from = Reader::open(lineage, snapshot).await?;
    let (lineage, snapshot) = args.to.find(&opened, &access).await?;
    let to = Reader::open(lineage, snapshot).await?;
    let changes = changes(&from, &to).await?;
    let facts = facts(from.catalogue(), to.catalogue());
    if context.globals.json {
        let all: Vec<_> = changes.iter().map(document).collect();
        print_json(&json!({ "changes": all, "facts": facts }))?;
        return Ok(Exit::Ok);
    }
    let mut text: String = changes.iter().map(line).collect();
    let count = |wanted: fn(&Change) -> bool| changes.iter().filter(|c| wanted(c)).count();
    let (added, removed) = (count(|c| matches!(c, Change::Added(_))), count(|c| matches!(c, Change::Removed(_))));
    for (label, was, is) in &facts {
        text += &format!("{label}: {was} -> {is}\n");
    }
    let differ = changes.len() - added - removed;
    let (was, is) = (bytes(from.catalogue().bytes), bytes(to.catalogue().bytes));
    text += &format!("{added} added, {removed} removed, {differ} changed; {was} -> {is}\n");
    print(&text)?;
    Ok(Exit::Ok)
}

async fn changes(from: &Reader, to: &Reader) -> Result<Vec<Change>, RepoError> {
    let mut before: HashMap<Vec<u8>, Entry> =
        from.items().await?.into_iter().map(|item| (item.entry.path.clone(), item.entry)).collect();
    let mut changes = Vec::new();
    to.segments::<RepoError>(|items| {
        for entry in items.into_iter().map(|item| item.entry) {
            match before.remove(&entry.path) {
                None => changes.push(Change::Added(entry)),
                Some(old) => {
                    let what = differences(&old, &entry);
                    if !what.is_empty() {
                        changes.push(Change::Changed(entry, what));
                    }
                }
            }
        }
        Ok(())
    })
    .await?;
    changes.extend(before.into_values().map(Change::Removed));
    changes.sort_by(|a, b| entry(a).path.cmp(&entry(b).path));
    Ok(changes)
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
