//! `lifeboat init`

use super::context::{Context, Use};
use super::fault::{Exit, Failure, Fault};
use super::kit::{self, SecretFile};
use super::output::{clock, print, print_json};
use crate::config;
use crate::repo::{Identity, Prepared, Recipient, RepoError, Repository, Role};
use crate::store::StoreErrorKind;
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

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
    if let config::Url::Directory(repository) = &settings.url
        && std::path::absolute(&args.kit)?.starts_with(std::path::absolute(repository)?)
    {
        let hint = "keep the kit somewhere else: whoever has both has everything, and whoever loses one loses both";
        return Err(Fault::usage("the recovery kit would lie in the repository", hint).into());
    }
    let identity = args.recipient.is_none().then(Identity::generate);
    let recipient = match (&identity, args.recipient) {
        (Some(identity), _) => identity.public(),
        (None, given) => given.unwrap_or_default(),
    };
    let recipients = vec![Recipient { name: "recovery".into(), role: Role::Recovery, key: recipient.clone() }];
    let prepared = Prepared::new(recipients, clock())?;
    let kit = kit::text(&settings, &prepared, &recipient, identity.as_ref());
    let line = |key: String| format!("{key}\n");
    let secrets = [
        (Some(&args.kit), kit.clone()),
        (args.writer_key_out.as_ref(), line(prepared.keys.writer.to_text())),
        (args.keeper_key_out.as_ref(), line(prepared.keys.keeper.to_text())),
    ];
    let mut files = Vec::new();
    for (path, text) in secrets {
        files.extend(path.map(|path| SecretFile::create(path)).transpose()?.map(|file| (file, text)));
    }
    let store = tokio::select! {
        store = context.store(&settings, Use::Create) => store?,
        () = context.interrupt.requested() => return Err(Fault::Interrupted { left: None }.into()),
    };
    // The keys first: a repository that nobody has keys for must not come to be, whatever happens to this process.
    for (file, text) in &mut files {
        file.fill(text)?;
    }
    for (file, _) in &mut files {
        file.keep();
    }
    let created = tokio::select! {
        created = prepared.create(store) => created,
        () = context.interrupt.requested() => Err(RepoError::Stopped),
    };
    let repository = match created {
        Ok((repository, _)) => repository,
        Err(error) if may_have_been_carried_out(&error) => {
            return Err(Fault::Unsure { place: kit::place(&settings), kit: args.kit, source: error }.into());
        }
        Err(error) => {
            for (file, _) in files {
                file.discard();
            }
            return Err(error.into());
        }
    };
    tracing::info!(repository = %repository.root().id, url = %settings.url, "created a repository");
    let saved = (args.kit.as_path(), args.writer_key_out.as_deref());
    report(context, &settings, saved, &kit, &repository)?;
    Ok(Exit::Ok)
}

/// Not refused, but without an answer: the root may have been written, or yet be.
fn may_have_been_carried_out(error: &RepoError) -> bool {
    match error {
        RepoError::Store(error) => matches!(error.kind, StoreErrorKind::Unavailable | StoreErrorKind::Other),
        RepoError::Stopped => true,
        _ => false,
    }
}

/// What to do now.
fn next(kit: &Path, repository: &str, writer_key: Option<&Path>) -> String {
    let mut text = String::new();
    if writer_key.is_none() {
        text += &format!(
            "For agents, the writer key alone: lifeboat {repository} --identity '{}' keys show-writer --out writer.key\n",
            kit.display()
        );
    }
    let key = writer_key.unwrap_or(Path::new("writer.key")).display();
    text + &format!("A first backup: lifeboat {repository} --writer-key '{key}' backup --files DIRECTORY --name NAME\n")
}

fn report(
    context: &Context,
    settings: &config::Repository,
    (path, writer_key): (&Path, Option<&Path>),
    kit: &str,
    made: &Repository,
) -> Result<(), Failure> {
    let (id, url) = (made.root().id.to_string(), settings.url.to_string());
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
         Without it nothing can be restored. Put copies where they survive what this machine does not.\n{}",
        path.display(),
        next(path, &kit::place(settings), writer_key),
    ))
}
