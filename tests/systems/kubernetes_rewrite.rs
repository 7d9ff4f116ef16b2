//! Objects that are chosen and changed on their way back into a real Kubernetes control plane.

use crate::support::collect;
use crate::support::collect::{context, runtime};
use crate::support::kubernetes::Server;
use crate::support::taken::Taken;
use lifeboat::source;
use lifeboat::source::kubernetes::Spec;
use lifeboat::source::target::{Action, Applied, Existing, Options, Patch, Plan};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One for all tests, which have namespaces of their own.
static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

fn spec(namespace: &str) -> Spec {
    Spec {
        kubeconfig: Some(SERVER.directory.path().join("admin.conf")),
        namespaces: vec![namespace.to_owned()],
        ..Spec::default()
    }
}

fn field(namespace: &str, object: &str, path: &str) -> String {
    SERVER.kubectl(&["-n", namespace, "get", object, "-o", &format!("jsonpath={{{path}}}")])
}

fn is_there(namespace: &str, object: &str) -> bool {
    SERVER.try_kubectl(&["-n", namespace, "get", object], "").is_ok()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(from, to)| (from.to_owned(), to.to_owned())).collect()
}

fn list(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn action<'a>(plan: &'a Plan, what: &str) -> &'a Action {
    let found = plan.changes.iter().find(|change| change.what == what);
    &found.unwrap_or_else(|| panic!("{what} is not among {:#?}", plan.changes)).action
}

fn restore(taken: &Taken, options: &Options) -> (Plan, Applied) {
    let plan = taken.plan(&spec("unused"), options);
    let applied = taken.apply(&spec("unused"), options, &plan);
    (plan, applied)
}

fn delete(namespace: &str) {
    SERVER.kubectl(&["delete", "namespace", namespace, "--wait", "--timeout=100s"]);
}

#[test]
fn storage_classes_and_images() {
    let pod = "{initContainers: [{name: first, image: 'busybox:1'}], \
               containers: [{name: main, image: registry.example.com/team/web:1}, {name: aside, image: other.example.com/a:1}]}";
    SERVER.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: moved}}\n---\n\
         apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: moved-old}}\n\
         provisioner: kubernetes.io/no-provisioner\n---\n\
         apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: moved-volume}}\nspec: {{storageClassName: moved-old, \
         capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], hostPath: {{path: /srv/moved}}, claimRef: {{namespace: \
         moved, name: data}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data, namespace: moved}}\nspec: {{storageClassName: \
         moved-old, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: old, namespace: moved, annotations: \
         {{volume.beta.kubernetes.io/storage-class: moved-old}}}}\nspec: {{accessModes: [ReadWriteOnce], resources: \
         {{requests: {{storage: 2Gi}}}}}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db, namespace: moved}}\nspec: {{serviceName: db, \
         selector: {{matchLabels: {{app: db}}}}, template: {{metadata: {{labels: {{app: db}}}}, spec: {pod}}}, \
         volumeClaimTemplates: [{{metadata: {{name: data}}, spec: {{storageClassName: moved-old, accessModes: \
         [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}}}]}}\n---\n\
         apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: nightly, namespace: moved}}\nspec: {{schedule: '0 3 * * *', \
         jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, containers: [{{name: main, image: \
         'registry.example.com/web@sha256:{}'}}]}}}}}}}}}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: text, namespace: moved}}\n\
         data: {{storageClassName: moved-old, image: 'registry.example.com/team/web:1'}}\n",
        "0".repeat(64)
    ));
    SERVER.until("the claims are there", || is_there("moved", "pvc/data-db-0"));
    SERVER.until("the claim is bound", || field("moved", "pvc/data", ".status.phase") == "Bound");
    let taken = Taken::capture(&spec("moved")).unwrap();
    SERVER.kubectl(&["-n", "moved", "delete", "statefulset", "db"]);
    delete("moved");
    SERVER.kubectl(&["delete", "pv", "moved-volume", "--wait", "--timeout=60s"]);
    SERVER.kubectl(&["delete", "storageclass", "moved-old"]);

    let options = Options {
        storage_classes: map(&[("moved-old", "moved-new")]),
        images: map(&[
            ("registry.example.com", "mirror.example.org/all"),
            ("registry.example.com/team", "mirror.example.org/ours"),
            ("docker.io", "mirror.example.org/hub"),
        ]),
        ..Options::default()
    };
    let (_, applied) = restore(&taken, &options);
    assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
    assert_eq!(field("moved", "pv/moved-volume", ".spec.storageClassName"), "moved-new");
    assert_eq!(field("moved", "pvc/data", ".spec.storageClassName"), "moved-new");
    let legacy = ".metadata.annotations.volume\\.beta\\.kubernetes\\.io/storage-class";
    assert_eq!(field("moved", "pvc/old", legacy), "moved-new");
    assert_eq!(field("moved", "pvc/data-db-0", ".spec.storageClassName"), "moved-new");
    assert_eq!(field("moved", "statefulset/db", ".spec.volumeClaimTemplates[0].spec.storageClassName"), "moved-new");
    let images = ".spec.template.spec['initContainers','containers'][*].image";
    assert_eq!(
        field("moved", "statefulset/db", images),
        "mirror.example.org/hub/library/busybox:1 mirror.example.org/ours/web:1 other.example.com/a:1"
    );
    let image = field("moved", "cronjob/nightly", ".spec.jobTemplate.spec.template.spec.containers[0].image");
    assert!(image.starts_with("mirror.example.org/all/web@sha256:"), "{image}");
    assert_eq!(field("moved", "configmap/text", ".data.image"), "registry.example.com/team/web:1");
    assert!(!is_there("moved", "storageclass/moved-old"), "another is used in its place");
    SERVER.until("the claim has its volume", || field("moved", "pvc/data", ".status.phase") == "Bound");
    // The same again finds nothing to do.
    let again = taken.plan(&spec("unused"), &options);
    assert!(again.changes.iter().all(|change| change.action == Action::Unchanged), "{:#?}", again.changes);
}

#[test]
fn some_objects_are_chosen() {
    SERVER.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: some, labels: {team: shop}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web-a, namespace: some, labels: {part: web}}\ndata: {a: b}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web-b, namespace: some, labels: {part: web}}\ndata: {a: b}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: db, namespace: some, labels: {part: db}}\ndata: {a: b}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: word, namespace: some, labels: {part: web}}\nstringData: {a: b}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: some}\nspec: {ports: [{port: 80}]}\n",
    );
    let taken = Taken::capture(&spec("some")).unwrap();
    let chosen = |options: &Options| -> Vec<String> {
        let plan = taken.plan(&spec("unused"), options);
        let all = plan.changes.iter().map(|change| change.what.clone());
        all.filter(|what| !what.contains("/default in")).collect()
    };
    let include = |patterns: &[&str]| Options { include: list(patterns), ..Options::default() };
    assert_eq!(chosen(&include(&["services"])), ["namespace/some", "service/web in some"]);
    assert_eq!(
        chosen(&include(&["some/*/web-*", "secrets"])),
        ["namespace/some", "secret/word in some", "configmap/web-a in some", "configmap/web-b in some"]
    );
    let without = Options { exclude: list(&["configmaps", "_cluster/*/*"]), ..Options::default() };
    assert_eq!(chosen(&without), ["secret/word in some", "service/web in some"]);
    let labelled = Options {
        selector: Some("part in (web, front)".into()),
        exclude: list(&["some/configmaps/web-b"]),
        ..Options::default()
    };
    assert_eq!(chosen(&labelled), ["namespace/some", "secret/word in some", "configmap/web-a in some"]);
    let idle = taken.plan(&spec("unused"), &include(&["deployments.apps", "services"])).about;
    assert!(idle.iter().any(|line| line == "nothing in the snapshot fits \"deployments.apps\""), "{idle:#?}");
    assert!(idle.iter().any(|line| line.ends_with("were not chosen")), "{idle:#?}");

    // What comes along is not changed where it is there, and made where it is not.
    SERVER.kubectl(&["label", "namespace", "some", "team=other", "--overwrite"]);
    SERVER.kubectl(&["-n", "some", "patch", "configmap", "web-a", "-p", r#"{"data": {"a": "new"}}"#]);
    SERVER.kubectl(&["-n", "some", "patch", "configmap", "db", "-p", r#"{"data": {"a": "new"}}"#]);
    let options = Options { existing: Existing::Update, ..labelled };
    let (plan, applied) = restore(&taken, &options);
    assert_eq!(action(&plan, "namespace/some"), &Action::Skip);
    assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
    assert_eq!(field("some", "configmap/web-a", ".data.a"), "b");
    assert_eq!(field("some", "configmap/db", ".data.a"), "new");
    assert_eq!(field("some", "namespace/some", ".metadata.labels.team"), "other");
    delete("some");
    let (plan, applied) = restore(&taken, &options);
    assert_eq!(action(&plan, "namespace/some"), &Action::Create);
    assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
    assert_eq!(field("some", "namespace/some", ".metadata.labels.team"), "shop");
    assert!(is_there("some", "secret/word") && is_there("some", "configmap/web-a"));
    assert!(!is_there("some", "configmap/web-b") && !is_there("some", "service/web"));
}

fn patch(kind: &str, name: &str, patch: &serde_json::Value) -> Patch {
    let patch = serde_json::from_value(patch.clone()).unwrap();
    Patch { kind: kind.to_owned(), name: name.to_owned(), patch }
}

#[test]
fn patches_are_made() {
    let maps = ["one", "two", "three"].map(|name| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: patched}}\ndata: {{a: b}}\n"
        )
    });
    SERVER.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: patched}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: patched}}\nspec: {{replicas: 3, selector: \
         {{matchLabels: {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}}, spec: {{containers: \
         [{{name: main, image: example.com/main:1}}]}}}}}}\n{}",
        maps.concat()
    ));
    let taken = Taken::capture(&spec("patched")).unwrap();
    delete("patched");
    let options = Options {
        namespaces: map(&[("patched", "patched-too")]),
        patches: vec![
            patch("deployments.apps", "patched/w*", &json!([{"op": "replace", "path": "/spec/replicas", "value": 0}])),
            patch("configmaps", "one", &json!([{"op": "add", "path": "/data/more", "value": "c"}])),
            patch("configmaps", "two", &json!([{"op": "test", "path": "/data/a", "value": "hunter2"}])),
            patch("configmaps", "three", &json!([{"op": "replace", "path": "/metadata/name", "value": "four"}])),
            patch("configmaps", "other/*", &json!([{"op": "remove", "path": "/data"}])),
        ],
        ..Options::default()
    };
    let (plan, applied) = restore(&taken, &options);
    let idle = r#"no object in the snapshot fits the patch of configmaps "other/*""#;
    assert!(plan.about.iter().any(|line| line == idle), "{:#?}", plan.about);
    let refused = |name: &str| match action(&plan, &format!("configmap/{name} in patched-too")) {
        Action::Conflict(text) => text.clone(),
        other => panic!("{other}"),
    };
    assert!(refused("two").contains(r#"the patch of configmaps "two" cannot be made"#), "{}", refused("two"));
    assert!(refused("three").contains("makes it another object"), "{}", refused("three"));
    let problems: Vec<_> = applied.problems.iter().map(|problem| String::from_utf8_lossy(&problem.path)).collect();
    assert_eq!(problems, ["patched/configmaps/three.yaml", "patched/configmaps/two.yaml"]);
    assert!(!format!("{applied:?}").contains("hunter2"), "a patch's values may be secrets");
    assert_eq!(field("patched-too", "deployment/web", ".spec.replicas"), "0");
    assert_eq!(field("patched-too", "configmap/one", ".data"), r#"{"a":"b","more":"c"}"#);
    assert!(!is_there("patched-too", "configmap/two") && !is_there("patched-too", "configmap/three"));
    assert!(!is_there("patched-too", "configmap/four"));
    let again = taken.plan(&spec("unused"), &options);
    assert_eq!(action(&again, "deployment.apps/web in patched-too"), &Action::Unchanged);
    assert_eq!(action(&again, "configmap/one in patched-too"), &Action::Unchanged);
}

#[test]
fn custom_objects_get_their_status_back() {
    for (plural, kind, subresources) in [("wheels", "Wheel", "{status: {}}"), ("gears", "Gear", "{}")] {
        SERVER.apply(&format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.example.com}}\n\
             spec:\n  group: example.com\n  scope: Namespaced\n  names: {{plural: {plural}, kind: {kind}}}\n  versions:\n  \
             - name: v1\n    served: true\n    storage: true\n    subresources: {subresources}\n    schema: \
             {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}\n"
        ));
        SERVER.until_established(&format!("{plural}.example.com"));
    }
    let objects = "apiVersion: v1\nkind: Namespace\nmetadata: {name: custom}\n---\n\
                   apiVersion: example.com/v1\nkind: Wheel\nmetadata: {name: one, namespace: custom}\nspec: {spokes: 36}\n---\n\
                   apiVersion: example.com/v1\nkind: Gear\nmetadata: {name: one, namespace: custom}\nspec: {teeth: 9}\n\
                   status: {turns: 4}\n";
    SERVER.until("custom objects can be made", || {
        SERVER.try_kubectl(&["apply", "--server-side", "-f", "-"], objects).is_ok()
    });
    let status = r#"{"status": {"turns": 7}}"#;
    SERVER.kubectl(&["-n", "custom", "patch", "wheel", "one", "--subresource=status", "--type=merge", "-p", status]);
    let taken = Taken::capture(&spec("custom")).unwrap();
    delete("custom");
    restore(&taken, &Options::default());
    assert_eq!(field("custom", "wheel/one", ".spec.spokes"), "36");
    assert_eq!(field("custom", "wheel/one", ".status") + &field("custom", "gear/one", ".status"), "");
    delete("custom");
    let options = Options { status: true, ..Options::default() };
    let (_, applied) = restore(&taken, &options);
    assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
    assert_eq!(field("custom", "wheel/one", ".status.turns"), "7");
    assert_eq!(field("custom", "gear/one", ".status.turns"), "4");
    // What is there keeps the status that it has now.
    let status = r#"{"spec": {"spokes": 32}, "status": {"turns": 8}}"#;
    SERVER.kubectl(&["-n", "custom", "patch", "wheel", "one", "--type=merge", "-p", status]);
    SERVER.kubectl(&["-n", "custom", "patch", "wheel", "one", "--subresource=status", "--type=merge", "-p", status]);
    restore(&taken, &Options { existing: Existing::Update, ..options });
    assert_eq!(field("custom", "wheel/one", ".spec.spokes"), "36");
    assert_eq!(field("custom", "wheel/one", ".status.turns"), "8");
}

#[test]
fn options_that_cannot_be_meant() {
    let mistakes = |text: &str| {
        let options: Options = serde_json::from_str(text).unwrap();
        let mut said = Vec::new();
        options.check(&mut |field, _| said.push(field.to_owned()));
        said
    };
    let fine = r#"{"existing": "update", "foreign": true, "namespaces": {"a": "b"}, "storageClasses": {"a": "b"},
                   "images": {"a": "b"}, "include": ["configmaps", "a/*/b"], "exclude": ["*.example.com"],
                   "selector": "a=b,!c", "status": true,
                   "patches": [{"kind": "configmaps", "name": "a/*", "patch": [{"op": "remove", "path": "/data"}]}]}"#;
    assert_eq!(mistakes(fine), [""; 0]);
    let options: Options = serde_json::from_str(fine).unwrap();
    assert_eq!(serde_json::from_str::<Options>(&serde_json::to_string(&options).unwrap()).unwrap(), options);
    assert_eq!(serde_json::from_str::<Options>("{}").unwrap(), Options::default());
    let bad = r#"{"images": {"a": ""}, "include": ["a/b"], "exclude": ["", "[/a/b"], "selector": "a in (b",
                  "patches": [{"kind": "a/b", "name": "a/b/c", "patch": []}]}"#;
    assert_eq!(
        mistakes(bad),
        ["include[0]", "exclude[0]", "exclude[1]", "selector", "images", "patches[0].kind", "patches[0].name"]
    );
    assert!(serde_json::from_str::<Options>(r#"{"image": {}}"#).is_err());
    // A plan does not get as far as the server.
    let broken = Options { selector: Some("a in (b".into()), ..Options::default() };
    let mut target = source::Spec::Kubernetes(spec("some")).target(broken).unwrap().unwrap();
    let taken = Taken { facts: lifeboat::entry::Facts::default(), sink: collect::Collect::default() };
    let refused = target.plan(&context(&runtime()), &taken).unwrap_err().to_string();
    assert!(refused.contains("a parenthesis is not closed"), "{refused}");
    // Other systems have no use for them.
    let other: source::Spec = serde_json::from_str(r#"{"files": {"path": "/srv"}}"#).unwrap();
    let refused = other.target(Options { status: true, ..Options::default() }).err().unwrap().to_string();
    assert!(refused.contains("the option status is for objects of Kubernetes"), "{refused}");
}
