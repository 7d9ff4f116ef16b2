//! An operator's way to a service: `kubectl port-forward`, begun again whenever it ends, as the runbook has it.

use crate::cluster::Cluster;
use crate::support::{command, free_port, kill_group};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};

pub struct Forwarded {
    child: Child,
    /// Of this machine.
    pub port: u16,
}

impl Forwarded {
    /// `service` as kubectl takes it, such as `svc/web`.
    pub fn to(cluster: &Cluster, namespace: &str, service: &str, port: u16) -> Self {
        let here = free_port();
        let mut forward = command("sh");
        forward.args(["-c", "while sleep 1; do \"$@\"; done", "sh"]).arg(cluster.state().join("bin/kubectl"));
        forward.arg("--kubeconfig").arg(cluster.etc().join("admin.conf"));
        forward.args(["-n", namespace, "port-forward", service, &format!("{here}:{port}")]);
        let quiet = forward.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: quiet.process_group(0).spawn().unwrap(), port: here }
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}
