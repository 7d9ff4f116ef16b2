//! What a schedule becomes in a cluster.

#![allow(clippy::unwrap_used, reason = "a test")]

use lifeboat::config::{Config, CronJob, CronJobError, Target, cronjobs};
use std::fs;
use std::path::{Path, PathBuf};

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
    let pki = |name| Path::new("/etc/kubernetes/pki/etcd").join(name);
    let unmounted: Vec<PathBuf> = vec![
        "/etc/kubernetes".into(),
        pki("ca.crt"),
        pki("healthcheck-client.crt"),
        pki("healthcheck-client.key"),
        "/sources/pictshare-production/uploads".into(),
        "/var/lib/kubelet".into(),
    ];
    assert_eq!(made.unmounted.into_iter().collect::<Vec<_>>(), unmounted);
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
