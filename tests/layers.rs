//! An import points downwards only, as the diagram in `src/lib.rs` says. Unit tests are held to it like the rest; tests
//! that put layers together are files of their own here.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use syn::visit::{self, Visit};
use syn::{ItemMod, ItemUse, Macro, UseTree};

/// Modules of one row do not know each other.
const ROWS: [&[&str]; 7] = [
    &["entry", "id"],
    &["store", "exec", "secret"],
    &["repo", "source", "policy"],
    &["backup", "restore"],
    &["drill"],
    &["config", "agent"],
    &["cli"],
];

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Finds the paths that leave a file's top-level module.
struct Imports {
    /// How many modules the current place is below the crate's root.
    depth: usize,
    found: BTreeSet<String>,
}

impl Imports {
    /// Takes a path as it is written, `crate::…` or `super::…` at its front.
    fn note(&mut self, path: &[String]) {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let from_root = match path.first().map(String::as_str) {
            Some("crate") => &path[1..],
            Some("super") if supers >= self.depth => &path[supers..],
            _ => return,
        };
        // Everything at the root is a module; naming the root itself would hide which.
        self.found.insert(from_root.first().map_or("the whole crate", String::as_str).to_owned());
    }

    fn tree(&mut self, before: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(before, &path.tree);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
            UseTree::Name(name) => self.end(before, &name.ident.to_string()),
            UseTree::Rename(rename) => self.end(before, &rename.ident.to_string()),
            UseTree::Glob(_) => self.note(before),
        }
    }

    fn end(&mut self, before: &[String], name: &str) {
        let mut path = before.to_vec();
        if name != "self" {
            path.push(name.to_owned());
        }
        self.note(&path);
    }
}

impl<'a> Visit<'a> for Imports {
    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.tree(&mut Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        // A lone `crate` or `super` is a visibility.
        if parts.len() > 1 {
            self.note(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        self.depth += 1;
        visit::visit_item_mod(self, module);
        self.depth -= 1;
    }

    fn visit_macro(&mut self, called: &'a Macro) {
        let text = called.tokens.to_string();
        let text = text.split_whitespace().collect::<String>();
        for path in text.split(|c: char| c != ':' && c != '_' && !c.is_alphanumeric()) {
            let parts: Vec<_> = path.split("::").map(str::to_owned).collect();
            if parts.len() > 1 {
                self.note(&parts);
            }
        }
        visit::visit_macro(self, called);
    }
}

/// What a file imports against the rows. `path` is relative to `src`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let parts: Vec<_> = path.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect();
    let module = parts[0];
    let Some(own) = row(module) else {
        return vec![format!("{path}: the module {module} is in no row of tests/layers.rs")];
    };
    let syntax = syn::parse_file(text).unwrap_or_else(|why| panic!("parse {path}: {why}"));
    let mut imports = Imports { depth: parts.len(), found: BTreeSet::new() };
    imports.visit_file(&syntax);
    let bad = imports.found.iter().filter(|found| *found != module && row(found).is_none_or(|row| row >= own));
    bad.map(|found| format!("{path}: {module} must not import {found}")).collect()
}

fn walk(directory: &Path, below: &str, each: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), &format!("{name}/"), each);
        } else if Path::new(&name).extension().is_some_and(|e| e == "rs") {
            each(&name, &fs::read_to_string(entry.path()).unwrap());
        }
    }
}

#[test]
fn imports_point_downwards() {
    let mut found = Vec::new();
    let mut files = 0;
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut |path, text| {
        files += 1;
        if !matches!(path, "lib.rs" | "main.rs") {
            found.extend(violations(path, text));
        }
    });
    assert!(files > 20, "only {files} files were read");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn forbidden_imports_are_found() {
    let in_source = [
        "use crate::repo::Repository;",
        "use crate::{id::SourceName, repo::{self, Lineage}};",
        "pub(crate) use crate::repo as hidden;",
        "fn f() { crate::repo::open() }",
        "fn f(x: &crate::repo::Root) {}",
        "impl crate::repo::Sink for u8 {}",
        "fn f() { use crate::repo::Root; }",
        "fn f() { vec![1, crate::repo::open()] }",
        "fn f() { println!(\"{}\", super::repo::NAME) }",
        "mod a { mod b { use crate::repo::Root; } }",
        "mod a { use super::super::repo::Root; }",
        "use super::repo::Root;",
        "#[cfg(test)] mod tests { use super::*; use crate::repo::Root; }",
        "#[cfg(test)] use crate::repo;",
    ];
    for text in in_source {
        assert_eq!(violations("source/mod.rs", text), ["source/mod.rs: source must not import repo"], "{text}");
        let deeper = text.replace("super::repo", "super::super::repo");
        assert_eq!(violations("source/etcd.rs", &deeper), ["source/etcd.rs: source must not import repo"], "{deeper}");
    }
    for (path, text, expected) in [
        ("policy/tier.rs", "use crate::config::Config;", "policy must not import config"),
        ("backup.rs", "use crate::restore;", "backup must not import restore"),
        ("restore/plan.rs", "use crate::agent::Agent;", "restore must not import agent"),
        ("exec.rs", "use crate::*;", "exec must not import the whole crate"),
        ("exec.rs", "use crate::{self as root};", "exec must not import the whole crate"),
        ("exec.rs", "use crate::common::x;", "exec must not import common"),
        ("common.rs", "", "the module common is in no row of tests/layers.rs"),
    ] {
        assert_eq!(violations(path, text), [format!("{path}: {expected}")], "{text}");
    }
}

#[test]
fn other_imports_are_fine() {
    for text in [
        "use crate::{exec, secret::SecretRef, id::SourceName, entry::*};",
        "use crate::source::etcd::Spec;",
        "use super::Spec; use super::files;",
        "mod a { use super::repo; use super::super::files; }",
        "pub(crate) fn f() {} pub(super) fn g() { repo::open() }",
        "fn f() { println!(\"crate\"); }",
        "use other::repo::Root;",
    ] {
        assert_eq!(violations("source/etcd.rs", text), [""; 0], "{text}");
    }
    assert_eq!(violations("cli/backup.rs", "use crate::{config, agent, drill, repo, policy, id};"), [""; 0]);
}
