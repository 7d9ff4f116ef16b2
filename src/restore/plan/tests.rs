//! Plans against worlds, without anything outside.

use super::document::{Document, Level, Plan};
use super::execute::{Attempt, End, Execution, Failure, Hands};
use super::journal::{Event, History, Journal, JournalError, Outcome, Record, State, Verdict};
use super::lint::{Ties, lint};
use super::report::Report;
use super::resolve::{Known, Point, Took, World, resolve};
use super::{Doing, Resolved, Task};
use crate::id::{Sequence, SourceName};
use crate::policy::Tier;
use crate::repo;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

fn at(text: &str) -> Timestamp {
    format!("2026-03-01T{text}:00Z").parse().unwrap()
}

fn source(name: &str) -> SourceName {
    name.parse().unwrap()
}

/// A plan of JSON steps, a line each.
fn plan(name: &str, level: &str, steps: Value) -> Plan {
    let mut document = json!({ "level": level });
    document["steps"] = steps;
    let document: Document = serde_json::from_value(document).unwrap();
    let mut before: Option<String> = None;
    let mut made = Vec::new();
    for (line, step) in document.steps.into_iter().enumerate() {
        let own = step.name.clone();
        let mut say = |field: &str, text: &str| panic!("{field}: {text}");
        made.push(step.into_step(line as u64 + 1, before.as_deref(), Path::new(""), &mut say).unwrap());
        before = Some(own);
    }
    let level = document.level;
    Plan { name: name.into(), file: "plans.yaml".into(), line: 1, level, tier: None, about: String::new(), steps: made }
}

fn plans(all: Vec<Plan>) -> BTreeMap<String, Plan> {
    all.into_iter().map(|plan| (plan.name.clone(), plan)).collect()
}

fn restore(name: &str, of: &str) -> Value {
    json!({ "name": name, "restore": { "source": of, "to": format!("/restored/{of}") } })
}

fn look(name: &str) -> Value {
    json!({ "name": name, "probe": { "tcp": { "address": "127.0.0.1:1" } } })
}

fn mistakes(all: &BTreeMap<String, Plan>, name: &str) -> Vec<String> {
    lint(all, &all[name], &Ties::default()).mistakes.iter().map(ToString::to_string).collect()
}

fn warnings(all: &BTreeMap<String, Plan>, name: &str) -> Vec<String> {
    lint(all, &all[name], &Ties::default()).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn steps_follow_each_other_unless_they_say_otherwise() {
    let all = plans(vec![plan(
        "p",
        "app",
        json!([
            restore("a", "x"),
            { "name": "b", "after": [], "restore": { "source": "y", "to": "/restored/y" } },
            { "name": "c", "after": ["a", "b"], "probe": { "tcp": { "address": "127.0.0.1:1" } } },
        ]),
    )]);
    let resolved = resolve("p", &world(&all, &["x", "y"])).unwrap();
    let after: Vec<_> = resolved.tasks.iter().map(|task| (task.name.as_str(), task.after.clone())).collect();
    assert_eq!(after, [("a", vec![]), ("b", vec![]), ("c", vec![0, 1])]);
    assert_eq!(resolved.warnings, [""; 0]);
}

#[test]
fn an_included_plan_stands_where_its_step_stands() {
    let all = plans(vec![
        plan("inner", "app", json!([restore("a", "x"), look("b"), { "name": "c", "after": ["a"], "ask": "well?" }])),
        plan("outer", "service", json!([look("first"), { "name": "in", "plan": "inner" }, look("last")])),
    ]);
    let resolved = resolve("outer", &world(&all, &["x"])).unwrap();
    let after: Vec<_> = resolved.tasks.iter().map(|task| (task.name.as_str(), task.after.clone())).collect();
    let expected = [("first", vec![]), ("in/a", vec![0]), ("in/b", vec![1]), ("in/c", vec![1]), ("last", vec![2, 3])];
    assert_eq!(after, expected);
}

#[test]
fn what_has_no_order_is_a_mistake() {
    let cases = [
        (
            json!([{ "name": "a", "after": ["b"], "ask": "?" }, { "name": "b", "after": ["a"], "ask": "?" }]),
            "wait for each other: a, b",
        ),
        (json!([{ "name": "a", "after": ["c"], "ask": "?" }]), "the plan has no such step"),
        (json!([look("a"), look("a")]), "there is a step of this name already"),
        (json!([{ "name": "a", "plan": "p" }]), "include each other: p → p"),
        (json!([{ "name": "a", "plan": "q" }]), "there is no RestorePlan named \"q\""),
        (json!([{ "name": "a", "plan": "big" }]), "region big is of a higher level than app p"),
        (json!([look("a"), { "name": "b", "unfence": "a" }]), "\"a\" is no fence"),
        (
            json!([restore("a", "x"), { "name": "b", "after": [], "restore": { "source": "y", "to": "/restored/x" } }]),
            "restore into /restored/x at the same time",
        ),
        (
            json!([restore("a", "x"), { "name": "b", "after": [], "restore": { "source": "y", "export": "/restored/x/y" } }]),
            "restore into /restored/x/y at the same time",
        ),
    ];
    for (steps, expected) in cases {
        let all = plans(vec![plan("p", "app", steps), plan("big", "region", json!([look("a")]))]);
        let found = mistakes(&all, "p");
        assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        assert!(found[0].starts_with("plans.yaml:"), "{found:?}");
    }
}

#[test]
fn a_consumer_comes_after_its_provider() {
    let needs = BTreeMap::from([(source("app"), BTreeSet::from([source("secrets")]))]);
    let ties = Ties { needs, ..Ties::default() };
    let judge = |steps| {
        let all = plans(vec![plan("p", "app", steps)]);
        lint(&all, &all["p"], &ties).mistakes.iter().map(|finding| finding.text.clone()).collect::<Vec<_>>()
    };
    assert_eq!(judge(json!([restore("a", "secrets"), restore("b", "app"), look("c")])), [""; 0]);
    let wrong = judge(json!([restore("b", "app"), restore("a", "secrets"), look("c")]));
    assert_eq!(wrong, ["app needs secrets, which this plan restores later or meanwhile"]);
    // What the plan does not restore is there already.
    assert_eq!(judge(json!([restore("b", "app"), look("c")])), [""; 0]);
}

#[test]
fn what_two_fences_hold_back_at_once_is_a_mistake() {
    let hold = |cluster: &str, hold: Value| {
        let steps = json!([
            { "name": "hold", "fence": { "cluster": cluster, "hold": hold } },
            look("a"),
            { "name": "go", "unfence": "hold" },
        ]);
        steps
    };
    let judge = |one: Value, other: Value, parallel: bool| {
        let after = if parallel { json!([]) } else { json!(["one"]) };
        let outer = json!([{ "name": "one", "plan": "one" }, { "name": "other", "after": after, "plan": "other" }]);
        let all = plans(vec![
            plan("one", "app", hold("a", one)),
            plan("other", "app", hold("b", other)),
            plan("both", "service", outer),
        ]);
        // Two documents of one cluster.
        let clusters = ["a", "b"].map(|name| (source(name), "the pod's own".to_owned())).into();
        let looked = lint(&all, &all["both"], &Ties { clusters, ..Ties::default() });
        let apart = lint(&all, &all["both"], &Ties::default());
        assert!(apart.mistakes.is_empty(), "{apart:?}");
        (looked.mistakes, looked.warnings.into_iter().filter(|warning| warning.text.contains("parent")).count())
    };
    let suspend = || json!({ "suspend": [{ "namespace": "lifeboat" }] });
    let scale = |names: Value| json!({ "scale": [{ "namespace": "shop", "names": names }] });
    let pause = |name: &str| json!({ "pauseSync": [{ "namespace": "argocd", "names": [name] }] });
    let (found, _) = judge(suspend(), suspend(), true);
    assert!(found.len() == 1 && found[0].text.contains("one/hold hold back cronjob/* in lifeboat"), "{found:?}");
    assert_eq!(judge(suspend(), suspend(), false).0, []);
    assert_eq!(judge(scale(json!(["deployment/a"])), scale(json!(["deployment/b", "statefulset/a"])), true).0, []);
    assert_eq!(judge(scale(json!(["deployment/a"])), scale(json!([])), true).0.len(), 1);
    assert_eq!(judge(scale(json!(["deployment/*"])), scale(json!(["deployment/b"])), true).0.len(), 1);
    assert_eq!(judge(pause("a"), pause("b"), true), (vec![], 1));
    assert_eq!(judge(pause("a"), pause("a"), true).0.len(), 1);
}

#[test]
fn what_nobody_would_notice_is_warned_of() {
    let close = json!({ "command": ["true"] });
    let all = plans(vec![
        plan(
            "p",
            "app",
            json!([
                { "name": "f", "fence": { "close": close, "open": close } },
                restore("a", "x"),
                { "name": "ask", "ask": "well?" },
            ]),
        ),
        plan("q", "app", json!([look("a")])),
    ]);
    let found = warnings(&all, "p");
    assert!(found[0].contains("p/f: no unfence step") && found[1].contains("p/a: no probe follows"), "{found:?}");
    assert!(warnings(&all, "q")[0].contains("it restores nothing"));
}

fn point(number: u64, moment: &str, run: &str) -> Point {
    let moment = at(moment);
    Point {
        sequence: Sequence(number),
        state: repo::State::Good,
        moment,
        bytes: 1000,
        run: run.into(),
        kind: "files".into(),
    }
}

/// Sources with two points each, of 11:50 and 11:58, at noon.
fn world<'a>(plans: &'a BTreeMap<String, Plan>, sources: &[&str]) -> World<'a> {
    let known = |_| Known { kind: "files", tier: Some(Tier::Critical), running: false };
    World {
        repository: "memory".into(),
        now: at("12:00"),
        at: None,
        run: None,
        chosen: BTreeMap::new(),
        plans,
        documents: sources.iter().map(|name| (source(name), known(name))).collect(),
        ties: Ties::default(),
        points: sources
            .iter()
            .map(|name| (source(name), vec![point(2, "11:58", "new"), point(1, "11:50", "old")]))
            .collect(),
        history: BTreeMap::new(),
    }
}

fn one() -> BTreeMap<String, Plan> {
    plans(vec![plan("p", "app", json!([restore("a", "x"), restore("b", "y"), look("c")]))])
}

fn chosen(resolved: &Resolved) -> Vec<(u64, u64)> {
    resolved
        .tasks
        .iter()
        .filter_map(|task| task.choice.as_ref())
        .map(|choice| (choice.sequence.0, choice.loss_ms / 60_000))
        .collect()
}

#[test]
fn the_newest_point_at_or_before_the_moment_is_taken() {
    let all = one();
    let mut world = world(&all, &["x", "y"]);
    let resolved = resolve("p", &world).unwrap();
    assert_eq!(chosen(&resolved), [(2, 2), (2, 2)]);
    assert_eq!((resolved.run.as_deref(), resolved.skew_ms, resolved.tier), (Some("new"), 0, Some(Tier::Critical)));
    // 11:55: two sources, one of which has a point in between.
    world.at = Some(at("11:55"));
    world.points.get_mut(&source("x")).unwrap().insert(1, point(7, "11:54", "between"));
    let resolved = resolve("p", &world).unwrap();
    assert_eq!(chosen(&resolved), [(7, 1), (1, 5)]);
    assert_eq!((resolved.run, resolved.skew_ms), (None, 4 * 60_000));
    world.at = Some(at("11:00"));
    let found = resolve("p", &world).unwrap_err();
    assert!(found[0].text.contains("no recovery point at or before") && found[0].line == 1, "{found:?}");
}

#[test]
fn a_set_holds_together_and_a_quarantined_snapshot_is_never_taken_silently() {
    let all = one();
    let mut world = world(&all, &["x", "y"]);
    world.run = Some("old".into());
    assert_eq!(chosen(&resolve("p", &world).unwrap()), [(1, 10), (1, 10)]);
    world.run = Some("lost".into());
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("the run lost left no snapshot of x"));
    world.run = None;
    world.points.get_mut(&source("x")).unwrap()[0].state = repo::State::Quarantined;
    let resolved = resolve("p", &world).unwrap();
    assert_eq!(chosen(&resolved), [(1, 10), (2, 2)]);
    assert!(resolved.warnings[0].contains("x@2 is newer and in quarantine"), "{:?}", resolved.warnings);
    assert!(resolved.warnings[1].contains("x@1 loses 10 m"), "{:?}", resolved.warnings);
    world.chosen.insert(source("x"), Sequence(2));
    let resolved = resolve("p", &world).unwrap();
    assert_eq!(chosen(&resolved), [(2, 2), (2, 2)]);
    assert!(resolved.warnings[0].contains("chosen by hand"));
    world.chosen.clear();
    world.points.get_mut(&source("x")).unwrap().remove(1);
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("all snapshots of x are in quarantine"));
    world.points.remove(&source("x"));
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("no snapshots of x"));
}

/// Rows and the files that they name, captured by runs of their own.
#[test]
fn files_that_were_captured_before_their_rows_are_warned_of() {
    let all = plans(vec![plan("p", "app", json!([restore("a", "rows"), restore("b", "files"), look("c")]))]);
    let mut world = world(&all, &["rows", "files"]);
    world.now = at("12:01");
    world.ties.after = [(source("files"), [source("rows")].into())].into();
    let mut resolved = |rows: &[(u64, &str, &str)], files: &[(u64, &str, &str)], limit: Option<&str>| {
        for (name, points) in [("rows", rows), ("files", files)] {
            let points = points.iter().map(|(number, moment, run)| point(*number, moment, run)).collect();
            world.points.insert(source(name), points);
        }
        world.at = limit.map(at);
        let resolved = resolve("p", &world).unwrap();
        let told = resolved.warnings.iter().find(|warning| warning.contains("should have been after"));
        (chosen(&resolved).into_iter().map(|(number, _)| number).collect::<Vec<_>>(), told.cloned())
    };
    let rows = [(2, "12:00", "r2"), (1, "11:58", "r1")];
    // After them, or with them in one run, which keeps the order itself.
    assert_eq!(resolved(&rows, &[(8, "12:00", "f8"), (7, "11:58", "f7")], None), (vec![2, 8], None));
    assert_eq!(resolved(&rows, &[(8, "11:59", "r2")], None), (vec![2, 8], None));
    // Before them: the newest of each all the same, and what would go together.
    let (numbers, told) = resolved(&rows, &[(7, "11:59", "f7")], None);
    let told = told.unwrap();
    assert_eq!(numbers, [2, 7]);
    assert!(told.contains("files@7 was captured 1 m before rows@2"), "{told}");
    assert!(
        told.contains("--snapshot rows@1 goes with it, and loses 2 m more") && !told.contains("has it all"),
        "{told}"
    );
    // What came after the moment that was asked for is never taken, but told of.
    let (numbers, told) = resolved(&rows, &[(9, "12:01", "f9"), (7, "11:57", "f7")], Some("12:00"));
    let told = told.unwrap();
    assert_eq!(numbers, [2, 7]);
    assert!(
        told.contains("--snapshot files@9, of 2026-03-01T12:01:00Z, has it all") && !told.contains("rows@1"),
        "{told}"
    );
}

#[test]
fn a_claim_is_named_with_its_cluster() {
    let claim = |cluster: &str| json!({ "cluster": cluster, "namespace": "shop", "name": "data", "image": "lifeboat" });
    let all = |cluster: &str| {
        let restore = json!([{ "name": "a", "restore": { "source": "x", "claim": claim(cluster) } }, look("c")]);
        plans(vec![plan("p", "app", restore)])
    };
    let (all, other) = (all("k"), all("x"));
    let mut world = world(&all, &["x"]);
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("there is no Source document named k"));
    world.documents.insert(source("k"), Known { kind: "kubernetes", tier: None, running: true });
    let resolved = resolve("p", &world).unwrap();
    let Doing::Restore(restore) = &resolved.tasks[0].doing else { panic!("it restores") };
    assert_eq!(restore.place(), "persistentvolumeclaim shop/data of k");
    assert_eq!((restore.system(), restore.path()), (None, None));
    world.plans = &other;
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("x is of kind files, and not a cluster"));
    let both = json!([
        { "name": "a", "restore": { "source": "x", "claim": claim("k") } },
        { "name": "b", "after": [], "restore": { "source": "y", "claim": claim("k") } },
    ]);
    let found = mistakes(&plans(vec![plan("p", "app", both)]), "p");
    assert!(
        found.len() == 1 && found[0].contains("into persistentvolumeclaim shop/data of k at the same time"),
        "{found:?}"
    );
}

#[test]
fn a_target_must_take_what_the_snapshot_is() {
    let all =
        plans(vec![plan("p", "app", json!([{ "name": "a", "restore": { "source": "x", "into": "y" } }, look("c")]))]);
    let mut world = world(&all, &["x", "y"]);
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("is not brought back into a running system"));
    let known = Known { kind: "vault", tier: None, running: true };
    world.documents.insert(source("y"), known);
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("x@2 is of kind files, and y is of kind vault"));
    world.documents.remove(&source("y"));
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("there is no Source document named y"));
}

#[test]
fn time_is_predicted_along_the_longest_way() {
    let all = plans(vec![plan(
        "p",
        "app",
        json!([
            restore("a", "x"),
            { "name": "b", "after": [], "budget": "20m", "restore": { "source": "y", "to": "/restored/y" } },
            { "name": "c", "after": ["a", "b"], "budget": "5m", "probe": { "tcp": { "address": "127.0.0.1:1" } } },
        ]),
    )]);
    let mut world = world(&all, &["x", "y"]);
    // Half the bytes took three minutes.
    world.history.insert(("p".into(), "a".into()), Took { time: Duration::from_mins(3), bytes: 500 });
    let resolved = resolve("p", &world).unwrap();
    assert_eq!(resolved.tasks[0].predicted_ms, Some(6 * 60_000));
    assert_eq!((resolved.predicted_ms, resolved.critical_path.clone()), (25 * 60_000, vec![1, 2]));
    world.history.insert(("p".into(), "a".into()), Took { time: Duration::from_mins(30), bytes: 1000 });
    let resolved = resolve("p", &world).unwrap();
    assert_eq!(resolved.critical_path, [0, 2]);
    assert!(resolved.warnings[0].contains("it will take about 35 m"), "{:?}", resolved.warnings);
}

#[test]
fn a_resolved_plan_survives_its_journal() {
    let all = one();
    let resolved = resolve("p", &world(&all, &["x", "y"])).unwrap();
    let text = serde_json::to_string(&resolved).unwrap();
    assert_eq!(serde_json::from_str::<Resolved>(&text).unwrap(), resolved);
}

/// A world in which steps leave traces, and whose process can be killed at any record.
#[derive(Default)]
struct Lab {
    /// What steps did, in order.
    log: Mutex<Vec<String>>,
    clock: AtomicI64,
    /// Steps that fail the first time that they are done.
    flaky: Mutex<BTreeSet<String>>,
    broken: Mutex<BTreeSet<String>>,
    closed: AtomicBool,
    stop: AtomicBool,
}

#[derive(Default)]
struct Memory {
    records: Vec<Record>,
    /// The process is killed when it would write one more.
    room: Option<usize>,
}

impl Journal for Memory {
    fn write(&mut self, record: &Record) -> Result<(), JournalError> {
        if self.room.is_some_and(|room| self.records.len() >= room) {
            return Err(JournalError::Elsewhere { id: "killed".into(), number: record.number });
        }
        // As on a disk: only what can be written can be read.
        self.records.push(serde_json::from_slice(&serde_json::to_vec(record).unwrap()).unwrap());
        Ok(())
    }
}

impl Hands for Lab {
    fn perform(&self, attempt: &mut Attempt<'_>) -> Result<Outcome, Failure> {
        let name = attempt.task.name.clone();
        self.log.lock().unwrap().push(name.clone());
        assert!(!self.flaky.lock().unwrap().contains(&format!("{name} panics")));
        if self.broken.lock().unwrap().contains(&name) {
            return Err(Failure::Refused("broken".into()));
        }
        match &attempt.task.doing {
            Doing::Fence(_) => {
                if attempt.noted.is_none() {
                    assert!(!self.closed.load(Ordering::SeqCst), "it would take the closed state for the one before");
                    attempt.note(json!("three replicas"))?;
                }
                self.closed.store(true, Ordering::SeqCst);
            }
            Doing::Unfence(_) => {
                assert_eq!(attempt.noted, Some(json!("three replicas")));
                assert!(attempt.fence.is_some());
                self.closed.store(false, Ordering::SeqCst);
            }
            Doing::Restore(_) => assert!(self.closed.load(Ordering::SeqCst), "restored while writers were at work"),
            _ => {}
        }
        if self.flaky.lock().unwrap().remove(&name) {
            return Err(Failure::Failed("not this time".into()));
        }
        Ok(Outcome { bytes: 10, ..Outcome::default() })
    }

    fn open(&self, _: &Task, note: &Value, _: Instant) -> Result<Vec<String>, Failure> {
        assert_eq!(*note, json!("three replicas"));
        self.closed.store(false, Ordering::SeqCst);
        if self.broken.lock().unwrap().contains("open") {
            return Err(Failure::Failed("half open".into()));
        }
        Ok(vec!["three again".into()])
    }

    fn abandon(&self, _: usize, task: &Task) -> Result<Vec<String>, Failure> {
        let left = matches!(task.doing, Doing::Restore(_)) && self.log.lock().unwrap().contains(&task.name);
        assert!(!left || self.closed.load(Ordering::SeqCst), "cleared while writers were at work");
        if self.broken.lock().unwrap().contains(&format!("clear {}", task.name)) {
            return Err(Failure::Failed("in use".into()));
        }
        Ok(left.then(|| "cleared".to_owned()).into_iter().collect())
    }

    fn may_stay(&self, task: &Task, _: &str, _: Instant) -> Result<(), Failure> {
        let may = self.flaky.lock().unwrap().contains(&format!("{} stays", task.name));
        if may { Ok(()) } else { Err(Failure::Refused("not confirmed".into())) }
    }

    fn clock(&self) -> Timestamp {
        Timestamp::from_second(self.clock.fetch_add(1, Ordering::SeqCst)).unwrap()
    }

    fn interrupted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    // A killed process tells nobody.
    fn stop(&self) {}

    fn watch(&self, _: &History, _: &Record) {}
}

fn fenced() -> Resolved {
    let close = json!({ "command": ["true"] });
    let all = plans(vec![plan(
        "p",
        "app",
        json!([
            { "name": "hold", "fence": { "close": close, "open": close } },
            { "name": "a", "after": ["hold"], "retries": 1, "restore": { "source": "x", "to": "/restored/x" } },
            { "name": "b", "after": ["hold"], "restore": { "source": "y", "to": "/restored/y" } },
            { "name": "go", "after": ["a", "b"], "unfence": "hold" },
            { "name": "c", "after": ["go"], "onFailure": "continue", "probe": { "tcp": { "address": "127.0.0.1:1" } } },
        ]),
    )]);
    resolve("p", &world(&all, &["x", "y"])).unwrap()
}

fn begun(lab: &Lab, journal: &mut Memory) {
    let record = Record { number: 1, at: lab.clock(), event: Event::Resolved(Box::new(fenced())) };
    journal.write(&record).unwrap();
}

fn go_on(lab: &Lab, journal: &mut Memory) -> (Result<End, JournalError>, History) {
    let history = History::of("x", journal.records.clone()).unwrap();
    let mut execution = Execution::new(history, journal, lab);
    let end = execution.run();
    (end, execution.history)
}

#[test]
fn steps_are_done_in_order_and_again_when_they_fail() {
    let (lab, mut journal) = (Lab::default(), Memory::default());
    begun(&lab, &mut journal);
    lab.flaky.lock().unwrap().insert("a".into());
    let (end, history) = go_on(&lab, &mut journal);
    assert_eq!(end.unwrap(), End::Ended(Verdict::Complete));
    let log = lab.log.lock().unwrap().clone();
    assert_eq!(
        (log.first().unwrap().as_str(), &log[log.len() - 2..]),
        ("hold", &["go".to_owned(), "c".to_owned()][..])
    );
    assert_eq!(log.iter().filter(|name| *name == "a").count(), 2);
    assert_eq!((history.tasks[1].attempts, history.closed.len()), (2, 0));
    let report = Report::new("x", &history);
    assert_eq!((report.verdict, report.parts.len(), report.missed()), ("complete", 2, false));
    assert!(report.markdown().contains("| a | x@2 |") && report.html().contains("<td>x@2</td>"));
}

#[test]
fn killed_at_any_record_it_goes_on_and_ends_the_same() {
    let mut room = 1;
    loop {
        let lab = Lab::default();
        let mut journal = Memory { room: Some(room), ..Memory::default() };
        begun(&lab, &mut journal);
        let (end, _) = go_on(&lab, &mut journal);
        let whole = end.is_ok();
        journal.room = None;
        let done = journal.records.len();
        let (end, history) = go_on(&lab, &mut journal);
        assert_eq!(end.unwrap(), End::Ended(Verdict::Complete), "killed after {done} records");
        assert!(history.tasks.iter().all(|task| task.state == State::Done) && history.closed.is_empty());
        assert!(!lab.closed.load(Ordering::SeqCst));
        if whole {
            assert!(room > 12, "it was killed only {room} times");
            return;
        }
        room += 1;
    }
}

#[test]
fn a_failure_stops_what_follows_and_leaves_fences_closed() {
    let (lab, mut journal) = (Lab::default(), Memory::default());
    begun(&lab, &mut journal);
    lab.broken.lock().unwrap().insert("b".into());
    let (end, history) = go_on(&lab, &mut journal);
    assert_eq!(end.unwrap(), End::Stopped(vec![2]));
    assert_eq!((history.tasks[3].state.clone(), history.closed.clone()), (State::Waiting, vec![0]));
    assert!(lab.closed.load(Ordering::SeqCst));
    let report = Report::new("x", &history);
    assert_eq!(report.verdict, "not finished");
    assert!(report.to_do[0].contains("--abort x"), "{:?}", report.to_do);
    // What cannot be cleared away stays behind its fence.
    lab.broken.lock().unwrap().insert("clear b".into());
    let mut execution = Execution::new(history, &mut journal, &lab);
    assert_eq!(execution.abort().unwrap(), ["b: in use: not confirmed"]);
    assert!(lab.closed.load(Ordering::SeqCst) && execution.history.closed == [0]);
    // Given up, since somebody says that it may stay: what was held back is let go.
    lab.flaky.lock().unwrap().insert("b stays".into());
    assert_eq!(execution.abort().unwrap(), [""; 0]);
    assert!(!lab.closed.load(Ordering::SeqCst) && execution.history.closed.is_empty());
    assert_eq!(execution.history.verdict, Some(Verdict::Aborted));
}

#[test]
fn a_fence_that_was_opened_in_part_is_closed_before_anything_goes_on() {
    for killed in [false, true] {
        let (lab, mut journal) = (Lab::default(), Memory::default());
        begun(&lab, &mut journal);
        lab.broken.lock().unwrap().insert("b".into());
        let (end, history) = go_on(&lab, &mut journal);
        assert_eq!(end.unwrap(), End::Stopped(vec![2]));
        if killed {
            // Between its opening and the record of it; one record more says that "b" was cleared away.
            journal.room = Some(journal.records.len() + 2);
        } else {
            lab.broken.lock().unwrap().insert("open".into());
        }
        let mut execution = Execution::new(history, &mut journal, &lab);
        match execution.abort() {
            Ok(failures) => assert_eq!(failures, ["hold: half open"]),
            Err(_) => assert!(killed),
        }
        assert!(!lab.closed.load(Ordering::SeqCst));
        journal.room = None;
        lab.broken.lock().unwrap().clear();
        // The lab would notice that "b" is restored while writers are at work.
        assert_eq!(go_on(&lab, &mut journal).0.unwrap(), End::Ended(Verdict::Complete));
        assert_eq!(lab.log.lock().unwrap().iter().filter(|name| *name == "hold").count(), 2);
    }
}

#[test]
fn a_step_that_breaks_off_ends_the_restore() {
    let (lab, mut journal) = (Lab::default(), Memory::default());
    begun(&lab, &mut journal);
    lab.flaky.lock().unwrap().insert("b panics".into());
    let (end, history) = go_on(&lab, &mut journal);
    assert_eq!(end.unwrap(), End::Stopped(vec![2]));
    assert!(matches!(&history.tasks[2].state, State::Failed(why) if why.contains("defect")));
}

fn confirmed(targets: &[&str], machine: &str) -> Event {
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    Event::ConfirmedOn { targets, machine: Some(machine.into()) }
}

#[test]
fn who_tries_again_after_the_end_is_asked_again() {
    let steps = json!([{ "name": "a", "onFailure": "continue", "restore": { "source": "x" } }, look("c")]);
    let all = plans(vec![plan("p", "app", steps)]);
    let mut world = world(&all, &["x"]);
    world.documents.insert(source("x"), Known { kind: "files", tier: None, running: true });
    let mut history = History::new(resolve("p", &world).unwrap(), at("12:00"));
    let mut take = |event| history.take(&Record { number: history.next, at: at("12:00"), event });
    take(confirmed(&["production"], "here"));
    take(Event::Began { task: 0, attempt: 1 });
    take(Event::Noted { task: 0, note: json!({ "kept": "before-x@1" }) });
    take(Event::Failed { task: 0, text: "no".into() });
    take(Event::Done { task: 1, outcome: Outcome::default() });
    take(Event::Ended(Verdict::Incomplete));
    assert_eq!((history.confirmed.len(), &history.tasks[0].note), (0, &None));
}

#[test]
fn what_did_not_come_back_whole_can_be_done_again_from_its_beginning() {
    let all = one();
    let mut history = History::new(resolve("p", &world(&all, &["x", "y"])).unwrap(), at("12:00"));
    let mut take = |event| history.take(&Record { number: history.next, at: at("12:00"), event });
    let lost = Outcome { problems: vec!["1/1: lost".into()], ..Outcome::default() };
    for (task, outcome) in [(0, lost), (1, Outcome::default()), (2, Outcome::default())] {
        take(Event::Began { task, attempt: 1 });
        take(Event::Noted { task, note: json!({ "placed": true }) });
        take(Event::Done { task, outcome });
    }
    take(confirmed(&["production", "/restored/x", "/restored/y"], "here"));
    take(Event::Ended(Verdict::Incomplete));
    assert_eq!([0, 1, 2].map(|at| history.is_lacking(at)), [true, false, false]);
    assert_eq!([0, 1].map(|at| history.tasks[at].note.is_some()), [false, true]);
    assert!(history.confirmed.is_empty());
    history.redo(0);
    assert!(!history.is_lacking(0));
}

#[test]
fn a_path_of_another_machine_is_confirmed_anew() {
    let all = one();
    let mut history = History::new(resolve("p", &world(&all, &["x", "y"])).unwrap(), at("12:00"));
    let mut take = |event| history.take(&Record { number: history.next, at: at("12:00"), event });
    take(confirmed(&["production", "/restored/x", "/restored/y"], "here"));
    take(Event::Noted { task: 0, note: json!({ "placed": true }) });
    take(Event::Done { task: 0, outcome: Outcome::default() });
    history.redo_here(0);
    assert_eq!((&history.tasks[0].state, &history.tasks[0].note), (&State::Waiting, &None));
    let may = |machine| history.consent(Some(machine)).into_iter().collect::<Vec<_>>();
    assert_eq!(may("here"), ["/restored/y", "production"]);
    // Nor what is to be done yet: there is something else.
    assert_eq!(may("elsewhere"), ["production"]);
}

#[test]
fn a_clock_that_was_set_back_measures_nothing() {
    let (lab, mut journal) = (Lab::default(), Memory::default());
    begun(&lab, &mut journal);
    let (end, mut history) = go_on(&lab, &mut journal);
    assert_eq!(end.unwrap(), End::Ended(Verdict::Complete));
    assert!(Report::new("x", &history).took_ms.is_some());
    history.take(&Record { number: history.next, at: Timestamp::UNIX_EPOCH, event: Event::Alive });
    let report = Report::new("x", &history);
    assert_eq!((report.took_ms, report.missed()), (None, true));
    assert!(report.markdown().contains("not known, since a clock was set back"), "{}", report.markdown());
}

/// Though the steps between have been done.
#[test]
fn a_fence_that_is_closed_again_is_waited_for_by_all_that_follows() {
    let close = json!({ "command": ["true"] });
    let steps = json!([
        { "name": "hold", "fence": { "close": close, "open": close } },
        restore("a", "x"),
        look("b"),
        restore("d", "y"),
        { "name": "go", "unfence": "hold" },
    ]);
    let all = plans(vec![plan("p", "app", steps)]);
    let history = History::new(resolve("p", &world(&all, &["x", "y"])).unwrap(), Timestamp::UNIX_EPOCH);
    let (lab, mut journal) = (Lab::default(), Memory::default());
    lab.broken.lock().unwrap().insert("d".into());
    let mut execution = Execution::new(history, &mut journal, &lab);
    assert_eq!(execution.run().unwrap(), End::Stopped(vec![3]));
    let mut history = execution.history;
    lab.broken.lock().unwrap().clear();
    lab.closed.store(false, Ordering::SeqCst);
    history.redo(0);
    // The lab would notice that "d" is restored while writers are at work.
    let mut execution = Execution::new(history, &mut journal, &lab);
    assert_eq!(execution.run().unwrap(), End::Ended(Verdict::Complete));
}

#[test]
fn a_snapshot_of_what_the_plan_does_not_restore_is_a_mistake() {
    let all = one();
    let mut world = world(&all, &["x", "y"]);
    world.chosen.insert(source("z"), Sequence(1));
    assert!(resolve("p", &world).unwrap_err()[0].text.contains("z@1 was chosen, and no step restores z"));
}

#[test]
fn a_failure_that_may_be_passed_over_ends_incomplete() {
    let (lab, mut journal) = (Lab::default(), Memory::default());
    begun(&lab, &mut journal);
    lab.broken.lock().unwrap().insert("c".into());
    let (end, history) = go_on(&lab, &mut journal);
    assert_eq!(end.unwrap(), End::Ended(Verdict::Incomplete));
    assert_eq!(Report::new("x", &history).steps[4].problems, ["broken"]);
}

#[test]
fn an_interrupt_begins_nothing_more() {
    let (lab, mut journal) = (Lab::default(), Memory::default());
    begun(&lab, &mut journal);
    lab.stop.store(true, Ordering::SeqCst);
    assert_eq!(go_on(&lab, &mut journal).0.unwrap(), End::Interrupted);
    assert_eq!(lab.log.lock().unwrap().len(), 0);
    lab.stop.store(false, Ordering::SeqCst);
    assert_eq!(go_on(&lab, &mut journal).0.unwrap(), End::Ended(Verdict::Complete));
}

#[test]
fn records_of_something_else_are_refused() {
    let (lab, mut journal) = (Lab::default(), Memory::default());
    begun(&lab, &mut journal);
    go_on(&lab, &mut journal).0.unwrap();
    let records = journal.records;
    assert!(History::of("x", records[1..].to_vec()).is_err());
    let mut gap = records.clone();
    gap.remove(3);
    assert!(History::of("x", gap).is_err());
    let mut foreign = records;
    foreign[1].event = Event::Began { task: 99, attempt: 1 };
    assert!(History::of("x", foreign).is_err());
}

#[test]
fn what_two_restores_have_in_common_is_found() {
    let all = plans(vec![
        plan("p", "app", json!([restore("a", "x"), restore("b", "y")])),
        plan("q", "app", json!([restore("a", "y")])),
        plan("r", "app", json!([restore("a", "z")])),
    ]);
    let world = world(&all, &["x", "y", "z"]);
    let history = |name: &str| History::new(resolve(name, &world).unwrap(), at("12:00"));
    let (p, q, mut r) = (history("p"), history("q"), history("r"));
    assert_eq!(p.in_common(&p).as_deref(), Some("the plan p"));
    assert_eq!(p.in_common(&q).as_deref(), Some("/restored/y"));
    assert_eq!(p.in_common(&r), None);
    // Two documents may lead to one system: what was confirmed tells it.
    r.confirmed.insert("/restored/x/below".into(), None);
    assert_eq!(p.in_common(&r).as_deref(), Some("/restored/x"));
    r.confirmed = BTreeMap::from([("/restored/xy".into(), None)]);
    assert_eq!(p.in_common(&r), None);
}

#[test]
fn a_journal_tells_whether_somebody_is_at_it() {
    let mut history = History::new(fenced(), at("12:00"));
    for (event, at_work) in [
        (Event::Began { task: 0, attempt: 1 }, true),
        (Event::Left, false),
        (Event::Resumed, true),
        (Event::Displaced { by: "other".into() }, false),
        (Event::Alive, true),
        (Event::Ended(Verdict::Incomplete), false),
        (Event::Resumed, true),
    ] {
        history.take(&Record { number: history.next, at: at("12:00"), event });
        assert_eq!(history.at_work, at_work, "{history:?}");
    }
    assert_eq!(history.verdict, None);
}

#[test]
fn levels_are_ordered() {
    assert!(Level::App < Level::Service && Level::Service < Level::Cluster && Level::Cluster < Level::Region);
}
