//! The names of things: ports, processes, units, containers. Knows no I/O.

use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr};

/// A process id as `/proc` shows it to us. 0 stands for "outside our pid namespace" (pid_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u32);

impl Pid {
    /// The first process of our pid namespace, a reaper by birth.
    pub const INIT: Self = Self(1);
    /// What the kernel writes for a parent, group or session outside our pid namespace.
    pub const OUTSIDE: Self = Self(0);
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which process exactly: pid and start time do not tell two processes apart that were started within
/// one tick (10 ms), the inode of a pidfd does (Linux ≥ 6.9, never reused within a boot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessKey {
    /// Process id.
    pub pid: Pid,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_ticks: u64,
    /// Inode of a pidfd to the process, where the kernel gives each process one of its own and where we asked.
    pub pidfd_inode: Option<u64>,
}

impl ProcessKey {
    /// Whether both may name the same process: everything that both know agrees.
    pub fn is_same(&self, other: &Self) -> bool {
        self.pid == other.pid
            && self.start_ticks == other.start_ticks
            && match (self.pidfd_inode, other.pidfd_inode) {
                (Some(a), Some(b)) => a == b,
                (None, _) | (_, None) => true,
            }
    }
}

/// Transport protocol of a guarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port number; 0 asks the kernel for any port and names none.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Port(pub NonZeroU16);

impl Port {
    /// The port of this number, none for 0.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// The number, in host byte order.
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A guarded port as the settings write it: `8091`, `8091/udp`, `127.0.0.1:8091`, `[::1]:8091/tcp`, `[::]:8091/tcp6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Port number.
    pub port: Port,
    /// Protocol; TCP where none is written.
    pub proto: Proto,
    /// The address that the service binds; none = every address.
    pub address: Option<IpAddr>,
    /// The service sets IPV6_V6ONLY (ipv6(7)): its `[::]` leaves IPv4 to others. Written `/tcp6` or `/udp6`.
    pub is_v6only: bool,
}

impl Endpoint {
    /// As a person types it: without what goes without saying.
    pub fn short(&self) -> String {
        let text = self.to_string();
        match self.proto {
            Proto::Tcp => text.trim_end_matches("/tcp").to_owned(),
            Proto::Udp => text,
        }
    }

    /// Whether no bind can tell the two apart: same protocol and port, and addresses that overlap.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.port == other.port
            && self.proto == other.proto
            && match (self.address, other.address) {
                (Some(a), Some(b)) => {
                    let is_apart = |own: &Self, other: IpAddr| own.is_v6only && other.is_ipv4();
                    (a == b || a.is_unspecified() || b.is_unspecified())
                        && !is_apart(self, b)
                        && !is_apart(other, a)
                }
                (None, _) | (_, None) => true,
            }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, "{}/{}", self.port, self.proto)?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:{}/{}", self.port, self.proto)?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}/{}", self.port, self.proto)?,
        }
        f.write_str(if self.is_v6only { "6" } else { "" })
    }
}

/// Why a text is no guarded port; the sentence says what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointError(pub &'static str);

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for EndpointError {}

const FORMS: EndpointError =
    EndpointError("expected a port such as 8091, 8091/udp, 127.0.0.1:8091 or [::1]:8091/tcp");

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rest, proto, is_v6only) = match text.rsplit_once('/') {
            None => (text, Proto::Tcp, false),
            Some((rest, "tcp")) => (rest, Proto::Tcp, false),
            Some((rest, "udp")) => (rest, Proto::Udp, false),
            Some((rest, "tcp6")) => (rest, Proto::Tcp, true),
            Some((rest, "udp6")) => (rest, Proto::Udp, true),
            Some(_) => return Err(EndpointError("expected the protocol to be tcp or udp")),
        };
        let (address, number) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, number)) => {
                let bracketed = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                let address = match bracketed {
                    Some(v6) => v6.parse().map(IpAddr::V6).map_err(|_| FORMS)?,
                    None => address.parse().map(IpAddr::V4).map_err(|_| FORMS)?,
                };
                (Some(address), number)
            }
        };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(FORMS);
        }
        let port = number
            .parse()
            .ok()
            .and_then(Port::new)
            .ok_or(EndpointError("expected a port number from 1 to 65535"))?;
        if is_v6only && !address.is_some_and(|address: IpAddr| address.is_ipv6()) {
            return Err(EndpointError(
                "expected an IPv6 address before tcp6 or udp6, as in [::]:8091/tcp6",
            ));
        }
        Ok(Self { port, proto, address, is_v6only })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

name!(
    /// A service of the settings, `aidb`.
    ServiceName
);
name!(
    /// A model of the registry or the settings, `llama-70b`.
    ModelName
);
name!(
    /// A systemd unit with its suffix, `aidb.service`, `session-3.scope`.
    UnitName
);
name!(
    /// A container's id: 64 lower-case hexadecimal digits for Docker and Podman, the machine's name for LXC and nspawn.
    ContainerId
);

impl FromStr for ModelName {
    type Err = &'static str;

    /// As it may stand in a container's name, a unit's and a file's.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let may_stand = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_name = text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.len() <= 48
            && text.chars().all(may_stand);
        if is_name {
            return Ok(Self(text.to_owned()));
        }
        Err(
            "expected letters, digits, '.', '_' and '-', beginning with a letter or digit, 48 at most",
        )
    }
}

impl ContainerId {
    /// The first twelve characters, as the engines print it.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

/// How a GPU is named in the settings and on the command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuName {
    /// `all`: every GPU with memory of its own.
    All,
    /// `0`: the number that `nvidia-smi` shows; GPUs of AMD and Intel are counted on in the order of their buses.
    Index(u32),
    /// `GPU-…`, or `MIG-…` for a part of one: as `nvidia-smi -L` shows them. Lower case behind the prefix.
    Uuid(String),
    /// `0000:01:00.0`: its place on the PCI bus, as `lspci -D` shows it. Lower case.
    Bus(String),
}

impl fmt::Display for GpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Index(index) => index.fmt(f),
            Self::Uuid(text) | Self::Bus(text) => text.fmt(f),
        }
    }
}

/// Why a text names no GPU; the sentence says what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuNameError(pub &'static str);

impl fmt::Display for GpuNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for GpuNameError {}

impl FromStr for GpuName {
    type Err = GpuNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORMS: GpuNameError = GpuNameError(
            "expected a GPU: a number as nvidia-smi shows it, a UUID (GPU-…, MIG-…), a PCI address such as 0000:01:00.0, or 'all'",
        );
        let is_hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit())
        };
        if text == "all" {
            return Ok(Self::All);
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Index).map_err(|_| FORMS);
        }
        if let Some((prefix @ ("GPU" | "MIG"), rest)) = text.split_once('-') {
            let groups: Vec<&str> = rest.split('-').collect();
            let lengths = [8, 4, 4, 4, 12];
            let is_uuid = groups.len() == lengths.len()
                && groups.iter().zip(lengths).all(|(group, length)| is_hex(group, length));
            let uuid = format!("{prefix}-{}", rest.to_ascii_lowercase());
            return if is_uuid { Ok(Self::Uuid(uuid)) } else { Err(FORMS) };
        }
        pci_address(text).map(Self::Bus).ok_or(FORMS)
    }
}

/// `0000:01:00.0` in lower case, whatever the width of its domain: `nvidia-smi` writes eight digits, sysfs four.
pub fn pci_address(text: &str) -> Option<String> {
    let mut parts = text.split([':', '.']);
    let mut next = || parts.next().and_then(|part| u32::from_str_radix(part, 16).ok());
    let (domain, bus, device, function) = (next()?, next()?, next()?, next()?);
    let is_written = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.');
    let is_whole = parts.next().is_none() && is_written && text.len() >= "0:0:0.0".len();
    let fits = bus <= 0xff && device <= 0x1f && function <= 7;
    (is_whole && fits).then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

/// Which service manager runs a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Manager {
    /// PID 1.
    System,
    /// The user manager of this uid (`user@UID.service`).
    User(u32),
}

/// A unit and the manager that knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitRef {
    /// Who to ask.
    pub manager: Manager,
    /// The unit's name.
    pub name: UnitName,
}

impl fmt::Display for UnitRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.manager {
            Manager::System => self.name.fmt(f),
            Manager::User(uid) => write!(f, "{} of user {uid}", self.name),
        }
    }
}

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineKind {
    /// Docker Engine (Moby).
    Docker,
    /// Podman.
    Podman,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        })
    }
}

/// One engine of this host: each user may have containers that no other user's engine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineRef {
    /// Which product.
    pub kind: EngineKind,
    /// Whose containers it knows; 0 is root's, the system's own.
    pub owner: u32,
}

impl fmt::Display for EngineRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner {
            0 => self.kind.fmt(f),
            owner => write!(f, "{} of user {owner}", self.kind),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_endpoint_is_read_back_as_it_is_printed(
            port in 1..=u16::MAX,
            proto in select(vec![Proto::Tcp, Proto::Udp]),
            address in proptest::option::of(any::<IpAddr>()),
            only in any::<bool>(),
        ) {
            let is_v6only = only && address.is_some_and(|address| address.is_ipv6());
            let endpoint = Endpoint { port: Port::new(port).unwrap(), proto, address, is_v6only };
            prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            prop_assert_eq!(endpoint.short().parse(), Ok(endpoint));
        }

        #[test]
        fn every_name_of_a_gpu_is_read_back_as_it_is_printed(name in gpu()) {
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    /// Any name of a GPU.
    pub(crate) fn gpu() -> impl Strategy<Value = GpuName> {
        prop_oneof![
            Just(GpuName::All),
            any::<u32>().prop_map(GpuName::Index),
            "(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}".prop_map(GpuName::Uuid),
            (any::<u32>(), any::<u8>(), 0..32_u8, 0..8_u8)
                .prop_map(|(a, b, c, d)| GpuName::Bus(format!("{a:04x}:{b:02x}:{c:02x}.{d}"))),
        ]
    }

    #[test]
    fn every_written_form_of_a_port_is_read_back_as_it_is_printed() {
        for (text, printed) in [
            ("8091", "8091/tcp"),
            ("8091/udp", "8091/udp"),
            ("127.0.0.1:8091", "127.0.0.1:8091/tcp"),
            ("[::1]:8091/tcp", "[::1]:8091/tcp"),
            ("[::]:8091/tcp6", "[::]:8091/tcp6"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), printed);
            assert_eq!(printed.parse::<Endpoint>().unwrap(), endpoint);
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "0",
            "65536",
            "+80",
            "80/sctp",
            "80/tcp6",
            "127.0.0.1:80/udp6",
            "::1:80",
            "host:80",
            "[127.0.0.1]:80",
            "80 ",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_written_form_of_a_gpu_is_read() {
        for (text, printed) in [
            ("all", "all"),
            ("0", "0"),
            (
                "GPU-2C1E4A5B-0000-1111-2222-0123456789AB",
                "GPU-2c1e4a5b-0000-1111-2222-0123456789ab",
            ),
            (
                "MIG-2c1e4a5b-0000-1111-2222-0123456789ab",
                "MIG-2c1e4a5b-0000-1111-2222-0123456789ab",
            ),
            ("00000000:3B:00.0", "0000:3b:00.0"),
            ("0000:01:00.0", "0000:01:00.0"),
        ] {
            assert_eq!(text.parse::<GpuName>().unwrap().to_string(), printed);
        }
        for text in ["", "-1", "ALL", "GPU-1", "GPU-", "card0", "99999999999", "1:00.0", "0:0:20.0"]
        {
            assert!(text.parse::<GpuName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn two_processes_of_one_pid_and_tick_are_told_apart_by_their_pidfd() {
        let key = |inode| ProcessKey { pid: Pid(7), start_ticks: 99, pidfd_inode: inode };
        assert!(!key(Some(1)).is_same(&key(Some(2))));
        assert!(key(Some(1)).is_same(&key(None)));
    }

    #[test]
    fn an_engine_is_named_with_its_user_unless_it_is_roots() {
        let name = |kind, owner| EngineRef { kind, owner }.to_string();
        assert_eq!(name(EngineKind::Docker, 0), "docker");
        assert_eq!(name(EngineKind::Podman, 1000), "podman of user 1000");
    }
}
