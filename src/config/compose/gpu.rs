//! The GPUs that a service of a compose file asks for: `deploy.resources.reservations.devices` with the capability `gpu`, and
//! compose v2's `gpus`.

use super::{
    super::yaml::{Node, Value},
    answer::{get, items, text},
};
use crate::ident::GpuName;

/// No host has more.
const MOST_GPUS: u32 = 256;

/// The GPUs by name, each once. Errors on a device that is not understood; the sentence says what is not.
pub(super) fn gpus(service: &Node) -> Result<Vec<GpuName>, String> {
    let reserved = ["deploy", "resources", "reservations", "devices"];
    let reserved = reserved.iter().try_fold(service, |node, key| get(node, key));
    let reserved = items(reserved, "reserved devices")?;
    let has_gpu = |device: &&Node| {
        let capabilities = get(device, "capabilities").map(|node| &node.value);
        let Some(Value::List(all)) = capabilities else { return false };
        all.iter().any(|capability| matches!(text(capability), Some("gpu" | "nvidia")))
    };
    let asked = match get(service, "gpus") {
        Some(node) if text(node) == Some("all") => return Ok(vec![GpuName::All]),
        node => items(node, "gpus")?,
    };
    let mut gpus: Vec<GpuName> = Vec::new();
    for device in reserved.iter().filter(has_gpu).chain(asked) {
        for gpu in named(device)? {
            if !gpus.contains(&gpu) {
                gpus.push(gpu);
            }
        }
    }
    Ok(gpus)
}

/// Those of one device: by id, or the first so many, as the engine counts them (`countToDevices` of moby's
/// daemon/nvidia_linux.go); all where neither is said.
fn named(device: &Node) -> Result<Vec<GpuName>, String> {
    let ids = items(get(device, "device_ids"), "device_ids")?;
    if !ids.is_empty() {
        let gpu = |id: &Node| {
            let gpu = text(id).and_then(|id| id.parse().ok());
            gpu.ok_or_else(|| format!("its GPU is {}", id.value.describe()))
        };
        return ids.iter().map(gpu).collect();
    }
    let count = get(device, "count");
    match count.and_then(text) {
        None | Some("all" | "-1") => Ok(vec![GpuName::All]),
        Some(number) => match number.parse() {
            Ok(number) if number <= MOST_GPUS => Ok((0..number).map(GpuName::Index).collect()),
            _ => Err(format!("the count of its GPUs is '{number}'")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml;

    fn read(text: &str) -> Result<String, String> {
        let gpus = gpus(&yaml::parse(text).ok().unwrap())?;
        Ok(gpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    fn reserved(device: &str) -> Result<String, String> {
        read(&format!("deploy: {{ resources: {{ reservations: {{ devices: [{device}] }} }} }}"))
    }

    #[test]
    fn every_form_of_a_gpu_is_read_and_other_devices_are_not() {
        for (device, expected) in [
            ("{ driver: nvidia, device_ids: ['0', '2'], capabilities: [gpu] }", "0 2"),
            ("{ capabilities: [gpu], count: 2 }", "0 1"),
            ("{ capabilities: [gpu], count: -1 }", "all"),
            ("{ capabilities: [gpu], count: all }", "all"),
            ("{ capabilities: [gpu] }", "all"),
            ("{ capabilities: [tpu], count: 1 }", ""),
        ] {
            assert_eq!(reserved(device).unwrap(), expected, "{device}");
        }
        for (service, expected) in [
            ("gpus: all", "all"),
            ("gpus: [{ count: -1 }]", "all"),
            (
                "gpus: [{ driver: nvidia, device_ids: [GPU-2c1e4a5b-0000-1111-2222-0123456789ab] }]",
                "GPU-2c1e4a5b-0000-1111-2222-0123456789ab",
            ),
            ("gpus: [{ capabilities: [gpu], count: 2 }]", "0 1"),
            ("image: x", ""),
        ] {
            assert_eq!(read(service).unwrap(), expected, "{service}");
        }
    }

    #[test]
    fn what_names_no_gpu_is_refused() {
        for device in [
            "{ capabilities: [gpu], device_ids: [card0] }",
            "{ capabilities: [gpu], device_ids: 0 }",
            "{ capabilities: [gpu], count: some }",
            "{ capabilities: [gpu], count: 4294967295 }",
        ] {
            assert!(reserved(device).is_err(), "{device}");
        }
    }
}
