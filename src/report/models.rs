//! The models, for a person and for a program. docs/schema/models-v1.json is generated from the types below.

use std::{
    fmt,
    io::{self, Write},
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

use super::{
    Progress, Style,
    escape::{escape, width},
    json, leftovers,
    table::{DOUBT, GOOD, ORPHAN, PLAIN, Page, SPARED},
};
use crate::{
    backend::Spec,
    ident::ModelName,
    models::{
        State,
        health::Health,
        receipt::Receipt,
        registry::{Event, Record},
        service::Service,
        trouble::Trouble,
        unit::{gate_of, unit_of},
        usage::Usage,
    },
};

/// The models of a registry.
#[derive(Debug, Serialize, JsonSchema)]
struct Models {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// Every model that was asked about, by name.
    models: Vec<Model>,
}

/// What happened to models.
#[derive(Debug, Serialize, JsonSchema)]
struct Events {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// The newest last.
    events: Vec<Happened>,
}

/// Either document.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(title = "What 'portreeve model' writes with --json")]
#[expect(dead_code, reason = "for its schema only")]
enum Document {
    Models(Models),
    Events(Events),
    Healthy(Healthy),
    Leftovers(leftovers::Leftovers),
}

/// A model.
#[derive(Debug, Serialize, JsonSchema)]
struct Model {
    /// Its name.
    name: String,
    /// What it is doing: `stopped`, `starting`, `running`, `stopping`, `failed`.
    state: &'static str,
    /// Since when, in milliseconds since 1970.
    since_ms: i64,
    /// Why it is in that state; empty where that goes without saying.
    why: String,
    /// Its server: `vllm`, `llamacpp`, `ollama`, `tgi`, `sglang`.
    backend: Option<&'static str>,
    /// Its weights: a name of the backend's own, or a path.
    weights: Option<String>,
    /// It runs in a container.
    container: Option<bool>,
    /// The address that it serves.
    host: Option<String>,
    /// The port that it serves.
    port: Option<u16>,
    /// GPUs by name.
    gpus: Vec<String>,
    /// Memory in bytes.
    memory_bytes: Option<u64>,
    /// Processors, in thousandths.
    cpu_milli: Option<u32>,
    /// It is declared in the settings; else it is registered.
    declared: bool,
    /// What 'status' alone finds out.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Now>,
}

/// What a look at a model found.
#[derive(Debug, Serialize, JsonSchema)]
struct Now {
    /// Whether it is healthy; null = it was not asked.
    healthy: Option<bool>,
    /// What its health endpoint answered, in words.
    health: Option<String>,
    /// Its engine: `docker`, `podman`.
    engine: Option<&'static str>,
    /// Its container's name.
    container: Option<String>,
    /// Its unit: `portreeve-model-NAME.service`.
    unit: Option<String>,
    /// Whether it is started at boot; null = it has no unit.
    enabled: Option<bool>,
    /// How long it has been running, in milliseconds.
    uptime_ms: Option<u64>,
    /// How often systemd restarted it by itself, in a row.
    restarts: Option<u64>,
    /// Memory that it has, in bytes; null = nobody counts it.
    memory_bytes: Option<u64>,
    /// Processor time that it took since its start, in milliseconds.
    cpu_ms: Option<u64>,
    /// GPU memory that it has, in bytes.
    gpu_memory_bytes: Option<u64>,
    /// Why what it is doing could not be seen; null = it could.
    unseen: Option<String>,
}

/// How healthy a model is.
#[derive(Debug, Serialize, JsonSchema)]
struct Healthy {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// Its name.
    model: String,
    /// When it was asked, in milliseconds since 1970.
    at_ms: u64,
    /// What it answered, or what it is doing, in words.
    health: String,
}

/// A model, and what a look at it found.
#[derive(Debug)]
pub struct Status {
    /// As the registry has it.
    pub record: Record,
    /// What its health endpoint answered; none = it was not asked.
    pub health: Option<Health>,
    /// What was started for it.
    pub receipt: Option<Receipt>,
    /// Why what it is doing could not be seen.
    pub unseen: Option<String>,
    /// Its unit, where it has one.
    pub unit: Option<Service>,
    /// It is started at boot.
    pub is_enabled: bool,
    /// What its gate is doing, in systemd's word, where it is failed.
    pub gate: Option<String>,
    /// What it uses.
    pub usage: Usage,
}

impl Status {
    /// How long it has been running.
    fn uptime(&self) -> Option<Duration> {
        (self.record.state == State::Running).then(|| since(self.record.since_ms))
    }

    /// What systemd has done about it or is going to do, where that is more than its state says.
    fn remark(&self) -> Option<String> {
        let unit = self.unit.as_ref()?;
        if unit.waits_for_restart() {
            return Some("systemd is about to start it again".to_owned());
        }
        let journal = || format!("('journalctl -u {}')", gate_of(&self.record.name));
        match self.gate.as_deref().filter(|_| unit.active_state == "inactive") {
            Some("activating") => {
                return Some(format!("its gate waits for its ports and GPUs {}", journal()));
            }
            Some("failed") => {
                let why = "its gate was shut at its last start, and systemd does not try again";
                return Some(format!("{why} {}", journal()));
            }
            Some(_) | None => {}
        }
        let is_given_up = unit.active_state == "failed" && unit.restarts > 0;
        is_given_up.then(|| {
            format!(
                "systemd has given it up after {} restarts ('portreeve model start {}' tries again)",
                unit.restarts, self.record.name
            )
        })
    }

    /// It runs, and is not well.
    pub fn is_sick(&self) -> bool {
        self.health.as_ref().is_some_and(|health| !is_healthy(health))
    }
}

fn is_healthy(health: &Health) -> bool {
    *health == Health::Answered(crate::backend::Readiness::Ready)
}

/// Something that happened.
#[derive(Debug, Serialize, JsonSchema)]
struct Happened {
    /// Its number, rising.
    id: i64,
    /// When, in milliseconds since 1970.
    at_ms: i64,
    /// To which model.
    model: String,
    /// What, in a word.
    kind: String,
    /// What, in a sentence.
    detail: String,
}

/// The schema of either document, JSON Schema 2020-12.
pub fn schema() -> Schema {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Document>()
}

/// Writes models as a document.
pub fn render_list_json(records: &[Record], out: &mut dyn Write) -> io::Result<()> {
    json::write(&Models { version: 1, models: records.iter().map(model).collect() }, out)
}

/// Writes events as a document.
pub fn render_events_json(events: &[Event], out: &mut dyn Write) -> io::Result<()> {
    let happened = |event: &Event| Happened {
        id: event.id,
        at_ms: event.at_ms,
        model: event.model.0.clone(),
        kind: event.kind.clone(),
        detail: event.detail.clone(),
    };
    json::write(&Events { version: 1, events: events.iter().map(happened).collect() }, out)
}

fn model(record: &Record) -> Model {
    let spec = record.spec.as_ref();
    let gpus = spec.map(|spec| spec.gpus.as_slice()).unwrap_or_default();
    Model {
        name: record.name.0.clone(),
        state: record.state.word(),
        since_ms: record.since_ms,
        why: record.why.clone(),
        backend: spec.map(|spec| spec.backend.word()),
        weights: spec.map(|spec| spec.model.clone()),
        container: spec.map(|spec| spec.is_container),
        host: spec.map(|spec| spec.host.to_string()),
        port: spec.map(|spec| spec.port().number()),
        gpus: gpus.iter().map(ToString::to_string).collect(),
        memory_bytes: spec.and_then(|spec| spec.memory_bytes),
        cpu_milli: spec.and_then(|spec| spec.cpu_milli),
        declared: record.is_declared,
        now: None,
    }
}

/// Writes what looks at models found, as a document.
pub fn render_status_json(all: &[Status], out: &mut dyn Write) -> io::Result<()> {
    let now = |status: &Status| {
        let container = status.receipt.as_ref().and_then(|receipt| receipt.container.as_ref());
        Now {
            healthy: status.health.as_ref().map(is_healthy),
            health: status.health.as_ref().map(ToString::to_string),
            engine: container.map(|container| container.engine.word()),
            container: container.map(|container| container.name.clone()),
            unit: status.unit.as_ref().map(|_| unit_of(&status.record.name).0),
            enabled: status.unit.as_ref().map(|_| status.is_enabled),
            uptime_ms: status.uptime().map(in_ms),
            restarts: status.unit.as_ref().map(|unit| unit.restarts),
            memory_bytes: status.usage.memory_bytes,
            cpu_ms: status.usage.cpu_time.map(in_ms),
            gpu_memory_bytes: status.usage.gpu_bytes,
            unseen: status.unseen.clone(),
        }
    };
    let models = all.iter().map(|one| Model { now: Some(now(one)), ..model(&one.record) });
    json::write(&Models { version: 1, models: models.collect() }, out)
}

/// Writes what one model answered.
pub fn render_health(
    name: &ModelName,
    health: &str,
    is_json: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    if !is_json {
        return writeln!(out, "{name}: {}", escape(health, None));
    }
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let at_ms = u64::try_from(at).unwrap_or(u64::MAX);
    let document =
        Healthy { version: 1, model: name.to_string(), at_ms, health: health.to_owned() };
    json::write(&document, out)
}

/// What is said of models on their way, in one line of a terminal.
pub struct Voice(Mutex<Progress>);

impl Voice {
    /// Silent unless standard error is a terminal.
    pub fn new() -> Self {
        Self(Mutex::new(Progress::new(io::IsTerminal::is_terminal(&io::stderr()))))
    }

    /// Shows this in place of what was said last, of whichever model or container.
    pub fn say(&self, name: impl fmt::Display, text: &str) {
        if let Ok(mut progress) = self.0.lock() {
            progress.say(&format!("{name}: {text}"));
        }
    }
}

impl Default for Voice {
    fn default() -> Self {
        Self::new()
    }
}

/// Says on standard error why a model did not do what it was to do.
pub fn complain(name: &ModelName, what: &str, trouble: &Trouble) {
    tell(&format!("model '{name}' {what}"), trouble);
}

/// Says on standard error what is wrong with whom.
pub(super) fn tell(whom: &str, trouble: &Trouble) {
    let mut text = format!("error: {}: {}\n", escape(whom, None), escape(&trouble.why, None));
    if let Some(hint) = &trouble.hint {
        text = format!("{text}hint: {}\n", escape(hint, None));
    }
    if !trouble.log.is_empty() {
        text.push_str("the last that it wrote:\n");
    }
    for line in &trouble.log {
        text = format!("{text}    {}\n", escape(line, None));
    }
    let _ = anstream::stderr().write_all(text.as_bytes());
}

/// Writes a line for each model.
pub fn render_list(records: &[Record], style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    if records.is_empty() {
        page.line("no model is registered", PLAIN, "");
        page.line("next: ", PLAIN, "portreeve model register NAME --backend vllm --path MODEL");
        return out.write_all(page.text.as_bytes());
    }
    let head = ["NAME", "STATE", "SINCE", "BACKEND", "PORT", "GPUS", "MODEL"].map(str::to_owned);
    let rows: Vec<[String; 7]> = records.iter().map(cells).collect();
    let below = |n: usize| -> Vec<&str> {
        let why = records.get(n).map(|record| record.why.as_str()).filter(|why| !why.is_empty());
        why.into_iter().collect()
    };
    let states: Vec<State> = records.iter().map(|record| record.state).collect();
    columns(&mut page, &head, &rows, &states, below);
    out.write_all(page.text.as_bytes())
}

/// Writes what a look at each model found, a line for each.
pub fn render_status(all: &[Status], style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    if all.is_empty() {
        page.line("no model is registered", PLAIN, "");
        return out.write_all(page.text.as_bytes());
    }
    let head = [
        "NAME",
        "STATE",
        "HEALTH",
        "UPTIME",
        "RESTARTS",
        "MEMORY",
        "CPU",
        "GPU MEMORY",
        "PORT",
        "RUNS AS",
    ];
    let head = head.map(str::to_owned);
    let row = |status: &Status| -> [String; 10] {
        let [name, state, _, _, port, ..] = cells(&status.record);
        let health = match &status.health {
            Some(health) if is_healthy(health) => "healthy".to_owned(),
            Some(Health::Answered(crate::backend::Readiness::Loading)) => "loading".to_owned(),
            Some(Health::Answered(_) | Health::Silent(_)) => "unhealthy".to_owned(),
            None => "-".to_owned(),
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let bytes = |bytes: Option<u64>| or_dash(bytes.map(crate::snapshot::gibibytes));
        let container = status.receipt.as_ref().and_then(|receipt| receipt.container.as_ref());
        let unit = status.unit.as_ref().map(|_| unit_of(&status.record.name).0);
        [
            name,
            state,
            health,
            or_dash(status.uptime().map(roughly)),
            or_dash(status.unit.as_ref().map(|unit| unit.restarts.to_string())),
            bytes(status.usage.memory_bytes),
            or_dash(status.usage.cpu_time.map(roughly)),
            bytes(status.usage.gpu_bytes),
            port,
            or_dash(unit.or_else(|| container.map(|container| container.name.clone()))),
        ]
    };
    let rows: Vec<[String; 10]> = all.iter().map(row).collect();
    let sick: Vec<String> = all
        .iter()
        .map(|one| one.health.as_ref().filter(|_| one.is_sick()).map(ToString::to_string))
        .map(Option::unwrap_or_default)
        .collect();
    let unseen: Vec<String> = all
        .iter()
        .map(|one| one.unseen.as_ref().map(|why| format!("what it is doing is not known: {why}")))
        .map(Option::unwrap_or_default)
        .collect();
    let remarks: Vec<String> = all.iter().map(|one| one.remark().unwrap_or_default()).collect();
    let below = |n: usize| -> Vec<&str> {
        let why = all.get(n).map(|one| one.record.why.as_str());
        let more =
            [sick.get(n), unseen.get(n), remarks.get(n)].into_iter().flatten().map(String::as_str);
        why.into_iter().chain(more).filter(|text| !text.is_empty()).collect()
    };
    let states: Vec<State> = all.iter().map(|one| one.record.state).collect();
    columns(&mut page, &head, &rows, &states, below);
    out.write_all(page.text.as_bytes())
}

fn columns<'t, const N: usize>(
    page: &mut Page,
    head: &[String; N],
    rows: &[[String; N]],
    states: &[State],
    below: impl Fn(usize) -> Vec<&'t str>,
) {
    let widths: Vec<usize> = (0..head.len())
        .map(|n| {
            let cells = rows.iter().filter_map(|row| row.get(n)).chain(head.get(n));
            cells.map(|cell| width(cell)).max().unwrap_or_default()
        })
        .collect();
    line(page, head, &widths, anstyle::Style::new().bold());
    for (n, (row, state)) in rows.iter().zip(states).enumerate() {
        line(page, row, &widths, colour_of(*state));
        for text in below(n) {
            page.line("      ", SPARED, text);
        }
    }
}

/// The second cell is coloured.
fn line(page: &mut Page, cells: &[String], widths: &[usize], colour: anstyle::Style) {
    for (n, (cell, columns)) in cells.iter().zip(widths).enumerate() {
        page.paint(cell, if n == 1 { colour } else { PLAIN });
        if n + 1 < cells.len() {
            page.text.push_str(&" ".repeat(columns.saturating_sub(width(cell)) + 2));
        }
    }
    page.text.push('\n');
}

fn cells(record: &Record) -> [String; 7] {
    let Record { name, spec, state, since_ms, .. } = record;
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let of = |read: &dyn Fn(&Spec) -> Option<String>| or_dash(spec.as_ref().and_then(read));
    let gpus = |spec: &Spec| {
        let all: Vec<String> = spec.gpus.iter().map(ToString::to_string).collect();
        (!all.is_empty()).then(|| all.join(","))
    };
    [
        name.0.clone(),
        state.to_string(),
        if *since_ms == 0 { "-".to_owned() } else { ago(*since_ms) },
        of(&|spec| Some(spec.backend.to_string())),
        of(&|spec| Some(spec.port().to_string())),
        of(&gpus),
        of(&|spec| Some(escape(&spec.model, Some(60)))),
    ]
}

fn colour_of(state: State) -> anstyle::Style {
    match state {
        State::Running => GOOD,
        State::Starting | State::Stopping => DOUBT,
        State::Failed => ORPHAN,
        State::Stopped => SPARED,
    }
}

/// How long ago.
fn ago(at_ms: i64) -> String {
    roughly(since(at_ms))
}

fn since(at_ms: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(u64::try_from(at_ms).unwrap_or_default()))
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// In the largest unit that is whole.
fn roughly(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Writes all that is wanted of one model.
pub fn render_model(record: &Record, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    page.paint(&record.name.0, anstyle::Style::new().bold());
    page.text.push_str("  ");
    page.paint(record.state.word(), colour_of(record.state));
    page.text.push('\n');
    let fact = |page: &mut Page, name: &str, value: String| {
        page.told(&format!("  {name:16}  "), SPARED, &value);
    };
    fact(&mut page, "since", format!("{} ago", ago(record.since_ms)));
    if !record.why.is_empty() {
        fact(&mut page, "why", record.why.clone());
    }
    for (name, value) in record.spec.as_ref().map(wanted).unwrap_or_default() {
        fact(&mut page, name, value);
    }
    out.write_all(page.text.as_bytes())
}

/// What a spec says, in words; what it leaves to its backend is left out.
fn wanted(spec: &Spec) -> Vec<(&'static str, String)> {
    let gpus: Vec<String> = spec.gpus.iter().map(ToString::to_string).collect();
    let place = if spec.is_container { "a container" } else { "a process" };
    let all = [
        ("backend", Some(spec.backend.to_string())),
        ("model", Some(spec.model.clone())),
        ("runs as", Some(place.to_owned())),
        ("program", spec.program.as_ref().map(|path| path.display().to_string())),
        ("user", spec.run_as.clone()),
        (
            "serves",
            Some(match spec.port {
                Some(port) => format!("{}, port {port}", spec.host),
                None => format!("{}, the backend's port", spec.host),
            }),
        ),
        ("gpus", (!gpus.is_empty()).then(|| gpus.join(", "))),
        ("memory", spec.memory_bytes.map(crate::snapshot::gibibytes)),
        ("processors", spec.cpu_milli.map(|milli| format!("{}.{:03}", milli / 1000, milli % 1000))),
        ("processes", spec.pids.map(|pids| format!("{pids} at most"))),
        ("context", spec.max_model_len.map(|tokens| format!("{tokens} tokens"))),
        ("tensor parallel", spec.tensor_parallel.map(|gpus| format!("{gpus} GPUs"))),
        ("quantization", spec.quantization.map(|one| one.word().to_owned())),
        ("extra arguments", (!spec.extra_args.is_empty()).then(|| spec.extra_args.join(" "))),
        ("image", spec.image.clone()),
        ("models folder", spec.models_dir.as_ref().map(|path| path.display().to_string())),
        ("network", spec.network.clone()),
        ("engine", spec.engine.map(|engine| engine.kind().to_string())),
        ("health", spec.skips_health.then(|| "not asked".to_owned())),
        ("may load for", spec.load_timeout.map(|time| format!("{} s", time.as_secs()))),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Writes a line for each event.
pub fn render_events(events: &[Event], style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    if events.is_empty() {
        page.line("nothing has happened yet", PLAIN, "");
    }
    for Event { at_ms, model, kind, detail, .. } in events {
        let when = format!("{:>8} ago", ago(*at_ms));
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        page.line(&format!("{when}  "), SPARED, &format!("{model}  {kind}{detail}"));
    }
    out.write_all(page.text.as_bytes())
}
