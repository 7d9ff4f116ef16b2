//! Real repositories, captured and brought back: from a path, over https (lighttpd and git's own CGI program), over ssh.

use crate::support;
use crate::support::collect;
use crate::support::etcd;
use crate::support::proxy;
use crate::support::world::{Ran, World, made, noise};
use lifeboat::source::Spec;
use lifeboat::source::git::Spec as Git;
use lifeboat::source::target::{Action, Existing, Options};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const TOKEN: &str = "correct-horse-battery";
const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "gitops", "--json"];

#[track_caller]
fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = support::command("git");
    command.args(arguments).current_dir(directory).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", directory);
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "A").env(format!("GIT_{who}_EMAIL"), "a@example.org");
        command.env(format!("GIT_{who}_DATE"), "2024-01-01T00:00:00Z");
    }
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_ALLOW_PROTOCOL", "file");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The forge's repository, and a clone that people work in.
struct Forge {
    bare: PathBuf,
    clone: PathBuf,
}

impl Forge {
    fn empty(world: &World) -> Self {
        let (bare, clone) = (world.path("forge/platform/gitops.git"), world.path("clone"));
        fs::create_dir_all(&bare).unwrap();
        git(&bare, &["init", "-q", "--bare", "-b", "main"]);
        fs::create_dir(&clone).unwrap();
        git(&clone, &["init", "-q", "-b", "main"]);
        git(&clone, &["remote", "add", "origin", bare.to_str().unwrap()]);
        Self { bare, clone }
    }

    /// Branches, tags of both kinds, notes, a signed commit, a merge.
    fn new(world: &World) -> Self {
        let forge = Self::empty(world);
        for number in 0..20 {
            forge.commit(&format!("apps/{number}.yaml"), &format!("replicas: {number}\n"));
        }
        let clone = &forge.clone;
        fs::write(clone.join("noise"), noise(7, 2_000_000)).unwrap();
        forge.commit("other.yaml", "other");
        git(clone, &["tag", "light", "HEAD~3"]);
        git(clone, &["tag", "-a", "v1.0", "-m", "the first"]);
        git(clone, &["checkout", "-q", "-b", "staging"]);
        forge.commit("staging.yaml", "image: next\n");
        git(clone, &["checkout", "-q", "main"]);
        git(clone, &["merge", "-q", "--no-ff", "-m", "merge", "staging"]);
        git(clone, &["notes", "add", "-m", "looked at"]);
        let parent = git(clone, &["rev-parse", "HEAD"]);
        let tree = git(clone, &["rev-parse", "HEAD^{tree}"]);
        let person = "A <a@example.org> 1704067200 +0000";
        let signed = format!(
            "tree {tree}\nparent {parent}\nauthor {person}\ncommitter {person}\ngpgsig -----BEGIN SSH SIGNATURE-----\n \
             U1NIU0lHAAAAAQ\n -----END SSH SIGNATURE-----\n\nsigned\n"
        );
        fs::write(clone.join(".git/signed"), signed).unwrap();
        let signed = git(clone, &["hash-object", "-t", "commit", "-w", ".git/signed"]);
        git(clone, &["reset", "-q", "--hard", &signed]);
        forge.push();
        forge
    }

    fn commit(&self, name: &str, text: &str) {
        let path = self.clone.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        git(&self.clone, &["add", "-A"]);
        git(&self.clone, &["commit", "-q", "-m", name]);
    }

    fn push(&self) {
        git(
            &self.clone,
            &[
                "push",
                "-q",
                "-f",
                "origin",
                "refs/heads/*:refs/heads/*",
                "refs/tags/*:refs/tags/*",
                "refs/notes/*:refs/notes/*",
            ],
        );
    }

    fn refs(&self) -> String {
        refs(&self.bare)
    }
}

fn refs(repository: &Path) -> String {
    git(repository, &["for-each-ref"]) + "\n" + &fs::read_to_string(repository.join("HEAD")).unwrap()
}

fn document(world: &World, name: &str, fields: &str) {
    let text =
        format!("apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec: {{git: {{{fields}}}}}\n");
    world.document(&format!("source-{name}.yaml"), &text);
}

fn restore(world: &World, reference: &str, into: &str, further: &[&str]) -> Ran {
    let arguments = ["restore", "snapshot", reference, "--into", into, "--json"];
    world.as_owner(&[&arguments[..], further].concat())
}

fn actions(ran: &Ran) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ran.json()["changes"].as_array().unwrap().iter().map(|c| (text(&c["what"]), text(&c["action"]))).collect()
}

#[track_caller]
fn action_of(ran: &Ran, what: &str) -> String {
    actions(ran).into_iter().find(|(name, _)| name == what).unwrap().1
}

#[test]
fn a_repository_comes_back_with_all_its_ids() {
    let world = World::local();
    let forge = Forge::new(&world);
    document(&world, "gitops", &format!("url: {}", forge.bare.display()));
    let first = world.run(BACKUP).expect(0);
    let facts = first.json()["backups"][0]["facts"].clone();
    let root = git(&forge.clone, &["rev-list", "--max-parents=0", "main"]);
    assert_eq!((facts["system"].as_str(), facts["objects"].as_u64()), (Some(root.as_str()), Some(5)), "{facts}");
    assert_eq!(facts["position"].to_string(), git(&forge.clone, &["rev-list", "--count", "main"]));
    assert_eq!(facts["details"]["head"], "refs/heads/main");
    assert_eq!(facts["details"]["branch staging"], git(&forge.bare, &["rev-parse", "staging"]));
    // The moment of the capture, not that of the newest commit.
    assert_eq!(facts["details"]["newest_commit"], "2024-01-01T00:00:00+00:00");
    assert!(facts["recovery_point_ms"].as_i64().unwrap() > 1_704_067_200_000 + 86_400_000, "{facts}");
    assert!(made(&first).new_bytes > 2_000_000);

    // The same repository costs nothing, however it is packed.
    git(&forge.bare, &["repack", "-adfq", "--depth=3"]);
    let again = made(&world.run(BACKUP).expect(0));
    assert!(again.new_bytes < 1_000 && again.stored_bytes < 10_000, "{} {}", again.new_bytes, again.stored_bytes);
    // One commit costs little.
    forge.commit("apps/3.yaml", "replicas: 33\n");
    forge.push();
    let more = made(&world.run(BACKUP).expect(0));
    assert!(more.new_bytes < 200_000, "{}", more.new_bytes);
    let there = forge.refs();

    world.as_owner(&["export", "gitops@latest", "-o", "exported.bundle"]).expect(0);
    git(world.home.path(), &["clone", "-q", "--mirror", "exported.bundle", "cloned"]);
    assert_eq!(refs(&world.path("cloned")), there);
    git(&world.path("cloned"), &["bundle", "verify", "-q", "../exported.bundle"]);

    fs::remove_dir_all(world.path("forge")).unwrap();
    let planned = restore(&world, "gitops@latest", "gitops", &["--dry-run"]).expect(0);
    assert!(!forge.bare.exists() && actions(&planned).iter().all(|(_, action)| action == "create"), "{}", planned.out);
    let restored = restore(&world, "gitops@latest", "gitops", &[]).expect(0);
    assert_eq!(actions(&restored), actions(&planned));
    assert!(restored.out.contains("5 of 5 refs are what the snapshot holds"), "{}", restored.out);
    assert_eq!(forge.refs(), there);
    git(&forge.bare, &["fsck", "--strict"]);
    assert_eq!(git(&forge.bare, &["show", "main:apps/3.yaml"]), "replicas: 33");
    assert!(git(&forge.bare, &["cat-file", "commit", "main~1"]).contains("gpgsig"));
    let again = restore(&world, "gitops@latest", "gitops", &[]).expect(0);
    assert!(actions(&again).iter().all(|(_, action)| action == "unchanged"), "{}", again.out);
    // And from there it is captured as if nothing had been.
    let after = made(&world.run(BACKUP).expect(0));
    assert!(after.new_bytes < 1_000, "{}", after.new_bytes);
    world.assert_sound();
}

#[test]
fn what_others_pushed_is_not_lost_unless_it_is_meant() {
    let world = World::local();
    let forge = Forge::new(&world);
    document(&world, "gitops", &format!("url: 'file://{}'", forge.bare.display()));
    world.run(BACKUP).expect(0);
    let captured = forge.refs();
    // One branch is taken back, one goes on, a tag moves, a branch and a pull request come.
    let old = git(&forge.clone, &["rev-parse", "main"]);
    git(&forge.bare, &["update-ref", "refs/heads/staging", "refs/heads/staging~2"]);
    forge.commit("later.yaml", "later");
    git(&forge.clone, &["push", "-q", "origin", "main", "main:feature", "main:refs/pull/1/head"]);
    git(&forge.bare, &["update-ref", "refs/tags/light", &old]);
    git(&forge.bare, &["symbolic-ref", "HEAD", "refs/heads/feature"]);
    let changed = forge.refs();

    let kept = restore(&world, "gitops@latest", "gitops", &[]).expect(0);
    assert_eq!(action_of(&kept, "refs/heads/main"), "skip");
    assert_eq!(forge.refs(), changed);

    let target = format!("file://{}", forge.bare.display());
    restore(&world, "gitops@latest", "gitops", &["--existing", "update"]).expect(2).says("would overwrite");
    let sure = ["--yes", "--target-id", &target];
    let updated =
        restore(&world, "gitops@latest", "gitops", &[&["--existing", "update"], &sure[..]].concat()).expect(3);
    assert!(action_of(&updated, "refs/heads/main").starts_with("conflict: 1 commits there are not in the snapshot"));
    assert!(action_of(&updated, "refs/tags/light").starts_with("conflict"), "{}", updated.out);
    assert_eq!(action_of(&updated, "refs/heads/staging"), "update");
    assert_eq!(action_of(&updated, "HEAD"), "update");
    assert_ne!(git(&forge.bare, &["rev-parse", "main"]), old);

    let replaced =
        restore(&world, "gitops@latest", "gitops", &[&["--existing", "replace"], &sure[..]].concat()).expect(0);
    assert_eq!(action_of(&replaced, "refs/heads/main"), "replace");
    assert_eq!(action_of(&replaced, "refs/tags/light"), "replace");
    let own = |refs: &str| {
        refs.lines().filter(|line| !line.contains("feature") && !line.contains("pull")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(own(&forge.refs()), own(&captured));
    assert!(forge.refs().contains("refs/heads/feature"));
    // Pull requests are captured when they are asked for.
    document(&world, "gitops", &format!("url: '{target}', refs: [refs/heads/, refs/pull/]"));
    let asked = world.run(BACKUP).expect(0).json();
    assert_eq!(asked["backups"][0]["facts"]["objects"], 4, "{asked}");
    assert_eq!(asked["backups"][0]["facts"]["details"]["refs_not_captured"], "3");
}

#[test]
fn another_repository_is_not_taken_for_this_one() {
    let world = World::local();
    let forge = Forge::new(&world);
    document(&world, "gitops", &format!("url: {}", forge.bare.display()));
    world.run(BACKUP).expect(0);
    let other = World::local();
    let foreign = Forge::empty(&other);
    foreign.commit("README", "something else");
    foreign.push();
    document(&world, "other", &format!("url: {}", foreign.bare.display()));
    restore(&world, "gitops@latest", "other", &["--existing", "replace"]).expect(1).says("another repository is there");
    git(&foreign.clone, &["branch", "-m", "trunk"]);
    git(&foreign.bare, &["branch", "-m", "main", "trunk"]);
    restore(&world, "gitops@latest", "other", &[]).expect(1).says("add --foreign");
    restore(&world, "gitops@latest", "other", &["--foreign"]).expect(0);
    assert_eq!(git(&foreign.bare, &["rev-parse", "main"]), git(&forge.bare, &["rev-parse", "main"]));

    // The forge came back with somebody else's history.
    git(&foreign.bare, &["symbolic-ref", "HEAD", "refs/heads/trunk"]);
    fs::remove_dir_all(&forge.bare).unwrap();
    fs::rename(&foreign.bare, &forge.bare).unwrap();
    let quarantined = world.run(BACKUP).expect(3).json();
    let reasons = quarantined["backups"][0]["reasons"].to_string();
    assert!(reasons.contains("it is another system") && reasons.contains("went back in time"), "{reasons}");
}

#[test]
fn what_a_bundle_does_not_hold_is_said() {
    let world = World::local();
    let forge = Forge::new(&world);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
    fs::create_dir(forge.clone.join("assets")).unwrap();
    fs::write(forge.clone.join("assets/.gitattributes"), "*.png filter=lfs diff=lfs merge=lfs -text\n").unwrap();
    // As a machine without Git LFS leaves it.
    forge.commit("assets/logo.png", pointer);
    let module = "[submodule \"lib\"]\n\tpath = lib\n\turl = https://me:tell-nobody@forge.example.org/lib.git\n";
    forge.commit(".gitmodules", module);
    forge.push();
    document(&world, "gitops", &format!("url: {}", forge.bare.display()));
    let backup = world.run(BACKUP).expect(3);
    let report = backup.json()["backups"][0].clone();
    assert_eq!(report["state"], "incomplete", "{report}");
    let details = &report["facts"]["details"];
    assert_eq!(details["lfs_not_captured"], "the pointer assets/logo.png");
    assert_eq!(details["submodules_not_captured"], "https://forge.example.org/lib.git");
    assert!(!backup.out.contains("tell-nobody") && !backup.err.contains("tell-nobody"));
    let shown = world.as_owner(&["show", "gitops@latest"]).expect(0);
    assert!(shown.out.contains("it uses Git LFS"), "{}", shown.out);
}

#[test]
fn keys_of_sops_must_be_held_somewhere() {
    let world = World::local();
    let forge = Forge::empty(&world);
    let rules = "creation_rules:\n- {path_regex: a, age: age1first}\n- {path_regex: b, pgp: 'FBC7, ABCD'}\n";
    forge.commit("infra/.sops.yaml", rules);
    forge.push();
    document(&world, "gitops", &format!("url: {}", forge.bare.display()));
    let captured = world.run(BACKUP).expect(0).json();
    let details = &captured["backups"][0]["facts"]["details"];
    assert_eq!(details["sops_keys"], "age age1first; pgp ABCD, pgp FBC7", "{details}");
    let lacks =
        "gitops: its .sops.yaml encrypts to keys of which no snapshot holds one (age age1first; pgp ABCD, pgp FBC7)";
    let findings = |arguments: &[&str], code| {
        let ran = world.as_writer(arguments).expect(code);
        ran.out.contains(lacks)
    };
    assert!(findings(&["status"], 0) && findings(&["doctor"], 1));
    let text = fs::read_to_string(world.path("config/source-gitops.yaml")).unwrap();
    let held = text.replace("}}", "}, heldElsewhere: [the platform's people keep them]}");
    world.document("source-gitops.yaml", &held);
    assert!(!findings(&["status"], 0) && !findings(&["doctor"], 0));

    // What cannot be read is no rule, and told.
    forge.commit("infra/.sops.yaml", "creation_rules: [\n");
    forge.push();
    document(&world, "gitops", &format!("url: {}", forge.bare.display()));
    world.run(BACKUP).expect(0);
    let said = world.as_writer(&["status"]).expect(0).out;
    assert!(said.contains("gitops: infra/.sops.yaml is not YAML"), "{said}");
}

#[test]
fn nothing_and_damage_are_errors() {
    let world = World::local();
    let forge = Forge::empty(&world);
    document(&world, "gitops", &format!("url: {}", forge.bare.display()));
    world.run(BACKUP).expect(1).says("holds nothing to capture");
    document(&world, "gitops", "url: /no/such/repository.git");
    world.run(BACKUP).expect(1).says("list the refs at /no/such/repository.git").says("does not appear to be a git");
    let damaged = {
        fs::remove_dir_all(world.path("clone")).unwrap();
        fs::remove_dir_all(world.path("forge")).unwrap();
        Forge::new(&world)
    };
    git(&damaged.bare, &["repack", "-adq"]);
    for object in fs::read_dir(damaged.bare.join("objects/pack")).into_iter().flatten() {
        let path = object.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "pack") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        }
    }
    document(&world, "gitops", &format!("url: {}", damaged.bare.display()));
    world.run(BACKUP).expect(1).says("fetch at");
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
}

#[test]
fn ids_by_sha256_are_kept() {
    let world = World::local();
    let (bare, clone) = (world.path("new.git"), world.path("clone"));
    git(world.home.path(), &["init", "-q", "--bare", "-b", "main", "--object-format=sha256", "new.git"]);
    git(world.home.path(), &["init", "-q", "--object-format=sha256", "clone"]);
    git(&clone, &["remote", "add", "origin", bare.to_str().unwrap()]);
    git(&clone, &["commit", "-q", "--allow-empty", "-m", "first"]);
    git(&clone, &["push", "-q", "origin", "HEAD:main"]);
    document(&world, "gitops", &format!("url: {}", bare.display()));
    world.run(BACKUP).expect(0);
    let there = refs(&bare);
    fs::remove_dir_all(&bare).unwrap();
    restore(&world, "gitops@latest", "gitops", &[]).expect(0);
    assert_eq!(refs(&bare), there);
    world.as_owner(&["export", "gitops@latest", "-o", "exported.bundle"]).expect(0);
    git(world.home.path(), &["clone", "-q", "--mirror", "exported.bundle", "cloned"]);
    assert_eq!(refs(&world.path("cloned")), there);
}

fn spec(path: &Path) -> Spec {
    let refs = ["refs/heads/", "refs/tags/"].map(str::to_owned).into();
    Spec::Git(Git { url: path.display().to_string(), username: "git".into(), token: None, tls: None, ssh: None, refs })
}

#[test]
fn what_is_pushed_between_plan_and_restore_is_kept() {
    let world = World::local();
    let forge = Forge::new(&world);
    let runtime = collect::runtime();
    let mut sink = collect::Collect::default();
    let facts = spec(&forge.bare).open().unwrap().capture(&collect::context(&runtime), &mut sink).unwrap();
    assert_eq!((sink.problems.len(), sink.failure), (0, None));
    let held = collect::Held { facts, entries: sink.entries };
    forge.commit("later.yaml", "later");
    forge.push();
    git(&forge.bare, &["update-ref", "-d", "refs/heads/staging"]);

    let options = Options { existing: Existing::Replace, ..Options::default() };
    let mut target = spec(&forge.bare).target(options).unwrap().unwrap();
    let plan = target.plan(&collect::context(&runtime), &held).unwrap();
    assert!(plan.overwrites() && plan.changes.iter().any(|change| change.action == Action::Create), "{plan:?}");
    // Nobody has seen these when the plan was made.
    forge.commit("latest.yaml", "latest");
    git(&forge.clone, &["push", "-q", "origin", "main", "main:staging"]);
    let latest = forge.refs();
    let applied = target.apply(&collect::context(&runtime), &held, &plan).unwrap();
    for what in ["refs/heads/main", "refs/heads/staging"] {
        let change = applied.changes.iter().find(|change| change.what == what).unwrap();
        assert!(matches!(&change.action, Action::Conflict(why) if why.contains("stale info")), "{change:?}");
    }
    assert_eq!(forge.refs(), latest);
}

#[test]
fn old_mistakes_in_a_history_do_not_keep_it_from_being_captured() {
    let world = World::local();
    let forge = Forge::new(&world);
    let parent = git(&forge.clone, &["rev-parse", "HEAD"]);
    let tree = git(&forge.clone, &["rev-parse", "HEAD^{tree}"]);
    let person = "A <a@example.org 1704067200 +0000";
    let commit = format!("tree {tree}\nparent {parent}\nauthor {person}\ncommitter {person}\n\nmalformed\n");
    fs::write(forge.clone.join(".git/malformed"), commit).unwrap();
    let malformed = git(&forge.clone, &["hash-object", "-t", "commit", "-w", "--literally", ".git/malformed"]);
    git(&forge.clone, &["update-ref", "refs/heads/main", &malformed]);
    forge.push();
    document(&world, "gitops", &format!("url: {}", forge.bare.display()));
    let captured = world.run(BACKUP).expect(0).json();
    let said = captured["backups"][0]["facts"]["details"]["malformed"].to_string();
    assert!(said.contains(&malformed), "{said}");
    let there = forge.refs();
    fs::remove_dir_all(&forge.bare).unwrap();
    restore(&world, "gitops@latest", "gitops", &[]).expect(0);
    assert_eq!(forge.refs(), there);
}

/// A server on a free port, killed at the end.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        support::kill_group(&mut self.child);
    }
}

impl Server {
    fn start(program: &str, arguments: &[&str], port: u16, log: &Path) -> Self {
        let log_file = fs::File::create(log).unwrap();
        let mut command = support::command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log_file.try_clone().unwrap()).stderr(log_file);
        let mut child = command.process_group(0).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{program}: {}", fs::read_to_string(log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port }
    }

    /// What is below `forge`, for whoever has the token.
    fn web(world: &World, tls: bool) -> Self {
        let port = support::free_port();
        let path = |name: &str| world.path(name).display().to_string();
        fs::write(path("passwords"), format!("robot:{TOKEN}\n")).unwrap();
        let mut config = format!(
            "server.modules = (\"mod_auth\", \"mod_authn_file\", \"mod_alias\", \"mod_setenv\", \"mod_cgi\"{})\n\
             server.document-root = \"{}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n\
             auth.backend = \"plain\"\nauth.backend.plain.userfile = \"{}\"\n\
             auth.require = (\"/\" => (\"method\" => \"basic\", \"realm\" => \"git\", \"require\" => \"valid-user\"))\n\
             alias.url = (\"/git\" => \"/usr/lib/git-core/git-http-backend\")\ncgi.assign = (\"\" => \"\")\n\
             setenv.add-environment = (\"GIT_PROJECT_ROOT\" => \"{}\", \"GIT_HTTP_EXPORT_ALL\" => \"1\", \"PATH\" => \"/usr/bin:/bin\")\n",
            if tls { ", \"mod_openssl\"" } else { "" },
            path(""),
            path("passwords"),
            path("forge"),
        );
        if tls {
            etcd::certificates(world.home.path());
            config += &format!(
                "ssl.engine = \"enable\"\nssl.pemfile = \"{}\"\nssl.privkey = \"{}\"\n",
                path("server.pem"),
                path("server.key")
            );
        }
        fs::write(path("lighttpd.conf"), config).unwrap();
        Self::start("/usr/sbin/lighttpd", &["-D", "-f", &path("lighttpd.conf")], port, &world.path("lighttpd.log"))
    }

    fn ssh(world: &World) -> Self {
        let port = support::free_port();
        let home = world.home.path();
        for (name, owner) in [("host", "server"), ("user", "robot"), ("stranger", "nobody")] {
            let mut keygen = support::command("ssh-keygen");
            let made =
                keygen.current_dir(home).args(["-q", "-t", "ed25519", "-N", "", "-C", owner, "-f", name]).status();
            assert!(made.unwrap().success());
        }
        let public = |name: &str| fs::read_to_string(home.join(name)).unwrap();
        fs::write(home.join("authorized"), public("user.pub")).unwrap();
        fs::write(home.join("known"), format!("[127.0.0.1]:{port} {}", public("host.pub"))).unwrap();
        fs::write(home.join("mistaken"), format!("[127.0.0.1]:{port} {}", public("user.pub"))).unwrap();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n",
            home.display()
        );
        fs::write(home.join("sshd.conf"), config).unwrap();
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let config = home.join("sshd.conf");
        Self::start("/usr/sbin/sshd", &["-D", "-e", "-f", config.to_str().unwrap()], port, &home.join("sshd.log"))
    }
}

#[test]
fn over_https_with_a_token() {
    let world = World::local();
    let forge = Forge::new(&world);
    let server = Server::web(&world, true);
    git(&forge.bare, &["config", "http.receivepack", "true"]);
    fs::write(world.path("token"), format!("{TOKEN}\n")).unwrap();
    fs::write(world.path("wrong"), "incorrect-pony\n").unwrap();
    let (home, url) =
        (world.home.path().display(), format!("https://127.0.0.1:{}/git/platform/gitops.git", server.port));
    let ca = |name: &str| format!("tls: {{ca: {home}/{name}}}");
    let with = |token: &str, ca: &str| format!("url: '{url}', username: robot, token: {{file: {home}/{token}}}, {ca}");
    document(&world, "gitops", &with("token", &ca("ca.pem")));
    let doctor = world.as_writer(&["doctor"]);
    assert!(doctor.out.contains("5 refs, HEAD is refs/heads/main"), "{} {}", doctor.out, doctor.err);
    let said = world.run(BACKUP).expect(0);
    assert!(!said.out.contains(TOKEN) && !said.err.contains(TOKEN));

    let there = forge.refs();
    fs::remove_dir_all(&forge.bare).unwrap();
    fs::create_dir(&forge.bare).unwrap();
    git(&forge.bare, &["init", "-q", "--bare", "-b", "trunk"]);
    let restored = restore(&world, "gitops@latest", "gitops", &[]).expect(0);
    assert!(restored.out.contains("make main the default branch"), "{}", restored.out);
    git(&forge.bare, &["symbolic-ref", "HEAD", "refs/heads/main"]);
    assert_eq!(forge.refs(), there);

    let refused = |fields: &str, text: &str| {
        document(&world, "gitops", fields);
        let failed = world.run(BACKUP).expect(1);
        failed.says(text).says(&format!("127.0.0.1:{}", server.port));
        for secret in [TOKEN, "incorrect-pony"] {
            assert!(!failed.err.contains(secret) && !failed.out.contains(secret), "{}", failed.err);
        }
    };
    refused(&with("wrong", &ca("ca.pem")), "denied access");
    refused(&format!("url: '{url}', {}", ca("ca.pem")), "denied access");
    refused(&with("token", &ca("other-ca.pem")), "certificate");
    refused(&with("token", &ca("ca.pem")).replace("gitops.git", "nothing.git"), "not found");
    assert_eq!(world.numbers("gitops"), [1]);
}

#[test]
fn a_server_that_falls_half_way_leaves_no_snapshot() {
    let world = World::local();
    let forge = Forge::new(&world);
    let server = Server::web(&world, false);
    assert!(forge.bare.exists());
    fs::write(world.path("token"), TOKEN).unwrap();
    let fields = |port: u16| {
        let token = world.path("token");
        format!(
            "url: 'http://127.0.0.1:{port}/git/platform/gitops.git', username: robot, token: {{file: {}}}",
            token.display()
        )
    };
    // The refs are listed on the first connection, and fetched on the second.
    document(&world, "gitops", &fields(proxy::second_interrupted(server.port, 500_000, || false)));
    world.run(BACKUP).expect(1).says("fetch at http://127.0.0.1");
    let gone = support::free_port();
    document(&world, "gitops", &fields(gone));
    world.run(BACKUP).expect(1).says("list the refs at");
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
    document(&world, "gitops", &fields(server.port));
    world.run(BACKUP).expect(0);
}

#[test]
fn over_ssh_with_a_key() {
    let world = World::local();
    let forge = Forge::new(&world);
    let server = Server::ssh(&world);
    let home = world.home.path().display();
    let who = support::command("id").arg("-un").output().unwrap();
    let who = String::from_utf8(who.stdout).unwrap().trim().to_owned();
    let url = format!("ssh://{who}@127.0.0.1:{}{}", server.port, forge.bare.display());
    let with = |key: &str, known: &str| format!("url: '{url}', ssh: {{key: {home}/{key}, knownHosts: {home}/{known}}}");
    document(&world, "gitops", &with("user", "known"));
    world.run(BACKUP).expect(0);
    let there = forge.refs();
    git(&forge.bare, &["update-ref", "-d", "refs/heads/staging"]);
    let restored = restore(&world, "gitops@latest", "gitops", &[]).expect(0);
    assert_eq!(action_of(&restored, "refs/heads/staging"), "create");
    assert_eq!(forge.refs(), there);

    document(&world, "gitops", &with("stranger", "known"));
    world.run(BACKUP).expect(1).says("denied access").says("Permission denied");
    document(&world, "gitops", &with("user", "mistaken"));
    world.run(BACKUP).expect(1).says("Host key verification failed");
    assert_eq!(world.numbers("gitops"), [1]);
}
