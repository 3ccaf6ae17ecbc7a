//! Rows 4 to 7: what nothing supervises is alive, left behind, or not known, by the word of the engine that owns it.

use super::scene::{Blindness, DOCKER, Fact, SERVER, Scene, port};
use crate::{
    ident::{EngineKind, EngineRef, Pid, Proto},
    judge::verdict::Finding,
    snapshot::{ClaimKind, ContainerState, Published, Seen, SocketState},
};

const RUNNING: ContainerState = ContainerState::Running;
const NAMESPACE: u64 = 4_026_532_001;
const ANOTHER: u64 = 4_026_532_002;

fn stopped(word: &str) -> ContainerState {
    ContainerState::NotRunning(word.to_owned())
}

/// A container's process whose shim is gone.
fn alone() -> Scene {
    Scene::new().process(7, 1, SERVER).contained(7, &[7, 1]).enclosed(7, NAMESPACE).listens(7, 8091)
}

fn unanswered() -> Seen<crate::snapshot::Container> {
    Seen::Unreadable("no answer within 3000 ms".to_owned())
}

const UNSUPERVISED: &str = "unsupervised: container aidb";
const LEFT: &str = "orphan: left behind by container aidb";

#[track_caller]
fn says(scene: &Scene, row: u8, title: &str) {
    let (found, words) = scene.says(7);
    assert_eq!((found, words.as_str()), (row, title), "{}", scene.verdict(7).reason);
}

// ---- row 4

#[test]
fn what_runs_by_its_engines_word_and_is_of_that_run_is_unsupervised_and_ended_only_when_asked() {
    for state in [RUNNING, ContainerState::Paused, ContainerState::Restarting] {
        let scene = alone().docker_says(state, Some(7)).main_process(7, Seen::Known(NAMESPACE));
        says(&scene, 4, UNSUPERVISED);
        assert!(!scene.convicts(7));
        let scene = scene.ask(|t| (t.also.abandoned, t.also.session) = (true, true));
        assert!(!scene.convicts(7));
        assert!(scene.ask(|t| t.also.unsupervised = true).convicts(7));
    }
}

#[test]
fn a_worker_of_an_unsupervised_container_shares_its_verdict() {
    let scene = alone()
        .process(8, 7, "VLLM::EngineCore")
        .contained(8, &[8, 2])
        .enclosed(8, NAMESPACE)
        .docker_says(RUNNING, Some(7))
        .main_process(7, Seen::Known(NAMESPACE));
    assert_eq!(scene.says(8), (4, UNSUPERVISED.to_owned()));
}

/// `podman exec`, whose own conmon has died: 7 is in the pid namespace of 20, the container's first process.
fn sent_in() -> Scene {
    alone()
        .edit(7, |p| p.namespace_pids = Seen::Known(vec![7, 9]))
        .process(20, 50, SERVER)
        .contained(20, &[20, 1])
        .enclosed(20, NAMESPACE)
        .process(50, 1, "conmon")
}

#[test]
fn what_was_sent_into_a_container_is_as_alive_as_the_containers_first_process() {
    for (state, main) in [(RUNNING, Some(20)), (stopped("created"), None)] {
        let scene = sent_in().docker_says(state, main).main_process(20, Seen::Known(NAMESPACE));
        says(&scene, 3, "spare: live container");
        let is_unsupervised = scene.clone().edit(20, |p| p.parent = Pid::INIT);
        let expected = if main.is_some() { (4, UNSUPERVISED) } else { (5, LEFT) };
        says(&is_unsupervised, expected.0, expected.1);
        // another container's first process, or none that we saw
        let of_another = is_unsupervised.clone().enclosed(20, ANOTHER);
        assert_eq!(of_another.says(7).1, "undecided");
        assert_eq!(
            is_unsupervised.without(&Fact::Process(20), Blindness::Gone).says(7).1,
            "undecided"
        );
    }
}

/// The same with the host's pids: 7 shares the mounts of 20.
#[test]
fn with_the_hosts_pids_a_container_lives_as_long_as_somebody_looks_after_one_of_its_processes() {
    let host_pids = |pid: u32| {
        move |s: Scene| {
            s.edit(pid, |p| {
                p.namespace_pids = Seen::Known(vec![pid]);
                if let Some(enclosure) = &mut p.enclosure {
                    enclosure.fellows = Seen::Known([Pid(if pid == 7 { 20 } else { 7 })].into());
                }
            })
        }
    };
    let scene = host_pids(20)(host_pids(7)(sent_in()));
    let scene = scene.docker_says(stopped("created"), None);
    says(&scene, 3, "spare: live container");
    let unnamed = scene.clone().cgroup(7, |c| c.claim = None).cgroup(20, |c| c.claim = None);
    says(&unnamed, 3, "spare: live container");
    let alone = scene.clone().edit(20, |p| p.parent = Pid::INIT);
    says(&alone, 5, LEFT);
    for fact in [Fact::Process(20), Fact::Fellows(7)] {
        let blinded = alone.clone().without(&fact, Blindness::Denied);
        assert_eq!(blinded.says(7).1, "undecided", "{fact:?}");
    }
}

// ---- row 5

#[test]
fn what_its_engine_says_does_not_run_was_left_behind() {
    for word in ["exited", "dead", "created", "stopping", "removing"] {
        let scene = alone().docker_says(stopped(word), None);
        says(&scene, 5, LEFT);
        assert!(scene.convicts(7));
        assert!(scene.verdict(7).reason.contains(word));
    }
}

#[test]
fn the_founding_crash_loop_leaves_the_container_and_convicts_the_survivor() {
    // between two runs, and during one that will fail on the port
    let between = alone().docker_says(ContainerState::Restarting, None);
    says(&between, 5, LEFT);
    let during = alone()
        .process(99, 50, SERVER)
        .contained(99, &[99, 1])
        .process(50, 1, "containerd-shim")
        .docker_says(RUNNING, Some(99))
        .main_process(99, Seen::Known(ANOTHER));
    says(&during, 5, LEFT);
    let just_died = alone().docker_says(RUNNING, Some(99)).main_process(99, Seen::Gone);
    says(&just_died, 5, LEFT);
    let victim = between.clone().edit_container(|c| c.restarts = 7).verdict(7).reason;
    assert!(
        victim.starts_with(
            "aidb restarted 7 times because pid 7, left by its earlier run, holds 8091: docker says"
        ),
        "{victim}"
    );
    assert!(between.convicts(7) && during.convicts(7) && just_died.convicts(7));
}

#[test]
fn a_removed_container_is_known_by_the_store_that_its_files_lie_in() {
    let gone = alone().docker_answers(Seen::Gone);
    says(&gone, 6, "undecided");
    let ours = gone.clone().docker_keeps_in("/var/lib/docker");
    assert_eq!(ours.says(7).0, 5);
    assert!(ours.convicts(7));
    // another daemon's store, whose root begins with the same letters
    says(&gone.clone().docker_keeps_in("/var/lib/dock"), 6, "undecided");
    says(&gone.docker_keeps_in("/srv/docker"), 6, "undecided");
}

#[test]
fn a_store_that_leaves_its_layers_to_containerd_proves_nothing() {
    let scene = alone().docker_answers(Seen::Gone).docker_keeps_in("/var/lib/docker").see(|s| {
        if let Some(Seen::Known(store)) = s.containers.stores.get_mut(&DOCKER) {
            store.holds_layers = false;
        }
    });
    says(&scene, 6, "undecided");
}

/// Rootless Podman where no user manager runs: no container in the control group's path.
fn nameless(user: u32) -> Scene {
    let podman = EngineRef { kind: EngineKind::Podman, owner: user };
    let mut scene = alone().cgroup(7, |c| c.claim = None).edit(7, |p| {
        if let Some(enclosure) = &mut p.enclosure {
            enclosure.owner = Seen::Known(1000);
        }
    });
    scene.snapshot.containers.listed.insert(podman, Seen::Known(()));
    let store = crate::snapshot::Store {
        root: "/var/lib/docker".into(),
        driver: "overlay2".to_owned(),
        holds_layers: true,
    };
    scene.snapshot.containers.stores.insert(podman, Seen::Known(store));
    scene
}

#[test]
fn a_container_without_a_name_is_known_by_its_root_or_its_pid_namespace() {
    says(&nameless(1000), 5, "orphan: left behind by container that was removed");
    let is_there = nameless(1000).edit(7, |p| {
        p.enclosure.as_mut().unwrap().is_layer_there = Seen::Known(true);
    });
    says(&is_there, 6, "undecided");
    let known = |state, main: Option<u32>, layer: Option<&str>| {
        let podman = EngineRef { kind: EngineKind::Podman, owner: 1000 };
        let scene = nameless(1000).docker_says(state, main).edit_container(|c| {
            c.upper_dir = layer.map(Into::into);
            c.engine = podman;
        });
        scene.see(|s| {
            let said = std::mem::take(&mut s.containers.said);
            s.containers.said =
                said.into_iter().map(|((_, id), seen)| ((podman, id), seen)).collect();
        })
    };
    let layer = Some("/var/lib/docker/overlay2/7/diff");
    let by_root = known(stopped("exited"), None, layer);
    says(&by_root, 5, LEFT);
    let by_namespace = known(RUNNING, Some(7), None).main_process(7, Seen::Known(NAMESPACE));
    says(&by_namespace, 4, UNSUPERVISED);
    let unread = known(RUNNING, Some(9), None).main_process(9, Seen::Denied);
    says(&unread, 6, "undecided");
}

#[test]
fn another_users_engine_says_nothing_about_a_container() {
    says(&nameless(1001), 6, "undecided");
    let bob = EngineRef { kind: EngineKind::Docker, owner: 1001 };
    let lie = alone().docker_says(stopped("exited"), None).see(|s| {
        let said = std::mem::take(&mut s.containers.said);
        s.containers.said = said.into_iter().map(|((_, id), seen)| ((bob, id), seen)).collect();
    });
    says(&lie, 6, "undecided");
}

#[test]
fn a_container_of_the_hosts_pids_without_a_claim_is_known_by_its_root_alone() {
    let scene = nameless(1000).edit(7, |p| p.namespace_pids = Seen::Known(vec![7]));
    says(&scene, 6, "undecided");
    let known = |pid_mode: &str| {
        let podman = EngineRef { kind: EngineKind::Podman, owner: 1000 };
        let scene = scene.clone().docker_says(stopped("exited"), None).edit_container(|c| {
            c.upper_dir = Some("/var/lib/docker/overlay2/7/diff".into());
            c.pid_mode = pid_mode.to_owned();
            c.engine = podman;
        });
        scene.see(|s| {
            let said = std::mem::take(&mut s.containers.said);
            s.containers.said =
                said.into_iter().map(|((_, id), seen)| ((podman, id), seen)).collect();
        })
    };
    says(&known("host"), 5, LEFT);
    // nsenter: its files, and not its pids
    says(&known(""), 6, "undecided");
    // conmon lives: whoever is not in that root supervises it
    let supervised = scene.process(50, 1, "conmon").edit(7, |p| p.parent = Pid(50));
    assert_eq!(supervised.says(7), (3, "spare: live container".to_owned()));
}

#[test]
fn a_container_that_is_too_young_is_not_judged() {
    let scene = alone().docker_says(stopped("exited"), None);
    let young = scene.edit(7, |p| p.key.start_ticks = super::scene::NOW - 100);
    assert_eq!(young.says(7).1, "undecided");
}

#[test]
fn what_an_engine_calls_stopped_and_still_has_its_main_process_is_of_the_present_run() {
    for word in ["stopping", "removing"] {
        let scene =
            alone().docker_says(stopped(word), Some(7)).main_process(7, Seen::Known(NAMESPACE));
        says(&scene, 4, UNSUPERVISED);
        assert!(!scene.convicts(7));
        says(&scene.main_process(7, Seen::Gone), 5, LEFT);
    }
}

#[test]
fn a_pid_namespace_within_the_containers_own_is_of_no_earlier_run() {
    let scene = alone()
        .edit(7, |p| p.namespace_pids = Seen::Known(vec![7, 5, 1]))
        .process(20, 1, SERVER)
        .contained(20, &[20, 1])
        .docker_says(RUNNING, Some(20))
        .main_process(20, Seen::Known(ANOTHER));
    assert_eq!(scene.says(7).1, "undecided");
    let beside = scene.edit(7, |p| p.namespace_pids = Seen::Known(vec![7, 1]));
    says(&beside, 5, LEFT);
}

#[test]
fn the_main_process_of_a_unit_is_that_units_whatever_its_root() {
    let sidecar = Scene::mess()
        .enclosed(7, NAMESPACE)
        .inside(7, &super::scene::system("sidecar.service"))
        .unit(&super::scene::system("sidecar.service"), |u| u.main_pid = Some(Pid(7)))
        .docker_says(RUNNING, Some(20));
    says(&sidecar, 12, "spare: managed by sidecar.service");
}

// ---- row 6

#[test]
fn no_answer_another_store_and_foreign_runtimes_leave_it_undecided() {
    says(&alone().docker_answers(unanswered()), 6, "undecided");
    says(&alone().docker_answers(Seen::Denied), 6, "undecided");
    for kind in [ClaimKind::Cri, ClaimKind::Lxc, ClaimKind::Nspawn] {
        let scene = alone()
            .docker_says(stopped("exited"), None)
            .cgroup(7, |c| c.claim.as_mut().unwrap().kind = kind);
        says(&scene, 6, "undecided");
    }
    // running without a process, or with one whose namespace could not be read: it contradicts itself, or we know too little
    says(&alone().docker_says(RUNNING, None), 6, "undecided");
    says(&alone().docker_says(RUNNING, Some(9)).main_process(9, Seen::Denied), 6, "undecided");
    says(&alone().docker_says(RUNNING, Some(9)), 6, "undecided");
}

#[test]
fn the_rows_of_a_container_name_the_fact_that_they_lack() {
    let running = alone().docker_says(RUNNING, Some(7)).main_process(7, Seen::Known(NAMESPACE));
    for (fact, name) in [
        (Fact::Said(0), "whether container 0123456789ab still runs"),
        (Fact::NamespaceOwner(7), "whether container aidb (docker) still runs"),
        (Fact::PidNamespace(7), "whether container aidb (docker) still runs"),
        (Fact::MainNamespace(7), "whether container aidb (docker) still runs"),
    ] {
        let verdict = running.clone().without(&fact, Blindness::Denied).verdict(7);
        let Finding::Undecided(unknown) = verdict.finding else {
            panic!("{fact:?}: {}", verdict.title());
        };
        assert_eq!(unknown.fact, name, "{fact:?}");
    }
}

// ---- row 7

/// docker-proxy on 8091 for the container of pid 20, below its shim.
fn forwarder() -> Scene {
    Scene::new()
        .process(7, 1, "/usr/bin/docker-proxy -proto tcp")
        .exe(7, "/usr/bin/docker-proxy")
        .edit(7, |p| p.uid = Seen::Known(0))
        .listens(7, 8091)
        .process(50, 1, "containerd-shim")
        .process(20, 50, "nginx")
        .contained(20, &[20, 1])
        .docker_says(RUNNING, Some(20))
        .main_process(20, Seen::Known(NAMESPACE))
        .edit_container(|c| c.published = vec![published(None)])
        .see(|s| drop(s.containers.listed.insert(DOCKER, Seen::Known(()))))
}

fn published(address: Option<&str>) -> Published {
    Published {
        address: address.map(|a| a.parse().unwrap()),
        port: port(8091),
        proto: Proto::Tcp,
        container_port: port(80),
    }
}

#[test]
fn a_forwarder_is_judged_by_the_container_behind_it() {
    says(&forwarder(), 7, "spare: forwards to container aidb");
    let restarting = forwarder().docker_says(ContainerState::Restarting, None);
    let restarting = restarting.edit_container(|c| c.published = vec![published(None)]);
    says(&restarting, 7, "spare: forwards to container aidb");
    let unsupervised = forwarder().edit(20, |p| p.parent = Pid::INIT);
    says(&unsupervised, 7, UNSUPERVISED);
    assert!(!unsupervised.convicts(7));
    assert!(unsupervised.ask(|t| t.also.unsupervised = true).convicts(7));
}

#[test]
fn a_forwarder_is_never_ended_while_its_container_is_known_or_may_be() {
    let stopped = forwarder().edit_container(|c| c.state = stopped("exited"));
    says(&stopped, 7, "undecided");
    let nobody = forwarder().edit_container(|c| c.published.clear());
    says(&nobody, 7, "undecided");
    let silent = forwarder().edit_container(|c| c.published.clear()).see(|s| {
        s.containers.listed.insert(DOCKER, Seen::Unreadable("refused".to_owned()));
    });
    says(&silent, 7, "undecided");
    assert!(silent.verdict(7).reason.contains("docker gave no answer: refused"));
    for scene in [stopped, nobody, silent] {
        let all = scene.ask(|t| {
            let also = &mut t.also;
            (also.abandoned, also.foreign, also.session, also.unsupervised) =
                (true, true, true, true);
        });
        assert!(!all.convicts(7));
    }
}

#[test]
fn a_published_port_is_matched_by_its_address_too() {
    for (address, is_it) in
        [(Some("0.0.0.0"), true), (Some("127.0.0.1"), false), (Some("::"), true)]
    {
        let scene = forwarder().edit_container(|c| c.published = vec![published(address)]);
        let title = scene.says(7).1;
        assert_eq!(title == "spare: forwards to container aidb", is_it, "{address:?}: {title}");
    }
    let local = forwarder()
        .edit_sockets(|s| s.all[0].address = [127, 0, 0, 1].into())
        .edit_container(|c| c.published = vec![published(Some("127.0.0.1"))]);
    says(&local, 7, "spare: forwards to container aidb");
}

#[test]
fn a_forwarders_connection_is_not_its_published_port() {
    let scene = forwarder().edit_sockets(|s| s.all[0].state = SocketState::Bound);
    says(&scene, 7, "spare: forwards to container aidb");
}

#[test]
fn whose_forwarder_it_is_must_be_known() {
    let unsupervised = forwarder().edit(20, |p| p.parent = Pid::INIT);
    for scene in [forwarder(), unsupervised] {
        scene.needs(7, &[(Fact::Uid(7), "the user of pid 7")]);
    }
}
