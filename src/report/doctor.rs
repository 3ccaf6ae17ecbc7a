//! What `doctor` found: for a person by areas, each finding with its fix below it; for a program as one JSON document
//! (docs/doctor.md promises what stays, docs/schema/doctor-v1.json is generated from the types below).

use std::io::{self, Write};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

use super::{
    Style,
    escape::{escape, width},
    exit, json,
    table::{self, DOUBT, GOOD, ORPHAN, Page, SPARED},
};
use crate::doctor::{Area, Check, State};

/// Columns of the longest word of a state, and a gap.
const WORD: usize = 10;
const INDENT: usize = 2;

/// 1 where something is off, else 2 where something could not be learnt, else 0.
pub fn exit_code(checks: &[Check]) -> u8 {
    let codes = checks.iter().map(|check| match check.state {
        State::Good | State::Fallback | State::Absent => exit::CLEAR,
        State::Off { .. } => exit::NOT_CLEAR,
        State::Unknown { .. } => exit::COULD_NOT_TELL,
    });
    codes.fold(exit::CLEAR, exit::worse)
}

/// Writes the findings for a person.
pub fn render(checks: &[Check], style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    for area in Area::ALL {
        let mut of_area = checks.iter().filter(|check| check.area == area).peekable();
        if of_area.peek().is_some() {
            page.blank();
            page.paint(title(area), anstyle::Style::new().bold());
            page.text.push('\n');
        }
        of_area.for_each(|check| finding(&mut page, check));
    }
    page.blank();
    let (label, colour) = match exit_code(checks) {
        exit::CLEAR => ("nothing wants mending: ", GOOD),
        exit::NOT_CLEAR => ("to mend: ", ORPHAN),
        _ => ("could not tell: ", DOUBT),
    };
    page.line(label, colour, &sum(checks));
    out.write_all(page.text.as_bytes())
}

fn title(area: Area) -> &'static str {
    match area {
        Area::Rights => "rights",
        Area::Kernel => "kernel",
        Area::Systemd => "systemd",
        Area::Engines => "engines",
        Area::Gpus => "GPUs",
        Area::Config => "configuration",
        Area::Models => "models",
        Area::Ports => "ports",
    }
}

pub(super) fn word(state: &State) -> (&'static str, Word, anstyle::Style) {
    match state {
        State::Good => ("good", Word::Good, GOOD),
        State::Fallback => ("fallback", Word::Fallback, SPARED),
        State::Absent => ("absent", Word::Absent, SPARED),
        State::Off { .. } => ("off", Word::Off, ORPHAN),
        State::Unknown { .. } => ("unknown", Word::Unknown, DOUBT),
    }
}

fn finding(page: &mut Page, check: &Check) {
    let (word, _, colour) = word(&check.state);
    // Where there are few columns what hangs below the word leaves too little.
    let indent = if page.is_narrow() { 2 * INDENT } else { INDENT + WORD };
    page.text.push_str(&" ".repeat(INDENT));
    page.paint(word, colour);
    let gap = if page.is_narrow() { 2 } else { WORD.saturating_sub(word.len()) };
    page.text.push_str(&" ".repeat(gap));
    let taken = INDENT + word.len() + gap;
    let below = format!("\n{}", " ".repeat(indent));
    let text = format!("{}: {}", check.name, check.detail);
    page.text.push_str(&wrapped(&text, page.style.width, indent, taken).join(&below));
    if let Some(fix) = check.fix() {
        // Never broken: a command is to be taken as it stands.
        page.text.push_str(&below);
        page.text.push_str("fix: ");
        page.text.push_str(&escape(fix, None));
    }
    page.text.push('\n');
}

/// The text, escaped, in lines that fit beside `indent` columns, the first beside `taken`; a word that is too long gets a line of
/// its own.
fn wrapped(text: &str, columns: Option<usize>, indent: usize, taken: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.split('\n') {
        let paragraph = escape(paragraph, None);
        let room = |lines: &[String]| {
            let before = if lines.is_empty() { taken } else { indent };
            columns.map_or(usize::MAX, |columns| columns.saturating_sub(before))
        };
        if width(&paragraph) <= room(&lines) {
            lines.push(paragraph);
            continue;
        }
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && width(&line) + 1 + width(word) > room(&lines) {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

fn sum(checks: &[Check]) -> String {
    let names = |is: fn(&State) -> bool| -> Vec<&str> {
        checks.iter().filter(|c| is(&c.state)).map(|c| c.name.as_str()).collect()
    };
    let off = names(|state| matches!(state, State::Off { .. }));
    let unknown = names(|state| matches!(state, State::Unknown { .. }));
    let other = names(|state| matches!(state, State::Fallback)).len();
    let mut parts: Vec<String> = Vec::new();
    if !off.is_empty() {
        parts.push(format!("{} off ({})", off.len(), off.join(", ")));
    }
    if !unknown.is_empty() {
        parts.push(format!("{} unknown ({})", unknown.len(), unknown.join(", ")));
    }
    if other > 0 {
        parts.push(table::counted(other, "fallback", "fallbacks"));
    }
    let good = names(|state| matches!(state, State::Good)).len();
    parts.push(format!("{good} good"));
    parts.join(" · ")
}

/// Writes the findings for a program.
pub fn render_json(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    let document = Document {
        version: 1,
        command: Command::Doctor,
        exit_code: exit_code(checks),
        checks: checks.iter().map(finding_of).collect(),
    };
    json::write(&document, out)
}

fn finding_of(check: &Check) -> Finding {
    let area = match check.area {
        Area::Rights => AreaWord::Rights,
        Area::Kernel => AreaWord::Kernel,
        Area::Systemd => AreaWord::Systemd,
        Area::Engines => AreaWord::Engines,
        Area::Gpus => AreaWord::Gpus,
        Area::Config => AreaWord::Config,
        Area::Models => AreaWord::Models,
        Area::Ports => AreaWord::Ports,
    };
    Finding {
        area,
        name: check.name.clone(),
        state: word(&check.state).1,
        detail: check.detail.clone(),
        fix: check.fix().map(str::to_owned),
    }
}

/// The schema of the document, JSON Schema 2020-12.
pub fn schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<Document>()
}

/// What portreeve may see and do on this machine.
#[derive(Debug, Serialize, JsonSchema)]
struct Document {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// The verb that reports.
    command: Command,
    /// The command's exit code: 0 nothing wants mending, 1 something is off, 2 something could not be learnt.
    exit_code: u8,
    /// Everything that was looked at, area by area.
    checks: Vec<Finding>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Command {
    /// `portreeve doctor`.
    Doctor,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, JsonSchema)]
struct Finding {
    /// What it is about.
    area: AreaWord,
    /// Its name within the area; of engines and files, their path.
    name: String,
    /// How it came out.
    state: Word,
    /// What that means here, in a sentence; of a broken configuration all its errors, one to a line.
    detail: String,
    /// What would mend it; null where there is nothing to mend.
    fix: Option<String>,
}

/// Areas of checks.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum AreaWord {
    /// What the process may do.
    Rights,
    /// What the kernel can do.
    Kernel,
    /// systemd and logind.
    Systemd,
    /// Container engines.
    Engines,
    /// GPUs.
    Gpus,
    /// Files of the configuration.
    Config,
    /// The registry of models.
    Models,
    /// Guarded ports.
    Ports,
}

/// States of a check.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// It is there and works.
    Good,
    /// Another way is taken; there is nothing to mend.
    Fallback,
    /// It is not here, and nothing misses it.
    Absent,
    /// Something does not work for want of this; its fix is named.
    Off,
    /// It could not be learnt.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(area: Area, state: State) -> Check {
        Check { area, name: "a name".into(), state, detail: "a detail".into() }
    }

    fn off() -> State {
        State::Off { fix: "do this".into() }
    }

    fn text(checks: &[Check], columns: Option<usize>) -> String {
        let mut out = Vec::new();
        render(
            checks,
            Style { width: columns, is_coloured: false, shows_evidence: false },
            &mut out,
        )
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_off_outranks_what_is_unknown_and_neither_fallback_nor_absence_counts() {
        let unknown = || State::Unknown { fix: None };
        for (states, code) in [
            (vec![], 0),
            (vec![State::Good, State::Fallback, State::Absent], 0),
            (vec![State::Good, unknown()], 2),
            (vec![unknown(), off()], 1),
            (vec![off(), unknown(), State::Good], 1),
        ] {
            let checks: Vec<Check> = states.into_iter().map(|s| check(Area::Rights, s)).collect();
            assert_eq!(exit_code(&checks), code, "{checks:?}");
        }
    }

    #[test]
    fn a_finding_stands_below_its_area_with_its_fix_and_in_the_last_line() {
        let checks = [check(Area::Rights, State::Good), check(Area::Ports, off())];
        assert_eq!(
            text(&checks, None),
            "rights\n  good      a name: a detail\n\nports\n  off       a name: a detail\n            fix: do this\n\n\
             to mend: 1 off (a name) · 1 good\n"
        );
    }

    #[test]
    fn a_long_detail_is_wrapped_to_the_terminal_and_a_fix_is_not() {
        let long = "word ".repeat(60).trim().to_owned();
        let checks =
            [Check { detail: long.clone(), ..check(Area::Kernel, State::Off { fix: long }) }];
        for columns in [30, 59, 60, 80, 200] {
            let text = text(&checks, Some(columns));
            assert_eq!(text.matches("word").count(), 120, "nothing is lost");
            for line in text.lines().filter(|l| !l.trim().starts_with("fix: ")) {
                assert!(width(line) <= columns.max(40), "{columns}: {line}");
            }
            assert_eq!(text.lines().filter(|l| l.contains("fix: ")).count(), 1);
        }
    }

    #[test]
    fn the_errors_of_a_configuration_keep_their_lines_and_lose_their_control_characters() {
        let detail = "x.yaml:1:2: wrong\n  1 | \x1b[31m\nhint: mend it".to_owned();
        let text =
            text(&[Check { detail, ..check(Area::Config, State::Unknown { fix: None }) }], None);
        let indent = " ".repeat(12);
        assert!(
            text.contains(&format!("wrong\n{indent}  1 | \\x1b[31m\n{indent}hint: mend it\n")),
            "{text}"
        );
    }
}
