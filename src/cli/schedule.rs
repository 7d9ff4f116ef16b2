//! `lifeboat schedule check`, `lifeboat schedule render`

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::{clock, print, print_json};
use crate::config::{self, Schedule};
use serde_json::{Value, json};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Check the documents, and each schedule's worst case against its tier
    Check,
    /// Print schedules as Kubernetes CronJobs
    ///
    /// Their documents are expected in the ConfigMap lifeboat-documents, files that those name as /etc/lifeboat/NAME/KEY in
    /// the Secret lifeboat-NAME, and environment variables in the Secret lifeboat-environment; those of whoever replicates in
    /// the Secrets lifeboat-replicate-NAME and lifeboat-replicate-environment. A volume is a CronJob of its own in the claim's
    /// namespace, and needs those there.
    Render(Render),
}

#[derive(clap::Args)]
pub struct Render {
    /// Names of Schedule documents; without, all of them
    #[arg(value_name = "SCHEDULE")]
    schedules: Vec<String>,
    /// The image that holds lifeboat and the programs that the sources call
    #[arg(long, value_name = "NAME")]
    image: String,
    #[arg(long, value_name = "NAME", default_value = "lifeboat")]
    namespace: String,
}

pub fn run(context: &Context, command: &Command) -> Result<Exit, Failure> {
    let config = context.config()?;
    if config.schedules.is_empty() {
        return Err(Fault::usage("there are no Schedule documents", "give them with --config FILE or DIR").into());
    }
    match command {
        Command::Check => check(context),
        Command::Render(args) => render(context, args),
    }
}

fn render(context: &Context, args: &Render) -> Result<Exit, Failure> {
    let config = context.config()?;
    let named: Result<Vec<&Schedule>, Failure> = args.schedules.iter().map(|name| context.schedule(name)).collect();
    let chosen = if args.schedules.is_empty() { config.schedules.values().collect() } else { named? };
    let target = config::Target { image: &args.image, namespace: &args.namespace };
    let mut manifests: Vec<Value> = Vec::new();
    for schedule in chosen {
        let cronjobs = config::cronjobs(config, schedule, &target);
        for cronjob in cronjobs.map_err(|why| Fault::usage(why.to_string(), CHANGE))? {
            for path in cronjob.unmounted {
                let (schedule, path) = (schedule.name.as_str(), path.display().to_string());
                tracing::warn!(
                    schedule,
                    path,
                    "nothing mounts this path: add a volume to the CronJob (a kustomize patch)"
                );
            }
            manifests.push(cronjob.manifest);
        }
    }
    if context.globals.json {
        print_json(&json!({ "apiVersion": "v1", "kind": "List", "items": manifests }))?;
        return Ok(Exit::Ok);
    }
    for manifest in manifests {
        print(&format!("---\n{}", serde_saphyr::to_string(&manifest)?))?;
    }
    Ok(Exit::Ok)
}

const CHANGE: &str = "change its document";

fn check(context: &Context) -> Result<Exit, Failure> {
    let config = context.config()?;
    let now = clock();
    let mut documents = Vec::new();
    let mut text = String::new();
    for schedule in config.schedules.values() {
        let worst = schedule.worst_case(now, None);
        let (meets, arithmetic) = (worst.meets(schedule.tier), worst.arithmetic(schedule.tier));
        let next = schedule.timetable.next_after(now);
        let verdict = if meets { "ok    " } else { "FAILED" };
        text += &format!("{verdict}  {}: {arithmetic}\n", schedule.name);
        documents.push(json!({
            "name": schedule.name,
            "tier": schedule.tier,
            "meets": meets,
            "worstCaseSeconds": worst.total().as_secs(),
            "arithmetic": arithmetic,
            "next": next,
            "suspended": schedule.suspend,
        }));
    }
    let mistakes = config.lint(now, |_| None);
    if context.globals.json {
        print_json(&json!({ "schedules": documents, "mistakes": mistakes }))?;
    } else {
        print(&text)?;
    }
    if mistakes.is_empty() { Ok(Exit::Ok) } else { Err(Fault::Mistakes(mistakes).into()) }
}
