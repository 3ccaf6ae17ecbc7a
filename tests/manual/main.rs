//! The pages of the manual (`packaging/usr/share/man`) are what the program says of itself: portreeve(1) and a page for each
//! verb from the command line, portreeve.yaml(5) from the schema. `BLESS=1` writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy knows the tests, not their helpers"
)]
#![allow(clippy::print_stdout, reason = "a skip is said aloud")]

mod settings;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

/// A page has a version; its date would be one more thing to keep up. Empty, the next word would be taken for it.
const NO_DATE: &str = " ";
/// How roff writes an apostrophe, wherever it is formatted.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
/// What every page is said to be of.
const SOURCE: &str = concat!("portreeve ", env!("CARGO_PKG_VERSION"));

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/usr/share/man")
}

/// Every page, by its path below the manual's folder.
fn pages() -> BTreeMap<String, String> {
    let mut root = portreeve::cli::command().disable_help_subcommand(true);
    root.build();
    let codes = root.get_after_help().unwrap().to_string();
    let mut pages = BTreeMap::new();
    add_verb(&mut pages, &root, &codes, None);
    pages.insert("man5/portreeve.yaml.5".to_owned(), settings::page());
    pages
}

/// The page of a verb, and those of the verbs below it.
fn add_verb(
    pages: &mut BTreeMap<String, String>,
    verb: &clap::Command,
    codes: &str,
    parent: Option<&str>,
) {
    // As '--help' shows it: how often an argument may stand, and what follows '--'.
    let usage = verb.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap().to_owned();
    let man = Man::new(verb.clone().override_usage(usage))
        .date(NO_DATE)
        .source(SOURCE)
        .manual("portreeve");
    let name = man.get_filename();
    let name = name.strip_suffix(".1").unwrap();
    let codes = verb.get_after_help().map_or(codes.to_owned(), ToString::to_string);
    let shown = || verb.get_subcommands().filter(|verb| !verb.is_hide_set());

    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    if shown().next().is_some() {
        man.render_subcommands_section(&mut page).unwrap();
    }
    let page = String::from_utf8(page).unwrap();
    // Each section brings it along.
    let (_, sections) = page.split_once(PREAMBLE).unwrap();
    let page =
        format!("{PREAMBLE}{}{}", sections.replace(PREAMBLE, ""), ending(&codes, parent).to_roff());
    pages.insert(format!("man1/{name}.1"), page);
    shown().for_each(|below| add_verb(pages, below, &codes, Some(name)));
}

/// What follows the options: exit codes, files, other pages.
fn ending(codes: &str, parent: Option<&str>) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for line in codes.lines().filter(|line| *line != "Exit codes:") {
        match line.trim().split_once("  ").filter(|_| line.starts_with("  ")) {
            Some((code, meaning)) => {
                roff.control("TP", []).text([bold(code)]).text([roman(meaning)])
            }
            None => roff.control("PP", []).text([roman(line)]),
        };
    }
    if parent.is_none() {
        roff.control("SH", ["FILES"]);
        for (path, meaning) in FILES {
            roff.control("TP", []).text([bold(path)]).text([roman(meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let parent = parent.into_iter().flat_map(|parent| [bold(parent), roman("(1), ")]);
    let others = [bold("portreeve.yaml"), roman("(5), /usr/share/doc/portreeve")];
    roff.text(parent.chain(others).collect::<Vec<_>>());
    roff
}

const FILES: [(&str, &str); 4] = [
    ("/etc/portreeve/config.yaml", "Settings; see portreeve.yaml(5). None are needed."),
    ("/var/lib/portreeve", "The registry of models, receipts and metrics."),
    ("/run/portreeve", "The gates' lock, and what they let pass."),
    ("$XDG_STATE_HOME/portreeve", "Another user's registry of models."),
];

/// Every page that is there.
fn published() -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    for section in ["man1", "man5"] {
        for entry in fs::read_dir(folder().join(section)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            pages.insert(format!("{section}/{name}"), fs::read_to_string(&path).unwrap());
        }
    }
    pages
}

#[test]
fn the_published_pages_are_those_of_the_program() {
    let pages = pages();
    if std::env::var_os("BLESS").is_some() {
        for path in published().keys().filter(|path| !pages.contains_key(*path)) {
            fs::remove_file(folder().join(path)).unwrap();
        }
        for (path, text) in &pages {
            fs::write(folder().join(path), text).unwrap();
        }
    }
    let published = published();
    let names = |pages: &BTreeMap<String, String>| pages.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&published), names(&pages), "BLESS=1 writes them anew");
    for (path, text) in &pages {
        assert!(published[path] == *text, "{path}: BLESS=1 writes it anew");
    }
}

#[test]
fn every_verb_and_key_has_its_place_in_the_manual() {
    let pages = pages();
    for verb in ["scan", "reap", "gate", "explain", "doctor", "model-start", "config-show"] {
        assert!(pages.contains_key(&format!("man1/portreeve-{verb}.1")), "{verb}");
    }
    assert!(!pages.keys().any(|path| path.contains("nvml")), "what is hidden has no page");
    let mut schema = Vec::new();
    portreeve::cli::config::schema(&mut schema).unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&schema).unwrap();
    let mut keys = 0;
    for object in schema["$defs"].as_object().unwrap().values().chain([&schema]) {
        for key in object["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            keys += 1;
            let page = &pages["man5/portreeve.yaml.5"];
            assert!(page.contains(&format!("\\fB{key}\\fR")), "{key}");
        }
    }
    assert!(keys > 40, "keys are found");
}

/// By the formatter that shows them.
#[test]
fn no_page_has_a_mistake_that_man_warns_of() {
    let man = |page: &Path| {
        let mut command = Command::new("man");
        command.env("MANROFFSEQ", "").env("MANWIDTH", "80").env("LC_ALL", "C.UTF-8");
        command.args(["--warnings", "--local-file", "-Tutf8", "--ditroff"]).arg(page);
        command.output()
    };
    for path in pages().keys() {
        match man(&folder().join(path)) {
            Err(error) => return println!("skipped: no 'man' here: {error}"),
            Ok(output) => {
                assert!(output.status.success(), "{path}: {output:?}");
                assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{path}");
            }
        }
    }
}
