//! States of a real OpenTofu: captured, lost, brought back; its own plan says whether they are right.

use crate::server;
use crate::support::{ACCESS_KEY, Bucket, SECRET_KEY, Server, bucket, client, command, minio, states, tool};
use crate::world::{Ran, World, made};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const BACKUP: [&str; 3] = ["backup", "infrastructure", "--json"];
const RESOURCES: &str = "variable \"size\" { default = \"small\" }\n\
    resource \"terraform_data\" \"cluster\" { input = var.size }\n\
    resource \"terraform_data\" \"node\" {\n  count = 20\n  input = \"${terraform.workspace}-${count.index}\"\n}\n";

/// A directory with a configuration.
struct Tofu {
    directory: PathBuf,
    /// Of states; none if it is empty.
    encryption: &'static str,
}

const ENCRYPTED: &str = "key_provider \"pbkdf2\" \"key\" { passphrase = \"long-enough-for-a-test\" }\n\
    method \"aes_gcm\" \"sealed\" { keys = key_provider.pbkdf2.key }\n\
    state {\n  method = method.aes_gcm.sealed\n  enforced = true\n}\n";

impl Tofu {
    fn new(world: &World, name: &str, backend: &str) -> Self {
        Self::with_encryption(world, name, backend, "")
    }

    fn with_encryption(world: &World, name: &str, backend: &str, encryption: &'static str) -> Self {
        let directory = world.path(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("main.tf"), format!("terraform {{\n{backend}\n}}\n{RESOURCES}")).unwrap();
        let tofu = Self { directory, encryption };
        tofu.run(&["init", "-input=false"]);
        tofu
    }

    fn code(&self, arguments: &[&str]) -> (i32, String) {
        let mut tofu = command(tool("tofu"));
        tofu.args(arguments).current_dir(&self.directory).env_clear().env("HOME", &self.directory);
        tofu.env("PATH", "/usr/bin:/bin").env("CHECKPOINT_DISABLE", "1").env("TF_IN_AUTOMATION", "1");
        tofu.env("TF_ENCRYPTION", self.encryption);
        tofu.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        let output = tofu.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let (code, text) = self.code(arguments);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    }

    #[track_caller]
    fn apply(&self, size: &str) {
        self.run(&["apply", "-auto-approve", "-input=false", "-no-color", &format!("-var=size={size}")]);
    }

    /// Whether what is there is what the configuration asks for.
    fn is_as_planned(&self, size: &str) -> bool {
        let size = format!("-var=size={size}");
        let (code, text) = self.code(&["plan", "-detailed-exitcode", "-input=false", "-no-color", &size]);
        assert!([0, 2].contains(&code), "{text}");
        code == 0
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.run(&["state", "pull"])).unwrap()
    }
}

fn document(world: &World, name: &str, backend: &str) {
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec:\n  terraform:\n    backend:\n      {backend}\n"
    );
    world.document(&format!("{name}.yaml"), &text);
}

fn restore(world: &World, more: &[&str]) -> Ran {
    let fixed = ["restore", "snapshot", "infrastructure@latest", "--into", "infrastructure", "--json"];
    world.as_owner(&[&fixed, more].concat())
}

#[track_caller]
fn actions(ran: &Ran) -> Vec<(String, String)> {
    let changes = ran.json()["changes"].as_array().unwrap().clone();
    let text = |change: &Value, name: &str| change[name].as_str().unwrap().to_owned();
    changes.iter().map(|change| (text(change, "what"), text(change, "action"))).collect()
}

fn all(action: &str) -> Vec<(String, String)> {
    ["default", "staging"].map(|name| (name.to_owned(), action.to_owned())).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_in_a_bucket() {
    let minio = minio();
    bucket(&minio, "states", Bucket::Versioned).await;
    let world = World::local();
    let tofu = Tofu::new(&world, "configuration", &block(&minio, "platform/main.tfstate"));
    tofu.apply("small");
    tofu.run(&["workspace", "new", "staging"]);
    tofu.apply("small");
    let yaml = yaml(&minio, "platform/main.tfstate");
    document(&world, "infrastructure", &yaml);
    world.as_writer(&["doctor"]).expect(0);
    let first = world.as_writer(&BACKUP).expect(0);
    assert_eq!(made(&first).number, 1);
    let facts = &first.json()["backups"][0]["facts"];
    assert_eq!(facts["objects"], 4, "two resources in each of two workspaces: {facts}");
    tofu.run(&["workspace", "select", "default"]);
    let captured = tofu.state();
    assert_eq!(facts["system"], captured["lineage"]);
    assert_eq!(facts["position"], captured["serial"]);
    assert_eq!(actions(&restore(&world, &["--dry-run"]).expect(0)), all("unchanged"));

    // Lost.
    let s3 = client(&minio);
    for key in ["platform/main.tfstate", "env:/staging/platform/main.tfstate"] {
        s3.delete_object().bucket("states").key(key).send().await.unwrap();
    }
    assert!(!tofu.is_as_planned("small"));
    assert_eq!(actions(&restore(&world, &["--dry-run"]).expect(0)), all("create"));
    assert!(!tofu.is_as_planned("small"), "a dry run changes nothing");
    assert_eq!(actions(&restore(&world, &[]).expect(0)), all("create"));
    assert_eq!(tofu.state(), captured);
    assert!(tofu.is_as_planned("small"));
    tofu.run(&["workspace", "select", "staging"]);
    assert!(tofu.is_as_planned("small"));
    tofu.run(&["workspace", "select", "default"]);

    // Changed since: only on request, and then as a later serial.
    tofu.apply("large");
    let later = tofu.state()["serial"].as_u64().unwrap();
    assert!(later > captured["serial"].as_u64().unwrap());
    let skipped = actions(&restore(&world, &[]).expect(0));
    assert_eq!(skipped[0].1, "skip");
    restore(&world, &["--existing", "update"]).expect(2).says("would overwrite");
    assert!(tofu.is_as_planned("large"));
    let target = "s3://states/platform/main.tfstate";
    let updated = restore(&world, &["--existing", "update", "--yes", "--target-id", target]).expect(0);
    assert_eq!(actions(&updated)[0].1, "update");
    assert_eq!(tofu.state()["serial"], later + 1);
    assert_eq!(tofu.state()["lineage"], captured["lineage"]);
    assert!(tofu.is_as_planned("small"));
    tofu.apply("large");

    // Locked by a run that is under way, or was killed.
    let info = r#"{"ID":"8c2","Operation":"OperationTypeApply","Who":"ann@laptop","Created":"2026-01-01T00:00:00Z"}"#;
    let put = s3.put_object().bucket("states").key("platform/main.tfstate.tflock");
    put.body(info.as_bytes().to_vec().into()).send().await.unwrap();
    let locked = restore(&world, &["--existing", "update", "--yes", "--target-id", target]).expect(3);
    assert!(actions(&locked)[0].1.contains("locked by ann@laptop"), "{}", locked.out);
    s3.delete_object().bucket("states").key("platform/main.tfstate.tflock").send().await.unwrap();
    assert!(tofu.is_as_planned("large"));

    // Somebody else's state in its place.
    s3.delete_object().bucket("states").key("platform/main.tfstate").send().await.unwrap();
    tofu.apply("other");
    let other = tofu.state();
    assert_ne!(other["lineage"], captured["lineage"]);
    let foreign = restore(&world, &["--existing", "update"]).expect(3);
    assert!(actions(&foreign)[0].1.contains("--foreign"), "{}", foreign.out);
    assert_eq!(tofu.state(), other);
    // … which is also seen when it is captured.
    let guarded = world.as_writer(&BACKUP).expect(3).json();
    assert_eq!(guarded["backups"][0]["state"], "quarantined", "{guarded}");
    let latest = ["--foreign", "--existing", "update", "--yes", "--target-id", target];
    restore(&world, &latest).expect(0);
    assert_eq!(tofu.state()["lineage"], captured["lineage"]);
    assert!(tofu.is_as_planned("small"));

    // Nothing there is no capture.
    document(&world, "nothing", &self::yaml(&minio, "no/such.tfstate"));
    fs::write(world.path("wrong"), "wrong-secret").unwrap();
    let wrong = format!("{{file: {}}}", world.path("wrong").display());
    world.as_writer(&["backup", "nothing"]).expect(1).says("holds nothing to capture");
    document(&world, "nothing", &self::yaml(&minio, "platform/main.tfstate").replace("{env: TEST_SECRET}", &wrong));
    let denied = world.as_writer(&["backup", "nothing"]).expect(1);
    assert!(!denied.err.contains("wrong-secret"), "{}", denied.err);
}

fn block(minio: &Server, key: &str) -> String {
    format!(
        "backend \"s3\" {{\n bucket = \"states\"\n key = \"{key}\"\n region = \"us-east-1\"\n endpoints = {{ s3 = \"{}\" }}\n \
         use_path_style = true\n skip_credentials_validation = true\n skip_requesting_account_id = true\n \
         skip_metadata_api_check = true\n skip_region_validation = true\n use_lockfile = true\n}}",
        minio.url()
    )
}

fn yaml(minio: &Server, key: &str) -> String {
    format!(
        "s3: {{bucket: states, key: {key}, region: us-east-1, endpoint: '{}', pathStyle: true, \
         credentials: {{accessKeyId: {{env: TEST_KEY}}, secretAccessKey: {{env: TEST_SECRET}}}}}}",
        minio.url()
    )
}

#[test]
fn states_in_a_directory() {
    let world = World::local();
    let tofu = Tofu::new(&world, "configuration", "");
    tofu.apply("small");
    tofu.run(&["workspace", "new", "staging"]);
    tofu.apply("small");
    tofu.run(&["workspace", "select", "default"]);
    document(&world, "infrastructure", &format!("local: {{directory: {}}}", tofu.directory.display()));
    world.as_writer(&BACKUP).expect(0);
    let state = tofu.directory.join("terraform.tfstate");
    let captured = fs::read(&state).unwrap();
    world.as_owner(&["export", "infrastructure@latest", "default/terraform.tfstate", "-o", "exported"]).expect(0);
    assert_eq!(fs::read(world.path("exported")).unwrap(), captured);

    fs::remove_file(&state).unwrap();
    fs::remove_dir_all(tofu.directory.join("terraform.tfstate.d")).unwrap();
    assert_eq!(actions(&restore(&world, &[]).expect(0)), all("create"));
    assert_eq!(fs::read(&state).unwrap(), captured);
    assert!(tofu.is_as_planned("small"));
    tofu.run(&["workspace", "select", "staging"]);
    assert!(tofu.is_as_planned("small"));

    // A file that is no state is reported without its content.
    fs::write(&state, "{\"password\": tell-nobody}").unwrap();
    let failed = world.as_writer(&["backup", "infrastructure"]).expect(1);
    failed.says("read the state of workspace default").says("it is not a state");
    assert!(!failed.err.contains("tell-nobody"), "{}", failed.err);
    fs::write(&state, "").unwrap();
    world.as_writer(&["backup", "infrastructure"]).expect(1).says("it is empty");
    assert_eq!(world.numbers("infrastructure"), [1]);
    // It can be restored over, if somebody says so.
    let kept = restore(&world, &[]).expect(3);
    assert!(actions(&kept)[0].1.contains("--existing replace"), "{}", kept.out);
    let target = tofu.directory.display().to_string();
    restore(&world, &["--existing", "replace", "--yes", "--target-id", &target]).expect(0);
    tofu.run(&["workspace", "select", "default"]);
    assert!(tofu.is_as_planned("small"));
    // A path that is not in the snapshot is a slip of the finger.
    let nothing = ["restore", "snapshot", "infrastructure", "produktion", "--into", "infrastructure"];
    world.as_owner(&nothing).expect(1).says("produktion is not in the snapshot");
}

#[test]
fn encrypted_states_come_back_as_they_are() {
    let world = World::local();
    let tofu = Tofu::with_encryption(&world, "configuration", "", ENCRYPTED);
    tofu.apply("small");
    let state = tofu.directory.join("terraform.tfstate");
    assert!(!fs::read_to_string(&state).unwrap().contains("small"));
    document(&world, "infrastructure", &format!("local: {{directory: {}}}", tofu.directory.display()));
    world.as_writer(&BACKUP).expect(0);
    fs::remove_file(&state).unwrap();
    assert_eq!(actions(&restore(&world, &[]).expect(0))[0].1, "create");
    assert!(tofu.is_as_planned("small"));
    // Its serial is sealed inside: it cannot go over a later one.
    tofu.apply("large");
    let refused = restore(&world, &["--existing", "update"]).expect(3);
    assert!(actions(&refused)[0].1.contains("encrypted"), "{}", refused.out);
    assert!(tofu.is_as_planned("large"));
    fs::remove_file(&state).unwrap();
    restore(&world, &[]).expect(0);
    assert!(tofu.is_as_planned("small"));
}

#[test]
fn states_in_secrets() {
    let cluster = server::Server::start();
    cluster.kubectl(&["create", "namespace", "states"]);
    let world = World::local();
    let kubeconfig = |user: &str| cluster.directory.path().join(format!("{user}.conf")).display().to_string();
    let block = format!(
        "backend \"kubernetes\" {{\n secret_suffix = \"platform\"\n namespace = \"states\"\n config_path = \"{}\"\n \
         labels = {{ team = \"platform\" }}\n}}",
        kubeconfig("admin")
    );
    let yaml = |user: &str, suffix: &str| {
        format!(
            "kubernetes: {{kubeconfig: {}, namespace: states, secretSuffix: {suffix}, labels: {{team: platform}}}}",
            kubeconfig(user)
        )
    };
    let tofu = Tofu::new(&world, "configuration", &block);
    tofu.apply("small");
    tofu.run(&["workspace", "new", "staging"]);
    tofu.apply("small");
    tofu.run(&["workspace", "select", "default"]);
    document(&world, "infrastructure", &yaml("admin", "platform"));
    world.as_writer(&["doctor"]).expect(0);
    let first = world.as_writer(&BACKUP).expect(0);
    assert_eq!(made(&first).number, 1);
    let facts = &first.json()["backups"][0]["facts"];
    assert_eq!(facts["objects"], 4, "two resources in each of two workspaces: {facts}");
    let captured = tofu.state();
    assert_eq!((&facts["system"], &facts["position"]), (&captured["lineage"], &captured["serial"]));
    assert_eq!(actions(&restore(&world, &["--dry-run"]).expect(0)), all("unchanged"));
    let labels =
        |name: &str| cluster.kubectl(&["-n", "states", "get", "secret", name, "-o", "jsonpath={.metadata.labels}"]);
    let before = labels("tfstate-staging-platform");

    // Lost.
    cluster.kubectl(&["-n", "states", "delete", "secrets,leases", "--selector", "tfstate=true"]);
    assert_eq!(actions(&restore(&world, &[]).expect(0)), all("create"));
    assert_eq!(tofu.state(), captured);
    assert!(tofu.is_as_planned("small"));
    assert_eq!(labels("tfstate-staging-platform"), before);
    assert!(tofu.run(&["workspace", "list"]).contains("staging"));
    tofu.run(&["workspace", "select", "staging"]);
    assert!(tofu.is_as_planned("small"));
    tofu.run(&["workspace", "select", "default"]);

    // Changed since: only on request, and then as a later serial.
    tofu.apply("large");
    let later = tofu.state()["serial"].as_u64().unwrap();
    assert_eq!(actions(&restore(&world, &[]).expect(0))[0].1, "skip");
    let target = restore(&world, &["--dry-run"]).expect(0).json()["target"].as_str().unwrap().to_owned();
    let over = ["--existing", "update", "--yes", "--target-id", &target];

    // Locked by a run that is under way.
    let lease = "lock-tfstate-default-platform";
    let info = r#"{\"ID\":\"8c2\",\"Operation\":\"OperationTypeApply\",\"Who\":\"ann@laptop\",\"Created\":\"2026-01-01T00:00:00Z\"}"#;
    let taken = format!(
        r#"{{"metadata": {{"annotations": {{"app.terraform.io/lock-info": "{info}"}}}}, "spec": {{"holderIdentity": "8c2"}}}}"#
    );
    cluster.kubectl(&["-n", "states", "patch", "lease", lease, "-p", &taken]);
    let locked = restore(&world, &over).expect(3);
    assert!(actions(&locked)[0].1.contains("locked by ann@laptop"), "{}", locked.out);
    tofu.run(&["force-unlock", "-force", "8c2"]);
    assert!(tofu.is_as_planned("large"));
    assert_eq!(actions(&restore(&world, &over).expect(0))[0].1, "update");
    assert_eq!((&tofu.state()["serial"], &tofu.state()["lineage"]), (&(later + 1).into(), &captured["lineage"]));
    assert!(tofu.is_as_planned("small"));
    let holder = cluster.kubectl(&["-n", "states", "get", "lease", lease, "-o", "jsonpath={.spec.holderIdentity}"]);
    assert_eq!(holder, "");

    // What cannot be captured.
    for (user, suffix, why) in [
        ("admin", "other", "holds nothing to capture"),
        ("small", "platform", "grant get and list on secrets"),
        ("wrong", "platform", "does not accept the credentials"),
    ] {
        document(&world, "infrastructure", &yaml(user, suffix));
        world.as_writer(&BACKUP).expect(1).says(why);
    }
    assert_eq!(world.numbers("infrastructure"), [1]);
}

#[test]
fn states_of_a_web_server() {
    let web = states("ann", "correct-horse-battery");
    let world = World::local();
    let (state, lock) = (format!("{}/states/platform.tfstate", web.url()), format!("{}/lock.sh", web.url()));
    let block = format!(
        "backend \"http\" {{\n address = \"{state}\"\n update_method = \"PUT\"\n lock_address = \"{lock}\"\n \
         unlock_address = \"{lock}\"\n username = \"ann\"\n password = \"correct-horse-battery\"\n}}"
    );
    let yaml = |state: &str, password: &str| {
        fs::write(world.path(password), format!("{password}\n")).unwrap();
        format!(
            "http: {{address: '{state}', updateMethod: PUT, lockAddress: '{lock}', username: ann, password: {{file: {}}}}}",
            world.path(password).display()
        )
    };
    let tofu = Tofu::new(&world, "configuration", &block);
    tofu.apply("small");
    document(&world, "infrastructure", &yaml(&state, "correct-horse-battery"));
    world.as_writer(&["doctor"]).expect(0);
    let first = world.as_writer(&BACKUP).expect(0).json();
    let captured = tofu.state();
    assert_eq!(first["backups"][0]["facts"]["system"], captured["lineage"]);
    assert_eq!(first["backups"][0]["facts"]["position"], captured["serial"]);

    fs::remove_file(web.dir.path().join("data/states/platform.tfstate")).unwrap();
    assert!(!tofu.is_as_planned("small"));
    assert_eq!(actions(&restore(&world, &[]).expect(0)), [("default".to_owned(), "create".to_owned())]);
    assert_eq!(tofu.state(), captured);
    assert!(tofu.is_as_planned("small"));

    // Over what is there now, under the lock.
    tofu.apply("large");
    let later = tofu.state()["serial"].as_u64().unwrap();
    assert_eq!(actions(&restore(&world, &[]).expect(0))[0].1, "skip");
    let over = ["--existing", "update", "--yes", "--target-id", &state];
    let info = r#"{"ID":"8c2","Operation":"OperationTypeApply","Who":"ann@laptop","Created":"2026-01-01T00:00:00Z"}"#;
    let held = web.dir.path().join("data/lock");
    fs::write(&held, info).unwrap();
    let locked = restore(&world, &over).expect(3);
    assert!(actions(&locked)[0].1.contains("locked by ann@laptop"), "{}", locked.out);
    assert_eq!(fs::read_to_string(&held).unwrap(), info, "somebody else's lock stays");
    fs::remove_file(&held).unwrap();
    assert!(tofu.is_as_planned("large"));
    assert_eq!(actions(&restore(&world, &over).expect(0))[0].1, "update");
    assert!(!held.exists());
    assert_eq!(tofu.state()["serial"], later + 1);
    assert!(tofu.is_as_planned("small"));

    // What cannot be captured.
    document(&world, "infrastructure", &yaml(&state, "incorrect-pony"));
    let denied = world.as_writer(&BACKUP).expect(1);
    denied.says("check username and password");
    assert!(!denied.err.contains("incorrect-pony"), "{}", denied.err);
    document(&world, "infrastructure", &yaml(&format!("{}/states/other.tfstate", web.url()), "correct-horse-battery"));
    world.as_writer(&BACKUP).expect(1).says("holds nothing to capture");
    document(&world, "infrastructure", &yaml(&state, "correct-horse-battery"));
    drop(web);
    world.as_writer(&BACKUP).expect(1).says("read the state at");
    assert_eq!(world.numbers("infrastructure"), [1]);
}
