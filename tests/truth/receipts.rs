//! Receipts in root's registry of models, about processes that nothing else names.

use std::fs;

use portreeve::{
    host::Host,
    ident::{ModelName, Pid, ProcessKey},
    models::{
        Registry, State,
        receipt::{self, Main, Receipt, Worker},
    },
};

use crate::scene::{Intent, PLANT, Scene};

/// A receipt that is to be written, and what of it is not true.
pub(crate) struct Note {
    name: String,
    flaw: Flaw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    Boot,
    Start,
    Program,
    User,
}

/// A model's server that was moved out of its unit: into cron's, so that nothing but a receipt tells whose it was.
pub(crate) fn plant(scene: &mut Scene<'_>) {
    let name = scene.name();
    let unit = format!("portreeve-model-{name}.service");
    let flaws =
        [Flaw::None, Flaw::None, Flaw::None, Flaw::Boot, Flaw::Start, Flaw::Program, Flaw::User];
    let flaw = scene.dice.pick(&flaws);
    let owner = scene.dice.pick(&["is not there", "lives", "waits for a restart", "is stopped"]);
    let text = match owner {
        "is not there" => None,
        "waits for a restart" => Some("ExecStart=/bin/false\nRestart=always\nRestartSec=1h"),
        _ => Some("ExecStart=/bin/sleep infinity"),
    };
    if let Some(text) = text {
        let file = format!("/run/systemd/system/{unit}");
        scene.lane.test_box.write(&file, &format!("[Service]\n{text}\n"));
        scene.at_first(format!("systemctl start {unit}\n"));
    }
    match owner {
        "waits for a restart" => {
            scene.at_first(format!("until_so is_state auto-restart {unit}\n"));
        }
        "is stopped" => scene.at_first(format!("systemctl stop {unit}\n")),
        _ => {}
    }
    let (kind, intent) = match (flaw, owner) {
        (Flaw::None, "lives") => ("by a receipt, its owner alive", Intent::Living),
        (Flaw::None, _) => ("by a receipt, its owner gone", Intent::Orphan),
        (Flaw::Boot | Flaw::Start | Flaw::Program | Flaw::User, _) => {
            ("by a receipt of another process", Intent::Ambiguous)
        }
    };
    scene.truth(&name, kind, intent);
    scene.at_first(format!(
        "{PLANT} --daemonise --as '{name} serves' --ready /run/planted/{name}\n\
         into {name} system.slice/cron.service\n"
    ));
    scene.notes.push(Note { name, flaw });
}

/// Writes them all into a registry outside of the box and puts it into its place: SQLite is not to follow the link that leads in.
pub(crate) fn write_all(scene: &Scene<'_>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("models.db");
    let host = Host::live();
    let worker = Worker::ourselves(&host).expect("procfs");
    let mut registry = Registry::open(&path).expect("a registry");
    for Note { name, flaw } in &scene.notes {
        let pid = scene.pid(name);
        let start = scene.lane.test_box.stat(pid).expect("it lives").start;
        let key = ProcessKey {
            pid: Pid(pid),
            start_ticks: if *flaw == Flaw::Start { start + 1 } else { start },
            pidfd_inode: None,
        };
        let exe = if *flaw == Flaw::Program { "/usr/bin/other" } else { PLANT };
        let uid = if *flaw == Flaw::User { 1001 } else { 0 };
        let boot_id = receipt::boot_id(&host).expect("procfs");
        let receipt = Receipt {
            boot_id: if *flaw == Flaw::Boot { "another".to_owned() } else { boot_id },
            container: None,
            process: Some(Main { key, exe: Some(exe.into()), uid: Some(uid) }),
            unit: Some(format!("portreeve-model-{name}.service")),
            instance_id: registry.instance_id().expect("an id"),
        };
        let model = ModelName::from(name.as_str());
        registry.begin(&model, State::begin_start, "", &worker).expect("begun");
        registry.put_receipt(&model, &worker, &receipt).expect("written");
        registry.settle(&model, &worker, State::come_up, "").expect("settled");
    }
    drop(registry);
    let place = scene.lane.test_box.inside("/var/lib/portreeve/models.db");
    fs::create_dir_all(place.parent().expect("a folder")).expect("its folder");
    fs::copy(&path, &place).expect("a copy");
}
