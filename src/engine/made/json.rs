//! How both engines write a container in Docker's API, and what we make of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    super::{
        answer::{self, Bindings, shown},
        is_whole,
        way::NoAnswer,
    },
    Inspected, Made, Phase,
};
use crate::ident::{ContainerId, Pid};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    id: String,
    names: Option<Vec<String>>,
    image: String,
    labels: Option<BTreeMap<String, String>>,
    state: String,
    network_settings: Option<Networks>,
    /// As Podman's command writes it.
    networks: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Networks {
    networks: Option<Map<String, Value>>,
}

pub(super) fn listed(json: Listed) -> Result<super::Listed, NoAnswer> {
    let id = ContainerId(json.id);
    if !is_whole(&id) {
        return Err(NoAnswer::Strange(format!("its list has '{}'", shown(&id.0))));
    }
    // Docker lists what other containers call it, too: `/other/alias`.
    let names = json.names.unwrap_or_default();
    let name = names.iter().find_map(|text| answer::name(text)).unwrap_or_else(|| id.short());
    let networks = json.network_settings.and_then(|settings| settings.networks);
    let networks = networks.unwrap_or_default().into_iter().map(|(name, _)| name);
    Ok(super::Listed {
        name: name.to_owned(),
        labels: json.labels.unwrap_or_default(),
        state: Phase::of(&json.state),
        image: json.image,
        networks: networks.chain(json.networks.unwrap_or_default()).collect(),
        id,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    id: String,
    name: String,
    state: State,
    host_config: Option<HostConfig>,
    network_settings: Option<Forwarded>,
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Forwarded {
    ports: Option<Bindings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(clippy::struct_excessive_bools, reason = "as the engines write it")]
struct State {
    status: String,
    running: bool,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    restarting: bool,
    #[serde(default, rename = "OOMKilled")]
    oom_killed: bool,
    pid: u32,
    exit_code: Option<i64>,
    error: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    health: Option<Health>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    restart_policy: Option<RestartPolicy>,
    network_mode: Option<String>,
    device_requests: Option<Vec<DeviceRequest>>,
    devices: Option<Vec<Device>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeviceRequest {
    count: Option<i64>,
    #[serde(rename = "DeviceIDs")]
    ids: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Device {
    path_on_host: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    image: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    tty: bool,
}

pub(super) fn inspected(
    json: Container,
    asked: &str,
    counts_as_we_do: bool,
) -> Result<Inspected, NoAnswer> {
    let Container { id, name, state, host_config, network_settings, config } = json;
    let name = name.strip_prefix('/').unwrap_or(&name).to_owned();
    let id = ContainerId(id);
    if !is_whole(&id) || (asked != id.0 && asked != name) {
        let why = format!("it answered for another container, '{}'", shown(&id.0));
        return Err(NoAnswer::Strange(why));
    }
    let host = host_config.unwrap_or_default();
    let policy = host.restart_policy.and_then(|policy| policy.name);
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    // Go's zero of a time, which Docker writes for "never".
    let time = |text: Option<String>| set(text).filter(|text| !text.starts_with("0001-"));
    let ports = network_settings.and_then(|network| network.ports);
    let phase = phase(&state)?;
    let pid = Some(Pid(state.pid)).filter(|pid| counts_as_we_do && *pid != Pid::OUTSIDE);
    let made = Made {
        main_pid: pid,
        exit_code: state.exit_code.filter(|code| has_ended(&phase, *code)),
        state: phase,
        oom_killed: state.oom_killed,
        error: state.error.unwrap_or_default(),
        restart_policy: policy.map(|word| if word.is_empty() { "no".to_owned() } else { word }),
        started_at: time(state.started_at),
        finished_at: time(state.finished_at),
        health: set(state.health.and_then(|health| health.status)).filter(|word| word != "none"),
        device_requests: devices(host.device_requests, host.devices),
        network_mode: host.network_mode.unwrap_or_default(),
        published: ports.iter().flat_map(answer::published).collect(),
        image: config.image.unwrap_or_default(),
        labels: config.labels.unwrap_or_default(),
        id,
        name,
    };
    Ok(Inspected { made, has_terminal: config.tty })
}

/// A state that contradicts itself is none.
fn phase(json: &State) -> Result<Phase, NoAnswer> {
    let State { status, running, paused, restarting, .. } = json;
    match Phase::of(status) {
        Phase::Running if *restarting => Ok(Phase::Restarting),
        Phase::Running if *paused => Ok(Phase::Paused),
        // Where it speaks as Docker does, Podman calls a stopping one running, and says beside it that it does not run.
        Phase::Running if !running => Ok(Phase::Stopping),
        Phase::Created | Phase::Exited | Phase::Dead if *running => {
            let why = format!("its state is '{}', running: {running}", shown(status));
            Err(NoAnswer::Strange(why))
        }
        phase @ (Phase::Created
        | Phase::Running
        | Phase::Paused
        | Phase::Restarting
        | Phase::Stopping
        | Phase::Exited
        | Phase::Dead
        | Phase::Removing
        | Phase::Other(_)) => Ok(phase),
    }
}

/// Engines write 0 for a run that lasts or never was. After a start that failed Docker calls it created, with a code.
fn has_ended(phase: &Phase, code: i64) -> bool {
    match phase {
        Phase::Created => code != 0,
        Phase::Running | Phase::Paused | Phase::Stopping | Phase::Other(_) => false,
        Phase::Restarting | Phase::Exited | Phase::Dead | Phase::Removing => true,
    }
}

fn devices(requests: Option<Vec<DeviceRequest>>, devices: Option<Vec<Device>>) -> Vec<String> {
    let requested = requests.into_iter().flatten().flat_map(|request| {
        let ids = request.ids.unwrap_or_default();
        // -1 = all there are (Docker's `--gpus all`).
        let is_all = ids.is_empty() && request.count == Some(-1);
        if is_all { vec!["all".to_owned()] } else { ids }
    });
    let paths = devices.into_iter().flatten().map(|device| device.path_on_host);
    requested.chain(paths).collect()
}
