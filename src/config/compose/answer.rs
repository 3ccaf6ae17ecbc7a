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
    gpu,
};
use crate::ident::{Endpoint, GpuName, Port, Proto};

/// A stack of hundreds of services with their environments.
const MOST_VALUES: usize = 1 << 18;
/// Of all services together: every port of TCP and of UDP. A range is written in a few bytes and takes megabytes when it is
/// counted up.
const MOST_PORTS: usize = 1 << 17;

/// A service of a compose file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) ports: Vec<Endpoint>,
    pub(super) gpus: Vec<GpuName>,
    pub(super) runs_in: RunsIn,
    pub(super) is_on_host: bool,
    /// What of it guards nothing, as the end of a sentence.
    pub(super) remarks: Vec<String>,
}

impl Service {
    /// A service without a port of the host's and without a GPU says nothing about who may have one.
    pub(super) fn has_something_to_say(&self) -> bool {
        !self.ports.is_empty() || !self.gpus.is_empty() || self.is_on_host
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
    let mut reader = Reader { told, entry, project, left: MOST_PORTS };
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
    /// So many ports more are read.
    left: usize,
}

impl Reader<'_> {
    fn service(&mut self, name: &str, node: &Node) -> Result<Service, String> {
        let network = get(node, "network_mode").and_then(text);
        let replicas = replicas(node)?;
        let mut service = Service {
            ports: Vec::new(),
            gpus: Vec::new(),
            runs_in: RunsIn::Container(self.container(name, node, replicas)),
            is_on_host: network == Some("host"),
            remarks: Vec::new(),
        };
        let silent = |why: &str| {
            let runs_in = RunsIn::Container(None);
            let remarks = vec![why.to_owned()];
            Ok(Service { ports: Vec::new(), gpus: Vec::new(), runs_in, is_on_host: false, remarks })
        };
        if replicas == 0 {
            return silent("has no replicas and is not started");
        }
        if !self.is_asked_for(node) {
            return silent("is of profiles that are not asked for");
        }
        service.gpus = gpu::gpus(node)?;
        if service.is_on_host {
            let why = "is in the host's network, and no compose file says what it binds: type its \
                       ports under 'services:'";
            service.remarks.push(why.to_owned());
            return Ok(service);
        }
        let mut places = BTreeMap::new();
        for port in items(get(node, "ports"), "ports")? {
            let published =
                published(port).ok_or_else(|| format!("its port is {}", described(port)))?;
            service.add(published, replicas, &mut self.left, &mut places)?;
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

/// Where the endpoints of a port stand in their list.
type Places = BTreeMap<(Proto, Port), Vec<usize>>;

impl Service {
    fn add(
        &mut self,
        published: Published,
        replicas: u64,
        left: &mut usize,
        places: &mut Places,
    ) -> Result<(), String> {
        let Published { address, ports, targets, proto } = published;
        let Some(ports) = ports else {
            let why = "leaves the choice of a port to the engine: nothing to guard";
            self.remarks.push(why.to_owned());
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
            let why = format!(
                "leaves the choice of a port from {first} to {last} to the engine: nothing to guard"
            );
            self.remarks.push(why);
            return Ok(());
        }
        *left = left.checked_sub(ports.len()).ok_or("there are more ports than are read")?;
        for number in ports {
            let port = Port::new(number).ok_or("it publishes port 0")?;
            self.add_endpoint(Endpoint { port, proto, address, is_v6only: false }, places);
        }
        Ok(())
    }

    /// A port on `0.0.0.0` and on `[::]` is one on every address.
    fn add_endpoint(&mut self, endpoint: Endpoint, places: &mut Places) {
        let places = places.entry((endpoint.proto, endpoint.port)).or_default();
        let overlaps = |at: &&usize| self.ports.get(**at).is_some_and(|p| p.overlaps(&endpoint));
        match places.iter().find(overlaps).and_then(|at| self.ports.get_mut(*at)) {
            None => {
                places.push(self.ports.len());
                self.ports.push(endpoint);
            }
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

/// For the sentence "its port is …".
fn described(port: &Node) -> String {
    let Value::Map(entries) = &port.value else { return port.value.describe() };
    let pairs: Vec<String> = entries
        .iter()
        .filter_map(|(key, value)| Some(format!("{}: {}", text(key)?, value.value.describe())))
        .collect();
    quoted(&format!("{{{}}}", pairs.join(", ")), 200)
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

pub(super) fn items<'n>(node: Option<&'n Node>, what: &str) -> Result<&'n [Node], String> {
    match node.map(|node| &node.value) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::List(items)) => Ok(items),
        Some(other) => Err(format!("its {what} are {}", other.describe())),
    }
}

pub(super) fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    let mut entries = entries.iter();
    entries.find(|(name, _)| text(name) == Some(key)).map(|(_, value)| value)
}

/// A text, or what looked like a number to YAML.
pub(super) fn text(node: &Node) -> Option<&str> {
    node.value.text().or(node.value.bare())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{super::ask::DOCKER_COMPOSE, *};

    const V2: &str = include_str!("../../../tests/compose/docker-compose-2.26.json");
    const V1: &str = include_str!("../../../tests/compose/docker-compose-1.29.yaml");
    const PODMAN: &str = include_str!("../../../tests/compose/podman-compose-1.6.yaml");

    fn answer(by: &'static str, text: &str, profiles: &[&str]) -> BTreeMap<String, Service> {
        let told = Told { by, text: text.to_owned(), warnings: Vec::new() };
        let entry = ComposeFragment {
            files: vec![PathBuf::from("/srv/ai/compose.yaml")],
            profiles: profiles.iter().map(|&profile| profile.to_owned()).collect(),
            prefix: None,
        };
        read(&told, &entry).unwrap_or_else(|failure| panic!("{}", failure.message))
    }

    fn ports(service: &Service) -> Vec<String> {
        service.ports.iter().map(ToString::to_string).collect()
    }

    /// What of the recorded file has to be found, whoever read it.
    fn assert_recorded(services: &BTreeMap<String, Service>) {
        for (name, expected) in [
            ("aidb", &["18091/tcp", "127.0.0.1:8791/tcp"][..]),
            ("qdrant", &["6333/tcp", "[::1]:6335/udp"]),
            (
                "ranges",
                &["8000/tcp", "8001/tcp", "8002/tcp", "127.0.0.1:8200/udp", "127.0.0.1:8201/udp"],
            ),
            ("every", &["8300/tcp"]),
            ("two", &["7000/tcp", "7001/tcp", "7002/tcp"]),
            ("vllm", &[]),
            ("asleep", &[]),
            ("inside", &[]),
        ] {
            assert_eq!(ports(&services[name]), expected, "{name}");
        }
        let silent: Vec<&str> = services
            .iter()
            .filter(|(_, service)| !service.has_something_to_say())
            .map(|(name, _)| name.as_str())
            .filter(|name| *name != "debug")
            .collect();
        assert_eq!(silent, ["asleep", "inside"]);
        assert_eq!(
            services["ranges"].remarks,
            [
                "leaves the choice of a port from 8100 to 8110 to the engine: nothing to guard",
                "leaves the choice of a port to the engine: nothing to guard"
            ]
        );
        assert_eq!(services["vllm"].gpus, [GpuName::Index(0), GpuName::Index(1)]);
        assert!(services["vllm"].remarks[0].starts_with("is in the host's network"));
    }

    #[test]
    fn the_same_ports_are_read_from_every_kind_of_compose() {
        for (by, text) in [("docker compose", V2), ("docker-compose", V1), (PODMAN_COMPOSE, PODMAN)]
        {
            assert_recorded(&answer(by, text, &[]));
        }
    }

    #[test]
    fn a_containers_name_is_told_only_where_it_is_certain() {
        let name = |services: &BTreeMap<String, Service>, service: &str| match &services[service]
            .runs_in
        {
            RunsIn::Container(name) => name.clone(),
            RunsIn::Unit(_) => panic!("no unit"),
        };
        let (v2, v1) = (answer("docker compose", V2, &[]), answer("docker-compose", V1, &[]));
        for services in [&v2, &v1] {
            assert_eq!(name(services, "aidb").as_deref(), Some("local-ai-aidb"));
            assert_eq!(name(services, "two"), None, "it has two");
        }
        assert_eq!(name(&v2, "qdrant").as_deref(), Some("ai-qdrant-1"));
        assert_eq!(name(&v1, "qdrant"), None);
        assert_eq!(name(&answer(PODMAN_COMPOSE, V2, &[]), "qdrant"), None, "it may join with '_'");
    }

    #[test]
    fn version_1_answers_with_all_profiles_and_only_those_asked_for_count() {
        assert_eq!(ports(&answer("docker-compose", V1, &[])["debug"]), [""; 0]);
        assert_eq!(ports(&answer("docker-compose", V1, &["debug"])["debug"]), ["9229/tcp"]);
        // Version 2 has `COMPOSE_PROFILES` of a .env in its answer already.
        let text = "{name: x, services: {debug: {profiles: [debug], ports: ['9229:9229']}}}";
        assert_eq!(ports(&answer("docker compose", text, &[])["debug"]), ["9229/tcp"]);
    }

    #[test]
    fn ranges_of_all_ports_are_read_in_no_time_and_not_without_end() {
        let read_of = |ports: &str| {
            let text = format!("{{name: x, services: {{a: {{ports: [{ports}]}}}}}}");
            let told = Told { by: DOCKER_COMPOSE, text, warnings: Vec::new() };
            let entry = ComposeFragment { files: Vec::new(), profiles: Vec::new(), prefix: None };
            read(&told, &entry)
        };
        let began = std::time::Instant::now();
        let all = read_of("'1-65535:1-65535', '1-65535:1-65535/udp'").unwrap();
        assert_eq!(all["a"].ports.len(), 2 * 65_535);
        assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
        let hosts: Vec<String> =
            (1..200).map(|n| format!("'127.0.0.{n}:1-65535:1-65535'")).collect();
        let refused = read_of(&hosts.join(", ")).unwrap_err();
        assert!(refused.message.ends_with("there are more ports than are read"));
    }

    #[test]
    fn every_form_of_a_port_is_read_and_what_is_none_is_refused() {
        for (written, expected) in [
            ("'8000:80'", &["8000/tcp"][..]),
            ("8000:80/udp", &["8000/udp"]),
            ("80", &[]),
            ("'3000-3005'", &[]),
            (":80", &[]),
            ("0:80", &[]),
            ("127.0.0.1:8001:80", &["127.0.0.1:8001/tcp"]),
            ("'[::1]:8001:80'", &["[::1]:8001/tcp"]),
            ("::1:8001:80/tcp", &["[::1]:8001/tcp"]),
            ("127.0.0.1:5000-5001:80-81", &["127.0.0.1:5000/tcp", "127.0.0.1:5001/tcp"]),
            ("5000-5009:80", &[]),
            ("9:80/sctp", &[]),
            ("{target: 80, published: '8000'}", &["8000/tcp"]),
            ("{target: 80, published: 8000, protocol: udp, host_ip: '::'}", &["[::]:8000/udp"]),
            ("{target: 80, published: ''}", &[]),
        ] {
            let text = format!("{{name: x, services: {{a: {{ports: [{written}]}}}}}}");
            assert_eq!(ports(&answer("docker compose", &text, &[])["a"]), expected, "{written}");
        }
        for written in [
            "''",
            "x:80",
            "8000:x",
            "70000:80",
            "9-8:80",
            "host:8000:80",
            "[1]",
            "~",
            "+8:80",
            "{published: [1]}",
            "{published: 8000, host_ip: everywhere}",
            "0-9:80-89",
        ] {
            let text = format!("{{name: x, services: {{a: {{ports: [{written}]}}}}}}");
            let told = Told { by: "docker compose", text, warnings: Vec::new() };
            let entry = ComposeFragment { files: Vec::new(), profiles: Vec::new(), prefix: None };
            assert!(read(&told, &entry).is_err(), "{written}");
        }
    }
}
