//! People who upload numbered pictures over HTTP until the end, and a list of what was acknowledged to them. By it one tells
//! what a recovery lost, and whether each picture that came back is the one that was sent.

use crate::cluster::wait;
use crate::ledger::{Book, Loss};
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const WIDTH: usize = 64;
/// Between two uploads.
const PAUSE: Duration = Duration::from_millis(100);

pub struct People {
    book: Arc<Mutex<Book>>,
    uploading: Option<JoinHandle<()>>,
}

/// What an application has of the pictures.
#[derive(Debug, Default)]
pub struct Pictures {
    /// Served, and as they were sent.
    pub whole: BTreeSet<u32>,
    /// Numbers of rows that it serves no picture for, with what it says.
    pub torn: BTreeMap<u32, String>,
    /// Files on the volume that no row speaks of.
    pub without_row: BTreeSet<u32>,
}

/// A picture that no other number has.
fn picture(number: u32) -> Vec<u8> {
    let mut bytes = format!("P6 {WIDTH} {WIDTH} 255\n").into_bytes();
    let mut state = u64::from(number) + 1;
    bytes.extend((0..WIDTH * WIDTH * 3).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    }));
    bytes
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy().build().unwrap()
}

/// What it answered, if that was not "kept".
async fn upload(client: &reqwest::Client, site: &str, number: u32) -> Result<(), String> {
    let answer = client.put(format!("{site}/pictures/{number}")).body(picture(number)).send().await;
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    if status == 201 { Ok(()) } else { Err(format!("{status}: {}", answer.text().await.unwrap_or_default())) }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

impl People {
    /// Begin to upload at `site`, with the numbers after `used`, and wait for the first pictures.
    pub fn begin(site: &str, used: u32) -> Self {
        let book = Arc::new(Mutex::new(Book::after(used)));
        let (list, site) = (book.clone(), site.to_owned());
        let uploading = std::thread::spawn(move || {
            run(async {
                let client = client();
                loop {
                    // Not while the picture is under way.
                    let Some(number) = list.lock().unwrap().give() else { return };
                    if upload(&client, &site, number).await.is_ok() {
                        list.lock().unwrap().acknowledge(number);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        });
        let people = Self { book, uploading: Some(uploading) };
        people.go_on(20);
        people
    }

    /// Waits until so many more pictures are acknowledged.
    pub fn go_on(&self, more: usize) {
        let acknowledged = || self.book.lock().unwrap().acknowledged();
        let enough = acknowledged() + more;
        wait(Duration::from_mins(2), "more pictures", || (acknowledged() >= enough).then_some(()));
    }

    pub fn given(&self) -> u32 {
        self.book.lock().unwrap().given()
    }

    /// They leave.
    pub fn end(&mut self) {
        self.book.lock().unwrap().close();
        if let Some(uploading) = self.uploading.take() {
            uploading.join().unwrap();
        }
    }

    /// Every picture that was acknowledged before `moment` is there, none that was begun after `given`.
    pub fn judge(&self, pictures: &Pictures, moment: Timestamp, given: u32) -> Loss {
        self.book.lock().unwrap().judge(&pictures.whole, moment, given)
    }
}

impl Drop for People {
    fn drop(&mut self) {
        self.book.lock().unwrap().close();
    }
}

impl Pictures {
    /// Asks `site` for every picture that it lists; `uploads` is its volume.
    pub fn look(site: &str, uploads: &Path) -> Self {
        let mut found = Self::default();
        let answers = run(async {
            let client = client();
            let list = client.get(format!("{site}/pictures")).send().await.unwrap().error_for_status().unwrap();
            let rows: Vec<(u32, String)> = list.json().await.unwrap();
            let each = stream::iter(rows).map(|(number, _)| {
                let request = client.get(format!("{site}/pictures/{number}")).send();
                async move {
                    let answer = request.await.unwrap();
                    (number, answer.status(), answer.bytes().await.unwrap())
                }
            });
            each.buffered(4).collect::<Vec<_>>().await
        });
        for (number, status, bytes) in answers {
            if status == 200 {
                assert!(bytes == picture(number), "the picture {number} is another one");
                found.whole.insert(number);
            } else {
                found.torn.insert(number, format!("{status}: {}", String::from_utf8_lossy(&bytes)));
            }
        }
        for file in fs::read_dir(uploads).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            // What a restore has moved aside.
            if name.starts_with(".lifeboat-before-") {
                continue;
            }
            let number = name.parse().unwrap_or_else(|_| panic!("{name} among the pictures"));
            if !found.whole.contains(&number) && !found.torn.contains_key(&number) {
                found.without_row.insert(number);
            }
        }
        found
    }
}
