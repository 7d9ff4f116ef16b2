//! A namespace that somebody deletes, through the program's own commands.

use crate::support::kubernetes::Server;
use crate::support::world::{World, made};
use crate::support::{command, tool};

const SHOP: &str = include_str!("../support/shop.yaml");

#[test]
fn a_deleted_namespace_comes_back() {
    let server = Server::start();
    let world = World::local();
    let kubeconfig = server.directory.path().join("admin.conf");
    let document = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: shop}}\n\
         spec: {{kubernetes: {{kubeconfig: {}, namespaces: [shop]}}}}\n",
        kubeconfig.display()
    );
    world.document("shop.yaml", &document);
    world.as_writer(&["backup", "shop"]).expect(1).says("nothing to capture");
    // Objects of the platform; its custom objects are tested elsewhere.
    server.apply(SHOP.replace("NS", "shop").split("---\n# custom objects\n").next().unwrap());
    world.as_writer(&["doctor"]).expect(0);
    let first = made(&world.as_writer(&["backup", "shop", "--json"]).expect(0));
    let before = server.kubectl(&["-n", "shop", "get", "configmap", "settings", "-o", "jsonpath={.data}"]);
    let restore = ["restore", "snapshot", "shop@1", "--into", "shop"];
    let into = |more: &[&str]| world.as_owner(&[&restore, more].concat());

    // What somebody changed is shown by comparing two snapshots.
    server.kubectl(&["-n", "shop", "patch", "configmap", "settings", "-p", r#"{"data": {"colour": "red"}}"#]);
    let second = made(&world.as_writer(&["backup", "shop", "--json"]).expect(0));
    assert!(second.new_bytes < first.new_bytes, "{} after {}", second.new_bytes, first.new_bytes);
    let differs = world.as_owner(&["diff", "shop@1", "shop@2"]);
    assert!(differs.out.contains("shop/configmaps/settings.yaml"), "{} {}", differs.out, differs.err);

    // Nothing that is there is touched unless somebody says so, and names the cluster.
    let planned = into(&["--dry-run"]).expect(0);
    assert!(planned.out.contains("skip") && planned.out.contains("settings"), "{}", planned.out);
    into(&["--existing", "update"]).expect(2).says("would overwrite").says("--target-id");
    let id = into(&["--existing", "update", "--dry-run", "--json"]).expect(0).json();
    let id = id["target"].as_str().unwrap().to_owned();
    into(&["--existing", "update", "--yes", "--target-id", "another"]).expect(2).says(&id);
    into(&["--existing", "update", "--yes", "--target-id", &id]).expect(0);
    assert_eq!(server.kubectl(&["-n", "shop", "get", "configmap", "settings", "-o", "jsonpath={.data}"]), before);

    server.kubectl(&["delete", "namespace", "shop", "--timeout=100s"]);
    let planned = into(&["--dry-run", "--json"]).expect(0).json();
    assert_eq!(planned["overwrites"], false, "{planned}");
    // A webhook that outlived its service keeps Secrets out.
    let kept_out = into(&[]).expect(3);
    assert!(kept_out.out.contains("delete its configuration"), "{}", kept_out.out);
    server.kubectl(&["delete", "validatingwebhookconfiguration", "shop-hook"]);
    into(&[]).expect(0);
    server.kubectl(&["get", "validatingwebhookconfiguration", "shop-hook"]);
    server.kubectl(&["-n", "shop", "get", "secret", "password"]);
    assert_eq!(server.kubectl(&["-n", "shop", "get", "configmap", "settings", "-o", "jsonpath={.data}"]), before);
    server
        .until("its pods are made again", || !server.kubectl(&["-n", "shop", "get", "pods", "-o", "name"]).is_empty());

    // Beside itself, for a look at what was.
    server.kubectl(&["delete", "validatingwebhookconfiguration", "shop-hook"]);
    into(&["--map-namespace", "shop=shop-before"]).expect(0);
    let beside = server.kubectl(&["-n", "shop-before", "get", "configmap", "settings", "-o", "jsonpath={.data}"]);
    assert_eq!(beside, before);
    // Some of it, changed on its way.
    let patch = "- kind: deployments.apps\n  name: web\n  patch: [{op: replace, path: /spec/replicas, value: 0}]\n";
    std::fs::write(world.path("patches.yaml"), patch).unwrap();
    let changed = ["--map-namespace", "shop=shop-elsewhere", "--include", "shop/*/web", "--include", "configmaps"];
    let more = ["--exclude", "services", "--map-image", "example.com=mirror.example.org", "--patches", "patches.yaml"];
    into(&[&changed[..], &more].concat()).expect(0);
    let web = [".spec.replicas", ".spec.template.spec.containers[0].image"].map(|path| {
        server.kubectl(&["-n", "shop-elsewhere", "get", "deployment", "web", "-o", &format!("jsonpath={{{path}}}")])
    });
    assert_eq!(web, ["0", "mirror.example.org/web:1"]);
    server.kubectl(&["-n", "shop-elsewhere", "get", "configmap", "settings"]);
    for left in ["service/web", "secret/password"] {
        assert!(server.try_kubectl(&["-n", "shop-elsewhere", "get", left], "").is_err(), "{left}");
    }
    into(&["--selector", "a in (b"]).expect(2).says("parenthesis");
    into(&["--map-image", "a=b", "--map-image", "a=c"]).expect(2).says("two new names");
    std::fs::write(world.path("patches.yaml"), "- kind: secrets\n  word: hunter2\n").unwrap();
    let refused = into(&["--patches", "patches.yaml"]).expect(2);
    refused.says("not a list of patches");
    assert!(!refused.err.contains("hunter2"), "{}", refused.err);
    // A kind that is not the target's.
    world.file("a", "content");
    world.backup();
    world.as_owner(&["restore", "snapshot", "docs", "--into", "shop"]).expect(2).says("of kind files");
    // The tree on a disk, and manifests that kubectl takes.
    world.as_owner(&["restore", "snapshot", "shop@1", "--to", "objects"]).expect(0);
    assert!(world.path("objects/shop/configmaps/settings.yaml").exists());
    world.as_owner(&["export", "shop@1", "-o", "shop.yaml"]).expect(0);
    let manifests = std::fs::read_to_string(world.path("shop.yaml")).unwrap();
    server
        .try_kubectl(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", "-"], &manifests)
        .unwrap();
}

/// Helm keeps its releases as Secrets or ConfigMaps; its own program says whether they are what they were.
#[test]
fn helm_releases_come_back_with_their_history() {
    let server = Server::start();
    let world = World::local();
    let kubeconfig = server.directory.path().join("admin.conf");
    let document = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: apps}}\n\
         spec: {{kubernetes: {{kubeconfig: {}, namespaces: [apps]}}}}\n",
        kubeconfig.display()
    );
    world.document("apps.yaml", &document);
    std::fs::create_dir_all(world.path("chart/templates")).unwrap();
    let chart = "apiVersion: v2\nname: web\nversion: 1.2.3\n";
    let template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\n\
        data: {colour: {{ .Values.colour }}, motto: {{ .Files.Get \"motto\" | quote }}}\n";
    std::fs::write(world.path("chart/motto"), "ex libris").unwrap();
    std::fs::write(world.path("chart/Chart.yaml"), chart).unwrap();
    std::fs::write(world.path("chart/values.yaml"), "colour: red\n").unwrap();
    std::fs::write(world.path("chart/templates/web.yaml"), template).unwrap();
    let run_helm = |driver: &str, arguments: &[&str]| {
        let mut helm = command(tool("helm"));
        helm.env("HELM_DRIVER", driver);
        helm.args(arguments).arg("--kubeconfig").arg(&kubeconfig).args(["--namespace", "apps"]);
        let output = helm.current_dir(world.home.path()).env("HOME", world.home.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let helm = |arguments: &[&str]| run_helm("secret", arguments);
    let colour = || server.kubectl(&["-n", "apps", "get", "configmap", "web", "-o", "jsonpath={.data.colour}"]);
    helm(&["install", "web", "chart", "--create-namespace"]);
    run_helm("configmap", &["install", "conf", "chart"]);
    world.as_writer(&["backup", "apps"]).expect(0);
    helm(&["upgrade", "web", "chart", "--set", "colour=blue", "--set", "word=hunter2"]);
    world.as_writer(&["backup", "apps"]).expect(0);

    // What the releases are, and what changed, without the values.
    let shown = world.as_writer(&["show", "apps@2"]).expect(0).out;
    for line in
        ["release apps/conf:  web 1.2.3, revision 1, deployed", "release apps/web:   web 1.2.3, revision 2, deployed"]
    {
        assert!(shown.contains(line), "{line:?} is not in {shown}");
    }
    let differs = world.as_owner(&["diff", "apps@1", "apps@2"]).expect(0).out;
    for line in [
        "release apps/web: web 1.2.3, revision 1, deployed -> web 1.2.3, revision 2, deployed\n",
        "  values: added word; changed colour\n",
        "  objects: changed ConfigMap web\n",
    ] {
        assert!(differs.contains(line), "{line:?} is not in {differs}");
    }
    assert!(!differs.contains("apps/conf:") && !differs.contains("hunter2") && !differs.contains("blue"), "{differs}");
    let differs = world.as_owner(&["diff", "apps@1", "apps@2", "--json"]).expect(0).json();
    assert_eq!(differs["releases"][0]["values"]["changed"], serde_json::json!(["colour"]), "{differs}");
    assert_eq!(differs["releases"][0]["is"]["revision"], 2, "{differs}");
    let (list, history) = (helm(&["list", "-o", "json"]), helm(&["history", "web", "-o", "json"]));
    let other = run_helm("configmap", &["list", "-o", "json"]);
    assert!(other.contains("conf"), "{other}");
    assert!(list.contains(r#""revision":"2""#) && history.contains("superseded"), "{list} {history}");

    server.kubectl(&["delete", "namespace", "apps", "--timeout=100s"]);
    world.as_owner(&["restore", "snapshot", "apps", "--into", "apps"]).expect(0);
    assert_eq!(helm(&["list", "-o", "json"]), list);
    assert_eq!(run_helm("configmap", &["list", "-o", "json"]), other);
    assert_eq!(helm(&["history", "web", "-o", "json"]), history);
    assert_eq!(colour(), "blue");
    helm(&["rollback", "web", "1"]);
    assert_eq!(colour(), "red");
    helm(&["upgrade", "web", "chart", "--set", "colour=green"]);
    assert_eq!(colour(), "green");

    // By files that helm and kubectl take, without Lifeboat.
    world.as_owner(&["export", "apps@2", "--format", "helm", "-o", "releases.tar"]).expect(0);
    let untar = command("tar").args(["-xf", "releases.tar"]).current_dir(world.home.path()).output().unwrap();
    assert!(untar.status.success(), "{}", String::from_utf8_lossy(&untar.stderr));
    server.kubectl(&["delete", "namespace", "apps", "--timeout=100s"]);
    server.kubectl(&["create", "namespace", "apps"]);
    let of_web = |name: &str| world.path(format!("apps/web/{name}")).to_str().unwrap().to_owned();
    server.kubectl(&["apply", "-f", &of_web("records")]);
    let revisions = |text: &str| {
        let known: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
        known
            .iter()
            .map(|one| (one["revision"].clone(), one["status"].clone(), one["chart"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(revisions(&helm(&["history", "web", "-o", "json"])), revisions(&history));
    helm(&["rollback", "web", "1"]);
    assert_eq!(colour(), "red");
    helm(&["uninstall", "web"]);
    helm(&["upgrade", "--install", "web", &of_web("chart"), "-f", &of_web("values.yaml")]);
    assert_eq!(colour(), "blue");
    let manifest = std::fs::read_to_string(of_web("manifest.yaml")).unwrap();
    assert!(manifest.contains("ex libris"), "{manifest}");
    assert_eq!(helm(&["get", "manifest", "web"]).trim(), manifest.trim());
}

/// What a repository is encrypted to, and what a cluster's Secret opens, are known to belong together.
#[test]
fn the_age_key_of_a_repository_is_found_in_the_cluster() {
    use age::secrecy::ExposeSecret as _;
    let server = Server::start();
    let world = World::local();
    let identity = age::x25519::Identity::generate();
    let key = world.path("keys.txt");
    std::fs::write(&key, format!("# ours\n{}\n", identity.to_string().expose_secret())).unwrap();
    let repository = world.path("infra");
    std::fs::create_dir(&repository).unwrap();
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=A", "-c", "user.email=a@example.org"];
        let ran = command("git").args(who).args(arguments).current_dir(&repository).output().unwrap();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    };
    let rules = format!("creation_rules:\n- {{age: 'age1somebody,{}'}}\n", identity.to_public());
    std::fs::write(repository.join(".sops.yaml"), rules).unwrap();
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "rules"]);
    let documents = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: infra}}\nspec: {{git: {{url: {}}}}}\n---\n\
         apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: apps}}\n\
         spec: {{kubernetes: {{kubeconfig: {}, namespaces: [apps]}}}}\n",
        repository.display(),
        server.directory.path().join("admin.conf").display()
    );
    world.document("sources.yaml", &documents);
    server.kubectl(&["create", "namespace", "apps"]);
    server.kubectl(&["-n", "apps", "create", "configmap", "settings"]);
    world.as_writer(&["backup", "--all"]).expect(0);
    let lacks = || world.as_writer(&["status"]).expect(0).out.contains("infra: its .sops.yaml encrypts to keys");
    assert!(lacks());
    let from = format!("--from-file=keys.txt={}", key.display());
    server.kubectl(&["-n", "apps", "create", "secret", "generic", "sops-age", &from]);
    let captured = world.as_writer(&["backup", "apps", "--json"]).expect(0);
    assert!(!captured.out.contains("AGE-SECRET"), "{}", captured.out);
    assert!(!lacks());
    world.as_writer(&["doctor"]).expect(0);
}
