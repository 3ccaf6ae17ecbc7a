//! The ladder before engines that do not do as they are told, and a process that is really there.

use std::{
    collections::BTreeSet,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use super::*;
use crate::{
    engine::fake::{Act, Fake, container_json, id},
    ident::{EngineKind, EngineRef, Pid},
    observe::{self, Question as Look, Reach},
};

const DOCKER: EngineRef = EngineRef { kind: EngineKind::Docker, owner: 0 };
const LIMITS: Ladder = Ladder {
    stop_timeout: Duration::from_millis(400),
    kill_timeout: Duration::from_millis(400),
    remove_timeout: Duration::from_millis(400),
};
const GRACE: Duration = Duration::from_secs(1);

/// A container's main process.
struct Main(Child);

impl Main {
    /// Leaves at SIGTERM, as long as nobody tells it otherwise.
    fn plant() -> Self {
        let mut sleep = Command::new("sleep");
        Self(sleep.arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }

    /// Leaves at SIGKILL alone.
    fn stubborn() -> Self {
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", "trap '' TERM; echo; exec sleep 1000"]);
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        // The command line is compared right before the end: it must be sleep's by then.
        while !std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().starts_with(b"sleep")
        {
            std::thread::yield_now();
        }
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Docker with this container, which does to orders what `order` says, and what it was told to do.
fn docker(
    pid: u32,
    order: impl Fn(&str) -> Act + Send + Sync + 'static,
) -> (Fake, Arc<Mutex<Vec<String>>>) {
    let state = json!({ "Status": "running", "Running": true, "Pid": pid, "Health": { "Status": "unhealthy" } });
    docker_saying(state, order)
}

fn docker_saying(
    state: Value,
    order: impl Fn(&str) -> Act + Send + Sync + 'static,
) -> (Fake, Arc<Mutex<Vec<String>>>) {
    let orders: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&orders);
    let fake = Fake::docker(move |path| {
        if path.starts_with("GET") {
            return Act::Answer(200, container_json(1, &state));
        }
        let order_of = path.replace(&format!("/v1.41/containers/{}", id(1)), "");
        told.lock().unwrap().push(order_of.clone());
        order(&order_of)
    });
    (fake, orders)
}

fn done() -> Act {
    Act::Answer(204, Value::Null)
}

fn failed(status: u16, message: &str) -> Act {
    Act::Answer(status, json!({ "message": message }))
}

fn reference() -> ContainerRef {
    ContainerRef { engine: DOCKER, id: id(1), name: "aidb".to_owned() }
}

/// The machine as it is, with this process as the container's.
fn look(pid: u32) -> Snapshot {
    let question = Look {
        endpoints: Vec::new(),
        nominate: None,
        declared_units: BTreeSet::new(),
        reach: Reach::Narrow,
        pids: [Pid(pid)].into(),
        receipts: Vec::new(),
        gpus: None,
        engines: observe::Engines::none(),
        beyond: crate::observe::Ask::No,
    };
    let mut snapshot = observe::observe(&Host::live(), &question);
    let container = Container {
        engine: DOCKER,
        id: id(1),
        name: "aidb".to_owned(),
        state: ContainerState::Running,
        main_pid: Some(Pid(pid)),
        restarts: 0,
        restart_policy: None,
        health: None,
        pid_mode: String::new(),
        network_mode: String::new(),
        published: Vec::new(),
        upper_dir: None,
        labels: BTreeMap::new(),
    };
    snapshot.containers.said.insert((DOCKER, id(1)), Seen::Known(container));
    snapshot
}

/// Climbs the ladder for the container of `main`.
fn climb_for(fake: &Fake, main: &Main, is_ours: bool) -> Stopped {
    let snapshot = look(main.pid());
    let target = Target::new(&snapshot, &[fake.only()], &reference(), GRACE).unwrap();
    climb(&Target { is_ours, ..target }, LIMITS, Duration::from_secs(5))
}

#[test]
fn a_container_that_leaves_in_time_is_stopped_gracefully_and_its_health_was_noted() {
    let main = Main::plant();
    let pid = main.pid();
    let (fake, orders) = docker(pid, move |_| {
        send(pid, Signal::TERM);
        done()
    });
    let stopped = climb_for(&fake, &main, false);
    assert_eq!(stopped.end, End::Graceful, "{stopped}");
    assert_eq!(stopped.health.as_deref(), Some("unhealthy"));
    assert!(stopped.to_string().ends_with("its health was 'unhealthy' before"), "{stopped}");
    assert_eq!(*orders.lock().unwrap(), ["POST /stop?t=1"]);
}

#[test]
fn a_container_that_its_engine_had_to_kill_was_forced() {
    let main = Main::plant();
    let pid = main.pid();
    let (fake, _) = docker(pid, move |_| {
        thread::sleep(GRACE);
        send(pid, Signal::KILL);
        done()
    });
    assert_eq!(climb_for(&fake, &main, false).end, End::Forced);
}

#[test]
fn a_stop_that_hangs_is_left_at_its_deadline_and_the_kill_follows() {
    let main = Main::plant();
    let pid = main.pid();
    let (fake, orders) = docker(pid, move |order| {
        if order.starts_with("POST /stop") {
            return Act::Hang;
        }
        send(pid, Signal::KILL);
        done()
    });
    let stopped = climb_for(&fake, &main, false);
    assert_eq!(stopped.end, End::Forced, "{stopped}");
    assert!(stopped.took < Duration::from_secs(5), "{:?}", stopped.took);
    assert!(stopped.to_string().contains("no answer"), "{stopped}");
    assert_eq!(*orders.lock().unwrap(), ["POST /stop?t=1", "POST /kill?signal=KILL"]);
}

#[test]
fn an_engine_that_refuses_everything_leaves_it_running_and_says_so() {
    let mut main = Main::stubborn();
    let (fake, _) = docker(main.pid(), |_| failed(500, "container state improper"));
    let stopped = climb_for(&fake, &main, false);
    assert_eq!(stopped.end, End::StillRuns);
    assert!(stopped.to_string().contains("container state improper"), "{stopped}");
    assert!(stopped.took > GRACE, "{:?}", stopped.took);
    assert!(main.lives());
}

#[test]
fn a_container_whose_stop_was_refused_is_asked_politely_before_it_is_killed() {
    let main = Main::plant();
    let (fake, orders) = docker(main.pid(), |_| failed(500, "container state improper"));
    let stopped = climb_for(&fake, &main, false);
    assert_eq!(stopped.end, End::Graceful, "{stopped}");
    assert_eq!(*orders.lock().unwrap(), ["POST /stop?t=1"]);
}

#[test]
fn what_an_engine_cannot_end_is_ended_by_signals_where_it_was_convicted() {
    let main = Main::stubborn();
    let (fake, _) = docker(main.pid(), |_| failed(500, "no"));
    let snapshot = look(main.pid());
    let process = snapshot.processes[&Pid(main.pid())].clone();
    let verdict = Verdict::sample(process, Finding::Unsupervised(reference()));
    let mut interrupt = Interrupt::install().unwrap();
    let engines = Engines {
        which: Which { docker: true, docker_socket: None, podman: false },
        timeout: Duration::from_secs(5),
        ladder: LIMITS,
    };
    let engines_host = fake.host();
    let places = engine::places(&engines_host, &engines.which, &[0].into());
    assert_eq!(places.len(), 1);
    // The engine of the fake, the processes of the machine.
    let target = Target::new(&snapshot, &places, &reference(), GRACE).unwrap();
    let stopped = climb(&target, LIMITS, engines.timeout);
    let members = vec![(verdict.clone(), open(verdict.key()))];
    let deeds = outcomes(&Host::live(), &snapshot, &stopped, members, &mut interrupt, &mut |_| {});
    assert!(deeds[0].outcome.is_gone(), "{:?}", deeds[0].outcome);
    assert!(deeds[0].verdict.evidence.iter().any(|e| e.contains("its engine did not end it")));

    // A forwarder is not: its container would lose its port and keep its life.
    let mut other = Main::plant();
    let snapshot = look(other.pid());
    let process = snapshot.processes[&Pid(other.pid())].clone();
    let mut forwarder = Verdict::sample(process, Finding::Unsupervised(reference()));
    forwarder.row = FORWARDER;
    let members = vec![(forwarder.clone(), open(forwarder.key()))];
    let deeds = outcomes(&Host::live(), &snapshot, &stopped, members, &mut interrupt, &mut |_| {});
    assert!(matches!(deeds[0].outcome, Outcome::NotStopped(_)), "{:?}", deeds[0].outcome);
    assert!(other.lives());
}

#[test]
fn another_run_than_the_one_that_was_judged_is_left_alone() {
    let (mut judged, present) = (Main::plant(), Main::plant());
    let (fake, orders) = docker(present.pid(), |_| done());
    let stopped = climb_for(&fake, &judged, false);
    assert!(matches!(&stopped.end, End::LeftAlone(why) if why.contains("another run")));
    assert!(orders.lock().unwrap().is_empty());
    assert!(judged.lives());
}

/// The engine still names the pid, and somebody else has it by now.
#[test]
fn a_newcomer_with_the_pid_of_its_main_process_is_left_alone() {
    let mut newcomer = Main::plant();
    let pid = Pid(newcomer.pid());
    let mut snapshot = look(pid.0);
    let process = snapshot.processes.get_mut(&pid).unwrap();
    process.key.start_ticks -= 1;
    process.key.pidfd_inode = process.key.pidfd_inode.map(|inode| inode + 1);
    let (fake, orders) = docker(pid.0, |_| done());
    let target = Target::new(&snapshot, &[fake.only()], &reference(), GRACE).unwrap();
    let stopped = climb(&target, LIMITS, Duration::from_secs(5));
    assert_eq!(stopped.end, End::AlreadyStopped, "its run is over");
    assert!(orders.lock().unwrap().is_empty() && newcomer.lives());
}

#[test]
fn what_its_engine_calls_stopping_and_still_lives_is_stopped() {
    let main = Main::plant();
    let pid = main.pid();
    let state = json!({ "Status": "stopping", "Running": false, "Pid": pid });
    let fake = Fake::podman(move |path| {
        if path.starts_with("GET") {
            return Act::Answer(200, container_json(1, &state));
        }
        send(pid, Signal::TERM);
        done()
    });
    let snapshot = look(pid);
    let target = Target::new(&snapshot, &[fake.only()], &reference(), GRACE).unwrap();
    assert_eq!(climb(&target, LIMITS, Duration::from_secs(5)).end, End::Graceful);
}

#[test]
fn a_process_whose_end_cannot_be_watched_is_not_called_ended() {
    let main = Main::plant();
    let snapshot = look(main.pid());
    let process = snapshot.processes[&Pid(main.pid())].clone();
    let verdict = Verdict::sample(process, Finding::Unsupervised(reference()));
    let stopped =
        Stopped { end: End::Graceful, health: None, rungs: vec![], is_removed: false, took: GRACE };
    let members = vec![(verdict, Seen::Unreadable("too many open files".to_owned()))];
    let mut interrupt = Interrupt::install().unwrap();
    let deeds = outcomes(&Host::live(), &snapshot, &stopped, members, &mut interrupt, &mut |_| {});
    assert!(!deeds[0].outcome.is_gone(), "{:?}", deeds[0].outcome);
}

#[test]
fn an_engine_that_does_not_answer_is_given_no_order_and_costs_its_deadline_only() {
    let mut main = Main::plant();
    let fake = Fake::at("run/docker.sock", |_| Act::Hang);
    let snapshot = look(main.pid());
    let target = Target::new(&snapshot, &[fake.only()], &reference(), GRACE).unwrap();
    let stopped = climb(&target, LIMITS, Duration::from_millis(300));
    assert!(matches!(stopped.end, End::LeftAlone(_)), "{stopped:?}");
    assert!(stopped.took < Duration::from_secs(3), "{:?}", stopped.took);
    assert!(main.lives());
}

#[test]
fn a_container_that_is_gone_already_is_no_failure() {
    let main = Main::plant();
    let fake = Fake::docker(|_| failed(404, &format!("No such container: {}", id(1))));
    assert_eq!(climb_for(&fake, &main, false).end, End::AlreadyStopped);
}

#[test]
fn only_what_we_made_is_removed_and_a_removal_under_way_or_done_is_success() {
    let answers: [fn(usize) -> Act; 3] = [
        |_| done(),
        |n| {
            if n == 0 {
                failed(409, "removal of container aidb is already in progress")
            } else {
                done()
            }
        },
        |n| {
            if n == 0 { failed(500, "device busy") } else { failed(404, "No such container: aidb") }
        },
    ];
    for answer in answers {
        let main = Main::plant();
        let pid = main.pid();
        let count = Mutex::new(0);
        let (fake, orders) = docker(pid, move |order| {
            if order.starts_with("POST /stop") {
                send(pid, Signal::TERM);
                return done();
            }
            let mut count = count.lock().unwrap();
            *count += 1;
            if order.starts_with("POST /wait") {
                return Act::Answer(200, json!({ "StatusCode": 0 }));
            }
            answer(*count - 1)
        });
        let stopped = climb_for(&fake, &main, true);
        assert_eq!(stopped.end, End::Graceful, "{stopped}");
        let orders = orders.lock().unwrap();
        assert!(orders.iter().any(|o| o == "DELETE ?force=true"), "{orders:?}");
        let last = stopped.rungs.last().unwrap();
        assert!(last.contains("done") || last.contains("gone"), "{stopped}");
    }
}

#[test]
fn what_we_made_and_runs_again_and_again_is_removed_and_what_is_not_ours_left_alone() {
    let between = json!({ "Status": "restarting", "Running": true, "Paused": false, "Restarting": true, "Pid": 0 });
    let main = Main::plant();
    let again = json!({ "Status": "running", "Running": true, "Pid": main.pid() });
    for state in [between, again] {
        any_run_is_ended_where_it_is_ours(state);
    }
}

fn any_run_is_ended_where_it_is_ours(state: Value) {
    let (fake, orders) = docker_saying(state, |_| done());
    let target = |is_ours| Target {
        container: reference(),
        engine: fake.engine(EngineKind::Docker, 0),
        main: None,
        grace: GRACE,
        is_ours,
    };
    let stopped = climb(&target(false), LIMITS, Duration::from_secs(5));
    assert!(matches!(stopped.end, End::LeftAlone(_)), "{stopped:?}");
    assert_eq!(*orders.lock().unwrap(), [""; 0]);
    let stopped = climb(&target(true), LIMITS, Duration::from_secs(5));
    assert_eq!((&stopped.end, stopped.is_removed), (&End::AlreadyStopped, true), "{stopped:?}");
}

#[test]
fn containers_are_stopped_side_by_side() {
    let mains = [Main::plant(), Main::plant(), Main::plant()];
    let fakes: Vec<Fake> = mains.iter().map(|m| docker(m.pid(), |_| Act::Hang).0).collect();
    let targets: Vec<Target> = mains
        .iter()
        .zip(&fakes)
        .map(|(main, fake)| {
            let snapshot = look(main.pid());
            Target::new(&snapshot, &[fake.only()], &reference(), GRACE).unwrap()
        })
        .collect();
    let mut interrupt = Interrupt::install().unwrap();
    let began = Instant::now();
    let all = stop(&targets, LIMITS, Duration::from_secs(5), None, &mut interrupt, &mut |_| {});
    assert!(all.iter().all(|s| s.end == End::StillRuns), "{all:?}");
    // One hangs for 1.4 s + 0.4 s and two exit waits; three in a row would take ten seconds.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
