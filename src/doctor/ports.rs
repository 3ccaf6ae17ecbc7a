//! Guarded ports that the kernel may hand to outgoing connections, and the file that keeps it from doing so
//! (Documentation/networking/ip-sysctl.rst, ip_local_reserved_ports).

use std::collections::{BTreeMap, BTreeSet};

use super::{Area, Check, State, off};
use crate::{config::settings::Settings, host::Host, observe, snapshot::Seen};

const KEY: &str = "net.ipv4.ip_local_reserved_ports";
/// Read by systemd-sysctl.service at boot, and by `sysctl --system`.
const FILE: &str = "/etc/sysctl.d/60-portreeve.conf";

/// What the kernel does with ports of its own choice, in our network namespace.
#[derive(Debug)]
pub(super) struct Ports {
    /// From which range it takes them, both ends in it.
    range: Seen<(u16, u16)>,
    /// Which it leaves alone.
    reserved: Seen<BTreeSet<u16>>,
}

/// Why no file was written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{what}' cannot be read: {why}\nhint: nothing was written, since a line that is not complete takes back what others \
     reserved"
)]
pub struct SysctlError {
    what: &'static str,
    why: String,
}

pub(super) fn look(host: &Host) -> Ports {
    Ports {
        range: observe::ephemeral_ports(host),
        reserved: observe::reserved_ports(host).parse(|text| parse(&text)),
    }
}

/// The file for `/etc/sysctl.d` that keeps outgoing connections off the guarded ports: what is reserved here already
/// stays so. Errors where that, the range of outgoing connections, or which models are registered could not be read.
pub fn sysctl_file(host: &Host, settings: &Settings) -> Result<String, SysctlError> {
    if let Some(unread) = &settings.unread_models {
        return Err(SysctlError { what: "the registry of models", why: unread.why.clone() });
    }
    let ports = look(host);
    let reserved = known(&ports.reserved, "/proc/sys/net/ipv4/ip_local_reserved_ports")?;
    let range = known(&ports.range, "/proc/sys/net/ipv4/ip_local_port_range")?;
    let clashes = clashes(*range, reserved, settings);
    let all: BTreeSet<u16> = reserved.iter().chain(clashes.keys()).copied().collect();
    Ok(format!(
        "# Ports that the kernel keeps outgoing connections off: what this host had reserved, and the guarded ports\n\
         # of portreeve in ip_local_port_range. Written by 'portreeve doctor --sysctl' for {FILE}.\n\
         # The last file that sets this key wins: write it anew when another one changes.\n\
         {KEY} = {}\n",
        written(&all)
    ))
}

fn known<'a, T>(seen: &'a Seen<T>, what: &'static str) -> Result<&'a T, SysctlError> {
    match seen {
        Seen::Known(value) => Ok(value),
        unseen @ (Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => {
            Err(SysctlError { what, why: why(unseen) })
        }
    }
}

fn why<T>(unseen: &Seen<T>) -> String {
    match unseen {
        Seen::Known(_) | Seen::Gone => "no such file".to_owned(),
        Seen::Denied => "permission denied".to_owned(),
        Seen::Unreadable(why) => why.clone(),
    }
}

/// Guarded ports in the range that are not reserved, with their services.
fn clashes(
    (low, high): (u16, u16),
    reserved: &BTreeSet<u16>,
    settings: &Settings,
) -> BTreeMap<u16, BTreeSet<String>> {
    let mut clashes: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for service in &settings.services {
        let numbers = service.ports.iter().map(|endpoint| endpoint.port.number());
        for number in numbers.filter(|n| (low..=high).contains(n) && !reserved.contains(n)) {
            clashes.entry(number).or_default().insert(service.name.to_string());
        }
    }
    clashes
}

pub(super) fn checks(ports: &Ports, settings: Option<&Settings>) -> Vec<Check> {
    vec![check(ports, settings)]
}

fn check(ports: &Ports, settings: Option<&Settings>) -> Check {
    let new = |state, detail| {
        Check::new(Area::Ports, "outgoing connections off guarded ports", state, detail)
    };
    let unknown = |detail| new(State::Unknown { fix: None }, detail);
    let Some(settings) = settings else {
        return unknown(
            "which ports are guarded is not known while the configuration is broken".to_owned(),
        );
    };
    let Seen::Known((low, high)) = ports.range else {
        return unknown(format!("'ip_local_port_range' cannot be read: {}", why(&ports.range)));
    };
    let Seen::Known(reserved) = &ports.reserved else {
        return unknown(format!(
            "'ip_local_reserved_ports' cannot be read: {}",
            why(&ports.reserved)
        ));
    };
    let clashes = clashes((low, high), reserved, settings);
    if let (true, Some(unread)) = (clashes.is_empty(), &settings.unread_models) {
        let why = &unread.why;
        return unknown(format!("which ports are guarded is not known without the models: {why}"));
    }
    if clashes.is_empty() {
        let detail = format!("none is in their range {low}-{high} without being reserved");
        return new(State::Good, detail);
    }
    let listed: Vec<String> = clashes
        .iter()
        .map(|(port, services)| {
            format!("{port} ({})", services.iter().cloned().collect::<Vec<_>>().join(", "))
        })
        .collect();
    let detail = format!(
        "the kernel may give these to an outgoing connection, which it takes from {low}-{high}: {}",
        listed.join(", ")
    );
    // Not straight into the file: where nothing is printed, the file stays as it is.
    let fix = format!(
        "text=$(portreeve doctor --sysctl) && echo \"$text\" | sudo tee {FILE} && sudo sysctl -p {FILE}"
    );
    new(off(fix), detail)
}

/// The kernel's list of ports and ranges, `8080,9148-9155`; empty for none.
fn parse(text: &str) -> Option<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u16, u16) = (low.parse().ok()?, high.parse().ok()?);
        if low > high {
            return None;
        }
        ports.extend(low..=high);
    }
    Some(ports)
}

/// The same list, adjacent ports joined.
fn written(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, high)) if high.checked_add(1) == Some(port) => *high = port,
            Some(_) | None => ranges.push((port, port)),
        }
    }
    let shown = |&(low, high): &(u16, u16)| {
        if low == high { low.to_string() } else { format!("{low}-{high}") }
    };
    ranges.iter().map(shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Sources, load, settings::UnreadModels};

    fn settings() -> Settings {
        let nowhere = Sources {
            etc: "/nonexistent".into(),
            explicit: None,
            is_privileged: false,
            ..Sources::default()
        };
        load(&nowhere).unwrap().settings
    }

    fn ports(range: (u16, u16), reserved: &str) -> Ports {
        Ports { range: Seen::Known(range), reserved: Seen::Known(parse(reserved).unwrap()) }
    }

    #[test]
    fn a_guarded_port_in_the_range_is_named_with_its_service_unless_it_is_reserved() {
        let found = check(&ports((32768, 60999), ""), Some(&settings()));
        assert!(found.detail.ends_with(": 47334 (mindsdb)"), "{found:?}");
        assert!(found.fix().is_some_and(|fix| fix.contains("doctor --sysctl")), "{found:?}");
        for (range, reserved) in
            [((32768, 60999), "47334"), ((32768, 60999), "40000-50000"), ((50000, 60999), "")]
        {
            assert_eq!(check(&ports(range, reserved), Some(&settings())).state, State::Good);
        }
    }

    #[test]
    fn both_ends_of_the_range_are_in_it() {
        for range in [(47334, 60999), (1, 47334)] {
            assert!(matches!(check(&ports(range, ""), Some(&settings())).state, State::Off { .. }));
        }
    }

    #[test]
    fn what_could_not_be_read_is_unknown_and_not_sound() {
        let blind = Ports { reserved: Seen::Denied, ..ports((1, 9), "") };
        let dark = Ports { range: Seen::Gone, ..ports((1, 9), "") };
        for (ports, settings) in
            [(&blind, Some(settings())), (&dark, Some(settings())), (&ports((1, 9), ""), None)]
        {
            let found = check(ports, settings.as_ref());
            assert!(matches!(found.state, State::Unknown { .. }), "{found:?}");
        }
    }

    #[test]
    fn a_registry_that_is_not_read_may_have_a_port_in_the_range() {
        let why = "it is damaged".to_owned();
        let unread_models = Some(UnreadModels { why, remedy: None });
        let settings = Settings { unread_models, ..settings() };
        let found = check(&ports((1, 9), ""), Some(&settings));
        assert!(matches!(found.state, State::Unknown { .. }), "{found:?}");
        let error = sysctl_file(&Host::fixture("/nonexistent"), &settings).unwrap_err();
        assert!(error.to_string().contains("the registry of models"), "{error}");
        assert!(matches!(check(&ports((1, 65535), ""), Some(&settings)).state, State::Off { .. }));
    }

    #[test]
    fn a_list_of_another_form_than_the_kernels_is_not_read() {
        for text in ["80,", "80-", "9-8", "65536", "a", "80 81", ",80"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse(""), Some(BTreeSet::new()));
    }

    proptest! {
        #[test]
        fn a_written_list_is_read_back_and_no_two_of_its_ranges_touch(all: BTreeSet<u16>) {
            let text = written(&all);
            prop_assert_eq!(parse(&text), Some(all.clone()));
            let parts = text.split(',').filter(|part| !part.is_empty()).count();
            let starts = all.iter().filter(|&&p| p == 0 || !all.contains(&(p - 1))).count();
            prop_assert_eq!(parts, starts);
        }
    }

    #[test]
    fn ports_that_touch_the_last_one_are_joined() {
        assert_eq!(written(&[80, 81, 82, 90, 65534, 65535].into()), "80-82,90,65534-65535");
    }
}
