//! Two backups of one source at the same moment, by two processes that know nothing of each other.

use crate::support::picture::picture;
use crate::support::world::{World, finish, made, noise};
use crate::support::{Bucket, bucket, command, minio, versitygw};
use std::fs;

fn two_at_once(world: &World) {
    for number in 0..200 {
        world.file(&format!("shared/{number}"), noise(number, 4000));
    }
    world.backup();
    let mut expected = 1;
    for round in 0..3 {
        world.file("shared/large", noise(1000 + round, 6 << 20));
        let other = world.path("other");
        let copied = command("cp").args(["-a", "tree", "other"]).current_dir(world.home.path()).status();
        assert!(copied.unwrap().success());
        fs::write(other.join("mark"), format!("the other's {round}")).unwrap();
        world.file("mark", format!("the one's {round}"));
        let pictures = [picture(&world.path("tree")), picture(&other)];
        let backup = |tree: &str| {
            let arguments = ["--writer-key", "writer.key", "backup", "--files", tree, "--name", "docs", "--json"];
            world.program(&arguments).spawn().unwrap()
        };
        let both = [backup("tree"), backup("other")].map(|child| finish(child).expect(0));
        let numbers = both.map(|ran| made(&ran).number);
        let mut sorted = numbers;
        sorted.sort_unstable();
        assert_eq!(sorted, [expected + 1, expected + 2]);
        expected += 2;
        for (number, picture) in numbers.iter().zip(&pictures) {
            world.assert_restores(*number, picture);
        }
        fs::remove_dir_all(other).unwrap();
    }
    world.assert_sound();
    assert_eq!(world.numbers("docs"), (1..=expected).collect::<Vec<_>>());
}

#[test]
fn two_backups_into_a_directory_at_once_both_count() {
    two_at_once(&World::local());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_backups_into_a_bucket_at_once_both_count() {
    let minio = minio();
    two_at_once(&World::bucket(&bucket(&minio, "twice", Bucket::Locked).await, 1));
    let versitygw = versitygw(false);
    two_at_once(&World::bucket(&bucket(&versitygw, "twice", Bucket::Plain).await, 1));
}
