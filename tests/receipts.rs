//! What portreeve started and is left: known again by its receipt in the registry, and ended once who kept it is gone. In a box with
//! a real systemd; what is true of a process comes from how it was planted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portreeve::{
    act::interrupt::Interrupt,
    config::{self, Sources},
    host::Host,
    ident::{ModelName, Pid, ProcessKey},
    judge::Also,
    models::{
        Registry, State,
        receipt::{self, Main, Receipt, Worker},
    },
    pipeline::{self, Orders, Reaped, Receipts, Scope},
    snapshot::{self, Owner, Seen},
};
use serde_json::Value;
use support::{DEADLINE, Report, TestBox, skip, wait_until};

const PLANT: &str = "/build/examples/plant";
const REGISTRY: &str = "var/lib/portreeve/models.db";
const CONFIG: &str = "defaults: { min_age: 1s, grace: 500ms, respawn_watch: 0s }\n";
const BOB: u32 = 1001;

/// A box in which models' processes are left over.
struct House {
    test_box: TestBox,
    /// Where registries are written: SQLite is not to follow the link that leads into the box.
    folder: tempfile::TempDir,
}

impl House {
    fn boot(name: &str) -> Result<Self, String> {
        let test_box = TestBox::boot(name)?;
        test_box.write("/etc/receipts.yaml", CONFIG);
        Ok(Self { test_box, folder: tempfile::tempdir().unwrap() })
    }

    /// Plants a server that is nobody's child any more, in the control group of a unit that is not the model's: whose it was,
    /// nothing but a receipt tells.
    fn server(&self, name: &str) -> Main {
        self.server_by("", name)
    }

    fn server_by(&self, before: &str, name: &str) -> Main {
        let ready = format!("/run/planted/{name}");
        self.test_box
            .sh(&format!("{before} {PLANT} --daemonise --as '{name} serves' --ready {ready}"));
        self.moved_out(name)
    }

    fn moved_out(&self, name: &str) -> Main {
        let pid = self.test_box.planted(name);
        self.test_box
            .sh(&format!("echo {pid} > /sys/fs/cgroup/system.slice/cron.service/cgroup.procs"));
        let start_ticks = self.test_box.stat(pid).expect("just planted").start;
        let key = ProcessKey { pid: Pid(pid), start_ticks, pidfd_inode: None };
        let exe = self.test_box.sh(&format!("readlink /proc/{pid}/exe"));
        let uid = self.test_box.sh(&format!("stat --format %u /proc/{pid}")).parse().unwrap();
        Main { key, exe: Some(exe.into()), uid: Some(uid) }
    }

    /// Writes a receipt down as a model's start does, and what it came to.
    fn write(&self, name: &str, process: Main, at: State, edit: impl FnOnce(&mut Receipt)) {
        self.write_led_by(&Worker::ourselves(&Host::live()).unwrap(), name, process, at, edit);
    }

    fn write_led_by(
        &self,
        worker: &Worker,
        name: &str,
        process: Main,
        at: State,
        edit: impl FnOnce(&mut Receipt),
    ) {
        let own = self.folder.path().join("root.db");
        write(&own, worker, name, process, at, edit);
        self.put(&own, REGISTRY);
    }

    /// Puts a registry in its place; where that is.
    fn put(&self, own: &Path, place: &str) -> PathBuf {
        let place = self.test_box.inside(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(own, &place).unwrap();
        place
    }

    fn report(&self, verb: &str) -> Report {
        self.test_box.portreeve(&[verb, "--config", "/etc/receipts.yaml"])
    }

    fn explain(&self, pid: u32) -> String {
        self.test_box.sh(&format!(
            "/build/portreeve explain pid:{pid} --config /etc/receipts.yaml || [ $? = 2 ]"
        ))
    }

    fn lives(&self, process: &Main) -> bool {
        let now = self.test_box.stat(process.key.pid.0);
        now.is_some_and(|now| now.start == process.key.start_ticks)
    }

    /// A unit of a model, which has what it needs besides.
    fn unit(&self, name: &str, text: &str) {
        self.test_box.unit(&unit_of(name), &format!("[Service]\n{text}\n"));
    }
}

fn unit_of(name: &str) -> String {
    format!("portreeve-model-{name}.service")
}

fn write(
    path: &Path,
    worker: &Worker,
    name: &str,
    process: Main,
    at: State,
    edit: impl FnOnce(&mut Receipt),
) {
    let mut registry = Registry::open(path).unwrap();
    let model = ModelName::from(name);
    let mut receipt = Receipt {
        boot_id: receipt::boot_id(&Host::live()).unwrap(),
        container: None,
        process: Some(process),
        unit: Some(unit_of(name)),
        instance_id: registry.instance_id().unwrap(),
    };
    edit(&mut receipt);
    registry.begin(&model, State::begin_start, "", worker).unwrap();
    registry.put_receipt(&model, worker, &receipt).unwrap();
    if at != State::Starting {
        registry.settle(&model, worker, State::come_up, "").unwrap();
    }
}

fn verdict<'a>(report: &'a Report, process: &Main) -> Option<(u64, &'a str)> {
    let all = report.json["processes"].as_array().expect("processes").iter();
    let pid = u64::from(process.key.pid.0);
    let mut said = all.filter(|one| one["pid"].as_u64() == Some(pid));
    let said = said.next()?;
    Some((said["row"].as_u64().unwrap(), said["title"].as_str().unwrap()))
}

const OURS: Option<(u64, &str)> = Some((8, "orphan: ours"));

const IN_CRON: Option<(u64, &str)> = Some((15, "spare: in cron.service"));

/// What was said, and who was there after the reap.
struct Played {
    house: House,
    processes: BTreeMap<&'static str, Main>,
    scan: Report,
    explained: BTreeMap<&'static str, String>,
    reap: Report,
    survivors: Vec<&'static str>,
}

static PLAYED: LazyLock<Result<Played, String>> = LazyLock::new(play);

fn played() -> Option<&'static Played> {
    PLAYED.as_ref().map_err(|reason| skip(reason)).ok()
}

fn play() -> Result<Played, String> {
    let house = House::boot("receipts")?;
    let mut processes = BTreeMap::new();
    let up = State::Running;

    // A real run of a unit: its server was moved into another control group, and so systemd did not end it with the rest.
    let server = format!("{PLANT} --as 'moved serves' --ready /run/planted/moved");
    house.test_box.write("/app/moved.sh", &format!("{server} &\nwait\n"));
    house.unit("moved", "KillMode=mixed\nExecStart=/bin/sh /app/moved.sh");
    house.test_box.sh("systemctl start portreeve-model-moved");
    let moved = house.moved_out("moved");
    let before = house.test_box.stat(moved.key.pid.0).unwrap().parent;
    house.write("moved", moved.clone(), up, |_| ());
    house.test_box.sh("systemctl stop portreeve-model-moved");
    wait_until(DEADLINE, "its wrapper is gone", || {
        house.test_box.stat(moved.key.pid.0).expect("it was moved out").parent != before
    });
    processes.insert("moved", moved);

    // The same of units that systemd does not know.
    for name in ["gone", "of-another-boot", "another-start", "another-program", "another-user"] {
        let process = house.server(name);
        let mut written = process.clone();
        match name {
            "another-start" => written.key.start_ticks += 1,
            "another-program" => written.exe = Some("/usr/bin/other".into()),
            "another-user" => written.uid = Some(BOB),
            _ => {}
        }
        house.write(name, written, up, |receipt| {
            if name == "of-another-boot" {
                "another".clone_into(&mut receipt.boot_id);
            }
        });
        processes.insert(name, process);
    }

    // A unit that runs, one that is between two runs, and one of which a start is under way.
    house.unit("kept", "ExecStart=/bin/sleep infinity");
    house.unit("restarting", "ExecStart=/bin/false\nRestart=always\nRestartSec=1h");
    house.test_box.sh("systemctl start portreeve-model-kept portreeve-model-restarting");
    wait_until(DEADLINE, "systemd waits to restart it", || {
        let show = "systemctl show --property=SubState --value portreeve-model-restarting";
        house.test_box.sh(show) == "auto-restart"
    });
    for name in ["kept", "restarting"] {
        let process = house.server(name);
        house.write(name, process.clone(), up, |_| ());
        processes.insert(name, process);
    }
    // Led by a command in the box, which lives; and by one that is dead.
    for name in ["led", "cut-off"] {
        let process = house.server(name);
        let command = house.server(&format!("command-of-{name}"));
        let ProcessKey { pid, start_ticks, pidfd_inode } = command.key;
        let boot_id = receipt::boot_id(&Host::live()).unwrap();
        let worker = receipt::Command { boot_id, pid: pid.0, start_ticks, pidfd_inode };
        let worker = Worker::Process(worker);
        house.write_led_by(&worker, name, process.clone(), State::Starting, |_| ());
        if name == "cut-off" {
            house.test_box.sh(&format!("kill -KILL {pid}"));
            wait_until(DEADLINE, "it is gone", || !house.lives(&command));
        }
        processes.insert(name, process);
    }
    for process in processes.values() {
        house.test_box.wait_for_age(process.key.pid.0, Duration::from_millis(1100));
    }
    let scan = house.report("scan");
    let explained = ["moved", "another-program", "kept"]
        .map(|name| (name, house.explain(processes[name].key.pid.0)))
        .into();
    let reap = house.report("reap");
    let survivors =
        processes.iter().filter(|(_, one)| house.lives(one)).map(|(name, _)| *name).collect();
    Ok(Played { house, processes, scan, explained, reap, survivors })
}

/// Asserts what was said of a process, and whether it is there after the reap.
fn was(name: &str, said: Option<(u64, &str)>, survives: bool) {
    let Some(played) = played() else { return };
    let process = &played.processes[name];
    assert_eq!(verdict(&played.scan, process), said, "{name}: {:#}", played.scan.json);
    assert_eq!(played.survivors.contains(&name), survives, "{name}: {:#}", played.reap.json);
}

#[test]
fn a_models_server_that_was_moved_out_of_its_unit_is_ended_once_that_is_gone() {
    was("moved", OURS, false);
}

#[test]
fn one_whose_unit_systemd_does_not_know_is_ended() {
    was("gone", OURS, false);
}

#[test]
fn a_receipt_of_another_boot_start_program_or_user_names_nobody() {
    for name in ["of-another-boot", "another-start", "another-program", "another-user"] {
        was(name, None, true);
    }
}

#[test]
fn one_whose_unit_runs_is_spared_and_one_whose_unit_waits_for_a_restart_is_not() {
    was("kept", IN_CRON, true);
    was("restarting", OURS, false);
}

#[test]
fn a_start_under_way_spares_it_and_one_that_was_cut_off_does_not() {
    was("led", IN_CRON, true);
    was("cut-off", OURS, false);
}

#[test]
fn explain_shows_the_receipt_with_what_became_of_who_kept_it() {
    let Some(played) = played() else { return };
    let says = |name: &str, parts: &[&str]| {
        let text = &played.explained[name];
        let flowed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(flowed.contains(part), "'{part}' of '{name}':\n{text}");
        }
    };
    says(
        "moved",
        &[
            "orphan: ours",
            "portreeve started it for model moved, and portreeve-model-moved.service is inactive (dead)",
            "portreeve has a receipt for it, of model moved",
            "portreeve-model-moved.service lived",
        ],
    );
    says(
        "another-program",
        &["one of model another-program has this process id and another executable: dropped"],
    );
    says(
        "kept",
        &[
            "started for model kept; portreeve-model-kept.service lives",
            "who kept it by that receipt is gone",
        ],
    );
}

#[test]
fn the_report_says_by_which_row_and_why() {
    let Some(played) = played() else { return };
    let pid = played.processes["moved"].key.pid.0;
    let said = played.scan.process(pid);
    assert_eq!(said["verdict"], "orphan", "{said:#}");
    assert!(said["reason"].as_str().unwrap().contains("model moved"), "{said:#}");
    assert_eq!(played.scan.code, 1);
    // What is spared leaves nothing to do, and what a receipt does not fit is not spoken of.
    assert_eq!(played.reap.code, 0, "{:#}", played.reap.json);
    assert!(played.house.test_box.sh("cat /proc/1/comm").contains("systemd"));
}

// ---- who cannot be asked, and who may not be believed

#[test]
fn a_manager_that_does_not_answer_leaves_it_undecided() {
    let house = match House::boot("receipts-mute") {
        Ok(house) => house,
        Err(reason) => return skip(&reason),
    };
    let process = house.server("mute");
    house.write("mute", process.clone(), State::Running, |_| ());
    house.test_box.wait_for_age(process.key.pid.0, Duration::from_millis(1100));
    let mute = "for socket in /run/systemd/private /run/dbus/system_bus_socket; do \
         mount --bind /dev/null $socket; done; exec /build/portreeve reap --format json \
         --config /etc/receipts.yaml";
    let output = house.test_box.run(&["unshare", "--mount", "sh", "-euc", mute]);
    let reap = Report::read(&output);
    assert_eq!(verdict(&reap, &process), Some((8, "undecided")), "{:#}", reap.json);
    let reason = reap.process(process.key.pid.0)["reason"].to_string();
    assert!(reason.contains("whether portreeve-model-mute.service lives"), "{reason}");
    assert!(house.lives(&process));
    assert_eq!(reap.code, 2);

    // A registry to which others may write is no word of ours.
    let file = house.test_box.inside(REGISTRY);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let reap = house.report("reap");
    assert_eq!(verdict(&reap, &process), None, "{:#}", reap.json);
    let unknowns = reap.json["unknowns"].to_string();
    assert!(unknowns.contains("others may write to it"), "{unknowns}");
    assert!(house.lives(&process));
    // Trusted again, and with somebody to ask, it convicts.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(verdict(&house.report("scan"), &process), OURS);
}

#[test]
fn a_users_registry_speaks_of_their_own_processes_alone() {
    let house = match House::boot("receipts-user") {
        Ok(house) => house,
        Err(reason) => return skip(&reason),
    };
    let own = house.server_by("runuser -u bob --", "own");
    let roots = house.server("roots");
    let (file, us) =
        (house.folder.path().join("bobs.db"), Worker::ourselves(&Host::live()).unwrap());
    write(&file, &us, "own", own.clone(), State::Running, |_| ());
    write(&file, &us, "roots", roots.clone(), State::Running, |_| ());
    let mut owned = house.put(&file, "home/bob/.local/state/portreeve/models.db");
    while owned.file_name().is_some_and(|name| name != "bob") {
        chown(&owned, Some(BOB), Some(BOB)).unwrap();
        owned.pop();
    }
    for process in [&own, &roots] {
        house.test_box.wait_for_age(process.key.pid.0, Duration::from_millis(1100));
    }
    // bob, with the rights to see and to end everybody's processes: what he writes down gives him none.
    let rights = "+kill,+sys_ptrace,+dac_read_search";
    let by_bob = format!(
        "exec setpriv --reuid bob --regid bob --init-groups --inh-caps {rights} --ambient-caps {rights} \
         env HOME=/home/bob /build/portreeve reap --format json --config /etc/receipts.yaml"
    );
    let reap = Report::read(&house.test_box.run(&["sh", "-euc", &by_bob]));
    let deeds: &Value = &reap.json;
    assert!(!house.lives(&own), "{deeds:#}");
    assert!(house.lives(&roots), "{deeds:#}");
    assert_eq!(verdict(&reap, &roots), IN_CRON, "{deeds:#}");
    // root asks no user's registry.
    assert_eq!(verdict(&house.report("scan"), &roots), None);
}

// ---- the second look

struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reaps a process of ours whose receipt says at each look whether its owner lives.
fn reaped(
    sleeper: &Sleeper,
    is_owner_alive: impl Fn(usize) -> Seen<bool> + Send + Sync + 'static,
) -> Reaped {
    let host = Host::live();
    let mut settings =
        config::load(&Sources { etc: "/nowhere".into(), ..Sources::default() }).unwrap().settings;
    settings.services.clear();
    settings.workers.clear();
    settings.defaults.min_age = Duration::ZERO;
    settings.defaults.respawn_watch = Duration::ZERO;
    let main = Main::of(&host, Pid(sleeper.0.id())).unwrap();
    let boot_id = receipt::boot_id(&host).unwrap();
    let looks = AtomicUsize::new(0);
    let receipts = Receipts::told_by(move || {
        let look = looks.fetch_add(1, Ordering::Relaxed);
        vec![snapshot::Receipt {
            boot_id: boot_id.clone(),
            key: main.key,
            exe: main.exe.clone(),
            uid: main.uid,
            model: "llama".into(),
            writer: main.uid.unwrap(),
            owner: Owner::Unsaid,
            is_owner_alive: is_owner_alive(look),
        }]
    });
    let scope = Scope { receipts, ..Scope::default() };
    let mut interrupt = Interrupt::install().unwrap();
    let (also, orders) =
        (Also::default(), Orders { began_ticks: Some(u64::MAX), ..Orders::default() });
    pipeline::reap(&host, &settings, &scope, also, &orders, &mut interrupt, &mut |_| ()).unwrap()
}

#[test]
fn an_owner_who_is_back_at_the_second_look_saves_it() {
    let sleeper = || Sleeper(Command::new("sleep").arg("600").spawn().unwrap());
    let mut saved = sleeper();
    let back = |look| if look == 0 { Seen::Known(false) } else { Seen::Known(true) };
    assert!(reaped(&saved, back).deeds.is_empty());
    let unread = |look| if look == 0 { Seen::Known(false) } else { Seen::Denied };
    assert!(reaped(&saved, unread).deeds.is_empty());
    assert!(saved.0.try_wait().unwrap().is_none(), "it lives");
    let mut ended = sleeper();
    let done = reaped(&ended, |_| Seen::Known(false));
    assert_eq!(done.deeds.len(), 1, "{:?}", done.after.unknowns);
    assert!(ended.0.wait().unwrap().code().is_none(), "a signal ended it");
}
