//! The rules of the house, kept by a test: arrows, sizes, purity, unsafe, plain comments, forgotten files.
//!
//! What is checked is text formatted by rustfmt, so an indented closing brace ends what opened at the same indent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A file one can read in a sitting: lines of code, without comments, blank lines and tests.
const FILE_LINES_MAX: usize = 500;

/// A function one can see at once.
const FUNCTION_LINES_MAX: usize = 70;

/// Files and functions over the bounds. This list may only shrink.
const EXCEPTIONS: &[&str] = &[];

/// Which modules each module may use. What is not listed may use `chunk` and `proto` only.
const ARROWS: &[(&str, &[&str])] = &[
    ("chunk", &[]),
    ("proto", &["chunk"]),
    ("lock", &["proto"]),
    ("prefetch", &["chunk"]),
    ("metrics", &[]),
    ("io", &["chunk"]),
    ("transport", &["chunk", "proto", "io"]),
    ("cache", &["chunk", "proto", "io"]),
    ("client", &["chunk", "proto", "transport", "lock"]),
    ("metadata_cache", &["chunk", "proto", "cache", "client"]),
    ("fetch", &["chunk", "proto", "cache", "client", "prefetch"]),
    ("fs", &["chunk", "proto", "fetch", "prefetch", "client", "cache", "lock"]),
    ("fuse", &["chunk", "proto", "fs"]),
    ("host", &["chunk", "proto", "transport", "io", "lock"]),
    ("control", &["chunk", "proto", "io", "metrics"]),
    (
        "config",
        &["chunk", "proto", "transport", "io", "fs", "fuse", "cache", "client", "fetch", "host", "mount"],
    ),
    (
        "mount",
        &[
            "chunk",
            "proto",
            "config",
            "fuse",
            "fs",
            "fetch",
            "cache",
            "client",
            "metadata_cache",
            "transport",
            "io",
            "control",
            "metrics",
        ],
    ),
    ("cli", &["*"]),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Pure modules and files: bytes and `now` in, values out.
const PURE: &[&str] = &["src/chunk/", "src/proto/", "src/prefetch/", "src/lock/"];

/// A file is pure, too, when its module doc says so with one of these marks.
const PURE_MARKS: [&str; 2] = ["(P)", "Pure:"];

/// Folders and files whose comments hold the rules of plain words. This list may only grow.
#[rustfmt::skip]
const PLAIN: &[&str] = &[
    "mount-helper/",
    "src/cache/",
    "src/chunk/",
    "src/client/",
    "src/config/",
    "src/fetch/",
    "src/fuse/",
    "src/io/",
    "src/lock/",
    "src/metadata_cache/",
    "src/mount/",
    "src/prefetch/",
    "src/transport/",
];

/// Longest line of a comment, in columns.
const COMMENT_COLUMNS_MAX: usize = 110;

/// Most occurrences of "what" and "who" in 1,000 words of comment, in each entry of [`PLAIN`].
const RIDDLES_PER_MILLE_MAX: usize = 4;

/// Words with which no doc comment begins. It begins with the thing it documents or with a verb.
const QUESTION_WORDS: &[&str] =
    &["What", "Who", "Whose", "Whom", "Whether", "How", "When", "Where", "Why", "Which"];

/// What a pure file may not touch.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::net",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "std::process",
    "std::io::",
];

struct Source {
    /// Path from the repository's root.
    name: String,
    text: String,
    is_test: bool,
}

impl Source {
    /// The lines in front of the tests module, numbered from 1.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self
            .text
            .lines()
            .collect::<Vec<_>>()
            .windows(2)
            .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{'))
            .unwrap_or(usize::MAX);
        self.text.lines().take(end).enumerate().map(|(i, line)| (i + 1, line))
    }

    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.product_lines().filter(|(_, line)| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with("//")
        })
    }

    /// Whether the whole file is a test: it lies under `tests/` or `benches/`, or its parent includes it under `cfg(test)`.
    fn is_test(&self) -> bool {
        self.is_test
    }

    /// Paths, without `.rs`, of the modules which this file includes for tests only.
    fn test_modules(&self) -> Vec<String> {
        let folder = self
            .name
            .strip_suffix("mod.rs")
            .map_or_else(|| format!("{}/", self.name.trim_end_matches(".rs")), str::to_owned);
        let lines: Vec<&str> = self.text.lines().collect();
        let names = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
            pair[1].trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';')
        });
        names.map(|name| format!("{folder}{name}")).collect()
    }

    fn is_pure(&self) -> bool {
        let doc_says_so = self
            .text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .any(|line| PURE_MARKS.iter().any(|mark| line.contains(mark)));
        doc_says_so || PURE.iter().any(|prefix| self.name.starts_with(prefix))
    }

    /// First component below `src/`, or the file's own name there.
    fn module(&self) -> Option<&str> {
        let below = self.name.strip_prefix("src/")?;
        Some(below.split(['/', '.']).next().expect("split gives at least one part"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            let is_test = name.starts_with("tests/")
                || name.starts_with("mount-helper/tests/")
                || name.starts_with("benches/");
            sources.push(Source { name, text: fs::read_to_string(&path).unwrap(), is_test });
        }
    }
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["src", "mount-helper", "tests", "benches"] {
        collect(&root().join(folder), &mut sources);
    }
    assert!(sources.len() > 20, "the sources were not found");
    let test_modules: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let path = source.name.trim_end_matches(".rs");
        source.is_test |=
            test_modules.iter().any(|module| path == module || path.starts_with(&format!("{module}/")));
    }
    sources
}

fn fail_with(findings: Vec<String>) {
    let (mut text, count) = (String::new(), findings.len());
    for finding in findings {
        writeln!(text, "  {finding}").unwrap();
    }
    assert!(count == 0, "{count} findings:\n{text}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//!"));
    fail_with(silent.map(|source| format!("{}: does not begin with //!", source.name)).collect());
}

#[test]
fn arrows_go_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let Some(module) = source.module() else { continue };
        let Some(allowed) = allowed.get(module) else {
            findings.push(format!("{}: module {module} is not in the table of arrows", source.name));
            continue;
        };
        for (number, line) in source.code_lines() {
            for used in modules_used(line) {
                if used != module && !allowed.contains(&used) && !allowed.contains(&"*") {
                    findings.push(format!("{}:{number}: {module} may not use {used}", source.name));
                }
            }
        }
    }
    fail_with(findings);
}

/// The modules of this crate that a line names behind `crate::`, also in braces.
fn modules_used(line: &str) -> BTreeSet<&str> {
    let mut used = BTreeSet::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => group.split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in names {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            if name[..end].chars().next().is_some_and(char::is_lowercase) {
                used.insert(&name[..end]);
            }
        }
    }
    used
}

#[test]
fn files_can_be_read_in_a_sitting() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| !EXCEPTIONS.contains(&source.name.as_str())) {
        let lines = source.code_lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!("{}: {lines} lines of code, at most {FILE_LINES_MAX}", source.name));
        }
    }
    fail_with(findings);
}

#[test]
fn functions_can_be_seen_at_once() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| !EXCEPTIONS.contains(&source.name.as_str())) {
        for (name, number, length) in functions(&source.text) {
            if length > FUNCTION_LINES_MAX {
                findings.push(format!(
                    "{}:{number}: fn {name} has {length} lines, at most {FUNCTION_LINES_MAX}",
                    source.name
                ));
            }
        }
    }
    fail_with(findings);
}

/// Name, first line and length of each function.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let Some(at) = trimmed.find("fn ") else { continue };
        let before_is_keywords = trimmed[..at].split_whitespace().all(|word| {
            word.starts_with("pub")
                || ["async", "const", "unsafe", "extern"].contains(&word)
                || word.starts_with("in")
                || word.starts_with('"')
        });
        if !before_is_keywords || trimmed.ends_with(';') || trimmed.ends_with('}') {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        let Some(length) = lines[start..].iter().position(|line| *line == closing) else { continue };
        let name = trimmed[at + 3..].split(['(', '<']).next().unwrap_or_default();
        found.push((name.to_owned(), start + 1, length + 1));
    }
    found
}

#[test]
fn pure_files_are_pure() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.is_pure() && !source.is_test()) {
        for (number, line) in source.code_lines() {
            for impure in IMPURE.iter().filter(|impure| line.contains(**impure)) {
                // An error number's words come from the standard library.
                if !line.contains("std::io::Error::from_raw_os_error") {
                    findings.push(format!("{}:{number}: a pure file touches {impure}", source.name));
                }
            }
        }
    }
    fail_with(findings);
}

#[test]
fn unsafe_stays_in_its_room_and_says_why() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.name != "tests/tidy.rs") {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|form| code.contains(form));
            if !is_unsafe {
                continue;
            }
            // A benchmark may, to measure what the product does not do.
            if !source.name.starts_with("src/io/") && !source.name.starts_with("benches/") {
                findings.push(format!("{}:{}: unsafe outside src/io", source.name, number + 1));
            }
            let above = lines[number.saturating_sub(8)..number].iter();
            if !above.clone().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                findings.push(format!("{}:{}: unsafe without SAFETY", source.name, number + 1));
            }
        }
    }
    fail_with(findings);
}

#[test]
fn comments_are_plain() {
    let sources = sources();
    let mut findings = Vec::new();
    for room in PLAIN {
        let mut counts = CommentCounts::default();
        let files: Vec<&Source> = sources.iter().filter(|source| source.name.starts_with(room)).collect();
        if files.is_empty() {
            findings.push(format!("{room}: there is no such room"));
        }
        for source in files {
            for (number, finding) in check_comments(&source.text, &mut counts) {
                findings.push(format!("{}:{number}: {finding}", source.name));
            }
        }
        if counts.has_too_many_riddles() {
            findings.push(format!("{room}: {counts:?}, at most {RIDDLES_PER_MILLE_MAX} in 1,000 words"));
        }
    }
    fail_with(findings);
}

/// Counts over the comments of a room.
#[derive(Debug, Default)]
struct CommentCounts {
    words: usize,
    /// Occurrences of "what" and "who".
    riddles: usize,
}

impl CommentCounts {
    fn has_too_many_riddles(&self) -> bool {
        self.riddles * 1000 > self.words * RIDDLES_PER_MILLE_MAX
    }
}

/// Checks the comment lines of a file and adds them to `counts`. Returns the lines that break a rule.
fn check_comments(text: &str, counts: &mut CommentCounts) -> Vec<(usize, String)> {
    let mut findings = Vec::new();
    let mut marker_above = "";
    for (number, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim_start();
        let marker = ["///", "//!", "//"].into_iter().find(|marker| trimmed.starts_with(marker));
        let Some(marker) = marker else {
            marker_above = "";
            continue;
        };
        let columns = line.chars().count();
        if columns > COMMENT_COLUMNS_MAX {
            findings.push((number, format!("{columns} columns, at most {COMMENT_COLUMNS_MAX}")));
        }
        let words: Vec<&str> = trimmed[marker.len()..]
            .split_whitespace()
            .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()))
            .collect();
        let first = words.first().copied().unwrap_or_default();
        if marker != "//" && marker_above != marker && QUESTION_WORDS.contains(&first) {
            findings.push((number, format!("a doc comment begins with \"{first}\"")));
        }
        counts.words += words.len();
        counts.riddles +=
            words.iter().filter(|word| ["what", "who"].contains(&word.to_lowercase().as_str())).count();
        marker_above = marker;
    }
    findings
}

#[test]
fn nothing_is_left_undone() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.name != "tests/tidy.rs") {
        for word in ["todo!", "unimplemented!", "dbg!(", "FIXME", "XXX"] {
            if let Some((number, _)) = source.text.lines().enumerate().find(|(_, line)| line.contains(word)) {
                findings.push(format!("{}:{}: {word}", source.name, number + 1));
            }
        }
        if !source.is_test() {
            for (number, _) in source.code_lines().filter(|(_, line)| line.contains(".unwrap()")) {
                findings.push(format!("{}:{number}: unwrap() outside tests", source.name));
            }
        }
    }
    fail_with(findings);
}

#[test]
fn each_claim_about_security_names_a_test_that_is_there() {
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let defended = text.split("\n## ").find(|part| part.starts_with("What is defended")).unwrap();
    let mut findings = Vec::new();
    for claim in defended.split("\n- ").skip(1) {
        let tests: Vec<(&str, &str)> = claim
            .split('`')
            .filter_map(|word| word.split_once("::"))
            .filter(|(file, _)| Path::new(file).extension().is_some_and(|ending| ending == "rs"))
            .collect();
        if tests.is_empty() {
            findings.push(format!("no test: {}", claim.lines().next().unwrap_or_default()));
        }
        for (file, test) in tests {
            let source = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !source.contains(&format!("fn {test}(")) {
                findings.push(format!("there is no {test} in {file}"));
            }
        }
    }
    assert!(defended.matches("\n- ").count() > 10, "the claims were not found");
    fail_with(findings);
}

#[test]
fn every_test_file_is_declared() {
    let sources = sources();
    let mut findings = Vec::new();
    for source in
        sources.iter().filter(|source| source.name.starts_with("tests/") && source.name != "tests/all.rs")
    {
        let path = Path::new(&source.name);
        let (folder, stem) = (path.parent().unwrap(), path.file_stem().unwrap().to_str().unwrap());
        let (parent, name) = if stem == "mod" {
            (declaring_file(folder.parent().unwrap()), folder.file_name().unwrap().to_str().unwrap())
        } else {
            (declaring_file(folder), stem)
        };
        let declared =
            sources.iter().find(|source| Path::new(&source.name) == parent).is_some_and(|source| {
                source.text.lines().any(|line| {
                    line.trim_start_matches("pub ").trim_start_matches("pub(crate) ")
                        == format!("mod {name};")
                })
            });
        if !declared {
            findings.push(format!("{}: no `mod {name};` in {}", source.name, parent.display()));
        }
    }
    fail_with(findings);
}

fn declaring_file(folder: &Path) -> PathBuf {
    if folder == Path::new("tests") { folder.join("all.rs") } else { folder.join("mod.rs") }
}

/// The list of decisions in `ARCHITECTURE.md` and the files in `docs/decisions` agree, number, title and status included.
#[test]
fn every_decision_is_listed() {
    let folder = root().join("docs/decisions");
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut findings = Vec::new();
    let mut listed = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "README.md" {
            continue;
        }
        let text = fs::read_to_string(folder.join(&name)).unwrap();
        let title = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        if !title.starts_with(&format!("{}. ", &name[..4])) {
            findings.push(format!("{name}: the title does not begin with the number of the file"));
        }
        if !text.lines().any(|line| line.starts_with("Status: ")) {
            findings.push(format!("{name}: no status"));
        }
        if !architecture.contains(&format!("- [{title}](docs/decisions/{name})\n")) {
            findings.push(format!("ARCHITECTURE.md does not list {name} by its title"));
        }
        listed += 1;
    }
    if architecture.matches("](docs/decisions/").count() != listed {
        findings.push("ARCHITECTURE.md lists a decision that has no file, or lists one twice".to_owned());
    }
    fail_with(findings);
}

#[test]
fn the_measures_measure() {
    let text = "pub(crate) async fn long(\n    x: u8,\n) -> u8 {\n    x\n}\nfn short() {}\n";
    assert_eq!(functions(text), [("long".to_owned(), 1, 5)]);
    assert_eq!(
        modules_used("use crate::{chunk, fs::Inode}; crate::CONSTANT"),
        BTreeSet::from(["chunk", "fs"])
    );

    let mut counts = CommentCounts::default();
    let long = format!("    // {}\n", "x".repeat(COMMENT_COLUMNS_MAX));
    let text = format!("/// Whether it is so.\n/// When it rains,\nfn f() {{}}\n\n//! How it works.\n{long}");
    let lines: Vec<usize> = check_comments(&text, &mut counts).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [1, 5, 6]);
    assert!(!counts.has_too_many_riddles());
    assert!(check_comments("/// Returns what is there, and who has it.\n", &mut counts).is_empty());
    assert!(counts.has_too_many_riddles(), "{counts:?}");
}
