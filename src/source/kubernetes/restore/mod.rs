//! Bringing objects back into a cluster.
//!
//! The snapshot is read in passes (see [`Stage`]), some objects at a time. Planning and applying judge an object by the
//! same rule ([`judge`]); what would be changed more than the plan says is left alone. Objects are given by server-side
//! apply, and put over what is there where something has to go. Deliberately absent: the content of volumes; deleting
//! what the snapshot does not hold.

mod apply;
mod judge;

use super::api::{Api, Ask};
use super::choose::Choice;
use super::fence::HeldObject;
use super::index::{Index, Item, object, unwrapped};
use super::kinds::{Found, Kind, discover};
use super::order::{CRDS, Stage};
use super::rewrite::Rules;
use super::{Spec, normal};
use crate::entry::{Problem, Supply};
use crate::source::target::{Action, Applied, Change, Options, Plan, Target};
use crate::source::{Context, SourceError};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;

/// Objects in memory, and under way to the server.
const BATCH: usize = 32;
const AT_ONCE: usize = 16;

pub struct Cluster {
    spec: Spec,
    options: Options,
}

impl Cluster {
    pub fn new(spec: Spec, options: Options) -> Self {
        Self { spec, options }
    }
}

/// An object to be brought back.
struct Wanted {
    /// In the snapshot.
    path: Vec<u8>,
    /// Resource and group.
    word: String,
    kind: Result<Kind, String>,
    /// Where it is restored.
    namespace: Option<String>,
    name: String,
    /// Its UID in the snapshot.
    uid: String,
    /// Stripped, moved to its namespace, and changed as people want it.
    body: Value,
    /// Why it cannot be changed so.
    refused: Option<String>,
    /// It is only made if it is missing.
    along: bool,
    /// The status that it gets when it is made.
    status: Option<Value>,
}

impl Wanted {
    fn what(&self) -> String {
        let kind = self.body["kind"].as_str().unwrap_or_default().to_lowercase();
        let kind = self.word.split_once('.').map_or(kind.clone(), |(_, group)| format!("{kind}.{group}"));
        match &self.namespace {
            Some(namespace) => format!("{kind}/{} in {namespace}", self.name),
            None => format!("{kind}/{}", self.name),
        }
    }
}

/// What is there of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Ready,
    Missing,
    Going,
}

/// Takes some objects of one kind.
type Each<'e, R> = dyn FnMut(&mut R, &[Wanted]) -> Result<(), SourceError> + 'e;

struct Run<'a> {
    context: &'a Context,
    api: &'a Api,
    options: &'a Options,
    rules: &'a Rules,
    index: &'a Index,
    found: Found,
    rooms: BTreeMap<String, Room>,
    /// Namespaces that were missing when this run began.
    fresh: BTreeSet<String>,
    /// New UIDs by those in the snapshot.
    uids: HashMap<String, String>,
    /// UIDs in the snapshot of objects that are now as it holds them; others keep their owners.
    restored: BTreeSet<String>,
    /// What fences hold back in this cluster.
    held: Vec<&'a HeldObject>,
}

impl Run<'_> {
    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, SourceError> {
        self.context.wait(work)
    }

    fn target_namespace(&self, item: &Item) -> Option<String> {
        let own = item.place.namespace.as_ref()?;
        Some(self.options.namespaces.get(own).unwrap_or(own).clone())
    }

    /// Looks at every namespace that something is restored to.
    fn survey(&mut self) -> Result<(), SourceError> {
        let items = self.index.items.values().filter(|item| item.left.is_none());
        let names: BTreeSet<String> = items.filter_map(|item| self.target_namespace(item)).collect();
        for name in names {
            let room = match self.api.ask(self.context, "/api/v1/namespaces", &Ask::Get(&name))? {
                Ok(live) if live["metadata"]["deletionTimestamp"].is_string() => Room::Going,
                Ok(_) => Room::Ready,
                Err(failure) if failure.code() == 404 => Room::Missing,
                // Not ours to see; its objects may be.
                Err(failure) if failure.code() == 403 => Room::Ready,
                Err(failure) => return Err(self.api.fatal("look for a namespace", &failure).into()),
            };
            self.rooms.insert(name, room);
        }
        Ok(())
    }

    /// Gives the objects of a stage to `each`, some of one kind at a time.
    fn pass(&mut self, supply: &dyn Supply, stage: Stage, each: &mut Each<'_, Self>) -> Result<(), SourceError> {
        let (context, index) = (self.context, self.index);
        let mut batch: Vec<Wanted> = Vec::new();
        let walked = supply.entries(&mut |entry, body| {
            let Some(item) = index.wanted(&entry.path).filter(|item| item.place.stage() == stage) else {
                return Ok(());
            };
            if batch.len() >= BATCH || batch.last().is_some_and(|last| last.word != item.place.word) {
                context.go_on().and_then(|()| each(self, &batch)).map_err(std::io::Error::other)?;
                batch.clear();
            }
            batch.push(self.wanted(&entry.path, item, object(&entry.path, body)?));
            Ok(())
        });
        walked.map_err(|error| unwrapped(context, error))?;
        if batch.is_empty() { Ok(()) } else { each(self, &batch) }
    }

    fn wanted(&self, path: &[u8], item: &Item, mut body: Value) -> Wanted {
        let word = item.place.word.clone();
        let status = self.options.status && is_custom(&word);
        let status = status.then(|| body["status"].take()).filter(|status| !status.is_null());
        normal::strip(&word, &mut body);
        normal::relocate(&word, &mut body, &self.options.namespaces);
        let refused = self.rules.apply(&item.place, &mut body).err();
        Wanted {
            path: path.to_vec(),
            kind: self.found.of(&body),
            namespace: self.target_namespace(item),
            name: body["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            uid: item.uid.clone(),
            along: item.along,
            refused,
            status,
            word,
            body,
        }
    }

    /// Is the definition of these custom objects in the snapshot too?
    fn is_defined(&self, word: &str) -> bool {
        let path = format!("{}/{CRDS}/{word}.yaml", super::CLUSTER);
        self.index.wanted(path.as_bytes()).is_some()
    }
}

/// Is the kind one that somebody has defined? What Kubernetes itself and its extensions define they also watch over.
fn is_custom(word: &str) -> bool {
    word.split_once('.').is_some_and(|(_, group)| group.contains('.') && !group.ends_with("k8s.io"))
}

impl Target for Cluster {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        context.go_on()?;
        let api = Api::connect(context, &self.spec)?;
        let version = api.version(context)?;
        let system = api.system(context)?;
        let mut about = vec![format!("{}: Kubernetes {version}", api.server)];
        if let (Some(there), Some(taken)) = (&system, &supply.facts().system)
            && there != taken
        {
            if !self.options.foreign {
                return Err(SourceError::System {
                    attempt: format!("restore into the cluster at {}", api.server),
                    text: format!("it is cluster {there}, and the snapshot is of cluster {taken}"),
                    need: "if it is meant to take over from that one, add --foreign".into(),
                });
            }
            about.push(format!("this is another cluster ({there}) than the one that was captured ({taken})"));
        }
        let (choice, rules) = (Choice::new(&self.options)?, Rules::new(&self.options)?);
        let index = Index::read(supply, &choice).map_err(|error| unwrapped(context, error))?;
        self.refuse_collisions(&index)?;
        let places: Vec<_> = index.items.values().map(|item| &item.place).collect();
        about.extend(choice.unused(&places).map(|pattern| format!("nothing in the snapshot fits {pattern:?}")));
        about.extend(
            rules.unused(&places).map(|pattern| format!("no object in the snapshot fits the patch of {pattern}")),
        );
        about.extend(index.left().iter().map(|(left, count)| format!("{count} objects {}", left.describe())));
        let mut run = self.run(context, &api, &index, &rules)?;
        let rooms = |wanted: Room| run.rooms.values().filter(|room| **room == wanted).count();
        about.push(format!("namespaces: {} are there, {} are not", rooms(Room::Ready), rooms(Room::Missing)));
        let mut changes = Vec::new();
        for stage in Stage::ALL {
            run.pass(supply, stage, &mut |run, batch| {
                for (wanted, judged) in batch.iter().zip(run.judge_all(batch)?) {
                    changes.push(Change { what: wanted.what(), action: judged });
                }
                Ok(())
            })?;
        }
        Ok(Plan { target: system.unwrap_or(api.server), about, changes })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        context.go_on()?;
        let api = Api::connect(context, &self.spec)?;
        let system = api.system(context)?.unwrap_or_else(|| api.server.clone());
        if system != plan.target {
            let what = format!("the plan is for the cluster {}, and this is {system}", plan.target);
            return Err(SourceError::Spec { what });
        }
        let (choice, rules) = (Choice::new(&self.options)?, Rules::new(&self.options)?);
        let index = Index::read(supply, &choice).map_err(|error| unwrapped(context, error))?;
        let planned: HashMap<&str, &Action> =
            plan.changes.iter().map(|change| (&*change.what, &change.action)).collect();
        let mut run = self.run(context, &api, &index, &rules)?;
        let held = self.options.held.iter().filter(|(cluster, _)| *cluster == system);
        run.held = held.flat_map(|(_, held)| &held.objects).collect();
        let mut applied = Applied::default();
        let mut same = 0;
        for stage in Stage::ALL {
            run.pass(supply, stage, &mut |run, batch| {
                for (wanted, done) in batch.iter().zip(run.apply_all(batch, &planned)?) {
                    if let Some(uid) = done.uid {
                        if done.action != Action::Skip {
                            run.restored.insert(wanted.uid.clone());
                        }
                        run.uids.insert(wanted.uid.clone(), uid);
                    }
                    same += usize::from(done.same);
                    if let Action::Conflict(text) = &done.action {
                        let text = format!("{}: {text}", wanted.what());
                        applied.problems.push(Problem { path: wanted.path.clone(), text });
                    }
                    applied.changes.push(Change { what: wanted.what(), action: done.action });
                }
                Ok(())
            })?;
            run.complete(stage, &mut applied)?;
        }
        run.link_owners(&mut applied)?;
        applied.checked.push(format!("{same} of {} objects are as the snapshot holds them", applied.changes.len()));
        if applied.problems.iter().any(|problem| problem.text.contains("failed calling webhook")) {
            let text = "a webhook whose service does not run keeps objects out: delete its configuration and run the \
                        same command again, which restores it last";
            applied.to_do.push(text.into());
        }
        applied.checked.extend(index.left().iter().map(|(left, count)| format!("{count} objects {}", left.describe())));
        Ok(applied)
    }
}

impl Cluster {
    /// Two namespaces in one would overwrite each other's objects.
    fn refuse_collisions(&self, index: &Index) -> Result<(), SourceError> {
        let restored = index.items.values().filter(|item| item.left.is_none());
        let captured: BTreeSet<&String> = restored.filter_map(|item| item.place.namespace.as_ref()).collect();
        let mut taken = BTreeMap::new();
        for name in captured {
            let target = self.options.namespaces.get(name).unwrap_or(name);
            if let Some(other) = taken.insert(target, name) {
                return Err(SourceError::System {
                    attempt: format!("restore the namespaces {other} and {name}"),
                    text: format!("both would become {target}"),
                    need: "restore one of them by itself (name its path), or under another name".into(),
                });
            }
        }
        Ok(())
    }

    fn run<'a>(
        &'a self,
        context: &'a Context,
        api: &'a Api,
        index: &'a Index,
        rules: &'a Rules,
    ) -> Result<Run<'a>, SourceError> {
        let found = discover(context, api)?;
        let options = &self.options;
        let (rooms, fresh, uids, restored) = (BTreeMap::new(), BTreeSet::new(), HashMap::new(), BTreeSet::new());
        let held = Vec::new();
        let mut run = Run { context, api, options, rules, index, found, rooms, fresh, uids, restored, held };
        run.survey()?;
        let missing = run.rooms.iter().filter(|(_, room)| **room == Room::Missing);
        run.fresh = missing.map(|(name, _)| name.clone()).collect();
        Ok(run)
    }
}
