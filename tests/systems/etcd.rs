//! Capture of real etcd clusters.
#![expect(clippy::disallowed_methods, reason = "etcd's own tools judge what was captured")]

use crate::support::collect::{Collect, context, runtime};
use crate::support::etcd::Cluster;
use crate::support::{free_ports, output, tool};
use lifeboat::entry::Facts;
use lifeboat::secret::SecretRef;
use lifeboat::source::{SourceError, Spec, etcd};
use std::io::Write as _;
use std::process::Command;

fn spec(cluster: &Cluster) -> etcd::Spec {
    etcd::Spec { endpoints: cluster.endpoints.clone(), tls: None, user: None }
}

fn capture(spec: etcd::Spec) -> Result<(Facts, Vec<u8>), SourceError> {
    let runtime = runtime();
    let mut sink = Collect::default();
    let facts = Spec::Etcd(spec).open()?.capture(&context(&runtime), &mut sink)?;
    let (entry, content) = sink.entries.remove(0);
    assert_eq!(entry.path, b"db");
    assert_eq!(entry.size, content.len() as u64);
    Ok((facts, content))
}

fn fill(cluster: &Cluster, flags: &[&str]) {
    for index in 0..20 {
        let key = format!("key{index}");
        cluster.ctl(&[flags, &["put", &key, "value"]].concat());
    }
}

#[test]
fn etcds_own_tools_accept_what_was_captured() {
    let cluster = Cluster::start(1, false);
    fill(&cluster, &[]);
    let lines = Spec::Etcd(spec(&cluster)).open().unwrap().check(&context(&runtime())).unwrap();
    assert!(lines[0].contains("leader"), "{lines:?}");
    let (facts, content) = capture(spec(&cluster)).unwrap();
    assert_eq!(facts.objects, Some(20));
    assert_eq!(facts.position, Some(21));
    assert_eq!(facts.details["member_name"], "m0");
    let file = cluster.directory.path().join("exported.db");
    let digest = facts.details["sha256"].as_str();
    let mut export = etcd::Export::new(std::fs::File::create(&file).unwrap(), Some(digest));
    export.write_all(&content).unwrap();
    export.finish().unwrap();
    assert_eq!(file.metadata().unwrap().len(), content.len() as u64 + 32);
    cluster.ctl(&["snapshot", "save", "official.db"]);
    let status = |file: &str| -> serde_json::Value {
        let mut etcdutl = Command::new(tool("etcdutl"));
        etcdutl.current_dir(cluster.directory.path()).args(["snapshot", "status", file, "-w", "json"]);
        serde_json::from_str(&output(&mut etcdutl)).unwrap()
    };
    let (ours, official) = (status("exported.db"), status("official.db"));
    assert_eq!(ours["revision"], 21);
    assert_eq!(ours["revision"], official["revision"]);
    assert_eq!(ours["hash"], official["hash"]);
    let mut restore = Command::new(tool("etcdutl"));
    restore.current_dir(cluster.directory.path());
    output(restore.args(["snapshot", "restore", "exported.db", "--data-dir", "restored"]));
    assert!(cluster.directory.path().join("restored/member/snap/db").exists());
    // The digest matters to them: one wrong byte is refused.
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut restore = Command::new(tool("etcdutl"));
    restore.current_dir(cluster.directory.path());
    assert!(
        !restore.args(["snapshot", "restore", "exported.db", "--data-dir", "no"]).output().unwrap().status.success()
    );
}

#[test]
fn a_secured_cluster_with_a_dead_member() {
    let mut cluster = Cluster::start(3, true);
    let file = |name: &str| cluster.directory.path().join(name);
    let tls = etcd::Tls {
        ca: file("ca.pem"),
        certificate: Some(file("client.pem")),
        key: Some(file("client.key")),
        server_name: None,
    };
    std::fs::write(file("password"), "correct\n").unwrap();
    std::fs::write(file("wrong"), "incorrect\n").unwrap();
    let user = |name: &str, password: &str| {
        Some(etcd::User { name: name.to_owned(), password: SecretRef::File(file(password)) })
    };
    let good = etcd::Spec { tls: Some(tls.clone()), user: user("root", "password"), ..spec(&cluster) };
    for command in ["user add root:correct", "user add reader:correct", "user grant-role root root", "auth enable"] {
        cluster.ctl(&command.split(' ').collect::<Vec<_>>());
    }
    fill(&cluster, &["--user", "root:correct"]);

    let (facts, _) = capture(good.clone()).unwrap();
    assert_eq!(facts.details["role"], "follower");
    assert_eq!(facts.objects, Some(20));
    let system = facts.system;

    let plain = etcd::Spec { tls: None, ..good.clone() };
    assert!(matches!(capture(plain), Err(SourceError::NoMember { failures }) if failures.len() == 3));
    let foreign = etcd::Tls { ca: file("other-ca.pem"), ..tls.clone() };
    let failure = capture(etcd::Spec { tls: Some(foreign), ..good.clone() }).unwrap_err();
    assert!(matches!(&failure, SourceError::NoMember { failures } if failures.len() == 3), "{failure}");
    assert!(failure.to_string().to_lowercase().contains("certificate"), "{failure}");
    let failure = capture(etcd::Spec { user: user("root", "wrong"), ..good.clone() }).unwrap_err();
    assert!(failure.to_string().contains("authentication failed"), "{failure}");
    assert!(!failure.to_string().contains("incorrect"), "{failure}");
    for nobody in [user("reader", "password"), None] {
        let failure = capture(etcd::Spec { user: nobody, ..good.clone() }).unwrap_err();
        assert!(matches!(failure, SourceError::Denied { .. }), "{failure}");
    }

    let dead = cluster.endpoints.iter().position(|endpoint| *endpoint == facts.details["endpoint"]).unwrap();
    cluster.stop(dead);
    let (facts, _) = capture(good.clone()).unwrap();
    assert_eq!(facts.system, system);
    assert_ne!(facts.details["endpoint"], cluster.endpoints[dead]);
}

#[test]
fn a_cluster_that_is_not_there_is_reported_by_endpoint() {
    let endpoints: Vec<_> = free_ports::<2>().iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    let failure = capture(etcd::Spec { endpoints: endpoints.clone(), tls: None, user: None }).unwrap_err();
    for endpoint in endpoints {
        assert!(failure.to_string().contains(&endpoint), "{failure}");
    }
}

#[test]
fn members_of_two_clusters_are_not_taken_for_one() {
    let (one, two) = (Cluster::start(1, false), Cluster::start(1, false));
    let endpoints = [one.endpoints.clone(), two.endpoints.clone()].concat();
    assert!(matches!(capture(etcd::Spec { endpoints, ..spec(&one) }), Err(SourceError::Spec { .. })));
}
