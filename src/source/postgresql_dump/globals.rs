//! Roles and tablespaces, as `pg_dumpall --globals-only` writes them.
//!
//! Invariant: nothing changes a role that is there already: what is brought back are roles that are missing, with their
//! settings and memberships. What differs is told by name, without what it is (a password may be in it).

use std::collections::BTreeSet;

/// What a statement is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum About {
    /// Goes before all others.
    Session,
    Role(String),
    /// Of the first in the second.
    Membership(String, String),
    Tablespace(String),
    Other,
}

#[derive(Debug, Default)]
pub struct Globals(Vec<(About, String)>);

impl Globals {
    pub fn parse(text: &str) -> Self {
        Self(statements(text).into_iter().map(|text| (about(&text), text)).collect())
    }

    /// The roles that are made.
    pub fn roles(&self) -> BTreeSet<&str> {
        self.made("CREATE ROLE ", |about| match about {
            About::Role(name) => Some(name),
            _ => None,
        })
    }

    /// The tablespaces that are made.
    pub fn tablespaces(&self) -> BTreeSet<&str> {
        self.made("CREATE TABLESPACE ", |about| match about {
            About::Tablespace(name) => Some(name),
            _ => None,
        })
    }

    fn made(&self, begin: &str, name: impl Fn(&About) -> Option<&String>) -> BTreeSet<&str> {
        let made = self.0.iter().filter(|(_, text)| text.starts_with(begin));
        made.filter_map(|(about, _)| name(about).map(String::as_str)).collect()
    }

    /// The commands that make the roles that are not in `there`; empty if there are none.
    pub fn missing(&self, there: &BTreeSet<&str>) -> String {
        let lacks = |name: &String| !there.contains(name.as_str());
        let wanted = |about: &About| match about {
            About::Role(name) => lacks(name),
            About::Membership(of, within) => lacks(of) || lacks(within),
            About::Session | About::Tablespace(_) | About::Other => false,
        };
        let commands: Vec<_> = self.0.iter().filter(|(about, _)| wanted(about)).map(|(_, text)| text).collect();
        if commands.is_empty() {
            return String::new();
        }
        let session = self.0.iter().filter(|(about, _)| *about == About::Session).map(|(_, text)| text);
        session.chain(commands).fold(String::new(), |all, text| all + text + ";\n")
    }

    /// The roles of both that are not the same in `server`, and how many other statements that has not. Passwords only
    /// count where both have them.
    pub fn differing(&self, server: &Self, passwords: bool) -> (BTreeSet<&str>, usize) {
        let plain = |text: &str| if passwords { text.to_owned() } else { without_password(text) };
        let has: BTreeSet<_> = server.0.iter().map(|(_, text)| plain(text)).collect();
        let there = server.roles();
        let (mut roles, mut others) = (BTreeSet::new(), 0);
        for (about, _) in self.0.iter().filter(|(_, text)| !has.contains(&plain(text))) {
            match about {
                About::Role(name) if there.contains(name.as_str()) => _ = roles.insert(name.as_str()),
                About::Membership(of, within) if there.contains(of.as_str()) && there.contains(within.as_str()) => {
                    roles.insert(within.as_str());
                }
                About::Other => others += 1,
                About::Role(_) | About::Membership(..) | About::Session | About::Tablespace(_) => {}
            }
        }
        (roles, others)
    }
}

/// A verifier holds no quotes.
fn without_password(text: &str) -> String {
    let Some((before, after)) = text.split_once(" PASSWORD '") else { return text.to_owned() };
    let rest = after.split_once('\'').map_or("", |(_, rest)| rest);
    format!("{before}{rest}")
}

fn about(text: &str) -> About {
    if text.starts_with("SET ") {
        return About::Session;
    }
    for begin in ["CREATE ROLE ", "ALTER ROLE ", "COMMENT ON ROLE "] {
        if let Some((name, _)) = text.strip_prefix(begin).and_then(identifier) {
            return About::Role(name);
        }
    }
    for begin in ["CREATE TABLESPACE ", "ALTER TABLESPACE ", "COMMENT ON TABLESPACE "] {
        if let Some((name, _)) = text.strip_prefix(begin).and_then(identifier) {
            return About::Tablespace(name);
        }
    }
    let membership = text.strip_prefix("GRANT ").and_then(identifier).and_then(|(of, rest)| {
        let (within, _) = rest.strip_prefix(" TO ").and_then(identifier)?;
        Some(About::Membership(of, within))
    });
    membership.unwrap_or(About::Other)
}

/// A name at the beginning, and what follows.
fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(|letter: char| letter.is_whitespace()).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        name += part;
        let Some(more) = after.strip_prefix('"') else { return Some((name, after)) };
        name.push('"');
        rest = more;
    }
}

/// The statements of a script, without comments, commands of psql and the semicolons.
fn statements(text: &str) -> Vec<String> {
    let (mut all, mut one) = (Vec::new(), String::new());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            ';' => all.push(std::mem::take(&mut one)),
            '-' if letters.peek() == Some(&'-') => while letters.next().is_some_and(|next| next != '\n') {},
            '\\' if one.is_empty() => while letters.next().is_some_and(|next| next != '\n') {},
            '\'' | '"' => {
                let escapes = letter == '\'' && one.ends_with('E');
                one.push(letter);
                while let Some(next) = letters.next() {
                    one.push(next);
                    if next == '\\' && escapes {
                        one.extend(letters.next());
                    } else if next == letter {
                        // Twice, it stands for itself.
                        match letters.next_if_eq(&letter) {
                            Some(same) => one.push(same),
                            None => break,
                        }
                    }
                }
            }
            letter if letter.is_whitespace() && one.is_empty() => {}
            letter => one.push(letter),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "--\n-- PostgreSQL database cluster dump; it's\n--\n\n\\restrict k3y\n\n\
        SET default_transaction_read_only = off;\nSET client_encoding = 'UTF8';\n\
        CREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'SCRAM-SHA-256$4096:a==$b=:c=';\n\
        COMMENT ON ROLE app IS E'it''s; a\\' \\\\';\nCREATE ROLE \"odd \"\"; role\";\n\
        ALTER ROLE \"odd \"\"; role\" WITH NOLOGIN;\nGRANT \"odd \"\"; role\" TO app GRANTED BY postgres;\n\
        CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER;\nALTER ROLE postgres SET work_mem TO '7MB';\n\
        CREATE TABLESPACE far OWNER app LOCATION '/far';\nGRANT SET ON PARAMETER work_mem TO app;\n\\unrestrict k3y\n";

    #[test]
    fn only_missing_roles_are_made() {
        let globals = Globals::parse(DUMP);
        assert_eq!(globals.roles(), ["app", "odd \"; role", "postgres"].into());
        assert_eq!(globals.tablespaces(), ["far"].into());
        assert_eq!(globals.missing(&globals.roles()), "");
        assert_eq!(
            globals.missing(&["app", "postgres"].into()),
            "SET default_transaction_read_only = off;\nSET client_encoding = 'UTF8';\nCREATE ROLE \"odd \"\"; role\";\nALTER ROLE \"odd \"\"; role\" WITH NOLOGIN;\n\
             GRANT \"odd \"\"; role\" TO app GRANTED BY postgres;\n"
        );
        let missing = globals.missing(&["postgres"].into());
        assert!(missing.contains("COMMENT ON ROLE app IS E'it''s; a\\' \\\\';\n"), "{missing}");
        assert!(!missing.contains("postgres WITH") && !missing.contains("TABLESPACE"), "{missing}");
    }

    #[test]
    fn what_differs_is_told() {
        let globals = Globals::parse(DUMP);
        assert_eq!(globals.differing(&globals, true), (BTreeSet::new(), 0));
        let other = Globals::parse(&DUMP.replace("c=';", "d=';"));
        assert_eq!(globals.differing(&other, true), (["app"].into(), 0));
        assert_eq!(globals.differing(&other, false), (BTreeSet::new(), 0));
        let other = Globals::parse(&DUMP.replace("GRANT", "-- GRANT").replace("7MB", "8MB"));
        assert_eq!(globals.differing(&other, true), (["app", "postgres"].into(), 1));
        let without = Globals::parse(&DUMP.replace(" PASSWORD 'SCRAM-SHA-256$4096:a==$b=:c='", ""));
        assert_eq!(globals.differing(&without, false), (BTreeSet::new(), 0));
    }
}
