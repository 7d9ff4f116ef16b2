//! A MariaDB, a Redis and Vault are destroyed while they are written to, and come back by one command each.

use crate::IMAGE;
use crate::pictshare::shipped;
use crate::platform::{Platform, empty};
use crate::records::Records;
use crate::recovery::Recovered;
use crate::secrets::Vault;
use std::path::PathBuf;

const DATABASES: [(&str, &str); 2] = [("orders", "orders-0"), ("sessions", "sessions-0")];

impl Platform<'_> {
    pub fn safe(&self) -> PathBuf {
        self.cluster.state().join("safe")
    }

    /// Vault with a canary; the plans by which it and the databases come back.
    pub fn prepare_shop(&self) -> Vault<'_> {
        let safe = self.safe().display().to_string();
        let here = [("/etc/lifeboat/", self.secret("")), ("/secure", safe.clone())];
        self.write("outside/secrets.yaml", &shipped("restore-plans/secrets.yaml", &here));
        self.write(
            "outside/shop.yaml",
            &SHOP.replace("/etc/lifeboat/", &here[0].1).replace("/secure", &safe).replace("IMAGE", IMAGE),
        );
        Vault::install(self.cluster, &self.safe().join("vault"))
    }

    /// Their disks, under their feet.
    pub fn lose_shop(&self) {
        for (volume, pod) in DATABASES {
            empty(&self.cluster.state().join("volumes/shop").join(volume));
            self.cluster.kubectl(&[
                "-n",
                "shop",
                "delete",
                "pod",
                pod,
                "--grace-period=1",
                "--request-timeout=0",
                "--timeout=2m",
            ]);
        }
    }

    pub fn recover_shop(&self, records: &Records<'_>) {
        for (name, _) in DATABASES {
            let workload = format!("statefulset/{name}");
            self.cluster.kubectl(&[
                "-n",
                "shop",
                "rollout",
                "status",
                &workload,
                "--request-timeout=0",
                "--timeout=2m",
            ]);
        }
        let recovered = self.recover("shop", &[]);
        for (source, system) in [("orders", "mariadb"), ("sessions", "redis")] {
            came_back(&recovered, source, records, system);
        }
    }

    pub fn recover_vault(&self, vault: &Vault<'_>, records: &Records<'_>) {
        vault.replace();
        let recovered = self.recover("secrets", &["--answer", "keys"]);
        vault.sings();
        came_back(&recovered, "vault", records, "vault");
    }
}

/// All that it had at its recovery point, and nothing that it was given later.
pub fn came_back(recovered: &Recovered, source: &str, records: &Records<'_>, system: &str) {
    let lost = records.judge(system, recovered.moment(source));
    assert!(lost > 0, "{system} was written to after its snapshot");
}

const SHOP: &str = "\
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: orders-restored}
spec:
  mariadb:
    host: orders.shop.svc
    user: root
    password: {file: /secure/shop/root-password}
    tls: {ca: /etc/lifeboat/shop/ca.crt}
---
apiVersion: lifeboat.dev/v1
kind: RestorePlan
metadata: {name: shop}
spec:
  level: service
  tier: standard
  about: The shop's MariaDB, an empty one that runs; its Redis, of which the volume is filled while it is down.
  steps:
    - name: orders
      restore: {source: orders, into: orders-restored, options: {existing: replace, foreign: true}}
    - name: hold
      after: []
      fence: {cluster: standard-objects, hold: {scale: [{namespace: shop, names: [statefulset/sessions]}]}}
    - name: sessions
      restore:
        source: sessions
        claim: {cluster: standard-objects, namespace: shop, name: sessions, image: 'IMAGE'}
        options: {existing: replace}
    - name: release
      unfence: hold
    - name: rows
      after: [orders]
      probe: {sql: {source: orders, query: 'SELECT COUNT(*) FROM records.records', atLeast: 1}}
    - name: sessions-answer
      after: [release]
      probe: {source: sessions}
";
