//! `lifeboat snapshots [SOURCE]`

use super::context::{Context, Use};
use super::fault::{Exit, Failure, chain};
use super::output::{bytes, print, print_json, table, time};
use super::reference::{check_source, id};
use crate::id::{Sequence, SourceName};
use crate::repo::{Snapshot, State};
use serde_json::{Value, json};

#[derive(clap::Args)]
pub struct Args {
    /// Only this source
    #[arg(value_name = "SOURCE")]
    source: Option<SourceName>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let opened = context.open(Use::Read).await?;
    let access = context.access(&opened)?;
    let sources = match &args.source {
        Some(source) => vec![source.clone()],
        None => opened.repository.sources().await?,
    };
    let mut rows = vec![heading()];
    let (mut documents, mut notes) = (Vec::new(), Vec::new());
    let mut unsound = false;
    for source in sources {
        let (snapshots, stepped_over) = opened.lineage(&source, &access).snapshots().await?;
        // Not before: whoever may list one source's objects only can still list its snapshots.
        if args.source.is_some() && snapshots.is_empty() && stepped_over.is_empty() {
            check_source(&opened.repository, &source).await?;
        }
        rows.extend(snapshots.iter().map(|s| row(&source, s)));
        documents.extend(snapshots.iter().map(|s| describe(&source, s)));
        unsound |= !stepped_over.is_empty();
        for step in stepped_over {
            let why = chain(&step.error).join(": ");
            notes.push(format!("! {source}@{} does not count: {why}\n", step.sequence));
            documents
                .push(json!({"source": source.as_str(), "number": step.sequence.0, "state": "unsound", "error": why}));
        }
    }
    if context.globals.json {
        let repository = opened.repository.root().id.to_string();
        print_json(&json!({ "repository": repository, "snapshots": documents }))?;
    } else if rows.len() == 1 && notes.is_empty() {
        print(&format!("no snapshots yet in repository {}\n", opened.repository.root().id))?;
    } else {
        let repository = format!("repository {}\n", opened.repository.root().id);
        print(&(table(&rows) + &notes.concat() + &repository))?;
    }
    Ok(if unsound { Exit::Failed } else { Exit::Ok })
}

fn heading() -> Vec<String> {
    ["SOURCE", ">NUMBER", "ID", "RECOVERY POINT", "STATE", ">SIZE", ">ADDED", ">STORED"].map(str::to_owned).to_vec()
}

fn row(source: &SourceName, snapshot: &Snapshot) -> Vec<String> {
    let catalogue = snapshot.catalogue.as_ref();
    let size = |of: fn(&crate::repo::Catalogue) -> u64| catalogue.map_or_else(|| "?".into(), |c| bytes(of(c)));
    vec![
        source.to_string(),
        snapshot.sequence().to_string(),
        id(snapshot)[..12].to_owned(),
        time(snapshot.recovery_point()),
        state(snapshot.state()).into(),
        size(|c| c.bytes),
        size(|c| c.new_bytes),
        size(|c| c.stored_bytes),
    ]
}

pub fn state(state: State) -> &'static str {
    match state {
        State::Good => "good",
        State::Incomplete => "incomplete",
        State::Quarantined => "quarantined",
    }
}

/// What a person can do about a snapshot in quarantine.
pub fn way_out(source: &SourceName, number: Sequence) -> String {
    format!("if this is what {source} is now, accept it: lifeboat backup {source} --accept {source}@{number}")
}

/// What anyone may know of a snapshot, and what the key at hand opens of its catalogue.
pub fn describe(source: &SourceName, snapshot: &Snapshot) -> Value {
    let header = &snapshot.manifest.header;
    let mut document = json!({
        "source": source.as_str(),
        "number": snapshot.sequence().0,
        "id": id(snapshot),
        "state": snapshot.state(),
        "recoveryPoint": snapshot.recovery_point(),
        "storedAt": snapshot.stored_at,
        "packs": header.packs.len(),
        "packBytes": header.packs.iter().map(|p| p.size).sum::<u64>(),
        "manifestBytes": snapshot.manifest_size,
    });
    if let Some(catalogue) = &snapshot.catalogue {
        let more = json!({
            "kind": catalogue.kind,
            "entries": catalogue.entries,
            "bytes": catalogue.bytes,
            "newBytes": catalogue.new_bytes,
            "storedBytes": catalogue.stored_bytes,
            "problems": catalogue.problems,
            "reasons": catalogue.reasons,
            "facts": catalogue.facts,
            "run": catalogue.run,
            "agent": catalogue.agent,
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
    }
    document
}
