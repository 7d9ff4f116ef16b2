//! `lifeboat restore snapshot REF --into SOURCE`: into the running system that a Source document describes; `--claim`: its
//! files into a PersistentVolumeClaim.
//!
//! What would happen is found out and shown first. Before anything is lost that is there now, a person repeats what the
//! target is called, at the prompt or on the command line.

use super::options::OptionArgs;
use crate::cli::context::Context;
use crate::cli::fault::{Exit, Failure, Fault};
use crate::cli::output::{clock, count, name, print, print_json, tell};
use crate::cli::reference::{Reference, open_reader};
use crate::cli::snapshots;
use crate::config::nearest;
use crate::id::{InvalidId, SourceName};
use crate::repo::{Reader, State};
use crate::restore::supply::Supplied;
use crate::restore::{RestoreError, Selection};
use crate::source::target::{Action, Applied, Change, Options, Plan, Target, summary};
use crate::source::volume::{self, Named};
use crate::source::{self, Cancel, SourceError, Spec};
use serde_json::{Value, json};
use std::io::{self, BufRead as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No restore of one snapshot takes longer.
const LONGEST: Duration = Duration::from_hours(24);
/// So many changes are listed; all are with `--json`.
const LISTED: usize = 50;

#[derive(clap::Args)]
pub struct SystemArgs {
    /// Instead of a directory: the running system that this Source document describes
    #[arg(long, value_name = "SOURCE", group = "system", conflicts_with = "to")]
    into: Option<SourceName>,
    /// Instead of a directory: a PersistentVolumeClaim of the cluster that this Source document describes
    #[arg(long, value_name = "CLUSTER/NAMESPACE/NAME", value_parser = named, group = "system", conflicts_with = "to",
          requires = "image")]
    claim: Option<Named>,
    /// Lifeboat's own image, of the pod by which the claim is filled
    #[arg(long, value_name = "NAME", requires = "claim")]
    image: Option<String>,
    /// Say what would happen, and change nothing
    #[arg(long, requires = "system")]
    dry_run: bool,
    #[command(flatten)]
    options: OptionArgs,
    /// Do not ask; the target must be named with --target-id
    #[arg(long, requires_all = ["system", "target_id"])]
    yes: bool,
    /// The target's identity, as --dry-run shows it
    #[arg(long, value_name = "ID", requires = "system")]
    target_id: Option<String>,
}

/// A restore under way.
struct Work {
    target: Box<dyn Target>,
    reader: Arc<Reader>,
    selection: Selection,
    world: source::Context,
}

impl Work {
    fn plan(&mut self) -> Result<Plan, SourceError> {
        self.target.plan(&self.world, &Supplied::new(&self.reader, self.selection.clone()))
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, SourceError> {
        self.target.apply(&self.world, &Supplied::new(&self.reader, self.selection.clone()), plan)
    }
}

pub async fn run(
    context: &Context,
    reference: &Reference,
    selection: Selection,
    args: SystemArgs,
) -> Result<Exit, Failure> {
    // What is wrong with the documents is said before anything is opened.
    let system = args.into.as_ref().map(|into| target(context, into, &args)).transpose()?;
    let (_, reader) = open_reader(context, reference).await?;
    reader.check_access()?;
    let what = format!("{}@{}", reference.source, reader.snapshot().sequence());
    let state = reader.snapshot().state();
    if state != State::Good {
        let state = snapshots::state(state);
        tracing::warn!(snapshot = what, state, "the snapshot itself is not good: see `lifeboat show`");
    }
    let captured = reader.catalogue().kind.clone();
    let (into, target) = match (&args.into, &args.claim, system) {
        (Some(into), _, Some(target)) => {
            let kind = context.config()?.sources[into].capture.field();
            if captured != kind {
                let message = format!("{what} is a snapshot of kind {captured}, and {into} is of kind {kind}");
                return Err(Fault::usage(message, "name the Source document of a system of the same kind").into());
            }
            (into.to_string(), target)
        }
        (_, Some(claim), _) => {
            let id = format!("{what} of {}", reader.snapshot().recovery_point());
            claimed(context, claim, (&captured, id, selection.is_all()), &args)?
        }
        _ => return Err(Fault::usage("it is not said where to restore to", "give --to, --into or --claim").into()),
    };
    let into = into.as_str();
    let cancel = Cancel::default();
    let world = source::Context::new(cancel.clone(), clock(), LONGEST);
    let mut work = Work { target, reader, selection, world };
    let planned = context.interrupt.blocking(&cancel, move || {
        let plan = work.plan();
        (work, plan)
    });
    let (mut work, plan) = planned.await?;
    let plan = plan.map_err(told)?;
    if args.dry_run {
        say_plan(context, &what, into, &plan)?;
        return Ok(exit(&plan.changes, false));
    }
    if let Some(id) = args.target_id.as_ref().filter(|id| **id != plan.target) {
        let message = format!("{into} is {}, and not {id}: nothing was changed", plan.target);
        return Err(Fault::usage(message, "look again at what is to be restored where").into());
    }
    if plan.overwrites() {
        confirm(context, &what, into, &plan, &args)?;
    }
    let begun = Instant::now();
    let applied = context.interrupt.blocking(&cancel, move || work.apply(&plan)).await?.map_err(told)?;
    say_applied(context, &what, into, &applied, begun.elapsed())?;
    Ok(exit(&applied.changes, !applied.problems.is_empty()))
}

fn target(context: &Context, into: &SourceName, args: &SystemArgs) -> Result<Box<dyn Target>, Failure> {
    let sources = &context.config()?.sources;
    let Some(document) = sources.get(into) else {
        let names: Vec<_> = sources.keys().map(SourceName::as_str).collect();
        let hint = match nearest(into.as_str(), &names) {
            Some(near) => format!("did you mean {near}?"),
            None => "give the document that describes the target with --config FILE".into(),
        };
        let hint = context.if_missing(hint);
        return Err(Fault::usage(format!("there is no Source document named {into}"), hint).into());
    };
    let kind = document.capture.field();
    document.capture.target(args.options.options()?)?.ok_or_else(|| {
        let message = format!("a snapshot of kind {kind} is not brought back into a running system");
        Fault::usage(message, "restore its files with --to DIR, or see `lifeboat export`").into()
    })
}

/// CLUSTER/NAMESPACE/NAME
fn named(text: &str) -> Result<Named, String> {
    let [cluster, namespace, name] = text.split('/').collect::<Vec<_>>()[..] else {
        return Err("expected CLUSTER/NAMESPACE/NAME".into());
    };
    let cluster = cluster.parse().map_err(|why: InvalidId| why.to_string())?;
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let named = Named { cluster, namespace, name, image: "set later".into() };
    let mut mistakes = Vec::new();
    named.check(&mut |field, why| mistakes.push(format!("{field}: {why}")));
    if mistakes.is_empty() { Ok(named) } else { Err(mistakes.join("; ")) }
}

fn claimed(
    context: &Context,
    claim: &Named,
    snapshot: (&str, String, bool),
    args: &SystemArgs,
) -> Result<(String, Box<dyn Target>), Failure> {
    let options = args.options.options()?;
    if options != (Options { existing: options.existing, ..Options::default() }) {
        return Err(
            Fault::usage("files are restored as they are", "with --claim, only --existing has a meaning").into()
        );
    }
    let cluster = context.config()?.sources.get(&claim.cluster).map(|source| &source.capture);
    let Some(Spec::Kubernetes(cluster)) = cluster else {
        let message = format!("there is no Source document of kind kubernetes named {}", claim.cluster);
        let hint = context.if_missing("give the document that describes the cluster with --config FILE");
        return Err(Fault::usage(message, hint).into());
    };
    let claim = Named { image: args.image.clone().unwrap_or_default(), ..claim.clone() };
    let into = format!("{}/{}/{}", claim.cluster, claim.namespace, claim.name);
    Ok((into, Box::new(volume::Restoring::named(cluster, &claim, snapshot, options))))
}

/// The repository's errors come wrapped in the system's.
fn told(error: SourceError) -> Failure {
    match error {
        SourceError::Cancelled => {
            let message = "interrupted; the target may be half restored".into();
            let hint = "run the same command again: what is done is not done twice (a database server that holds tables \
                        by now needs --existing replace)";
            Fault::Failed { message, hint: Some(hint.into()) }.into()
        }
        SourceError::Snapshot { source, .. }
            if source.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<RestoreError>) =>
        {
            RestoreError::of_export(source).into()
        }
        other => other.into(),
    }
}

fn exit(changes: &[Change], problems: bool) -> Exit {
    let conflict = changes.iter().any(|change| matches!(change.action, Action::Conflict(_)));
    if conflict || problems { Exit::Incomplete } else { Exit::Ok }
}

/// # Errors
/// Nobody said that this target is meant.
fn confirm(context: &Context, what: &str, into: &str, plan: &Plan, args: &SystemArgs) -> Result<(), Failure> {
    if args.yes && args.target_id.is_some() {
        return Ok(());
    }
    let interactive = super::is_interactive(context);
    if interactive {
        tell(&describe(what, into, plan));
        tell(&format!("What is there now will be lost. Type {} to go on: ", plan.target));
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        if line.trim() == plan.target {
            return Ok(());
        }
        return Err(Fault::Failed { message: "not confirmed; nothing was changed".into(), hint: None }.into());
    }
    let message = format!("restoring {what} into {into} would overwrite what is there now");
    let hint = format!("if that is meant, add: --yes --target-id {}", plan.target);
    Err(Fault::usage(message, hint).into())
}

fn list(changes: &[Change]) -> String {
    let told: Vec<_> = changes.iter().filter(|change| change.action != Action::Unchanged).collect();
    let mut text = String::new();
    for Change { what, action } in told.iter().take(LISTED) {
        text += &format!("  {} {}\n", name(what.as_bytes()), name(action.to_string().as_bytes()));
    }
    if told.len() > LISTED {
        text += &format!("  … and {} more (all with --json)\n", told.len() - LISTED);
    }
    text
}

fn describe(what: &str, into: &str, plan: &Plan) -> String {
    let mut text = format!("{what} into {into}, which is {}\n", plan.target);
    for line in &plan.about {
        text += &format!("  {}\n", name(line.as_bytes()));
    }
    text + &format!("{}\n{}", summary(&plan.changes), list(&plan.changes))
}

fn in_json(changes: &[Change]) -> Vec<Value> {
    changes.iter().map(|change| json!({"what": change.what, "action": change.action.to_string()})).collect()
}

fn say_plan(context: &Context, what: &str, into: &str, plan: &Plan) -> Result<(), Failure> {
    if context.globals.json {
        return print_json(&json!({
            "snapshot": what, "into": into, "target": plan.target, "about": plan.about,
            "overwrites": plan.overwrites(), "changes": in_json(&plan.changes),
        }));
    }
    print(&describe(what, into, plan))
}

fn say_applied(context: &Context, what: &str, into: &str, applied: &Applied, took: Duration) -> Result<(), Failure> {
    let Applied { changes, problems, checked, to_do } = applied;
    if context.globals.json {
        let problems = problems.iter().map(|p| json!({"path": String::from_utf8_lossy(&p.path), "text": p.text}));
        return print_json(&json!({
            "snapshot": what, "into": into, "seconds": took.as_secs_f64(), "changes": in_json(changes),
            "problems": problems.collect::<Vec<_>>(), "checked": checked, "toDo": to_do,
        }));
    }
    let mut text = format!("Restored {what} into {into} in {:.1} s: {}\n", took.as_secs_f64(), summary(changes));
    text += &list(changes);
    for problem in problems.iter().take(LISTED) {
        text += &format!("  {}: {}\n", name(&problem.path), problem.text);
    }
    if problems.len() > LISTED {
        text += &format!(
            "  … and {} more (all with --json)\n",
            count((problems.len() - LISTED) as u64, "problem", "problems")
        );
    }
    for line in checked {
        text += &format!("  checked: {}\n", name(line.as_bytes()));
    }
    for line in to_do {
        text += &format!("  to do: {}\n", name(line.as_bytes()));
    }
    print(&text)
}
