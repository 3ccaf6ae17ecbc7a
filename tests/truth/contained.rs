//! Containers of a scene: alive, without a monitor, forgotten by their engine, or left behind when it came back.

use crate::{
    scene::{Intent, Planted, Scene},
    support::engines::{Container, Engine, Kind},
};

/// What becomes of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    /// Its monitor is killed.
    Abandoned,
}

/// One engine of the lane has some containers in this scene.
pub(crate) fn plant(scene: &mut Scene<'_>) {
    let engines = &scene.lane.engines;
    if engines.is_empty() {
        return;
    }
    let engine = &engines[scene.dice.below(engines.len())];
    let is_docker = matches!(engine.kind, Kind::DockerSystemd | Kind::DockerCgroupfs);
    // Docker's monitors live as long as their containers, unless all of Docker is killed and what it knew is lost.
    let is_upset = scene.dice.one_in(if is_docker { 4 } else { 2 });
    let is_forgotten = is_upset && (is_docker || scene.dice.one_in(2));
    let count = 1 + scene.dice.below(3);
    let mut abandoned = Vec::new();
    for _ in 0..count {
        let is_abandoned = is_upset && !scene.dice.one_in(3);
        let fate = if is_abandoned { Fate::Abandoned } else { Fate::Lives };
        let (container, at) = contain(scene, engine, fate, is_forgotten);
        if fate == Fate::Abandoned {
            abandoned.push((container.clone(), at));
        }
        scene.containers.push(container);
    }
    if abandoned.is_empty() {
        return;
    }
    if is_docker {
        let all: Vec<&Container> = abandoned.iter().map(|(container, _)| container).collect();
        engine.abandon(&all);
        engine.forget();
        engine.start_daemon();
        return;
    }
    for (container, _) in &abandoned {
        engine.kill_monitor(container);
    }
    if is_forgotten {
        engine.forget();
        for (_, name) in &abandoned {
            if scene.dice.one_in(3) {
                // It may say that something of it is busy, and has forgotten it nevertheless.
                engine.run(&["rm", "--force", name]);
            }
        }
    }
}

fn contain(
    scene: &mut Scene<'_>,
    engine: &Engine<'_>,
    fate: Fate,
    is_forgotten: bool,
) -> (Container, String) {
    let server = scene.any_server();
    let mut plant = vec!["--as", server.line.as_str()];
    let port = server.port.to_string();
    if server.has_port {
        plant.extend(["--listen", &port]);
    }
    let container = engine.contain(&server.name, &["--network", "host"], &plant);
    let (kind, intent) = match (fate, is_forgotten) {
        (Fate::Lives, _) => ("in a supervised container", Intent::Living),
        (Fate::Abandoned, false) => ("in a container without its monitor", Intent::Ambiguous),
        (Fate::Abandoned, true) => ("left behind by a container", Intent::Orphan),
    };
    scene.planted.push(Planted {
        name: server.name.clone(),
        kind,
        intent,
        pid: Some(container.pid),
        start: 0,
    });
    if fate == Fate::Lives {
        let name = format!("{}-monitor", server.name);
        let (kind, intent) = ("monitor of a container", Intent::Living);
        scene.planted.push(Planted { name, kind, intent, pid: Some(container.monitor), start: 0 });
    }
    (container, server.name)
}

/// Removes them; what their engine does not know any more was ended with the rest.
pub(crate) fn strike(scene: &Scene<'_>) {
    if scene.containers.is_empty() {
        return;
    }
    for engine in &scene.lane.engines {
        let all = engine.must(&["ps", "--all", "--quiet"]);
        for id in all.split_whitespace() {
            engine.run(&["rm", "--force", id]);
        }
    }
}
