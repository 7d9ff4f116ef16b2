//! What a schedule becomes in a cluster.

#![allow(clippy::unwrap_used, reason = "a test")]

use lifeboat::config::{Config, CronJob, CronJobError, Target, cronjobs};
use std::fs;
use std::path::Path;

const TARGET: Target<'_> = Target { image: "example/lifeboat:1", namespace: "lifeboat" };

fn shipped() -> Config {
    Config::load(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("schedules")]).unwrap()
}

fn with_schedule(name: &str, cron: &str) -> Result<CronJob, CronJobError> {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: main}}\nspec:\n  url: /srv/backups\n  \
         writerKey: {{env: WRITER_KEY}}\n  identity: {{file: /etc/lifeboat/offline/identity}}\n---\n\
         apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: data}}\nspec: {{files: {{path: /srv/data}}}}\n---\n\
         apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {{name: '{name}'}}\nspec:\n  repository: main\n  \
         tier: standard\n  cron: '{cron}'\n  maxDuration: 5m\n  startDelay: 1s\n  sources: [data]\n"
    );
    fs::write(directory.path().join("documents.yaml"), text).unwrap();
    let config = Config::load(&[directory.path().into()]).unwrap();
    cronjobs(&config, &config.schedules[name], &TARGET).map(|made| made.into_iter().next().unwrap())
}

#[test]
fn the_critical_schedule() {
    let config = shipped();
    let made = cronjobs(&config, &config.schedules["critical"], &TARGET).unwrap().into_iter().next().unwrap();
    insta::assert_snapshot!(serde_saphyr::to_string(&made.manifest).unwrap());
    assert!(made.unmounted.is_empty(), "{:?}", made.unmounted);
}

/// What `deploy/node` and `deploy/monitoring` mount.
#[test]
fn what_must_be_mounted_is_named() {
    let config = shipped();
    for (schedule, paths) in [
        ("control-plane", &["/etc/kubernetes", "/var/lib/kubelet"][..]),
        ("monitoring", &["/sources/grafana", "/sources/prometheus"]),
    ] {
        let made = cronjobs(&config, &config.schedules[schedule], &TARGET).unwrap().into_iter().next().unwrap();
        for path in made.unmounted {
            assert!(paths.iter().any(|below| path.starts_with(below)), "{schedule}: {}", path.display());
        }
    }
}

#[test]
fn only_what_a_backup_needs_is_given_to_it() {
    let made = with_schedule("often", "*/10 * * * *").unwrap();
    let text = made.manifest.to_string();
    assert!(!text.contains("offline"), "the recovery identity is not for the agent: {text}");
    let environment = &made.manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(environment[0]["valueFrom"]["secretKeyRef"]["key"], "WRITER_KEY");
    assert_eq!(made.manifest["spec"]["startingDeadlineSeconds"], 10, "sooner, and the controller misses it");
}

#[test]
fn what_kubernetes_would_refuse_is_refused() {
    assert!(matches!(with_schedule("last", "0 3 L * *"), Err(CronJobError::Pattern { .. })));
    let long = "a".repeat(44);
    assert!(matches!(with_schedule(&long, "@hourly"), Err(CronJobError::Name { .. })));
    assert!(with_schedule(&long[1..], "@hourly").is_ok());
}

/// Another region's copy, by somebody who has the agent's credentials neither here nor there.
#[test]
fn a_replica_is_kept_by_somebody_else() {
    let store = |name: &str| {
        format!(
            "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: {name}}}\nspec:\n  url: s3://{name}-bucket/p\n  \
             writerKey: {{file: /etc/lifeboat/keys/writer}}\n  s3:\n    credentials: {{accessKeyId: {{file: \
             /etc/lifeboat/{name}/id}}, secretAccessKey: {{env: {name}_SECRET}}}}\n---\n"
        )
    };
    let load = |replica: &str, tier: &str| {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "{}{}apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: data}}\nspec: {{files: {{path: /srv/data}}}}\n---\n\
             apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {{name: often}}\nspec:\n  repository: main\n  \
             tier: {tier}\n  cron: '*/2 * * * *'\n  maxDuration: 1m\n  sources: [data]\n  replica: {replica}\n",
            store("main"),
            store("far")
        );
        fs::write(directory.path().join("documents.yaml"), text).unwrap();
        Config::load(&[directory.path().into()])
    };
    let config = load("{to: far, cron: '1-59/2 * * * *', maxDuration: 90s}", "critical").unwrap();
    let schedule = &config.schedules["often"];
    let [backup, made] = <[_; 2]>::try_from(cronjobs(&config, schedule, &TARGET).unwrap()).unwrap();
    let backup = backup.manifest.to_string();
    assert!(!backup.contains("far") && !backup.contains("replicate"), "{backup}");
    assert!(made.unmounted.is_empty(), "what is backed up is nothing to it: {:?}", made.unmounted);
    let manifest = &made.manifest;
    let spec = &manifest["spec"]["jobTemplate"]["spec"];
    let pod = &spec["template"]["spec"];
    assert_eq!(
        (&manifest["metadata"]["name"], &manifest["spec"]["schedule"]),
        (&"lifeboat-replicate-often".into(), &"1-59/2 * * * *".into())
    );
    assert_eq!(
        (&spec["activeDeadlineSeconds"], &pod["serviceAccountName"]),
        (&150.into(), &"lifeboat-replicate".into())
    );
    let secrets: Vec<_> =
        pod["volumes"].as_array().unwrap().iter().filter_map(|one| one["secret"]["secretName"].as_str()).collect();
    assert_eq!(secrets, ["lifeboat-replicate-far", "lifeboat-replicate-main"], "it needs no writer key");
    let environment = pod["containers"][0]["env"].as_array().unwrap();
    assert!(
        environment.len() == 2
            && environment
                .iter()
                .all(|one| one["valueFrom"]["secretKeyRef"]["name"] == "lifeboat-replicate-environment")
    );
    let arguments: Vec<_> =
        pod["containers"][0]["args"].as_array().unwrap().iter().filter_map(|word| word.as_str()).collect();
    assert_eq!(arguments[2..], ["replicate", "--schedule=often"]);

    let now = "2026-03-01T00:00:00Z".parse().unwrap();
    assert_eq!(config.lint(now, |_| None), []);
    let late = load("{to: far, cron: '*/10 * * * *'}", "critical").unwrap().lint(now, |_| None);
    assert!(late.len() == 1 && late[0].message.contains("can fall further behind"), "{late:?}");
    for (replica, says) in [
        ("{to: main}", "cannot be a replica of itself"),
        ("{to: fare}", "far"),
        ("{to: far, cron: often}", "is not a timetable"),
        ("{to: far, from: main}", "from"),
    ] {
        let mistakes = load(replica, "critical").unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].to_string().contains(says), "{replica}: {mistakes:?}");
    }
}

/// kubectl reads YAML 1.1, where more words than true and false are booleans.
#[test]
fn names_stay_text() {
    for name in ["off", "no", "y", "1e3"] {
        let made = with_schedule(name, "@hourly").unwrap();
        let yaml = serde_saphyr::to_string(&made.manifest).unwrap();
        let label = yaml.lines().find(|line| line.contains("lifeboat.dev/schedule")).unwrap();
        assert!(label.ends_with(['"', '\'']), "{label}");
    }
}

#[test]
fn a_volume_has_a_cronjob_beside_the_pods_that_use_it() {
    let directory = tempfile::tempdir().unwrap();
    let text = "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {name: main}\nspec:\n  url: /srv/backups\n  \
                writerKey: {file: /etc/lifeboat/repository/writer-key}\n---\n\
                apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: data}\nspec: {files: {path: /srv/data}}\n---\n\
                apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: uploads}\nspec:\n  volume:\n    \
                namespace: shop\n    claim: pictures\n    pods: {app: web}\n---\n\
                apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {name: often}\nspec:\n  repository: main\n  \
                tier: standard\n  cron: '*/10 * * * *'\n  maxDuration: 5m\n  sources: [uploads, data]\n";
    fs::write(directory.path().join("documents.yaml"), text).unwrap();
    let config = Config::load(&[directory.path().into()]).unwrap();
    let made = cronjobs(&config, &config.schedules["often"], &TARGET).unwrap();
    let [others, volume] = made.as_slice() else { panic!("{} CronJobs", made.len()) };
    let args = &others.manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"];
    assert_eq!(args[4], "data", "the volume is not this one's");
    assert_eq!(others.manifest["metadata"]["namespace"], "lifeboat");
    assert_eq!(volume.unmounted.len(), 0);
    insta::assert_snapshot!(serde_saphyr::to_string(&volume.manifest).unwrap());
}

/// Who makes pods has no key, and the pod that has one is made by nobody else.
#[test]
fn a_volume_by_a_snapshot_is_a_cronjob_and_a_pod_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let text = "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {name: main}\nspec:\n  url: s3://bucket/p\n  \
                writerKey: {file: /etc/lifeboat/repository/writer-key}\n  s3:\n    credentials: {accessKeyId: {env: ID}, \
                secretAccessKey: {env: SECRET}}\n---\n\
                apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: uploads}\nspec:\n  volume:\n    \
                namespace: shop\n    claim: pictures\n    pods: {app: web}\n    snapshot: {class: fast}\n---\n\
                apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {name: often}\nspec:\n  repository: main\n  \
                tier: standard\n  cron: '*/10 * * * *'\n  maxDuration: 5m\n  sources: [uploads]\n";
    fs::write(directory.path().join("documents.yaml"), text).unwrap();
    let config = Config::load(&[directory.path().into()]).unwrap();
    let made = cronjobs(&config, &config.schedules["often"], &TARGET).unwrap();
    let [cronjob, template] = made.as_slice() else { panic!("{made:?}") };
    let manifest = cronjob.manifest.to_string();
    assert!(!manifest.contains("writer-key") && !manifest.contains("secret"), "{manifest}");
    let job = &cronjob.manifest["spec"]["jobTemplate"]["spec"];
    assert_eq!(job["ttlSecondsAfterFinished"], 300, "what it left is removed with its pod");
    insta::assert_snapshot!(serde_saphyr::to_string(&job["template"]["spec"]["containers"][0]).unwrap());
    assert_eq!(job["template"]["spec"]["serviceAccountName"], "lifeboat-snapshot");
    assert_eq!(template.manifest["metadata"]["name"], cronjob.manifest["metadata"]["name"]);
    insta::assert_snapshot!(serde_saphyr::to_string(&template.manifest).unwrap());
}
