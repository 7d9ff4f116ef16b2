//! Capture of a real Kubernetes control plane's objects, and bringing them back.

use crate::support::collect::{Collect, context, runtime};
use crate::support::kubernetes::Server;
use crate::support::taken::Taken;
use lifeboat::entry::{Entry, Facts, Input, Problem, Sink, Stopped};
use lifeboat::source::kubernetes::{ClusterScoped, Spec};
use lifeboat::source::target::{Action, Applied, Existing, Options, Plan};
use lifeboat::source::{self, SourceError};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// One for all tests, which have namespaces of their own.
static SERVER: LazyLock<Server> = LazyLock::new(Server::start);
/// Kinds and API services are everybody's: tests that add or remove some go one by one.
static DEFINITIONS: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    DEFINITIONS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn spec(namespaces: &[&str]) -> Spec {
    Spec {
        kubeconfig: Some(SERVER.directory.path().join("admin.conf")),
        namespaces: namespaces.iter().map(|&name| name.to_owned()).collect(),
        ..Spec::default()
    }
}

fn capture(spec: &Spec) -> Result<Taken, SourceError> {
    Taken::capture(spec)
}

/// A namespace with a bit of everything, and what it needs outside. `NS` stands for its name.
const SHOP: &str = include_str!("../support/shop.yaml");

fn shop(namespace: &str) -> String {
    SHOP.replace("NS", namespace)
}

/// Makes it and waits until the controllers have done their part.
fn open_shop(namespace: &str) {
    SERVER.apply(shop(namespace).split("---\n# custom objects\n").next().unwrap());
    SERVER.until_established(&format!("wheels.{namespace}.example.com"));
    SERVER.until("custom objects can be made", || {
        SERVER.try_kubectl(&["apply", "--server-side", "-f", "-"], &shop(namespace)).is_ok()
    });
    SERVER.until("the claim is bound", || {
        SERVER.kubectl(&["-n", namespace, "get", "pvc", "data", "-o", "jsonpath={.status.phase}"]) == "Bound"
    });
    SERVER.until("the pods are made", || {
        SERVER.kubectl(&["-n", namespace, "get", "pods", "-o", "name"]).lines().count() == 2
    });
}

#[test]
fn a_namespace_and_what_it_needs() {
    let _alone = alone();
    open_shop("seen");
    let taken = capture(&spec(&["seen"])).unwrap();
    assert!(taken.sink.problems.is_empty(), "{:?}", taken.sink.problems);
    for path in [
        "seen/configmaps/settings.yaml",
        "seen/secrets/password.yaml",
        "seen/deployments.apps/web.yaml",
        "seen/services/web.yaml",
        "seen/ingresses.networking.k8s.io/web.yaml",
        "seen/networkpolicies.networking.k8s.io/web.yaml",
        "seen/resourcequotas/limits.yaml",
        "seen/horizontalpodautoscalers.autoscaling/web.yaml",
        "seen/persistentvolumeclaims/data.yaml",
        "seen/roles.rbac.authorization.k8s.io/reader.yaml",
        "seen/rolebindings.rbac.authorization.k8s.io/reader.yaml",
        "seen/serviceaccounts/web.yaml",
        "seen/wheels.seen.example.com/front.yaml",
        "_cluster/namespaces/seen.yaml",
        "_cluster/customresourcedefinitions.apiextensions.k8s.io/wheels.seen.example.com.yaml",
        "_cluster/clusterroles.rbac.authorization.k8s.io/seen-role.yaml",
        "_cluster/clusterroles.rbac.authorization.k8s.io/view.yaml",
        "_cluster/clusterrolebindings.rbac.authorization.k8s.io/seen-binding.yaml",
        "_cluster/storageclasses.storage.k8s.io/seen-class.yaml",
        "_cluster/persistentvolumes/seen-volume.yaml",
        "_cluster/priorityclasses.scheduling.k8s.io/seen-priority.yaml",
        "_cluster/ingressclasses.networking.k8s.io/seen-ingress.yaml",
        "_cluster/validatingwebhookconfigurations.admissionregistration.k8s.io/seen-hook.yaml",
    ] {
        assert!(taken.has(path), "{path} is not among {:#?}", taken.paths());
    }
    for path in taken.paths() {
        assert!(path.starts_with("seen/") || path.starts_with("_cluster/"), "{path}");
        assert!(!path.contains("/events") && !path.contains("/endpoint"), "{path}");
    }
    for not_needed in ["cluster-admin", "system:node"] {
        assert!(!taken.has(&format!("_cluster/clusterroles.rbac.authorization.k8s.io/{not_needed}.yaml")));
    }
    let settings = taken.text("seen/configmaps/settings.yaml");
    assert!(settings.starts_with("apiVersion: v1\ndata:\n"), "{settings}");
    assert!(settings.contains("  lines: |\n    one\n    two\n"), "{settings}");
    assert!(!settings.contains("managedFields"), "{settings}");
    assert!(taken.text("seen/deployments.apps/web.yaml").contains("\nstatus:\n"));
    let uid = SERVER.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(taken.facts.system, Some(uid));
    assert!(taken.facts.details["version"].starts_with("v1."), "{:?}", taken.facts);

    // The same again is the same, and the position grows with every change.
    SERVER.kubectl(&["-n", "seen", "annotate", "configmap", "settings", "changed=yes"]);
    let later = capture(&spec(&["seen"])).unwrap();
    assert!(later.facts.position > taken.facts.position, "{:?}", later.facts);
    assert_eq!(later.text("seen/secrets/password.yaml"), taken.text("seen/secrets/password.yaml"));

    // Deliberate choices.
    let few =
        Spec { include_kinds: vec!["configmaps".to_owned()], cluster_scoped: ClusterScoped::None, ..spec(&["seen"]) };
    assert_eq!(
        capture(&few).unwrap().paths(),
        ["seen/configmaps/kube-root-ca.crt.yaml", "seen/configmaps/settings.yaml"]
    );
    let labelled = Spec { selector: Some("part=web".to_owned()), ..few.clone() };
    assert_eq!(capture(&labelled).unwrap().paths(), ["seen/configmaps/settings.yaml"]);
    let without = capture(&Spec { exclude_kinds: vec!["secrets".to_owned()], ..spec(&["seen"]) }).unwrap();
    assert!(!without.paths().iter().any(|path| path.contains("/secrets/")));
    let all = capture(&Spec { cluster_scoped: ClusterScoped::All, ..spec(&["seen"]) }).unwrap();
    assert!(all.has("_cluster/clusterroles.rbac.authorization.k8s.io/cluster-admin.yaml"));
    let unknown = Spec { include_kinds: vec!["wheel".to_owned()], ..spec(&["seen"]) };
    assert!(matches!(capture(&unknown), Err(SourceError::Spec { .. })));
    SERVER.kubectl(&["delete", "validatingwebhookconfiguration", "seen-hook"]);
}

#[test]
fn kubectl_takes_the_export() {
    let _alone = alone();
    open_shop("moved");
    let taken = capture(&spec(&["moved"])).unwrap();
    let export = taken.export();
    let at = |text: &str| export.find(text).unwrap_or_else(|| panic!("no {text} in {export}"));
    assert!(at("kind: CustomResourceDefinition") < at("kind: Namespace"));
    assert!(at("kind: Namespace") < at("kind: Secret"));
    assert!(at("kind: Deployment") < at("kind: ValidatingWebhookConfiguration"));
    assert!(!export.contains("kind: ReplicaSet") && !export.contains("kind: Pod\n"), "{export}");
    close_shop("moved");
    SERVER.until("kubectl has applied everything", || {
        // Custom objects are refused until their definition has arrived.
        SERVER.try_kubectl(&["apply", "-f", "-"], &export).is_ok()
    });
    let password = SERVER.kubectl(&["-n", "moved", "get", "secret", "password", "-o", "jsonpath={.data.word}"]);
    assert_eq!(password, "aHVudGVyMg==");
    SERVER.kubectl(&["-n", "moved", "get", "wheels.moved.example.com", "front"]);
    SERVER.kubectl(&["delete", "validatingwebhookconfiguration", "moved-hook"]);
}

/// Takes away everything that [`shop`] makes.
fn close_shop(namespace: &str) {
    for (kind, name) in [
        ("validatingwebhookconfiguration", "hook"),
        ("clusterrolebinding", "binding"),
        ("clusterrole", "role"),
        ("priorityclass", "priority"),
        ("ingressclass", "ingress"),
    ] {
        SERVER.kubectl(&["delete", kind, &format!("{namespace}-{name}")]);
    }
    SERVER.kubectl(&["delete", "namespace", namespace, "--wait", "--timeout=100s"]);
    SERVER.kubectl(&["delete", "crd", &format!("wheels.{namespace}.example.com"), "--wait", "--timeout=60s"]);
    SERVER.kubectl(&["delete", "pv", &format!("{namespace}-volume"), "--wait", "--timeout=60s"]);
    SERVER.kubectl(&["delete", "storageclass", &format!("{namespace}-class")]);
}

#[test]
fn what_may_not_be_read_is_reported() {
    SERVER.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: few}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine, namespace: few}\ndata: {a: b}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: hidden, namespace: few}\nstringData: {word: hunter2}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: few, namespace: few}\n\
         rules: [{apiGroups: [''], resources: [configmaps], verbs: [get, list]}]\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: few, namespace: few}\n\
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: few}\n\
         subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: small}]\n",
    );
    let small = |namespaces: &[&str]| Spec {
        kubeconfig: Some(SERVER.directory.path().join("small.conf")),
        cluster_scoped: ClusterScoped::None,
        ..spec(namespaces)
    };
    let taken = capture(&small(&["few"])).unwrap();
    assert_eq!(taken.paths(), ["few/configmaps/kube-root-ca.crt.yaml", "few/configmaps/mine.yaml"]);
    let problem = taken.sink.problems.iter().find(|problem| problem.path == b"few/secrets").unwrap();
    assert!(problem.text.contains("forbidden"), "{problem:?}");
    assert!(taken.sink.problems.iter().all(|problem| problem.path != b"few/configmaps"));
    let failure = capture(&small(&["default"])).err().unwrap().to_string();
    assert!(failure.contains("grant get and list"), "{failure}");
}

#[test]
fn an_api_service_that_is_down_is_reported() {
    let _alone = alone();
    SERVER.apply(
        "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {name: v1.down.example.com}\n\
         spec: {group: down.example.com, version: v1, groupPriorityMinimum: 10, versionPriority: 10, \
         insecureSkipTLSVerify: true, service: {name: none, namespace: default}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: here, namespace: default}\n",
    );
    let only = Spec { include_kinds: vec!["configmaps".to_owned()], ..spec(&["default"]) };
    SERVER.until("the group is known", || {
        capture(&only).unwrap().sink.problems.iter().any(|problem| problem.text.contains("down.example.com"))
    });
    SERVER.kubectl(&["delete", "apiservice", "v1.down.example.com"]);
}

#[test]
fn nothing_is_an_error_and_a_missing_namespace_a_problem() {
    SERVER.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: bare}\n");
    SERVER.until("it has what every namespace has", || {
        SERVER.try_kubectl(&["-n", "bare", "get", "serviceaccount", "default"], "").is_ok()
    });
    for empty in
        [spec(&["bare"]), spec(&["nowhere"]), Spec { selector: Some("no=such".to_owned()), ..spec(&["default"]) }]
    {
        let failure = capture(&empty).err().unwrap().to_string();
        assert!(failure.contains("there is nothing to capture"), "{failure}");
    }
    SERVER.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, namespace: default}\n");
    let taken = capture(&spec(&["default", "nowhere"])).unwrap();
    assert!(taken.has("default/configmaps/one.yaml"));
    assert_eq!(taken.sink.problems[0].path, b"nowhere");
}

#[test]
fn a_server_that_cannot_be_used() {
    let file = |name: &str, text: &str| {
        let path = SERVER.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        Spec { kubeconfig: Some(path), ..Spec::default() }
    };
    let failure = |spec: &Spec| {
        let mut failure: &dyn std::error::Error = &capture(spec).err().unwrap();
        let mut text = failure.to_string();
        while let Some(cause) = failure.source() {
            failure = cause;
            text = format!("{text}: {failure}");
        }
        text
    };
    let wrong = Spec { kubeconfig: Some(SERVER.directory.path().join("wrong.conf")), ..Spec::default() };
    let text = failure(&wrong);
    assert!(text.contains("does not accept the credentials") && !text.contains("wrong-token"), "{text}");
    let nowhere = "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {token: hunter2}}]\n\
                   contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n";
    let text = failure(&file("nowhere.conf", nowhere));
    assert!(text.contains("https://127.0.0.1:1") && text.contains("refused"), "{text}");
    let text = failure(&file("broken.conf", "users: [{name: u, user: {token: [hunter2}}]\n"));
    assert!(text.contains("broken.conf") && !text.contains("hunter2"), "{text}");
    let missing = Spec { kubeconfig: Some("no/such".into()), ..Spec::default() };
    assert!(failure(&missing).contains("no/such"));
    let context = Spec { context: Some("other".to_owned()), ..spec(&[]) };
    assert!(failure(&context).contains("other"));
    assert!(failure(&Spec::default()).contains("give a kubeconfig"));
    // Another authority than the one that signed the server's certificate.
    let own = std::fs::read_to_string(SERVER.directory.path().join("admin.conf")).unwrap();
    let text =
        failure(&file("foreign.conf", &own.replace("certificate-authority: ca.pem", "tls-server-name: other.test")));
    assert!(text.to_lowercase().contains("certificate"), "{text}");
}

fn target(spec: &Spec, options: &Options) -> Box<dyn source::target::Target> {
    source::Spec::Kubernetes(spec.clone()).target(options.clone()).unwrap().unwrap()
}

fn plan(taken: &Taken, options: &Options) -> Plan {
    taken.plan(&spec(&[]), options)
}

fn apply(taken: &Taken, options: &Options, plan: &Plan) -> Applied {
    taken.apply(&spec(&[]), options, plan)
}

fn action<'a>(changes: &'a [source::target::Change], what: &str) -> &'a Action {
    let found = changes.iter().find(|change| change.what == what);
    &found.unwrap_or_else(|| panic!("{what} is not among {changes:#?}")).action
}

fn field(namespace: &str, object: &str, path: &str) -> String {
    SERVER.kubectl(&["-n", namespace, "get", object, "-o", &format!("jsonpath={{{path}}}")])
}

#[test]
fn a_lost_namespace_comes_back() {
    let _alone = alone();
    open_shop("lost");
    let uid = field("lost", "configmap/settings", ".metadata.uid");
    SERVER.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: owned, namespace: lost, ownerReferences: \
         [{{apiVersion: v1, kind: ConfigMap, name: settings, uid: {uid}}}]}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: free, namespace: lost}}\n"
    ));
    let before = capture(&spec(&["lost"])).unwrap();
    assert!(plan(&before, &Options::default()).changes.iter().all(|change| change.action == Action::Unchanged));
    // Everything but the volume, which waits for its claim.
    SERVER.kubectl(&["delete", "validatingwebhookconfiguration", "lost-hook"]);
    SERVER.kubectl(&["delete", "clusterrolebinding", "lost-binding"]);
    SERVER.kubectl(&["delete", "clusterrole", "lost-role"]);
    SERVER.kubectl(&["delete", "namespace", "lost", "--wait", "--timeout=100s"]);
    SERVER.kubectl(&["delete", "crd", "wheels.lost.example.com", "--wait", "--timeout=60s"]);
    SERVER.until("the volume is released", || {
        SERVER.kubectl(&["get", "pv", "lost-volume", "-o", "jsonpath={.status.phase}"]) == "Released"
    });

    let options = Options::default();
    let planned = plan(&before, &options);
    assert_eq!(Some(&planned.target), before.facts.system.as_ref());
    assert_eq!(action(&planned.changes, "secret/password in lost"), &Action::Create);
    assert_eq!(action(&planned.changes, "wheel.lost.example.com/front in lost"), &Action::Create);
    assert_eq!(action(&planned.changes, "namespace/lost"), &Action::Create);
    assert_eq!(action(&planned.changes, "persistentvolume/lost-volume"), &Action::Adopt);
    assert_eq!(action(&planned.changes, "storageclass.storage.k8s.io/lost-class"), &Action::Unchanged);
    for left in ["replicaset", "pod/", "secret/token", "kube-root-ca.crt"] {
        assert!(!planned.changes.iter().any(|change| change.what.starts_with(left)), "{planned:#?}");
    }
    // A claim that is chosen has its volume with it.
    let claims = Options { include: vec!["lost/persistentvolumeclaims/*".into()], ..Options::default() };
    let chosen: Vec<_> = plan(&before, &claims).changes.into_iter().map(|c| (c.what, c.action)).collect();
    let expected = [
        ("namespace/lost", Action::Create),
        ("persistentvolume/lost-volume", Action::Adopt),
        ("persistentvolumeclaim/data in lost", Action::Create),
    ];
    assert_eq!(chosen, expected.map(|(what, action)| (what.to_owned(), action)));
    assert!(SERVER.try_kubectl(&["get", "namespace", "lost"], "").is_err(), "planning changes nothing");

    let applied = apply(&before, &options, &planned);
    assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
    assert_eq!(action(&applied.changes, "secret/password in lost"), &Action::Create);
    assert_eq!(field("lost", "secret/password", ".data.word"), "aHVudGVyMg==");
    assert_eq!(field("lost", "wheels.lost.example.com/front", ".spec.spokes"), "36");
    let owner = field("lost", "configmap/owned", ".metadata.ownerReferences[0].uid");
    assert_eq!(owner, field("lost", "configmap/settings", ".metadata.uid"));
    assert_ne!(owner, uid);
    SERVER.until("the claim has its volume again", || field("lost", "pvc/data", ".status.phase") == "Bound");
    assert_eq!(field("lost", "pvc/data", ".spec.volumeName"), "lost-volume");
    SERVER.until("the controllers have made the pods again", || {
        SERVER.kubectl(&["-n", "lost", "get", "pods", "-o", "name"]).lines().count() == 2
    });

    let after = capture(&spec(&["lost"])).unwrap();
    similar_asserts(&before.export(), &after.export());
    let again = plan(&before, &options);
    assert!(again.changes.iter().all(|change| change.action == Action::Unchanged), "{:#?}", again.changes);
    let applied = apply(&before, &options, &again);
    assert!(applied.changes.iter().all(|change| change.action == Action::Unchanged), "{:#?}", applied.changes);
    SERVER.kubectl(&["delete", "validatingwebhookconfiguration", "lost-hook"]);
}

/// Says where two texts first differ.
fn similar_asserts(one: &str, other: &str) {
    let mut lines = one.lines().zip(other.lines()).enumerate();
    let differs = lines.find(|(_, (a, b))| a != b);
    let around =
        |text: &str, at: usize| text.lines().skip(at.saturating_sub(12)).take(16).collect::<Vec<_>>().join("\n");
    if let Some((at, _)) = differs {
        panic!("line {at}:\n{}\n=== but ===\n{}", around(one, at), around(other, at));
    }
    assert_eq!(one.len(), other.len());
}

#[test]
fn a_namespace_under_another_name() {
    let _alone = alone();
    open_shop("first");
    let taken = capture(&spec(&["first"])).unwrap();
    SERVER.kubectl(&["delete", "validatingwebhookconfiguration", "first-hook"]);
    let options = Options { namespaces: [("first".to_owned(), "second".to_owned())].into(), ..Options::default() };
    let planned = plan(&taken, &options);
    assert_eq!(action(&planned.changes, "persistentvolume/first-volume"), &Action::Skip);
    assert_eq!(action(&planned.changes, "clusterrolebinding.rbac.authorization.k8s.io/first-binding"), &Action::Skip);
    let applied = apply(&taken, &options, &planned);
    assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
    assert_eq!(field("second", "secret/password", ".data.word"), "aHVudGVyMg==");
    assert_eq!(field("second", "rolebinding/reader", ".subjects[0].namespace"), "second");
    let from = ".spec.ingress[0].from[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name";
    assert_eq!(field("second", "networkpolicy/web", from), "second");
    assert_eq!(field("second", "namespace/second", ".metadata.labels.team"), "shop");
    let hook = ".webhooks[0].clientConfig.service.namespace";
    assert_eq!(field("second", "validatingwebhookconfiguration/first-hook", hook), "second");
    assert_eq!(field("first", "pvc/data", ".status.phase"), "Bound");
    assert!(field("second", "service/web", ".spec.clusterIP") != field("first", "service/web", ".spec.clusterIP"));
    SERVER.kubectl(&["delete", "validatingwebhookconfiguration", "first-hook"]);
}

#[test]
fn what_becomes_of_objects_that_are_there() {
    SERVER.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: there}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: changed, namespace: there}\ndata: {a: old}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept, namespace: there}\ndata: {a: old}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: typed, namespace: there}\ntype: Opaque\nstringData: {word: hunter2}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: there}\nspec: {ports: [{port: 80}]}\n",
    );
    let taken = capture(&spec(&["there"])).unwrap();
    SERVER.kubectl(&["-n", "there", "patch", "configmap", "changed", "-p", r#"{"data": {"a": "new", "more": "x"}}"#]);
    SERVER.kubectl(&["-n", "there", "delete", "secret", "typed"]);
    SERVER.kubectl(&["-n", "there", "create", "secret", "generic", "typed", "--type=example.com/other"]);
    SERVER.kubectl(&[
        "-n",
        "there",
        "patch",
        "service",
        "web",
        "--type=json",
        "-p",
        r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#,
    ]);
    let uid = field("there", "configmap/changed", ".metadata.uid");
    let address = field("there", "service/web", ".spec.clusterIP");
    let with = |existing| Options { existing, ..Options::default() };

    let skip = plan(&taken, &with(Existing::Skip));
    assert_eq!(action(&skip.changes, "configmap/changed in there"), &Action::Skip);
    assert_eq!(action(&skip.changes, "configmap/kept in there"), &Action::Unchanged);
    assert!(!skip.overwrites());
    apply(&taken, &with(Existing::Skip), &skip);
    assert_eq!(field("there", "configmap/changed", ".data.a"), "new");

    let update = plan(&taken, &with(Existing::Update));
    assert_eq!(action(&update.changes, "configmap/changed in there"), &Action::Update);
    let Action::Conflict(text) = action(&update.changes, "secret/typed in there") else { panic!("{update:#?}") };
    assert!(text.contains("type") && !text.contains("hunter2") && !text.contains("aHVudGVyMg"), "{text}");
    assert!(update.overwrites());
    let applied = apply(&taken, &with(Existing::Update), &update);
    assert_eq!(applied.problems.len(), 1, "{:#?}", applied.problems);
    assert_eq!(applied.problems[0].path, b"there/secrets/typed.yaml");
    assert!(!format!("{applied:?}").contains("aHVudGVyMg"));
    assert_eq!(field("there", "configmap/changed", ".data"), r#"{"a":"old"}"#);
    assert_eq!(field("there", "configmap/changed", ".metadata.uid"), uid);
    assert_eq!(field("there", "service/web", ".spec.ports[0].port"), "80");
    assert_eq!(field("there", "service/web", ".spec.clusterIP"), address);

    let replace = plan(&taken, &with(Existing::Replace));
    assert_eq!(action(&replace.changes, "secret/typed in there"), &Action::Replace);
    assert_eq!(action(&replace.changes, "configmap/changed in there"), &Action::Unchanged);
    let applied = apply(&taken, &with(Existing::Replace), &replace);
    assert!(applied.problems.is_empty(), "{:#?}", applied.problems);
    assert_eq!(field("there", "secret/typed", ".type"), "Opaque");
    assert_eq!(field("there", "secret/typed", ".data.word"), "aHVudGVyMg==");
}

#[test]
fn a_plan_is_not_exceeded() {
    SERVER.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: quick}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, namespace: quick}\ndata: {a: old}\n",
    );
    let mut taken = capture(&spec(&["quick"])).unwrap();
    SERVER.kubectl(&["-n", "quick", "delete", "configmap", "one"]);
    let options = Options { existing: Existing::Update, ..Options::default() };
    let planned = plan(&taken, &options);
    assert_eq!(action(&planned.changes, "configmap/one in quick"), &Action::Create);
    SERVER.kubectl(&["-n", "quick", "create", "configmap", "one", "--from-literal=a=somebody-elses"]);
    let applied = apply(&taken, &options, &planned);
    assert!(matches!(action(&applied.changes, "configmap/one in quick"), Action::Conflict(_)));
    assert_eq!(field("quick", "configmap/one", ".data.a"), "somebody-elses");
    // Two namespaces do not become one.
    let options = Options { namespaces: [("quick".to_owned(), "kube-public".to_owned())].into(), ..options };
    let both = capture(&spec(&["quick", "kube-public"])).unwrap();
    let refused = target(&spec(&[]), &options).plan(&context(&runtime()), &both).unwrap_err();
    assert!(refused.to_string().contains("both would become kube-public"), "{refused}");
    // Another cluster must be meant, and is said; a plan is for one cluster only.
    taken.facts.system = Some("another".to_owned());
    let refused = target(&spec(&[]), &options).plan(&context(&runtime()), &taken).unwrap_err();
    assert!(refused.to_string().contains("add --foreign"), "{refused}");
    let options = Options { foreign: true, ..Options::default() };
    let mut planned = plan(&taken, &options);
    assert!(planned.about.iter().any(|line| line.contains("another cluster")), "{planned:?}");
    planned.target = "another".to_owned();
    let runtime = runtime();
    let refused = target(&spec(&[]), &options).apply(&context(&runtime), &taken, &planned);
    assert!(matches!(refused, Err(SourceError::Spec { .. })));
}

/// Stops the API server when the first object comes.
struct Killer {
    server: Server,
    seen: usize,
}

impl Sink for Killer {
    fn add(&mut self, _: Entry, _: Option<Input>) -> Result<(), Stopped> {
        if self.seen == 0 {
            self.server.kill("kube-apiserver");
        }
        self.seen += 1;
        Ok(())
    }

    fn problem(&mut self, problem: Problem) {
        panic!("{problem:?}");
    }
}

#[test]
fn a_server_that_dies_half_way() {
    let server = Server::start();
    let maps: String = (0..700)
        .map(|index| {
            format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map-{index}, namespace: default}}\n")
        })
        .collect();
    server.apply(&maps);
    let spec = Spec {
        kubeconfig: Some(server.directory.path().join("admin.conf")),
        include_kinds: vec!["configmaps".to_owned()],
        namespaces: vec!["default".to_owned()],
        ..Spec::default()
    };
    let mut all = Collect::default();
    let mut source = source::Spec::Kubernetes(spec).open().unwrap();
    let runtime = runtime();
    source.capture(&context(&runtime), &mut all).unwrap();
    let names: Vec<_> =
        all.entries.iter().map(|(entry, _)| &entry.path).filter(|path| path.starts_with(b"default/")).collect();
    assert_eq!(names.len(), 701, "700 and the cluster's certificate");
    assert!(names.is_sorted());
    let mut killer = Killer { server, seen: 0 };
    let failure = source.capture(&context(&runtime), &mut killer).unwrap_err().to_string();
    assert!(killer.seen > 0 && killer.seen < 701, "{}", killer.seen);
    assert!(failure.contains("reach the API server"), "{failure}");
}

/// `cargo test --release --test servers -- --ignored --nocapture twenty_thousand` prints how long it takes.
#[test]
#[ignore = "a measurement by hand: it takes minutes"]
fn twenty_thousand_objects() {
    const COUNT: u64 = 20_000;
    let server = Server::start();
    let spec = Spec {
        kubeconfig: Some(server.directory.path().join("admin.conf")),
        namespaces: vec!["many".to_owned()],
        ..Spec::default()
    };
    let mut made = Taken { facts: Facts::default(), sink: Collect::default() };
    let filler = "x".repeat(1000);
    let (template, _) = capture_from(&server).sink.entries.remove(0);
    for index in 0..COUNT {
        let path = format!("many/configmaps/map-{index}.yaml").into_bytes();
        let text = format!(
            "apiVersion: v1\ndata:\n  filler: {filler}\nkind: ConfigMap\nmetadata:\n  name: map-{index}\n  namespace: many\n"
        );
        made.sink.entries.push((Entry { path, size: text.len() as u64, ..template.clone() }, text.into_bytes()));
    }
    let runtime = runtime();
    let context = source::Context { deadline: Instant::now() + Duration::from_mins(20), ..context(&runtime) };
    let options = Options::default();
    let mut target = source::Spec::Kubernetes(spec.clone()).target(options).unwrap().unwrap();
    let began = Instant::now();
    let plan = target.plan(&context, &made).unwrap();
    println!("planned in {:.1?}", began.elapsed());
    let began = Instant::now();
    let applied = target.apply(&context, &made, &plan).unwrap();
    assert!(applied.problems.is_empty(), "{:?}", applied.problems);
    println!("restored in {:.1?}", began.elapsed());
    let bytes: usize = made.sink.entries.iter().map(|(_, content)| content.len()).sum();
    drop(made);
    let mut counted = Counted::default();
    let began = Instant::now();
    let facts = source::Spec::Kubernetes(spec).open().unwrap().capture(&context, &mut counted).unwrap();
    println!("captured {counted:?} in {:.1?}; {bytes} bytes were restored; {facts:?}", began.elapsed());
    assert!(counted.objects > COUNT && counted.bytes > bytes);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!(
        "{}",
        status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS")).collect::<String>()
    );
}

fn capture_from(server: &Server) -> Taken {
    let spec = Spec { kubeconfig: Some(server.directory.path().join("admin.conf")), ..Spec::default() };
    capture(&spec).unwrap()
}

/// Keeps nothing.
#[derive(Debug, Default)]
struct Counted {
    objects: u64,
    bytes: usize,
}

impl Sink for Counted {
    fn add(&mut self, entry: Entry, _: Option<Input>) -> Result<(), Stopped> {
        self.objects += 1;
        self.bytes += entry.size as usize;
        Ok(())
    }

    fn problem(&mut self, problem: Problem) {
        panic!("{problem:?}");
    }
}
