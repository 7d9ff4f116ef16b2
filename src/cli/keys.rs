//! `lifeboat keys …`: who can read, and who writes.

use super::context::{Context, Use};
use super::fault::{Exit, Failure, Fault};
use super::kit::SecretFile;
use super::output::{clock, print, print_json, table};
use super::reference::numbered;
use crate::id::{Sequence, SourceName};
use crate::repo::{Recipient, Role};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the recipients
    List,
    /// Let someone else read everything, past snapshots included
    AddRecipient(Add),
    /// Give a recipient no new keys: what sources seal after the next `rotate-writer` stays closed to them
    RemoveRecipient(Remove),
    /// Replace the writer key: the old one can add nothing any more
    RotateWriter(Rotate),
    /// Give the writer key, for an agent: into a file that only its owner reads, or printed
    ShowWriter(Show),
}

#[derive(clap::Args)]
pub struct Show {
    /// Where it is saved instead of being printed; must not exist
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Add {
    /// A name of letters, digits and hyphens
    name: String,
    /// An age recipient
    #[arg(long, value_name = "age1…")]
    key: String,
    /// recovery opens everything, the writer and keeper keys included; drill and escrow open snapshots
    #[arg(long, value_name = "ROLE", value_parser = role)]
    role: Role,
}

#[derive(clap::Args)]
pub struct Remove {
    name: String,
}

#[derive(clap::Args)]
pub struct Rotate {
    /// Where the new writer key is saved; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The last snapshot of a source that was written before the key was stolen: later ones do not count any more. Repeatable;
    /// without it, what is there counts
    #[arg(long, value_name = "SOURCE@NUMBER", value_parser = numbered)]
    until: Vec<(SourceName, Sequence)>,
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "recovery" => Ok(Role::Recovery),
        "drill" => Ok(Role::Drill),
        "escrow" => Ok(Role::Escrow),
        _ => Err("expected recovery, drill or escrow".into()),
    }
}

fn shown(role: Role) -> &'static str {
    match role {
        Role::Recovery => "recovery",
        Role::Drill => "drill",
        Role::Escrow => "escrow",
    }
}

pub async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let writes = !matches!(command, Command::List | Command::ShowWriter(_));
    let opened = context.open(if writes { Use::Write } else { Use::Read }).await?;
    let repository = &opened.repository;
    let json = context.globals.json;
    match command {
        Command::List => list(repository.root().recipients(), json)?,
        Command::AddRecipient(Add { name, key, role }) => {
            let identity = context.require_identity(&opened)?;
            let recipient = Recipient { name, role, key };
            let changed = repository.add_recipient(&identity, recipient, clock()).await?;
            list(changed.root().recipients(), json)?;
        }
        Command::RemoveRecipient(Remove { name }) => {
            let identity = context.require_identity(&opened)?;
            // Whoever removes themselves can undo nothing, and rotate no key.
            if repository.root().recipients().iter().any(|one| one.name == name && one.key == identity.public()) {
                let hint = "use the identity of another recovery recipient (keys add-recipient NAME --key age1… --role recovery)";
                return Err(Fault::usage(format!("{name} is the identity in use"), hint).into());
            }
            let changed = repository.remove_recipient(&identity, &name, clock()).await?;
            list(changed.root().recipients(), json)?;
            if !json {
                print(
                    "They can still read what was written before, and what is until the next: lifeboat keys rotate-writer --out FILE\n",
                )?;
            }
        }
        Command::RotateWriter(Rotate { out, until }) => {
            let identity = context.require_identity(&opened)?;
            // The file first: a key that cannot be saved must not replace the one in use.
            let mut file = SecretFile::create(&out)?;
            let until = until.into_iter().collect();
            let (changed, keys) = repository.rotate_writer_until(&identity, &until, clock()).await?;
            // Should this fail, `show-writer` has the key.
            file.fill(&format!("{}\n", keys.writer.to_text()))?;
            file.keep();
            if json {
                print_json(&json!({ "repository": changed.root().id.to_string(), "writerKey": out }))?;
            } else {
                print(&format!(
                    "Saved the new writer key: {}\nGive it to the agents; the old one adds nothing any more.\nThe next backup of \
                     every source is a full one, and is not compared with the one before: look at it with `lifeboat diff`.\n",
                    out.display()
                ))?;
            }
        }
        Command::ShowWriter(Show { out }) => {
            let keys = repository.root().unlock(&context.require_identity(&opened)?)?;
            let text = keys.writer.to_text();
            if let Some(out) = out {
                let mut file = SecretFile::create(&out)?;
                file.fill(&format!("{text}\n"))?;
                file.keep();
            } else if json {
                print_json(&json!({ "writerKey": text }))?;
            } else {
                print(&format!("{text}\n"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn list(recipients: &[Recipient], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&json!({ "recipients": recipients }));
    }
    let mut rows = vec![["NAME", "ROLE", "KEY"].map(str::to_owned).to_vec()];
    rows.extend(recipients.iter().map(|r| vec![r.name.clone(), shown(r.role).into(), r.key.clone()]));
    print(&table(&rows))
}
