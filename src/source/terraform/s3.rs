//! The s3 backend: an object per workspace, a lock file beside it (`use_lockfile`), and perhaps a table ([`super::dynamodb`]).

use super::backend::{Backend, Lock, UNLOCKING, told};
use super::dynamodb::Table;
use super::state::MAX_STATE;
use super::{DEFAULT, S3};
use crate::source::{Context, SourceError};
use crate::store::s3::{Credentials, Settings, client, failed};
use crate::store::{StoreError, StoreErrorKind};
use aws_sdk_s3::Client;

pub(super) struct Bucket {
    spec: S3,
    client: Client,
    table: Option<Table>,
}

impl Bucket {
    pub fn new(context: &Context, spec: S3) -> Result<Self, SourceError> {
        let mut settings = Settings::new(&spec.bucket);
        (settings.endpoint, settings.region) = (spec.endpoint.clone(), spec.region.clone());
        settings.path_style = spec.path_style;
        if let Some(credentials) = &spec.credentials {
            settings.credentials = Credentials::Static {
                access_key: credentials.access_key_id.read()?.to_string(),
                secret_key: credentials.secret_access_key.read()?.to_string(),
                session_token: None,
            };
        }
        let client = context.wait(client(&settings))?;
        let table = Table::new(context, &spec, &settings)?;
        Ok(Self { spec, client, table })
    }

    /// Keys of all workspaces but the first begin with it.
    fn prefix(&self) -> String {
        match self.spec.workspace_key_prefix.as_deref().unwrap_or("env:").trim_end_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        }
    }

    fn key(&self, workspace: &str) -> String {
        if workspace == DEFAULT {
            return self.spec.key.clone();
        }
        format!("{}{workspace}/{}", self.prefix(), self.spec.key)
    }

    fn lock_key(&self, workspace: &str) -> String {
        format!("{}.tflock", self.key(workspace))
    }

    /// What the table calls a workspace's state.
    fn state(&self, workspace: &str) -> String {
        format!("{}/{}", self.spec.bucket, self.key(workspace))
    }

    fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.spec.bucket)
    }

    fn get(&self, context: &Context, key: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let got = context.wait(async {
            let answer = self.client.get_object().bucket(&self.spec.bucket).key(key).send().await;
            let answer = match answer.map_err(|error| failed("read", self.url(key), &error)) {
                Ok(answer) => answer,
                Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            if answer
                .content_length()
                .is_some_and(|length| usize::try_from(length).is_ok_and(|length| length > MAX_STATE))
            {
                let error = StoreError::new(StoreErrorKind::Other, "read", self.url(key));
                return Err(error.because("it is too large for a state"));
            }
            let broke = |error| StoreError::new(StoreErrorKind::Unavailable, "read", self.url(key)).because(error);
            Ok(Some(answer.body.collect().await.map_err(broke)?.to_vec()))
        })?;
        Ok(got?)
    }
}

impl Backend for Bucket {
    fn place(&self) -> String {
        self.url(&self.spec.key)
    }

    fn workspaces(&self, context: &Context) -> Result<Vec<String>, SourceError> {
        let mut names = vec![DEFAULT.to_owned()];
        let prefix = self.prefix();
        let mut token = None;
        loop {
            let request = self.client.list_objects_v2().bucket(&self.spec.bucket).prefix(&prefix);
            let answer = context.wait(request.set_continuation_token(token).send())?;
            let answer = answer.map_err(|error| failed("list", self.url(&prefix), &error))?;
            let keys = answer.contents().iter().filter_map(|object| object.key());
            let below = keys.filter_map(|key| key.strip_prefix(&prefix)?.split_once('/'));
            names.extend(below.filter(|(_, key)| *key == self.spec.key).map(|(name, _)| name.to_owned()));
            token = answer.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(names);
            }
        }
    }

    fn read(&self, context: &Context, workspace: &str) -> Result<Option<Vec<u8>>, SourceError> {
        self.get(context, &self.key(workspace))
    }

    fn agrees(&self, context: &Context, workspace: &str, state: &[u8]) -> Result<bool, SourceError> {
        let Some(table) = &self.table else { return Ok(true) };
        table.agrees(context, &self.state(workspace), state)
    }

    fn write(&self, context: &Context, workspace: &str, state: &[u8], _lock: &Lock) -> Result<(), SourceError> {
        let key = self.key(workspace);
        let request = self.client.put_object().bucket(&self.spec.bucket).key(&key).content_type("application/json");
        let answer = context.wait(request.body(state.to_vec().into()).send())?;
        answer.map_err(|error| failed("write", self.url(&key), &error))?;
        let Some(table) = &self.table else { return Ok(()) };
        table.note(context, &self.state(workspace), state)
    }

    fn holder(&self, context: &Context, workspace: &str) -> Result<Option<String>, SourceError> {
        if let Some(info) = self.lock_info(context, workspace)? {
            return Ok(Some(told(&info)));
        }
        self.table.as_ref().map_or(Ok(None), |table| table.holder(context, &self.state(workspace)))
    }

    fn lock(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<Result<(), String>, SourceError> {
        let locked = self.take_locks(context, workspace, lock);
        if !matches!(locked, Ok(Ok(()))) {
            // One of two may have been taken, or an answer lost on its way.
            if let Err(error) = self.unlock(&context.afterwards(UNLOCKING), workspace, lock) {
                let id = &lock.id;
                tracing::error!(workspace, id, error = &error as &dyn std::error::Error, "the state may stay locked");
            }
        }
        locked
    }

    fn unlock(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<(), SourceError> {
        let table = self.table.as_ref().map_or(Ok(()), |table| table.unlock(context, &self.state(workspace), lock));
        self.unlock_file(context, workspace, lock).and(table)
    }
}

impl Bucket {
    fn take_locks(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<Result<(), String>, SourceError> {
        if let Err(holder) = self.lock_file(context, workspace, lock)? {
            return Ok(Err(holder));
        }
        self.table.as_ref().map_or(Ok(Ok(())), |table| table.lock(context, &self.state(workspace), lock))
    }

    /// What the lock file says, if there is one.
    fn lock_info(&self, context: &Context, workspace: &str) -> Result<Option<Vec<u8>>, SourceError> {
        match self.get(context, &self.lock_key(workspace)) {
            Err(SourceError::Store(error)) if self.locks_by_table_alone(&error) => Ok(None),
            got => got,
        }
    }

    /// Terraform asks for no right to lock files where a table has the locks.
    fn locks_by_table_alone(&self, error: &StoreError) -> bool {
        self.table.is_some() && error.kind == StoreErrorKind::Denied
    }

    fn lock_file(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<Result<(), String>, SourceError> {
        let key = self.lock_key(workspace);
        let request = self.client.put_object().bucket(&self.spec.bucket).key(&key).if_none_match("*");
        let info = lock.info(&self.url(&self.key(workspace))).to_string();
        match context.wait(request.body(info.into_bytes().into()).send())? {
            Ok(_) => Ok(Ok(())),
            Err(error) => match failed("lock", self.url(&key), &error) {
                error if error.kind == StoreErrorKind::AlreadyExists => {
                    Ok(Err(self.holder(context, workspace)?.unwrap_or_else(|| "somebody".into())))
                }
                error if self.locks_by_table_alone(&error) => Ok(Ok(())),
                error => Err(error.into()),
            },
        }
    }

    /// Whoever else holds it goes on holding it.
    fn unlock_file(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<(), SourceError> {
        let key = self.lock_key(workspace);
        if !self.lock_info(context, workspace)?.is_some_and(|info| lock.wrote(&info)) {
            return Ok(());
        }
        let answer = context.wait(self.client.delete_object().bucket(&self.spec.bucket).key(&key).send())?;
        answer.map(|_| ()).map_err(|error| failed("remove the lock", self.url(&key), &error).into())
    }
}
