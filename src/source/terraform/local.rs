//! The local backend: files in the configuration's directory, replaced by rename.

use super::backend::{Backend, Lock, told};
use super::state::MAX_STATE;
use super::{DEFAULT, FILE};
use crate::source::{Context, SourceError};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

pub(super) struct Local {
    spec: super::Local,
}

impl Local {
    pub fn new(spec: super::Local) -> Self {
        Self { spec }
    }

    fn file(&self, workspace: &str) -> PathBuf {
        if workspace == DEFAULT {
            return self.spec.directory.join(FILE);
        }
        self.spec.directory.join("terraform.tfstate.d").join(workspace).join(FILE)
    }

    /// Terraform leaves this beside a state that it holds.
    fn lock_file(&self, workspace: &str) -> PathBuf {
        self.file(workspace).with_file_name(format!(".{FILE}.lock.info"))
    }

    fn failed(attempt: &str, path: &std::path::Path, error: &io::Error) -> SourceError {
        SourceError::System {
            attempt: format!("{attempt} {}", path.display()),
            text: error.to_string(),
            need: String::new(),
        }
    }
}

impl Backend for Local {
    fn place(&self) -> String {
        self.spec.directory.display().to_string()
    }

    fn workspaces(&self, _context: &Context) -> Result<Vec<String>, SourceError> {
        let directory = &self.spec.directory;
        fs::read_dir(directory)
            .map_err(|source| SourceError::Root { path: directory.display().to_string(), source })?;
        let mut names = vec![DEFAULT.to_owned()];
        let others = directory.join("terraform.tfstate.d");
        let entries = match fs::read_dir(&others) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            Err(error) => return Err(Self::failed("list", &others, &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| Self::failed("list", &others, &error))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    fn read(&self, _context: &Context, workspace: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let path = self.file(workspace);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Self::failed("read", &path, &error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_STATE as u64 + 1).read_to_end(&mut bytes);
        match read {
            Ok(length) if length > MAX_STATE => {
                Err(Self::failed("read", &path, &io::Error::other("it is too large for a state")))
            }
            Ok(_) => Ok(Some(bytes)),
            Err(error) => Err(Self::failed("read", &path, &error)),
        }
    }

    fn write(&self, _context: &Context, workspace: &str, state: &[u8], lock: &Lock) -> Result<(), SourceError> {
        let path = self.file(workspace);
        let new = path.with_file_name(format!(".{FILE}.{}", lock.id));
        let write = || {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(state)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&new); // it may not be there
            Self::failed("write", &path, &error)
        })
    }

    fn holder(&self, _context: &Context, workspace: &str) -> Result<Option<String>, SourceError> {
        Ok(fs::read(self.lock_file(workspace)).ok().map(|info| told(&info)))
    }

    fn lock(&self, _context: &Context, workspace: &str, lock: &Lock) -> Result<Result<(), String>, SourceError> {
        let (path, state) = (self.lock_file(workspace), self.file(workspace));
        let take = || {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(lock.info(&state.display().to_string()).to_string().as_bytes())
        };
        match take() {
            Ok(()) => Ok(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(Err(fs::read(&path).map_or_else(|_| "somebody".into(), |info| told(&info))))
            }
            Err(error) => Err(Self::failed("write the lock", &path, &error)),
        }
    }

    fn unlock(&self, _context: &Context, workspace: &str, _lock: &Lock) -> Result<(), SourceError> {
        let path = self.lock_file(workspace);
        fs::remove_file(&path).map_err(|error| Self::failed("remove the lock", &path, &error))
    }
}
