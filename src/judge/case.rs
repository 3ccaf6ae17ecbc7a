//! One process before the judge: its facts, and the conditions of the verdict table as questions to them.

use std::time::Duration;

use crate::{
    config::settings::{Service, ServicePattern, Settings, WorkerPattern, fits},
    ident::{Endpoint, Manager, Pid, ServiceName, UnitName, UnitRef},
    snapshot::{
        Cgroup, Gpu, Process, Receipt, Seen, Snapshot, Unit, file_name, forwards_for, system_name,
        without_deleted,
    },
};

use super::{
    container::share_layer,
    gpu::{GpuGuard, INFRASTRUCTURE},
    receipt,
    truth::{Truth, fact, known},
    verdict::{GpuShare, Unknown},
};

/// A guarded port and its owner by the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The port.
    pub endpoint: Endpoint,
    /// Its service; none for a port that only the command line names.
    pub service: Option<ServiceName>,
}

/// What a candidate holds of what is guarded.
#[derive(Debug, Clone, Default)]
pub struct Held<'a> {
    /// Ports.
    pub ports: Vec<&'a Guard>,
    /// Why it is not known whether it holds more of them.
    pub unsure: Option<Unknown>,
    /// GPUs, once for each guard of each. That one was not seen makes nobody's verdict harder.
    pub gpus: Vec<HeldGpu<'a>>,
}

/// A guarded GPU that a process computes on.
#[derive(Debug, Clone, Copy)]
pub struct HeldGpu<'a> {
    /// Which.
    pub gpu: &'a Gpu,
    /// Why it is guarded.
    pub guard: &'a GpuGuard,
    /// How much of its memory the process has, where the driver says.
    pub memory_bytes: Option<u64>,
}

/// One process and what the verdict table asks of it.
pub struct Case<'a> {
    /// All that was seen.
    pub snapshot: &'a Snapshot,
    /// The settings.
    pub settings: &'a Settings,
    /// The process.
    pub process: &'a Process,
    /// What it holds of what is guarded.
    pub held: Held<'a>,
    /// Patterns of services that it matches.
    pub matched: Vec<(&'a Service, &'a ServicePattern)>,
    /// The first worker pattern that it matches.
    pub worker: Option<&'a WorkerPattern>,
    /// The receipt with its process id, which may be about another process.
    pub receipt: Option<&'a Receipt>,
}

/// What a question that nobody put is answered with.
const UNASKED: &str = "its manager was not asked about it";

/// Executables of service managers, engines and monitors, by file name within a system's folder.
const GUARDIANS: [&str; 16] = [
    "systemd",
    "init",
    "sshd",
    "sshd-session",
    "sshd-auth",
    "dbus-daemon",
    "dbus-broker",
    "dockerd",
    "containerd",
    "containerd-shim",
    "containerd-shim-runc-v2",
    "conmon",
    "conmonrs",
    "crio",
    "podman",
    "kubelet",
];

/// Keepers of other people's terminals: whatever their arguments say, sessions live in them.
const MULTIPLEXERS: [&str; 6] = ["tmux", "screen", "zellij", "mosh-server", "dtach", "abduco"];

impl<'a> Case<'a> {
    /// Prepares the case of one process.
    pub fn new(
        snapshot: &'a Snapshot,
        settings: &'a Settings,
        process: &'a Process,
        held: Held<'a>,
    ) -> Self {
        let (matched, worker) = matches(settings, process);
        let receipt = receipt::of(snapshot, process);
        Self { snapshot, settings, process, held, matched, worker, receipt }
    }

    pub(super) fn name(&self, what: &str) -> String {
        format!("{what} of pid {}", self.process.key.pid)
    }

    /// Whether the executable is one of these, in a folder of the system.
    fn is_system_exe(&self, names: &[&str]) -> Truth {
        fact(
            &self.process.exe,
            || self.name("the executable"),
            |exe| Truth::from(system_name(exe).is_some_and(|name| names.contains(&name))),
        )
    }

    /// A `protect:` rule holds, or the process is part of the machine itself. In words: what protects it.
    pub fn is_protected(&self) -> (Truth, String) {
        let process = self.process;
        let pid = process.key.pid;
        let by_nature = [
            (pid == Pid::INIT, "it is PID 1"),
            (process.is_kernel_thread, "it is a thread of the kernel"),
            (self.snapshot.ourselves.first() == Some(&pid), "it is portreeve itself"),
            (self.snapshot.ourselves.contains(&pid), "portreeve was started from it"),
            (self.is_multiplexer(), "it keeps other people's terminals"),
        ];
        if let Some((_, why)) = by_nature.iter().find(|(holds, _)| *holds) {
            return (Truth::Yes, (*why).to_owned());
        }
        let mut by_rule = Truth::No;
        for rule in &self.settings.protect {
            use crate::config::settings::Protect;
            by_rule = by_rule.or(|| match rule {
                Protect::Unit(glob) => self.in_unit(|unit| glob.is_match(&unit.name.0).into()),
                Protect::Exe(glob) => fact(
                    &process.exe,
                    || self.name("the executable"),
                    |exe| glob.is_match(without_deleted(exe)).into(),
                ),
            });
        }
        if by_rule == Truth::Yes {
            return (Truth::Yes, "a 'protect:' rule names it".to_owned());
        }
        let is_guardian = self
            .is_system_exe(&GUARDIANS)
            .or(|| self.is_system_exe(&INFRASTRUCTURE))
            .or(|| self.has_forwarders_exe())
            .and(|| !self.is_forwarder());
        let name = process.exe.known().and_then(|exe| system_name(exe)).unwrap_or("it");
        let why = format!("{name} keeps this machine running");
        (by_rule.or(|| is_guardian).or(|| self.is_of_our_line()), why)
    }

    /// Who started us and is not seen to have: nobody, unless one above us could not be read.
    fn is_of_our_line(&self) -> Truth {
        if !self.snapshot.misses_ancestors {
            return Truth::No;
        }
        Truth::Unknown(Unknown {
            fact: "what portreeve was started from".to_owned(),
            why: "it could not be read".to_owned(),
            remedy: Some("run it as root".to_owned()),
        })
    }

    /// Holds a guarded port on behalf of a container.
    pub fn is_forwarder(&self) -> Truth {
        Truth::from(!self.held.ports.is_empty()).and(|| self.has_forwarders_exe())
    }

    fn has_forwarders_exe(&self) -> Truth {
        let name = || self.name("the executable");
        fact(&self.process.exe, name, |exe| forwards_for(exe).is_some().into())
    }

    /// Keeps terminals open for others, from whatever folder: people install these at home.
    fn is_multiplexer(&self) -> bool {
        let exe = self.process.exe.known().and_then(|exe| file_name(exe));
        exe.is_some_and(|name| MULTIPLEXERS.contains(&name))
    }

    /// A debugger or strace is attached: somebody is looking into it.
    pub fn is_traced(&self) -> Truth {
        fact(
            &self.process.tracer,
            || self.name("the tracer"),
            |tracer| Truth::from(tracer.is_some()),
        )
    }

    /// A claim in its cgroup, a pid namespace of its own, or a root of its own.
    pub fn has_container_evidence(&self) -> Truth {
        let claims = fact(
            &self.process.cgroup,
            || self.name("the control group"),
            |c| c.claim.is_some().into(),
        );
        let is_nested = || {
            fact(
                &self.process.namespace_pids,
                || self.name("the pid namespace"),
                |pids| Truth::from(pids.len() > 1),
            )
        };
        claims.or(is_nested).or(|| self.has_root_of_its_own())
    }

    /// Its root is an overlay that is not ours: a container's that uses the host's pids.
    fn has_root_of_its_own(&self) -> Truth {
        let Some(enclosure) = &self.process.enclosure else { return Truth::No };
        let name = || self.name("the root directory");
        // A unit's own process may have any root (RootDirectory=, nsenter): it is that unit's.
        fact(&enclosure.layer, name, |layer| layer.is_some().into())
            .and(|| !self.is_unit_process(true))
    }

    /// The process outside its pid namespace (with the host's pid namespace: outside its claim) from which it
    /// descends; a living one that is no reaper supervises it.
    pub fn supervisor(&self) -> Result<Option<&'a Process>, Unknown> {
        let (above, last) = self.climb_from(self.process)?;
        if above.is_some() {
            return Ok(above);
        }
        let depth = known(&self.process.namespace_pids, || self.name("the pid namespace"))?.len();
        if depth > 1 {
            let is_first = last.is_first_in_its_namespace();
            return if is_first { Ok(None) } else { self.supervisor_of_namespace() };
        }
        self.supervisor_of_fellows()
    }

    /// The same by its own ancestry, for any process; with it the last one inside.
    fn climb_from(
        &self,
        process: &'a Process,
    ) -> Result<(Option<&'a Process>, &'a Process), Unknown> {
        let of = |what: &str| format!("{what} of pid {}", process.key.pid);
        let depth = known(&process.namespace_pids, || of("the pid namespace"))?.len();
        let claim = known(&process.cgroup, || of("the control group"))?.claim.as_ref();
        let mut below = process;
        for _ in 0..=self.snapshot.processes.len() {
            let above = self.parent_of(below)?;
            let name = |what: &str| format!("{what} of pid {}", above.key.pid);
            let is_outside = if depth > 1 {
                known(&above.namespace_pids, || name("the pid namespace"))?.len() < depth
            } else if claim.is_none() {
                !share_layer(process, above)
            } else {
                known(&above.cgroup, || name("the control group"))?.claim.as_ref() != claim
            };
            if is_outside {
                return match self.is_reaper(above) {
                    Truth::Yes => Ok((None, below)),
                    Truth::No => Ok((Some(above), below)),
                    Truth::Unknown(unknown) => Err(unknown),
                };
            }
            if above.key.pid == Pid::INIT {
                return Ok((None, below));
            }
            below = above;
        }
        // Parents that were read at two moments may form a ring.
        let why = "its parents changed while they were read".to_owned();
        Err(Unknown { fact: of("the ancestry"), why, remedy: None })
    }

    /// With the host's pids there is no first process by which a container lives: it lives as long as somebody looks after
    /// one of its processes.
    fn supervisor_of_fellows(&self) -> Result<Option<&'a Process>, Unknown> {
        let Some(enclosure) = &self.process.enclosure else { return Ok(None) };
        let name = || self.name("the other processes in the mount namespace");
        for fellow in known(&enclosure.fellows, name)? {
            let seen = self.snapshot.processes.get(fellow).ok_or_else(|| Unknown {
                fact: format!("process {fellow}, of the same container"),
                why: "it was gone when it was read".to_owned(),
                remedy: None,
            })?;
            if let (Some(above), _) = self.climb_from(seen)? {
                return Ok(Some(above));
            }
        }
        Ok(None)
    }

    /// What was sent into a pid namespace (`podman exec`) has a monitor of its own, which may die alone: what looks after
    /// the namespace is above its first process, with which all of it ends (pid_namespaces(7)).
    fn supervisor_of_namespace(&self) -> Result<Option<&'a Process>, Unknown> {
        let namespace = |process: &'a Process| process.enclosure.as_ref()?.pid_namespace.known();
        let own = namespace(self.process);
        let is_it = |process: &&Process| process.is_first_in_its_namespace();
        let mut firsts = self.snapshot.processes.values().filter(is_it);
        let first = firsts.find(|first| own.is_some() && namespace(first) == own);
        let above = self.parent_of(first.ok_or_else(|| Unknown {
            fact: self.name("the first process in the pid namespace"),
            why: "it was not seen".to_owned(),
            remedy: None,
        })?)?;
        match self.is_reaper(above) {
            Truth::Yes => Ok(None),
            Truth::No => Ok(Some(above)),
            Truth::Unknown(unknown) => Err(unknown),
        }
    }

    /// The parent as it was seen.
    fn parent_of(&self, process: &Process) -> Result<&'a Process, Unknown> {
        let fact = || format!("the parent of pid {}", process.key.pid);
        if process.parent == Pid::OUTSIDE {
            let why = "it lies outside our pid namespace".to_owned();
            return Err(Unknown { fact: fact(), why, remedy: None });
        }
        self.snapshot.processes.get(&process.parent).ok_or_else(|| Unknown {
            fact: fact(),
            why: "it was gone when it was read".to_owned(),
            remedy: None,
        })
    }

    /// PID 1, or the main process of a user's manager. A PID 1 that is a server of the settings itself is a
    /// parent like any other; inside a container it may be one that we do not recognise.
    fn is_reaper(&self, process: &Process) -> Truth {
        if process.key.pid == Pid::INIT {
            let runs_systemd = self.snapshot.has_systemd == Seen::Known(true);
            let is_first = self.snapshot.sight.is_first_pid_namespace;
            if !is_first && !runs_systemd && !is_init(process) {
                return Truth::Unknown(Unknown {
                    fact: "whether pid 1 is an init or a container's own server".to_owned(),
                    why: "this is a pid namespace within the host's".to_owned(),
                    remedy: Some("run it on the host, outside the container".to_owned()),
                });
            }
            let (services, worker) = matches(self.settings, process);
            return !by_command_line(process, || !services.is_empty() || worker.is_some());
        }
        let name = || format!("the control group of pid {}", process.key.pid);
        fact(&process.cgroup, name, |cgroup| match &cgroup.unit {
            Some(UnitRef { manager: Manager::User(uid), name }) if name.0 == "init.scope" => {
                let unit = UnitRef {
                    manager: Manager::System,
                    name: UnitName(format!("user@{uid}.service")),
                };
                self.unit(&unit, |unit| Truth::from(unit.main_pid == Some(process.key.pid)))
            }
            Some(_) | None => Truth::No,
        })
    }

    /// The process, then the parents that are fellows: of the same service, session, unit and user; no reaper
    /// is. Then whether the next parent is a fellow too: no, or not known.
    fn fellows(&self) -> (Vec<&'a Process>, Truth) {
        let mut fellows = vec![self.process];
        let mut below = self.process;
        for parent in self.snapshot.ancestors(self.process.key.pid) {
            if self.is_reaper(parent) != Truth::No {
                break;
            }
            match self.are_fellows(below, parent) {
                Truth::Yes => fellows.push(parent),
                no_or_unknown @ (Truth::No | Truth::Unknown(_)) => return (fellows, no_or_unknown),
            }
            below = parent;
        }
        (fellows, Truth::No)
    }

    /// The topmost of them.
    pub fn root(&self) -> &'a Process {
        self.fellows().0.last().copied().unwrap_or(self.process)
    }

    fn are_fellows(&self, child: &Process, parent: &Process) -> Truth {
        let of = |what: &str, process: &Process| format!("{what} of pid {}", process.key.pid);
        let is_same_service = || {
            let (services, worker) = matches(self.settings, parent);
            let is_own = |name: &ServiceName| self.matched.iter().any(|(own, _)| own.name == *name);
            let is_shared = services.iter().any(|(service, _)| is_own(&service.name))
                || (worker.is_some() && self.worker.is_some());
            by_command_line(parent, || !services.is_empty() || worker.is_some())
                .and(|| self.has_pattern())
                .and(|| {
                    by_command_line(parent, || is_shared).or(|| self.by_command_line(|| is_shared))
                })
        };
        let is_same_session = || match (child.session, parent.session) {
            (Pid::OUTSIDE, _) | (_, Pid::OUTSIDE) => Truth::Unknown(Unknown {
                fact: of("the session", child),
                why: "it lies outside our pid namespace".to_owned(),
                remedy: None,
            }),
            (own, above) => Truth::from(own == above),
        };
        is_same_service()
            .and(is_same_session)
            .and(|| {
                fact(
                    &child.uid,
                    || of("the user", child),
                    |own| {
                        let name = || of("the user", parent);
                        fact(&parent.uid, name, |above| Truth::from(own == above))
                    },
                )
            })
            .and(|| {
                let what = "the control group";
                fact(
                    &child.cgroup,
                    || of(what, child),
                    |own| {
                        let is_same =
                            |above: &Cgroup| own.unit == above.unit && own.path == above.path;
                        fact(&parent.cgroup, || of(what, parent), |above| is_same(above).into())
                    },
                )
            })
    }

    /// The parent is gone: a reaper took the process, or the fellows that it descends from.
    pub fn is_parent_gone(&self) -> Truth {
        let (fellows, is_next_one_too) = self.fellows();
        match self.parent_of(fellows.last().copied().unwrap_or(self.process)) {
            Ok(parent) => self.is_reaper(parent).or(|| is_next_one_too),
            Err(unknown) => Truth::Unknown(unknown),
        }
    }

    /// Its own parent is a reaper.
    pub fn is_parent_reaper(&self) -> Truth {
        match self.parent_of(self.process) {
            Ok(parent) => self.is_reaper(parent),
            Err(unknown) => Truth::Unknown(unknown),
        }
    }

    /// When it began, or the oldest of the fellows above it that hold a guarded port as well: a forked child is
    /// as old as its server. In ticks since boot.
    pub fn oldest_start(&self) -> u64 {
        let sockets = self.snapshot.sockets.known();
        let is_holder = |process: &&&Process| {
            let pid = process.key.pid;
            sockets.is_some_and(|s| s.holdings.iter().any(|h| h.pid == pid))
        };
        let (fellows, _) = self.fellows();
        let oldest = fellows.iter().rev().find(is_holder).filter(|_| !self.held.ports.is_empty());
        oldest.map_or(self.process, |process| process).key.start_ticks
    }

    /// The living parent, for display.
    pub fn parent(&self) -> Option<&'a Process> {
        self.parent_of(self.root()).ok()
    }

    fn in_unit(&self, test: impl FnOnce(&UnitRef) -> Truth) -> Truth {
        fact(
            &self.process.cgroup,
            || self.name("the control group"),
            |cgroup| cgroup.unit.as_ref().map_or(Truth::No, test),
        )
    }

    fn unit(&self, unit: &UnitRef, test: impl FnOnce(&Unit) -> Truth) -> Truth {
        let name = || format!("the state of {unit}");
        match self.snapshot.units.get(unit) {
            Some(seen) => fact(seen, name, test),
            None => fact(&Seen::Unreadable(UNASKED.to_owned()), name, test),
        }
    }

    /// Where no systemd runs, nothing is in a unit or a session of its.
    fn under_systemd(&self, test: impl FnOnce() -> Truth) -> Truth {
        let name = || "whether systemd runs here".to_owned();
        fact(&self.snapshot.has_systemd, name, |runs| Truth::from(*runs)).and(test)
    }

    /// Its unit, where systemd runs and says that it is loaded.
    pub fn own_unit(&self, test: impl FnOnce(&UnitRef, &Unit) -> Truth) -> Truth {
        self.under_systemd(|| {
            self.in_unit(|unit| {
                self.unit(unit, |state| {
                    if state.is_loaded {
                        return test(unit, state);
                    }
                    Truth::Unknown(Unknown {
                        fact: format!("the state of {unit}"),
                        why: "its manager has not loaded it".to_owned(),
                        remedy: None,
                    })
                })
            })
        })
    }

    /// Is its unit's main or control process, or, with `descendants`, descends from it.
    pub fn is_unit_process(&self, descendants: bool) -> Truth {
        self.own_unit(|_, unit| {
            let is_one = |pid: Pid| [unit.main_pid, unit.control_pid].contains(&Some(pid));
            let pid = self.process.key.pid;
            let descends = || self.snapshot.ancestors(pid).any(|p| is_one(p.key.pid));
            Truth::from(is_one(pid) || (descendants && descends()))
        })
    }

    /// In a login session, open or closed.
    fn in_session(&self) -> Truth {
        self.under_systemd(|| {
            fact(
                &self.process.cgroup,
                || self.name("the control group"),
                |c| c.session.is_some().into(),
            )
        })
    }

    /// Its login session is over: the scope is abandoned, or logind closes it. That logind does not know it
    /// proves nothing: it keeps a session while its scope has processes, and may have lost its memory.
    pub fn is_session_closed(&self) -> Truth {
        self.in_session().and(|| {
            let id =
                self.process.cgroup.known().and_then(|c| c.session.clone()).unwrap_or_default();
            let name = || format!("the state of session {id}");
            let unasked = Seen::Unreadable(UNASKED.to_owned());
            self.own_unit(|_, unit| {
                Truth::from(unit.sub_state == "abandoned").or(|| {
                    let seen = self.snapshot.sessions.get(&id).unwrap_or(&unasked);
                    fact(seen, name, |state| Truth::from(state == "closing"))
                })
            })
        })
    }

    /// In somebody's open login session.
    pub fn in_open_session(&self) -> Truth {
        self.in_session().and(|| !self.is_session_closed())
    }

    /// In the cgroup of a unit that is no closed session's scope.
    pub fn in_unit_of_its_own(&self) -> Truth {
        self.own_unit(|_, _| Truth::Yes).and(|| !self.is_session_closed())
    }

    /// Its unit is inactive or failed.
    pub fn is_unit_dead(&self) -> Truth {
        self.own_unit(|_, unit| unit.is_dead().into())
    }

    /// Its user's processes stay after the last logout: the user that it runs as, or whose session it is.
    pub fn does_user_linger(&self) -> Truth {
        let lingers = |uid: &u32| {
            let unasked = Seen::Unreadable(UNASKED.to_owned());
            let seen = self.snapshot.lingering.get(uid).unwrap_or(&unasked);
            fact(seen, || format!("whether uid {uid} lingers"), |lingers| (*lingers).into())
        };
        let of_session = || self.process.cgroup.known().and_then(|c| c.session_user);
        self.under_systemd(|| {
            fact(&self.process.uid, || self.name("the user"), lingers)
                .or(|| of_session().map_or(Truth::No, |uid| lingers(&uid)))
        })
    }

    /// The user that it runs as and the one whose session it is in, once each; with each whether that one lingers, as
    /// far as known.
    pub fn users(&self) -> impl Iterator<Item = (u32, bool)> {
        let own = self.process.uid.known().copied();
        let of_session = self.process.cgroup.known().and_then(|c| c.session_user);
        let lingers = |uid| self.snapshot.lingering.get(&uid) == Some(&Seen::Known(true));
        own.into_iter()
            .chain(of_session.filter(move |uid| Some(*uid) != own))
            .map(move |uid| (uid, lingers(uid)))
    }

    /// What its command line says, where that was read.
    pub fn by_command_line(&self, says: impl FnOnce() -> bool) -> Truth {
        by_command_line(self.process, says)
    }

    /// It matches a pattern, of a service or of workers.
    pub fn has_pattern(&self) -> Truth {
        self.by_command_line(|| !self.matched.is_empty() || self.worker.is_some())
    }

    /// It holds a guarded port that `wanted` says yes to.
    pub fn holds(&self, wanted: impl Fn(&Guard) -> bool) -> Truth {
        let unsure = || self.held.unsure.clone().map_or(Truth::No, Truth::Unknown);
        Truth::from(self.held.ports.iter().any(|guard| wanted(guard))).or(unsure)
    }

    /// Whether a guarded port surely belongs to the service that has it by the settings: while the registry is not read it may
    /// be a model's.
    pub fn are_owners_known(&self) -> Truth {
        let unread = self.settings.unread_models.as_ref();
        unread.map_or(Truth::Yes, |unread| Truth::Unknown(unread.into()))
    }

    /// It holds a port of a service that `wanted` says yes to.
    pub fn holds_ports_of(&self, wanted: impl Fn(&ServiceName) -> bool) -> Truth {
        let is_its = |guard: &Guard| guard.service.as_ref().is_some_and(&wanted);
        self.holds(is_its).and(|| self.are_owners_known())
    }

    /// The guarded GPUs that it computes on, each once.
    pub fn gpu_shares(&self) -> Vec<GpuShare> {
        let mut shares: Vec<GpuShare> = Vec::new();
        for HeldGpu { gpu, memory_bytes, .. } in &self.held.gpus {
            let label = gpu.label();
            if !shares.iter().any(|share| share.label == label) {
                shares.push(GpuShare { label, memory_bytes: *memory_bytes });
            }
        }
        shares
    }

    /// Services whose ports it holds.
    pub fn services_by_port(&self) -> impl Iterator<Item = &'a Service> {
        self.held.ports.iter().filter_map(|g| self.settings.service(g.service.as_ref()?))
    }

    /// Services of the process: by a port that it holds, by its receipt, then by pattern, which several may share.
    pub fn services(&self) -> Vec<&'a Service> {
        let mut services: Vec<&Service> = Vec::new();
        let by_pattern = self.matched.iter().map(|(service, _)| *service);
        let all = self.services_by_port().chain(self.service_by_receipt()).chain(by_pattern);
        for service in all {
            if !services.iter().any(|s| s.name == service.name) {
                services.push(service);
            }
        }
        services
    }

    /// The service that declares where it runs, whose pattern this process matches, and one of whose ports it
    /// holds (or the pattern is portless); with it, whether that is so.
    pub fn declared_service(&self) -> (Truth, Option<&'a Service>) {
        let declared = self.matched.iter().filter(|(service, _)| service.runs_in.is_some());
        let mut answer = (self.by_command_line(|| false), None);
        for &(service, pattern) in declared {
            let holds_its = || self.holds_ports_of(|name| *name == service.name);
            let holds = Truth::from(pattern.is_portless).or(holds_its);
            if holds == Truth::Yes {
                return (holds, Some(service));
            }
            if answer.0 == Truth::No {
                answer = (holds, Some(service));
            }
        }
        answer
    }

    /// Time since this process itself began.
    pub fn age(&self) -> Option<Duration> {
        self.snapshot.clock.age(self.process.key.start_ticks)
    }
}

/// What a command line says, where it was read. What stands behind a cut may say more.
fn by_command_line(process: &Process, says: impl FnOnce() -> bool) -> Truth {
    let name = |what: &str| format!("{what} of pid {}", process.key.pid);
    fact(
        &process.command_line,
        || name("the command line"),
        |line| match (says(), line.is_cut) {
            (true, _) => Truth::Yes,
            (false, false) => Truth::No,
            (false, true) => Truth::Unknown(Unknown {
                fact: name("the end of the command line"),
                why: "it is longer than what is kept of it".to_owned(),
                remedy: None,
            }),
        },
    )
}

/// Patterns that a process's command line matches.
fn matches<'a>(
    settings: &'a Settings,
    process: &Process,
) -> (Vec<(&'a Service, &'a ServicePattern)>, Option<&'a WorkerPattern>) {
    let Some(line) = process.command_line.known() else { return (Vec::new(), None) };
    let services = settings.services.iter().flat_map(|service| {
        service
            .patterns
            .iter()
            .filter(|pattern| fits(&pattern.regex, &line.text, line.is_cut))
            .map(move |pattern| (service, pattern))
    });
    let worker =
        settings.workers.iter().find(|worker| fits(&worker.regex, &line.text, line.is_cut));
    (services.collect(), worker)
}

/// A first process that calls itself an init: a guest's (LXC, WSL), not a container's tini or server.
fn is_init(process: &Process) -> bool {
    const INITS: [&[u8]; 3] = [b"init", b"openrc-init", b"runit"];
    let line = process.command_line.known().map(|l| l.text.as_slice()).unwrap_or_default();
    let word = line.split(|&b| b == b' ').next().unwrap_or_default();
    let name = word.rsplit(|&b| b == b'/').next().unwrap_or_default();
    INITS.contains(&name)
}
