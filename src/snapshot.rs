//! What was seen of the machine: plain facts, each with how it was seen. Knows neither how facts are
//! read (`observe`) nor what they mean (`judge`).

mod gpus;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::ident::{
    ContainerId, Endpoint, EngineKind, EngineRef, ModelName, Pid, Port, ProcessKey, Proto, UnitRef,
};

pub use gpus::{
    Gpu, GpuHolding, GpuMemory, GpuSource, GpuTrouble, GpuUse, GpuVendor, Gpus, gibibytes,
};

/// The four answers to a question to the kernel or to a manager. "Not there" and "could not look" never mix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// The answer.
    Known(T),
    /// The thing asked about does not exist (any more): ENOENT, ESRCH, "no such unit".
    Gone,
    /// We lack the right to look: EACCES, EPERM.
    Denied,
    /// It was there and could not be read; the text says why.
    Unreadable(String),
}

impl<T> Seen<T> {
    /// The answer, where there is one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Gone | Self::Denied | Self::Unreadable(_) => None,
        }
    }

    /// The same answer about a part or a reading of the value.
    pub fn map<U>(self, read: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Self::Known(value) => Seen::Known(read(value)),
            Self::Gone => Seen::Gone,
            Self::Denied => Seen::Denied,
            Self::Unreadable(why) => Seen::Unreadable(why),
        }
    }

    /// The same answer, borrowed.
    pub fn as_ref(&self) -> Seen<&T> {
        match self {
            Self::Known(value) => Seen::Known(value),
            Self::Gone => Seen::Gone,
            Self::Denied => Seen::Denied,
            Self::Unreadable(why) => Seen::Unreadable(why.clone()),
        }
    }

    /// Parses what was read; a value that cannot be parsed was not seen.
    pub fn parse<U>(self, read: impl FnOnce(T) -> Option<U>) -> Seen<U> {
        match self {
            Self::Known(value) => match read(value) {
                Some(parsed) => Seen::Known(parsed),
                None => Seen::Unreadable("its text has another form than expected".to_owned()),
            },
            Self::Gone => Seen::Gone,
            Self::Denied => Seen::Denied,
            Self::Unreadable(why) => Seen::Unreadable(why),
        }
    }
}

/// A process's arguments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// The bytes with NUL separators turned into spaces, trailing padding cut: what patterns match. 4 KiB at most.
    pub text: Vec<u8>,
    /// Whether there was more than we keep.
    pub is_cut: bool,
}

/// Who made a control group for a container, as the path's form tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClaimKind {
    /// `docker/<id>`, `docker-<id>.scope`.
    Docker,
    /// `libpod-<id>`, `libpod-<id>.scope`.
    Podman,
    /// Kubernetes over containerd or CRI-O: `cri-containerd-<id>.scope`, `crio-<id>.scope`, `kubepods/…/<id>`.
    Cri,
    /// A 64-digit id below some other parent.
    Other,
    /// `lxc/<name>`, `lxc.payload.<name>`.
    Lxc,
    /// `machine.slice/systemd-nspawn@<name>.service`, `machine-<name>.scope`.
    Nspawn,
}

/// What a cgroup path says about a container; not yet true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerClaim {
    /// The form of the path.
    pub kind: ClaimKind,
    /// The id or name in it.
    pub id: ContainerId,
}

/// What an engine says a container is doing. A word that we do not know is none of these: it was not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Its main process runs, says the engine.
    Running,
    /// Frozen (docker-pause(1)); its processes live and hold their ports.
    Paused,
    /// Between two runs by its restart policy. Docker calls this `Running: true` too, with a pid of 0.
    Restarting,
    /// Anything else, in the engine's word: `created`, `exited`, `dead`, `removing`; with Podman also `configured`,
    /// `initialized`, `stopped`, `stopping`.
    NotRunning(String),
}

impl fmt::Display for ContainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::NotRunning(word) => word,
        })
    }
}

/// A port of the host that an engine forwards to a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// The host's address; none where nothing is written: every address.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub port: Port,
    /// Protocol.
    pub proto: Proto,
    /// The port inside the container.
    pub container_port: Port,
}

/// A container, as its engine describes it: the engine's word, which may lag behind the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Which engine says so, by what it answered that it is.
    pub engine: EngineRef,
    /// The whole id.
    pub id: ContainerId,
    /// Its name, without the slash that Docker writes before it.
    pub name: String,
    /// What it is doing.
    pub state: ContainerState,
    /// Its first process, in our pid namespace; none for the engines' 0.
    pub main_pid: Option<Pid>,
    /// How often its restart policy has started it again.
    pub restarts: u64,
    /// `no`, `always`, `on-failure`, `unless-stopped`; none where the engine writes nothing.
    pub restart_policy: Option<String>,
    /// `starting`, `healthy`, `unhealthy`; none without a health check.
    pub health: Option<String>,
    /// `host`, `private`, `container:ID`; empty is Docker's word for private.
    pub pid_mode: String,
    /// `host`, `bridge`, `none`, `container:ID`, `slirp4netns`, a network's name.
    pub network_mode: String,
    /// Ports of the host that are forwarded to it now, and those that its next start will ask for.
    pub published: Vec<Published>,
    /// Its own layer, as `upperdir=` stands in the mountinfo of its processes (overlay drivers): the same while they live,
    /// whatever became of their cgroup.
    pub upper_dir: Option<PathBuf>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A container that runs, and what its engine publishes for it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publisher {
    /// Which engine says so.
    pub engine: EngineRef,
    /// The whole id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Its first process; Docker's list names none.
    pub main_pid: Option<Pid>,
    /// Ports of the host that are its own.
    pub published: Vec<Published>,
}

/// Where an engine keeps its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Docker's `DockerRootDir`, Podman's `graphRoot`.
    pub root: PathBuf,
    /// Storage driver: `overlay2`, `overlay`, `overlayfs`.
    pub driver: String,
    /// Whether a container's root directory lies below `root`. Not so where Docker leaves images to containerd (its
    /// snapshotter, the default from Docker 29): there the layers lie below containerd's own root.
    pub holds_layers: bool,
}

/// `/proc/PID/cgroup`, read for what matters here (cgroups(7), systemd.unit naming).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cgroup {
    /// The path in the hierarchy that systemd manages: the unified one, or `name=systemd` on legacy hosts.
    pub path: String,
    /// The outermost container claim of any hierarchy.
    pub claim: Option<ContainerClaim>,
    /// The first .service or .scope below the slices; below `user@UID.service` a unit of that user's manager.
    pub unit: Option<UnitRef>,
    /// The session's id, where the unit is a login session's scope (`session-ID.scope` below `user-UID.slice`).
    pub session: Option<String>,
    /// The UID of that slice: whose session it is, whatever user the process has become since.
    pub session_user: Option<u32>,
}

/// A controlling terminal: `tty_nr` of proc_pid_stat(5), major in bits 15–8, minor in bits 31–20 and 7–0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal(u32);

impl Terminal {
    /// The terminal of this `tty_nr`; none for 0.
    pub fn of_number(tty_nr: i32) -> Option<Self> {
        // Written as a signed number, meant as bits.
        Some(Self(u32::from_ne_bytes(tty_nr.to_ne_bytes()))).filter(|tty| tty.0 != 0)
    }
}

/// Its name below `/dev`, where the number tells (admin-guide/devices.rst of the kernel: 4 for consoles and serial lines,
/// 136–143 for Unix98 pseudo-terminals).
impl fmt::Display for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = ((self.0 >> 8) & 0xff, (self.0 & 0xff) | ((self.0 >> 12) & 0xf_ff00));
        match (major, minor) {
            (136..=143, _) => write!(f, "pts/{}", (major - 136) * 256 + minor),
            (4, 0..64) => write!(f, "tty{minor}"),
            (4, _) => write!(f, "ttyS{}", minor - 64),
            (_, _) => write!(f, "of device {major}:{minor}"),
        }
    }
}

/// One process, as the kernel shows it.
#[derive(Debug, Clone)]
pub struct Process {
    /// Which process.
    pub key: ProcessKey,
    /// Parent process; 0 = outside our pid namespace.
    pub parent: Pid,
    /// Process group; 0 = its leader is outside our pid namespace.
    pub group: Pid,
    /// Session; 0 = its leader is outside our pid namespace.
    pub session: Pid,
    /// Its controlling terminal.
    pub terminal: Option<Terminal>,
    /// The state letter of proc_pid_stat(5).
    pub state: char,
    /// Threads, a leader that has exited counted in.
    pub threads: u32,
    /// A thread of the kernel itself.
    pub is_kernel_thread: bool,
    /// The 15-byte name, for display only.
    pub name: String,
    /// Arguments.
    pub command_line: Seen<CommandLine>,
    /// Path of the executable.
    pub exe: Seen<PathBuf>,
    /// Real user id.
    pub uid: Seen<u32>,
    /// Its pid in each pid namespace from ours inwards (NSpid of proc_pid_status(5)); more than one = in a nested namespace.
    pub namespace_pids: Seen<Vec<u32>>,
    /// Who traces it (ptrace(2)): a debugger, strace.
    pub tracer: Seen<Option<Pid>>,
    /// Control group.
    pub cgroup: Seen<Cgroup>,
    /// INVOCATION_ID of its environment, 32 hexadecimal digits; `Known(None)` = the environment has none.
    /// Read only where the question asks for it.
    pub invocation_id: Option<Seen<Option<String>>>,
    /// What its namespaces and its root say of the container that it may be in; read only where that is in question.
    pub enclosure: Option<Enclosure>,
    /// Its root directory was deleted under it (`/proc/PID/root` ends in `//deleted`), a sign of a removed container.
    pub is_root_deleted: bool,
}

/// What a process's namespaces and root directory say of its container, whatever its control group is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enclosure {
    /// Inode of its pid namespace: the number in `/proc/PID/ns/pid`.
    pub pid_namespace: Seen<u64>,
    /// Who made its user namespace: root, or the user whose engine runs without root.
    pub owner: Seen<u32>,
    /// Where its root directory lies, as the host names it: the upper directory of an overlay. None: in no overlay.
    pub layer: Seen<Option<PathBuf>>,
    /// Whether that directory is still there, as PID 1 sees the host: who removes a container removes it.
    pub is_layer_there: Seen<bool>,
    /// The others in its mount namespace: of the same container, where that has the host's pids. Read only then.
    pub fellows: Seen<BTreeSet<Pid>>,
}

/// Executables that hold a published port for a container, and whose engine's.
const FORWARDERS: [(&str, &[EngineKind]); 10] = [
    ("docker-proxy", &[EngineKind::Docker]),
    ("dockerd", &[EngineKind::Docker]),
    ("conmon", &[EngineKind::Podman]),
    ("rootlessport", &[EngineKind::Podman]),
    ("rootlesskit", &[EngineKind::Docker, EngineKind::Podman]),
    ("pasta", &[EngineKind::Podman, EngineKind::Docker]),
    ("passt.avx2", &[EngineKind::Podman, EngineKind::Docker]),
    ("pasta.avx2", &[EngineKind::Podman, EngineKind::Docker]),
    ("passt", &[EngineKind::Podman, EngineKind::Docker]),
    ("slirp4netns", &[EngineKind::Podman, EngineKind::Docker]),
];

/// Where a system keeps its executables; elsewhere a file name proves nothing.
const SYSTEM_FOLDERS: [&str; 9] = [
    "/usr/",
    "/bin/",
    "/sbin/",
    "/lib/",
    "/nix/store/",
    "/run/current-system/",
    "/opt/",
    "/snap/",
    "/var/lib/rancher/",
];

/// The kernel adds ` (deleted)` where the file was replaced under the process.
pub fn without_deleted(exe: &Path) -> &Path {
    exe.to_str().and_then(|t| t.strip_suffix(" (deleted)")).map_or(exe, Path::new)
}

/// The file name of an executable; NixOS wraps `conmon` as `.conmon-wrapped`.
pub fn file_name(exe: &Path) -> Option<&str> {
    let name = without_deleted(exe).to_str()?.rsplit('/').next()?;
    Some(name.strip_prefix('.').and_then(|n| n.strip_suffix("-wrapped")).unwrap_or(name))
}

/// The same, in a system folder only.
pub fn system_name(exe: &Path) -> Option<&str> {
    let is_system = SYSTEM_FOLDERS.iter().any(|folder| exe.starts_with(folder));
    let name = file_name(exe).filter(|_| is_system)?;
    Some(if name.starts_with("systemd-") { "systemd" } else { name })
}

/// Engines for whose containers this executable may hold ports; none where it is no forwarder.
pub fn forwards_for(exe: &Path) -> Option<&'static [EngineKind]> {
    let name = system_name(exe)?;
    FORWARDERS.iter().find(|(known, _)| *known == name).map(|(_, engines)| *engines)
}

impl Process {
    /// Engines for whose containers it may hold ports, by its executable.
    pub fn forwards_for(&self) -> Option<&'static [EngineKind]> {
        forwards_for(self.exe.known()?)
    }

    /// Its control group's path names a container.
    pub fn has_claim(&self) -> bool {
        self.cgroup.known().is_some_and(|cgroup| cgroup.claim.is_some())
    }

    /// It has a pid in a namespace below ours.
    pub fn is_in_nested_namespace(&self) -> bool {
        self.namespace_pids.known().is_some_and(|pids| pids.len() > 1)
    }

    /// The init of a pid namespace below ours: with it ends every process there (pid_namespaces(7)).
    pub fn is_first_in_its_namespace(&self) -> bool {
        let pids = self.namespace_pids.known();
        self.is_in_nested_namespace() && pids.is_some_and(|pids| pids.last() == Some(&1))
    }

    /// Ended and only waiting to be reaped: a zombie leader whose other threads live is alive.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

/// What a socket on a guarded port is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    /// LISTEN; for UDP: bound and unconnected.
    Listening,
    /// Bound, not listening (TCP_BOUND_INACTIVE, Linux ≥ 6.8).
    Bound,
    /// A connection whose local port this is; the peer's address.
    Connected(SocketAddr),
    /// TIME_WAIT or FIN_WAIT without an owner: nobody holds it any more.
    Lingering,
}

/// One socket of our network namespace whose local port is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Protocol.
    pub proto: Proto,
    /// Local address.
    pub address: IpAddr,
    /// Local port.
    pub port: Port,
    /// State.
    pub state: SocketState,
    /// Inode, as in `/proc/PID/fd/N` → `socket:[inode]`; 0 = no descriptor refers to it any more.
    pub inode: u64,
    /// The kernel's own name of this socket, never reused in a boot; none in the `/proc/net` text.
    pub cookie: Option<u64>,
    /// Owner's uid.
    pub uid: u32,
    /// Id of the cgroup (v2) that *created* the socket; narrows the search, convicts nobody.
    pub creator_cgroup: Option<u64>,
    /// Takes IPv6 only; known for IPv6 sockets of a socket-diagnostics dump.
    pub v6only: Option<bool>,
}

impl Socket {
    /// Whether it stands in the way of a service that binds this endpoint, as far as is known.
    pub fn is_on(&self, endpoint: &Endpoint) -> bool {
        self.overlaps(endpoint) != Some(false)
    }

    /// The same; none where that depends on an IPv6 socket's `v6only` and it is not known.
    pub fn overlaps(&self, endpoint: &Endpoint) -> Option<bool> {
        if self.port != endpoint.port || self.proto != endpoint.proto {
            return Some(false);
        }
        // An IPv4-mapped address (`::ffff:127.0.0.1`) takes the port from IPv4.
        let own = self.address.to_canonical();
        match endpoint.address.map(|wanted| wanted.to_canonical()) {
            None => Some(true),
            Some(_) if endpoint.is_v6only && own.is_ipv4() => Some(false),
            Some(wanted) if wanted.is_ipv6() && wanted.is_unspecified() => Some(true),
            Some(wanted) if own.is_ipv4() == wanted.is_ipv4() => {
                Some(own == wanted || own.is_unspecified() || wanted.is_unspecified())
            }
            Some(_) if own.is_ipv6() && own.is_unspecified() => self.v6only.map(|only| !only),
            Some(_) => Some(false),
        }
    }
}

/// One process's hold on one socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// Inode of the socket.
    pub inode: u64,
    /// Who holds it.
    pub pid: Pid,
    /// Where the hold is visible, relative to `/proc`: `4242/fd/7`, `4242/task/4243/fd/7`; none where it
    /// is registered with io_uring only.
    pub link: Option<String>,
}

/// The sockets on the guarded ports and who holds them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sockets {
    /// Every socket whose local port is guarded.
    pub all: Vec<Socket>,
    /// Who holds them; a socket may have many holders, and none that we see.
    pub holdings: Vec<Holding>,
    /// Processes whose descriptors we were refused, and holders that came and went faster than we looked: with
    /// any, a socket without a holder is not nobody's.
    pub refused: u32,
    /// Those of them that are known: which sockets they hold is not.
    pub unread: BTreeSet<Pid>,
    /// Whether bound-but-not-listening TCP sockets would have been seen.
    pub sees_bound: bool,
    /// Sockets whose creating cgroup no longer exists.
    pub creator_gone: BTreeSet<u64>,
}

/// A port that a gate found free and let its service have, as that gate wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The port.
    pub endpoint: Endpoint,
    /// When, in ticks since boot: nothing had the port then.
    pub at_ticks: u64,
    /// The gate, and so the command that it became.
    pub gate: ProcessKey,
    /// Whether it became one.
    pub became_command: bool,
    /// Who stood above it then; none where not all are known.
    pub ancestors: Option<Vec<Pid>>,
    /// The path of its control group, where that is a unit's and no login session's.
    pub unit_path: Option<String>,
}

/// What binding a guarded port came to, the way its service binds it. The socket was closed at once and never listened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// It could be bound without SO_REUSEADDR: nothing has it.
    Bound,
    /// Only with SO_REUSEADDR. That proves nothing where a bound socket may be silent: a thief's bind succeeds likewise.
    BoundReusing,
    /// EADDRINUSE.
    Busy,
    /// EADDRNOTAVAIL: no interface has the address.
    NoSuchAddress,
    /// EAFNOSUPPORT: the kernel has no such family.
    NoSuchFamily,
}

/// What the engines that were asked said of containers.
#[derive(Debug, Clone, Default)]
pub struct Containers {
    /// Each container that an engine was asked about. Gone = this engine does not know it, by its own words.
    pub said: BTreeMap<(EngineRef, ContainerId), Seen<Container>>,
    /// Engines whose containers are all in `said`, and those that were asked for them in vain.
    pub listed: BTreeMap<EngineRef, Seen<()>>,
    /// Where engines keep their containers, where that was asked.
    pub stores: BTreeMap<EngineRef, Seen<Store>>,
    /// The pid namespaces of their main processes. Gone = there is no such process.
    pub namespaces: BTreeMap<Pid, Seen<u64>>,
}

impl Containers {
    /// The containers that are known.
    pub fn known(&self) -> impl Iterator<Item = &Container> {
        self.said.values().filter_map(Seen::known)
    }
}

/// Where a rule stands that sends packets elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RulePlace {
    /// `ip`, `ip6`, `inet`: nftables' word for the family of its table.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Which one.
    pub number: RuleNumber,
}

/// What tells a rule from the others of its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleNumber {
    /// nftables' handle, which stays the rule's own. iptables-nft keeps its rules there too.
    Handle(u64),
    /// Its place in its chain, from 1: the older tables of `iptables-legacy` name no rule.
    Place(usize),
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain, number } = self;
        match number {
            RuleNumber::Handle(handle) => {
                write!(f, "rule {handle} of chain {chain} (nftables, table {family} {table})")
            }
            RuleNumber::Place(place) => {
                let tool = if *family == "ip6" { "ip6tables-legacy" } else { "iptables-legacy" };
                write!(f, "rule {place} of chain {chain} ({tool}, table {table})")
            }
        }
    }
}

/// Of a port's packets, which ones a rule takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Share {
    /// All, or all but those of a few senders.
    All,
    /// All or some: one of its conditions we do not know.
    Unclear,
    /// Those from some interface or sender alone, or with some mark.
    Some,
}

/// A rule that sends the packets of a guarded port elsewhere (DNAT, redirect), so that no server on the port sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detour {
    /// The guarded port.
    pub endpoint: Endpoint,
    /// Which rule.
    pub place: RulePlace,
    /// Which packets.
    pub share: Share,
    /// Where to, as far as the rule says it in one word: `10.88.0.2:8091`.
    pub to: Option<String>,
    /// What its author wrote beside it.
    pub comment: Option<String>,
}

/// What engines say that they publish now.
pub type Publishers = BTreeMap<EngineRef, Seen<Vec<Publisher>>>;

/// What may have a guarded port though no socket is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beyond {
    /// Rules on the way to a guarded port.
    pub detours: Seen<Vec<Detour>>,
    /// What runs in root's engines, of those that were asked.
    pub publishers: Publishers,
    /// Those of their main processes that are gone.
    pub gone: BTreeSet<Pid>,
}

/// systemd's KillMode= (systemd.kill(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillMode {
    /// All processes of the unit are ended.
    ControlGroup,
    /// SIGTERM to the main process, SIGKILL to all.
    Mixed,
    /// Only the main process: the rest stays on purpose.
    Process,
    /// Nobody.
    None,
    /// A word of a newer systemd.
    Other(String),
}

impl fmt::Display for KillMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ControlGroup => "control-group",
            Self::Mixed => "mixed",
            Self::Process => "process",
            Self::None => "none",
            Self::Other(word) => word,
        })
    }
}

/// A unit, as its manager describes it (org.freedesktop.systemd1(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// LoadState is `loaded`.
    pub is_loaded: bool,
    /// ActiveState: `active`, `activating`, `deactivating`, `inactive`, `failed`, ….
    pub active_state: String,
    /// SubState, `running`, `abandoned`, `auto-restart`, ….
    pub sub_state: String,
    /// KillMode=; none for unit types without one.
    pub kill_mode: Option<KillMode>,
    /// SendSIGKILL=.
    pub sends_sigkill: bool,
    /// Delegate=: the unit's processes make their own cgroups.
    pub is_delegated: bool,
    /// MainPID; none for scopes and forking units that declare none.
    pub main_pid: Option<Pid>,
    /// ControlPID: a start, stop or reload command under way.
    pub control_pid: Option<Pid>,
    /// InvocationID of the present or last run, 32 hexadecimal digits.
    pub invocation_id: Option<String>,
    /// When the present run began (InactiveExitTimestampMonotonic), since boot.
    pub started: Option<Duration>,
    /// Restart=, `no`, `always`, `on-failure`, ….
    pub restart: Option<String>,
}

impl Unit {
    /// `active (running)`, as systemctl(1) says it.
    pub fn state(&self) -> String {
        format!("{} ({})", self.active_state, self.sub_state)
    }

    /// Whether systemd leaves no process when it stops the unit (systemd.kill(5)).
    pub fn ends_all_processes(&self) -> bool {
        let is_whole = matches!(self.kill_mode, Some(KillMode::ControlGroup | KillMode::Mixed));
        is_whole && self.sends_sigkill && !self.is_delegated
    }

    /// Neither running nor on its way up or down.
    pub fn is_dead(&self) -> bool {
        matches!(self.active_state.as_str(), "inactive" | "failed")
    }

    /// Nothing of it runs, and its manager will start it again.
    pub fn waits_for_restart(&self) -> bool {
        self.sub_state.starts_with("auto-restart")
    }
}

/// A receipt: what was recorded of a process that we started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Boot in which it was started.
    pub boot_id: String,
    /// Which process.
    pub key: ProcessKey,
    /// Its executable; none = it was not seen.
    pub exe: Option<PathBuf>,
    /// Its user; none = it was not seen.
    pub uid: Option<u32>,
    /// For which model.
    pub model: ModelName,
    /// Whose word this is: root's is about everybody's processes, anybody else's about their own.
    pub writer: u32,
    /// Who keeps it.
    pub owner: Owner,
    /// Whether that one still lives.
    pub is_owner_alive: Seen<bool>,
}

/// Who keeps a process that we started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A unit.
    Unit(UnitRef),
    /// A container of this name: its processes are judged as any container's.
    Container(String),
    /// Nobody who was written down.
    Unsaid,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(unit) => unit.fmt(f),
            Self::Container(name) => write!(f, "container {name}"),
            Self::Unsaid => f.write_str("whoever keeps it"),
        }
    }
}

/// Time as the kernel counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Seen<String>,
    /// Now, in ticks since boot.
    pub now_ticks: Seen<u64>,
    /// Ticks in a second.
    pub ticks_per_second: u64,
}

impl Clock {
    /// Time from a tick until now; none where the clock could not be read.
    pub fn age(&self, start_ticks: u64) -> Option<Duration> {
        let ticks = self.now_ticks.known()?.saturating_sub(start_ticks);
        Some(Duration::from_millis(ticks.saturating_mul(1000) / self.ticks_per_second.max(1)))
    }
}

/// What this process may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are effective: every process's links may be read.
    pub may_see_all: bool,
    /// We stand in the machine's first pid namespace: no process is outside our view of `/proc`.
    pub is_first_pid_namespace: bool,
    /// `/proc` is mounted with hidepid and we lack CAP_SYS_PTRACE: other users' processes are invisible.
    pub is_proc_hidden: bool,
}

/// All that was seen for one question, at one time.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Time.
    pub clock: Clock,
    /// Ourselves, then our ancestors up to PID 1.
    pub ourselves: Vec<Pid>,
    /// One of them could not be read: more may stand above the last.
    pub misses_ancestors: bool,
    /// Whether systemd runs this host (`/run/systemd/system` exists, sd_booted(3)); not known where its marks
    /// are seen and its `/run` is not ours.
    pub has_systemd: Seen<bool>,
    /// What we may look at at all.
    pub sight: Sight,
    /// The range that outgoing connections take their local ports from (ip(7) ip_local_port_range), both ends in it.
    pub ephemeral_ports: Seen<(u16, u16)>,
    /// Ports that are kept out of it, as `net.ipv4.ip_local_reserved_ports` writes them.
    pub reserved_ports: Seen<String>,
    /// Sockets on the guarded ports.
    pub sockets: Seen<Sockets>,
    /// Processes of the question, their ancestors, and the leaders of their sessions and groups where these live.
    pub processes: BTreeMap<Pid, Process>,
    /// Those of them whose command line a pattern may match, and those that were asked about by pid.
    pub matching: BTreeSet<Pid>,
    /// What could not be read of which process, and why: a pattern may have missed it.
    pub unread: Vec<(Pid, String)>,
    /// Units of the processes above.
    pub units: BTreeMap<UnitRef, Seen<Unit>>,
    /// logind's state of sessions by id: `online`, `active`, `closing`; Gone = logind no longer knows it.
    pub sessions: BTreeMap<String, Seen<String>>,
    /// Whether a user lingers (loginctl(1) enable-linger).
    pub lingering: BTreeMap<u32, Seen<bool>>,
    /// What engines said of the containers in question.
    pub containers: Containers,
    /// What may have a port without a socket; none = not asked.
    pub beyond: Option<Beyond>,
    /// Receipts that name one of these processes, or one that had its process id before.
    pub receipts: Vec<Receipt>,
    /// GPUs; none = they were not asked about.
    pub gpus: Option<Gpus>,
}

impl Snapshot {
    /// The parents of a process, nearest first, as far as they are known; ends before a loop.
    pub fn ancestors(&self, pid: Pid) -> impl Iterator<Item = &Process> {
        let mut next = self.processes.get(&pid).map(|p| p.parent);
        let mut steps = 0;
        std::iter::from_fn(move || {
            let process = self.processes.get(&next?)?;
            steps += 1;
            next = (steps < 4096).then_some(process.parent);
            Some(process)
        })
    }

    /// Who holds this socket.
    pub fn holders(&self, inode: u64) -> impl Iterator<Item = Pid> {
        let holdings = self.sockets.known().map(|s| s.holdings.as_slice()).unwrap_or_default();
        holdings.iter().filter(move |h| h.inode == inode && inode != 0).map(|h| h.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_named_as_below_dev() {
        // As new_encode_dev (include/linux/kdev_t.h) packs them.
        for (number, name) in [
            (34_823, "pts/7"),
            (0x0010_8801, "pts/257"),
            (-2_067_756_801, "pts/543999"),
            (1025, "tty1"),
            (1088, "ttyS0"),
            (1281, "of device 5:1"),
        ] {
            assert_eq!(Terminal::of_number(number).unwrap().to_string(), name);
        }
        assert_eq!(Terminal::of_number(0), None);
    }
}
