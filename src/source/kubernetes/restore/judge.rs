//! What happens to one object, by what is there now.

use super::{AT_ONCE, Room, Run, Wanted};
use crate::source::SourceError;
use crate::source::kubernetes::api::{Ask, Failure};
use crate::source::kubernetes::normal::{carry, strip};
use crate::source::kubernetes::order::{CRDS, NAMESPACES, VOLUMES};
use crate::source::target::{Action, Existing};
use futures_util::{StreamExt as _, stream};
use serde_json::Value;

/// Deleting these would take what they hold with them.
const NEVER_DELETED: [&str; 4] = [CRDS, NAMESPACES, VOLUMES, "persistentvolumeclaims"];

pub struct Judged {
    pub action: Action,
    pub live: Option<Value>,
}

impl Judged {
    fn conflict(text: impl Into<String>) -> Self {
        Self { action: Action::Conflict(text.into()), live: None }
    }
}

impl Run<'_> {
    /// For a plan: what the server would refuse is a conflict already.
    pub(super) fn judge_all(&self, batch: &[Wanted]) -> Result<Vec<Action>, SourceError> {
        let judged = stream::iter(batch).map(|wanted| async move {
            let judged = self.judge(wanted).await?;
            Ok::<_, Failure>(match judged.action {
                Action::Create => self.rehearse(wanted).await?,
                action => action,
            })
        });
        let judged: Vec<_> = self.wait(judged.buffered(AT_ONCE).collect::<Vec<_>>())?;
        let fatal = |failure: Failure| self.api.fatal("look at the cluster", &failure).into();
        judged.into_iter().map(|one| one.map_err(fatal)).collect()
    }

    pub(super) async fn judge(&self, wanted: &Wanted) -> Result<Judged, Failure> {
        if let Some(text) = &wanted.refused {
            return Ok(Judged::conflict(text));
        }
        match wanted.namespace.as_ref().and_then(|name| self.rooms.get(name)) {
            Some(Room::Going) => {
                return Ok(Judged::conflict("its namespace is being deleted; wait until that has ended"));
            }
            Some(Room::Missing) => return Ok(Judged { action: Action::Create, live: None }),
            Some(Room::Ready) | None => {}
        }
        let kind = match &wanted.kind {
            Ok(kind) => kind,
            Err(_) if self.is_defined(&wanted.word) => return Ok(Judged { action: Action::Create, live: None }),
            Err(text) => return Ok(Judged::conflict(text)),
        };
        let path = kind.path(wanted.namespace.as_deref());
        let live = match self.api.send(&path, &Ask::Get(&wanted.name)).await {
            Ok(live) => live,
            Err(failure) if failure.code() == 404 => return Ok(Judged { action: Action::Create, live: None }),
            Err(failure) if failure.code() == 403 => return Ok(Judged::conflict(failure.text())),
            Err(failure) => return Err(failure),
        };
        if live["metadata"]["deletionTimestamp"].is_string() {
            return Ok(Judged::conflict("it is being deleted; wait until that has ended"));
        }
        let action = self.compare(wanted, &path, &live).await?;
        Ok(Judged { action, live: Some(live) })
    }

    async fn compare(&self, wanted: &Wanted, path: &str, live: &Value) -> Result<Action, Failure> {
        let mut now = live.clone();
        strip(&wanted.word, &mut now);
        if wanted.word == VOLUMES {
            let claim = |volume: &Value| volume["spec"]["claimRef"].clone();
            match live["status"]["phase"].as_str() {
                // Its claim is gone, and is restored: it may have its volume back.
                Some("Released") if claim(&now) == claim(&wanted.body) => return Ok(Action::Adopt),
                Some("Bound" | "Released") if claim(&now) != claim(&wanted.body) => {
                    // It is another claim's now, whatever people want of objects that are there.
                    return Ok(Action::Skip);
                }
                _ => {}
            }
        }
        if now == wanted.body {
            return Ok(Action::Unchanged);
        }
        if wanted.along {
            return Ok(Action::Skip);
        }
        // The server may fill in what another version of it did not, and has the last word.
        let mut body = wanted.body.clone();
        carry(&wanted.word, live, &mut body);
        let refused = match self.api.send(path, &Ask::Put { name: &wanted.name, body: &body, dry: true }).await {
            Ok(mut then) => {
                strip(&wanted.word, &mut then);
                if then == now {
                    return Ok(Action::Unchanged);
                }
                None
            }
            Err(failure @ Failure::Transport(_)) => return Err(failure),
            // Somebody changes it at this moment, or a webhook knows no rehearsals.
            Err(failure) if matches!(failure.code(), 400 | 409 | 500..) => None,
            // What it does not let us write, it does not let us make anew either.
            Err(failure) if failure.code() == 403 => {
                return Ok(Action::Conflict(format!("the server refuses it: {}", failure.text())));
            }
            Err(failure) => Some(failure.text().to_owned()),
        };
        let replace = self.options.existing == Existing::Replace && !NEVER_DELETED.contains(&&*wanted.word);
        Ok(match (self.options.existing, refused) {
            (Existing::Skip, _) => Action::Skip,
            (Existing::Replace, _) if replace => Action::Replace,
            (_, None) => Action::Update,
            (_, Some(text)) => Action::Conflict(format!("it cannot be changed to what the snapshot holds: {text}")),
        })
    }

    /// Would the server take the object?
    async fn rehearse(&self, wanted: &Wanted) -> Result<Action, Failure> {
        let room = wanted.namespace.as_ref().and_then(|name| self.rooms.get(name));
        let (Ok(kind), true) = (&wanted.kind, room != Some(&Room::Missing)) else { return Ok(Action::Create) };
        let path = kind.path(wanted.namespace.as_deref());
        let ask = Ask::Apply { name: &wanted.name, body: &wanted.body, dry: true };
        match self.api.send(&path, &ask).await {
            Err(failure @ Failure::Transport(_)) => Err(failure),
            Err(failure) if matches!(failure.code(), 403 | 422) => {
                Ok(Action::Conflict(format!("the server refuses it: {}", failure.text())))
            }
            _ => Ok(Action::Create),
        }
    }
}
