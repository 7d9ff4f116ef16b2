//! The documents that people write: what is accepted, and what each mistake is told.

#![allow(clippy::unwrap_used, reason = "a test")]

use lifeboat::config::{Config, Mistake, Size, Sound, Url};
use lifeboat::id::{Sequence, SourceName};
use lifeboat::policy::Tier;
use lifeboat::policy::schedule::Took;
use lifeboat::repo::State;
use lifeboat::restore::plan::{Level, Point, World, resolve};
use lifeboat::secret::SecretRef;
use lifeboat::source;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schedules").join(file)
}

fn now() -> jiff::Timestamp {
    "2026-01-15T10:00:00Z".parse().unwrap()
}

fn texts(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Writes the files into a fresh directory, loads it and shows what is said, without the directory's name.
fn load(files: &[(&str, &str)]) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let shown = format!("{}/", directory.path().display());
    Config::load(&[directory.path().into()]).map_err(|mistakes| texts(&mistakes).replace(&shown, ""))
}

fn mistakes(text: &str) -> String {
    load(&[("file.yaml", text)]).expect_err("the document has mistakes")
}

/// A document without a mistake in its head.
fn document(kind: &str, name: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!("apiVersion: lifeboat.dev/v1\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n  {spec}\n---\n")
}

const REPOSITORY: &str = "url: /srv/backups";
const SOURCE: &str = "files: {path: /srv/data}";
const SCHEDULE: &str = "\
repository: main
tier: standard
cron: '*/10 * * * *'
maxDuration: 5m
sources: [data]";

fn complete(schedule: &str) -> String {
    document("Repository", "main", REPOSITORY)
        + &document("Source", "data", SOURCE)
        + &document("Schedule", "often", schedule)
}

#[test]
fn each_shipped_schedule_loads_and_keeps_its_promise() {
    for (file, tier) in
        [("critical.yaml", Tier::Critical), ("standard.yaml", Tier::Standard), ("development.yaml", Tier::Development)]
    {
        let config = Config::load(&[shipped("repository.yaml"), shipped(file)]);
        let config = config.unwrap_or_else(|mistakes| panic!("{}", texts(&mistakes)));
        assert_eq!(texts(&config.lint(now(), |_| None)), "", "{file}");
        assert!(config.schedules.contains_key(file.trim_end_matches(".yaml")));
        for schedule in config.schedules.values() {
            assert_eq!(schedule.tier, tier);
        }
        for source in config.sources.keys() {
            let schedules = config.schedules.values().filter(|schedule| schedule.sources.contains(source)).count();
            assert_eq!(schedules, 1, "{file}: {source} is in {schedules} schedules");
            assert_eq!(config.tier(source), Some(tier));
        }
    }
}

#[test]
fn the_shipped_directory_is_one_configuration() {
    let config = Config::load(&[shipped("")]).unwrap_or_else(|mistakes| panic!("{}", texts(&mistakes)));
    assert_eq!(config.schedules.len(), 5);
    assert_eq!(texts(&config.lint(now(), |_| None)), "");
}

/// Every shipped plan has an order, a probe for what it restores, and fits its tier; and what it restores fits where.
#[test]
fn each_shipped_restore_plan_can_be_resolved() {
    let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("restore-plans");
    let config = Config::load(&[shipped(""), plans.clone()]).unwrap_or_else(|mistakes| panic!("{}", texts(&mistakes)));
    let files = fs::read_dir(&plans).unwrap().count();
    assert_eq!(config.plans.len(), files);
    for level in [Level::App, Level::Service, Level::Cluster, Level::Region] {
        assert!(config.plans.values().any(|plan| plan.level == level), "there is no plan of level {level}");
    }
    let (point, now) = (
        |kind: &str| Point {
            sequence: Sequence(1),
            state: State::Good,
            moment: now(),
            bytes: 1,
            run: "run".into(),
            kind: kind.into(),
        },
        now(),
    );
    let sources = || config.sources.values();
    let world = World {
        repository: "s3://platform-lifeboat/production".into(),
        now,
        at: None,
        run: None,
        chosen: BTreeMap::new(),
        plans: &config.plans,
        documents: config.known(),
        ties: config.ties(),
        points: sources().map(|source| (source.name.clone(), vec![point(source.capture.field())])).collect(),
        history: BTreeMap::new(),
    };
    for name in config.plans.keys() {
        let resolved = resolve(name, &world).unwrap_or_else(|findings| panic!("{name}: {findings:?}"));
        assert_eq!(resolved.warnings, [""; 0], "{name}");
        assert_eq!(resolved.skew_ms, 0);
        assert!(resolved.tasks.iter().any(|task| task.choice.is_some()), "{name} restores nothing");
    }
}

#[test]
fn every_field_arrives() {
    let repository = "\
url: s3://bucket/some/prefix/
s3:
  endpoint: https://minio.example.org:9000
  region: eu-north-1
  pathStyle: true
  credentials:
    accessKeyId: {env: KEY_ID}
    secretAccessKey: {file: secrets/key}
    sessionToken: {file: /run/token}
  serverSideEncryption: {type: 'aws:kms', kmsKeyId: alias/backup}
  objectLock: {mode: compliance, minimumDays: 30}
  partSize: 16MiB
writerKey: {file: writer.key}
keeperKey: {env: KEEPER}
identity: {file: /media/stick/identity}
limits: {upload: 50MiB, download: 1GB}
compression: {level: -3}
gracePeriod: 7d
runLimit: 12h";
    let source = "\
tier: critical
etcd:
  endpoints: ['https://127.0.0.1:2379']
  tls: {ca: pki/ca.crt, certificate: /pki/tls.crt, key: /pki/tls.key, serverName: etcd}
  user: {name: root, password: {env: ETCD_PASSWORD}}
guard: {minimumShare: 0.75}";
    let schedule = "\
repository: main
tier: critical
cron: '*/2 * * * *'
timeZone: Europe/Oslo
startDelay: 10s
maxDuration: 90s
sources: [etcd]
retention: {last: 1, hourly: 2, daily: 3, weekly: 4, monthly: 5, yearly: 6, within: 7d}
suspend: true";
    let directory = tempfile::tempdir().unwrap();
    let text = document("Repository", "main", repository)
        + &document("Source", "etcd", source)
        + &document("Schedule", "often", schedule);
    fs::write(directory.path().join("all.yml"), text).unwrap();
    let config = Config::load(&[directory.path().into()]).unwrap_or_else(|mistakes| panic!("{}", texts(&mistakes)));

    let main = &config.repositories["main"];
    assert_eq!(main.url, Url::S3 { bucket: "bucket".into(), prefix: "some/prefix".into() });
    let s3 = main.s3.as_ref().unwrap();
    assert!(s3.path_style && s3.part_size == Some(Size(16 << 20)));
    let secret = &s3.credentials.as_ref().unwrap().secret_access_key;
    assert_eq!(secret, &SecretRef::File(directory.path().join("secrets/key")), "relative to its document");
    assert_eq!(main.identity, Some(SecretRef::File("/media/stick/identity".into())));
    assert_eq!(main.keeper_key, Some(SecretRef::Env("KEEPER".into())));
    assert_eq!((main.compression.level, main.limits.upload), (-3, Some(Size(50 << 20))));
    assert_eq!((main.grace_period, main.run_limit), (Duration::from_hours(168), Duration::from_hours(12)));

    let etcd = &config.sources[&"etcd".parse().unwrap()];
    assert_eq!((etcd.tier, etcd.guard.minimum_share), (Some(Tier::Critical), 0.75));
    let source::Spec::Etcd(spec) = &etcd.capture else { panic!("{:?}", etcd.capture) };
    assert_eq!(spec.tls.as_ref().unwrap().ca, directory.path().join("pki/ca.crt"));

    let often = &config.schedules["often"];
    assert!(often.suspend && often.retention.yearly == 6);
    assert_eq!(often.retention.within, Some(Duration::from_hours(168)));
    assert_eq!((often.start_delay, often.max_duration), (Duration::from_secs(10), Duration::from_secs(90)));
    assert_eq!((often.at.line, &often.at.file), (38, &directory.path().join("all.yml")));
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = load(&[("file.yaml", &complete(SCHEDULE))]).unwrap();
    let (main, often) = (&config.repositories["main"], &config.schedules["often"]);
    assert_eq!((main.grace_period, main.run_limit), (Duration::from_hours(72), Duration::from_hours(24)));
    assert_eq!(main.compression.level, 1);
    assert_eq!(often.start_delay, Duration::from_secs(30));
    assert_eq!(often.timetable.zone(), &jiff::tz::TimeZone::UTC);
    assert!(often.retention.is_empty() && !often.suspend);
    assert_eq!(config.tier(&"data".parse().unwrap()), Some(Tier::Standard));
}

#[test]
fn a_bucket_needs_no_options() {
    let config = load(&[("file.yaml", &document("Repository", "main", "url: s3://bucket"))]).unwrap();
    assert!(config.repositories["main"].s3.is_some());
    assert_eq!(config.repositories["main"].url.to_string(), "s3://bucket");
}

#[test]
fn unknown_fields_and_words_get_the_nearest_right_one() {
    let schedule = SCHEDULE.replace("standard", "standart") + "\nretention: {dayly: 7}\nstartdelay: 5s";
    insta::assert_snapshot!(mistakes(&complete(&schedule)), @r#"
    file.yaml:21: spec.tier: "standart" is not known; allowed: critical, standard, development; did you mean "standard"?
    file.yaml:25: spec.retention.dayly: unknown field; allowed: last, hourly, daily, weekly, monthly, yearly, within; did you mean "daily"?
    file.yaml:26: spec.startdelay: unknown field; allowed: repository, tier, cron, timeZone, startDelay, maxDuration, sources, retention, suspend, replica; did you mean "startDelay"?
    "#);
}

#[test]
fn all_mistakes_of_all_files_are_told_in_order() {
    let second =
        document("Schedule", "often", &SCHEDULE.replace("main", "mein").replace("[data]", "[data, dota, data]"));
    let first = document(
        "Repository",
        "main",
        "url: backups\ncompression: {level: '9'}\ngracePeriod: 3 days\nlimits: {upload: 50M}",
    ) + &document("Source", "data", "files: {path: data, oneFileSystem: 'yes', exclude: [a, 1, [b]]}");
    insta::assert_snapshot!(load(&[("b.yaml", &second), ("a.yml", &first)]).unwrap_err(), @r#"
    a.yml:6: spec.url: expected file:///PATH, an absolute path, or s3://BUCKET/PREFIX
    a.yml:7: spec.compression.level: expected a whole number, found a text
    a.yml:8: spec.gracePeriod: expected whole numbers with the units d, h, m or s, the largest first, such as "90s", "1h30m" or "7d"
    a.yml:9: spec.limits.upload: expected a whole number with one of the units B, kB, MB, GB, TB, KiB, MiB, GiB, TiB, such as "64MiB"
    a.yml:16: spec.files.exclude[1]: expected a text, found a whole number: put it in quotes
    a.yml:16: spec.files.exclude[2]: expected a text, found a list
    a.yml:16: spec.files.oneFileSystem: expected true or false, found a text
    b.yaml:6: spec.repository: there is no Repository named "mein"; allowed: main; did you mean "main"?
    b.yaml:10: spec.sources[1]: there is no Source named "dota"; allowed: data; did you mean "data"?
    b.yaml:10: spec.sources[2]: it is in the list already
    "#);
}

#[test]
fn missing_repeated_and_mistyped_fields() {
    let text = "\
apiVersion: lifeboat.dev/v1
kind: Schedule
metadata:
  name: often
  name: seldom
spec:
  tier: [standard]
  cron: 5
  sources: data
  sources: []
";
    insta::assert_snapshot!(mistakes(text), @r#"
    file.yaml:5: metadata.name: it is there already, in line 4
    file.yaml:6: spec: the field "repository" is missing
    file.yaml:7: spec.tier: expected one of critical, standard, development, found a list
    file.yaml:8: spec.cron: expected a text, found a whole number: put it in quotes
    file.yaml:9: spec.sources: expected a list, found a text
    file.yaml:10: spec.sources: it is there already, in line 9
    "#);
}

#[test]
fn timetables_and_zones() {
    let with = |cron: &str, zone: &str| {
        mistakes(&complete(&(SCHEDULE.replace("*/10 * * * *", cron) + &format!("\ntimeZone: {zone}"))))
    };
    insta::assert_snapshot!(with("*/10 * * *", "Europe/Olso"), @r#"
    file.yaml:22: spec.cron: "*/10 * * *" is not a timetable: expected five fields (minute hour day-of-month month day-of-week) or a name such as @hourly: Invalid pattern: Pattern must have 5 fields when seconds are disallowed.
    file.yaml:25: spec.timeZone: "Europe/Olso" is not an IANA time zone; did you mean "Europe/Oslo"?
    "#);
    assert!(with("0 0 * * *", "Moon").contains(r#""Moon" is not an IANA time zone; expected a name such as"#));
    insta::assert_snapshot!(with("0 0 31 2 *", "UTC"), @r#"file.yaml:22: spec.cron: "0 0 31 2 *" is not a timetable: no moment matches it"#);
    insta::assert_snapshot!(with("0 25 * * *", "UTC"), @r#"file.yaml:22: spec.cron: "0 25 * * *" is not a timetable: expected five fields (minute hour day-of-month month day-of-week) or a name such as @hourly: Component error: Number out of bounds."#);
}

#[test]
fn heads_of_documents() {
    insta::assert_snapshot!(mistakes("kind: Source\n"), @"file.yaml:1: apiVersion: expected apiVersion: lifeboat.dev/v1");
    insta::assert_snapshot!(mistakes("apiVersion: lifeboat.dev/v2\nkind: Source\n"), @"file.yaml:1: apiVersion: expected apiVersion: lifeboat.dev/v1");
    insta::assert_snapshot!(mistakes(&document("Sorce", "a", SOURCE)), @r#"file.yaml:2: kind: "Sorce" is not known; allowed: Repository, Source, Schedule, RestorePlan; did you mean "Source"?"#);
    insta::assert_snapshot!(mistakes(&document("Drill", "a", "plan: b")), @"file.yaml:2: kind: documents of kind Drill are not supported yet by this version");
    insta::assert_snapshot!(mistakes(&document("Source", "Data_1", SOURCE)), @"file.yaml:4: metadata.name: expected 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end");
    insta::assert_snapshot!(mistakes("apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {}\n"), @r#"file.yaml:3: metadata: the field "name" is missing"#);
    insta::assert_snapshot!(mistakes("just text\n"), @"file.yaml:1: apiVersion: expected apiVersion: lifeboat.dev/v1");
    insta::assert_snapshot!(mistakes(&(document("Source", "a", SOURCE) + &document("Source", "a", SOURCE))), @"file.yaml:11: metadata.name: there is a Source of this name already, in file.yaml:1");
}

#[test]
fn no_source_is_captured_after_itself() {
    let after = |name: &str, earlier: &str| document("Source", name, &format!("{SOURCE}\ncaptureAfter: [{earlier}]"));
    let circle = after("a", "b") + &after("b", "c") + &after("c", "b");
    insta::assert_snapshot!(mistakes(&circle), @"
    file.yaml:9: spec.captureAfter: b would be captured after itself
    file.yaml:17: spec.captureAfter: c would be captured after itself
    ");
    insta::assert_snapshot!(mistakes(&after("a", "d")), @r#"file.yaml:7: spec.captureAfter[0]: there is no Source named "d"; allowed: a"#);
}

#[test]
fn a_snapshot_names_its_classes() {
    let volume = "volume: {namespace: shop, claim: data, snapshot: {class: Fast, storageClass: a b, classs: x}}";
    insta::assert_snapshot!(mistakes(&document("Source", "a", volume)), @r#"file.yaml:6: spec.volume.snapshot.classs: unknown field; allowed: class, storageClass; did you mean "class"?"#);
    let volume = "volume: {namespace: shop, claim: data, snapshot: {class: Fast, storageClass: a b}}";
    insta::assert_snapshot!(mistakes(&document("Source", "a", volume)), @"
    file.yaml:6: spec.volume.snapshot.class: expected the name of a VolumeSnapshotClass
    file.yaml:6: spec.volume.snapshot.storageClass: expected the name of a StorageClass
    ");
}

#[test]
fn a_source_is_of_one_kind() {
    insta::assert_snapshot!(mistakes(&document("Source", "a", "tier: critical")), @"file.yaml:5: spec: expected exactly one of files, alertmanager, command, etcd, git, kubernetes, mariadb, mariadbBackup, postgresql, postgresqlDump, prometheus, redis, sqlite, terraform, vault, volume");
    let two = "files: {path: /a}\ncommand: {argv: [], output: a/b, timeout: 1 hour}\nguard: {minimumShare: 50}";
    insta::assert_snapshot!(mistakes(&document("Source", "a", two)), @r#"
    file.yaml:5: spec: expected exactly one of files, alertmanager, command, etcd, git, kubernetes, mariadb, mariadbBackup, postgresql, postgresqlDump, prometheus, redis, sqlite, terraform, vault, volume
    file.yaml:7: spec.command.argv: expected the program and its arguments
    file.yaml:7: spec.command.output: expected a file name, without slashes, such as "dump.sql"
    file.yaml:7: spec.command.timeout: expected whole numbers with the units d, h, m or s, the largest first, such as "90s", "1h30m" or "7d"
    file.yaml:8: spec.guard.minimumShare: expected a number from 0 to 1
    "#);
    insta::assert_snapshot!(mistakes(&document("Source", "a", "consul: {}")), @"file.yaml:6: spec.consul: unknown field; allowed: tier, files, alertmanager, command, etcd, git, kubernetes, mariadb, mariadbBackup, postgresql, postgresqlDump, prometheus, redis, sqlite, terraform, vault, volume, heldElsewhere, needs, captureAfter, guard");
    let globs = "files: {path: a, exclude: ['*.tmp', '[a']}";
    insta::assert_snapshot!(mistakes(&document("Source", "a", globs)), @"
    file.yaml:6: spec.files.exclude[1]: error parsing glob '[a': unclosed character class; missing ']'
    file.yaml:6: spec.files.path: expected an absolute path
    ");
    let etcd = "etcd: {endpoints: ['127.0.0.1:2379'], tls: {ca: a, key: b}}";
    insta::assert_snapshot!(mistakes(&document("Source", "a", etcd)), @"
    file.yaml:6: spec.etcd.endpoints[0]: expected https://HOST:PORT, without credentials
    file.yaml:6: spec.etcd.tls: certificate and key belong together: give both or neither
    ");
}

#[test]
fn repositories_that_cannot_work() {
    let spec = "\
url: /srv/backups
s3:
  endpoint: minio:9000
  partSize: 1MiB
  serverSideEncryption: {type: AES256, kmsKeyId: a}
  objectLock: {mode: goverment, minimumDays: -1}
gracePeriod: 1d";
    insta::assert_snapshot!(mistakes(&document("Repository", "a", spec)), @r#"
    file.yaml:11: spec.s3.objectLock.minimumDays: expected a whole number from 0 to 4294967295
    file.yaml:11: spec.s3.objectLock.mode: "goverment" is not known; allowed: governance, compliance; did you mean "governance"?
    "#);
    let spec = spec.replace("goverment", "governance").replace("-1", "0");
    insta::assert_snapshot!(mistakes(&document("Repository", "a", &spec)), @"
    file.yaml:7: spec.s3: the repository is a directory; remove this, or change url to s3://BUCKET/PREFIX
    file.yaml:8: spec.s3.endpoint: expected https://HOST[:PORT], without credentials
    file.yaml:9: spec.s3.partSize: S3 takes parts from 5MiB to 5GiB
    file.yaml:10: spec.s3.serverSideEncryption.kmsKeyId: only type aws:kms has a key id
    file.yaml:11: spec.s3.objectLock.minimumDays: expected at least 1
    file.yaml:12: spec.gracePeriod: it must be longer than runLimit (1 d), or a sweep could remove what a running backup builds on; it is 1 d
    ");
}

#[test]
fn secrets_are_never_written_and_never_repeated() {
    let repository = "\
url: s3://AKIAHUNTER2:hunter2@bucket
s3: {credentials: {accessKeyId: hunter2, secretAccessKey: {value: hunter2}}}
writerKey: {file: a, env: hunter2}
identity: [hunter2]
gracePeriod: hunter2
runLimit: hunter2
limits: {upload: hunter2}";
    let source = "\
etcd:
  endpoints: ['https://root:hunter2@localhost:2379']
  user: {name: root, password: hunter2}";
    let command = "command: {argv: [a], output: b, env: {PGPASSWORD: hunter2}}";
    let text = document("Repository", "main", repository)
        + &document("Source", "etcd", source)
        + &document("Source", "dump", command)
        + "password: hunter2\n---\nhunter2: hunter2\n";
    let said = mistakes(&text);
    assert!(!said.contains("hunter2"), "{said}");
    insta::assert_snapshot!(said, @r#"
    file.yaml:6: spec.url: expected file:///PATH, an absolute path, or s3://BUCKET/PREFIX; credentials are given by reference, under spec.s3.credentials
    file.yaml:7: spec.s3.credentials.accessKeyId: secrets are given by reference, never written here: {file: PATH} or {env: NAME}; if this was a real secret, replace it
    file.yaml:7: spec.s3.credentials.secretAccessKey.value: unknown field; allowed: file, env
    file.yaml:8: spec.writerKey: expected exactly one of file, env
    file.yaml:9: spec.identity: secrets are given by reference, never written here: {file: PATH} or {env: NAME}; if this was a real secret, replace it
    file.yaml:10: spec.gracePeriod: expected whole numbers with the units d, h, m or s, the largest first, such as "90s", "1h30m" or "7d"
    file.yaml:11: spec.runLimit: expected whole numbers with the units d, h, m or s, the largest first, such as "90s", "1h30m" or "7d"
    file.yaml:12: spec.limits.upload: expected a whole number with one of the units B, kB, MB, GB, TB, KiB, MiB, GiB, TiB, such as "64MiB"
    file.yaml:21: spec.etcd.user.password: secrets are given by reference, never written here: {file: PATH} or {env: NAME}; if this was a real secret, replace it
    file.yaml:28: spec.command.env.PGPASSWORD: secrets are given by reference, never written here: {file: PATH} or {env: NAME}; if this was a real secret, replace it
    file.yaml:30: apiVersion: expected apiVersion: lifeboat.dev/v1
    file.yaml:32: apiVersion: expected apiVersion: lifeboat.dev/v1
    "#);
    let said = mistakes("a: \"hunter2\nb: hunter2: hunter2\n");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn files_that_are_not_documents() {
    insta::assert_snapshot!(mistakes("a: [1, 2\nb: 3\n"), @"file.yaml:2: cannot be read as YAML: illegal placement of ':' indicator");
    insta::assert_snapshot!(mistakes("a: b\n c: d\n"), @"file.yaml:2: cannot be read as YAML: mapping values are not allowed in this context");
    insta::assert_snapshot!(mistakes(&"# a comment\n".repeat(100_000)), @"file.yaml: cannot be read: it is larger than 1MiB");
    let missing = Config::load(&["/nowhere/at/all.yaml".into()]).unwrap_err();
    insta::assert_snapshot!(texts(&missing), @"/nowhere/at/all.yaml: cannot be read: No such file or directory (os error 2)");
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("latin1.yaml"), b"a: \xe5").unwrap();
    let said = texts(&Config::load(&[directory.path().into()]).unwrap_err());
    assert!(said.ends_with("latin1.yaml: cannot be read: it is not UTF-8"), "{said}");
}

#[test]
fn bombs_are_refused() {
    let tenfold = |n: usize| format!("a{n}: &a{n} [{}]", vec![format!("*a{}", n - 1); 10].join(", "));
    let mut billion = vec!["a0: &a0 [x, x, x, x, x, x, x, x, x, x]".to_owned()];
    billion.extend((1..12).map(tenfold));
    let billion = billion.join("\n");
    insta::assert_snapshot!(mistakes(&billion), @"file.yaml:5: cannot be read as YAML: alias replay limit exceeded: total_replayed_events=50001 > 50000");
    insta::assert_snapshot!(mistakes(&format!("a: {}{}\n", "[".repeat(5_000), "]".repeat(5_000))), @"file.yaml:1: cannot be read as YAML: recursion limit exceeded");
    let deep: Vec<_> = (0..5_000).map(|n| format!("{}a:", " ".repeat(n % 900))).collect();
    let deep = deep.join("\n");
    assert!(load(&[("file.yaml", &deep)]).is_err());
}

#[test]
fn anchors_work_where_they_are_sane() {
    let retention = "\nretention: {daily: &week 7, hourly: *week}";
    let config = load(&[("file.yaml", &complete(&(SCHEDULE.to_owned() + retention)))]).unwrap();
    assert_eq!(config.schedules["often"].retention.hourly, 7);
}

#[test]
fn several_paths_make_one_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first.txt"), directory.path().join("more"));
    fs::create_dir_all(second.join("below")).unwrap();
    fs::write(&first, document("Repository", "main", REPOSITORY)).unwrap();
    fs::write(second.join("b.yml"), document("Source", "data", SOURCE)).unwrap();
    fs::write(second.join("a.yaml"), document("Schedule", "often", SCHEDULE)).unwrap();
    fs::write(second.join("notes.txt"), "not: [yaml").unwrap();
    fs::write(second.join("below/c.yaml"), "not: [yaml").unwrap();
    let config = Config::load(&[first.clone(), second]).unwrap_or_else(|mistakes| panic!("{}", texts(&mistakes)));
    assert_eq!((config.repositories.len(), config.sources.len(), config.schedules.len()), (1, 1, 1));
    let twice = texts(&Config::load(&[first.clone(), first]).unwrap_err());
    assert!(twice.contains("metadata.name: there is a Repository of this name already"), "{twice}");
}

#[test]
fn what_is_right_beside_a_mistake() {
    let files = |name: &str, more: &str| document("Source", name, &format!("{SOURCE}{more}"));
    let plan = |name: &str, step: &str| document("RestorePlan", name, &format!("level: app\nsteps: [{step}]"));
    let circle = "{name: in, plan: circle}";
    let right = document("Repository", "main", REPOSITORY)
        + &files("data", "")
        + &document("Schedule", "often", &SCHEDULE.replace("[data]", "[typo, data]"))
        + &plan("good", "{name: put, restore: {source: typo, to: /srv/back}}")
        + &plan("around", "{name: in, plan: good}");
    let wrong = files("typo", "\ntire: critical")
        + &files("leaning", "\nneeds: [typo]")
        + &plan("lost", "{name: put, restore: {source: data, into: typo}}")
        + &plan("above", "{name: in, plan: lost}")
        + &plan("circle", circle)
        + &files("double", "")
        + &files("double", "")
        + &document("Schedule", "nowhere", &SCHEDULE.replace("main", "elsewhere"));
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("right.yaml"), &right).unwrap();
    fs::write(directory.path().join("wrong.yaml"), &wrong).unwrap();
    fs::write(directory.path().join("torn.yaml"), files("torn", "") + "a: [1").unwrap();
    let paths = [directory.path().to_path_buf()];
    let Sound { config, mistakes, lacks_repository, left_out } = Config::sound(&paths);
    assert!(lacks_repository, "nobody knows what is in torn.yaml");
    assert_eq!(left_out.iter().collect::<Vec<_>>(), ["double", "typo"]);
    assert_eq!(config.sources.keys().map(SourceName::as_str).collect::<Vec<_>>(), ["data", "leaning"]);
    assert_eq!(config.plans.keys().collect::<Vec<_>>(), ["around", "good"]);
    assert_eq!(config.schedules.keys().collect::<Vec<_>>(), ["often"]);
    assert_eq!(config.schedules["often"].sources.len(), 2);
    assert_eq!(mistakes, Config::load(&paths).unwrap_err());
    let lines: Vec<_> = mistakes.iter().filter_map(|mistake| mistake.line).collect();
    assert_eq!(lines, [8, 7, 39, 51, 60], "{}", texts(&mistakes));
    fs::remove_file(directory.path().join("torn.yaml")).unwrap();
    assert!(!Config::sound(&paths).lacks_repository);
}

#[test]
fn a_schedule_that_cannot_keep_its_tier_is_refused_with_the_arithmetic() {
    let schedule = SCHEDULE.replace("standard", "critical").replace("*/10", "*/5").replace("5m", "60s");
    let config = load(&[("file.yaml", &complete(&schedule))]).unwrap();
    let said = |measured| {
        let lint = config.lint(now(), |_| measured);
        lint.iter().map(|m| format!("{:?} {}: {}", m.line, m.field, m.message)).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(said(None), @"Some(15) spec: schedule often: its worst case exceeds its tier's RPO: every 5 m + start delay 30 s + duration limit 1 m = 6 m 30 s > 5 m (critical)");
    insta::assert_snapshot!(said(Some(Duration::from_secs(7))), @"Some(15) spec: schedule often: its worst case exceeds its tier's RPO: every 5 m + start delay 30 s + measured duration 7 s = 5 m 37 s > 5 m (critical)");
    let worst = config.schedules["often"].worst_case(now(), Some(Duration::from_secs(7)));
    assert_eq!(worst.took, Took::Measured(Duration::from_secs(7)));
}

#[test]
fn promises_between_documents_are_checked() {
    let text = document("Repository", "main", "url: /srv/backups\nrunLimit: 4m")
        + &document("Source", "data", &format!("tier: critical\n{SOURCE}"))
        + &document("Schedule", "often", SCHEDULE);
    let config = load(&[("file.yaml", &text)]).unwrap();
    let lint = config.lint(now(), |_| None);
    let said: Vec<_> = lint.iter().map(|m| format!("{}: {}", m.field, m.message)).collect();
    insta::assert_snapshot!(said.join("\n"), @"
    spec.tier: source data asks for critical, but its strictest schedule is standard
    spec.maxDuration: schedule often: 5 m is more than its repository's runLimit (4 m)
    ");
}

#[test]
fn mistakes_serialise() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, document("Drill", "a", "{}")).unwrap();
    let mistakes = Config::load(std::slice::from_ref(&file)).unwrap_err();
    let json = serde_json::to_value(&mistakes).unwrap();
    assert_eq!(json[0]["line"], 2);
    assert_eq!(json[0]["field"], "kind");
    assert_eq!(json[0]["file"], file.to_str().unwrap());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever is cut out of a document or put into it: mistakes, never a panic, and each in a line that is there.
    #[test]
    fn no_text_is_too_odd(
        cut in 0_usize..400, length in 0_usize..30,
        put in proptest::sample::select(vec![
            "", "\n", ": ", "- ", "[", "]", "{", "}", "*a", "&a ", "<<: ", "'", "\"", "|\n", "!!binary ", "!x ", "~", "\t", "\u{feff}",
            "\u{0}", "1e999", "-9999999999999999999999999999", ".nan", "0x7fffffffffffffffffff", "? ", "---\n", "...\n", "%YAML 9\n",
        ]),
    ) {
        let mut text = complete(&(SCHEDULE.to_owned() + "\nretention: {daily: 7, within: 7d}"));
        let from = cut.min(text.len());
        let to = (from + length).min(text.len());
        text.replace_range(from..to, put);
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file.yaml"), &text).unwrap();
        if let Err(mistakes) = Config::load(&[directory.path().into()]) {
            proptest::prop_assert!(!mistakes.is_empty());
            let lines = text.lines().count() as u64 + 1;
            for mistake in mistakes {
                proptest::prop_assert!(mistake.line.is_none_or(|line| (1..=lines).contains(&line)), "{mistake}");
            }
        }
    }
}
