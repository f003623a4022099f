//! The rules of the code base that no compiler checks. See ARCHITECTURE.md for their reasons.

#![allow(clippy::expect_used, reason = "a tree that cannot be read fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Which top-level modules the code of each module may name, tests aside. `ARCHITECTURE.md` holds the same table in words.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("machine", &[]),
    ("metric", &[]),
    ("image", &["error"]),
    ("noise", &["image"]),
    ("head", &["image", "error"]),
    ("spec", &["image", "head"]),
    ("model", &["spec", "head", "image", "error"]),
    ("model/families", &["model", "spec", "head", "image", "error", "machine", "torch", "decode"]),
    ("decode", &["model", "spec", "error", "machine", "torch"]),
    ("torch", &["model", "spec", "error"]),
    ("repository", &["model", "spec", "head", "noise", "image", "error"]),
    ("import", &["repository", "model", "spec", "error"]),
    ("job", &["model", "spec", "head", "image", "error"]),
    ("sched", &["job", "model", "image"]),
    ("engine", &["sched", "job", "model", "spec", "head", "noise", "image", "error", "machine", "metric"]),
    ("fleet", &["engine", "repository", "model", "spec", "image", "error", "machine"]),
    ("security", &["error"]),
    ("config", &["engine", "job", "model", "spec", "error", "machine", "rpc", "security"]),
    ("telemetry", &["config", "metric"]),
    (
        "rpc",
        &[
            "fleet", "engine", "job", "model", "spec", "head", "noise", "image", "error", "metric", "machine",
            "security",
        ],
    ),
];

/// Libraries that belong to one room.
const KEPT_IN: &[(&str, &[&str])] = &[
    ("tch::", &["src/torch/", "src/decode/", "src/model/families/", "tests/conformance/traced.rs"]),
    ("tonic::", &["src/rpc/", "src/cli/", "build.rs", "tests/it/", "tests/otlp.rs"]),
    ("rustls::", &["src/security/", "src/rpc/connection.rs"]),
    ("prost::", &["src/rpc/", "src/cli/", "build.rs", "tests/it/"]),
];

const LONGEST_FILE: usize = 600;

fn sources(below: &str) -> Vec<(String, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("readable directory") {
            let path = entry.expect("readable entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join(below), &mut found);
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        (name, fs::read_to_string(path).expect("readable source"))
    };
    let mut sources: Vec<_> = found.into_iter().map(read).collect();
    sources.sort();
    assert!(!sources.is_empty(), "{below} holds no sources");
    sources
}

fn everything() -> Vec<(String, String)> {
    ["src", "tests"].into_iter().flat_map(sources).collect()
}

/// The lines of a file that are code of the product: tests and comments left out.
fn product_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let product = text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(product, _)| product);
    product.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(n, line)| (n + 1, line))
}

fn names_after<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let word = |rest: &'a str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    line.match_indices(prefix).map(move |(at, _)| word(&line[at + prefix.len()..]))
}

#[test]
fn modules_name_only_those_they_may() {
    let mut faults = Vec::new();
    for (file, text) in sources("src") {
        let place = file.trim_start_matches("src/").trim_end_matches(".rs");
        let rule =
            MAY_NAME.iter().rev().find(|(module, _)| place == *module || place.starts_with(&format!("{module}/")));
        // The composition root and the command line may name everything.
        let Some((module, allowed)) = rule else {
            let root = place.split('/').next().unwrap_or_default();
            assert!(["lib", "main", "app", "cli"].contains(&root), "{file} belongs to no module of the table");
            continue;
        };
        if file.ends_with("tests.rs") || file.ends_with("scripted.rs") {
            continue;
        }
        let own = module.split('/').next().unwrap_or_default();
        for (number, line) in product_lines(&text) {
            for named in names_after(line, "crate::").filter(|named| *named != own && !allowed.contains(named)) {
                faults.push(format!("{file}:{number}: {module} must not name {named}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut faults = Vec::new();
    for (file, text) in everything().into_iter().filter(|(file, _)| file != "tests/tidy.rs") {
        for (number, line) in product_lines(&text) {
            for (library, rooms) in KEPT_IN {
                let named = line
                    .match_indices(library)
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
                if named && !rooms.iter().any(|room| file.starts_with(room)) {
                    faults.push(format!("{file}:{number}: {library} belongs in {rooms:?}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_says_what_it_owns_and_is_not_too_long() {
    for (file, text) in everything() {
        assert!(text.starts_with("//!"), "{file} has no //! header");
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{file} has {lines} lines, at most {LONGEST_FILE}: split it by noun");
    }
}

#[test]
fn tests_neither_hide_nor_sleep() {
    for (file, text) in everything().into_iter().filter(|(file, _)| file != "tests/tidy.rs") {
        for (number, line) in text.lines().enumerate() {
            assert!(!line.contains("#[ignore"), "{file}:{}: a test that does not run", number + 1);
            let sleeps =
                line.contains("sleep(") && !line.contains("sleep_until(") && !line.trim_start().starts_with("//");
            assert!(!sleeps, "{file}:{}: wait for a condition instead of sleeping", number + 1);
        }
    }
}

#[test]
fn the_architecture_fits_on_a_few_pages() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    assert!(text.lines().count() <= 250);
    for (module, _) in MAY_NAME {
        assert!(text.contains(&format!("`{module}`")), "ARCHITECTURE.md says nothing of {module}");
    }
}

#[test]
fn what_the_document_on_security_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/SECURITY.md")).expect("docs/SECURITY.md");
    let example = fs::read_to_string(root.join("deploy/config.example.toml")).expect("the example");
    let code: String = everything().into_iter().map(|(_, text)| text).collect();
    let (mut tests, mut keys) = (0, 0);
    for word in text.split('`').skip(1).step_by(2) {
        if word.matches('_').count() > 3
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            assert!(code.contains(&format!("fn {word}(")), "there is no test {word}");
            tests += 1;
        }
        let sections = ["server", "auth", "limits", "engine", "models", "metrics"];
        if let Some((section, key)) = word
            .rsplit_once('.')
            .filter(|(section, _)| sections.contains(&section.split('.').next().unwrap_or_default()))
        {
            let named = example.contains(&format!("\n{key} = ")) || example.contains(&format!("\n[{section}.{key}]"));
            assert!(named, "there is no setting {word}");
            keys += 1;
        }
    }
    assert!(tests > 20 && keys > 20, "{tests} tests and {keys} settings");
}
