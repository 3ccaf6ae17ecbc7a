use proptest::prelude::*;

use super::*;
use crate::{
    act::container::Stopped,
    judge::verdict::Orphan,
    report::{
        escape::is_hidden,
        sample::{self, findings, port, process, verdict},
    },
    snapshot::Seen,
};

fn plain(width: Option<usize>) -> Style {
    Style { width, is_coloured: false, shows_evidence: false }
}

fn scanned(found: &Findings, style: Style) -> String {
    let mut out = Vec::new();
    render_findings(found, style, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn reaped(reaped: &Reaped, style: Style) -> String {
    let mut out = Vec::new();
    render_reaped(reaped, style, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

proptest! {
    #[test]
    fn flowing_text_keeps_its_words_and_breaks_no_command(
        words in prop::collection::vec(prop::sample::select(vec!["a", "its", "unit's", "'reap --also x'", "('b c')", "long-word"]), 0..30),
        columns in 24usize..60,
    ) {
        let text = words.join(" ");
        let mut page = Page { style: plain(Some(columns)), text: String::new() };
        page.told("  why  ", ORPHAN, &text);
        let lines: Vec<&str> = page.text.lines().collect();
        prop_assert!(lines.iter().all(|line| width(line) <= columns), "{}", page.text);
        let again: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
        let whole = format!("why  {text}");
        prop_assert_eq!(again.join(" "), whole.trim());
        let commands = |text: &str| text.matches("'reap --also x'").count();
        prop_assert_eq!(commands(&page.text), commands(&text));
    }
}

/// The file under tests/golden holds this text; with BLESS=1 it is written instead.
fn is_golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(&path).unwrap_or_default(),
        "{path}: BLESS=1 writes it anew"
    );
}

#[test]
fn a_look_is_shown_as_in_the_golden_files() {
    for (name, width) in [
        ("pipe", None),
        ("160", Some(160)),
        ("100", Some(100)),
        ("80", Some(80)),
        ("60", Some(60)),
        ("40", Some(40)),
    ] {
        is_golden(&format!("scan-{name}"), &scanned(&sample::mess(), plain(width)));
    }
    is_golden("scan-quiet", &scanned(&sample::quiet(), plain(Some(80))));
}

#[test]
fn a_reap_is_shown_as_in_the_golden_files() {
    for (name, width) in [("pipe", None), ("100", Some(100)), ("60", Some(60)), ("40", Some(40))] {
        is_golden(&format!("reap-badly-{name}"), &reaped(&sample::reaped_badly(), plain(width)));
    }
    is_golden("reap-well", &reaped(&sample::reaped(), plain(Some(100))));
    is_golden("reap-nothing", &reaped(&sample::reaped_nothing(), plain(Some(100))));
}

#[test]
fn colour_adds_nothing_but_sgr_sequences() {
    for width in [None, Some(100), Some(40)] {
        let coloured = Style { width, is_coloured: true, shows_evidence: false };
        let text = scanned(&sample::mess(), coloured);
        assert!(text.contains("\u{1b}[31morphan: not where aidb runs\u{1b}[0m"));
        assert_eq!(without_sgr(&text), scanned(&sample::mess(), plain(width)));
        let text = reaped(&sample::reaped_badly(), coloured);
        assert_eq!(without_sgr(&text), reaped(&sample::reaped_badly(), plain(width)));
    }
}

#[test]
fn no_row_is_wider_than_the_terminal_but_a_next_step_is_never_cut() {
    for columns in 60..200 {
        let text = scanned(&sample::mess(), plain(Some(columns)));
        let (table, _) = text.split_once("free:").unwrap();
        for line in table.lines() {
            assert!(
                width(line) <= columns || line.trim_start().starts_with("next: "),
                "{columns}: {line:?}"
            );
        }
        assert!(
            text.contains("next: portreeve reap llama-cpp --also abandoned, or declare runs_in\n")
        );
    }
}

#[test]
fn a_hostile_command_line_stays_on_its_line_and_is_cut() {
    let huge = "x".repeat(2 << 20);
    let lines: [&[u8]; 6] = [
        b"\x1b]0;owned\x07\x1b[2J",
        b"a\nfree: 8091",
        "\u{202e}txt.\u{2066}".as_bytes(),
        b"\xff\xfe\x80",
        huge.as_bytes(),
        b"",
    ];
    for width in [None, Some(100), Some(60), Some(20), Some(1), Some(0)] {
        let orphan = Finding::Orphan(Orphan::Worker("vllm".into()));
        let verdicts = lines
            .iter()
            .zip(1..)
            .map(|(line, pid)| Verdict::sample(process(pid, line), orphan.clone()));
        let text = scanned(&findings(Vec::new(), verdicts.collect()), plain(width));
        assert!(is_harmless(&text), "{text}");
        assert!(text.len() < 4_000, "{width:?}: {}", text.len());
        assert!(!text.lines().any(|line| line.starts_with("free:")));
    }
}

#[test]
fn a_process_without_a_command_line_is_shown_by_its_name() {
    for line in [Seen::Gone, Seen::Denied, Seen::Unreadable("it hangs".into())] {
        let mut orphan = verdict(7, Finding::Orphan(Orphan::Worker("vllm".into())));
        orphan.process.command_line = line;
        assert!(
            scanned(&findings(Vec::new(), vec![orphan]), plain(None)).contains("  [python3]  ")
        );
    }
}

#[test]
fn a_holder_that_was_not_judged_is_shown_and_clears_nothing() {
    let text = scanned(
        &findings(vec![port("8091", PortState::Held(vec![Pid(7)]))], Vec::new()),
        plain(None),
    );
    assert!(text.contains("8091  aidb     7    -        not judged\n"), "{text}");
    assert!(
        text.ends_with("could not tell: no orphans · 0 of 1 guarded port free, 1 held\n"),
        "{text}"
    );
}

#[test]
fn ports_that_could_not_be_read_are_never_called_free() {
    let unread = PortState::Unknown(sample::unknown());
    let text = scanned(
        &findings(vec![port("8091", unread), port("8791", PortState::Free)], Vec::new()),
        plain(None),
    );
    assert!(text.contains("free: 8791\n"));
    assert!(text.contains("      next: run as root, or with CAP_SYS_PTRACE\n"));
    assert!(
        text.ends_with("could not tell: no orphans · 1 of 2 guarded ports free, 1 unknown\n"),
        "{text}"
    );
}

/// What is left of a text when our own colours are taken out.
fn without_sgr(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        let end = after.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap();
        assert_eq!(&after[end..=end], "m", "{after:?}");
        rest = &after[end + 1..];
    }
    plain + rest
}

fn is_harmless(text: &str) -> bool {
    !without_sgr(text).chars().any(|c| c != '\n' && is_hidden(c))
}

proptest! {
    #[test]
    fn whatever_foreign_text_is_in_it_a_report_holds_no_control_character_but_its_own(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
        text in "\\PC{0,20}|[\\x00-\\x1f\\x7f-\\u{9f}\\u{200b}-\\u{202e}\\u{2066}-\\u{2069}\\\\nx]{0,20}",
        width in prop::option::of(0usize..200),
        is_coloured: bool,
    ) {
        let mut found = sample::mess();
        for verdict in &mut found.verdicts {
            verdict.process = process(verdict.process.key.pid.0, &bytes);
            verdict.process.name.clone_from(&text);
            verdict.reason.clone_from(&text);
            verdict.next_step = Some(text.clone());
            verdict.services = vec![text.as_str().into()];
            verdict.finding = Finding::Orphan(Orphan::Misplaced(text.as_str().into()));
        }
        for port in &mut found.ports {
            port.sentence.clone_from(&text);
            port.service = Some(text.as_str().into());
            port.next_step = Some(text.clone());
        }
        found.unknowns[0].fact.clone_from(&text);
        found.unknowns[0].remedy = Some(text.clone());
        let style = Style { width, is_coloured, shows_evidence: false };
        prop_assert!(is_harmless(&scanned(&found, style)));

        let mut done = sample::reaped_badly();
        done.respawns[0].command_line.clone_from(&text);
        done.respawns[0].brought_by.clone_from(&text);
        done.respawns[0].like.clone_from(&text);
        done.respawns[0].next_step.clone_from(&text);
        for deed in &mut done.deeds {
            deed.outcome = match deed.outcome {
                Outcome::Replaced(_) => Outcome::Replaced(text.clone()),
                Outcome::Terminated(_) | Outcome::NotStopped(_) => Outcome::NotStopped(text.clone()),
                Outcome::Killed(_) | Outcome::Stopped(_) => Outcome::Stopped(Stopped {
                    end: End::Forced,
                    health: None,
                    rungs: vec![text.clone()],
                    is_removed: false,
                    took: std::time::Duration::ZERO,
                }),
                Outcome::HandedOver(_) | Outcome::Vanished | Outcome::Interrupted => {
                    Outcome::Refused(text.clone())
                }
                Outcome::Refused(_) | Outcome::Unkillable { .. } => {
                    Outcome::Unkillable { state: '\u{9b}', wait_channel: Some(text.clone()) }
                }
            };
        }
        done.after = found;
        prop_assert!(is_harmless(&reaped(&done, style)));
    }
}
