//! Hosts in a few lines, and every fact of them by name, to be taken away.

use std::{collections::BTreeMap, net::IpAddr, sync::LazyLock, time::Duration};

use globset::Glob;

use super::super::{
    Judgement, Terms,
    case::Guard,
    gpu::{GpuGuard, GpuState},
    judge,
    port::{PortState, PortVerdict},
    verdict::{Finding, Verdict},
};
use crate::{
    config::settings::{
        Defaults, Engines, ForeignHolder, Gate, GpuNeed, GpuSources, Protect, RunsIn, Service,
        ServicePattern, Settings, WorkerPattern, compile_pattern,
    },
    ident::{
        Endpoint, EngineKind, EngineRef, GpuName, Manager, Pid, Port, ProcessKey, Proto, UnitRef,
    },
    snapshot::{
        Beyond, Cgroup, ClaimKind, Clock, CommandLine, Container, ContainerClaim, ContainerState,
        Containers, Enclosure, Gpu, GpuHolding, GpuMemory, GpuSource, GpuUse, GpuVendor, Gpus,
        Holding, KillMode, Owner, Process, Receipt, Seen, Sight, Snapshot, Socket, SocketState,
        Sockets, Store, Terminal, Unit,
    },
};

pub(super) const NOW: u64 = 1_000_000;
pub(super) const SERVER: &str = "python3 -u /app/server.py --config /etc/a.yaml";
pub(super) const DOCKER: EngineRef = EngineRef { kind: EngineKind::Docker, owner: 0 };
pub(super) const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What was seen, what is set, what was asked.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub(super) snapshot: Snapshot,
    pub(super) settings: Settings,
    pub(super) terms: Terms,
}

pub(super) fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

pub(super) fn system(unit: &str) -> UnitRef {
    UnitRef { manager: Manager::System, name: unit.into() }
}

fn service(name: &str, runs_in: Option<RunsIn>, ports: &[u16], patterns: &[&str]) -> Service {
    let pattern = |text: &&str| ServicePattern {
        regex: compile_pattern(text.trim_start_matches("portless ")).unwrap(),
        is_portless: text.starts_with("portless "),
    };
    Service {
        name: name.into(),
        runs_in,
        own_unit: None,
        ports: ports.iter().map(|p| p.to_string().parse().unwrap()).collect(),
        reuse_addr: true,
        gpus: Vec::new(),
        gpu_free: GpuNeed::Share(90),
        patterns: patterns.iter().map(pattern).collect(),
        grace: Duration::from_secs(5),
        foreign_holder: ForeignHolder::Report,
    }
}

/// Two services that share a pattern, one that runs in a unit, one that declares nothing, one without
/// patterns, one for workers' titles.
fn settings() -> Settings {
    let glob = |text: &str| Glob::new(text).unwrap().compile_matcher();
    let container = || Some(RunsIn::Container(None));
    let portless = r"portless discovery_daemon\.py";
    Settings {
        defaults: Defaults::default(),
        services: vec![
            service("aidb", container(), &[8091, 8791], &[r"server\.py --config", portless]),
            service("db", Some(RunsIn::Unit("db.service".into())), &[5432], &["postgres -D"]),
            service("hybrid", container(), &[8092], &[r"server\.py --config"]),
            service("mindsdb", None, &[47334], &[]),
            service("web", None, &[3001], &[r"web\.py"]),
        ],
        models: Vec::new(),
        unread_models: None,
        workers: vec![WorkerPattern {
            name: "vllm".to_owned(),
            regex: compile_pattern("^VLLM::").unwrap(),
            grace: Duration::from_secs(5),
        }],
        protect: vec![Protect::Unit(glob("keep*.service")), Protect::Exe(glob("/srv/keep/*"))],
        engines: Engines::default(),
        gate: Gate::default(),
        gpus: GpuSources::default(),
    }
}

pub(super) fn unit() -> Unit {
    Unit {
        is_loaded: true,
        active_state: "active".to_owned(),
        sub_state: "running".to_owned(),
        kill_mode: Some(KillMode::ControlGroup),
        sends_sigkill: true,
        is_delegated: false,
        main_pid: None,
        control_pid: None,
        invocation_id: Some("b".repeat(32)),
        started: Some(Duration::from_secs(5000)),
        restart: None,
    }
}

/// pts/3.
pub(super) fn terminal() -> Option<Terminal> {
    Terminal::of_number(0x8803)
}

pub(super) fn claim() -> ContainerClaim {
    ContainerClaim { kind: ClaimKind::Docker, id: ID.into() }
}

impl Scene {
    /// PID 1 and nothing else on a host with systemd; every guarded port of the settings is asked about.
    pub(super) fn new() -> Self {
        static SETTINGS: LazyLock<Settings> = LazyLock::new(settings);
        let settings = SETTINGS.clone();
        let guards = settings.services.iter().flat_map(|service| {
            let guard = |&endpoint| Guard { endpoint, service: Some(service.name.clone()) };
            service.ports.iter().map(guard)
        });
        let terms = Terms { guards: guards.collect(), ..Terms::default() };
        let snapshot = Snapshot {
            clock: Clock {
                boot_id: Seen::Known("this boot".to_owned()),
                now_ticks: Seen::Known(NOW),
                ticks_per_second: 100,
            },
            ourselves: vec![Pid(900), Pid(901)],
            misses_ancestors: false,
            has_systemd: Seen::Known(true),
            sight: Sight { may_see_all: true, is_first_pid_namespace: true, is_proc_hidden: false },
            ephemeral_ports: Seen::Known((32_768, 60_999)),
            reserved_ports: Seen::Known(String::new()),
            sockets: Seen::Known(Sockets { sees_bound: true, ..Sockets::default() }),
            processes: BTreeMap::new(),
            matching: [].into(),
            unread: Vec::new(),
            units: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lingering: [(1000, Seen::Known(false))].into(),
            containers: Containers::default(),
            beyond: None,
            receipts: Vec::new(),
            gpus: None,
        };
        let scene = Self { snapshot, settings, terms };
        scene.process(1, 0, "/sbin/init").edit(1, |p| p.exe = Seen::Known("/sbin/init".into()))
    }

    /// The founding mess: a server of aidb on its port, whose container and parent are gone.
    pub(super) fn mess() -> Self {
        Self::new().process(7, 1, SERVER).listens(7, 8091)
    }

    /// A process of uid 1000 in a session of its own, in no unit.
    pub(super) fn process(mut self, pid: u32, parent: u32, command_line: &str) -> Self {
        let text = command_line.as_bytes().to_vec();
        let process = Process {
            key: ProcessKey { pid: Pid(pid), start_ticks: 1000, pidfd_inode: None },
            parent: Pid(parent),
            group: Pid(pid),
            session: Pid(pid),
            terminal: None,
            state: 'S',
            threads: 1,
            is_kernel_thread: false,
            name: "python3".to_owned(),
            command_line: Seen::Known(CommandLine { text, is_cut: false }),
            exe: Seen::Known("/usr/bin/python3.13".into()),
            uid: Seen::Known(1000),
            namespace_pids: Seen::Known(vec![pid]),
            tracer: Seen::Known(None),
            cgroup: Seen::Known(Cgroup { path: "/".to_owned(), ..Cgroup::default() }),
            invocation_id: None,
            enclosure: None,
            is_root_deleted: false,
        };
        if self.settings.patterns().any(|p| p.is_match(command_line.as_bytes())) {
            self.snapshot.matching.insert(Pid(pid));
        }
        self.snapshot.processes.insert(Pid(pid), process);
        self
    }

    pub(super) fn edit(mut self, pid: u32, edit: impl FnOnce(&mut Process)) -> Self {
        edit(self.snapshot.processes.get_mut(&Pid(pid)).unwrap());
        self
    }

    pub(super) fn exe(self, pid: u32, path: &str) -> Self {
        self.edit(pid, |p| p.exe = Seen::Known(path.into()))
    }

    pub(super) fn cgroup(self, pid: u32, edit: impl FnOnce(&mut Cgroup)) -> Self {
        self.edit(pid, |p| {
            if let Seen::Known(cgroup) = &mut p.cgroup {
                edit(cgroup);
            }
        })
    }

    /// Puts a process into a container of this depth of pid namespaces.
    pub(super) fn contained(self, pid: u32, namespace_pids: &[u32]) -> Self {
        let pids = namespace_pids.to_vec();
        self.cgroup(pid, |c| c.claim = Some(claim()))
            .edit(pid, |p| p.namespace_pids = Seen::Known(pids))
    }

    /// Makes a unit known, as `edit` changes a running one.
    pub(super) fn unit(mut self, unit_ref: &UnitRef, edit: impl FnOnce(&mut Unit)) -> Self {
        let mut unit = unit();
        edit(&mut unit);
        self.snapshot.units.insert(unit_ref.clone(), Seen::Known(unit));
        self
    }

    pub(super) fn edit_unit(mut self, unit_ref: &UnitRef, edit: impl FnOnce(&mut Unit)) -> Self {
        if let Some(Seen::Known(unit)) = self.snapshot.units.get_mut(unit_ref) {
            edit(unit);
        }
        self
    }

    /// Puts a process into a unit.
    pub(super) fn inside(self, pid: u32, unit_ref: &UnitRef) -> Self {
        let unit = Some(unit_ref.clone());
        self.cgroup(pid, |c| (c.path, c.unit) = (format!("/{unit_ref}"), unit))
    }

    /// Puts a process into login session 3.
    pub(super) fn in_session(mut self, pid: u32, state: &str, sub_state: &str) -> Self {
        let scope = system("session-3.scope");
        self.snapshot.sessions.insert("3".to_owned(), Seen::Known(state.to_owned()));
        self.inside(pid, &scope)
            .cgroup(pid, |c| c.session = Some("3".to_owned()))
            .unit(&scope, |u| (u.sub_state, u.kill_mode) = (sub_state.to_owned(), None))
    }

    pub(super) fn listens(self, pid: u32, number: u16) -> Self {
        self.socket(&[pid], &format!("0.0.0.0:{number}"), SocketState::Listening)
    }

    /// A TCP socket in a state, held by these processes.
    pub(super) fn socket(mut self, holders: &[u32], local: &str, state: SocketState) -> Self {
        let local: std::net::SocketAddr = local.parse().unwrap();
        let Seen::Known(sockets) = &mut self.snapshot.sockets else { return self };
        let inode = 100 + sockets.all.len() as u64;
        let address: IpAddr = local.ip();
        sockets.all.push(Socket {
            proto: Proto::Tcp,
            address,
            port: port(local.port()),
            state,
            inode,
            cookie: None,
            uid: 1000,
            creator_cgroup: None,
            v6only: address.is_ipv6().then_some(false),
        });
        let held = |&pid: &u32| Holding { inode, pid: Pid(pid), link: Some(format!("{pid}/fd/3")) };
        sockets.holdings.extend(holders.iter().map(held));
        self
    }

    pub(super) fn edit_sockets(mut self, edit: impl FnOnce(&mut Sockets)) -> Self {
        if let Seen::Known(sockets) = &mut self.snapshot.sockets {
            edit(sockets);
        }
        self
    }

    pub(super) fn see(mut self, edit: impl FnOnce(&mut Snapshot)) -> Self {
        edit(&mut self.snapshot);
        self
    }

    pub(super) fn set(mut self, edit: impl FnOnce(&mut Settings)) -> Self {
        edit(&mut self.settings);
        self
    }

    pub(super) fn ask(mut self, edit: impl FnOnce(&mut Terms)) -> Self {
        edit(&mut self.terms);
        self
    }

    /// Gives these of the services' ports, in their order, to a model: a service without patterns that only reports.
    pub(super) fn taken_over_by_a_model(mut self, taken: [bool; 8]) -> Self {
        let mut ports = Vec::new();
        let mut is_taken = taken.into_iter();
        for service in &mut self.settings.services {
            service.ports.retain(|port| {
                let is_kept = !is_taken.next().unwrap_or(false);
                ports.extend((!is_kept).then_some(*port));
                is_kept
            });
        }
        for guard in &mut self.terms.guards {
            if ports.iter().any(|port| port.overlaps(&guard.endpoint)) {
                guard.service = Some("model".into());
            }
        }
        let runs_in = Some(RunsIn::Container(Some("vllm-model-model".to_owned())));
        self.settings.services.push(Service { ports, ..service("model", runs_in, &[], &[]) });
        self
    }

    /// Asks about one more endpoint by name.
    pub(super) fn named_port(self, endpoint: &str) -> Self {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        self.ask(|t| {
            t.named_ports.push(endpoint);
            let owner = t.guards.iter().find(|g| g.endpoint.overlaps(&endpoint));
            let guard = Guard { endpoint, service: owner.and_then(|g| g.service.clone()) };
            if !t.guards.contains(&guard) {
                t.guards.push(guard);
            }
        })
    }

    /// Reads a process's namespaces and root: uid 1000's processes in root's container number `namespace`.
    pub(super) fn enclosed(self, pid: u32, namespace: u64) -> Self {
        self.edit(pid, |p| {
            p.enclosure = Some(Enclosure {
                pid_namespace: Seen::Known(namespace),
                owner: Seen::Known(0),
                layer: Seen::Known(Some("/var/lib/docker/overlay2/7/diff".into())),
                is_layer_there: Seen::Known(false),
                fellows: Seen::Known([].into()),
            });
        })
    }

    /// Docker's word on the container of [`claim`], called aidb.
    pub(super) fn docker_says(self, state: ContainerState, main: Option<u32>) -> Self {
        let main_pid = main.map(Pid);
        let container = Container {
            engine: DOCKER,
            id: ID.into(),
            name: "aidb".to_owned(),
            state,
            main_pid,
            restarts: 0,
            restart_policy: Some("always".to_owned()),
            health: None,
            pid_mode: String::new(),
            network_mode: "host".to_owned(),
            published: Vec::new(),
            labels: BTreeMap::new(),
            upper_dir: None,
        };
        self.docker_answers(Seen::Known(container))
    }

    /// Docker's answer to the question for that container.
    pub(super) fn docker_answers(mut self, answer: Seen<Container>) -> Self {
        self.snapshot.containers.said.insert((DOCKER, ID.into()), answer);
        self
    }

    pub(super) fn edit_container(self, edit: impl FnOnce(&mut Container)) -> Self {
        self.see(|s| {
            if let Some(Seen::Known(container)) = s.containers.said.get_mut(&(DOCKER, ID.into())) {
                edit(container);
            }
        })
    }

    /// A process that is some container's main process, and its pid namespace.
    pub(super) fn main_process(self, pid: u32, namespace: Seen<u64>) -> Self {
        self.see(|s| drop(s.containers.namespaces.insert(Pid(pid), namespace)))
    }

    /// Where Docker keeps its containers.
    pub(super) fn docker_keeps_in(self, root: &str) -> Self {
        let store = Store { root: root.into(), driver: "overlay2".to_owned(), holds_layers: true };
        self.see(|s| drop(s.containers.stores.insert(DOCKER, Seen::Known(store))))
    }

    pub(super) fn receipt(mut self, pid: u32, edit: impl FnOnce(&mut Receipt)) -> Self {
        let mut receipt = Receipt {
            boot_id: "this boot".to_owned(),
            key: self.snapshot.processes[&Pid(pid)].key,
            exe: Some("/usr/bin/python3.13".into()),
            uid: Some(1000),
            model: "llama".into(),
            writer: 0,
            owner: Owner::Unit(system("portreeve-model-llama.service")),
            is_owner_alive: Seen::Known(false),
        };
        edit(&mut receipt);
        self.snapshot.receipts.push(receipt);
        self
    }

    /// A GPU of 80 GiB, so many free, used by these processes; all GPUs are guarded, for nobody.
    pub(super) fn gpu(mut self, free_gib: u64, users: &[(u32, GpuUse)]) -> Self {
        let gpus = self.snapshot.gpus.get_or_insert_default();
        let user = |&(pid, kind): &(u32, GpuUse)| GpuHolding {
            pid: Pid(pid),
            kind,
            memory_bytes: Some(1 << 30),
        };
        gpus.all.push(Gpu {
            vendor: GpuVendor::Nvidia,
            index: u32::try_from(gpus.all.len()).unwrap(),
            uuid: None,
            bus: None,
            name: "NVIDIA H200".to_owned(),
            part: None,
            is_split: false,
            is_integrated: false,
            memory: Seen::Known(Some(GpuMemory {
                total_bytes: 80 << 30,
                free_bytes: free_gib << 30,
            })),
            holdings: users.iter().map(user).collect(),
            may_miss: None,
            source: GpuSource::Nvml,
        });
        if self.terms.gpus.is_empty() {
            self = self.guards_gpu(GpuName::All, None, GpuNeed::Share(90));
        }
        self
    }

    pub(super) fn guards_gpu(
        mut self,
        name: GpuName,
        service: Option<&str>,
        need: GpuNeed,
    ) -> Self {
        self.terms.gpus.push(GpuGuard { name, service: service.map(Into::into), need });
        self
    }

    pub(super) fn edit_gpus(mut self, edit: impl FnOnce(&mut Gpus)) -> Self {
        edit(self.snapshot.gpus.get_or_insert_default());
        self
    }

    pub(super) fn judge(&self) -> Judgement {
        judge(&self.snapshot, &self.settings, &self.terms)
    }

    /// The verdict on a candidate. Panics where there is none.
    pub(super) fn verdict(&self, pid: u32) -> Verdict {
        let verdicts = self.judge().verdicts;
        verdicts.into_iter().find(|v| v.key().pid == Pid(pid)).expect("a candidate")
    }

    /// Row and title of the verdict on a candidate; the law holds on the way.
    pub(super) fn says(&self, pid: u32) -> (u8, String) {
        self.obeys_the_law().unwrap();
        let verdict = self.verdict(pid);
        (verdict.row.0, verdict.title())
    }

    pub(super) fn convicts(&self, pid: u32) -> bool {
        self.obeys_the_law().unwrap();
        self.judge().convicted().any(|v| v.key().pid == Pid(pid))
    }

    pub(super) fn is_candidate(&self, pid: u32) -> bool {
        self.judge().verdicts.iter().any(|v| v.key().pid == Pid(pid))
    }

    /// The word on a guarded port.
    pub(super) fn port(&self, endpoint: &str) -> PortVerdict {
        self.obeys_the_law().unwrap();
        let endpoint: Endpoint = endpoint.parse().unwrap();
        self.judge().ports.into_iter().find(|p| p.endpoint == endpoint).expect("a guarded port")
    }

    /// Each of these facts, seen in each of the three other ways, leaves the process undecided, and the verdict
    /// names the fact.
    pub(super) fn needs(&self, pid: u32, facts: &[(Fact, &str)]) {
        for (fact, name) in facts {
            for blindness in BLINDNESSES {
                let blinded = self.clone().without(fact, blindness);
                let verdict = blinded.verdict(pid);
                let Finding::Undecided(unknown) = &verdict.finding else {
                    panic!("{fact:?} {blindness:?}: {}: {}", verdict.title(), verdict.reason);
                };
                assert_eq!(unknown.fact, *name, "{fact:?} {blindness:?}");
                assert!(!verdict.is_convicted, "{fact:?} {blindness:?}");
            }
        }
    }

    /// Each of these facts, seen in each of the three other ways, changes nothing.
    pub(super) fn does_not_need(&self, pid: u32, facts: &[Fact]) {
        for fact in facts {
            for blindness in BLINDNESSES {
                let blinded = self.clone().without(fact, blindness);
                assert_eq!(blinded.says(pid), self.says(pid), "{fact:?} {blindness:?}");
            }
        }
    }
}

/// A fact of a scene that may not have been seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    Boot,
    Now,
    EphemeralPorts,
    ReservedPorts,
    /// Rules of the packet filter: that they may not be read is told once for all ports, and keeps none shut.
    Detours,
    /// What an engine publishes.
    Published(usize),
    Sockets,
    V6Only(usize),
    /// The process itself: gone between two reads.
    Process(u32),
    CommandLine(u32),
    Exe(u32),
    Uid(u32),
    NamespacePids(u32),
    Tracer(u32),
    /// Which sockets it has open.
    Descriptors(u32),
    /// A command line that goes on behind what is kept of it.
    CutLine(u32),
    HasSystemd,
    Cgroup(u32),
    InvocationId(u32),
    Session(u32),
    /// 0 = outside our pid namespace.
    Parent(u32),
    Unit(UnitRef),
    SessionState(String),
    Linger(u32),
    OwnerAlive(usize),
    /// An engine's word on a container; that it does not know it is no blindness.
    Said(usize),
    Listed(usize),
    Store(usize),
    MainNamespace(u32),
    PidNamespace(u32),
    NamespaceOwner(u32),
    Layer(u32),
    Fellows(u32),
    LayerThere(u32),
    GpuMemory(usize),
    /// Who holds a GPU: none is seen, and it is known that some may be missed.
    GpuHolders(usize),
    /// That those who are seen to hold a GPU are all.
    MoreGpuHolders(usize),
    /// That there may be more GPUs.
    Gpus,
    /// Not in the `Seen` form: rights, and what the walk through `/proc` was refused.
    Sight,
    /// Who started us: all but ourselves.
    Ancestors,
    /// That the cgroups that created sockets are gone.
    CreatorsGone,
    /// That nothing was left unread: a pattern may have missed something.
    Unread(u32),
    /// What a manager leaves out where it does not have it.
    UnitKillMode(UnitRef),
    UnitInvocation(UnitRef),
    UnitStart(UnitRef),
    UnitRestart(UnitRef),
    UnitSigkill(UnitRef),
    UnitDelegate(UnitRef),
    /// What an engine leaves out.
    ContainerLayer(usize),
    /// What was not seen when a receipt was written, or is not written in it.
    ReceiptExe(usize),
    ReceiptUid(usize),
    ReceiptOwner(usize),
    /// A pidfd's own number, which older kernels have not.
    PidfdInode(u32),
    GpuUuid(usize),
    GpuBus(usize),
}

/// The ways of not seeing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blindness {
    Gone,
    Denied,
    Unreadable,
}

pub(super) const BLINDNESSES: [Blindness; 3] =
    [Blindness::Gone, Blindness::Denied, Blindness::Unreadable];

impl Blindness {
    fn but_gone(self) -> Self {
        match self {
            Self::Gone | Self::Unreadable => Self::Unreadable,
            Self::Denied => Self::Denied,
        }
    }
}

fn blind<T>(seen: &mut Seen<T>, blindness: Blindness) {
    *seen = match blindness {
        Blindness::Gone => Seen::Gone,
        Blindness::Denied => Seen::Denied,
        Blindness::Unreadable => Seen::Unreadable("input/output error".to_owned()),
    };
}

/// Names every field of a snapshot: one more does not compile here, until it is decided how it is lost (`Fact`), or written down
/// why it cannot be. Those with a fact of their own are `_`; the others say in which reading they come and go.
#[expect(clippy::too_many_lines, reason = "one line per field")]
fn name_all(snapshot: &Snapshot) {
    let Snapshot {
        clock: Clock { boot_id: _, now_ticks: _, ticks_per_second: _constant },
        ourselves: _,
        misses_ancestors: _,
        has_systemd: _,
        sight: Sight { may_see_all: _, is_first_pid_namespace: _, is_proc_hidden: _ },
        ephemeral_ports: _,
        reserved_ports: _,
        sockets: _,
        processes,
        // Follows from a command line, and that can be lost.
        matching: _with_command_line,
        unread: _,
        units,
        sessions: _,
        lingering: _,
        containers: Containers { said, listed: _, stores: _, namespaces: _ },
        beyond,
        receipts,
        gpus,
    } = snapshot;
    if let Seen::Known(Sockets {
        all,
        holdings: _,
        refused: _,
        unread: _,
        sees_bound: _,
        creator_gone: _,
    }) = &snapshot.sockets
    {
        // One message of one dump, all or nothing, but for two attributes that older kernels have not.
        for Socket {
            proto: _with_socket,
            address: _address,
            port: _port,
            state: _state,
            inode: _inode,
            cookie: _cookie,
            uid: _uid,
            creator_cgroup: _narrows_the_search,
            v6only: _,
        } in all
        {}
    }
    for Process {
        // One text, `stat`: without it there is no process.
        key: ProcessKey { pid: _with_stat, start_ticks: _start, pidfd_inode: _ },
        parent: _,
        group: _,
        session: _,
        terminal: _terminal,
        state: _state,
        threads: _threads,
        is_kernel_thread: _is_kernel_thread,
        name: _name,
        command_line: _,
        exe: _,
        uid: _,
        namespace_pids: _,
        tracer: _,
        cgroup: _,
        invocation_id: _,
        enclosure,
        is_root_deleted: _shown_alone,
    } in processes.values()
    {
        if let Some(Enclosure {
            pid_namespace: _,
            owner: _,
            layer: _,
            is_layer_there: _,
            fellows: _,
        }) = enclosure
        {}
    }
    for unit in units.values() {
        let Seen::Known(unit) = unit else { continue };
        let Unit {
            // Without one of these three the manager has not told the unit.
            is_loaded: _with_unit,
            active_state: _with_it,
            sub_state: _and_this,
            kill_mode: _,
            // False and true where they are left out: the gentler.
            sends_sigkill: _,
            is_delegated: _,
            // Left out of a service, they leave it untold (`observe/units.rs`); 0 is an answer.
            main_pid: _with_unit_too,
            control_pid: _likewise,
            invocation_id: _,
            started: _,
            restart: _,
        } = unit;
    }
    for container in said.values() {
        let Seen::Known(container) = container else { continue };
        let Container {
            engine: _asked,
            id: _asked_for,
            name: _with_container,
            state: _with_its_pid,
            // Left out, it leaves the container untold (`engine/answer.rs`); 0 is an answer.
            main_pid: _with_state,
            restarts: _shown_alone,
            restart_policy: _shown,
            health: _shown_too,
            pid_mode: _with_host_config,
            network_mode: _with_it,
            published: _with_both,
            upper_dir: _,
            labels: _not_judged,
        } = container;
    }
    if let Some(Beyond { detours: _, publishers: _, gone: _with_publishers }) = beyond {}
    for Receipt {
        // One row of the registry; these cannot be empty in it.
        boot_id: _with_row,
        // What is missing in it was not known then: executable and user have to fit instead, and whether they do is unknown.
        key: _with_process,
        exe: _,
        uid: _,
        model: _the_rows_key,
        writer: _whose_registry,
        owner: _,
        is_owner_alive: _,
    } in receipts
    {}
    let Some(Gpus { all, trouble: _told_alone, may_miss: _ }) = gpus else { return };
    for Gpu {
        vendor: _with_gpu,
        index: _index,
        uuid: _,
        bus: _,
        name: _name,
        part: _part,
        is_split: _is_split,
        is_integrated: _is_integrated,
        memory: _,
        holdings: _,
        may_miss: _,
        source: _source,
    } in all
    {}
}

fn edit_unit(snapshot: &mut Snapshot, unit: &UnitRef, edit: impl Fn(&mut Unit)) {
    if let Some(Seen::Known(unit)) = snapshot.units.get_mut(unit) {
        edit(unit);
    }
}

fn edit_said(snapshot: &mut Snapshot, at: usize, edit: impl Fn(&mut Container)) {
    if let Some(Seen::Known(container)) = snapshot.containers.said.values_mut().nth(at) {
        edit(container);
    }
}

fn edit_receipt(snapshot: &mut Snapshot, at: usize, edit: impl Fn(&mut Receipt)) {
    snapshot.receipts.get_mut(at).into_iter().for_each(edit);
}

impl Scene {
    /// Every fact there is.
    pub(super) fn facts(&self) -> Vec<Fact> {
        let snapshot = &self.snapshot;
        name_all(snapshot);
        let mut facts = vec![
            Fact::Boot,
            Fact::Now,
            Fact::EphemeralPorts,
            Fact::ReservedPorts,
            Fact::Sockets,
            Fact::HasSystemd,
            Fact::Sight,
        ];
        let sockets = snapshot.sockets.known().map_or(0, |s| s.all.len());
        facts.extend((0..sockets).map(Fact::V6Only));
        let of_process: [fn(u32) -> Fact; 12] = [
            Fact::Process,
            Fact::CommandLine,
            Fact::Exe,
            Fact::Uid,
            Fact::NamespacePids,
            Fact::Tracer,
            Fact::Descriptors,
            Fact::CutLine,
            Fact::Cgroup,
            Fact::InvocationId,
            Fact::Session,
            Fact::Parent,
        ];
        let pids = snapshot.processes.keys();
        facts.extend(pids.flat_map(|pid| of_process.map(|fact| fact(pid.0))));
        facts.extend(snapshot.units.keys().cloned().map(Fact::Unit));
        facts.extend(snapshot.sessions.keys().cloned().map(Fact::SessionState));
        facts.extend(snapshot.lingering.keys().copied().map(Fact::Linger));
        facts.extend((0..snapshot.receipts.len()).map(Fact::OwnerAlive));
        let containers = &snapshot.containers;
        facts.extend((0..containers.said.len()).map(Fact::Said));
        facts.extend((0..containers.listed.len()).map(Fact::Listed));
        facts.extend((0..containers.stores.len()).map(Fact::Store));
        facts.extend(containers.namespaces.keys().map(|pid| Fact::MainNamespace(pid.0)));
        let enclosed = snapshot.processes.values().filter(|p| p.enclosure.is_some());
        let of_enclosure: [fn(u32) -> Fact; 5] = [
            Fact::PidNamespace,
            Fact::NamespaceOwner,
            Fact::Layer,
            Fact::Fellows,
            Fact::LayerThere,
        ];
        let gpus = snapshot.gpus.as_ref().map_or(0, |gpus| gpus.all.len());
        facts.extend(
            (0..gpus).flat_map(|at| {
                [Fact::GpuMemory(at), Fact::GpuHolders(at), Fact::MoreGpuHolders(at)]
            }),
        );
        facts.extend(snapshot.gpus.iter().map(|_| Fact::Gpus));
        if let Some(beyond) = &snapshot.beyond {
            facts.push(Fact::Detours);
            facts.extend((0..beyond.publishers.len()).map(Fact::Published));
        }
        facts.extend(enclosed.flat_map(|p| of_enclosure.map(|fact| fact(p.key.pid.0))));
        facts.extend([Fact::Ancestors, Fact::CreatorsGone]);
        let of_process: [fn(u32) -> Fact; 2] = [Fact::Unread, Fact::PidfdInode];
        let pids = snapshot.processes.keys();
        facts.extend(pids.flat_map(|pid| of_process.map(|fact| fact(pid.0))));
        let of_unit: [fn(UnitRef) -> Fact; 6] = [
            Fact::UnitSigkill,
            Fact::UnitDelegate,
            Fact::UnitKillMode,
            Fact::UnitInvocation,
            Fact::UnitStart,
            Fact::UnitRestart,
        ];
        facts.extend(snapshot.units.keys().flat_map(|u| of_unit.map(|fact| fact(u.clone()))));
        facts.extend((0..containers.said.len()).map(Fact::ContainerLayer));
        let of_receipt: [fn(usize) -> Fact; 3] =
            [Fact::ReceiptExe, Fact::ReceiptUid, Fact::ReceiptOwner];
        facts.extend((0..snapshot.receipts.len()).flat_map(|at| of_receipt.map(|fact| fact(at))));
        facts.extend((0..gpus).flat_map(|at| [Fact::GpuUuid(at), Fact::GpuBus(at)]));
        facts
    }

    /// The same host, one fact not seen.
    #[expect(clippy::too_many_lines, reason = "one arm per fact")]
    pub(super) fn without(mut self, fact: &Fact, how: Blindness) -> Self {
        let snapshot = &mut self.snapshot;
        let mut of = |pid: &u32, edit: &dyn Fn(&mut Process)| {
            if let Some(process) = snapshot.processes.get_mut(&Pid(*pid)) {
                edit(process);
            }
        };
        match fact {
            Fact::CommandLine(pid) => of(pid, &|p| blind(&mut p.command_line, how)),
            Fact::Exe(pid) => of(pid, &|p| blind(&mut p.exe, how)),
            Fact::Uid(pid) => of(pid, &|p| blind(&mut p.uid, how)),
            Fact::NamespacePids(pid) => of(pid, &|p| blind(&mut p.namespace_pids, how)),
            Fact::Tracer(pid) => of(pid, &|p| blind(&mut p.tracer, how)),
            Fact::CutLine(pid) => of(pid, &|p| {
                if let Seen::Known(line) = &mut p.command_line {
                    line.is_cut = true;
                }
            }),
            Fact::HasSystemd => blind(&mut snapshot.has_systemd, how),
            Fact::Cgroup(pid) => of(pid, &|p| blind(&mut p.cgroup, how)),
            Fact::InvocationId(pid) => of(pid, &|p| {
                let mut seen = Seen::Gone;
                blind(&mut seen, how);
                p.invocation_id = Some(seen);
            }),
            Fact::Session(pid) => of(pid, &|p| (p.session, p.group) = (Pid::OUTSIDE, Pid::OUTSIDE)),
            Fact::Parent(pid) => of(pid, &|p| p.parent = Pid::OUTSIDE),
            Fact::Process(pid) => drop(snapshot.processes.remove(&Pid(*pid))),
            Fact::Boot => blind(&mut snapshot.clock.boot_id, how),
            Fact::Now => blind(&mut snapshot.clock.now_ticks, how),
            Fact::EphemeralPorts => blind(&mut snapshot.ephemeral_ports, how),
            Fact::ReservedPorts => blind(&mut snapshot.reserved_ports, how),
            Fact::Sockets => blind(&mut snapshot.sockets, how),
            Fact::Detours => {
                let beyond = snapshot.beyond.iter_mut().filter(|_| how != Blindness::Denied);
                beyond.for_each(|beyond| blind(&mut beyond.detours, how));
            }
            Fact::Published(at) => {
                let beyond = snapshot.beyond.iter_mut();
                let mut said = beyond.flat_map(|beyond| beyond.publishers.values_mut());
                said.nth(*at).into_iter().for_each(|seen| blind(seen, how));
            }
            Fact::Unit(unit) => {
                if let Some(seen) = snapshot.units.get_mut(unit) {
                    blind(seen, how);
                }
            }
            Fact::SessionState(id) => {
                if let Some(seen) = snapshot.sessions.get_mut(id) {
                    blind(seen, how);
                }
            }
            Fact::Linger(uid) => {
                if let Some(seen) = snapshot.lingering.get_mut(uid) {
                    blind(seen, how);
                }
            }
            Fact::OwnerAlive(at) => {
                if let Some(receipt) = snapshot.receipts.get_mut(*at) {
                    blind(&mut receipt.is_owner_alive, how);
                }
            }
            // "Not there" is an answer of these, and no blindness.
            Fact::Said(at) => {
                snapshot
                    .containers
                    .said
                    .values_mut()
                    .nth(*at)
                    .into_iter()
                    .for_each(|s| blind(s, how.but_gone()));
            }
            Fact::Listed(at) => {
                snapshot
                    .containers
                    .listed
                    .values_mut()
                    .nth(*at)
                    .into_iter()
                    .for_each(|s| blind(s, how.but_gone()));
            }
            Fact::Store(at) => {
                snapshot
                    .containers
                    .stores
                    .values_mut()
                    .nth(*at)
                    .into_iter()
                    .for_each(|s| blind(s, how));
            }
            Fact::MainNamespace(pid) => {
                let seen = snapshot.containers.namespaces.get_mut(&Pid(*pid));
                if let Some(seen) = seen {
                    blind(seen, how.but_gone());
                }
            }
            Fact::PidNamespace(pid) => of(pid, &|p| {
                p.enclosure.iter_mut().for_each(|e| blind(&mut e.pid_namespace, how));
            }),
            Fact::NamespaceOwner(pid) => of(pid, &|p| {
                p.enclosure.iter_mut().for_each(|e| blind(&mut e.owner, how));
            }),
            Fact::Layer(pid) => of(pid, &|p| {
                p.enclosure.iter_mut().for_each(|e| blind(&mut e.layer, how));
            }),
            Fact::Fellows(pid) => of(pid, &|p| {
                p.enclosure.iter_mut().for_each(|e| blind(&mut e.fellows, how));
            }),
            Fact::LayerThere(pid) => of(pid, &|p| {
                p.enclosure.iter_mut().for_each(|e| blind(&mut e.is_layer_there, how));
            }),
            Fact::GpuMemory(at) => {
                return self.edit_gpus(|gpus| blind(&mut gpus.all[*at].memory, how));
            }
            Fact::GpuHolders(at) => {
                return self.edit_gpus(|gpus| {
                    gpus.all[*at].holdings.clear();
                    gpus.all[*at].may_miss = Some("it was not read".to_owned());
                });
            }
            Fact::MoreGpuHolders(at) => {
                return self.edit_gpus(|gpus| {
                    gpus.all[*at].may_miss = Some("one was not read".to_owned());
                });
            }
            Fact::Gpus => {
                return self.edit_gpus(|gpus| {
                    gpus.all.clear();
                    gpus.may_miss = Some("they were not read".to_owned());
                });
            }
            Fact::Descriptors(pid) => {
                return self.edit_sockets(|s| {
                    s.holdings.retain(|holding| holding.pid != Pid(*pid));
                    s.refused += 1;
                    s.unread.insert(Pid(*pid));
                });
            }
            Fact::V6Only(at) => {
                return self.edit_sockets(|s| s.all[*at].v6only = None);
            }
            Fact::Sight => {
                snapshot.sight = Sight {
                    may_see_all: false,
                    is_first_pid_namespace: false,
                    is_proc_hidden: true,
                };
                return self.edit_sockets(|s| (s.refused, s.sees_bound) = (3, false));
            }
            Fact::Ancestors => {
                snapshot.ourselves.truncate(1);
                snapshot.misses_ancestors = true;
            }
            Fact::CreatorsGone => return self.edit_sockets(|s| s.creator_gone.clear()),
            Fact::Unread(pid) => snapshot.unread.push((Pid(*pid), "it was not read".to_owned())),
            Fact::PidfdInode(pid) => of(pid, &|p| p.key.pidfd_inode = None),
            Fact::UnitKillMode(unit) => edit_unit(snapshot, unit, |u| u.kill_mode = None),
            Fact::UnitInvocation(unit) => edit_unit(snapshot, unit, |u| u.invocation_id = None),
            Fact::UnitSigkill(unit) => edit_unit(snapshot, unit, |u| u.sends_sigkill = false),
            Fact::UnitDelegate(unit) => edit_unit(snapshot, unit, |u| u.is_delegated = true),
            Fact::UnitStart(unit) => edit_unit(snapshot, unit, |u| u.started = None),
            Fact::UnitRestart(unit) => edit_unit(snapshot, unit, |u| u.restart = None),
            Fact::ContainerLayer(at) => edit_said(snapshot, *at, |c| c.upper_dir = None),
            Fact::ReceiptExe(at) => edit_receipt(snapshot, *at, |r| r.exe = None),
            Fact::ReceiptUid(at) => edit_receipt(snapshot, *at, |r| r.uid = None),
            // Of nobody nobody is asked.
            Fact::ReceiptOwner(at) => edit_receipt(snapshot, *at, |r| {
                r.owner = Owner::Unsaid;
                if r.is_owner_alive != Seen::Known(true) {
                    blind(&mut r.is_owner_alive, how);
                }
            }),
            Fact::GpuUuid(at) => return self.edit_gpus(|gpus| gpus.all[*at].uuid = None),
            Fact::GpuBus(at) => return self.edit_gpus(|gpus| gpus.all[*at].bus = None),
        }
        self
    }

    /// The law: with any one fact not seen, nobody is convicted who was not, and no port becomes free.
    pub(super) fn obeys_the_law(&self) -> Result<(), String> {
        BLINDNESSES.into_iter().try_for_each(|blindness| self.obeys_the_law_when(blindness))
    }

    /// The same for one way of not seeing.
    pub(super) fn obeys_the_law_when(&self, blindness: Blindness) -> Result<(), String> {
        let sighted = self.judge();
        for fact in self.facts() {
            let blinded = self.clone().without(&fact, blindness).judge();
            for verdict in blinded.convicted() {
                let pid = verdict.key().pid;
                if !sighted.convicted().any(|v| v.key().pid == pid) {
                    let before = sighted.verdicts.iter().find(|v| v.key().pid == pid);
                    let before = before.map_or("no candidate".to_owned(), Verdict::title);
                    return Err(format!(
                        "{fact:?} {blindness:?} makes pid {pid} ({before}) {}, row {}: {}",
                        verdict.title(),
                        verdict.row.0,
                        verdict.reason,
                    ));
                }
            }
            for after in blinded.gpus.iter().filter(|after| after.state == GpuState::Free) {
                let before = sighted.gpus.iter().find(|before| before.label == after.label);
                if before.is_none_or(|before| before.state != GpuState::Free) {
                    return Err(format!("{fact:?} {blindness:?} makes {} free", after.label));
                }
            }
            if blinded.gpus.is_empty() && !sighted.gpus.is_empty() {
                return Err(format!("{fact:?} {blindness:?} leaves no GPU to judge"));
            }
            for (before, after) in sighted.ports.iter().zip(&blinded.ports) {
                if after.state == PortState::Free && before.state != PortState::Free {
                    let endpoint = before.endpoint;
                    return Err(format!("{fact:?} {blindness:?} makes {endpoint} free"));
                }
            }
        }
        Ok(())
    }
}
