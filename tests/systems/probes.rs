//! What restore plans ask of real servers before they go on.

use crate::support;
use crate::support::collect::{context, runtime};
use crate::support::mariadb;
use crate::support::postgresql::Cluster;
use lifeboat::source::Spec;
use lifeboat::source::probe::Probe;
use serde_json::{Value, json};

fn look(probe: &Value, document: Option<&Spec>) -> Result<String, String> {
    let probe: Probe = serde_json::from_value(probe.clone()).unwrap();
    let runtime = runtime();
    probe.look(&context(&runtime), document).map_err(|error| error.to_string())
}

#[test]
fn postgresql_answers_a_query_and_is_not_changed() {
    let cluster = Cluster::new("host all all 127.0.0.1/32 scram-sha-256", &[]);
    cluster.sql("CREATE ROLE looker LOGIN SUPERUSER PASSWORD 'correct-horse'");
    cluster.sql("CREATE TABLE orders AS SELECT generate_series(1, 500) AS n");
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "correct-horse").unwrap();
    let spec: Spec = serde_json::from_value(json!({ "postgresql": {
        "host": "127.0.0.1", "port": cluster.port, "user": "looker", "password": { "file": password.path() },
    } }))
    .unwrap();
    let ask = |more: Value| {
        let mut sql = json!({ "source": "db", "database": "postgres", "query": "SELECT count(*) FROM orders" });
        sql.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        look(&json!({ "sql": sql }), Some(&spec))
    };
    assert_eq!(ask(json!({ "equals": "500" })).unwrap(), "db: the query answers \"500\"");
    ask(json!({ "atLeast": 500 })).unwrap();
    assert!(ask(json!({ "atLeast": 501 })).unwrap_err().contains("and should at least 501"));
    assert!(ask(json!({ "equals": "499" })).unwrap_err().contains("and should \"499\""));
    assert!(ask(json!({ "query": "SELECT n FROM orders WHERE n = 0" })).unwrap_err().contains("no row"));
    assert!(ask(json!({ "query": "DROP TABLE orders" })).unwrap_err().contains("read-only"));
    assert!(ask(json!({ "database": "nowhere" })).unwrap_err().contains("nowhere"));
    assert_eq!(cluster.sql("SELECT count(*) FROM orders").trim(), "500");
    // A probe for another kind of system.
    assert!(look(&json!({ "redis": { "source": "db", "key": "a" } }), Some(&spec)).unwrap_err().contains("postgresql"));
}

#[test]
fn mariadb_answers_a_query_and_is_not_changed() {
    let server = mariadb::Server::start(&[]);
    server.fill();
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), mariadb::PASSWORD).unwrap();
    let spec: Spec = serde_json::from_value(json!({ "mariadb": {
        "host": "127.0.0.1", "port": server.port, "user": "backup", "password": { "file": password.path() },
    } }))
    .unwrap();
    let ask = |query: &str| look(&json!({ "sql": { "source": "db", "query": query, "equals": "20000" } }), Some(&spec));
    ask("SELECT COUNT(*) FROM shop.goods").unwrap();
    let refused = ask("DROP TABLE shop.goods").unwrap_err();
    assert!(refused.contains("READ ONLY"), "{refused}");
    assert!(ask("DELETE FROM shop.goods").unwrap_err().contains("READ ONLY"));
    ask("SELECT COUNT(*) FROM shop.goods").unwrap();
}

#[test]
fn servers_answer_as_they_should_or_it_is_said_how_not() {
    let server = support::minio();
    let http = |more: Value| {
        let mut http = json!({ "url": format!("{}/minio/health/live", server.url()) });
        http.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        look(&json!({ "http": http }), None)
    };
    assert!(http(json!({})).unwrap().contains("answers 200"));
    assert!(http(json!({ "status": 404 })).unwrap_err().contains("it answers 200 OK, and should 404"));
    assert!(http(json!({ "contains": "pictures" })).unwrap_err().contains("without \"pictures\" in it"));
    // A bucket that may not be seen; the answer is an error, and what was asked for.
    let denied = json!({ "url": format!("{}/bucket/", server.url()), "status": 403, "contains": "AccessDenied" });
    assert!(http(denied).unwrap().contains("answers 403"));
    let tcp = |port: u16| look(&json!({ "tcp": { "address": format!("127.0.0.1:{port}") } }), None);
    tcp(server.port).unwrap();
    drop(server);
    assert!(tcp(support::free_port()).unwrap_err().contains("refused"));
}

#[test]
fn a_program_says_how_it_went() {
    assert_eq!(look(&json!({ "command": ["echo", "well"] }), None).unwrap(), "echo: well");
    let failed = look(&json!({ "command": ["sh", "-c", "echo bad >&2; exit 3"] }), None).unwrap_err();
    assert!(failed.contains("status 3") && failed.contains("bad"), "{failed}");
    assert!(look(&json!({ "command": ["no-such-program"] }), None).unwrap_err().contains("is it installed"));
}
