//! How commands end: exit codes, and errors as people and programs read them.

use super::globals::LogFormat;
use super::output::tell;
use super::restore::{Busy, Unfit};
use crate::backup::BackupError;
use crate::config::Mistake;
use crate::id::RepositoryId;
use crate::repo::shares::ShareError;
use crate::repo::{ReadError, RepoError};
use crate::restore::RestoreError;
use crate::secret::SecretError;
use crate::store::{StoreError, StoreErrorKind};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Any error on its way to the edge; [`classify`] looks through its chain.
pub type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    /// Some part failed, the rest is safe.
    Incomplete = 3,
    /// A recovery point objective was missed.
    Missed = 4,
    NoRepository = 10,
    Busy = 11,
    WrongKey = 12,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The command line's own errors.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    #[error("the configuration has {} {}", .0.len(), if .0.len() == 1 { "mistake" } else { "mistakes" })]
    Mistakes(Vec<Mistake>),
    #[error("{}", interrupted(left.as_ref()))]
    Interrupted { left: Option<PathBuf> },
    #[error("{attempt} {}", path.display())]
    File { attempt: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    BadKey(RepoError),
    /// The URL is empty where it is not said.
    #[error("the kit at hand is that of repository {kit}{}; this is repository {opened}", at(url))]
    OtherKit { kit: String, url: String, opened: RepositoryId },
    /// A repository may have been created; `place` names it on a command line.
    #[error("it is not known whether the repository was created; its keys are kept in {}", kit.display())]
    Unsure { place: String, kit: PathBuf, source: RepoError },
    /// A restore plan that can go on.
    #[error("interrupted; what was done is done")]
    Paused { level: String, id: String },
    /// A restore plan is to be given up without the repository.
    #[error("the repository does not say whether somebody is at the restore {id} on another machine")]
    Unasked { level: String, id: String, source: Failure },
    #[error("{}", of_shares(path.as_ref()))]
    Shares { path: Option<PathBuf>, source: ShareError },
    #[error("{message}")]
    Failed { message: String, hint: Option<String> },
}

fn at(url: &str) -> String {
    if url.is_empty() { String::new() } else { format!(" at {url}") }
}

fn of_shares(path: Option<&PathBuf>) -> String {
    match path {
        None => "the shares do not open the repository".into(),
        Some(path) => format!("{} is no sound share", path.display()),
    }
}

fn interrupted(left: Option<&PathBuf>) -> String {
    match left {
        None => "interrupted; nothing partial is left".into(),
        Some(path) => format!("interrupted; what was restored into {} is incomplete", path.display()),
    }
}

impl Fault {
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    pub fn file(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { attempt, path, source }
    }
}

/// The exit code and the hint for an error: the outermost one in the chain that has an opinion decides.
pub fn classify(failure: &(dyn Error + 'static)) -> (Exit, Option<String>) {
    let mut hint = None;
    let mut error = Some(failure);
    while let Some(this) = error {
        if let Some((exit, own)) = opinion(this) {
            hint = hint.or(own);
            if exit != Exit::Failed || hint.is_some() {
                return (exit, hint);
            }
        }
        error = this.source();
    }
    (Exit::Failed, hint)
}

fn opinion(error: &(dyn Error + 'static)) -> Option<(Exit, Option<String>)> {
    if let Some(fault) = error.downcast_ref::<Fault>() {
        return Some(match fault {
            Fault::Usage { hint, .. } => (Exit::Usage, hint.clone()),
            Fault::Mistakes(_) => (
                Exit::Usage,
                Some("mend them; what reads and restores goes on with the documents that are right".into()),
            ),
            Fault::Interrupted { .. } => (Exit::Interrupted, None),
            Fault::Paused { level, id } => {
                (Exit::Interrupted, Some(format!("go on with it: lifeboat restore {level} --resume {id}")))
            }
            Fault::Unasked { level, id, source } => {
                let hint = format!(
                    "if nobody is, and nobody went on with it elsewhere: lifeboat restore {level} --abort {id} --dead {id} opens \
                     its fences by this machine's journal"
                );
                (classify(source.as_ref()).0, Some(hint))
            }
            Fault::File { .. } => return None,
            Fault::BadKey(_) => (Exit::WrongKey, Some("the recovery kit has it, and can be given as it is".into())),
            Fault::OtherKit { .. } => {
                let hint = "give this repository's own kit (--identity FILE), or name the kit's repository with -r; if the \
                            other's identity is wanted here on purpose, give a file with its AGE-SECRET-KEY line alone";
                (Exit::WrongKey, Some(hint.into()))
            }
            Fault::Unsure { place, kit, source } => {
                let hint = format!(
                    "see whether it is there: lifeboat {place} --identity '{}' snapshots; if there is none (exit code 10), \
                     remove the kit and run init again",
                    kit.display()
                );
                (of_repository(source).0, Some(hint))
            }
            Fault::Shares { source, .. } => {
                let hint = match source {
                    ShareError::TooFew { .. } => "ask more of the people who hold them",
                    ShareError::Line { .. } | ShareError::NotAShare => {
                        "compare it with the paper that it was typed from"
                    }
                    _ => "use shares that were made together, of this repository; any of them that are enough will do",
                };
                (Exit::WrongKey, Some(hint.into()))
            }
            Fault::Failed { hint, .. } => (Exit::Failed, hint.clone()),
        });
    }
    if let Some(busy) = error.downcast_ref::<Busy>() {
        return Some((Exit::Busy, Some(busy.hint())));
    }
    if error.is::<Unfit>() {
        let hint = "nothing was changed; see `lifeboat snapshots` for what there is";
        return Some((Exit::Failed, Some(hint.into())));
    }
    if error.is::<SecretError>() {
        return Some((Exit::Usage, Some("check the path, or the variable, that the key is to come from".into())));
    }
    if let Some(ReadError::Repo(error)) = error.downcast_ref::<ReadError>() {
        return Some(of_repository(error));
    }
    match error.downcast_ref() {
        Some(BackupError::Repo(error)) => return Some(of_repository(error)),
        Some(BackupError::TooLong { .. }) => {
            let hint = "see whether the repository takes what is sent (the network, its load); if it does, give the run more time";
            return Some((Exit::Failed, Some(hint.into())));
        }
        Some(BackupError::NotAcceptable { .. }) => {
            let hint = "see `lifeboat status` for the snapshot that is in quarantine now, if one is";
            return Some((Exit::Usage, Some(hint.into())));
        }
        _ => {}
    }
    match error.downcast_ref() {
        Some(RestoreError::Repo(error)) => return Some(of_repository(error)),
        Some(RestoreError::NotThere(_)) => return Some((Exit::Failed, Some("see `lifeboat ls`".into()))),
        _ => {}
    }
    error.downcast_ref::<RepoError>().map(of_repository).or_else(|| error.downcast_ref::<StoreError>().map(of_store))
}

fn of_repository(error: &RepoError) -> (Exit, Option<String>) {
    let (exit, hint) = match error {
        RepoError::NoRepository { .. } => {
            let hint = "check the URL (and the mount or the credentials); if its lifeboat.json was lost, put it back from a copy \
                        (lifeboat verify --repair-from COPY); or create one: lifeboat init";
            (Exit::NoRepository, hint)
        }
        RepoError::NotEmpty { .. } => (
            Exit::Failed,
            "choose an empty place; if this is a repository that lost its lifeboat.json, put that back from a copy: \
             lifeboat verify --repair-from COPY",
        ),
        RepoError::AlreadyInitialised { .. } => {
            (Exit::Failed, "use it with its own keys, or choose another place; nothing was changed")
        }
        RepoError::NewerFormat { .. } | RepoError::NewerKeys { .. } => (Exit::Failed, "use a newer Lifeboat"),
        RepoError::Damaged { .. } => (
            Exit::Failed,
            "run `lifeboat verify` to see what it concerns, and with --repair-from COPY to mend it; other snapshots may be whole \
             (`lifeboat snapshots`)",
        ),
        RepoError::Foreign { .. } => (
            Exit::Failed,
            "someone else may have written to the repository: keep it as it is, and see `lifeboat snapshots` for what is sound",
        ),
        RepoError::WrongKey { what: "recovery identity", .. } => {
            let hint = "give the identity from this repository's recovery kit, --identity FILE, of a recipient that was not \
                        removed (lifeboat keys list)";
            (Exit::WrongKey, hint)
        }
        RepoError::WrongKey { .. } => (
            Exit::WrongKey,
            "names and contents need --identity FILE, backups --writer-key FILE, pruning --keeper-key FILE; all are in the recovery kit",
        ),
        RepoError::RotatedKey { .. } => (
            Exit::WrongKey,
            "give the agent the new one; whoever holds the kit gets it with `lifeboat keys show-writer`",
        ),
        RepoError::NoSnapshot { .. } => (Exit::Failed, "see what there is: lifeboat snapshots"),
        RepoError::Busy(_) => (Exit::Busy, "another writer is at work on this source; try again later"),
        RepoError::PastRunLimit { .. } => {
            (Exit::Failed, "raise runLimit and gracePeriod in the Repository document, or make the run faster")
        }
        RepoError::Overtaken { .. } => {
            (Exit::Busy, "nothing is lost: the newer snapshot stands; see that runs of one source do not overlap")
        }
        RepoError::Swept { .. } => (
            Exit::Failed,
            "run it again; the host may have slept longer than the Repository's gracePeriod, or somebody deletes in the repository",
        ),
        RepoError::EmptyCapture => (Exit::Failed, "nothing was committed; check that the source is what it should be"),
        RepoError::Stopped => (Exit::Interrupted, ""),
        RepoError::Store(error) => return of_store(error),
        RepoError::PruneBlocked { .. } => (
            Exit::Failed,
            "if it is rot, put the object back from a copy; if you know it to be foreign: prune --foreign SOURCE@NUMBER",
        ),
        RepoError::Capture { .. } | RepoError::UploadFailed { .. } | RepoError::Refused(_) | RepoError::Id(_) => {
            (Exit::Failed, "")
        }
    };
    (exit, (!hint.is_empty()).then(|| hint.to_owned()))
}

fn of_store(error: &StoreError) -> (Exit, Option<String>) {
    let hint = match error.kind {
        StoreErrorKind::Denied => {
            "check the credentials (the document's, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and their rights on this \
             place (lifeboat store check)"
        }
        StoreErrorKind::Full => {
            "make room, then run the command again; what a failed backup left is cleared away by `lifeboat prune`"
        }
        StoreErrorKind::Unavailable => "check the network and the endpoint, then run the command again",
        StoreErrorKind::NotFound if error.action == "open" && error.object.starts_with("s3://") => {
            "make the bucket, or check its name, the region and the endpoint"
        }
        StoreErrorKind::NotFound if error.action == "open" => "check the URL; perhaps a file system is not mounted",
        _ => return (Exit::Failed, None),
    };
    (Exit::Failed, Some(hint.to_owned()))
}

/// Why the store did not do what it should, if it is the store's.
pub fn of_the_store(failure: &(dyn Error + 'static)) -> Option<StoreErrorKind> {
    let own = match failure.downcast_ref() {
        Some(RepoError::NoRepository { .. }) => Some(StoreErrorKind::NotFound),
        Some(RepoError::Store(error)) => Some(error.kind),
        _ => failure.downcast_ref().map(|error: &StoreError| error.kind),
    };
    own.or_else(|| of_the_store(failure.source()?))
}

/// Whether the repository does not answer, for no source.
pub fn is_away(failure: &(dyn Error + 'static)) -> bool {
    of_the_store(failure) == Some(StoreErrorKind::Unavailable)
}

/// The texts of an error and its causes, outermost first, without those that repeat the one before.
pub fn chain(failure: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut error = Some(failure);
    while let Some(this) = error {
        let text = this.to_string();
        if texts.last().is_none_or(|last| *last != text) {
            texts.push(text);
        }
        error = this.source();
    }
    texts
}

/// How a failure is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    /// One JSON object.
    Json,
    /// One more log line.
    Log,
}

impl From<LogFormat> for Form {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Log,
        }
    }
}

/// Says on standard error why a command failed.
pub fn report(failure: &(dyn Error + 'static), form: Form) -> Exit {
    let (exit, hint) = classify(failure);
    let mistakes = match failure.downcast_ref::<Fault>() {
        Some(Fault::Mistakes(mistakes)) => mistakes.as_slice(),
        _ => &[],
    };
    let texts = chain(failure);
    match form {
        Form::Text => {
            let mut shown = format!("error: {}\n", texts.join("\n  because: "));
            shown.extend(mistakes.iter().map(|mistake| format!("  {mistake}\n")));
            shown.extend(hint.map(|hint| format!("  hint: {hint}\n")));
            tell(&shown);
        }
        Form::Json => {
            let mut document = serde_json::json!({
                "error": texts[0], "because": texts[1..], "code": exit as u8, "hint": hint,
            });
            if !mistakes.is_empty() {
                document["mistakes"] = serde_json::json!(mistakes);
            }
            eprintln!("{document}");
        }
        Form::Log => {
            for mistake in mistakes {
                tracing::error!("{mistake}");
            }
            tracing::error!(error = failure, code = exit as u8, hint, "the command failed");
        }
    }
    exit
}
