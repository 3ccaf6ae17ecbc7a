//! The body of `POST /containers/create`, in the words of Docker's API (1.41, Docker 20.10), which Podman's compatible API
//! takes too (4.3). What is none or empty is left out: the engine's default.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

/// The container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Create {
    /// The image.
    pub image: String,
    /// What follows the image's entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// What it is known again by.
    pub labels: BTreeMap<&'static str, String>,
    /// `8000/tcp`, each with `{}`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub exposed_ports: Map<String, Value>,
    /// Between SIGTERM and SIGKILL where somebody else stops it, in seconds. Without it Podman's API makes it 0; Podman waits it
    /// out in a removal by force, too, before which our ladder has killed.
    pub stop_timeout: u64,
    /// How it runs on this host.
    pub host_config: HostConfig,
}

/// How it runs on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    /// Always `no`.
    pub restart_policy: RestartPolicy,
    /// The network by name; `host` is the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    /// What is published.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    /// Folders and volumes. Not `Binds`, whose text is split at colons, and which make a folder that is not there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// Processors, in billionths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<i64>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
    /// Of `/dev/shm`, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<i64>,
    /// Always `private`: what a server leaves in shared memory goes with its container.
    pub ipc_mode: &'static str,
    /// GPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_requests: Vec<DeviceRequest>,
}

/// When the engine starts it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RestartPolicy {
    /// `no`.
    pub name: &'static str,
}

/// Where a port is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortBinding {
    /// The host's address.
    pub host_ip: String,
    /// The host's port, as text.
    pub host_port: String,
}

/// A folder or volume in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mount {
    /// `bind` or `volume`.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// The host's folder, or the volume's name.
    pub source: String,
    /// Where it stands.
    pub target: &'static str,
    /// Not to be written to.
    pub read_only: bool,
}

/// GPUs, by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeviceRequest {
    /// Empty = whoever is capable; `cdi`.
    pub driver: &'static str,
    /// UUIDs, or CDI's names.
    #[serde(rename = "DeviceIDs")]
    pub device_ids: Vec<String>,
    /// All of one of these lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Vec<&'static str>>,
}
