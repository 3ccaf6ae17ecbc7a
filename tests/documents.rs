//! What the documents say is so: links lead somewhere, examples load, commands are understood, tables agree with the program,
//! the tests that they name are there, and the picture is what its recording shows.

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
    process::{Command, Output},
};

use portreeve::config::{Sources, load};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every Markdown file of the repository, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut documents = Vec::new();
    let mut folders = vec![repository().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                let text = fs::read_to_string(&path).unwrap();
                documents.push((path, text));
            }
        }
    }
    assert!(documents.iter().any(|(path, _)| path.ends_with("README.md")));
    documents
}

/// The fenced blocks of this kind.
fn blocks<'t>(text: &'t str, kind: &str) -> Vec<&'t str> {
    let parts = text.split("\n```").skip(1).step_by(2);
    parts.filter_map(|part| part.strip_prefix(kind)?.strip_prefix('\n')).collect()
}

fn portreeve(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portreeve")).args(arguments).output().unwrap()
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    let mut count = 0;
    for (path, text) in documents() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            count += 1;
            let leads_to = path.parent().unwrap().join(target);
            assert!(leads_to.exists(), "{}: '{link}' leads nowhere", path.display());
        }
    }
    assert!(count > 10, "links are found");
}

#[test]
fn every_yaml_example_loads() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "yaml") {
            count += 1;
            let file = folder.path().join("example.yaml");
            fs::write(&file, block).unwrap();
            let sources = Sources {
                etc: folder.path().join("none"),
                explicit: Some(file),
                is_privileged: false,
                ..Sources::default()
            };
            if let Err(errors) = load(&sources) {
                panic!("{}: {errors}", path.display());
            }
        }
    }
    assert!(count > 1, "examples are found");
}

/// `--help` behind a command has clap read all that stands before it, and do nothing.
#[test]
fn every_command_line_of_a_document_is_understood() {
    let mut count = 0;
    for (path, text) in documents() {
        let lines = text.lines().map(|line| line.trim_start_matches("$ ").trim_start());
        let lines = lines.map(|line| line.strip_prefix("sudo ").unwrap_or(line));
        for line in lines.filter_map(|line| line.strip_prefix("portreeve ")) {
            let words = line.split_whitespace().take_while(|word| !["#", "|", ">"].contains(word));
            // What stands behind `--` is a command that would be run.
            let words = words.take_while(|word| *word != "--");
            let arguments: Vec<&str> = words.chain(["--help"]).collect();
            if !["scan", "reap", "gate", "config", "doctor", "explain"].contains(&arguments[0]) {
                continue;
            }
            count += 1;
            let said = portreeve(&arguments);
            let why = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success(), "{}: portreeve {line}\n{why}", path.display());
        }
    }
    assert!(count > 5, "commands are found");
}

#[test]
fn the_readme_and_the_help_agree_on_the_exit_codes() {
    let help = String::from_utf8(portreeve(&["--help"]).stdout).unwrap();
    let (_, codes) = help.split_once("Exit codes:").unwrap();
    let in_help: Vec<String> = codes.lines().map(joined).filter(|line| !line.is_empty()).collect();
    let readme = text("README.md");
    let section = section(&readme, "Exit codes");
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let in_readme: Vec<String> = rows.map(|row| joined(&row.replace('|', " "))).collect();
    assert_eq!(in_readme.len(), 3);
    // The help breaks its lines where the terminal ends.
    assert_eq!(in_readme.join(" "), in_help.join(" "));
}

fn joined(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What stands below this heading of the second level.
fn section<'t>(document: &'t str, heading: &str) -> &'t str {
    let (_, section) = document.split_once(&format!("\n## {heading}\n")).unwrap();
    section.split("\n## ").next().unwrap()
}

/// The first column of the table below this heading.
fn first_column(document: &str, heading: &str) -> BTreeSet<String> {
    let cells = section(document, heading)
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(str::to_owned).collect()
}

/// The keys of this section of Cargo.toml.
fn dependencies(section: &str) -> BTreeSet<String> {
    let manifest = text("Cargo.toml");
    let lines = manifest.lines().skip_while(|line| *line != format!("[{section}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect()
}

#[test]
fn every_dependency_is_explained_and_nothing_else_is() {
    let document = text("docs/dependencies.md");
    let of_program = dependencies("dependencies");
    let of_tests = dependencies("dev-dependencies");
    assert_eq!(first_column(&document, "In the program"), of_program);
    assert_eq!(first_column(&document, "In the tests only"), of_tests);
    let absent = first_column(&document, "Not here");
    assert!(!absent.is_empty());
    let here: BTreeSet<String> = of_program.union(&of_tests).cloned().collect();
    assert_eq!(absent.intersection(&here).count(), 0, "{absent:?}");
}

#[test]
fn no_decision_is_longer_than_thirty_lines_or_lacks_a_part() {
    let folder = repository().join("docs/decisions");
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() <= 30, "{name}");
        for part in ["**Context.**", "**Decision.**", "**Consequence.**"] {
            assert!(text.contains(part), "{name} has no {part}");
        }
        numbers.push(name[..4].parse::<usize>().unwrap());
        assert!(text.starts_with(&format!("# {}: ", &name[..4])), "{name}");
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
}

/// The numbers in the first column of the verdict table.
fn rows() -> Vec<String> {
    let design = text("docs/design.md");
    let lines = section(&design, "4. Verdicts").lines();
    let cells = lines.filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    cells.filter(|cell| cell.parse::<u8>().is_ok()).map(str::to_owned).collect()
}

#[test]
fn every_row_of_the_verdict_table_has_an_example() {
    let document = text("docs/verdicts.md");
    let sections: Vec<&str> = document.split("\n## Row ").skip(1).collect();
    let numbers: Vec<String> =
        sections.iter().map(|s| s.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(numbers, rows());
    for section in sections {
        let heading = section.lines().next().unwrap();
        assert!(!blocks(section, "text").is_empty(), "row {heading} has no example");
        assert!(section.contains(".rs::"), "row {heading} names no test");
    }
}

/// `FILE.rs::NAME` in a document: the file from the root of the repository, the function in it.
fn tests_named_in(document: &str) -> Vec<(&str, &str)> {
    let words = document.split(|c: char| c.is_whitespace() || "`|,;()".contains(c));
    words
        .filter_map(|word| word.split_once("::"))
        .filter(|(file, _)| Path::new(file).extension().is_some_and(|e| e == "rs"))
        .collect()
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let mut count = 0;
    for (path, document) in documents() {
        for (file, name) in tests_named_in(&document) {
            count += 1;
            let found = text(file).contains(&format!("fn {name}("));
            assert!(found, "{}: there is no '{name}' in {file}", path.display());
        }
    }
    assert!(count > 30, "names are found");
}

#[test]
fn every_threat_has_an_answer_and_a_test() {
    let document = text("docs/threats.md");
    let threats: Vec<&str> = document.split("\n## ").skip(1).collect();
    assert!(threats.len() > 10, "threats are found");
    for threat in threats {
        let heading = threat.lines().next().unwrap();
        assert!(threat.contains("\n**Answer.** "), "'{heading}' has no answer");
        let (_, held_by) = threat.split_once("\n**Held by.** ").expect(heading);
        assert!(!tests_named_in(held_by).is_empty(), "'{heading}' has no test");
    }
}

#[test]
fn the_readme_leads_to_every_document() {
    let readme = text("README.md");
    let more = section(&readme, "More");
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "md") {
            let link = format!("(docs/{})", path.file_name().unwrap().display());
            assert!(more.contains(&link), "'More' does not lead to {link}");
        }
    }
}

/// What one of the scripts below docs/picture writes; why there is nothing, where there is no Python.
fn written_by(script: &str, words: &[&str]) -> Result<String, String> {
    let folder = repository().join("docs/picture");
    let run = Command::new("python3").arg(script).args(words).current_dir(folder).output();
    let run = run.map_err(|error| format!("python3: {error}"))?;
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    Ok(String::from_utf8(run.stdout).unwrap())
}

/// To draw it anew: docs/picture/record has the commands.
#[test]
fn the_picture_is_what_its_script_makes_of_the_recording() {
    let drawn = match written_by("render", &["reap.ansi"]) {
        Ok(drawn) => drawn,
        Err(reason) => return println!("skipped: {reason}"),
    };
    assert_eq!(drawn, text("docs/picture/reap.svg"));
}

/// To measure and draw them anew: benches/growth.sh.
#[test]
fn the_curves_of_growth_are_what_their_script_makes_of_the_measured_rows() {
    let drawn = match written_by("curves", &["growth.tsv"]) {
        Ok(drawn) => drawn,
        Err(reason) => return println!("skipped: {reason}"),
    };
    assert_eq!(drawn, text("docs/picture/growth.svg"));
}

#[test]
fn the_table_of_growth_is_what_its_script_makes_of_the_measured_rows() {
    let table = match written_by("curves", &["--table", "growth.tsv"]) {
        Ok(table) => table,
        Err(reason) => return println!("skipped: {reason}"),
    };
    assert!(text("docs/performance.md").contains(&table), "not in docs/performance.md:\n{table}");
}

#[test]
fn every_series_of_growth_was_measured_at_every_step() {
    let script = text("benches/growth.sh");
    let rows = text("docs/picture/growth.tsv");
    let (_, steps) = script.split_once("declare -A steps=(\n").expect("the steps");
    let (steps, _) = steps.split_once("\n)").expect("their end");
    for line in steps.lines() {
        let (series, steps) = line.trim().split_once('=').expect("a series and its steps");
        let series = series.trim_matches(['[', ']']);
        for step in steps.trim_matches('\'').split(' ') {
            let row = format!("\n{series}\t{step}\tspread\tportreeve\t");
            assert!(rows.contains(&row), "'{series}' was not measured at {step}");
        }
    }
}
