//! `lifeboat backup-by-snapshot`, which the CronJob of a volume calls and nobody types: has its CSI driver take a snapshot, and
//! a pod of the PodTemplate beside the CronJob back it up. It needs no key and reaches no repository.

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::{clock, tell};
use super::reference::numbered;
use crate::config::name_of_volume;
use crate::id::{Sequence, SourceName};
use crate::source::volume::by_snapshot::{Owner, Reader, back_up};
use crate::source::{self, Cancel, Spec};

#[derive(clap::Args)]
pub struct Args {
    /// Name of the Source document
    source: SourceName,
    #[arg(long, value_name = "NAME")]
    schedule: String,
    /// The pod that this runs in: what is made is removed with it at the latest
    #[arg(long, value_name = "NAME", requires = "pod_uid")]
    pod: Option<String>,
    #[arg(long, value_name = "UID", requires = "pod")]
    pod_uid: Option<String>,
    /// The order that `backup` knows, for the pod that reads
    #[arg(long, value_name = "SOURCE@NUMBER", value_parser = numbered)]
    accept: Option<(SourceName, Sequence)>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let schedule = context.schedule(&args.schedule)?;
    let source = &args.source;
    let capture = context.config()?.sources.get(source).map(|document| &document.capture);
    let (Some(Spec::Volume(spec)), true) = (capture, schedule.sources.contains(source)) else {
        let text = format!("{source} is no volume among the sources of the schedule {}", schedule.name);
        return Err(Fault::usage(text, "apply what `lifeboat schedule render` makes of the documents").into());
    };
    let (spec, cancel) = (spec.clone(), Cancel::default());
    let Some(wanted) = spec.snapshot.clone() else {
        let hint = "set volume.snapshot, or apply what `lifeboat schedule render` makes of the documents";
        return Err(Fault::usage(format!("{source} is not to be read by a snapshot"), hint).into());
    };
    let world = source::Context::new(cancel.clone(), clock(), schedule.max_duration);
    if let Some((other, number)) = args.accept.as_ref().filter(|(accepted, _)| accepted != source) {
        let text = format!("--accept {other}@{number} is not about {source}");
        return Err(Fault::usage(text, "take the CronJob of that source").into());
    }
    let accept = args.accept.map(|(source, number)| format!("--accept={source}@{number}"));
    let reader = Reader { template: name_of_volume(schedule, source), further: accept.into_iter().collect() };
    let owner = args.pod.zip(args.pod_uid).map(|(pod, uid)| Owner { pod, uid });
    let work = move || back_up(&world, &spec, &wanted, &reader, owner.as_ref());
    let ended = context.interrupt.blocking(&cancel, work).await?;
    let ended = ended.map_err(|error| match error {
        source::SourceError::Cancelled => Fault::Interrupted { left: None }.into(),
        other => Failure::from(other),
    })?;
    tell(&ended.log);
    match (ended.code, ended.left.as_slice()) {
        (0, []) => Ok(Exit::Ok),
        (0 | 3, left) => {
            for text in left {
                tracing::error!(source = source.as_str(), "{text}");
            }
            Ok(Exit::Incomplete)
        }
        (code, _) => {
            let message = format!("the pod that was to back {source} up ended with exit status {code}");
            Err(Fault::Failed { message, hint: Some("its log is above".into()) }.into())
        }
    }
}
