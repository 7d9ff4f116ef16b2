//! Carrying out what a plan says of an object, and waiting for what the next stage needs.

use super::{AT_ONCE, Room, Run, Wanted};
use crate::entry::Problem;
use crate::source::SourceError;
use crate::source::kubernetes::api::{Ask, Failure};
use crate::source::kubernetes::fence::mark::{keep_held, make_held};
use crate::source::kubernetes::kinds::{Kind, discover};
use crate::source::kubernetes::normal::{carry, strip};
use crate::source::kubernetes::order::{CRDS, Stage};
use crate::source::target::{Action, Applied};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// For a definition or a namespace to become usable, or an object to disappear.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(200);
/// How often something is begun again that somebody else changes meanwhile.
const TRIES: usize = 4;

pub struct Done {
    pub action: Action,
    /// The object's UID now.
    pub uid: Option<String>,
    /// The server's answer is what the snapshot holds.
    pub same: bool,
}

impl Done {
    fn conflict(text: impl Into<String>) -> Self {
        Self { action: Action::Conflict(text.into()), uid: None, same: false }
    }

    fn of(action: Action, wanted: &Wanted, mut now: Value) -> Self {
        let uid = now["metadata"]["uid"].as_str().map(str::to_owned);
        strip(&wanted.word, &mut now);
        Self { action, uid, same: now == wanted.body }
    }
}

impl Run<'_> {
    pub(super) fn apply_all(
        &self,
        batch: &[Wanted],
        planned: &HashMap<&str, &Action>,
    ) -> Result<Vec<Done>, SourceError> {
        let done = stream::iter(batch).map(|wanted| async move {
            match planned.get(&*wanted.what()) {
                None => Ok(Done::conflict("the plan does not know it; plan again")),
                Some(Action::Conflict(text)) => Ok(Done::conflict(text.as_str())),
                Some(planned) => self.carry_out(wanted, planned).await,
            }
        });
        let done: Vec<_> = self.wait(done.buffered(AT_ONCE).collect::<Vec<_>>())?;
        let each = batch.iter().zip(done).map(|(wanted, done)| match done {
            Ok(done) => Ok(done),
            Err(failure @ (Failure::Transport(_) | Failure::Status { code: 401, .. })) => {
                Err(self.api.fatal(&format!("restore {}", wanted.what()), &failure).into())
            }
            Err(failure) => Ok(Done::conflict(failure.text())),
        });
        each.collect()
    }

    async fn carry_out(&self, wanted: &Wanted, planned: &Action) -> Result<Done, Failure> {
        let fresh = wanted.namespace.as_ref().is_some_and(|name| self.fresh.contains(name));
        let mut last = None;
        for _ in 0..TRIES {
            let judged = self.judge(wanted).await?;
            let kind = match &wanted.kind {
                Ok(kind) => kind,
                Err(text) => return Ok(Done::conflict(text)),
            };
            let action = match (planned, judged.action) {
                // The cluster itself put it into the namespace that this run has made.
                (Action::Create, Action::Skip | Action::Update | Action::Replace) if fresh => Action::Update,
                (Action::Create | Action::Unchanged, Action::Skip | Action::Update | Action::Replace) => {
                    return Ok(Done::conflict("it has changed since the plan was made; plan again"));
                }
                (_, action) => action,
            };
            let made = matches!(action, Action::Create | Action::Replace);
            let answer = match (&action, judged.live) {
                (Action::Create, _) => self.create(wanted, kind, &self.behind_fences(wanted)).await,
                (Action::Update | Action::Adopt, Some(live)) => self.update(wanted, kind, &live).await,
                (Action::Replace, Some(live)) => self.replace(wanted, kind, &live).await,
                (Action::Conflict(text), _) => return Ok(Done::conflict(text)),
                (_, live) => {
                    let same = action == Action::Unchanged;
                    return Ok(Done { same, ..Done::of(action, wanted, live.unwrap_or_default()) });
                }
            };
            match answer {
                Ok(_) if made && let Err(failure) = self.give_status(wanted, kind).await => {
                    let text = format!("it was made, but its status could not be given back: {}", failure.text());
                    return Ok(Done::conflict(text));
                }
                Ok(now) => return Ok(Done::of(if fresh { planned.clone() } else { action }, wanted, now)),
                Err(failure) if failure.code() == 409 => last = Some(failure),
                Err(failure) => return Err(failure),
            }
            sleep(PAUSE).await;
        }
        Ok(Done::conflict(last.map_or_else(String::new, |failure| failure.text().to_owned())))
    }

    async fn create(&self, wanted: &Wanted, kind: &Kind, body: &Value) -> Result<Value, Failure> {
        let path = kind.path(wanted.namespace.as_deref());
        let begun = Instant::now();
        loop {
            let ask = Ask::Apply { name: &wanted.name, body, dry: false };
            match self.api.send(&path, &ask).await {
                // A definition that is new is not known to every part of the server at once.
                Err(failure)
                    if failure.code() == 404 && self.is_defined(&wanted.word) && begun.elapsed() < PATIENCE =>
                {
                    sleep(PAUSE).await;
                }
                // Server-side apply is stricter than the server: it takes no list with an item twice.
                Err(failure) if matches!(failure.code(), 400 | 422 | 500) => {
                    return self.api.send(&path, &Ask::Create { body }).await;
                }
                answer => return answer,
            }
        }
    }

    async fn give_status(&self, wanted: &Wanted, kind: &Kind) -> Result<(), Failure> {
        let Some(status) = &wanted.status else { return Ok(()) };
        let name = if kind.status { format!("{}/status", wanted.name) } else { wanted.name.clone() };
        let body = json!({ "status": status });
        let path = kind.path(wanted.namespace.as_deref());
        self.api.send(&path, &Ask::Merge { name: &name, body: &body }).await.map(|_| ())
    }

    async fn update(&self, wanted: &Wanted, kind: &Kind, live: &Value) -> Result<Value, Failure> {
        let path = kind.path(wanted.namespace.as_deref());
        let mut body = wanted.body.clone();
        carry(&wanted.word, live, &mut body);
        match self.api.send(&path, &Ask::Put { name: &wanted.name, body: &body, dry: false }).await {
            // Some fields cannot be put, and can be left to the server.
            Err(failure) if failure.code() == 422 => {
                let mut body = wanted.body.clone();
                keep_held(&wanted.word, live, &mut body);
                self.api.send(&path, &Ask::Apply { name: &wanted.name, body: &body, dry: false }).await
            }
            answer => answer,
        }
    }

    async fn replace(&self, wanted: &Wanted, kind: &Kind, live: &Value) -> Result<Value, Failure> {
        let path = kind.path(wanted.namespace.as_deref());
        let uid = live["metadata"]["uid"].as_str().unwrap_or_default();
        match self.api.send(&path, &Ask::Delete { name: &wanted.name, uid }).await {
            Err(failure) if failure.code() != 404 => return Err(failure),
            _ => {}
        }
        let begun = Instant::now();
        loop {
            match self.api.send(&path, &Ask::Get(&wanted.name)).await {
                Ok(there) if there["metadata"]["uid"] == uid => {}
                Ok(_) => break,
                Err(failure) if failure.code() == 404 => break,
                Err(failure) => return Err(failure),
            }
            if begun.elapsed() > PATIENCE {
                let text = format!("it was deleted, and is still there after {} s", PATIENCE.as_secs());
                return Err(Failure::Status { code: 500, text, go_on: None });
            }
            sleep(PAUSE).await;
        }
        let mut body = self.behind_fences(wanted).into_owned();
        keep_held(&wanted.word, live, &mut body);
        self.create(wanted, kind, &body).await
    }

    /// What a fence holds back may have been deleted, also by a replacement that was broken off: it does not come back at work.
    fn behind_fences<'w>(&self, wanted: &'w Wanted) -> Cow<'w, Value> {
        let mut body = Cow::Borrowed(&wanted.body);
        if self.held.iter().any(|held| held.names(&wanted.word, wanted.namespace.as_deref(), &wanted.name)) {
            make_held(&wanted.word, body.to_mut());
        }
        body
    }

    /// Waits until what comes after `stage` can be restored.
    pub(super) fn complete(&mut self, stage: Stage, applied: &mut Applied) -> Result<(), SourceError> {
        match stage {
            Stage::Definitions => self.definitions(applied),
            Stage::Cluster => self.namespaces(applied),
            Stage::Namespaced | Stage::Late => Ok(()),
        }
    }

    fn definitions(&mut self, applied: &mut Applied) -> Result<(), SourceError> {
        let items = self.index.items.values().filter(|item| item.left.is_none() && item.place.word == CRDS);
        let names: Vec<&str> = items.map(|item| &*item.place.name).collect();
        if names.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            self.found = discover(self.context, self.api)?;
            let missing: Vec<_> = names.iter().filter(|name| self.found.by_word(name).is_none()).collect();
            if missing.is_empty() || begun.elapsed() > PATIENCE {
                applied.checked.push(format!(
                    "{} of {} definitions are served",
                    names.len() - missing.len(),
                    names.len()
                ));
                return Ok(());
            }
            self.wait(async { sleep(PAUSE).await })?;
        }
    }

    /// Every namespace is made that is still missing (the snapshot may be without them), and active.
    fn namespaces(&mut self, applied: &mut Applied) -> Result<(), SourceError> {
        const PATH: &str = "/api/v1/namespaces";
        let names: Vec<String> = self.rooms.keys().cloned().collect();
        let mut active = 0;
        for name in &names {
            let begun = Instant::now();
            loop {
                match self.api.ask(self.context, PATH, &Ask::Get(name))? {
                    Ok(live) if live["status"]["phase"] == "Active" => {
                        self.rooms.insert(name.clone(), Room::Ready);
                        active += 1;
                        break;
                    }
                    Err(failure) if failure.code() == 404 => {
                        let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
                        let made = self.api.ask(self.context, PATH, &Ask::Apply { name, body: &body, dry: false })?;
                        if let Err(failure) = made {
                            let text = format!("make the namespace {name}: {}", failure.text());
                            applied.problems.push(Problem { path: name.clone().into_bytes(), text });
                            break;
                        }
                    }
                    _ if begun.elapsed() > PATIENCE => break,
                    Err(failure) if failure.code() == 403 => break,
                    Ok(_) | Err(_) => self.wait(async { sleep(PAUSE).await })?,
                }
            }
        }
        if !names.is_empty() {
            applied.checked.push(format!("{active} of {} namespaces are active", names.len()));
        }
        Ok(())
    }

    /// Gives objects their owners back, under the UIDs that those have now. Owners that are not there are left out: an
    /// owner's wrong UID would get the object deleted.
    pub(super) fn link_owners(&self, applied: &mut Applied) -> Result<(), SourceError> {
        let mut linked = 0;
        for (path, item) in &self.index.items {
            if item.left.is_some() || item.owners.is_empty() || !self.restored.contains(&item.uid) {
                continue;
            }
            let owners: Vec<Value> = item
                .owners
                .iter()
                .filter_map(|owner| {
                    let uid = self.uids.get(&owner.uid)?;
                    let mut reference = owner.reference.clone();
                    reference["uid"] = uid.as_str().into();
                    Some(reference)
                })
                .collect();
            let Some(kind) = self.found.by_word(&item.place.word).filter(|_| !owners.is_empty()) else { continue };
            let to = kind.path(self.target_namespace(item).as_deref());
            let body = json!({ "metadata": { "ownerReferences": owners } });
            match self.api.ask(self.context, &to, &Ask::Merge { name: &item.place.name, body: &body })? {
                Ok(_) => linked += 1,
                Err(failure) => {
                    let text = format!("give it its owner back: {}", failure.text());
                    applied.problems.push(Problem { path: path.clone(), text });
                }
            }
        }
        if linked > 0 {
            applied.checked.push(format!("{linked} objects have their owners again"));
        }
        Ok(())
    }
}
