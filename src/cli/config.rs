//! `portreeve config`: check, show, schema.

use std::{
    fmt::Display,
    io::{self, Write},
    time::Duration,
};

use crate::{
    config::{
        Loaded,
        fragment::{self, At, ModelFragment, PatternFragment, Place, ServiceFragment},
        is_plain,
        settings::{
            Defaults, EngineUse, Engines, ForeignHolder, Gate, GpuSources, Protect, RunsIn,
        },
    },
    ident::{Endpoint, GpuName},
};

/// One line: what is guarded, and which files say so. Errors when the output cannot be written.
pub fn check(loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
    let ports: usize = loaded.settings.services.iter().map(|service| service.ports.len()).sum();
    let files: Vec<String> = loaded.layers.iter().map(|layer| layer.origin.to_string()).collect();
    let services = loaded.settings.services.len();
    let models = match loaded.settings.models.len() {
        0 => String::new(),
        models => format!("{models} models, "),
    };
    let files = files.join(", ");
    writeln!(out, "ok: {services} services, {ports} guarded ports, {models}files: {files}")
}

/// The JSON schema of a configuration file. Errors when the output cannot be written.
pub fn schema(out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &fragment::schema())?;
    writeln!(out)
}

/// The merged settings as YAML that loads again to the same settings, each value with its origin as a comment. Errors when
/// the output cannot be written.
pub fn show(loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
    let merged = &loaded.merged;
    writeln!(out, "defaults:")?;
    let otherwise = Defaults::default();
    let typed = &merged.defaults;
    for (key, value, otherwise) in [
        ("grace", &typed.grace, otherwise.grace),
        ("min_age", &typed.min_age, otherwise.min_age),
        ("respawn_watch", &typed.respawn_watch, otherwise.respawn_watch),
    ] {
        let (value, place) =
            value.as_ref().map_or((otherwise, None), |at| (at.value, Some(at.place)));
        writeln!(out, "  {key}: {} # {}", written(value), origin(loaded, place))?;
    }
    let holder = typed.foreign_holder.as_ref();
    let (value, place) =
        holder.map_or((otherwise.foreign_holder, None), |at| (at.value, Some(at.place)));
    writeln!(out, "  foreign_holder: {} # {}", word(value), origin(loaded, place))?;

    writeln!(out, "services:{}", if merged.services.is_empty() { " {}" } else { "" })?;
    for (name, service) in &merged.services {
        show_service(loaded, &key(&name.0), service, out)?;
    }

    writeln!(out, "models:{}", if merged.models.is_empty() { " {}" } else { "" })?;
    for (name, model) in &merged.models {
        show_model(loaded, &key(&name.0), model, out)?;
    }

    writeln!(out, "patterns:{}", if merged.patterns.is_empty() { " []" } else { "" })?;
    for At { value: worker, place } in &merged.patterns {
        let name = text(&worker.name.value);
        let grace = worker
            .grace
            .as_ref()
            .map(|grace| format!(", grace: {}", written(grace.value)))
            .unwrap_or_default();
        let regex = text(worker.regex.as_str());
        writeln!(
            out,
            "  - {{ name: {name}, kind: worker, match: {regex}{grace} }} # {}",
            origin(loaded, Some(*place))
        )?;
    }

    writeln!(out, "protect:{}", if merged.protect.is_empty() { " []" } else { "" })?;
    for At { value: rule, place } in &merged.protect {
        let (key, glob) = match rule {
            Protect::Unit(glob) => ("unit", glob),
            Protect::Exe(glob) => ("exe", glob),
        };
        writeln!(
            out,
            "  - {{ {key}: {} }} # {}",
            text(glob.glob().glob()),
            origin(loaded, Some(*place))
        )?;
    }

    show_engines(loaded, out)?;
    writeln!(out, "gate:")?;
    let (typed, otherwise) = (&merged.gate, Gate::default());
    for (key, typed, otherwise) in [
        ("timeout", &typed.timeout, otherwise.timeout),
        ("settle", &typed.settle, otherwise.settle),
        ("gpu_settle", &typed.gpu_settle, otherwise.gpu_settle),
    ] {
        let typed = typed.as_ref();
        let (value, place) = typed.map_or((otherwise, None), |at| (at.value, Some(at.place)));
        writeln!(out, "  {key}: {} # {}", written(value), origin(loaded, place))?;
    }
    let need = typed.gpu_free.as_ref();
    let (value, place) = need.map_or((otherwise.gpu_free, None), |at| (at.value, Some(at.place)));
    writeln!(out, "  gpu_free: '{value}' # {}", origin(loaded, place))?;
    show_gpus(loaded, out)?;

    for takeover in &loaded.takeovers {
        let (from, to) = (&takeover.from, &takeover.to);
        let (of, by) = (origin(loaded, Some(from.place)), origin(loaded, Some(to.place)));
        writeln!(
            out,
            "# {} of {} ({of}) is taken over by {} ({by})",
            takeover.endpoint, from.value, to.value
        )?;
    }
    show_composed(loaded, out)
}

/// Who read which compose files, and what of them guards nothing: comments, since what they publish stands above.
fn show_composed(loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
    for composed in &loaded.composed {
        let files: Vec<String> =
            composed.files.iter().map(|file| text(&file.to_string_lossy())).collect();
        writeln!(out, "# {} is read by {}", files.join(", "), composed.by)?;
        for remark in &composed.remarks {
            writeln!(out, "#   {remark}")?;
        }
    }
    Ok(())
}

fn show_gpus(loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "gpus:")?;
    let (typed, otherwise) = (&loaded.merged.gpus, GpuSources::default());
    show_use("nvml", typed.nvml.as_ref(), &otherwise.nvml, loaded, out)?;
    show_use("nvidia_smi", typed.nvidia_smi.as_ref(), &otherwise.nvidia_smi, loaded, out)?;
    let timeout = typed.timeout.as_ref();
    let (value, place) = timeout.map_or((otherwise.timeout, None), |at| (at.value, Some(at.place)));
    writeln!(out, "  timeout: {} # {}", written(value), origin(loaded, place))
}

fn show_use(
    key: &str,
    typed: Option<&At<EngineUse>>,
    otherwise: &EngineUse,
    loaded: &Loaded,
    out: &mut dyn Write,
) -> io::Result<()> {
    let value = match typed.map_or(otherwise, |at| &at.value) {
        EngineUse::Auto => "auto".to_owned(),
        // Without quotes older YAML reads it as false.
        EngineUse::Off => "'off'".to_owned(),
        EngineUse::At(path) => text(&path.to_string_lossy()),
    };
    writeln!(out, "  {key}: {value} # {}", origin(loaded, typed.map(|at| at.place)))
}

fn show_engines(loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "engines:")?;
    let (typed, otherwise) = (&loaded.merged.engines, Engines::default());
    show_use("docker", typed.docker.as_ref(), &otherwise.docker, loaded, out)?;
    show_use("podman", typed.podman.as_ref(), &otherwise.podman, loaded, out)?;
    let ladder = otherwise.ladder;
    for (key, typed, otherwise) in [
        ("timeout", &typed.timeout, otherwise.timeout),
        ("stop_timeout", &typed.stop_timeout, ladder.stop_timeout),
        ("kill_timeout", &typed.kill_timeout, ladder.kill_timeout),
        ("remove_timeout", &typed.remove_timeout, ladder.remove_timeout),
    ] {
        let typed = typed.as_ref();
        let (value, place) = typed.map_or((otherwise, None), |at| (at.value, Some(at.place)));
        writeln!(out, "  {key}: {} # {}", written(value), origin(loaded, place))?;
    }
    Ok(())
}

fn show_service(
    loaded: &Loaded,
    key: &str,
    at: &At<ServiceFragment>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let ServiceFragment {
        enabled,
        runs_in,
        ports,
        reuse_addr,
        gpus,
        gpu_free,
        patterns,
        grace,
        foreign_holder,
    } = &at.value;
    if let Some(At { value: false, place }) = enabled {
        return writeln!(out, "  {key}: {{ enabled: false }} # {}", origin(loaded, Some(*place)));
    }
    let mut lines: Vec<(String, Place)> = Vec::new();
    if let Some(enabled) = enabled {
        lines.push(("enabled: true".to_owned(), enabled.place));
    }
    if let Some(place) = runs_in {
        let value = match &place.value {
            RunsIn::Container(None) => "container".to_owned(),
            RunsIn::Container(Some(name)) => format!("{{ container: {} }}", text(name)),
            RunsIn::Unit(unit) => format!("{{ unit: {} }}", text(&unit.0)),
        };
        lines.push((format!("runs_in: {value}"), place.place));
    }
    if let Some(ports) = ports {
        let all: Vec<String> = ports.value.iter().map(|port| endpoint(port.value)).collect();
        lines.push((format!("ports: [{}]", all.join(", ")), ports.place));
    }
    if let Some(reuse) = reuse_addr {
        lines.push((format!("reuse_addr: {}", reuse.value), reuse.place));
    }
    if let Some(gpus) = gpus {
        lines.push((format!("gpus: {}", listed_gpus(&gpus.value)), gpus.place));
    }
    if let Some(need) = gpu_free {
        lines.push((format!("gpu_free: '{}'", need.value), need.place));
    }
    if let Some(grace) = grace {
        lines.push((format!("grace: {}", written(grace.value)), grace.place));
    }
    if let Some(holder) = foreign_holder {
        lines.push((format!("foreign_holder: {}", word(holder.value)), holder.place));
    }
    if let Some(patterns) = patterns {
        let more = if patterns.value.is_empty() { " []" } else { "" };
        lines.push((format!("patterns:{more}"), patterns.place));
        lines.extend(
            patterns
                .value
                .iter()
                .map(|pattern| (format!("  - {}", listed(&pattern.value)), pattern.place)),
        );
    }
    show_lines(loaded, key, lines, at.place, out)
}

fn show_lines(
    loaded: &Loaded,
    key: &str,
    lines: Vec<(String, Place)>,
    place: Place,
    out: &mut dyn Write,
) -> io::Result<()> {
    if lines.is_empty() {
        return writeln!(out, "  {key}: {{}} # {}", origin(loaded, Some(place)));
    }
    writeln!(out, "  {key}:")?;
    for (line, place) in lines {
        writeln!(out, "    {line} # {}", origin(loaded, Some(place)))?;
    }
    Ok(())
}

fn show_model(
    loaded: &Loaded,
    key: &str,
    at: &At<ModelFragment>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let ModelFragment {
        enabled,
        backend,
        model,
        container,
        program,
        run_as,
        port,
        host,
        gpus,
        memory,
        cpu,
        pids,
        max_model_len,
        tensor_parallel,
        quantization,
        extra_args,
        image,
        models_dir,
        network,
        engine,
        health,
        health_interval,
        health_timeout,
        health_failures,
        health_delay,
        load_timeout,
    } = &at.value;
    if let Some(At { value: false, place }) = enabled {
        // Nothing below would be left to drop.
        return writeln!(out, "  # {key}: {{ enabled: false }} # {}", origin(loaded, Some(*place)));
    }
    let lines = [
        line("enabled", enabled.as_ref(), bool::to_string),
        line("backend", backend.as_ref(), ToString::to_string),
        line("model", model.as_ref(), |model| text(model)),
        line("container", container.as_ref(), bool::to_string),
        line("program", program.as_ref(), |path| text(&path.to_string_lossy())),
        line("run_as", run_as.as_ref(), |user| text(user)),
        line("port", port.as_ref(), ToString::to_string),
        line("host", host.as_ref(), |host| text(&host.to_string())),
        line("gpus", gpus.as_ref(), |gpus| listed_gpus(gpus)),
        line("memory", memory.as_ref(), |bytes| amount(*bytes)),
        line("cpu", cpu.as_ref(), |milli| format!("{}.{:03}", milli / 1000, milli % 1000)),
        line("pids", pids.as_ref(), u32::to_string),
        line("max_model_len", max_model_len.as_ref(), u32::to_string),
        line("tensor_parallel", tensor_parallel.as_ref(), u32::to_string),
        line("quantization", quantization.as_ref(), |one| one.word().to_owned()),
        line("extra_args", extra_args.as_ref(), |args| {
            let all: Vec<String> = args.iter().map(|arg| text(&arg.value)).collect();
            format!("[{}]", all.join(", "))
        }),
        line("image", image.as_ref(), |image| text(image)),
        line("models_dir", models_dir.as_ref(), |folder| text(&folder.to_string_lossy())),
        line("network", network.as_ref(), |network| text(network)),
        line("engine", engine.as_ref(), |engine| engine.word().to_owned()),
        line("health", health.as_ref(), bool::to_string),
        line("health_interval", health_interval.as_ref(), |time| written(*time)),
        line("health_timeout", health_timeout.as_ref(), |time| written(*time)),
        line("health_failures", health_failures.as_ref(), u32::to_string),
        line("health_delay", health_delay.as_ref(), |time| written(*time)),
        line("load_timeout", load_timeout.as_ref(), |time| written(*time)),
    ];
    show_lines(loaded, key, lines.into_iter().flatten().collect(), at.place, out)
}

fn line<T>(
    key: &str,
    at: Option<&At<T>>,
    written: impl Fn(&T) -> String,
) -> Option<(String, Place)> {
    at.map(|at| (format!("{key}: {}", written(&at.value)), at.place))
}

/// Bytes with the largest unit that needs no fraction.
fn amount(bytes: u64) -> String {
    let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    let whole = units.into_iter().find(|(_, shift)| bytes.is_multiple_of(1 << shift));
    whole.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

fn listed_gpus(gpus: &[At<GpuName>]) -> String {
    // A bus address without quotes is a number of base 60 to older YAML.
    let written = |gpu: &At<GpuName>| match &gpu.value {
        GpuName::Bus(address) => format!("'{address}'"),
        name @ (GpuName::All | GpuName::Index(_) | GpuName::Uuid(_)) => name.to_string(),
    };
    let all: Vec<String> = gpus.iter().map(written).collect();
    format!("[{}]", all.join(", "))
}

fn listed(pattern: &PatternFragment) -> String {
    let regex = text(pattern.regex.as_str());
    if pattern.is_portless { format!("{{ match: {regex}, portless: true }}") } else { regex }
}

/// `default`, or file and line. A value that no layer gives is the default of the settings.
fn origin(loaded: &Loaded, place: Option<Place>) -> impl Display {
    match place.and_then(|place| Some((place, loaded.layers.get(place.layer)?))) {
        Some((place, layer)) if place.layer > 0 => format!("{}:{}", layer.origin, place.line),
        Some(_) | None => "default".to_owned(),
    }
}

fn word(holder: ForeignHolder) -> &'static str {
    match holder {
        ForeignHolder::Report => "report",
        ForeignHolder::Reap => "reap",
    }
}

/// A duration with the largest unit that needs no fraction.
fn written(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if milliseconds.is_multiple_of(length) && (milliseconds > 0 || unit == "s") {
            return format!("{}{unit}", milliseconds / length);
        }
    }
    format!("{milliseconds}ms")
}

fn endpoint(endpoint: Endpoint) -> String {
    match endpoint.address {
        // A bracket opens a list.
        Some(address) if address.is_ipv6() => format!("'{endpoint}'"),
        Some(_) | None => endpoint.to_string(),
    }
}

/// A key that YAML cannot read as a number, a truth or nothing.
fn key(name: &str) -> String {
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&name.to_lowercase().as_str());
    if is_word { name.to_owned() } else { text(name) }
}

/// A text in quotes that YAML reads back as it is.
fn text(text: &str) -> String {
    if text.chars().all(is_plain) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if is_plain(c) => c.to_string(),
        c => format!("\\U{:08x}", u32::from(c)),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_written_with_its_largest_whole_unit() {
        for (milliseconds, expected) in [
            (0, "0s"),
            (500, "500ms"),
            (5000, "5s"),
            (1500, "1500ms"),
            (120_000, "2m"),
            (90_000, "90s"),
            (86_400_000, "24h"),
        ] {
            assert_eq!(written(Duration::from_millis(milliseconds)), expected);
        }
    }
}
