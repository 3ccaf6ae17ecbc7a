//! Findings and reaps as no host had them, for the tests of this layer.

use std::time::Duration;

use crate::{
    act::{Deed, Outcome, Respawn},
    ident::{ContainerId, EngineKind, EngineRef, Pid, ProcessKey},
    judge::{
        gpu::{GpuState, GpuVerdict},
        port::{PortState, PortVerdict},
        verdict::{Finding, GpuShare, Orphan, Spare, Unknown, Verdict},
    },
    pipeline::{Findings, OrphanedContainer, Reaped},
    snapshot::{
        CommandLine, Gpu, GpuHolding, GpuMemory, GpuSource, GpuUse, GpuVendor, Process, Seen,
    },
};

pub(super) fn key(pid: u32) -> ProcessKey {
    ProcessKey { pid: Pid(pid), start_ticks: 100 + u64::from(pid), pidfd_inode: None }
}

pub(super) fn process(pid: u32, command_line: &[u8]) -> Process {
    Process {
        key: key(pid),
        parent: Pid::INIT,
        group: Pid(pid),
        session: Pid(pid),
        terminal: None,
        state: 'S',
        threads: 1,
        is_kernel_thread: false,
        name: "python3".into(),
        command_line: Seen::Known(CommandLine { text: command_line.to_vec(), is_cut: false }),
        exe: Seen::Known("/usr/bin/python3.13".into()),
        uid: Seen::Known(1000),
        namespace_pids: Seen::Known(vec![pid]),
        tracer: Seen::Known(None),
        cgroup: Seen::Denied,
        invocation_id: None,
        enclosure: None,
        is_root_deleted: false,
    }
}

pub(super) fn verdict(pid: u32, finding: Finding) -> Verdict {
    Verdict::sample(process(pid, b"python3 -u /app/server.py --config /etc/aidb.yaml"), finding)
}

pub(super) fn port(endpoint: &str, state: PortState) -> PortVerdict {
    PortVerdict {
        endpoint: endpoint.parse().unwrap(),
        service: Some("aidb".into()),
        sentence: format!("a sentence about {endpoint}"),
        next_step: None,
        state,
    }
}

pub(super) fn unknown() -> Unknown {
    Unknown {
        fact: "the descriptors of 12 processes".into(),
        why: "permission denied".into(),
        remedy: Some("run as root, or with CAP_SYS_PTRACE".into()),
    }
}

pub(super) fn findings(ports: Vec<PortVerdict>, verdicts: Vec<Verdict>) -> Findings {
    Findings { ports, gpus: Vec::new(), verdicts, unknowns: Vec::new(), model_containers: None }
}

pub(super) fn reaped_nothing() -> Reaped {
    Reaped {
        deeds: Vec::new(),
        respawns: Vec::new(),
        after: findings(vec![port("8091", PortState::Free)], Vec::new()),
        was_interrupted: false,
    }
}

/// One of each, the three good ones first.
pub(super) fn outcomes() -> [Outcome; 7] {
    [
        Outcome::Terminated(Duration::from_millis(312)),
        Outcome::Killed(Duration::from_millis(5240)),
        Outcome::Vanished,
        Outcome::Replaced("its start time is another".into()),
        Outcome::Refused("operation not permitted".into()),
        Outcome::Unkillable { state: 'D', wait_channel: Some("nfs_wait_bit_killable".into()) },
        Outcome::Interrupted,
    ]
}

fn told(
    mut verdict: Verdict,
    services: &[&str],
    ports: &[&str],
    reason: &str,
    next_step: Option<&str>,
) -> Verdict {
    verdict.services = services.iter().map(|&name| name.into()).collect();
    verdict.ports = ports.iter().map(|port| port.parse().unwrap()).collect();
    verdict.reason = reason.into();
    verdict.next_step = next_step.map(Into::into);
    verdict
}

fn stated(
    endpoint: &str,
    service: &str,
    state: PortState,
    sentence: &str,
    next_step: Option<&str>,
) -> PortVerdict {
    PortVerdict {
        service: Some(service.into()),
        sentence: sentence.into(),
        next_step: next_step.map(Into::into),
        ..port(endpoint, state)
    }
}

fn aidb() -> Verdict {
    told(
        verdict(4242, Finding::Orphan(Orphan::Misplaced("aidb".into()))),
        &["aidb"],
        &["8091", "8791"],
        "its parent is gone, and aidb is declared to run in a container: this one runs in none",
        Some("portreeve reap aidb"),
    )
}

fn worker() -> Verdict {
    let mut worker = told(
        Verdict::sample(
            process(31_337, b"VLLM::EngineCore"),
            Finding::Orphan(Orphan::Worker("vllm".into())),
        ),
        &[],
        &[],
        "a vllm worker whose server is gone",
        Some("portreeve reap"),
    );
    worker.gpus = vec![GpuShare { label: "GPU 0".into(), memory_bytes: Some(40 << 30) }];
    worker
}

fn postgres() -> Verdict {
    let unit = crate::ident::UnitRef {
        manager: crate::ident::Manager::System,
        name: "postgresql@15-main.service".into(),
    };
    told(
        Verdict::sample(
            process(911, b"/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main"),
            Finding::Spare(Spare::ManagedBy(unit)),
        ),
        &["postgres"],
        &["5432"],
        "the main process of postgresql@15-main.service",
        None,
    )
}

fn gpu(index: u32, free_gib: u64, state: GpuState, sentence: &str) -> GpuVerdict {
    let memory = GpuMemory { total_bytes: 80 << 30, free_bytes: free_gib << 30 };
    let holding = |pid| GpuHolding { pid, kind: GpuUse::Compute, memory_bytes: Some(40 << 30) };
    let holders = if let GpuState::Held(holders) = &state { holders.clone() } else { Vec::new() };
    GpuVerdict {
        label: format!("GPU {index}"),
        may_miss: None,
        gpu: Some(Gpu {
            vendor: GpuVendor::Nvidia,
            index,
            uuid: Some(format!("GPU-00000000-0000-0000-0000-00000000000{index}")),
            bus: Some(format!("0000:0{index}:00.0")),
            name: "NVIDIA H200".into(),
            part: None,
            is_split: false,
            is_integrated: false,
            memory: Seen::Known(Some(memory)),
            holdings: holders.into_iter().map(holding).collect(),
            may_miss: None,
            source: GpuSource::Nvml,
        }),
        services: vec!["llama-cpp".into()],
        need: "90%".parse().unwrap(),
        state,
        sentence: sentence.into(),
        next_step: None,
    }
}

pub(super) fn gpus_of_mess() -> Vec<GpuVerdict> {
    let held = "held by pid 31337 (orphan: worker without its server), 40.0 GiB; 38.0 GiB of 80.0 GiB free";
    let taken =
        "30.0 GiB of 80.0 GiB free, 72.0 GiB needed: the rest is taken, and no process has it";
    let mut residual = gpu(2, 30, GpuState::Residual, taken);
    residual.next_step =
        Some("stop what uses it, then 'nvidia-smi --gpu-reset -i 2', or reboot".into());
    let mut unseen = gpu(3, 0, GpuState::Unknown(unknown()), "not known: NVML did not answer");
    unseen.gpu = None;
    vec![
        gpu(0, 38, GpuState::Held(vec![Pid(31_337)]), held),
        gpu(1, 79, GpuState::Free, "nobody computes on it; 79.0 GiB of 80.0 GiB free"),
        residual,
        unseen,
    ]
}

/// A host with one of everything on it.
pub(super) fn mess() -> Findings {
    Findings {
        ports: ports_of_mess(),
        gpus: gpus_of_mess(),
        verdicts: verdicts_of_mess(),
        unknowns: vec![unknown()],
        model_containers: Some(vec![container()]),
    }
}

pub(super) fn container() -> OrphanedContainer {
    OrphanedContainer {
        name: "vllm-model-llama".to_owned(),
        id: ContainerId("ab".repeat(32)),
        engine: EngineRef { kind: EngineKind::Docker, owner: 0 },
        model: Some("llama".into()),
        state: "running".to_owned(),
        why: "its model is recorded as stopped".to_owned(),
        restarts: Some("always".to_owned()),
        next_step: "portreeve model clean llama".to_owned(),
    }
}

fn ports_of_mess() -> Vec<PortVerdict> {
    let peer = "198.51.100.7:443".parse().unwrap();
    let two = "two processes that have nothing to do with each other hold the port";
    vec![
        stated(
            "8091",
            "aidb",
            PortState::Held(vec![Pid(4242)]),
            "held by pid 4242, an orphan",
            None,
        ),
        stated(
            "8791",
            "aidb",
            PortState::Held(vec![Pid(4242)]),
            "held by pid 4242, an orphan",
            None,
        ),
        stated(
            "8092",
            "hybrid-coordinator",
            PortState::BoundOnly(vec![Pid(77)]),
            "bound but not listening: a server that is still loading",
            None,
        ),
        stated("8094", "nixos-docs", PortState::Free, "free", None),
        stated("3001", "open-webui", PortState::Free, "free", None),
        stated("[::1]:8098/udp", "ralph-wiggum", PortState::Free, "free", None),
        stated(
            "6333",
            "qdrant",
            PortState::HolderNotVisible,
            "held by a process that we may not see",
            Some("run as root, or with CAP_SYS_PTRACE"),
        ),
        stated(
            "8080",
            "llama-cpp",
            PortState::Held(vec![Pid(500), Pid(501)]),
            two,
            Some("portreeve explain 8080"),
        ),
        stated("5432", "postgres", PortState::Held(vec![Pid(911)]), "held by pid 911", None),
        stated(
            "6379",
            "redis",
            PortState::Lingering,
            "only closing connections remain; they go within a minute",
            None,
        ),
        stated(
            "47334",
            "mindsdb",
            PortState::Ephemeral { holders: vec![Pid(2000)], peer },
            "taken by an outgoing connection of pid 2000 to 198.51.100.7:443",
            Some("sysctl -w net.ipv4.ip_local_reserved_ports=47334"),
        ),
    ]
}

fn verdicts_of_mess() -> Vec<Verdict> {
    vec![
        aidb(),
        told(
            Verdict::sample(process(77, b""), Finding::Undecided(unknown())),
            &["hybrid-coordinator"],
            &["8092"],
            "its cgroup could not be read: permission denied",
            Some("run as root"),
        ),
        told(
            Verdict::sample(
                process(500, b"llama-server -m model.gguf --port 8080"),
                Finding::Suspect,
            ),
            &["llama-cpp"],
            &["8080"],
            "matches a pattern of llama-cpp, its parent is gone, and nothing says where it ought to run",
            Some("portreeve reap llama-cpp --also abandoned, or declare runs_in"),
        ),
        told(
            Verdict::sample(
                process(501, "nc -l 8080 \u{202e}漢字\u{1b}[2J".as_bytes()),
                Finding::Foreign,
            ),
            &[],
            &["8080"],
            "neither owner nor orphan",
            Some("portreeve reap --also foreign --port 8080"),
        ),
        postgres(),
        told(
            Verdict::sample(
                process(2000, b"curl https://example.org"),
                Finding::Spare(Spare::Session("terminal pts/3".into())),
            ),
            &[],
            &["47334"],
            "it has the terminal pts/3",
            None,
        ),
        worker(),
    ]
}

/// A quiet host: nothing found, every port free.
pub(super) fn quiet() -> Findings {
    let free = |endpoint| stated(endpoint, "aidb", PortState::Free, "free", None);
    findings(["8091", "8791", "3001"].map(free).to_vec(), Vec::new())
}

/// A reap that went as it should.
pub(super) fn reaped() -> Reaped {
    let [terminated, killed, ..] = outcomes();
    Reaped {
        deeds: vec![
            Deed { verdict: aidb(), outcome: terminated },
            Deed { verdict: worker(), outcome: killed },
        ],
        respawns: Vec::new(),
        after: quiet(),
        was_interrupted: false,
    }
}

/// A reap in which all went wrong that can.
pub(super) fn reaped_badly() -> Reaped {
    let deed = |(outcome, pid)| Deed {
        verdict: told(
            verdict(pid, Finding::Orphan(Orphan::Misplaced("aidb".into()))),
            &["aidb"],
            &[],
            "its parent is gone, and aidb is declared to run in a container",
            Some("portreeve reap aidb"),
        ),
        outcome,
    };
    let mut after = quiet();
    after.ports[0].state = PortState::Held(vec![Pid(5006)]);
    let hanging = deed((Outcome::Interrupted, 5006)).verdict;
    after.verdicts = vec![hanging, postgres()];
    Reaped {
        deeds: outcomes().into_iter().zip(5001..).map(deed).collect(),
        respawns: vec![Respawn {
            key: key(5100),
            command_line: "python3 -u /app/server.py --config /etc/aidb.yaml".into(),
            like: "8791/tcp".into(),
            brought_by: "supervisord (pid 612), its parent".into(),
            next_step: "supervisorctl stop aidb".into(),
        }],
        after,
        was_interrupted: true,
    }
}
