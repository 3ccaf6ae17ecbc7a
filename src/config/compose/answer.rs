//! What compose's answer means: services, and the ports of the host that they own.
//!
//! Compose v2 writes every port in its long form (`target`, `published`, `host_ip`, `protocol`; `published` is left out where the
//! engine chooses), version 1 and podman-compose write some as they were typed. Both forms are read from all of them.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use super::{
    super::{
        fragment::ComposeFragment,
        problem::quoted,
        settings::RunsIn,
        values::is_word,
        yaml::{self, Node, Value},
    },
    ask::{Failure, PODMAN_COMPOSE, Told},
};
use crate::ident::{Endpoint, Port, Proto};

/// A stack of hundreds of services with their environments.
const MOST_VALUES: usize = 1 << 18;

/// A service of a compose file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) ports: Vec<Endpoint>,
    pub(super) runs_in: RunsIn,
    pub(super) is_on_host: bool,
    /// What of it guards nothing, as the end of a sentence.
    pub(super) remarks: Vec<String>,
}

impl Service {
    /// A service without a port of the host's says nothing about who may have one.
    pub(super) fn has_something_to_say(&self) -> bool {
        !self.ports.is_empty() || self.is_on_host
    }
}

/// Reads an answer.
pub(super) fn read(
    told: &Told,
    entry: &ComposeFragment,
) -> Result<BTreeMap<String, Service>, Failure> {
    let strange = |what: &str| Failure {
        message: format!("the answer of {} is not understood: {what}", told.by),
        hint: Some("name the ports under 'services:' instead of 'compose:'".to_owned()),
    };
    let all = yaml::parse_up_to(&told.text, MOST_VALUES)
        .map_err(|error| strange(&format!("line {}: {}", error.span.line, error.message)))?;
    let services = get(&all, "services").ok_or_else(|| strange("it has no services"))?;
    let Value::Map(services) = &services.value else {
        return Err(strange("its services are no map"));
    };
    let project = get(&all, "name").and_then(text);
    let reader = Reader { told, entry, project };
    let mut read = BTreeMap::new();
    for (name, service) in services {
        let name = text(name).ok_or_else(|| strange("the name of a service is no text"))?;
        let service = reader
            .service(name, service)
            .map_err(|what| strange(&format!("service '{}': {what}", quoted(name, 64))))?;
        read.insert(quoted(name, 64), service);
    }
    Ok(read)
}

struct Reader<'t> {
    told: &'t Told,
    entry: &'t ComposeFragment,
    /// Compose v2 names the project, version 1 doesn't.
    project: Option<&'t str>,
}

impl Reader<'_> {
    fn service(&self, name: &str, node: &Node) -> Result<Service, String> {
        let network = get(node, "network_mode").and_then(text);
        let replicas = replicas(node)?;
        let mut service = Service {
            ports: Vec::new(),
            runs_in: RunsIn::Container(self.container(name, node, replicas)),
            is_on_host: network == Some("host"),
            remarks: Vec::new(),
        };
        let silent = |why: &str| {
            let runs_in = RunsIn::Container(None);
            let remarks = vec![why.to_owned()];
            Ok(Service { ports: Vec::new(), runs_in, is_on_host: false, remarks })
        };
        if replicas == 0 {
            return silent("has no replicas and is not started");
        }
        if !self.is_asked_for(node) {
            return silent("is of profiles that are not asked for");
        }
        if service.is_on_host {
            let why = "is in the host's network, and no compose file says what it binds: type its \
                       ports under 'services:'";
            service.remarks.push(why.to_owned());
            return Ok(service);
        }
        for port in items(get(node, "ports"))? {
            let published =
                published(port).ok_or_else(|| format!("its port is {}", port.value.describe()))?;
            service.add(published, replicas)?;
        }
        Ok(service)
    }

    /// Version 1 answers with the services of all profiles; the others leave out what is not asked for, and know more of that
    /// than we do (`COMPOSE_PROFILES` in `.env`).
    fn is_asked_for(&self, node: &Node) -> bool {
        if self.project.is_some() || self.told.by == PODMAN_COMPOSE {
            return true;
        }
        let Some(Node { value: Value::List(profiles), .. }) = get(node, "profiles") else {
            return true;
        };
        let is_asked_for = |profile: &Node| {
            text(profile).is_some_and(|p| self.entry.profiles.iter().any(|asked| asked == p))
        };
        profiles.is_empty() || profiles.iter().any(is_asked_for)
    }

    /// What the engine calls its container: `container_name`, or as compose v2 makes it up, `PROJECT-SERVICE-1`. The others
    /// join with `_`, and podman-compose with either.
    fn container(&self, name: &str, node: &Node, replicas: u64) -> Option<String> {
        let given = get(node, "container_name").and_then(text).map(str::to_owned);
        let made = self.project.filter(|_| replicas == 1 && self.told.by != PODMAN_COMPOSE);
        let name = given.or_else(|| Some(format!("{}-{name}-1", made?)));
        name.filter(|name| is_word(name))
    }
}

impl Service {
    fn add(&mut self, published: Published, replicas: u64) -> Result<(), String> {
        let Published { address, ports, targets, proto } = published;
        let Some(ports) = ports else {
            self.remarks.push("leaves the choice of a port to the engine".to_owned());
            return Ok(());
        };
        let proto = match proto {
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            other => {
                self.remarks.push(format!("publishes {other} ports, which are not looked at"));
                return Ok(());
            }
        };
        // The engine takes any one of them for a container.
        let count = ports.clone().count() as u64;
        if count > targets && count > replicas {
            let (first, last) = (ports.start(), ports.end());
            let why = format!("leaves the choice of a port from {first} to {last} to the engine");
            self.remarks.push(why);
            return Ok(());
        }
        for number in ports {
            let port = Port::new(number).ok_or("it publishes port 0")?;
            self.add_endpoint(Endpoint { port, proto, address });
        }
        Ok(())
    }

    /// A port on `0.0.0.0` and on `[::]` is one on every address.
    fn add_endpoint(&mut self, endpoint: Endpoint) {
        match self.ports.iter_mut().find(|port| port.overlaps(&endpoint)) {
            None => self.ports.push(endpoint),
            Some(same) if *same == endpoint => {}
            Some(other) => other.address = None,
        }
    }
}

/// A published port as it is written.
#[derive(Debug, PartialEq, Eq)]
struct Published<'t> {
    address: Option<IpAddr>,
    /// None: the engine chooses.
    ports: Option<RangeInclusive<u16>>,
    /// How many ports of the container they lead to.
    targets: u64,
    proto: &'t str,
}

/// A port in either form; none where it is no such thing.
fn published(node: &Node) -> Option<Published<'_>> {
    match &node.value {
        Value::Map(_) => {
            let word = |key| match get(node, key).map(|node| &node.value) {
                None | Some(Value::Null) => Some(""),
                Some(value) => value.text().or(value.bare()),
            };
            let proto = word("protocol")?;
            Some(Published {
                address: address(word("host_ip")?)?,
                ports: range(word("published")?)?,
                targets: 1,
                proto: if proto.is_empty() { "tcp" } else { proto },
            })
        }
        // A number alone is the container's.
        Value::Text(written) | Value::Bare(written) => short(written),
        Value::Null | Value::List(_) => None,
    }
}

/// `[[ADDRESS:]PUBLISHED:]TARGET[/PROTOCOL]`, each port also a range.
fn short(written: &str) -> Option<Published<'_>> {
    let (rest, proto) = written.split_once('/').unwrap_or((written, "tcp"));
    let mut words = rest.rsplitn(3, ':');
    let target = range(words.next()?)??;
    let ports = range(words.next().unwrap_or_default())?;
    let address = address(words.next().unwrap_or_default())?;
    Some(Published { address, ports, targets: target.count() as u64, proto })
}

/// The inner one is none for every address, of nothing.
#[allow(clippy::option_option, reason = "no address is an address too")]
fn address(written: &str) -> Option<Option<IpAddr>> {
    let plain = written.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(written);
    if plain.is_empty() { Some(None) } else { plain.parse().ok().map(Some) }
}

/// `8000` or `8000-8010`; the inner one is none for nothing.
#[allow(clippy::option_option, reason = "no port is an answer too")]
fn range(written: &str) -> Option<Option<RangeInclusive<u16>>> {
    if written.is_empty() {
        return Some(None);
    }
    let (first, last) = written.split_once('-').unwrap_or((written, written));
    let number = |text: &str| {
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    // Port 0 is the engine's choice, too.
    match first {
        0 if last == 0 => Some(None),
        _ => (first <= last).then_some(Some(first..=last)),
    }
}

fn replicas(node: &Node) -> Result<u64, String> {
    let deploy = get(node, "deploy").and_then(|deploy| get(deploy, "replicas"));
    match deploy.or_else(|| get(node, "scale")).map(|node| &node.value) {
        None | Some(Value::Null) => Ok(1),
        Some(value) => value
            .bare()
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| format!("its replicas are {}", value.describe())),
    }
}

fn items(node: Option<&Node>) -> Result<&[Node], String> {
    match node.map(|node| &node.value) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::List(items)) => Ok(items),
        Some(other) => Err(format!("its ports are {}", other.describe())),
    }
}

fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    let mut entries = entries.iter();
    entries.find(|(name, _)| text(name) == Some(key)).map(|(_, value)| value)
}

/// A text, or what looked like a number to YAML.
fn text(node: &Node) -> Option<&str> {
    node.value.text().or(node.value.bare())
}
