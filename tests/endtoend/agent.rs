//! An agent in the wrong hands, on a real bucket with Object Lock: its credentials and its writer key are known.

use crate::support::picture::{Picture, assert_same, picture};
use crate::support::world::{World, noise};
use crate::support::{ACCESS_KEY, Bucket, SECRET_KEY, Server, bucket, client, command, minio};
use aws_sdk_s3::config::Credentials as Keys;
use aws_sdk_s3::error::ProvideErrorMetadata;
use lifeboat::id::Sequence;
use lifeboat::store::s3::{Credentials, Settings};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, SystemTime};

const DAYS: u32 = 3;

/// The policy that `docs/operations.md` gives for `whom`, for the source `docs`.
pub fn documented(whom: &str, settings: &Settings) -> Value {
    let text = include_str!("../../docs/operations.md");
    let (_, rest) = text.split_once(&format!("```json {whom}\n")).unwrap();
    let (policy, _) = rest.split_once("```").unwrap();
    let policy = policy.replace("BUCKET", &settings.bucket).replace("PREFIX", &settings.prefix);
    let policy: Value = serde_json::from_str(&policy.replace("SOURCE", "docs")).unwrap();
    policy["Statement"].clone()
}

/// Far more than an agent should have, to show that it does no harm: all but lifting a lock.
fn too_much(settings: &Settings) -> Value {
    let bucket = &settings.bucket;
    json!([
        {"Effect": "Allow", "Action": ["s3:*"], "Resource": [format!("arn:aws:s3:::{bucket}/*"), format!("arn:aws:s3:::{bucket}")]},
        {"Effect": "Deny", "Action": ["s3:BypassGovernanceRetention"], "Resource": [format!("arn:aws:s3:::{bucket}/*")]},
    ])
}

/// Credentials that may do what is said and no more.
pub fn limited(server: &Server, settings: &Settings, statements: &Value) -> Settings {
    let policy = json!({"Version": "2012-10-17", "Statement": statements});
    // The SDK's own client refuses an answer without ARNs.
    let mut curl = command("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "30"]);
    curl.args(["--aws-sigv4", "aws:amz:us-east-1:sts", "--user", &format!("{ACCESS_KEY}:{SECRET_KEY}")]);
    curl.args(["--data", "Action=AssumeRole&Version=2011-06-15&DurationSeconds=3600"]);
    curl.args(["--data-urlencode", &format!("Policy={policy}"), &server.url()]);
    let answer = curl.output().unwrap();
    let text = String::from_utf8(answer.stdout).unwrap();
    assert!(answer.status.success(), "{text} {}", String::from_utf8_lossy(&answer.stderr));
    let field = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.to_owned()
    };
    let credentials = Credentials::Static {
        access_key: field("AccessKeyId"),
        secret_key: field("SecretAccessKey"),
        session_token: Some(field("SessionToken")),
    };
    Settings { credentials, ..settings.clone() }
}

/// One version of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    key: String,
    id: String,
}

async fn versions(s3: &aws_sdk_s3::Client, settings: &Settings) -> Vec<Version> {
    let answer = s3.list_object_versions().bucket(&settings.bucket).send().await.unwrap();
    assert_ne!(answer.is_truncated(), Some(true));
    let of = |v: &aws_sdk_s3::types::ObjectVersion| Version {
        key: v.key().unwrap().to_owned(),
        id: v.version_id().unwrap().to_owned(),
    };
    answer.versions().iter().map(of).collect()
}

/// Objects that are not locked until `needed`, in seconds, and how long they are.
async fn not_locked_until(s3: &aws_sdk_s3::Client, settings: &Settings, needed: i64) -> Vec<String> {
    let mut short = Vec::new();
    for Version { key, id } in versions(s3, settings).await {
        let head = s3.head_object().bucket(&settings.bucket).key(&key).version_id(id).send().await.unwrap();
        match head.object_lock_retain_until_date() {
            Some(until) if until.secs() >= needed => {}
            until => short.push(format!("{key}: {until:?}")),
        }
    }
    short
}

#[expect(clippy::disallowed_methods, reason = "locks are dates")]
fn seconds_now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_of_a_lineage_is_locked_as_long_as_asked() {
    let minio = minio();
    let settings = bucket(&minio, "locked", Bucket::Locked).await;
    let days = |days: u32| i64::from(days) * 24 * 3600;
    let begun = seconds_now();
    let world = World::bucket(&settings, DAYS);
    let auditor = World::local();
    let recipient = auditor.run(&["keys", "list", "--json"]).expect(0).json()["recipients"][0]["key"].clone();
    for content in ["first", "second"] {
        world.file("a", content);
        world.file(content, noise(1, 100_000));
        world.backup();
        let add = ["keys", "add-recipient", content, "--role", "escrow", "--key", recipient.as_str().unwrap()];
        world.as_owner(&add).expect(0);
    }
    world.as_owner(&["keys", "rotate-writer", "--out", "rotated.key"]).expect(0);
    fs::rename(world.path("rotated.key"), world.path("writer.key")).unwrap();
    world.file("a", "under a new key");
    world.backup();
    let s3 = client(&minio);
    let keys: Vec<_> = versions(&s3, &settings).await.into_iter().map(|v| v.key).collect();
    for part in ["/lifeboat.json", "/_root/", ".age.json", "/keys/0002/", "/docs/packs/", "/docs/snapshots/"] {
        assert!(keys.iter().any(|key| key.contains(part)), "{part} in {keys:?}");
    }
    let short = not_locked_until(&s3, &settings, begun + days(DAYS)).await;
    assert!(short.is_empty(), "not locked for {DAYS} days:\n{}", short.join("\n"));

    // A longer lock is asked for: what the next snapshot builds on is extended with it.
    let begun = seconds_now();
    let longer = World::in_bucket(&settings, 4 * DAYS);
    longer.take_keys(&world, &["writer.key", "kit.txt"]);
    longer.file("a", "fourth");
    longer.file("second", noise(1, 100_000));
    let fourth = picture(&longer.path("tree"));
    longer.backup();
    let shown = longer.as_writer(&["show", "docs", "--json"]).expect(0).json();
    assert!(shown["packs"].as_u64().unwrap() > 1, "it builds on nothing: {shown}");
    let short = not_locked_until(&s3, &settings, begun + days(4 * DAYS)).await;
    // What only the older snapshots need keeps its own date.
    let older = |key: &&String| !["/snapshots/", "/packs/", "/keys/0001/"].iter().any(|part| key.contains(part));
    let shared: Vec<_> = short.iter().filter(older).collect();
    assert!(shared.is_empty(), "needed by all, and not locked for {} days: {shared:?}", 4 * DAYS);
    let packs = |keys: &[String]| keys.iter().filter(|key| key.contains("/packs/")).count() as u64;
    let all: Vec<_> = versions(&s3, &settings).await.into_iter().map(|v| v.key).collect();
    assert_eq!(packs(&all) - packs(&short), shown["packs"], "not locked as long as what names them: {short:?}");
    longer.assert_restores(4, &fourth);
}

/// Rubbish over every object, delete markers over that, and every true version deleted if the server lets it.
async fn ravage(agent: &aws_sdk_s3::Client, settings: &Settings) -> Vec<String> {
    let bucket = &settings.bucket;
    let mut all = versions(agent, settings).await;
    // Listed newest first: the last one of a name is the first that there was.
    all.reverse();
    all.dedup_by(|later, first| later.key == first.key);
    let mut destroyed = Vec::new();
    for Version { key, .. } in &all {
        agent.put_object().bucket(bucket).key(key).body(b"rubbish".to_vec().into()).send().await.unwrap();
        agent.delete_object().bucket(bucket).key(key).send().await.unwrap();
    }
    for Version { key, id } in &all {
        match agent.delete_object().bucket(bucket).key(key).version_id(id).send().await {
            Ok(_) => destroyed.push(key.clone()),
            Err(error) => assert!(error.message().unwrap().contains("WORM protected"), "{key}: {error:?}"),
        }
        let lift = agent.put_object_retention().bucket(bucket).key(key).version_id(id);
        let soon = aws_sdk_s3::primitives::DateTime::from_secs(seconds_now() + 60);
        let retention = aws_sdk_s3::types::ObjectLockRetention::builder()
            .mode(aws_sdk_s3::types::ObjectLockRetentionMode::Governance)
            .retain_until_date(soon);
        assert!(lift.retention(retention.build()).send().await.is_err(), "the lock of {key} was shortened");
    }
    destroyed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stolen_agent_does_to_a_locked_bucket_is_seen_past() {
    let minio = minio();
    let settings = bucket(&minio, "stolen", Bucket::Locked).await;
    let world = World::bucket(&settings, DAYS);
    let agent = World::in_bucket(&limited(&minio, &settings, &documented("agent", &settings)), DAYS);
    agent.take_keys(&world, &["writer.key"]);
    let mut pictures = Vec::new();
    for step in 0..2 {
        agent.file("a", format!("step {step}"));
        agent.file(&format!("noise-{step}"), noise(step, 500_000));
        pictures.push(picture(&agent.path("tree")));
        agent.backup();
    }
    assert_eq!(agent.numbers("docs"), [1, 2], "the rights suffice for an agent");

    let agents = agent_client(&minio, &limited(&minio, &settings, &too_much(&settings)));
    let destroyed = ravage(&agents, &settings).await;
    assert!(destroyed.is_empty(), "the agent destroyed {destroyed:?}");
    let plain = agents.list_objects_v2().bucket(&settings.bucket).send().await.unwrap();
    assert_eq!(plain.key_count(), Some(0), "to others the bucket looks empty");

    let all_is_there = |numbers: &[u64], pictures: &[Picture]| {
        assert_eq!(world.numbers("docs"), numbers);
        for (number, picture) in numbers.iter().zip(pictures) {
            world.assert_restores(*number, picture);
        }
        world.assert_sound();
        world.run(&["verify", "--scrub"]).expect(0);
        assert_same(&world.restored("docs@latest"), pictures.last().unwrap(), "latest");
    };
    all_is_there(&[1, 2], &pictures);
    // An agent that is itself again goes on where it was.
    agent.file("a", "afterwards");
    pictures.push(picture(&agent.path("tree")));
    let made = agent.backup();
    assert_eq!(made.number, 3);
    assert!(made.new_bytes < 100_000, "it began anew: {} new bytes", made.new_bytes);
    all_is_there(&[1, 2, 3], &pictures);
    let other = World::in_bucket(&settings, DAYS);
    assert!(ravage(&agents, &settings).await.is_empty());
    other.take_keys(&world, &["kit.txt"]);
    assert_same(&other.restored("docs"), &pictures[2], "with the kit alone, after a second time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_under_new_names_is_told_and_stops_nothing() {
    let minio = minio();
    let settings = bucket(&minio, "rubbish", Bucket::Locked).await;
    let world = World::bucket(&settings, DAYS);
    world.file("a", noise(1, 200_000));
    let first = picture(&world.path("tree"));
    world.backup();
    let agents = agent_client(&minio, &limited(&minio, &settings, &too_much(&settings)));
    let number = |number| Sequence(number).object_name();
    for name in [
        format!("_root/{}", number(2)),
        "docs/keys/0001/somebody.age.json".into(),
        "docs/keys/0002/epoch.json".into(),
        format!("docs/pruned/{}", number(1)),
        format!("docs/snapshots/{}", number(2)),
        format!("docs/snapshots/{}", number(Sequence::MAX - 1)),
        format!("docs/snapshots/{}", number(Sequence::MAX)),
        "docs/snapshots/zzz".into(),
        "docs/packs/00112233445566778899aabbccddeeff".into(),
        "docs/packs/zzz".into(),
        "docs/log/zzz".into(),
        "other/packs/zzz".into(),
        "zzz".into(),
    ] {
        let key = format!("{}/{name}", settings.prefix);
        agents.put_object().bucket(&settings.bucket).key(key).body(b"rubbish".to_vec().into()).send().await.unwrap();
    }
    // What does not count could have been a newer one: that is told.
    let restored_latest = |expected: &Picture| {
        let latest = world.as_owner(&["restore", "snapshot", "docs@latest", "--to", "latest"]).expect(3);
        assert_same(&picture(&world.path("latest")), expected, "latest");
        fs::remove_dir_all(world.path("latest")).unwrap();
        latest.out
    };
    let told = restored_latest(&first);
    assert!(told.contains("docs@2: it is newer, and does not count"), "{told}");
    assert_same(&world.restored("docs@1"), &first, "by number");
    world.file("a", noise(2, 200_000));
    let second = picture(&world.path("tree"));
    let made = world.backup().number;
    world.assert_restores(made, &second);
    restored_latest(&second);
    let told = world.as_writer(&["snapshots", "docs"]).expect(1).out;
    assert!(told.contains("docs@2 does not count"), "{told}");
    let found = world.as_owner(&["verify", "--read-data"]).expect(1).out;
    assert!(found.contains(&format!("docs/snapshots/{}", number(2))), "{found}");
    world.as_writer(&["status"]).expect(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_suffice_and_allow_nothing_else() {
    let minio = minio();
    let settings = bucket(&minio, "rights", Bucket::Versioned).await;
    let owner = World::bucket(&settings, 0);
    let rights = |whom: &str| limited(&minio, &settings, &documented(whom, &settings));
    let with = |whom: &str, keys: &[&str]| {
        let world = World::in_bucket(&rights(whom), 0);
        world.take_keys(&owner, keys);
        world
    };
    let agent = with("agent", &["writer.key"]);
    for step in 0..3 {
        agent.file("a", noise(step, 300_000));
        agent.backup();
    }
    let expected = picture(&agent.path("tree"));
    agent.as_writer(&["status", "docs"]).expect(0);
    agent.as_writer(&["doctor", "--read-only"]).expect(0);

    let keeper = with("keeper", &["keeper.key"]);
    let document = fs::read_to_string(keeper.path("config/repository.yaml")).unwrap();
    keeper.document("repository.yaml", &format!("{document}  gracePeriod: 2s\n  runLimit: 1s\n"));
    keeper.schedule("1s", "{last: 1}");
    let prune =
        || keeper.run(&["--keeper-key", "keeper.key", "prune", "--json"]).expect(0).json()["sources"][0].clone();
    assert_eq!(prune()["pruned"]["removed"], json!([2, 1]));
    std::thread::sleep(Duration::from_millis(3100));
    assert!(prune()["pruned"]["deleted_packs"].as_u64().unwrap() > 0, "the keeper may not delete packs");
    keeper.run(&["verify", "--scrub"]).expect(0);

    let restorer = with("restorer", &["kit.txt"]);
    restorer.assert_restores(3, &expected);
    restorer.assert_sound();

    // A plan is carried out with either, and goes on elsewhere with the rights for that.
    let planner = with("planner", &["kit.txt"]);
    for (world, journal) in [(&restorer, false), (&planner, true)] {
        let step = format!("{{name: a, restore: {{source: docs, to: {}}}}}", world.path("planned").display());
        let plan = format!(
            "apiVersion: lifeboat.dev/v1\nkind: RestorePlan\nmetadata: {{name: p}}\nspec: {{level: app, steps: [{step}]}}\n"
        );
        world.document("plan.yaml", &plan);
        let ran = world.as_owner(&["restore", "app", "p"]).expect(0);
        assert_eq!(ran.err.contains("does not take the journal"), !journal, "{}", ran.err);
        assert_same(&picture(&world.path("planned")), &expected, "by a plan");
        fs::remove_dir_all(world.path("state")).unwrap();
        let known = world.as_owner(&["restore", "list", "--json"]).expect(0).json();
        assert_eq!(known["restores"].as_array().unwrap().len(), usize::from(journal), "{known}");
    }

    for whom in ["agent", "keeper", "restorer", "planner"] {
        let client = agent_client(&minio, &rights(whom));
        for name in ["lifeboat.json", "_root/0", "docs/keys/0001/epoch.json"] {
            let key = format!("{}/{name}", settings.prefix);
            let gone = client.delete_object().bucket(&settings.bucket).key(&key).send().await;
            assert!(gone.is_err(), "{whom} may delete {name}");
            let put = client.put_object().bucket(&settings.bucket).key(&key).body(b"x".to_vec().into()).send().await;
            assert!(put.is_err() || (whom, name) == ("agent", "docs/keys/0001/epoch.json"), "{whom} may write {name}");
        }
        let other = format!("{}/other/packs/x", settings.prefix);
        let put = client.put_object().bucket(&settings.bucket).key(other).body(b"x".to_vec().into()).send().await;
        assert!(put.is_err(), "{whom} may write to another source");
    }
}

fn agent_client(server: &Server, settings: &Settings) -> aws_sdk_s3::Client {
    let Credentials::Static { access_key, secret_key, session_token } = &settings.credentials else {
        panic!("the agent has credentials")
    };
    let keys = Keys::new(access_key, secret_key, session_token.clone(), None, "agent");
    let config = client(server).config().to_builder().credentials_provider(keys).build();
    aws_sdk_s3::Client::from_conf(config)
}
