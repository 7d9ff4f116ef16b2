//! `init` killed around the moment when the repository comes to be: never one that nobody has keys for.

use crate::support::world::{World, finish, kill};
use crate::support::{Bucket, Server, bucket, client, minio};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_mins(1);

/// What does not pass, of the first request that creates an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Request,
    Answer,
}

/// A way to a server on which something is held back for ever.
struct Gate {
    port: u16,
    reached: Receiver<()>,
}

impl Gate {
    fn to(server: &Server, hold: Hold) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), server.port);
        let (tell, reached) = sync_channel(16);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { return };
                let tell = tell.clone();
                std::thread::spawn(move || pass(near, far, hold, &tell));
            }
        });
        Self { port, reached }
    }

    fn wait(&self) {
        self.reached.recv_timeout(DEADLINE).unwrap();
    }
}

/// One question, one answer, until a connection ends.
fn pass(mut near: TcpStream, mut far: TcpStream, hold: Hold, told: &SyncSender<()>) {
    let mut answers = far.try_clone().unwrap();
    let mut back = near.try_clone().unwrap();
    let (creating, is_creating) = sync_channel(16);
    let told_too = told.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n @ 1..) = answers.read(&mut buffer) {
            let interim = buffer.starts_with(b"HTTP/1.1 100");
            if !interim && is_creating.try_recv().is_ok() {
                let _ = told_too.send(());
                return;
            }
            if back.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = near.read(&mut buffer) {
        if buffer.starts_with(b"PUT ") {
            if hold == Hold::Request {
                let _ = told.send(());
                // Until the program is gone.
                let _ = near.read(&mut buffer);
                return;
            }
            creating.send(()).unwrap();
        }
        if far.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_kills_init_has_the_keys_of_what_it_made() {
    let minio = minio();
    let mut settings = bucket(&minio, "begun", Bucket::Plain).await;
    for hold in [Hold::Request, Hold::Answer] {
        settings.prefix = format!("{}", hold as u8);
        let gate = Gate::to(&minio, hold);
        let world = World::in_bucket(&settings, 0);
        let direct = fs::read_to_string(world.path("config/repository.yaml")).unwrap();
        let through = direct.replace(&minio.url(), &format!("http://127.0.0.1:{}", gate.port));
        assert_ne!(through, direct);
        world.document("repository.yaml", &through);
        let init = ["init", "--kit", "kit.txt", "--writer-key-out", "writer.key", "--keeper-key-out", "keeper.key"];
        let program = world.program(&init).spawn().unwrap();
        gate.wait();
        kill(program);
        world.document("repository.yaml", &direct);

        let s3 = client(&minio);
        let root = format!("{}/lifeboat.json", settings.prefix);
        let made = s3.head_object().bucket(&settings.bucket).key(root).send().await.is_ok();
        assert_eq!(made, hold == Hold::Answer);
        let kit = fs::read_to_string(world.path("kit.txt")).unwrap();
        for key in ["AGE-SECRET-KEY-", "lifeboat-writer-", "lifeboat-keeper-", "How to restore"] {
            assert!(kit.contains(key), "{key} is not in {kit}");
        }
        // A kit is never written over.
        world.run(&init).expect(2).says("kit.txt exists already");
        assert_eq!(fs::read_to_string(world.path("kit.txt")).unwrap(), kit);
        let second = ["init", "--kit", "second.txt"];
        if made {
            world.run(&second).expect(1).says("there is a repository");
            assert!(!world.path("second.txt").exists());
            world.file("a", "content");
            world.backup();
            world.restored("docs");
            world.as_owner(&["keys", "show-writer"]).expect(0);
        } else {
            world.as_owner(&["snapshots"]).expect(10);
            world.run(&second).expect(0);
            world.run(&["--identity", "second.txt", "keys", "show-writer"]).expect(0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_may_have_come_to_be_keeps_its_kit() {
    let minio = minio();
    let settings = bucket(&minio, "unsure", Bucket::Plain).await;
    let world = World::in_bucket(&settings, 0);
    // An interrupt while the answer is waited for: the keys stay.
    let gate = Gate::to(&minio, Hold::Answer);
    let direct = fs::read_to_string(world.path("config/repository.yaml")).unwrap();
    let through = direct.replace(&minio.url(), &format!("http://127.0.0.1:{}", gate.port));
    world.document("repository.yaml", &through);
    let program = world.program(&["init", "--kit", "kit.txt", "--writer-key-out", "writer.key"]).spawn().unwrap();
    gate.wait();
    let pid = rustix::process::Pid::from_child(&program);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    finish(program).expect(130).says("not known whether").says("kept in kit.txt").says("snapshots; if there is none");
    world.document("repository.yaml", &direct);
    world.file("a", "content");
    world.backup();
    world.restored("docs");
}
