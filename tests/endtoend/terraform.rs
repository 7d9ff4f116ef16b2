//! States of a real OpenTofu: captured, lost, brought back; its own plan says whether they are right.

use crate::support::kubernetes;
use crate::support::world::{Ran, World, made};
use crate::support::{ACCESS_KEY, Bucket, SECRET_KEY, Server, bucket, client, command, minio, moto, states, tool};
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

type Item = HashMap<String, AttributeValue>;

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

    /// It waits some seconds for the state to become the one of the digest.
    #[track_caller]
    fn refuses_the_state(&self) {
        let (code, text) = self.code(&["plan", "-input=false", "-no-color"]);
        assert!(code == 1 && text.contains("does not have the expected content"), "{code}: {text}");
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

/// One table of a DynamoDB.
struct Locks {
    client: aws_sdk_dynamodb::Client,
}

impl Locks {
    async fn new(moto: &Server) -> Self {
        use aws_sdk_dynamodb::types::{
            AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
        };
        let credentials = aws_sdk_s3::config::Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "tests");
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version_latest()
            .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
            .credentials_provider(credentials)
            .endpoint_url(moto.url());
        let client = aws_sdk_dynamodb::Client::from_conf(config.build());
        let key = KeySchemaElement::builder().attribute_name("LockID").key_type(KeyType::Hash).build().unwrap();
        let text = AttributeDefinition::builder().attribute_name("LockID").attribute_type(ScalarAttributeType::S);
        let table = client.create_table().table_name("locks").key_schema(key);
        let table = table.attribute_definitions(text.build().unwrap()).billing_mode(BillingMode::PayPerRequest);
        table.send().await.unwrap();
        Self { client }
    }

    /// All items: what they are of, and their other field.
    async fn all(&self) -> BTreeMap<String, String> {
        let answer = self.client.scan().table_name("locks").send().await.unwrap();
        let text = |item: &Item, name: &str| item.get(name).map(|value| value.as_s().unwrap().clone());
        let items = answer.items().iter();
        items
            .map(|item| (text(item, "LockID").unwrap(), text(item, "Digest").or(text(item, "Info")).unwrap()))
            .collect()
    }

    async fn put(&self, id: &str, field: &str, value: &str) {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let put = self.client.put_item().table_name("locks").item("LockID", text(id)).item(field, text(value));
        put.send().await.unwrap();
    }

    async fn remove(&self, id: &str) {
        let key = AttributeValue::S(id.to_owned());
        self.client.delete_item().table_name("locks").key("LockID", key).send().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_digests_in_a_table() {
    let (minio, moto) = (minio(), moto());
    bucket(&minio, "states", Bucket::Versioned).await;
    let locks = Locks::new(&moto).await;
    let world = World::local();
    let key = "platform/main.tfstate";
    let endpoint = format!("dynamodb = \"{}\", s3 =", moto.url());
    let table =
        block(&minio, key).replace("s3 =", &endpoint).replace("use_lockfile = true", "dynamodb_table = \"locks\"");
    let tofu = Tofu::new(&world, "configuration", &table);
    tofu.apply("small");
    tofu.run(&["workspace", "new", "staging"]);
    tofu.apply("small");
    tofu.run(&["workspace", "select", "default"]);
    let (state, digest) = ("states/platform/main.tfstate", "states/platform/main.tfstate-md5");
    let ids = |items: &BTreeMap<String, String>| items.keys().cloned().collect::<Vec<_>>();
    let expected = ["states/env:/staging/platform/main.tfstate-md5", digest];
    let captured = (tofu.state(), locks.all().await);
    assert_eq!(ids(&captured.1), expected);
    let named = format!("dynamodbTable: locks, dynamodbEndpoint: '{}', credentials:", moto.url());
    document(&world, "infrastructure", &yaml(&minio, key).replace("credentials:", &named));
    world.as_writer(&["doctor"]).expect(0);
    world.as_writer(&BACKUP).expect(0);

    // Lost, after a later one whose digest is still there.
    tofu.apply("large");
    let s3 = client(&minio);
    s3.delete_object().bucket("states").key(key).send().await.unwrap();
    tofu.refuses_the_state();
    let back = restore(&world, &[]).expect(0);
    assert_eq!(actions(&back), [("default", "create"), ("staging", "unchanged")].map(owned));
    assert!(!back.out.contains("-md5"), "{}", back.out);
    assert_eq!((tofu.state(), locks.all().await), captured);
    assert!(tofu.is_as_planned("small"));

    // Over a later one.
    tofu.apply("large");
    let later = tofu.state()["serial"].as_u64().unwrap();
    let target = "s3://states/platform/main.tfstate";
    let over = ["--existing", "update", "--yes", "--target-id", target];
    assert_eq!(actions(&restore(&world, &over).expect(0))[0], owned(("default", "update")));
    assert_eq!(tofu.state()["serial"], later + 1);
    assert!(tofu.is_as_planned("small"));

    // Somebody has the lock; nothing is left of ours.
    tofu.apply("large");
    let info = r#"{"ID":"8c2","Operation":"OperationTypeApply","Who":"ann@laptop","Created":"2026-01-01T00:00:00Z"}"#;
    locks.put(state, "Info", info).await;
    let locked = restore(&world, &over).expect(3);
    assert!(actions(&locked)[0].1.contains("locked by ann@laptop"), "{}", locked.out);
    assert_eq!(locks.all().await.get(state).unwrap(), info);
    locks.remove(state).await;
    // … taken while the plan is carried out: an item that a look does not tell from none.
    locks.put(state, "Other", "x").await;
    let locked = restore(&world, &over).expect(3);
    assert!(actions(&locked)[0].1.contains("locked by somebody"), "{}", locked.out);
    let file = format!("{key}.tflock");
    assert!(s3.head_object().bucket("states").key(file).send().await.is_err(), "nothing of ours stays");
    locks.remove(state).await;
    assert!(tofu.is_as_planned("large"));

    // The state is the captured one, put back by hand, and its digest is not.
    restore(&world, &over).expect(0);
    world.as_writer(&BACKUP).expect(0);
    locks.put(digest, "Digest", "d41d8cd98f00b204e9800998ecf8427e").await;
    tofu.refuses_the_state();
    let look = restore(&world, &["--dry-run"]).expect(0);
    assert_eq!(actions(&look)[0], owned(("default", "update")));
    assert!(look.out.contains("another state's digest"), "{}", look.out);
    restore(&world, &over).expect(0);
    assert!(tofu.is_as_planned("small"));
    assert_eq!(ids(&locks.all().await), expected);

    // A table that is not there.
    let missing = yaml(&minio, key).replace("credentials:", &named.replace("locks", "lokcs"));
    document(&world, "infrastructure", &missing);
    restore(&world, &["--dry-run"]).expect(1).says("item states/platform/main.tfstate of the DynamoDB table lokcs");
}

fn owned((name, action): (&str, &str)) -> (String, String) {
    (name.to_owned(), action.to_owned())
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
    let cluster = kubernetes::Server::start();
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
