//! Containers of a scene: alive, without a monitor, forgotten by their engine, or left behind when it came back.

use std::fs;

use crate::{
    scene::{Intent, Planted, Scene},
    support::{
        DEADLINE,
        engines::{Container, Engine, Kind, kill, signal},
        wait_until,
    },
};

/// What becomes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    /// Its monitor is killed.
    Abandoned,
}

/// What becomes of the engine and of those of its containers that lose their monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plot {
    Nothing,
    /// Podman still says that they run.
    Unsupervised,
    /// It has lost what it knew, and is there.
    Forgotten,
    /// dockerd and containerd are dead.
    Dead,
    /// They do not answer.
    Frozen,
}

/// One engine of the lane has some containers in this scene.
pub(crate) fn plant(scene: &mut Scene<'_>) {
    let lane = scene.lane;
    let engine = &lane.engines[scene.dice.below(lane.engines.len())];
    let is_docker = matches!(engine.kind, Kind::DockerSystemd | Kind::DockerCgroupfs);
    let plot = if is_docker {
        let plots = [Plot::Nothing, Plot::Nothing, Plot::Forgotten, Plot::Dead, Plot::Frozen];
        scene.dice.pick(&plots)
    } else {
        scene.dice.pick(&[Plot::Nothing, Plot::Unsupervised, Plot::Forgotten])
    };
    let mut abandoned = Vec::new();
    for _ in 0..=scene.dice.below(3) {
        let is_abandoned = plot != Plot::Nothing && !scene.dice.one_in(3);
        let fate = if is_abandoned { Fate::Abandoned } else { Fate::Lives };
        let (container, name) = contain(scene, engine, fate, plot);
        if is_abandoned {
            abandoned.push((container.clone(), name));
        }
        scene.containers.push(container);
    }
    let all: Vec<&Container> = abandoned.iter().map(|(container, _)| container).collect();
    match plot {
        Plot::Nothing => {}
        Plot::Unsupervised => kill_monitors(engine, &all),
        Plot::Forgotten if is_docker => {
            engine.abandon(&all);
            engine.forget();
            engine.start_daemon();
        }
        Plot::Forgotten => {
            kill_monitors(engine, &all);
            engine.forget();
            for (_, name) in &abandoned {
                if scene.dice.one_in(3) {
                    // It may say that something of it is busy, and has forgotten it nevertheless.
                    engine.run(&["rm", "--force", name]);
                }
            }
        }
        Plot::Dead => engine.abandon(&all),
        Plot::Frozen => {
            signal(lane.test_box, "STOP", &engine.daemons());
            kill_monitors(engine, &all);
        }
    }
}

fn contain(
    scene: &mut Scene<'_>,
    engine: &Engine<'_>,
    fate: Fate,
    plot: Plot,
) -> (Container, String) {
    let (server, child) = (scene.any_server(), scene.any_server());
    let (port, childs) = (server.port.to_string(), child.port.to_string());
    let mut plant = vec!["--as", server.line.as_str()];
    if server.has_port {
        plant.extend(["--listen", &port]);
    }
    let has_child = scene.dice.one_in(3);
    if has_child {
        plant.extend(["--child", "--as", &child.line, "--listen", &childs]);
    }
    let mut options = vec!["--network", "host"];
    if scene.dice.one_in(5) {
        options.extend(["--pid", "host"]);
    }
    let container = engine.contain(&server.name, &options, &plant);
    let (kind, intent) = match (fate, plot) {
        (Fate::Lives, _) => ("in a supervised container", Intent::Living),
        (Fate::Abandoned, Plot::Forgotten) => ("left behind by a container", Intent::Orphan),
        (Fate::Abandoned, Plot::Dead | Plot::Frozen) => {
            ("in a container whose engine does not answer", Intent::Ambiguous)
        }
        (Fate::Abandoned, Plot::Nothing | Plot::Unsupervised) => {
            ("in a container without its monitor", Intent::Ambiguous)
        }
    };
    let planted = |name: &str, kind, intent, pid| Planted {
        name: name.to_owned(),
        kind,
        intent,
        pid: Some(pid),
        start: 0,
    };
    scene.planted.push(planted(&server.name, kind, intent, container.pid));
    if has_child {
        let pid = only_child(scene, container.pid);
        // The first of its pid namespace takes it along; with the host's pids nobody knows a stranger's child.
        scene.planted.push(planted(&child.name, kind, intent, pid));
    }
    if fate == Fate::Lives {
        let name = format!("{}-monitor", server.name);
        let kind = "monitor of a container";
        scene.planted.push(planted(&name, kind, Intent::Living, container.monitor));
        if scene.dice.one_in(4) {
            sent_in(scene, engine, &server.name);
        }
    }
    (container, server.name)
}

fn kill_monitors(engine: &Engine<'_>, containers: &[&Container]) {
    for container in containers {
        engine.kill_monitor(container);
    }
}

fn only_child(scene: &Scene<'_>, pid: u32) -> u32 {
    let tasks = scene.lane.test_box.inside(&format!("/proc/{pid}/task"));
    let mut child = None;
    wait_until(DEADLINE, "the child of a container's process", || {
        // Any thread of it may have had it.
        let tasks = fs::read_dir(&tasks).expect("procfs");
        let text = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).ok();
        let all: String = tasks.flatten().filter_map(text).collect();
        child = all.split_whitespace().next().and_then(|pid| pid.parse().ok());
        child.is_some()
    });
    child.expect("just seen")
}

/// A command in a container; Podman's has a monitor of its own, which may be killed.
fn sent_in(scene: &mut Scene<'_>, engine: &Engine<'_>, container: &str) {
    let server = scene.declared_server();
    let (line, port) = (format!("{} --of {}", server.line, server.name), server.port.to_string());
    let words = ["exec", "--detach", container, "/bin/plant", "--as", &line, "--listen", &port];
    engine.must(&words);
    let mark = format!("--of {}", server.name);
    let mut pid = None;
    // Its own line, not that of a command that starts it.
    wait_until(DEADLINE, "the command in the container", || {
        let alike = scene.alike(&mark);
        pid = alike.into_iter().find(|pid| scene.starts_with(*pid, "python3"));
        pid.is_some()
    });
    let pid = pid.expect("just seen");
    let is_podman = !matches!(engine.kind, Kind::DockerSystemd | Kind::DockerCgroupfs);
    let (kind, intent) = ("a command in a supervised container", Intent::Living);
    let name = server.name;
    scene.planted.push(Planted { name, kind, intent, pid: Some(pid), start: 0 });
    if is_podman && scene.dice.one_in(2) {
        let monitor = scene.lane.test_box.stat(pid).expect("it lives").parent;
        kill(scene.lane.test_box, &[u32::try_from(monitor).expect("a pid")]);
    }
}

/// Removes them; what their engine does not know any more was ended with the rest.
pub(crate) fn strike(scene: &Scene<'_>) {
    if scene.containers.is_empty() {
        return;
    }
    for engine in &scene.lane.engines {
        let daemons = engine.daemons();
        if !daemons.is_empty() {
            signal(scene.lane.test_box, "CONT", &daemons);
        }
        engine.start_daemon();
        let all = engine.must(&["ps", "--all", "--quiet"]);
        for id in all.split_whitespace() {
            engine.run(&["rm", "--force", id]);
        }
    }
}
