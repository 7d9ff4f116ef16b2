//! Inside of a cluster: no kubeconfig, only the service account, where the kubelet mounts it, and the rights that
//! `deploy/base` gives it.

use crate::support::command;
use crate::support::kubernetes::Server;
use crate::support::world::{Ran, World, finish, made};
use std::fs;
use std::process::Stdio;

/// A namespace of its own, in which the account's directory is where pods have theirs. `$0` is that directory.
const MOUNT: &str = "run=$(readlink -f /var/run) && mount -t tmpfs none \"$run\" && mkdir -p \"$run/secrets/kubernetes.io\" && \
                     ln -s \"$0\" \"$run/secrets/kubernetes.io/serviceaccount\" && exec \"$@\"";

/// The program in a pod whose service account is the directory `account` of the world.
fn in_pod(world: &World, account: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let program = world.program(arguments);
    let mut pod = command("unshare");
    pod.args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT]).arg(world.path(account));
    pod.arg(program.get_program()).args(program.get_args()).current_dir(world.home.path()).env_clear();
    pod.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    pod.envs(environment.iter().copied());
    finish(pod.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// As the kubelet does it.
fn mount(world: &World, server: &Server, account: &str) {
    let at = world.path(account);
    fs::create_dir(&at).unwrap();
    fs::copy(server.directory.path().join("ca.pem"), at.join("ca.crt")).unwrap();
    fs::write(at.join("namespace"), "lifeboat").unwrap();
    fs::write(at.join("token"), server.kubectl(&["-n", "lifeboat", "create", "token", account]).trim()).unwrap();
}

#[test]
fn the_pods_own_account_is_enough() {
    let server = Server::start();
    let world = World::local();
    server.apply(include_str!("../../deploy/base/namespace.yaml"));
    server.apply(include_str!("../../deploy/base/identities.yaml"));
    server.kubectl(&["create", "namespace", "shop"]);
    server.kubectl(&["-n", "shop", "create", "configmap", "settings", "--from-literal=colour=green"]);
    server.kubectl(&["-n", "shop", "create", "secret", "generic", "password", "--from-literal=it=tell-nobody"]);
    for account in ["lifeboat-backup", "lifeboat-restore"] {
        mount(&world, &server, account);
    }
    let document = "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: shop}\n\
                    spec: {kubernetes: {namespaces: [shop]}}\n";
    world.document("shop.yaml", document);
    let address = server.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let (host, port) = address.trim_start_matches("https://").split_once(':').unwrap();
    let cluster = [("KUBERNETES_SERVICE_HOST", host), ("KUBERNETES_SERVICE_PORT", port)];

    let doctor = in_pod(&world, "lifeboat-backup", &cluster, &["--writer-key", "writer.key", "doctor"]);
    assert!(doctor.out.contains(&address), "{} {}", doctor.out, doctor.err);
    let backup = ["--writer-key", "writer.key", "backup", "shop", "--json"];
    let captured = in_pod(&world, "lifeboat-backup", &cluster, &backup).expect(0);
    assert_eq!(made(&captured).number, 1);
    let uid = server.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(captured.json()["backups"][0]["facts"]["system"], uid.as_str());
    let listed = world.as_owner(&["ls", "shop@1"]).expect(0);
    assert!(listed.out.contains("shop/secrets/password.yaml"), "{}", listed.out);

    // Whoever backs up cannot restore; nor can whoever restores, before somebody has given it rights.
    server.kubectl(&["-n", "shop", "delete", "configmap/settings", "secret/password"]);
    let restore = ["--identity", "kit.txt", "restore", "snapshot", "shop@1", "--into", "shop"];
    for account in ["lifeboat-backup", "lifeboat-restore"] {
        let refused = in_pod(&world, account, &cluster, &restore);
        assert_ne!(refused.code, 0, "{}", refused.out);
        assert!(format!("{}{}", refused.out, refused.err).contains("forbidden"), "{} {}", refused.out, refused.err);
        assert!(server.try_kubectl(&["-n", "shop", "get", "configmap", "settings"], "").is_err(), "{account}");
    }
    let binding = ["create", "clusterrolebinding", "today", "--clusterrole=cluster-admin"];
    server.kubectl(&[&binding[..], &["--serviceaccount=lifeboat:lifeboat-restore"]].concat());
    in_pod(&world, "lifeboat-restore", &cluster, &restore).expect(0);
    let colour = server.kubectl(&["-n", "shop", "get", "configmap", "settings", "-o", "jsonpath={.data.colour}"]);
    assert_eq!(colour, "green");
    server.kubectl(&["-n", "shop", "get", "secret", "password"]);

    // What keeps it away is said, and the token never.
    let fails = |account: &str, environment: &[(&str, &str)], text: &str| {
        let failed = in_pod(&world, account, environment, &backup).expect(1);
        failed.says(text);
        let token = fs::read_to_string(world.path("lifeboat-backup/token")).unwrap();
        assert!(!failed.err.contains(&token) && !failed.out.contains(&token), "{} {}", failed.out, failed.err);
    };
    fails("lifeboat-backup", &[], "find the cluster that this runs in");
    fails("not-mounted", &cluster, "automountServiceAccountToken");
    let change = |name: &str, content: &[u8]| fs::write(world.path("lifeboat-backup").join(name), content).unwrap();
    let (token, ca) =
        ["token", "ca.crt"].map(|name| fs::read(world.path("lifeboat-backup").join(name)).unwrap()).into();
    change("token", b"no.such.token");
    fails("lifeboat-backup", &cluster, "does not accept the credentials");
    change("token", &token);
    change("ca.crt", b"not a certificate");
    fails("lifeboat-backup", &cluster, "certificate");
    change("ca.crt", &ca);
    assert_eq!(world.numbers("shop"), [1]);
    in_pod(&world, "lifeboat-backup", &cluster, &backup).expect(0);
}
