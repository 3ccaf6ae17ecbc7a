//! Incomplete sight only makes us gentler: over hosts that nobody would think of.

use std::time::Duration;

use proptest::prelude::*;

use super::super::{
    Ended,
    verdict::{Finding, Row},
};
use super::scene::{BLINDNESSES, DOCKER, ID, NOW, SERVER, Scene, system, terminal, unit};
use crate::{
    config::settings::{ForeignHolder, UnreadModels},
    ident::{ContainerId, EngineRef, Manager, Pid, ProcessKey, UnitRef},
    snapshot::{
        Cgroup, ClaimKind, CommandLine, ContainerClaim, ContainerState, Containers, Enclosure,
        GpuUse, KillMode, Owner, Process, Published, Receipt, Seen, SocketState, Store, Unit,
    },
};

/// A fact that was mostly seen.
fn seen<T: std::fmt::Debug + Clone + 'static>(
    known: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Seen<T>> {
    // Boxed: by value the strategies of a whole host outgrow a test's stack.
    prop_oneof![
        24 => known.prop_map(Seen::Known),
        1 => Just(Seen::Gone),
        1 => Just(Seen::Denied),
        1 => Just(Seen::Unreadable("input/output error".to_owned())),
    ]
    .boxed()
}

fn user_unit(name: &str) -> UnitRef {
    UnitRef { manager: Manager::User(1000), name: name.into() }
}

fn units() -> [UnitRef; 6] {
    [
        system("a.service"),
        system("db.service"),
        system("keep.service"),
        system("session-3.scope"),
        system("user@1000.service"),
        user_unit("b.service"),
    ]
}

fn any_unit() -> impl Strategy<Value = Unit> {
    let states = vec!["active", "inactive", "failed", "activating", "deactivating"];
    let modes = [KillMode::ControlGroup, KillMode::Mixed, KillMode::Process];
    let pid = || prop::option::of((1u32..9).prop_map(Pid));
    (
        prop::bool::weighted(0.9),
        prop::sample::select(states),
        prop::sample::select(&["running", "abandoned", "dead"][..]),
        prop::option::weighted(0.9, prop::sample::select(modes.to_vec())),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.2),
        pid(),
        pid(),
        prop::option::weighted(0.9, 0..NOW / 100),
    )
        .prop_map(
            |(is_loaded, state, sub, kill_mode, sends, delegated, main, control, started)| Unit {
                is_loaded,
                active_state: state.to_owned(),
                sub_state: sub.to_owned(),
                kill_mode,
                sends_sigkill: sends,
                is_delegated: delegated,
                main_pid: main,
                control_pid: control,
                started: started.map(Duration::from_secs),
                ..unit()
            },
        )
}

fn any_cgroup() -> impl Strategy<Value = Cgroup> {
    let of = |unit: Option<UnitRef>, session: Option<&str>| Cgroup {
        path: unit.as_ref().map_or("/".to_owned(), |u| format!("/{u}")),
        claim: None,
        unit,
        session: session.map(str::to_owned),
        session_user: session.map(|_| 1000),
    };
    let places = vec![
        of(None, None),
        of(None, None),
        of(Some(system("a.service")), None),
        of(Some(system("db.service")), None),
        of(Some(system("db.service")), None),
        of(Some(system("db.service")), None),
        of(Some(system("keep.service")), None),
        of(Some(system("session-3.scope")), Some("3")),
        of(Some(user_unit("init.scope")), None),
        of(Some(user_unit("b.service")), None),
    ];
    let ids = prop::sample::select(vec![ID.to_owned(), "f".repeat(64)]);
    let claim = ids.prop_map(|id| ContainerClaim { kind: ClaimKind::Docker, id: ContainerId(id) });
    (prop::sample::select(places), prop::option::weighted(0.15, claim))
        .prop_map(|(cgroup, claim)| Cgroup { claim, ..cgroup })
}

fn any_process(pid: u32) -> BoxedStrategy<Process> {
    let lines = vec![
        SERVER,
        SERVER,
        "VLLM::EngineCore",
        "python3 discovery_daemon.py",
        "web.py",
        "postgres -D /x",
        "postgres -D /x",
        "sh",
        "",
    ];
    let exes = vec![
        "/usr/bin/python3.13",
        "/usr/bin/python3.13",
        "/usr/bin/python3.13",
        "/usr/bin/tmux",
        "/usr/sbin/sshd",
        "/usr/bin/docker-proxy",
        "/usr/bin/conmon",
        "/srv/keep/x",
    ];
    let line = prop::sample::select(lines)
        .prop_map(|l| CommandLine { text: l.as_bytes().to_vec(), is_cut: false });
    let exe = prop::sample::select(exes).prop_map(std::path::PathBuf::from);
    let namespaces =
        prop_oneof![8 => Just(vec![pid]), 1 => Just(vec![pid, 2]), 1 => Just(vec![pid, 3, 1])];
    let invocation = prop::option::of(prop::sample::select(vec!["a".repeat(32), "b".repeat(32)]));
    (
        (
            // PID 1 often, to have orphans at all
            prop_oneof![4 => Just(1u32), 3 => 0u32..9],
            prop_oneof![3 => Just(2u32), 1 => 0u32..9],
            prop::bool::weighted(0.1),
            prop::sample::select(vec![0u64, 1000, 500_000, NOW - 500]),
        ),
        (seen(line), seen(exe), seen(prop_oneof![9 => Just(1000u32), 1 => Just(0u32)])),
        (seen(namespaces), seen(any_cgroup()), prop::option::of(seen(invocation))),
        prop::option::weighted(0.25, any_enclosure()),
    )
        .prop_map(
            move |(
                (parent, session, has_terminal, start),
                (line, exe, uid),
                (pids, cgroup, id),
                enclosure,
            )| {
                let mut process =
                    Scene::new().process(pid, parent, "").snapshot.processes[&Pid(pid)].clone();
                process.enclosure = enclosure;
                process.session = Pid(session);
                process.group = Pid(session);
                process.terminal = terminal().filter(|_| has_terminal);
                process.key.start_ticks = start;
                (process.command_line, process.exe, process.uid) = (line, exe, uid);
                (process.namespace_pids, process.cgroup, process.invocation_id) =
                    (pids, cgroup, id);
                process
            },
        )
        .boxed()
}

fn any_socket() -> impl Strategy<Value = (Vec<u32>, String, SocketState)> {
    let addresses = vec!["0.0.0.0", "127.0.0.1", "[::]", "[::1]", "[::ffff:127.0.0.1]"];
    let ports = vec![8091, 8092, 5432, 3001, 47334, 9000];
    let state = prop_oneof![
        5 => Just(SocketState::Listening),
        1 => Just(SocketState::Bound),
        2 => Just(SocketState::Connected(([10, 0, 0, 1], 443).into())),
        1 => Just(SocketState::Lingering),
    ];
    (
        prop::collection::vec(1u32..9, 0..3),
        prop::sample::select(addresses),
        prop::sample::select(ports),
        state,
    )
        .prop_map(|(holders, address, port, state)| (holders, format!("{address}:{port}"), state))
}

/// An engine's word: two containers at most, of root's Docker or of the user's.
fn any_containers() -> impl Strategy<Value = Containers> {
    let engine = || prop::sample::select(vec![DOCKER, EngineRef { owner: 1000, ..DOCKER }]);
    let id = || prop::sample::select(vec![ID.to_owned(), "f".repeat(64)]).prop_map(ContainerId);
    let state = prop::sample::select(vec![
        ContainerState::Running,
        ContainerState::Running,
        ContainerState::Paused,
        ContainerState::Restarting,
        ContainerState::NotRunning("exited".to_owned()),
    ]);
    let published = prop::option::of(prop::sample::select(vec![8091u16, 8092]));
    let container = (state, prop::option::of(1u32..9), published, any::<bool>()).prop_map(
        |(state, main, published, has_layer)| {
            let scene = Scene::new().docker_says(state, main).edit_container(|c| {
                c.upper_dir = has_layer.then(|| LAYER.into());
                c.published = published
                    .map(|p| Published {
                        address: None,
                        port: super::scene::port(p),
                        proto: crate::ident::Proto::Tcp,
                        container_port: super::scene::port(80),
                    })
                    .into_iter()
                    .collect();
            });
            scene.snapshot.containers.known().next().cloned()
        },
    );
    let said = (engine(), id(), seen(container)).prop_map(|(engine, id, seen)| {
        let seen = seen.parse(|container| container);
        // No two containers of an engine have one root.
        let seen = seen.map(|c| crate::snapshot::Container {
            engine,
            id: id.clone(),
            upper_dir: c.upper_dir.clone().filter(|_| id.0 == ID),
            ..c
        });
        ((engine, id), seen)
    });
    let store = seen(prop::sample::select(vec!["/var/lib/docker", "/srv/other"]));
    let store = store.prop_map(|seen| {
        seen.map(|root| Store {
            root: root.into(),
            driver: "overlay2".to_owned(),
            holds_layers: true,
        })
    });
    (
        prop::collection::vec(said, 0..4),
        prop::collection::vec((engine(), seen(Just(()))), 0..2),
        prop::collection::vec((engine(), store), 0..3),
        prop::collection::vec((1u32..9, seen(1u64..4)), 0..6),
    )
        .prop_map(|(said, listed, stores, namespaces)| Containers {
            said: said.into_iter().collect(),
            // That a list is gone is no answer.
            listed: listed
                .into_iter()
                .map(|(e, s)| (e, if s == Seen::Gone { Seen::Denied } else { s }))
                .collect(),
            stores: stores.into_iter().collect(),
            namespaces: namespaces.into_iter().map(|(pid, s)| (Pid(pid), s)).collect(),
        })
        .boxed()
}

/// What of a receipt is not as it is in a scene.
#[derive(Debug, Clone)]
struct Written {
    is_owner_alive: Seen<bool>,
    writer: u32,
    owner: Option<Owner>,
    is_this_boot: bool,
    pidfd_inode: Option<u64>,
    model: &'static str,
}

impl Written {
    fn apply(self, receipt: &mut Receipt) {
        (receipt.is_owner_alive, receipt.writer) = (self.is_owner_alive, self.writer);
        receipt.owner = self.owner.unwrap_or_else(|| receipt.owner.clone());
        if !self.is_this_boot {
            "another".clone_into(&mut receipt.boot_id);
        }
        receipt.key.pidfd_inode = self.pidfd_inode;
        receipt.model = self.model.into();
    }
}

fn any_receipt() -> impl Strategy<Value = Written> {
    let writer = prop_oneof![4 => Just(0u32), 1 => Just(1000), 1 => Just(1001)];
    let other = [Owner::Unsaid, Owner::Container("vllm-model-llama".to_owned())];
    let owner = prop::option::weighted(0.2, prop::sample::select(other.to_vec()));
    let inode = prop::option::weighted(0.2, 5u64..7);
    let model = prop::sample::select(vec!["llama", "web", "aidb"]);
    (seen(any::<bool>()), writer, owner, prop::bool::weighted(0.9), inode, model)
        .prop_map(|(is_owner_alive, writer, owner, is_this_boot, pidfd_inode, model)| Written {
            is_owner_alive,
            writer,
            owner,
            is_this_boot,
            pidfd_inode,
            model,
        })
        .boxed()
}

const LAYER: &str = "/var/lib/docker/overlay2/7/diff";

fn any_enclosure() -> impl Strategy<Value = Enclosure> {
    let layer = prop_oneof![3 => Just(Some(LAYER.into())), 2 => Just(None)];
    let fellow = (1u32..9).prop_map(|pid| [Pid(pid)].into());
    let fellows = prop_oneof![4 => Just(std::collections::BTreeSet::new()), 1 => fellow];
    let is_there = seen(prop::bool::weighted(0.2));
    let owner = seen(prop_oneof![Just(0u32), Just(1000)]);
    (seen(1u64..4), owner, seen(layer), is_there, seen(fellows))
        .prop_map(|(pid_namespace, owner, layer, is_layer_there, fellows)| Enclosure {
            pid_namespace,
            owner,
            layer,
            is_layer_there,
            fellows,
        })
        .boxed()
}

fn any_gpu() -> impl Strategy<Value = (u64, Vec<(u32, GpuUse)>)> {
    let kinds = [GpuUse::Compute, GpuUse::Compute, GpuUse::Mps, GpuUse::Graphics];
    let user = (1u32..9, prop::sample::select(kinds.to_vec()));
    (prop::sample::select(vec![0, 40, 79]), prop::collection::vec(user, 0..3)).boxed()
}

prop_compose! {
    fn any_host()(
        processes in (2u32..9).prop_map(|n| (1..n).map(any_process).collect::<Vec<_>>()).prop_flat_map(|p| p),
        sockets in prop::collection::vec(any_socket(), 0..5),
        units in units().map(|u| seen(any_unit()).prop_map(move |s| (u.clone(), s))),
        session in seen(prop::sample::select(vec!["active".to_owned(), "online".to_owned(), "closing".to_owned()])),
        lingers in seen(prop::bool::weighted(0.2)),
        range in seen(Just((32_768u16, 60_999u16))),
        boot in seen(prop_oneof![6 => Just("this boot".to_owned()), 1 => Just("another".to_owned())]),
        now in seen(Just(NOW)),
        has_systemd in prop::bool::weighted(0.85),
        receipt in prop::option::weighted(0.3, any_receipt()),
        v6only in any::<[bool; 5]>(),
        is_first_random in prop::bool::weighted(0.2),
        containers in any_containers(),
        gpu in prop::option::weighted(0.3, any_gpu()),
        ancestor in prop::option::weighted(0.2, (1u32..9).prop_map(Pid)),
        unread in prop::option::weighted(0.1, (1u32..9).prop_map(Pid)),
    ) -> Scene {
        let mut scene = Scene::new();
        if let Some((free_gib, users)) = gpu {
            scene = scene.gpu(free_gib, &users);
        }
        for process in processes {
            if process.key.pid == Pid::INIT && !is_first_random {
                continue;
            }
            if process.command_line.known().is_some() {
                scene.snapshot.matching.insert(process.key.pid);
            }
            scene.snapshot.processes.insert(process.key.pid, process);
        }
        if let Some(first) = scene.snapshot.processes.get_mut(&Pid::INIT) {
            first.parent = Pid::OUTSIDE;
        }
        for (holders, local, state) in sockets {
            scene = scene.socket(&holders, &local, state);
        }
        if let Some(edit) = receipt.filter(|_| scene.snapshot.processes.contains_key(&Pid(2))) {
            scene = scene.receipt(2, |receipt| edit.apply(receipt));
        }
        scene
            .edit_sockets(|s| for (socket, only) in s.all.iter_mut().zip(v6only) {
                socket.v6only = socket.address.is_ipv6().then_some(only);
            })
            .see(|s| {
                s.containers = containers;
                s.units.extend(units);
                s.sessions.insert("3".to_owned(), session);
                s.lingering.insert(1000, lingers);
                s.ephemeral_ports = range;
                s.clock.boot_id = boot;
                s.clock.now_ticks = now;
                s.has_systemd = Seen::Known(has_systemd);
                s.ourselves.extend(ancestor);
                s.unread.extend(unread.map(|pid| (pid, "it was not read".to_owned())));
            })
    }
}

prop_compose! {
    fn any_scene()(
        host in any_host().boxed(),
        abandoned in any::<bool>(),
        session in any::<bool>(),
        foreign in any::<bool>(),
        unsupervised in any::<bool>(),
        reaps in any::<bool>(),
        named in prop::option::of(prop::sample::select(vec!["8091", "127.0.0.1:9000", "0.0.0.0:9000", "47334"])),
        service in prop::option::weighted(0.2, prop::sample::select(vec!["aidb", "hybrid", "web"])),
        ended in prop::option::weighted(0.2, 0u32..4),
        began in prop::option::weighted(0.2, Just(NOW - 800)),
    ) -> Scene {
        let host = named.into_iter().fold(host, Scene::named_port);
        host.ask(|t| {
            (t.also.abandoned, t.also.session, t.also.foreign) = (abandoned, session, foreign);
            t.also.unsupervised = unsupervised;
            t.began_ticks = began;
            t.named_services.extend(service.map(Into::into));
            t.ended.extend(ended.map(|session| Ended { session: Pid(session), at_ticks: NOW }));
        })
        .set(|s| {
            if reaps {
                s.services.iter_mut().for_each(|s| s.foreign_holder = ForeignHolder::Reap);
            }
        })
    }
}

/// PROPTEST_CASES sets how long it takes.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases / 8, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn not_seeing_one_fact_more_never_convicts_and_never_frees(
        scene in any_scene().boxed(),
        blindness in prop::sample::select(&BLINDNESSES[..]),
    ) {
        prop_assert_eq!(scene.obeys_the_law_when(blindness), Ok(()));
    }

    #[test]
    fn a_port_that_a_model_takes_over_convicts_nobody_and_a_registry_that_is_not_read_nobody_beyond(
        scene in any_scene().boxed(),
        taken in any::<[bool; 8]>(),
    ) {
        let convicted = |scene: &Scene| -> Vec<(ProcessKey, Row)> {
            scene.judge().convicted().map(|v| (v.key(), v.row)).collect()
        };
        let is_among = |some: &[(ProcessKey, Row)], all: &[(ProcessKey, Row)]| {
            some.iter().all(|(key, _)| all.iter().any(|(other, _)| other == key))
        };
        let without = convicted(&scene);
        let with = convicted(&scene.clone().taken_over_by_a_model(taken));
        prop_assert!(is_among(&with, &without), "{with:?} {without:?}");
        let unread = UnreadModels { why: "it is damaged".to_owned(), remedy: None };
        let unread = scene.set(|s| s.unread_models = Some(unread));
        prop_assert_eq!(&unread.judge().unknowns[0].fact, "which models are registered");
        let unread = convicted(&unread);
        prop_assert!(is_among(&unread, &with), "{unread:?} {with:?}");
    }

    #[test]
    fn a_receipt_that_is_not_read_convicts_nobody_whom_it_spared(scene in any_scene().boxed()) {
        let boot = scene.snapshot.clock.boot_id.clone();
        // What is not known of a receipt makes its process's verdict gentler than none would.
        let is_settled = |process: &Process, receipt: &Receipt| {
            let user = process.uid.known().and(receipt.is_owner_alive.known());
            boot.known().is_some() && process.exe.known().is_some() && user.is_some()
        };
        let settled: Vec<Receipt> = scene.snapshot.receipts.iter().filter(|receipt| {
            scene.snapshot.processes.get(&receipt.key.pid).is_some_and(|p| is_settled(p, receipt))
        }).cloned().collect();
        let with = scene.clone().see(|s| s.receipts = settled).judge();
        let without = scene.see(|s| s.receipts.clear()).judge();
        for verdict in without.convicted() {
            let key = verdict.key();
            prop_assert!(with.convicted().any(|v| v.key() == key), "{}: {}", key.pid, verdict.title());
        }
    }

    #[test]
    fn every_candidate_has_one_verdict_and_only_its_own_kind_is_convicted(scene in any_scene().boxed()) {
        let judgement = scene.judge();
        for verdict in &judgement.verdicts {
            let is_only_one = judgement.verdicts.iter().filter(|v| v.key() == verdict.key()).count();
            prop_assert_eq!(is_only_one, 1);
            let may_be_ended = match verdict.finding {
                Finding::Orphan(_) | Finding::Foreign => true,
                Finding::Suspect => scene.terms.also.abandoned,
                Finding::Unsupervised(_) => scene.terms.also.unsupervised,
                Finding::Spare(_) => scene.terms.also.session && verdict.row.0 == 10,
                Finding::Undecided(_) => false,
            };
            prop_assert!(may_be_ended || !verdict.is_convicted);
        }
    }
}

/// The strategy is worth something only if it reaches the table's rows.
#[test]
fn the_random_hosts_reach_every_row() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut rows = std::collections::BTreeSet::new();
    let mut convicted = 0;
    for _ in 0..8000 {
        let judgement = any_scene().new_tree(&mut runner).unwrap().current().judge();
        convicted += judgement.convicted().count();
        let decided = judgement.verdicts.iter().filter(|v| v.title() != "undecided");
        rows.extend(decided.map(|v| v.row.0));
    }
    assert_eq!(
        rows.into_iter().collect::<Vec<_>>(),
        [1, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19]
    );
    assert!(convicted > 100);
}
