//! The path of somebody who has never seen this: shares on paper, one page, an empty machine.

use crate::endtoend::recovery;
use crate::support::picture::{Picture, assert_same, picture};
use crate::support::world::{World, finish, noise};
use crate::support::{ACCESS_KEY, Bucket, SECRET_KEY, bucket, minio};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn protected() -> (World, Picture) {
    let world = World::local();
    world.file("a", noise(1, 300_000));
    world.file("d/b", "small");
    world.backup();
    let expected = picture(&world.path("tree"));
    (world, expected)
}

fn shares(world: &World) -> Vec<String> {
    let made = ["kit", "shares", "--threshold", "3", "--shares", "5", "-o", "shares", "--json"];
    let made = world.as_owner(&made).expect(0).json();
    made["shares"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned()).collect()
}

fn check<'a>(files: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["kit", "check"];
    for file in files {
        arguments.extend(["--share", *file]);
    }
    arguments
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_newcomer_restores_with_shares_and_the_page() {
    let (world, expected) = protected();
    let files = shares(&world);
    assert_eq!((files.len(), mode(&world.path("shares"))), (5, 0o700));
    assert!(files.iter().all(|file| mode(&world.path(file)) == 0o600));
    let page = ["kit", "print", "-o", "page.txt", "--holder", "Ada", "--holder", "Grace", "--holder", "Edsger"];
    world.run(&page).expect(0);
    let page = fs::read_to_string(world.path("page.txt")).unwrap();

    // Another machine: three of the shares, the page, the program, and the directory.
    let newcomer = World::without_repository();
    for file in [&files[4], &files[0], &files[2]] {
        let name = Path::new(file).file_name().unwrap();
        fs::copy(world.path(file), newcomer.path(name)).unwrap();
    }
    let typed = |start: &str| {
        let line = page.lines().map(str::trim).find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("{start} is not in {page}")).to_owned()
    };
    let run = |line: &str| {
        let words: Vec<_> = line.split(' ').skip(1).map(|word| word.trim_matches('\'').to_owned()).collect();
        newcomer.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let combine = typed("lifeboat kit combine").replace(
        "--share share-a.txt --share share-b.txt",
        "--share share-5-of-5.txt --share share-1-of-5.txt --share share-3-of-5.txt",
    );
    run(&combine).expect(0);
    assert_eq!(mode(&newcomer.path("identity.txt")), 0o600);
    let page_line = |what: &str| {
        let at = page.lines().position(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {page}"));
        page.lines().nth(at + 1).unwrap().trim().to_owned()
    };
    assert!(run(&page_line("What there is")).expect(0).out.contains("docs"));
    let checked = run(&(page_line("With a recovery kit") + " --json")).expect(0).json();
    assert_eq!((&checked["sources"][0]["ok"], &checked["sources"][0]["bytesRead"]), (&true.into(), &5.into()));
    run(&page_line("One snapshot, into a new directory").replace("SOURCE", "docs").replace("DIRECTORY", "back"))
        .expect(0);
    assert_same(&picture(&newcomer.path("back")), &expected, "what came back");
    run(&page_line("One snapshot, in its system's own format").replace("SOURCE", "docs").replace("FILE", "back.tar"))
        .expect(0);
    assert!(fs::read(newcomer.path("back.tar")).unwrap().len() > 300_000);
}

/// The documents of the agents, on the machine of somebody who has the kit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kit_and_the_environment_stand_in_for_files_that_are_elsewhere() {
    let minio = minio();
    let settings = bucket(&minio, "elsewhere", Bucket::Plain).await;
    let world = World::bucket(&settings, 0);
    world.file("a", noise(1, 300_000));
    world.backup();
    let text = World::bucket_document("main", &settings, 0)
        .replace("{env: TEST_KEY}", "{file: /nonexistent/key}")
        .replace("{env: TEST_SECRET}", "{file: /nonexistent/secret}");
    world.document("repository.yaml", &format!("{text}  writerKey: {{file: /nonexistent/writer-key}}\n"));
    let tree = world.path("back");
    let step = format!("    - name: tree\n      restore: {{source: docs, to: {}}}\n", tree.display());
    world.document("plan.yaml", &recovery::plan("docs", "app", &step));

    let run = |arguments: &[&str]| {
        let mut program = world.program(arguments);
        program.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        finish(program.spawn().unwrap())
    };
    world.as_owner(&["snapshots"]).expect(2).says("/nonexistent/key");
    // An agent's own key is not to be done without.
    run(&["backup", "--files", "tree", "--name", "docs"]).expect(2).says("/nonexistent/writer-key");
    let recovered = run(&["--identity", "kit.txt", "restore", "app", "docs"]).expect(0);
    assert_same(&picture(&tree), &picture(&world.path("tree")), "what came back");
    // The journal was kept too, which takes the writer key.
    assert!(!recovered.err.contains("does not take the journal"), "{}", recovered.err);
    assert!(run(&["--identity", "kit.txt", "restore", "list"]).expect(0).out.contains("docs"));
}

#[test]
fn the_check_says_what_does_not_open() {
    let (world, _) = protected();
    let files = shares(&world);
    let files: Vec<_> = files.iter().map(String::as_str).collect();
    world.run(&check(&files[1..4])).expect(0);
    world.run(&check(&files)).expect(0);
    world.as_owner(&["kit", "check"]).expect(0);
    world.run(&check(&files[..2])).expect(12).says("3 shares are needed, and there are 2: 1, 2");
    world.run(&["kit", "check"]).expect(2).says("--identity FILE");

    // A wrong digit.
    let text = fs::read_to_string(world.path(files[1])).unwrap();
    let line = text.lines().find(|line| line.starts_with("3 ")).unwrap();
    let digit = line.as_bytes()[5];
    let other = if digit == b'0' { "1" } else { "0" };
    let mistyped = format!("{}{other}{}", &line[..5], &line[6..]);
    fs::write(world.path("typed.txt"), text.replace(line, &mistyped)).unwrap();
    let refused = world.run(&check(&[files[0], "typed.txt", files[2]])).expect(12);
    refused.says("typed.txt").says("share 2, line 3").says("paper");
    assert!(!refused.err.contains(&line[3..12]), "a secret in an error: {}", refused.err);

    // Shares of another repository, alone and among ours.
    let (other, _) = protected();
    let theirs = shares(&other);
    let theirs: Vec<_> = theirs.iter().map(|file| other.path(file).display().to_string()).collect();
    let theirs: Vec<_> = theirs.iter().map(String::as_str).collect();
    world.run(&check(&theirs[..3])).expect(12).says("the kit at hand is that of repository");
    world.run(&check(&[files[0], files[1], theirs[2]])).expect(12).says("share 3 is of repository");
    let combine = [&["kit", "combine", "-o", "theirs.txt", "--share"], &theirs[..3]].concat();
    world.run(&combine).expect(0);
    world.run(&["--identity", "theirs.txt", "ls", "docs"]).expect(12).says("the kit at hand");
    // Nothing is overwritten.
    world.run(&combine).expect(2).says("exists already");
    world.as_owner(&["kit", "shares", "--threshold", "2", "--shares", "5", "-o", "shares"]).expect(2).says("exists");
    world.as_owner(&["kit", "shares", "--threshold", "4", "--shares", "3", "-o", "more"]).expect(2);
    assert_eq!(fs::read_dir(world.path("shares")).unwrap().count(), 5);
    // An identity that does not open this repository is not split.
    let foreign = fs::read_to_string(other.path("kit.txt")).unwrap();
    let foreign = foreign.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    fs::write(world.path("foreign.txt"), foreign).unwrap();
    let split = ["--identity", "foreign.txt", "kit", "shares", "--threshold", "2", "--shares", "3", "-o", "none"];
    world.run(&split).expect(12);
    assert!(!world.path("none").exists());

    // A source whose newest snapshot does not read is named, and the others are not hidden by it.
    world.run(&["--writer-key", "writer.key", "backup", "--files", "tree/d", "--name", "other"]).expect(0);
    for pack in world.objects("docs/packs") {
        world.tamper(&pack, |bytes| bytes.iter_mut().skip(30).step_by(100).for_each(|byte| *byte ^= 1));
    }
    let report = world.as_owner(&["kit", "check", "--json"]).expect(3).json();
    assert_eq!((&report["sources"][0]["ok"], &report["sources"][1]["ok"]), (&false.into(), &true.into()), "{report}");
    assert!(report["sources"][0]["because"].to_string().contains("docs/packs/"), "{report}");
}

#[test]
fn the_page_is_html_that_stands_alone() {
    let (world, _) = protected();
    world.schedule("1h", "{last: 1}");
    let step = "{name: a, restore: {source: docs, to: /restored}}";
    let plan =
        "apiVersion: lifeboat.dev/v1\nkind: RestorePlan\nmetadata: {name: far}\nspec: {level: region, steps: [STEP]}\n";
    world.document("plan.yaml", &plan.replace("STEP", step));
    let holder = "<img src=x onerror='alert(1)'> & co";
    world.run(&["kit", "print", "--format", "html", "-o", "page.html", "--holder", holder]).expect(0);
    let page = fs::read_to_string(world.path("page.html")).unwrap();
    assert!(page.contains("&lt;img src=x onerror=&#39;alert(1)&#39;&gt; &amp; co") && !page.contains("<img"), "{page}");
    let id = world.run(&["status", "--json"]).json()["repository"].as_str().unwrap().to_owned();
    for text in [&id, "docs@1", "files", "standard", "restore region far", "file://", "kit combine"] {
        assert!(page.contains(text), "{text} is not in {page}");
    }
    for loaded in ["<script", "<link", "src=\"", "url("] {
        assert!(!page.contains(loaded), "{loaded}");
    }
    for key in ["AGE-SECRET", "lifeboat-writer-", "lifeboat-keeper-"] {
        assert!(!page.contains(key), "{key}");
    }
    world.run(&["kit", "print", "-o", "kit.txt"]).expect(2).says("exists already");
}
