//! Numbered records that a pod writes into its cluster until the end, and a list of them that is kept outside: what was
//! acknowledged, and when. By it one tells what a recovery lost.

use crate::cluster::{Cluster, wait};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The list.
#[derive(Default)]
pub struct Book {
    closed: bool,
    /// The newest number that was given out.
    given: u32,
    acknowledged: Vec<(u32, Timestamp)>,
}

pub struct Ledger {
    book: Arc<Mutex<Book>>,
}

/// Between the disaster and what came back.
#[derive(Debug)]
pub struct Loss {
    pub kept: u32,
    pub records: usize,
    /// From the newest record that is there to the newest that was acknowledged.
    pub milliseconds: i128,
}

/// Asks for a number, telling which one was written last (0: none), writes a record of that number, and so on. Where nobody
/// gives numbers, it writes nothing.
const WRITER: &str = "\
n=$(wget -q -O - http://$LEDGER/0) || exit 1
while :; do
  written=0
  kubectl create configmap record-$n >/dev/null && written=$n
  n=$(wget -q -O - http://$LEDGER/$written) || exit 1
done";

impl Ledger {
    /// Starts the writer, and waits for its first records.
    pub fn start(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind((cluster.address(1), 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ledger = Self { book: Arc::default() };
        let book = ledger.book.clone();
        std::thread::spawn(move || listener.incoming().for_each(|writer| answer(writer.unwrap(), &book)));
        cluster.apply(&manifest(cluster, &address));
        ledger.goes_on(cluster);
        ledger
    }

    /// Waits for records that are not written yet.
    pub fn goes_on(&self, cluster: &Cluster) {
        let enough = self.given() + 5;
        wait(Duration::from_mins(2), "more records", || (self.given() > enough).then_some(()));
        assert!(!written(cluster).is_empty());
    }

    pub fn given(&self) -> u32 {
        self.book.lock().unwrap().given()
    }

    /// Nothing is written any more, wherever the writer runs.
    pub fn close(&self) {
        self.book.lock().unwrap().close();
    }

    /// After a recovery, from which on what was lost is not missed any more.
    pub fn reopen(&self, cluster: &Cluster, loss: &Loss) {
        self.book.lock().unwrap().reopen(loss);
        // The kubelet waits longer each time that the writer got no number.
        cluster.kubectl(&["-n", "records", "delete", "pods", "--all", "--timeout=60s"]);
        self.goes_on(cluster);
    }

    /// Every record that was acknowledged before `moment` is there; none that was asked for after `given`.
    pub fn judge(&self, cluster: &Cluster, moment: Timestamp, given: u32) -> Loss {
        self.book.lock().unwrap().judge(&written(cluster), moment, given)
    }
}

impl Book {
    /// Whose numbers come after this one.
    pub fn after(used: u32) -> Self {
        Self { given: used, ..Self::default() }
    }

    /// A number for one more record, as long as something is written.
    pub fn give(&mut self) -> Option<u32> {
        self.given += u32::from(!self.closed);
        (!self.closed).then_some(self.given)
    }

    pub fn given(&self) -> u32 {
        self.given
    }

    #[expect(clippy::disallowed_methods, reason = "the clock by which losses are judged")]
    pub fn acknowledge(&mut self, number: u32) {
        self.acknowledged.push((number, Timestamp::now()));
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Nothing is written any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    fn reopen(&mut self, loss: &Loss) {
        self.closed = false;
        self.acknowledged.retain(|(number, _)| *number <= loss.kept);
    }

    /// Of what is `there`, see [`Ledger::judge`].
    pub fn judge(&self, there: &BTreeSet<u32>, moment: Timestamp, given: u32) -> Loss {
        let kept = *there.last().unwrap();
        assert!(kept <= given, "the record {kept} is younger than the snapshot");
        let missing: Vec<_> =
            self.acknowledged.iter().filter(|(number, at)| *at <= moment && !there.contains(number)).collect();
        assert!(missing.is_empty(), "{missing:?} were there at {moment}");
        let holes: Vec<_> =
            self.acknowledged.iter().filter(|(number, _)| *number < kept && !there.contains(number)).collect();
        assert!(holes.is_empty(), "{holes:?} are older than {kept}, which is there");
        let lost = self.acknowledged.iter().filter(|(number, _)| *number > kept).count();
        let newest_kept = self.acknowledged.iter().rfind(|(number, _)| *number <= kept).unwrap().1;
        let end = self.acknowledged.last().unwrap().1;
        Loss { kept, records: lost, milliseconds: end.duration_since(newest_kept).as_millis() }
    }
}

fn answer(mut writer: TcpStream, book: &Mutex<Book>) {
    let _ = writer.set_read_timeout(Some(Duration::from_secs(5)));
    let mut line = String::new();
    let _ = BufReader::new(&writer).read_line(&mut line);
    let said = line.split_whitespace().nth(1).and_then(|path| path.trim_start_matches('/').parse().ok());
    let mut book = book.lock().unwrap();
    let Some((written, next)) = said.and_then(|written| Some((written, book.give()?))) else { return };
    if written > 0 {
        book.acknowledge(written);
    }
    let text = next.to_string();
    let _ = write!(writer, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
}

fn written(cluster: &Cluster) -> BTreeSet<u32> {
    let names = cluster.get(&["-n", "records", "configmaps", "-o", "name"]);
    names.lines().filter_map(|name| name.strip_prefix("configmap/record-")?.parse().ok()).collect()
}

fn manifest(cluster: &Cluster, ledger: &str) -> serde_json::Value {
    // busybox's own TLS cannot talk to the API server.
    let kubectl = fs::canonicalize(cluster.state().join("bin/kubectl")).unwrap();
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "records" } },
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "writer", "namespace": "records" } },
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
          "metadata": { "name": "writer", "namespace": "records" },
          "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit" },
          "subjects": [{ "kind": "ServiceAccount", "name": "writer", "namespace": "records" }] },
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "writer", "namespace": "records" },
          "spec": { "selector": { "matchLabels": { "app": "writer" } }, "template": {
            "metadata": { "labels": { "app": "writer" } },
            "spec": {
                "serviceAccountName": "writer", "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": "lifeboat.lab/busybox:1", "imagePullPolicy": "Never",
                    "command": ["sh", "-c", WRITER], "env": [{ "name": "LEDGER", "value": ledger }],
                    "volumeMounts": [{ "name": "kubectl", "mountPath": "/bin/kubectl" }],
                }],
                "volumes": [{ "name": "kubectl", "hostPath": { "path": kubectl, "type": "File" } }],
            },
          } } },
    ] })
}
