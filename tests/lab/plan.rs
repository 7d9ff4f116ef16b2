//! What restore plans do to a cluster whose pods really run.

use crate::cluster::{Cluster, wait};
use crate::support::collect::{context, runtime};
use lifeboat::source::Context;
use lifeboat::source::kubernetes::Spec;
use lifeboat::source::kubernetes::fence::{Hold, Scaled, hold, look, release};
use lifeboat::source::kubernetes::job::run_job;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn container(script: &str) -> Value {
    json!({ "name": "main", "image": "lifeboat.lab/busybox:1", "imagePullPolicy": "Never", "command": ["sh", "-c", script] })
}

fn job(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name, "namespace": "held" },
        "spec": { "backoffLimit": 0, "template": { "spec": {
            "restartPolicy": "Never", "containers": [container(script)],
        } } },
    })
}

/// Its pod takes its time to go.
fn writer(cluster: &Cluster) {
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "held" } },
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "writer", "namespace": "held" },
          "spec": { "replicas": 1, "selector": { "matchLabels": { "app": "writer" } }, "template": {
            "metadata": { "labels": { "app": "writer" } },
            "spec": { "terminationGracePeriodSeconds": 5, "containers": [container("trap '' TERM; while :; do sleep 1; done")] },
          } } },
    ] }));
    runs(cluster);
}

fn phases(cluster: &Cluster) -> String {
    cluster.get(&["-n", "held", "pods", "-l", "app=writer", "-o", "jsonpath={.items[*].status.phase}"])
}

fn runs(cluster: &Cluster) {
    wait(Duration::from_mins(2), "a pod that writes", || (phases(cluster) == "Running").then_some(()));
}

/// A fence is closed when no pod writes any more; a Job's end is told with what it said.
pub fn holds_writers_and_runs_jobs(cluster: &Cluster) {
    writer(cluster);
    let runtime = runtime();
    let context = Context { deadline: Instant::now() + Duration::from_mins(3), ..context(&runtime) };
    let spec = Spec { kubeconfig: Some(cluster.etc().join("admin.conf")), ..Spec::default() };
    let wanted = Hold { scale: vec![Scaled { namespace: "held".into(), names: Vec::new() }], ..Hold::default() };
    let held = look(&context, &spec, &wanted).unwrap();
    hold(&context, &spec, &held).unwrap();
    // One that was killed has failed, and is still listed for a moment.
    let phase = phases(cluster);
    assert!(matches!(&*phase, "" | "Failed"), "{phase}");

    let said = run_job(&context, &spec, &job("check", "echo first; echo all is well"), "run/1").unwrap();
    assert!(said.ends_with("is complete; the end of its log:\nfirst\nall is well"), "{said}");
    assert_eq!(run_job(&context, &spec, &job("check", "echo first; echo all is well"), "run/1").unwrap(), said);
    let failed = run_job(&context, &spec, &job("broken", "echo nothing is well; exit 3"), "run/1").unwrap_err();
    let failed = failed.to_string();
    assert!(failed.contains("it failed: BackoffLimitExceeded; the end of its log:\nnothing is well"), "{failed}");

    release(&context, &spec, &held).unwrap();
    runs(cluster);
    cluster.kubectl(&["delete", "namespace", "held", "--timeout=60s"]);
}
