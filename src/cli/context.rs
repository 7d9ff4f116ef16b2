//! What a command works on: the documents, the repository, the keys.

use super::fault::{Failure, Fault};
use super::globals::Globals;
use super::interrupt::Interrupt;
use super::kit;
use crate::config::{self, Config, Encryption, LockMode, Mistake, Schedule, Sound, Url, nearest};
use crate::repo::{Access, Identity, KeeperKey, Lineage, RepoError, Repository, WriterKey};
use crate::restore::plan::Plan;
use crate::secret::SecretRef;
use crate::store::{Limited, Local, Rates, ReadOnly, RetryPolicy, Retrying, S3, Store, StoreError, StoreErrorKind, s3};
use crate::{id::SourceName, repo};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use zeroize::Zeroizing;

const GIVE_DOCUMENTS: &str = "give the documents with --config FILE|DIR";

pub struct Context {
    pub globals: Globals,
    /// Correlates log lines, snapshots and reports of this run.
    pub run: String,
    pub interrupt: Interrupt,
    /// Whether documents with mistakes are left out, instead of nothing being done with any.
    forgiving: bool,
    documents: OnceLock<Sound>,
}

/// What a command means to do with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Create,
    Write,
    Read,
}

/// An open repository and what was said about it.
pub struct Opened {
    pub settings: config::Repository,
    pub repository: Repository,
}

impl Opened {
    pub fn lineage(&self, source: &SourceName, access: &Access) -> Arc<Lineage> {
        Arc::new(self.repository.lineage(source, access.clone()))
    }
}

impl Context {
    pub fn new(globals: Globals, run: String, interrupt: Interrupt, forgiving: bool) -> Self {
        Self { globals, run, interrupt, forgiving, documents: OnceLock::new() }
    }

    /// The documents. Where [`Context::forgiving`], those with mistakes are left out, and said.
    pub fn config(&self) -> Result<&Config, Failure> {
        let documents = self.documents();
        if documents.mistakes.is_empty() || self.forgiving {
            return Ok(&documents.config);
        }
        Err(Fault::Mistakes(documents.mistakes.clone()).into())
    }

    fn documents(&self) -> &Sound {
        self.documents.get_or_init(|| {
            let mut sound = Config::sound(&self.globals.config);
            if let Some(path) = self.globals.kubeconfig.as_ref().filter(|path| !path.as_os_str().is_empty()) {
                sound.config.sources.values_mut().for_each(|source| source.capture.reach_by(path));
            }
            if self.forgiving {
                for mistake in &sound.mistakes {
                    tracing::error!("left out, with the documents that need it: {mistake}");
                }
            }
            sound
        })
    }

    /// What is wrong with the documents that are left out.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.documents().mistakes
    }

    /// Whether there is a document of this source, and it is left out.
    pub fn is_left_out(&self, source: &SourceName) -> bool {
        self.documents().left_out.contains(source.as_str())
    }

    /// What to do about a document that is not there.
    pub fn if_missing(&self, usual: impl Into<String>) -> String {
        let mut hint = usual.into();
        if !self.mistakes().is_empty() {
            hint += "; or it is among the documents that are left out: mend those";
        }
        hint
    }

    /// What is known about the repository that is meant.
    pub fn settings(&self) -> Result<config::Repository, Failure> {
        let mut settings = match &self.globals.repository {
            Some(text) => self.settings_of(text)?,
            None => self.only_one()?,
        };
        if let Some(s3) = &mut settings.s3 {
            let globals = &self.globals;
            s3.endpoint = globals.s3_endpoint.clone().or(s3.endpoint.take());
            s3.region = globals.s3_region.clone().or(s3.region.take());
            s3.path_style |= globals.s3_path_style;
        }
        Ok(settings)
    }

    /// What is known about another repository, by name or URL. Options of the command line concern only the one that is
    /// meant by `-r`.
    pub fn settings_of(&self, text: &str) -> Result<config::Repository, Failure> {
        if !text.contains(['/', ':']) {
            return self.by_name(text);
        }
        let bare = by_url(text)?;
        // Its periods and locks hold however it is named.
        let mut documents = self.documents().config.repositories.values().filter(|document| document.url == bare.url);
        let endpoint = self.globals.s3_endpoint.as_ref();
        match (documents.next(), documents.next()) {
            // A bucket of the same name at another provider is another one.
            (Some(document), None)
                if endpoint
                    .is_none_or(|given| document.s3.as_ref().and_then(|s3| s3.endpoint.as_ref()) == Some(given)) =>
            {
                let mut settings = document.clone();
                // What is an agent's is not asked for on another machine.
                let here = |secret: &mut Option<SecretRef>| *secret = secret.take().filter(SecretRef::is_here);
                [&mut settings.identity, &mut settings.writer_key, &mut settings.keeper_key].into_iter().for_each(here);
                if let Some(s3) = &mut settings.s3 {
                    s3.credentials = s3.credentials.take().filter(|credentials| credentials.access_key_id.is_here());
                }
                Ok(settings)
            }
            _ => Ok(bare),
        }
    }

    fn by_name(&self, name: &str) -> Result<config::Repository, Failure> {
        let without = "give the documents (--config FILE) or a URL (-r s3://BUCKET/PREFIX, -r file:///PATH)";
        self.document(&self.config()?.repositories, "Repository", name, without).cloned()
    }

    fn only_one(&self) -> Result<config::Repository, Failure> {
        let known = &self.config()?.repositories;
        let mut all = known.values();
        match (all.next(), all.next()) {
            (Some(only), None) if !self.documents().lacks_repository => Ok(only.clone()),
            (Some(only), None) => Err(Fault::usage(
                "a Repository document may be among those that are left out, so that it is not sure which is meant",
                format!("say it: -r {}, or another one by its URL", only.name),
            )
            .into()),
            (None, _) => Err(Fault::usage(
                "no repository is given",
                "say which: -r s3://BUCKET/PREFIX or -r file:///PATH, or --config FILE with a Repository document",
            )
            .into()),
            _ => {
                let names: Vec<_> = known.keys().map(String::as_str).collect();
                Err(Fault::usage("several repositories are given", format!("choose with -r: {}", names.join(", ")))
                    .into())
            }
        }
    }

    pub async fn store(&self, settings: &config::Repository, use_: Use) -> Result<Arc<dyn Store>, Failure> {
        let inner: Arc<dyn Store> = match &settings.url {
            Url::Directory(path) if use_ == Use::Create => Arc::new(Local::create(path)?),
            Url::Directory(path) => Arc::new(Local::open(path)?),
            Url::S3 { bucket, prefix } => Arc::new(S3::open(Self::s3(settings, bucket, prefix)?).await?),
        };
        let limits = settings.limits;
        let rate = |size: Option<config::Size>| size.and_then(|size| NonZeroU64::new(size.0));
        let rates = Rates { upload: rate(limits.upload), download: rate(limits.download) };
        let limited: Arc<dyn Store> =
            if rates == Rates::default() { inner } else { Arc::new(Limited::new(inner, rates)) };
        let retrying = Arc::new(Retrying::new(limited, RetryPolicy::default()));
        Ok(if use_ == Use::Read { Arc::new(ReadOnly::new(retrying)) } else { retrying })
    }

    fn s3(settings: &config::Repository, bucket: &str, prefix: &str) -> Result<s3::Settings, Failure> {
        let mut target = s3::Settings::new(bucket);
        prefix.clone_into(&mut target.prefix);
        let Some(s3) = &settings.s3 else { return Ok(target) };
        target.endpoint.clone_from(&s3.endpoint);
        target.region.clone_from(&s3.region);
        target.path_style = s3.path_style;
        if let Some(credentials) = s3.credentials.as_ref().filter(|credentials| !stood_in_for(credentials)) {
            let read = |secret: &SecretRef| Ok::<_, Failure>(secret.read()?.to_string());
            target.credentials = s3::Credentials::Static {
                access_key: read(&credentials.access_key_id)?,
                secret_key: read(&credentials.secret_access_key)?,
                session_token: credentials.session_token.as_ref().map(read).transpose()?,
            };
        }
        if let Some(encryption) = &s3.server_side_encryption {
            target.encryption = match encryption.kind {
                Encryption::Aes256 => s3::Encryption::Aes256,
                Encryption::Kms => s3::Encryption::Kms { key_id: encryption.kms_key_id.clone() },
            };
        }
        target.lock = s3.object_lock.map(|lock| match lock.mode {
            LockMode::Governance => s3::LockMode::Governance,
            LockMode::Compliance => s3::LockMode::Compliance,
        });
        if let Some(size) = s3.part_size {
            target.part_size = usize::try_from(size.0)?;
        }
        Ok(target)
    }

    /// Opens the repository that is meant.
    pub async fn open(&self, use_: Use) -> Result<Opened, Failure> {
        let settings = self.settings()?;
        self.open_as(settings, use_).await
    }

    /// Opens the repository that is meant: without `-r`, a schedule's own.
    pub async fn open_for(&self, schedule: Option<&Schedule>, use_: Use) -> Result<Opened, Failure> {
        let own = match (schedule, &self.globals.repository) {
            (Some(schedule), None) => self.config()?.repositories.get(&schedule.repository).cloned(),
            _ => None,
        };
        match own {
            Some(settings) => self.open_as(settings, use_).await,
            None => self.open(use_).await,
        }
    }

    /// The document of a schedule.
    pub fn schedule(&self, name: &str) -> Result<&Schedule, Failure> {
        self.document(&self.config()?.schedules, "Schedule", name, GIVE_DOCUMENTS)
    }

    /// The document of a restore plan.
    pub fn plan(&self, name: &str) -> Result<&Plan, Failure> {
        self.document(&self.config()?.plans, "RestorePlan", name, GIVE_DOCUMENTS)
    }

    /// A document by its name, or what may be meant instead; `without` is said if there are no documents of that kind.
    fn document<'a, T>(
        &self,
        known: &'a BTreeMap<String, T>,
        kind: &str,
        name: &str,
        without: &str,
    ) -> Result<&'a T, Failure> {
        known.get(name).ok_or_else(|| {
            let names: Vec<_> = known.keys().map(String::as_str).collect();
            let hint = match (nearest(name, &names), names.is_empty()) {
                (Some(near), _) => format!("did you mean {near}?"),
                (None, true) => without.into(),
                (None, false) => format!("the documents have {}", names.join(", ")),
            };
            Fault::usage(format!("there is no {kind} document named {name:?}"), self.if_missing(hint)).into()
        })
    }

    pub async fn open_as(&self, settings: config::Repository, use_: Use) -> Result<Opened, Failure> {
        let store =
            self.store(&settings, use_).await.map_err(|failure| match failure.downcast_ref::<StoreError>() {
                // Neither the directory nor the bucket is there.
                Some(error) if error.kind == StoreErrorKind::NotFound => {
                    RepoError::NoRepository { url: settings.url.to_string() }.into()
                }
                _ => failure,
            })?;
        let repository = Repository::open(store).await?;
        Ok(Opened { settings, repository })
    }

    pub fn identity(&self, opened: &Opened) -> Result<Option<Identity>, Failure> {
        let text = secret(opened, self.globals.identity.as_deref(), opened.settings.identity.as_ref())?;
        Ok(text.map(|text| Identity::from_text(&text)).transpose().map_err(Fault::BadKey)?)
    }

    pub fn writer_key(&self, opened: &Opened) -> Result<Option<WriterKey>, Failure> {
        let text = secret(opened, self.globals.writer_key.as_deref(), self.own(opened.settings.writer_key.as_ref()))?;
        let key = text.map(|text| WriterKey::from_text(line_with(&text, WriterKey::PREFIX)));
        Ok(key.transpose().map_err(Fault::BadKey)?)
    }

    /// Files of keys that the documents name are agents': one that is not on this machine is none, where an identity is given.
    fn own<'a>(&self, document: Option<&'a SecretRef>) -> Option<&'a SecretRef> {
        document.filter(|key| self.globals.identity.is_none() || key.is_here())
    }

    /// The best key at hand for reading.
    pub fn access(&self, opened: &Opened) -> Result<Access, Failure> {
        if let Some(identity) = self.identity(opened)? {
            return Ok(Access::Recipient(identity));
        }
        Ok(self.writer_key(opened)?.map_or(Access::None, Access::Writer))
    }

    /// A key for names and contents. A writer key does not open them.
    pub fn access_to_contents(&self, opened: &Opened) -> Result<Access, Failure> {
        match self.access(opened)? {
            Access::None => Err(Fault::usage(
                "no key is given",
                "names and contents need the recovery identity: --identity FILE (the recovery kit will do)",
            )
            .into()),
            Access::Writer(_) => {
                Err(RepoError::WrongKey { what: "writer key", object: "names and contents of snapshots".into() }.into())
            }
            access @ Access::Recipient(_) => Ok(access),
        }
    }

    pub fn require_identity(&self, opened: &Opened) -> Result<Identity, Failure> {
        let hint = "give it with --identity FILE (the recovery kit will do)";
        self.identity(opened)?.ok_or_else(|| Fault::usage("this needs the recovery identity", hint).into())
    }

    /// The writer key, given or unlocked.
    pub fn require_writer(&self, opened: &Opened) -> Result<WriterKey, Failure> {
        if let Some(key) = self.writer_key(opened)? {
            return Ok(key);
        }
        match self.identity(opened)? {
            Some(identity) => Ok(opened.repository.root().unlock(&identity)?.writer),
            None => {
                Err(Fault::usage("no writer key is given", "give it with --writer-key FILE, or in the document").into())
            }
        }
    }

    /// The keeper key, given or unlocked.
    pub fn require_keeper(&self, opened: &Opened) -> Result<KeeperKey, Failure> {
        let (file, document) = (self.globals.keeper_key.as_deref(), self.own(opened.settings.keeper_key.as_ref()));
        if let Some(text) = secret(opened, file, document)? {
            let key = KeeperKey::from_text(line_with(&text, KeeperKey::PREFIX)).map_err(Fault::BadKey)?;
            opened.repository.root().accept_keeper(&key)?;
            return Ok(key);
        }
        match self.identity(opened)? {
            Some(identity) => Ok(opened.repository.root().unlock(&identity)?.keeper),
            None => {
                Err(Fault::usage("no keeper key is given", "give it with --keeper-key FILE, or in the document").into())
            }
        }
    }

    /// How snapshots are written.
    pub fn write_options(settings: &config::Repository, threads: usize) -> repo::Options {
        let lock = settings.s3.as_ref().and_then(|s3| s3.object_lock);
        repo::Options {
            level: settings.compression.level,
            threads,
            run_limit: settings.run_limit,
            retain: lock.map(|lock| std::time::Duration::from_hours(24 * u64::from(lock.minimum_days))),
        }
    }
}

fn by_url(text: &str) -> Result<config::Repository, Failure> {
    let text = if text.starts_with("./") || text.starts_with("../") {
        std::path::absolute(text)?.to_string_lossy().into_owned()
    } else {
        text.to_owned()
    };
    let url: Url = text.parse().map_err(|why| Fault::Usage {
        message: format!("{} is no repository's URL: {why}", if text.contains('@') { "that" } else { &text }),
        hint: None,
    })?;
    Ok(config::Repository::at(url))
}

/// Whether the environment's credentials take the place of a document's, whose files are on other machines.
fn stood_in_for(document: &config::Credentials) -> bool {
    let given = |name: &str| SecretRef::Env(name.into()).is_here();
    !document.access_key_id.is_here() && (given("AWS_ACCESS_KEY_ID") || given("AWS_PROFILE"))
}

/// A secret from a file that was named on the command line, else from where the document says.
fn secret(
    opened: &Opened,
    file: Option<&Path>,
    document: Option<&SecretRef>,
) -> Result<Option<Zeroizing<String>>, Failure> {
    let given = file.map(|file| SecretRef::File(PathBuf::from(file)));
    let text = given.as_ref().or(document).map(SecretRef::read).transpose()?;
    if let Some((kit, url)) = text.as_deref().and_then(|text| kit::repository(text)) {
        let opened = opened.repository.root().id;
        // Even if its identity opens this one: whoever made it knew the recipient, and may have put it here instead.
        if kit != opened.to_string() {
            return Err(Fault::OtherKit { kit, url, opened }.into());
        }
    }
    Ok(text)
}

/// The line that holds a key, so that the recovery kit can be given where a key is asked for.
fn line_with<'a>(text: &'a str, prefix: &str) -> &'a str {
    text.lines().map(str::trim).find(|line| line.starts_with(prefix)).unwrap_or(text)
}
