//! What makes and describes the platform is lost: a state that somebody empties by mistake, one whose Secret is gone, and the
//! forge's disk. Argo CD goes on from what comes back.

use crate::platform::{Platform, empty};
use crate::support::{command, tool};
use crate::text;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Where each state is kept, its source, the document that it is restored into, and what has to be said besides. OpenTofu
/// itself begins another state when it is asked for a plan and there is no Secret.
const STATES: [(&str, &str, &str, &[&str]); 2] =
    [("s3", "terraform", "terraform", &[]), ("kubernetes", "terraform-in-secrets", "states-restored", &["--foreign"])];

impl Platform<'_> {
    /// OpenTofu's exit code and what it says.
    fn tofu(&self, backend: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let key = |name: &str| fs::read_to_string(self.safe().join("objects").join(name)).unwrap();
        let home = self.safe().join(format!("tofu-{backend}"));
        let mut tofu = command(tool("tofu"));
        tofu.args(arguments).current_dir(&home).env("HOME", &home).env("CHECKPOINT_DISABLE", "1");
        tofu.env("KUBE_CONFIG_PATH", self.cluster.etc().join("admin.conf"));
        tofu.env("AWS_ENDPOINT_URL_S3", format!("http://{}:30900", self.cluster.address(2)));
        tofu.env("AWS_ACCESS_KEY_ID", key("access-key-id").trim());
        tofu.env("AWS_SECRET_ACCESS_KEY", key("secret-access-key").trim());
        let output = tofu.output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    fn has_all_that_is_planned(&self, backend: &str) -> bool {
        let (code, text) = self.tofu(backend, &["plan", "-detailed-exitcode", "-input=false", "-no-color"]);
        assert!(matches!(code, Some(0 | 2)), "{text}");
        code == Some(0)
    }

    fn forge(&self) -> PathBuf {
        self.cluster.state().join("volumes/forge/git")
    }

    fn commit(&self) -> String {
        let repository = self.forge().join("platform/gitops.git");
        let output = command("git").arg("-C").arg(repository).args(["rev-parse", "main"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The forge's newest commit before.
    pub fn lose_what_describes_it(&self) -> String {
        let (code, text) = self.tofu("s3", &["destroy", "-auto-approve", "-input=false", "-no-color"]);
        assert_eq!(code, Some(0), "{text}");
        self.cluster.kubectl(&["-n", "terraform", "delete", "secrets,leases", "--selector", "tfstate=true"]);
        for (backend, ..) in STATES {
            assert!(!self.has_all_that_is_planned(backend), "{backend}");
        }
        let commit = self.commit();
        // Whoever runs it gives it a new disk, and an empty repository.
        empty(&self.forge());
        let repository = self.forge().join("platform/gitops.git");
        assert!(
            command("git")
                .args(["init", "--quiet", "--bare", "-b", "main"])
                .arg(repository)
                .status()
                .unwrap()
                .success()
        );
        commit
    }

    pub fn recover_what_describes_it(&self, commit: &str) {
        let kubeconfig = self.cluster.etc().join("admin.conf");
        self.write(
            "outside/states-restored.yaml",
            &format!(
                "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: states-restored}}\nspec:\n  terraform:\n    backend:\n      \
                 kubernetes: {{kubeconfig: {}, namespace: terraform, secretSuffix: platform}}\n",
                kubeconfig.display()
            ),
        );
        for (backend, source, target, more) in STATES {
            self.bring_back(source, target, more);
            assert!(self.has_all_that_is_planned(backend), "{backend}");
        }
        self.bring_back("gitops", "gitops", &[]);
        assert_eq!(self.commit(), commit);
    }

    /// After a look at what it would do.
    fn bring_back(&self, source: &str, target: &str, more: &[&str]) {
        let snapshot = format!("{source}@latest");
        let restore = ["-r", "platform", "--identity", "kit.txt", "restore", "snapshot", &snapshot, "--into", target];
        let restore = [&restore[..], &["--existing", "update"], more].concat();
        let plan: Value = serde_json::from_str(&self.succeed(&[&restore[..], &["--dry-run"]].concat())).unwrap();
        self.succeed(&[&restore[..], &["--yes", "--target-id", text(&plan["target"])]].concat());
    }
}
