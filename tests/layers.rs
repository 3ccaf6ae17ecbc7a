//! The rules of the house, read from the source text: who may use whom, by the table in docs/design.md; that the judge is
//! pure; where `unsafe` may stand, and that it is argued. The table is the only place that lists the allowed arrows.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy knows the tests, not their helpers"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

const DESIGN: &str = include_str!("../docs/design.md");
const MANIFEST: &str = include_str!("../Cargo.toml");

/// What the judge may name of the standard library: values, and no door to the machine.
const PURE: [&str; 14] = [
    "std::borrow",
    "std::cmp",
    "std::collections",
    "std::convert",
    "std::fmt",
    "std::hash",
    "std::iter",
    "std::mem",
    "std::net::IpAddr",
    "std::net::SocketAddr",
    "std::ops",
    "std::path",
    "std::str",
    "std::time::Duration",
];
/// Macros and methods of `Path` that reach beyond values.
const IMPURE_MACROS: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];
const IMPURE_METHODS: [&str; 9] = [
    "canonicalize",
    "exists",
    "is_dir",
    "is_file",
    "is_symlink",
    "metadata",
    "read_dir",
    "read_link",
    "try_exists",
];

// ---- the house as it is

#[test]
fn every_module_uses_only_what_the_design_allows_it() {
    let layers = layers(DESIGN);
    let wrong: Vec<String> = sources().iter().flat_map(|s| forbidden(&layers, s)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_design_allows_only_what_some_module_uses() {
    let layers = layers(DESIGN);
    let used: Vec<(String, Vec<String>)> = sources()
        .iter()
        .flat_map(|s| s.names().into_iter().filter_map(|name| Some((s.layer()?, name.inside?))))
        .collect();
    for layer in &layers {
        for target in &layer.may_use {
            assert!(
                used.iter().any(|(from, to)| *from == layer.name && to.starts_with(target)),
                "nothing in '{}' uses '{}'\nhint: strike it from the table in docs/design.md",
                layer.name,
                target.join("::")
            );
        }
    }
}

#[test]
fn the_designs_rows_name_only_rows_above_them() {
    let layers = layers(DESIGN);
    for (place, layer) in layers.iter().enumerate() {
        for target in &layer.may_use {
            assert!(
                layers[..place].iter().any(|above| above.name == target[0]),
                "'{}' may use '{}', which does not stand above it",
                layer.name,
                target[0]
            );
        }
    }
}

#[test]
fn the_library_declares_its_modules_in_the_designs_order() {
    let tokens: Vec<String> = sources()
        .iter()
        .find(|s| s.file == "src/lib.rs")
        .map(|s| s.tokens().into_iter().map(|tree| tree.to_string()).collect())
        .unwrap();
    let declared: Vec<&String> =
        tokens.windows(2).filter(|pair| pair[0] == "mod").map(|pair| &pair[1]).collect();
    let layers = layers(DESIGN);
    let rows: Vec<&String> = layers.iter().map(|l| &l.name).filter(|n| *n != "main").collect();
    assert_eq!(declared, rows);
}

#[test]
fn the_judge_is_pure() {
    let judge: Vec<Source> =
        sources().into_iter().filter(|s| s.layer().as_deref() == Some("judge")).collect();
    assert!(!judge.is_empty());
    let wrong: Vec<String> = judge.iter().flat_map(impurities).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Files that lift `deny(unsafe_code)`, each for itself, and why no crate does it for them.
const UNSAFE: [(&str, &str); 10] = [
    ("src/sys/mod.rs", "the kernel calls of the program, and of its part 'nvml'"),
    ("benches/load.rs", "fork(2): thousands of processes of one kind"),
    ("benches/soak.rs", "an allocator that counts"),
    ("fuzz/src/lib.rs", "an allocator that counts, atexit(3)"),
    ("benches/race.rs", "wait4(2): what one child has used"),
    ("tests/doctor.rs", "a seccomp filter between fork and exec"),
    ("tests/support/ways.rs", "ways to hold a socket: io_uring, exit(2) of one thread"),
    (
        "tests/injected/door.rs",
        "a seccomp filter that hands a thread's reads over, and who answers",
    ),
    ("tests/kills/killer.rs", "ptrace(2)"),
    ("tests/watch.rs", "a seccomp filter on a thread"),
];
/// Of the crate that lifts it for its parts.
const PARTS: [&str; 1] = ["src/sys/nvml.rs"];

#[test]
fn unsafe_stands_in_sys_alone_and_in_tests_that_are_named() {
    assert!(MANIFEST.contains("\nunsafe_code = \"deny\"\n"));
    let folders = ["src", "tests", "benches", "fuzz"].into_iter();
    let all: Vec<Source> = folders.flat_map(files_of).collect();
    for Source { file, text } in &all {
        let is_named = UNSAFE.iter().any(|(named, _)| *named == *file);
        let may_be = is_named || PARTS.contains(&file.as_str());
        let lifts = count(text, "unsafe_code");
        assert_eq!(
            lifts,
            usize::from(is_named),
            "{file} lifts the ban on unsafe code {lifts} times"
        );
        assert!(may_be || count(text, "unsafe") == 0, "{file} holds 'unsafe'");
    }
    for (file, _) in UNSAFE {
        assert!(all.iter().any(|source| source.file == file), "{file} is not there");
    }
}

/// Clippy asks it of blocks and functions, and of nothing that a macro or an attribute holds.
#[test]
fn every_unsafe_has_its_argument_above_it() {
    let named = UNSAFE.iter().map(|(file, _)| *file).chain(PARTS);
    let mut found = 0;
    for file in named {
        let source = Source::read(file);
        for line in lines_with_unsafe(&source.text) {
            found += 1;
            let is_argued = has_argument(&source.text, line);
            assert!(is_argued, "{file}:{line}: 'unsafe' without '// SAFETY:' right above it");
        }
    }
    assert!(found > 15, "they are found: {found}");
}

// ---- the reader itself

const TABLE: &str = "
## 2. The house

| module | holds | may use |
|---|---|---|
| `ident` | names | nothing |
| `config` | `fragment` and more | `ident` |
| `observe` | looks | `ident` |
| `judge` | verdicts | `ident`, `config::settings` |
";

fn found_in(file: &str, text: &str) -> Vec<String> {
    forbidden(&layers(TABLE), &Source { file: file.to_owned(), text: text.to_owned() })
}

#[test]
fn an_arrow_that_runs_the_other_way_is_found_in_every_form() {
    for text in [
        "use crate::judge::Verdict;",
        "use crate::{ident::Pid, judge::{case::Case}};",
        "pub use crate::judge as renamed;",
        "use super::judge::Verdict;",
        "use portreeve::judge::Verdict;",
        "fn f() -> crate::judge::Verdict { loop {} }",
        "fn f() { crate::judge::judge(); }",
        "#[arg(value_parser = crate::judge::parse)] struct A;",
        "fn f() { println!(\"{}\", crate::judge::WORD); }",
        "mod inner { mod deep { use super::super::super::judge; } }",
        // Names that cannot be followed are no way around.
        "use crate::*;",
        "use crate as root;",
        "use crate::{self as root};",
        "use crate::unheard_of::Thing;",
    ] {
        assert_eq!(found_in("src/observe.rs", text).len(), 1, "{text}");
    }
    let found = found_in("src/observe/dbus.rs", "\nuse super::super::judge::judge;");
    assert_eq!(found, ["src/observe/dbus.rs:2: 'observe' may not use 'judge::judge'"]);
}

#[test]
fn only_the_allowed_part_of_a_module_is_allowed() {
    assert!(found_in("src/judge/case.rs", "use crate::config::settings::Service;").is_empty());
    assert_eq!(found_in("src/judge/case.rs", "use crate::config::load;").len(), 1);
    assert_eq!(found_in("src/judge/case.rs", "use crate::config::{self, settings};").len(), 1);
}

#[test]
fn a_modules_own_parts_and_what_stands_above_it_are_allowed() {
    for text in [
        "use crate::ident::Pid;",
        "use super::ident::Pid;",
        "pub(crate) fn f() {} pub(in crate::observe) fn g() {}",
        "/// Like [`crate::judge`].\nfn f() {}",
        "fn f() -> &'static str { \"crate::judge\" }",
        "use std::fmt; use regex::Regex; fn f() { fmt::format(); }",
        "mod tests { use super::*; use super::dbus::Call; }",
        "fn f(b: bool) -> bool { b != crate::ident::YES }",
    ] {
        assert_eq!(found_in("src/observe/mod.rs", text), [""; 0], "{text}");
    }
    // A file of its own, as its parent sees it.
    assert!(found_in("src/observe/dbus.rs", "use super::units::ask;").is_empty());
}

#[test]
fn a_module_without_a_row_is_found() {
    assert_eq!(found_in("src/gate.rs", "use crate::ident::Pid;").len(), 1);
}

#[test]
fn unsafe_is_found_wherever_it_stands() {
    for text in [
        "fn f() { let fd = unsafe { g() }; }",
        "unsafe impl Send for A {}",
        "mod tests { unsafe fn g() {} }",
        "m!(unsafe { g() });",
        "#[unsafe(no_mangle)] fn f() {}",
    ] {
        assert_eq!(count(text, "unsafe"), 1, "{text}");
    }
    for text in ["#[allow(unsafe_code)] fn f() {}", "#![cfg_attr(test, expect(unsafe_code))]"] {
        assert_eq!(count(text, "unsafe_code"), 1, "{text}");
    }
    assert_eq!(count("// unsafe\nconst A: &str = \"unsafe\";", "unsafe"), 0);
}

#[test]
fn an_argument_counts_only_right_above() {
    for (text, is_argued) in [
        ("// SAFETY: x\nunsafe { f() }", true),
        ("// SAFETY: x\n// and y\nlet a =\n    unsafe { f() };", true),
        ("#[unsafe(no_mangle)] // SAFETY: x", true),
        ("// SAFETY: x\nlet b = 1;\nunsafe { f() }", false),
        ("unsafe { f() }", false),
        ("// x\nunsafe { f() }", false),
    ] {
        let line = lines_with_unsafe(text)[0];
        assert_eq!(has_argument(text, line), is_argued, "{text}");
    }
}

#[test]
fn a_judge_that_reaches_out_is_found() {
    let found = |text: &str| {
        impurities(&Source { file: "src/judge/port.rs".to_owned(), text: text.to_owned() })
    };
    for text in [
        "use std::fs;",
        "use std::{fmt, time::{Duration, Instant}};",
        "use std::time::SystemTime;",
        "use std::time;",
        "use std::net::TcpStream;",
        "fn f() { std::process::id(); }",
        "fn f() { tracing::info!(\"x\"); }",
        "use rustix::fs::open;",
        "fn f() { println!(\"x\"); }",
        "fn f(p: &std::path::Path) -> bool { p.exists() }",
    ] {
        assert_eq!(found(text).len(), 1, "{text}");
    }
    for text in [
        "use std::{collections::BTreeMap, fmt, path::Path, time::Duration};",
        "fn f(a: bool) -> String { format!(\"{}\", a != true) }",
        "mod tests { use std::fs; fn f() { println!(\"x\"); } }",
    ] {
        assert_eq!(found(text), [""; 0], "{text}");
    }
}

// ---- the rules

/// A row of the table.
struct Layer {
    name: String,
    /// Modules with all that is in them, as paths from the crate's root.
    may_use: Vec<Vec<String>>,
}

fn layers(design: &str) -> Vec<Layer> {
    let (_, section) = design.split_once("| module | holds | may use |").unwrap();
    let rows = section.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let [_, name, _, may_use, _] = cells.as_slice() else { panic!("no row of three: {row}") };
        let quoted = |cell: &str| -> Vec<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let may_use = quoted(may_use);
        Layer {
            name: quoted(name).concat(),
            may_use: may_use.iter().map(|p| p.split("::").map(str::to_owned).collect()).collect(),
        }
    })
    .collect()
}

/// What this file names of other layers without leave.
fn forbidden(layers: &[Layer], source: &Source) -> Vec<String> {
    let Some(own) = source.layer() else { return Vec::new() };
    let Some(layer) = layers.iter().find(|l| l.name == own) else {
        return vec![format!("{}: no row for '{own}' in docs/design.md", source.file)];
    };
    let is_allowed = |target: &[String]| {
        target.first() == Some(&own) || layer.may_use.iter().any(|may| target.starts_with(may))
    };
    let names = source.names().into_iter();
    names
        .filter_map(|name| Some((name.line, name.inside?)))
        .filter(|(_, target)| !is_allowed(target))
        .map(|(line, target)| {
            format!("{}:{line}: '{own}' may not use '{}'", source.file, target.join("::"))
        })
        .collect()
}

/// What this file names beyond values, its tests left out.
fn impurities(source: &Source) -> Vec<String> {
    let crates: BTreeSet<String> = MANIFEST
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_")))
        .chain(["core", "alloc", "log", "tracing"].map(str::to_owned))
        .collect();
    let is_pure = |name: &Name| {
        let path = name.path.join("::");
        match name.kind {
            Kind::Macro if IMPURE_MACROS.contains(&path.as_str()) => false,
            Kind::Method => !IMPURE_METHODS.contains(&path.as_str()),
            Kind::Path | Kind::Macro if name.path.len() == 1 => true,
            Kind::Path | Kind::Macro if name.path[0] == "std" => {
                PURE.iter().any(|p| path == *p || path.starts_with(&format!("{p}::")))
            }
            Kind::Path | Kind::Macro => !crates.contains(&name.path[0]),
        }
    };
    let names = source.names().into_iter().filter(|name| !name.is_of_tests);
    names
        .filter(|name| !is_pure(name))
        .map(|name| {
            format!("{}:{}: the judge uses '{}'", source.file, name.line, name.path.join("::"))
        })
        .collect()
}

// ---- the reader: the compiler's own tokens, so that attributes and the arguments of macros are read as well

struct Source {
    /// From the repository's root: `src/judge/case.rs`.
    file: String,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Path,
    /// `path!`.
    Macro,
    /// `.name`.
    Method,
}

/// A path as it is written, and its line.
struct Name {
    path: Vec<String>,
    line: usize,
    kind: Kind,
    /// Where it leads from the crate's root, if it begins with `crate`, `super` or `self`.
    inside: Option<Vec<String>>,
    is_of_tests: bool,
}

/// Every file of `src/`.
fn sources() -> Vec<Source> {
    files_of("src")
}

/// Every file of Rust below a folder; none where there is no such folder.
fn files_of(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(Source::read(path.strip_prefix(root).unwrap().to_str().unwrap()));
            }
        }
    }
    files
}

/// Every word of the code with its line, whatever it stands in; comments and literals are none.
fn words_of(text: &str) -> Vec<(String, usize)> {
    fn collect(tokens: TokenStream, words: &mut Vec<(String, usize)>) {
        for tree in tokens {
            match tree {
                TokenTree::Ident(word) => words.push((word.to_string(), word.span().start().line)),
                TokenTree::Group(group) => collect(group.stream(), words),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
    let mut words = Vec::new();
    collect(text.parse().unwrap(), &mut words);
    words
}

fn count(text: &str, wanted: &str) -> usize {
    words_of(text).iter().filter(|(word, _)| word == wanted).count()
}

/// Lines on which something unsafe is done or promised. The type of a function does neither.
fn lines_with_unsafe(text: &str) -> Vec<usize> {
    let words = words_of(text);
    let mut lines = Vec::new();
    for (at, (word, line)) in words.iter().enumerate() {
        let is_type = words.get(at + 1).is_some_and(|(next, _)| next == "extern");
        if word == "unsafe" && !is_type {
            lines.push(*line);
        }
    }
    lines
}

/// Whether the statement of this line has its argument, on the line or right above it.
fn has_argument(text: &str, line: usize) -> bool {
    let lines: Vec<&str> = text.lines().take(line).map(str::trim).collect();
    let (this, above) = lines.split_last().unwrap();
    let is_part = |line: &&&str| line.starts_with("//") || line.ends_with('=');
    let comments = above.iter().rev().take_while(is_part).chain([this]);
    comments.into_iter().any(|line| line.contains("// SAFETY: "))
}

impl Source {
    fn read(file: &str) -> Self {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        Self { file: file.to_owned(), text }
    }

    /// `src/judge/case.rs` → `judge::case`.
    fn module(&self) -> Vec<String> {
        let path = self.file.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
        let parts = path.split('/').map(str::to_owned);
        parts.filter(|part| part != "mod" && part != "lib").collect()
    }

    /// None for the crate's root.
    fn layer(&self) -> Option<String> {
        self.module().into_iter().next()
    }

    fn tokens(&self) -> TokenStream {
        self.text.parse().unwrap_or_else(|error| panic!("{}: {error}", self.file))
    }

    fn names(&self) -> Vec<Name> {
        let mut names = Vec::new();
        read(self.tokens(), &self.module(), &mut names);
        names
    }
}

fn read(tokens: TokenStream, module: &[String], names: &mut Vec<Name>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        match &trees[at..] {
            [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body), ..]
                if word == "mod" =>
            {
                read(body.stream(), &[module, &[name.to_string()]].concat(), names);
                at += 3;
            }
            [TokenTree::Punct(dot), TokenTree::Ident(name), ..]
                if dot.as_char() == '.' && dot.spacing() == Spacing::Alone =>
            {
                let line = name.span().start().line;
                names.push(Name::new(vec![name.to_string()], line, Kind::Method, module));
                at += 2;
            }
            [TokenTree::Ident(_), ..] => at = read_path(&trees, at, &[], module, names),
            [TokenTree::Group(group), ..] => {
                read(group.stream(), module, names);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Reads the path that begins with the word at `at`; where it opens into `{…}`, each of its branches. Returns where to go on.
fn read_path(
    trees: &[TokenTree],
    mut at: usize,
    before: &[String],
    module: &[String],
    names: &mut Vec<Name>,
) -> usize {
    let line = trees[at].span().start().line;
    let mut path = before.to_vec();
    path.push(trees[at].to_string());
    at += 1;
    while let [TokenTree::Punct(a), TokenTree::Punct(b), next, ..] = &trees[at..] {
        if (a.as_char(), a.spacing(), b.as_char()) != (':', Spacing::Joint, ':') {
            break;
        }
        match next {
            TokenTree::Ident(word) => path.push(word.to_string()),
            TokenTree::Punct(star) if star.as_char() == '*' => path.push("*".to_owned()),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let branches: Vec<TokenTree> = group.stream().into_iter().collect();
                for branch in
                    branches.split(|t| matches!(t, TokenTree::Punct(p) if p.as_char() == ','))
                {
                    match branch {
                        [TokenTree::Ident(_), ..] => {
                            read_path(branch, 0, &path, module, names);
                        }
                        [] => {}
                        _ => {
                            let all = [path.as_slice(), &["*".to_owned()]].concat();
                            names.push(Name::new(all, line, Kind::Path, module));
                        }
                    }
                }
                return at + 3;
            }
            TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => break,
        }
        at += 3;
    }
    // `use a::{self}` names a; `use crate as root` names all that there is.
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let is_root = path.last().is_some_and(|last| last == "crate" || last == "super");
    if is_root && matches!(trees.get(at), Some(TokenTree::Ident(word)) if word == "as") {
        path.push("*".to_owned());
    }
    let is_macro = matches!(trees.get(at), Some(TokenTree::Punct(p)) if p.as_char() == '!' && p.spacing() == Spacing::Alone);
    names.push(Name::new(path, line, if is_macro { Kind::Macro } else { Kind::Path }, module));
    at
}

impl Name {
    fn new(path: Vec<String>, line: usize, kind: Kind, module: &[String]) -> Self {
        let is_of_tests = module.iter().any(|part| part == "tests");
        let inside = inside(&path, module).filter(|_| kind != Kind::Method);
        Self { path, line, kind, inside, is_of_tests }
    }
}

/// Where a path leads from the crate's root; none where it leads out of the crate, or is the bare word.
fn inside(path: &[String], module: &[String]) -> Option<Vec<String>> {
    if path.len() < 2 {
        return None;
    }
    let ups = path.iter().take_while(|part| *part == "super").count();
    let from = match path[0].as_str() {
        "crate" | "portreeve" => &[],
        "self" => module,
        "super" => &module[..module.len().checked_sub(ups)?],
        _ => return None,
    };
    Some([from, &path[ups.max(1)..]].concat())
}
