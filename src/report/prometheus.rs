//! The report as text for node_exporter's textfile collector (Prometheus exposition format 0.0.4). A handful of
//! series a guarded port and nine for the rest: no pid and no command line ever becomes a label.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{doctor as report, exit, gate, gpu, judged, summary::Summary};
use crate::{
    act::{Outcome, tally::Tally},
    doctor::Check,
    gate::Gated,
    judge::{gate::Answer, gpu::GpuVerdict, port::PortState},
    pipeline::{Findings, Reaped},
};

/// Writes the metrics of what a look found.
pub fn render_findings(
    findings: &Findings,
    stops: Option<Tally>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut page = Page::default();
    // A series that is missing is told from one that is zero.
    if let Some(stops) = stops {
        page.stops(stops);
    }
    page.state(findings, &Summary::of_findings(findings), exit::of_findings(findings));
    out.write_all(page.0.as_bytes())
}

/// Writes the metrics of a reap and of what it left.
pub fn render_reaped(reaped: &Reaped, stops: Option<Tally>, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page::default();
    // A series that is missing is told from one that is zero.
    if let Some(stops) = stops {
        page.stops(stops);
    }
    page.state(&reaped.after, &Summary::of_reaped(reaped), exit::of_reaped(reaped));
    let outcomes = || judged(reaped).filter_map(|(_, outcome)| outcome);
    let count = |wanted: fn(&Outcome) -> bool| outcomes().filter(|o| wanted(o)).count();
    let ended = [
        ("terminated", count(|o| matches!(o, Outcome::Terminated(_)))),
        ("killed", count(|o| matches!(o, Outcome::Killed(_)))),
        ("stopped", count(|o| matches!(o, Outcome::Stopped(_)))),
        ("vanished", count(|o| matches!(o, Outcome::Vanished))),
        ("not_ended", count(|o| !o.is_gone())),
    ];
    page.family(
        "reap_processes",
        "Processes that the last reap was to end, by what became of them.",
    );
    for (outcome, count) in ended {
        page.sample("reap_processes", &[("outcome", outcome)], count);
    }
    page.family("reap_respawns", "Likes of ended processes that came back during the last reap.");
    page.sample("reap_respawns", &[], reaped.respawns.len());
    out.write_all(page.0.as_bytes())
}

/// Writes the metrics of what the gate found, apart from those of the other verbs.
pub fn render_gated(
    gated: &Gated,
    on_blocked: gate::OnBlocked,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut page = Page::default();
    page.family("gate_port", "Answer of the gate for each port: 1 for the one that it has.");
    for passage in &gated.ports {
        let endpoint = &passage.port.endpoint;
        let (number, proto) = (endpoint.port.to_string(), endpoint.proto.to_string());
        let address = endpoint.address.map(|a| a.to_string()).unwrap_or_default();
        let answer = match passage.answer {
            Answer::Open(_) => "open",
            Answer::Blocked(_) => "blocked",
            Answer::Unknown(_) => "unknown",
        };
        let labels = [
            ("port", number.as_str()),
            ("proto", &proto),
            ("address", &address),
            ("service", passage.port.service.as_ref().map_or("", |name| &name.0)),
            ("answer", answer),
        ];
        page.sample("gate_port", &labels, 1);
    }
    if !gated.gpus.is_empty() {
        page.family("gate_gpu", "Answer of the gate for each GPU: 1 for the one that it has.");
    }
    for passage in &gated.gpus {
        let answer = match passage.answer {
            Answer::Open(_) => "open",
            Answer::Blocked(_) => "blocked",
            Answer::Unknown(_) => "unknown",
        };
        page.sample("gate_gpu", &[("gpu", &passage.gpu.label), ("answer", answer)], 1);
    }
    page.family("gate_waited_milliseconds", "How long the gate took, in milliseconds.");
    let waited = usize::try_from(gated.waited.as_millis()).unwrap_or(usize::MAX);
    page.sample("gate_waited_milliseconds", &[], waited);
    page.family("gate_exit_code", "Exit code of gate: 0 open, 1 blocked, 2 could not tell.");
    page.sample("gate_exit_code", &[], gate::exit_code(gated, on_blocked).into());
    page.end_of("gate_last_run_timestamp_seconds");
    out.write_all(page.0.as_bytes())
}

/// Writes the metrics of what `doctor` found, apart from those of the other verbs: their files may lie side by side.
pub fn render_checks(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page::default();
    page.family("doctor_checks", "Things that doctor looked at, by how they came out.");
    for word in ["good", "fallback", "absent", "off", "unknown"] {
        let count = checks.iter().filter(|check| report::word(&check.state).0 == word).count();
        page.sample("doctor_checks", &[("state", word)], count);
    }
    page.family("doctor_exit_code", "Exit code of doctor: 0 nothing to mend, 1 off, 2 unknown.");
    page.sample("doctor_exit_code", &[], report::exit_code(checks).into());
    page.end_of("doctor_last_run_timestamp_seconds");
    out.write_all(page.0.as_bytes())
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn state(&mut self, findings: &Findings, summary: &Summary, code: u8) {
        self.family("port_state", "State of each guarded port: 1 for the one that it is in.");
        for port in &findings.ports {
            let number = port.endpoint.port.to_string();
            let proto = port.endpoint.proto.to_string();
            let address = port.endpoint.address.map(|a| a.to_string()).unwrap_or_default();
            let service = port.service.as_ref().map_or("", |name| &name.0);
            let labels = [
                ("port", number.as_str()),
                ("proto", &proto),
                ("address", &address),
                ("service", service),
                ("state", state(&port.state)),
            ];
            self.sample("port_state", &labels, 1);
        }
        self.gpus(&findings.gpus);
        self.family("processes", "Processes that were judged, by verdict.");
        for (verdict, count) in [
            ("orphan", summary.orphans),
            ("suspect", summary.suspects),
            ("unsupervised", summary.unsupervised),
            ("foreign", summary.foreign),
            ("undecided", summary.undecided),
            ("spare", summary.spared),
        ] {
            self.sample("processes", &[("verdict", verdict)], count);
        }
        if let Some(containers) = &findings.model_containers {
            self.family(
                "orphaned_model_containers",
                "Containers of models that run and that nothing needs.",
            );
            self.sample("orphaned_model_containers", &[], containers.len());
        }
        self.family("unknowns", "Things that could not be seen beyond single processes and ports.");
        self.sample("unknowns", &[], findings.unknowns.len());
        self.family("exit_code", "Exit code of the run: 0 clear, 1 not clear, 2 could not tell.");
        self.sample("exit_code", &[], code.into());
        self.end_of("last_run_timestamp_seconds");
    }

    /// None where no GPU is guarded.
    fn gpus(&mut self, gpus: &[GpuVerdict]) {
        if gpus.is_empty() {
            return;
        }
        self.family("gpu_state", "State of each guarded GPU: 1 for the one that it is in.");
        for verdict in gpus {
            let bus = verdict.gpu.as_ref().and_then(|gpu| gpu.bus.as_deref());
            let labels = [
                ("gpu", verdict.label.as_str()),
                ("bus", bus.unwrap_or_default()),
                ("state", gpu::word(&verdict.state)),
            ];
            self.sample("gpu_state", &labels, 1);
        }
        self.family("gpu_memory_free_bytes", "Free memory of each guarded GPU, where it is known.");
        for verdict in gpus {
            if let Some(memory) = gpu::memory(verdict) {
                let bytes = usize::try_from(memory.free_bytes).unwrap_or(usize::MAX);
                self.sample("gpu_memory_free_bytes", &[("gpu", &verdict.label)], bytes);
            }
        }
    }

    /// Over all runs, so that an alert can ask for the rate at which graceful stops fail.
    fn stops(&mut self, stops: Tally) {
        let name = "container_stops_total";
        let help = "Containers that were stopped, by how: in time, killed, or not at all.";
        let _ = write!(self.0, "# HELP portreeve_{name} {help}\n# TYPE portreeve_{name} counter\n");
        for (how, count) in
            [("graceful", stops.graceful), ("forced", stops.forced), ("failed", stops.failed)]
        {
            self.sample(name, &[("outcome", how)], usize::try_from(count).unwrap_or(usize::MAX));
        }
    }

    fn end_of(&mut self, name: &str) {
        self.family(name, "When the run ended, in seconds since 1970.");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.sample(name, &[], usize::try_from(now).unwrap_or_default());
    }

    fn family(&mut self, name: &str, help: &str) {
        let _ = write!(self.0, "# HELP portreeve_{name} {help}\n# TYPE portreeve_{name} gauge\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: usize) {
        let labels: Vec<String> =
            labels.iter().map(|(key, text)| format!("{key}=\"{}\"", label(text))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "portreeve_{name}{labels} {value}");
    }
}

/// A label's value: backslash, quote and newline are escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn state(state: &PortState) -> &'static str {
    match state {
        PortState::Free => "free",
        PortState::NoListener => "no_listener",
        PortState::Held(_) => "held",
        PortState::BoundOnly(_) => "bound_only",
        PortState::Ephemeral { .. } => "ephemeral",
        PortState::Connected { .. } => "connected",
        PortState::Lingering => "lingering",
        PortState::KernelOwned => "kernel_owned",
        PortState::Allocated(_) => "allocated",
        PortState::Detoured(_) => "detoured",
        PortState::HolderNotVisible => "holder_not_visible",
        PortState::Unknown(_) => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    const STOPS: Tally = Tally { graceful: 7, forced: 2, failed: 1 };

    /// The text, its samples in the order in which they stand.
    fn samples(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn each_port_has_one_state_and_no_pid_or_command_line_is_in_the_text() {
        let mut out = Vec::new();
        render_findings(&sample::mess(), Some(STOPS), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let ports: Vec<&str> =
            samples(&text).into_iter().filter(|l| l.starts_with("portreeve_port_state")).collect();
        assert_eq!(ports.len(), sample::mess().ports.len());
        assert_eq!(
            ports[5],
            r#"portreeve_port_state{port="8098",proto="udp",address="::1",service="ralph-wiggum",state="free"} 1"#
        );
        assert!(text.contains("portreeve_processes{verdict=\"orphan\"} 2\n"), "{text}");
        assert!(text.contains("portreeve_exit_code 1\n"));
        assert!(text.contains("portreeve_orphaned_model_containers 1\n"), "{text}");
        assert!(text.contains("portreeve_container_stops_total{outcome=\"forced\"} 2\n"), "{text}");
        for foreign in ["4242", "server.py", "postgresql"] {
            assert!(!text.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_reap_says_how_many_ended_in_which_way() {
        let mut out = Vec::new();
        render_reaped(&sample::reaped_badly(), Some(STOPS), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let of_reap: Vec<&str> =
            samples(&text).into_iter().filter(|l| l.starts_with("portreeve_reap")).collect();
        assert_eq!(
            of_reap,
            [
                r#"portreeve_reap_processes{outcome="terminated"} 1"#,
                r#"portreeve_reap_processes{outcome="killed"} 1"#,
                r#"portreeve_reap_processes{outcome="stopped"} 0"#,
                r#"portreeve_reap_processes{outcome="vanished"} 1"#,
                r#"portreeve_reap_processes{outcome="not_ended"} 4"#,
                "portreeve_reap_respawns 1",
            ]
        );
    }

    #[test]
    fn a_service_of_any_name_stays_inside_its_label() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
