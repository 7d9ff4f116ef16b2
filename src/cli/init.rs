//! `lifeboat init`

use super::context::{Context, Use};
use super::fault::{Exit, Failure, Fault, chain};
use super::kit::{self, SecretFile};
use super::output::{clock, print, print_json};
use crate::repo::{Identity, Recipient, Repository, Role};
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Where the recovery kit is saved; must not exist
    #[arg(long, value_name = "FILE", default_value = "lifeboat-recovery-kit.txt")]
    kit: PathBuf,
    /// Use this age recipient for recovery instead of making a new identity
    #[arg(long, value_name = "age1…")]
    recipient: Option<String>,
    /// Also save the writer key alone, for an agent; must not exist
    #[arg(long, value_name = "FILE")]
    writer_key_out: Option<PathBuf>,
    /// Also save the keeper key alone, for whoever prunes; must not exist
    #[arg(long, value_name = "FILE")]
    keeper_key_out: Option<PathBuf>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    // The files first: a repository whose keys cannot be saved must not come to be.
    let kit_file = SecretFile::create(&args.kit)?;
    let writer_file = args.writer_key_out.as_deref().map(SecretFile::create).transpose()?;
    let keeper_file = args.keeper_key_out.as_deref().map(SecretFile::create).transpose()?;
    let identity = args.recipient.is_none().then(Identity::generate);
    let recipient = match (&identity, args.recipient) {
        (Some(identity), _) => identity.public(),
        (None, given) => given.unwrap_or_default(),
    };
    let recipients = vec![Recipient { name: "recovery".into(), role: Role::Recovery, key: recipient.clone() }];
    let store = context.store(&settings, Use::Create).await?;
    let (repository, keys) = Repository::create(store, recipients, clock()).await?;

    let kit = kit::text(&settings, &repository, &recipient, identity.as_ref(), &keys);
    let saved = kit_file
        .fill(&kit)
        .and_then(|()| writer_file.map_or(Ok(()), |file| file.fill(&format!("{}\n", keys.writer.to_text()))))
        .and_then(|()| keeper_file.map_or(Ok(()), |file| file.fill(&format!("{}\n", keys.keeper.to_text()))));
    if let Err(why) = saved {
        // The keys exist nowhere else.
        print(&kit)?;
        let hint =
            Some("the repository was created; keep what was printed on standard output: it is all there is".into());
        return Err(Fault::Failed { message: chain(&why).join(": "), hint }.into());
    }
    tracing::info!(repository = %repository.root().id, url = %settings.url, "created a repository");
    report(context, &args.kit, &kit, &settings.url.to_string(), &repository)?;
    Ok(Exit::Ok)
}

fn report(context: &Context, path: &std::path::Path, kit: &str, url: &str, made: &Repository) -> Result<(), Failure> {
    let id = made.root().id.to_string();
    if context.globals.json {
        return print_json(&json!({ "repository": id, "url": url, "kit": path }));
    }
    // Secrets go to people, not into the logs of whatever collects standard output.
    if std::io::stdout().is_terminal() {
        print(&format!("{kit}\n"))?;
    }
    print(&format!(
        "Created repository {id} at {url}\n\
         Saved the recovery kit: {}\n\
         Without it nothing can be restored. Put copies where they survive what this machine does not.\n",
        path.display()
    ))
}
