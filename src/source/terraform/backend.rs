//! What every backend can do.

use crate::source::{Context, SourceError};
use serde_json::{Value, json};
use std::time::Duration;

/// For taking a lock away after a run has ended.
pub(super) const UNLOCKING: Duration = Duration::from_secs(30);

/// A place that keeps states.
pub(super) trait Backend: Send {
    /// How people call it.
    fn place(&self) -> String;

    /// Workspaces that may have a state.
    fn workspaces(&self, context: &Context) -> Result<Vec<String>, SourceError>;

    /// A workspace's state, if it has one.
    fn read(&self, context: &Context, workspace: &str) -> Result<Option<Vec<u8>>, SourceError>;

    /// Whether Terraform would take what is there, those bytes, for the workspace's state.
    fn agrees(&self, _context: &Context, _workspace: &str, _state: &[u8]) -> Result<bool, SourceError> {
        Ok(true)
    }

    /// Replaces a workspace's state. The lock is held.
    fn write(&self, context: &Context, workspace: &str, state: &[u8], lock: &Lock) -> Result<(), SourceError>;

    /// Who holds the lock, as far as that can be seen without taking it.
    fn holder(&self, context: &Context, workspace: &str) -> Result<Option<String>, SourceError>;

    /// Takes the lock. The inner error: who holds it.
    fn lock(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<Result<(), String>, SourceError>;

    fn unlock(&self, context: &Context, workspace: &str, lock: &Lock) -> Result<(), SourceError>;
}

/// Terraform's lock information (`statemgr.LockInfo`).
#[derive(Clone, Debug)]
pub(super) struct Lock {
    pub id: String,
    created: String,
}

impl Lock {
    pub fn new(context: &Context) -> Result<Self, SourceError> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SourceError::System {
            attempt: "lock a state".into(),
            text: "there are no random numbers".into(),
            need: String::new(),
        })?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        Ok(Self { id, created: context.now().to_string() })
    }

    pub fn info(&self, path: &str) -> Value {
        json!({
            "ID": self.id, "Operation": "restore", "Info": "", "Who": "lifeboat", "Version": "",
            "Created": self.created, "Path": path,
        })
    }

    /// Whether that is this one's information.
    pub fn wrote(&self, info: &[u8]) -> bool {
        serde_json::from_slice::<Value>(info).is_ok_and(|value| value["ID"] == self.id.as_str())
    }
}

/// Who wrote a lock's information.
pub(super) fn told(info: &[u8]) -> String {
    let value: Value = serde_json::from_slice(info).unwrap_or_default();
    let field = |name: &str| value[name].as_str().unwrap_or("?").to_owned();
    format!("{} since {} for {} (lock {})", field("Who"), field("Created"), field("Operation"), field("ID"))
}
