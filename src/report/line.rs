//! The report in one line of at most 80 bytes, for who keeps no more: node-problem-detector cuts what a plugin says at
//! `max_output_length`, 80 where nothing else is set (its `pkg/custompluginmonitor/plugin/plugin.go`). Numbers, ports and GPUs alone:
//! no foreign text is in it.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use super::{doctor, exit, gate, summary::Summary};
use crate::{
    doctor::Check,
    gate::Gated,
    ident::Endpoint,
    judge::{gate::Answer, port::PortVerdict, verdict::Finding},
    pipeline::{Findings, Reaped},
};

/// The newline left out.
const MOST_BYTES: usize = 80;

/// Writes what a look found.
pub fn render_findings(findings: &Findings, out: &mut dyn Write) -> io::Result<()> {
    let summary = Summary::of_findings(findings);
    let code = exit::of_findings(findings);
    write_line(word(code), &counts(&summary, findings), &places(findings), out)
}

/// Writes what became of a reap.
pub fn render_reaped(reaped: &Reaped, out: &mut dyn Write) -> io::Result<()> {
    let summary = Summary::of_reaped(reaped);
    let after = Summary::of_findings(&reaped.after);
    let mut counts = counts(&after, &reaped.after);
    let deeds = [
        (summary.not_ended, "not ended"),
        (reaped.respawns.len(), "came back"),
        (summary.ended, "ended"),
    ];
    counts.splice(0..0, deeds.iter().filter_map(|(count, what)| said(*count, what, what)));
    write_line(word(exit::of_reaped(reaped)), &counts, &places(&reaped.after), out)
}

/// Writes what the gate answered.
pub fn render_gated(
    gated: &Gated,
    on_blocked: gate::OnBlocked,
    out: &mut dyn Write,
) -> io::Result<()> {
    let answer = match gate::exit_code(gated, on_blocked) {
        exit::CLEAR => "open",
        exit::NOT_CLEAR => "blocked",
        _ => "could not tell",
    };
    let (open, shut): (Vec<_>, Vec<_>) =
        gate::places(gated).partition(|place| matches!(place.answer, Answer::Open(_)));
    let counts = format!("{} of {} open", open.len(), open.len() + shut.len());
    let shut: Vec<String> = shut.into_iter().map(|place| place.name).collect();
    write_line(answer, &[counts], &shut, out)
}

/// Writes what `doctor` found.
pub fn render_checks(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    let count = |state: &str| {
        let count = checks.iter().filter(|check| doctor::word(&check.state).0 == state).count();
        said(count, state, state)
    };
    let counts: Vec<String> =
        ["off", "unknown", "fallback", "absent", "good"].into_iter().filter_map(count).collect();
    let answer = match doctor::exit_code(checks) {
        exit::CLEAR => "nothing to mend",
        exit::NOT_CLEAR => "to mend",
        _ => "could not tell",
    };
    write_line(answer, &counts, &[], out)
}

fn word(code: u8) -> &'static str {
    match code {
        exit::CLEAR => "clear",
        exit::NOT_CLEAR => "not clear",
        _ => "could not tell",
    }
}

fn said(count: usize, one: &str, many: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{count} {many}")),
    }
}

/// What there is, the worst first.
fn counts(summary: &Summary, findings: &Findings) -> Vec<String> {
    let counts = [
        said(summary.orphans, "orphan", "orphans"),
        said(summary.suspects, "suspect", "suspects"),
        said(summary.unsupervised, "unsupervised", "unsupervised"),
        said(summary.foreign, "foreign", "foreign"),
        said(summary.model_containers, "model container", "model containers"),
        said(summary.gpus_short, "GPU short", "GPUs short"),
        said(summary.undecided, "undecided", "undecided"),
        said(summary.ports_unknown, "port unknown", "ports unknown"),
        said(summary.gpus_unknown, "GPU unknown", "GPUs unknown"),
        said(findings.unknowns.len(), "not seen", "not seen"),
        said(summary.ports_guarded, "port guarded", "ports guarded"),
        said(summary.ports_held, "held", "held"),
    ];
    counts.into_iter().flatten().collect()
}

/// The ports that are not as they should be, as the settings name them.
fn places(findings: &Findings) -> Vec<String> {
    let is_spare = |finding: &Finding| matches!(finding, Finding::Spare(_));
    let of_processes = findings.verdicts.iter().filter(|verdict| !is_spare(&verdict.finding));
    let held: BTreeSet<&Endpoint> = of_processes.flat_map(|verdict| &verdict.ports).collect();
    let is_amiss = |port: &&PortVerdict| {
        held.contains(&port.endpoint) || exit::of_port(port, &findings.verdicts) != exit::CLEAR
    };
    findings.ports.iter().filter(is_amiss).map(|port| port.endpoint.short()).collect()
}

/// `ANSWER: COUNT, COUNT; PLACE PLACE +N`: counts that find no room are left out, places that find none are counted.
fn write_line(
    answer: &str,
    counts: &[String],
    places: &[String],
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut line = answer.to_owned();
    for (count, mark) in counts.iter().zip([": "].into_iter().chain(std::iter::repeat(", "))) {
        if line.len() + mark.len() + count.len() > MOST_BYTES {
            break;
        }
        line.push_str(mark);
        line.push_str(count);
    }
    for (done, place) in places.iter().enumerate() {
        let mark = if done == 0 { "; " } else { " " };
        let rest = places.len() - done;
        // After this one there must still be room for how many are left.
        let more = if rest == 1 { String::new() } else { format!(" +{}", rest - 1) };
        if !place.is_ascii() || line.len() + mark.len() + place.len() + more.len() > MOST_BYTES {
            let more = format!("{mark}+{rest}");
            if line.len() + more.len() <= MOST_BYTES {
                line.push_str(&more);
            }
            break;
        }
        line.push_str(mark);
        line.push_str(place);
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn line(counts: &[&str], places: &[&str]) -> String {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let mut out = Vec::new();
        write_line("not clear", &owned(counts), &owned(places), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.strip_suffix('\n').unwrap().to_owned()
    }

    #[test]
    fn a_line_says_the_answer_the_counts_and_the_places() {
        assert_eq!(line(&[], &[]), "not clear");
        assert_eq!(
            line(&["2 orphans", "1 foreign"], &["8091", "5432"]),
            "not clear: 2 orphans, 1 foreign; 8091 5432"
        );
    }

    #[test]
    fn what_finds_no_room_is_counted_and_no_line_is_longer_than_eighty_bytes() {
        let ports: Vec<String> = (7000..7040).map(|port: u16| port.to_string()).collect();
        for count in 0..ports.len() {
            let ports: Vec<&str> = ports.iter().take(count).map(String::as_str).collect();
            for counts in [&["1 orphan"][..], &["1 orphan"; 12]] {
                let text = line(counts, &ports);
                assert!(text.len() <= MOST_BYTES, "{text}");
                let (_, places) = text.split_once("; ").unwrap_or_default();
                let words: Vec<&str> = places.split_whitespace().collect();
                let more = words.last().and_then(|word| word.strip_prefix('+'));
                let more: usize = more.map_or(0, |more| more.parse().unwrap());
                let shown = words.iter().filter(|word| !word.starts_with('+')).count();
                assert!(shown + more == count || places.is_empty(), "{count}: {text}");
            }
        }
    }

    #[test]
    fn no_foreign_text_is_in_the_line_of_a_mess() {
        let mut out = Vec::new();
        render_findings(&sample::mess(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("not clear: 2 orphans, "), "{text}");
        assert!(text.is_ascii() && text.len() <= MOST_BYTES + 1, "{text}");
        assert_eq!(text.lines().count(), 1);
        for foreign in ["4242", "server.py", "postgresql"] {
            assert!(!text.contains(foreign), "{foreign}: {text}");
        }
    }
}
