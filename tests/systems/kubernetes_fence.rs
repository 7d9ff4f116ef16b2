//! What restore plans need of a real Kubernetes control plane: fences, checks, Jobs.

use crate::support::collect::{context, runtime};
use crate::support::kubernetes::Server;
use crate::support::taken::Taken;
use lifeboat::source::kubernetes::check::{Check, check};
use lifeboat::source::kubernetes::fence::{
    Before, HELD, Held, Hold, Paused, Scaled, Suspended, What, hold, look, release,
};
use lifeboat::source::kubernetes::job::run_job;
use lifeboat::source::kubernetes::{ClusterScoped, Spec};
use lifeboat::source::target::{Action, Existing, Options};
use lifeboat::source::{self, SourceError};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// One for all tests, which have namespaces of their own.
static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

fn spec(user: &str) -> Spec {
    Spec { kubeconfig: Some(SERVER.directory.path().join(format!("{user}.conf"))), ..Spec::default() }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn looked(wanted: &Hold) -> Held {
    look(&context(&runtime()), &spec("admin"), wanted).unwrap()
}

fn held(objects: &Held) -> Vec<String> {
    hold(&context(&runtime()), &spec("admin"), objects).unwrap()
}

fn released(objects: &Held) -> Vec<String> {
    release(&context(&runtime()), &spec("admin"), objects).unwrap()
}

fn field(namespace: &str, object: &str, path: &str) -> String {
    SERVER.kubectl(&["-n", namespace, "get", object, "-o", &format!("jsonpath={{{path}}}")])
}

fn mark(namespace: &str, object: &str) -> String {
    field(namespace, object, &format!(".metadata.annotations.{}", HELD.replace('.', "\\.")))
}

fn says(lines: &[String], text: &str) {
    assert!(lines.iter().any(|line| line.contains(text)), "no {text:?} in {lines:#?}");
}

/// A Deployment of two, a StatefulSet of one, an idle Deployment, a CronJob.
fn workloads(namespace: &str) {
    let pod =
        "template: {metadata: {labels: {app: NAME}}, spec: {containers: [{name: main, image: example.com/main:1}]}}";
    let workload = |kind: &str, name: &str, more: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  {more}\n  {}\n",
            pod.replace("NAME", name)
        )
    };
    SERVER.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n{}{}{}---\n\
         apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: nightly, namespace: {namespace}}}\n\
         spec: {{schedule: '0 3 * * *', jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, \
         containers: [{{name: main, image: example.com/main:1}}]}}}}}}}}}}\n",
        workload("Deployment", "web", "replicas: 2"),
        workload("Deployment", "idle", "replicas: 0"),
        workload("StatefulSet", "db", "serviceName: db"),
    ));
    SERVER.until("the pods are made", || pods(namespace).len() == 3);
}

fn pods(namespace: &str) -> Vec<String> {
    let all = SERVER.kubectl(&["-n", namespace, "get", "pods", "-o", "name"]);
    all.lines().map(str::to_owned).collect()
}

fn everything(namespace: &str) -> Hold {
    Hold {
        scale: vec![Scaled { namespace: namespace.to_owned(), names: Vec::new() }],
        suspend: vec![Suspended { namespace: namespace.to_owned(), names: Vec::new() }],
        pause_sync: Vec::new(),
    }
}

fn scaled(namespace: &str, workloads: &[&str]) -> Hold {
    Hold { scale: vec![Scaled { namespace: namespace.to_owned(), names: names(workloads) }], ..Hold::default() }
}

#[test]
fn writers_are_held_and_come_back() {
    workloads("writers");
    SERVER.apply(
        "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: web, namespace: writers}\n\
         spec: {minReplicas: 2, maxReplicas: 4, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}\n",
    );
    let before = looked(&everything("writers"));
    let what: Vec<_> = before.objects.iter().map(|one| (one.what, &*one.name, &one.before)).collect();
    let expected = [
        (What::CronJob, "nightly", &Before::Suspend(false)),
        (What::Deployment, "web", &Before::Replicas(2)),
        (What::StatefulSet, "db", &Before::Replicas(1)),
    ];
    assert_eq!(what, expected);
    says(&before.notes, "deployment/idle in writers does nothing already");
    assert_eq!(pods("writers").len(), 3, "looking changes nothing");
    // A journal keeps it.
    let before: Held = serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();

    let lines = held(&before);
    says(&lines, "deployment/web in writers: scaled to zero, from 2");
    says(&lines, "cronjob/nightly in writers: suspended");
    assert_eq!(pods("writers"), [""; 0], "it has waited for the pods");
    assert_eq!(field("writers", "deployment/web", ".spec.replicas"), "0");
    assert_eq!(field("writers", "cronjob/nightly", ".spec.suspend"), "true");
    assert_eq!(mark("writers", "deployment/web"), r#"{"replicas":2}"#);
    // An autoscaler that is not allowed zero does not start from there.
    SERVER.until("the autoscaler has looked", || {
        let active = ".status.conditions[?(@.type=='ScalingActive')].reason";
        field("writers", "hpa/web", active) == "ScalingDisabled"
    });
    assert_eq!(field("writers", "deployment/web", ".spec.replicas"), "0");
    says(&held(&before), "statefulset/db in writers is held already");
    // Held again after somebody let go of it: what it had at first is not forgotten.
    SERVER.kubectl(&["-n", "writers", "scale", "deployment/web", "--replicas=1"]);
    says(&held(&before), "deployment/web in writers: scaled to zero");
    assert_eq!(mark("writers", "deployment/web"), r#"{"replicas":2}"#);
    // Another run that finds it held knows what it was before.
    assert_eq!(looked(&everything("writers")).objects, before.objects);

    let lines = released(&before);
    says(&lines, "deployment/web in writers: scaled to 2 again");
    assert_eq!(field("writers", "deployment/web", ".spec.replicas"), "2");
    assert_eq!(field("writers", "statefulset/db", ".spec.replicas"), "1");
    assert_eq!(field("writers", "deployment/idle", ".spec.replicas"), "0");
    assert_eq!(field("writers", "cronjob/nightly", ".spec.suspend"), "false");
    assert_eq!(mark("writers", "deployment/web"), "");
    SERVER.until("the pods come back", || pods("writers").len() == 3);
    says(&released(&before), "deployment/web in writers is not held");
}

#[test]
fn what_others_did_meanwhile_stays() {
    workloads("others");
    let mut before = looked(&scaled("others", &["deployment/*", "statefulset/db", "statefulset/none"]));
    says(&before.notes, "statefulset/none in others is not there");
    held(&before);
    SERVER.kubectl(&["-n", "others", "scale", "deployment/web", "--replicas=5"]);
    SERVER.kubectl(&["-n", "others", "delete", "statefulset", "db"]);
    let lines = released(&before);
    says(&lines, "deployment/web in others was changed by somebody since");
    says(&lines, "statefulset/db in others is not there");
    assert_eq!(field("others", "deployment/web", ".spec.replicas"), "5");
    assert_eq!(mark("others", "deployment/web"), "");
    // Scaled to zero, but not by a fence.
    SERVER.kubectl(&["-n", "others", "scale", "deployment/web", "--replicas=0"]);
    before.objects.retain(|one| one.what == What::Deployment);
    says(&released(&before), "deployment/web in others does nothing, but is not marked as held");
    assert_eq!(field("others", "deployment/web", ".spec.replicas"), "0");
    says(&held(&before), "deployment/web in others does nothing already");
    SERVER.kubectl(&["delete", "namespace", "others", "--wait=false"]);
}

#[test]
fn a_restore_leaves_the_fence_in_place() {
    workloads("fenced");
    let source = Spec {
        namespaces: names(&["fenced"]),
        include_kinds: names(&["deployments.apps", "statefulsets.apps", "cronjobs.batch"]),
        cluster_scoped: ClusterScoped::None,
        ..spec("admin")
    };
    let taken = Taken::capture(&source).unwrap();
    SERVER.kubectl(&["-n", "fenced", "scale", "deployment/web", "--replicas=4"]);
    SERVER.kubectl(&["-n", "fenced", "set", "image", "statefulset/db", "main=example.com/main:2"]);
    let before = looked(&everything("fenced"));
    held(&before);
    // A snapshot of what is held is restored as if it were not.
    let meanwhile = Taken::capture(&source).unwrap();
    assert!(meanwhile.text("fenced/deployments.apps/web.yaml").contains("replicas: 0"));
    let export = meanwhile.export();
    assert!(export.contains("replicas: 4") && !export.contains(HELD), "{export}");

    for existing in [Existing::Update, Existing::Replace] {
        let options = Options { existing, ..Options::default() };
        let planned = taken.plan(&source, &options);
        let changes = |what: &str| &planned.changes.iter().find(|change| change.what.starts_with(what)).unwrap().action;
        assert_eq!(changes("cronjob.batch/nightly"), &Action::Unchanged);
        if existing == Existing::Update {
            assert_eq!(changes("deployment.apps/web"), &Action::Update);
        } else {
            SERVER.kubectl(&["-n", "fenced", "set", "image", "statefulset/db", "main=example.com/main:3"]);
        }
        let planned = taken.plan(&source, &options);
        let applied = taken.apply(&source, &options, &planned);
        assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
        assert_eq!(field("fenced", "deployment/web", ".spec.replicas"), "0");
        assert_eq!(field("fenced", "statefulset/db", ".spec.replicas"), "0");
        let image = ".spec.template.spec.containers[0].image";
        assert_eq!(field("fenced", "statefulset/db", image), "example.com/main:1");
    }
    // A replacement was killed when it had deleted it: what is made anew does not come back at work.
    SERVER.kubectl(&["-n", "fenced", "delete", "deployment/web"]);
    let cluster = taken.plan(&source, &Options::default()).target;
    for (cluster, replicas) in [("another".to_owned(), "2"), (cluster, "0")] {
        let options = Options { held: vec![(cluster, before.clone())], ..Options::default() };
        let planned = taken.plan(&source, &options);
        assert!(taken.apply(&source, &options, &planned).problems.is_empty());
        assert_eq!(field("fenced", "deployment/web", ".spec.replicas"), replicas);
        if replicas != "0" {
            SERVER.kubectl(&["-n", "fenced", "delete", "deployment/web"]);
        }
    }
    let lines = released(&before);
    says(&lines, "deployment/web in fenced: scaled to 2 again");
    assert_eq!(field("fenced", "statefulset/db", ".spec.replicas"), "1");
    SERVER.until("the pods are those of the snapshot", || pods("fenced").len() == 3);
}

/// A pod that does not go.
fn keep_pod(namespace: &str, keep: bool) {
    let finalizers = if keep { r#"["example.com/stays"]"# } else { "null" };
    let patch = format!(r#"{{"metadata": {{"finalizers": {finalizers}}}}}"#);
    SERVER.kubectl(&["-n", namespace, "patch", "pod", "db-0", "--type=merge", "-p", &patch]);
}

#[test]
fn a_fence_that_does_not_hold_is_an_error() {
    workloads("undone");
    keep_pod("undone", true);
    let before = looked(&scaled("undone", &["statefulset/db"]));
    let runtime = runtime();
    let short = source::Context { deadline: Instant::now() + Duration::from_secs(5), ..context(&runtime) };
    let failure = hold(&short, &spec("admin"), &before).unwrap_err().to_string();
    assert!(failure.contains("wait until the pods of statefulset/db in undone are gone"), "{failure}");
    assert!(failure.contains("1 are still there (db-0"), "{failure}");
    let failure = std::thread::scope(|scope| {
        let holding = scope.spawn(|| hold(&context(&runtime), &spec("admin"), &before));
        while !holding.is_finished() {
            SERVER.kubectl(&["-n", "undone", "scale", "statefulset/db", "--replicas=1"]);
        }
        holding.join().unwrap()
    });
    let failure = failure.unwrap_err().to_string();
    assert!(failure.contains("hold back statefulset/db in undone: somebody undoes it"), "{failure}");
    keep_pod("undone", false);
    says(&released(&before), "was changed by somebody since");
    assert_eq!(field("undone", "statefulset/db", ".spec.replicas"), "1");

    // Cancelled, it ends.
    let cancelled = context(&runtime);
    cancelled.cancel.cancel();
    assert!(matches!(hold(&cancelled, &spec("admin"), &before), Err(SourceError::Cancelled)));
    // Without the right to.
    for (user, text) in [("small", "forbidden"), ("wrong", "does not accept the credentials")] {
        let failure = look(&context(&runtime), &spec(user), &everything("undone")).unwrap_err().to_string();
        assert!(failure.contains(text), "{failure}");
        let failure = hold(&context(&runtime), &spec(user), &before).unwrap_err().to_string();
        assert!(failure.contains(text), "{failure}");
        let failure = release(&context(&runtime), &spec(user), &before).unwrap_err().to_string();
        assert!(failure.contains(text), "{failure}");
    }
}

/// Argo CD's kinds, as far as a fence needs them; with Argo CD itself: `tests/endtoend/argocd.rs`.
fn argo_kinds() {
    for (plural, kind) in [("applications", "Application"), ("applicationsets", "ApplicationSet")] {
        SERVER.apply(&format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
             metadata: {{name: {plural}.argoproj.io, annotations: {{api-approved.kubernetes.io: unapproved}}}}\n\
             spec:\n  group: argoproj.io\n  scope: Namespaced\n  names: {{plural: {plural}, kind: {kind}}}\n  versions:\n  \
             - name: v1alpha1\n    served: true\n    storage: true\n    schema: {{openAPIV3Schema: {{type: object, \
             x-kubernetes-preserve-unknown-fields: true}}}}\n"
        ));
        SERVER.until_established(&format!("{plural}.argoproj.io"));
    }
}

#[test]
fn syncs_are_paused_with_what_would_give_them_back() {
    let none = looked(&Hold {
        pause_sync: vec![Paused { namespace: "default".into(), names: names(&["web"]) }],
        ..Hold::default()
    });
    says(&none.notes, "application/web in default is not there");
    argo_kinds();
    SERVER.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: syncs}\n");
    let application = |name: &str, metadata: &str, policy: &str| {
        SERVER.until("Applications can be made", || {
            let text = format!(
                "apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {{name: {name}, namespace: syncs{metadata}}}\n\
                 spec: {{project: default, syncPolicy: {policy}}}\nstatus: {{operationState: {{phase: Running}}}}\n"
            );
            SERVER.try_kubectl(&["apply", "--server-side", "-f", "-"], &text).is_ok()
        });
    };
    let tracked = ", annotations: {argocd.argoproj.io/tracking-id: 'root:argoproj.io/Application:syncs/child'}";
    application("root", "", "{automated: {selfHeal: true}, retry: {limit: 2}}");
    application("child", tracked, "{automated: {}}");
    application("by-hand", "", "{}");
    application("aside", "", "{automated: {prune: true}}");
    SERVER.apply(
        "apiVersion: argoproj.io/v1alpha1\nkind: ApplicationSet\nmetadata: {name: many, namespace: syncs, labels: \
         {app.kubernetes.io/instance: root}}\nspec: {generators: []}\n",
    );
    let uid = field("syncs", "applicationset/many", ".metadata.uid");
    let owner = format!(
        ", ownerReferences: [{{apiVersion: argoproj.io/v1alpha1, kind: ApplicationSet, name: many, uid: {uid}, controller: true}}]"
    );
    application("generated", &owner, "{automated: {selfHeal: true}}");
    let pause = |which: &[&str]| Hold {
        pause_sync: vec![Paused { namespace: "syncs".into(), names: names(which) }],
        ..Hold::default()
    };
    let what = |held: &Held| -> Vec<_> { held.objects.iter().map(|one| (one.what, one.name.clone())).collect() };
    let child = looked(&pause(&["child"]));
    assert_eq!(what(&child), [(What::Application, "child".into()), (What::Application, "root".into())]);
    says(&child.notes, "application/child in syncs is syncing at this moment");
    let generated = looked(&pause(&["generated"]));
    let expected = [
        (What::ApplicationSet, "many".to_owned()),
        (What::Application, "generated".into()),
        (What::Application, "root".into()),
    ];
    assert_eq!(what(&generated), expected);
    let all = looked(&pause(&[]));
    assert_eq!(all.objects.len(), 5, "{:#?}", all.objects);
    says(&all.notes, "application/by-hand in syncs does not sync by itself");

    let policy = |object: &str| field("syncs", object, ".spec.syncPolicy");
    let policies = || {
        ["application/root", "application/child", "application/generated", "application/aside", "applicationset/many"]
            .map(policy)
    };
    let before = policies();
    assert_eq!(before[1], r#"{"automated":{}}"#);
    says(&held(&all), "application/root in syncs: automated sync taken away");
    assert_eq!(policies(), [r#"{"retry":{"limit":2}}"#, "{}", "{}", "{}", r#"{"applicationsSync":"create-only"}"#]);
    says(&released(&all), "applicationset/many in syncs: changes its Applications again");
    assert_eq!(policies(), before);
    // Somebody who turns the sync on again undoes the fence.
    held(&all);
    let on = r#"{"spec": {"syncPolicy": {"automated": {}}}}"#;
    SERVER.kubectl(&["-n", "syncs", "patch", "application", "root", "--type=merge", "-p", on]);
    says(&released(&all), "application/root in syncs was changed by somebody since");
    assert_eq!(policy("application/root"), r#"{"automated":{},"retry":{"limit":2}}"#);
}

#[test]
fn holds_that_cannot_be_meant() {
    let mistakes = |text: &str| {
        let hold: Hold = serde_json::from_str(text).unwrap();
        let mut said = Vec::new();
        hold.check(&mut |field, text| said.push(format!("{field}: {text}")));
        said
    };
    assert!(mistakes("{}")[0].contains("expected something to hold back"));
    let said = mistakes(
        r#"{"scale": [{"namespace": "a", "names": ["deployment/web", "pod/x", "web"]}, {"namespace": "A"}],
            "suspend": [{"namespace": "a", "names": ["cronjob/x"]}], "pauseSync": [{"namespace": "a"}]}"#,
    );
    let fields: Vec<_> = said.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(fields, ["scale[0].names[1]", "scale[0].names[2]", "scale[1].namespace", "suspend[0].names[0]"]);
    assert!(serde_json::from_str::<Hold>(r#"{"scaled": []}"#).is_err());
}

#[test]
fn checks_look_at_the_real_thing() {
    workloads("checked");
    let runtime = runtime();
    let look = |text: &str| {
        let one: Check = serde_json::from_str(text).unwrap();
        one.check(&mut |field, text| panic!("{field}: {text}"));
        check(&context(&runtime), &spec("admin"), &one).map_err(|error| error.to_string())
    };
    let web = |more: &str| {
        look(&format!(r#"{{"resource": "deployments.apps", "namespace": "checked", "name": "web"{more}}}"#))
    };
    assert_eq!(web("").unwrap(), "deployments.apps/web in checked: is there");
    SERVER.until("the controller has seen it", || web(r#", "condition": "Available=False""#).is_ok());
    let not = web(r#", "condition": "Available""#).unwrap_err();
    assert!(not.contains("Available is False (MinimumReplicasUnavailable), and should be True"), "{not}");
    assert_eq!(
        web(r#", "field": "/spec/replicas", "equals": "2""#).unwrap(),
        "deployments.apps/web in checked: /spec/replicas is 2"
    );
    let not = web(r#", "field": "/spec/replicas", "equals": "3""#).unwrap_err();
    assert_eq!(not, "check deployments.apps/web in checked: /spec/replicas is 2, and should be 3");
    look(r#"{"resource": "namespaces", "name": "checked", "field": "/status/phase", "equals": "Active"}"#).unwrap();
    let gone = look(r#"{"resource": "configmaps", "namespace": "checked", "name": "none"}"#).unwrap_err();
    assert!(gone.contains("it is not there"), "{gone}");
    let unknown = look(r#"{"resource": "wheels.example.com", "namespace": "checked", "name": "a"}"#).unwrap_err();
    assert!(unknown.contains("the cluster has no group example.com"), "{unknown}");
    SERVER.kubectl(&["-n", "checked", "create", "secret", "generic", "word", "--from-literal=word=hunter2"]);
    let secret =
        r#"{"resource": "secrets", "namespace": "checked", "name": "word", "field": "/data/word", "equals": "x"}"#;
    let hidden = look(secret).unwrap_err();
    assert!(hidden.contains("another value") && !hidden.contains("aHVudGVy"), "{hidden}");
    let mut said = Vec::new();
    let bad =
        r#"{"resource": "Pods", "namespace": "a b", "name": "", "field": "status", "condition": "=x", "equals": "a"}"#;
    serde_json::from_str::<Check>(bad).unwrap().check(&mut |field, _| said.push(field.to_owned()));
    assert_eq!(said, ["resource", "namespace", "name", "condition", "field"]);
}

fn job(name: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "jobs"},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "main", "image": "example.com/main:1"}]
        }}}
    })
}

/// No node runs pods here: the test says how one ended, and the Job's real controller does the rest.
fn end_pod(name: &str, phase: &str) {
    let pod = || {
        let running = "--field-selector=status.phase=Pending";
        let all = SERVER.kubectl(&["-n", "jobs", "get", "pods", "-o", "name", running]);
        all.lines().find(|pod| pod.starts_with(&format!("pod/{name}-"))).map(str::to_owned)
    };
    SERVER.until("the pod is made", || pod().is_some());
    let patch = format!(r#"{{"status": {{"phase": "{phase}"}}}}"#);
    SERVER.kubectl(&["-n", "jobs", "patch", &pod().unwrap(), "--subresource=status", "--type=merge", "-p", &patch]);
}

#[test]
fn a_job_runs_once() {
    SERVER.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: jobs}\n");
    let runtime = runtime();
    let run = |name: &str, id: &str| run_job(&context(&runtime), &spec("admin"), &job(name), id);
    let line = std::thread::scope(|scope| {
        let running = scope.spawn(|| run("good", "plan-1/step-2"));
        end_pod("good", "Succeeded");
        running.join().unwrap()
    });
    let line = line.unwrap();
    assert!(line.starts_with("job/good-") && line.contains(" in jobs is complete"), "{line}");
    assert!(line.contains("its log is empty"), "it has run nowhere: {line}");
    let jobs = || SERVER.kubectl(&["-n", "jobs", "get", "jobs", "-o", "name"]).lines().count();
    let made = jobs();
    assert_eq!(run("good", "plan-1/step-2").unwrap(), line, "the same run finds its Job");
    assert_eq!(jobs(), made);

    let failure = std::thread::scope(|scope| {
        let running = scope.spawn(|| run("bad", "plan-1/step-3"));
        end_pod("bad", "Failed");
        running.join().unwrap()
    });
    let failure = failure.unwrap_err().to_string();
    assert!(failure.contains("run job/bad-") && failure.contains("it failed: BackoffLimitExceeded"), "{failure}");

    // The cause is mended, and the restore goes on.
    let again = std::thread::scope(|scope| {
        let running = scope.spawn(|| run("bad", "plan-1/step-3"));
        end_pod("bad", "Succeeded");
        running.join().unwrap()
    });
    assert!(again.unwrap().contains("is complete"));

    let short = source::Context { deadline: Instant::now() + Duration::from_secs(3), ..context(&runtime) };
    let late = run_job(&short, &spec("admin"), &job("slow"), "plan-1/step-4").unwrap_err().to_string();
    assert!(late.contains("it has not ended by the deadline"), "{late}");
    let broken = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "x"}});
    let refused = run_job(&context(&runtime), &spec("admin"), &broken, "x").unwrap_err().to_string();
    assert!(refused.contains("expected a Job of batch/v1") && refused.contains("metadata.namespace"), "{refused}");
    let forbidden = run_job(&context(&runtime), &spec("small"), &job("good"), "x").unwrap_err().to_string();
    assert!(forbidden.contains("forbidden"), "{forbidden}");
}
