//! The registry on real files: what is written stays written, whoever writes beside us, dies, or has no room.

use std::{os::unix::fs::symlink, thread};

use super::*;
use crate::models::receipt::{Command, Run};
use crate::{backend::BackendName, ident::Pid};

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portreeve/models.db");
    (folder, path)
}

fn name(text: &str) -> ModelName {
    ModelName(text.to_owned())
}

fn us() -> Worker {
    Worker::ourselves(&Host::live()).unwrap()
}

/// A command like us, but for this.
fn like_us(edit: impl FnOnce(&mut Command)) -> Worker {
    let Worker::Process(mut command) = us() else { panic!("we are a command") };
    edit(&mut command);
    Worker::Process(command)
}

fn llama() -> Spec {
    Spec::sample(BackendName::LlamaCpp)
}

#[test]
fn the_newest_version_is_that_of_the_last_migration() {
    assert_eq!(usize::try_from(NEWEST).unwrap(), MIGRATIONS.len());
}

fn kinds(registry: &Registry, of: &ModelName) -> Vec<String> {
    registry.events(Some(of), 100).unwrap().into_iter().map(|event| event.kind).collect()
}

#[test]
fn a_model_is_read_back_by_another_process_with_what_happened_to_it() {
    let (_folder, path) = place();
    let llama_name = name("llama");
    let mut registry = Registry::open(&path).unwrap();
    registry.register(&llama_name, &llama()).unwrap();
    registry.begin(&llama_name, State::begin_start, "asked for", &us()).unwrap();
    registry.settle(&llama_name, &us(), |state| Ok(state.fail()), "it ran out of memory").unwrap();
    let again = Registry::open(&path).unwrap();
    let record = again.get(&llama_name).unwrap();
    assert_eq!(record.spec, Some(llama()));
    assert_eq!((record.state, record.why.as_str()), (State::Failed, "it ran out of memory"));
    assert_eq!(kinds(&again, &llama_name), ["registered", "starting", "failed"]);
    assert_eq!(again.all().unwrap(), [record]);
    assert_eq!(again.instance_id().unwrap(), registry.instance_id().unwrap());
    assert_eq!(again.instance_id().unwrap().len(), 32);
    assert_eq!(again.damage().unwrap(), None);
}

#[test]
fn a_step_that_the_state_forbids_changes_nothing_and_tells_nothing() {
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    registry.register(&name("a"), &llama()).unwrap();
    let error = registry.settle(&name("a"), &us(), State::come_up, "out of nothing").unwrap_err();
    assert!(matches!(error, RegistryError::TakenOver(_, State::Stopped)), "{error}");
    let error = registry.begin(&name("a"), State::begin_stop, "", &us()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model 'a': it is stopped, and from there it cannot become stopping"
    );
    assert_eq!(kinds(&registry, &name("a")), ["registered"]);
    registry.begin(&name("a"), State::begin_start, "", &us()).unwrap();
    let error = registry.unregister(&name("a")).unwrap_err().to_string();
    assert_eq!(error, "model 'a': it is starting, and from there it cannot become stopped");
}

#[test]
fn who_only_looks_writes_and_makes_nothing() {
    let (_folder, path) = place();
    assert!(Registry::look(&path).unwrap().is_none());
    assert!(!path.parent().unwrap().exists());
    Registry::open(&path).unwrap().register(&name("a"), &llama()).unwrap();
    let folder = path.parent().unwrap();
    let files = || {
        let mut all: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        all.sort();
        all
    };
    let before = (files(), fs::read(&path).unwrap());
    assert_eq!(before.0, ["models.db"], "whoever wrote last put all into one file");
    let looking = Registry::look(&path).unwrap().unwrap();
    assert_eq!(looking.all().unwrap().len(), 1);
    assert_eq!((files(), fs::read(&path).unwrap()), before);
    drop(looking);
    // Beside somebody who has it open, what is only in the log is seen too.
    let mut open = Registry::open(&path).unwrap();
    open.register(&name("b"), &Spec { port: crate::ident::Port::new(9), ..llama() }).unwrap();
    assert_eq!(Registry::look(&path).unwrap().unwrap().all().unwrap().len(), 2);
    let mut looking = Registry::look(&path).unwrap().unwrap();
    assert!(looking.record(&name("a"), "x", "").is_err(), "it cannot write");
}

#[test]
fn a_receipt_is_read_back_and_goes_with_what_it_was_for() {
    use crate::{
        backend::spec::Engine,
        ident::{ContainerId, ProcessKey},
        models::receipt::{Contained, Main, Receipt},
    };
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    registry.register(&name("a"), &llama()).unwrap();
    registry.begin(&name("a"), State::begin_start, "", &us()).unwrap();
    assert_eq!(registry.get(&name("a")).unwrap().worker, Some(us()));
    let key = ProcessKey { pid: Pid(7), start_ticks: u64::MAX, pidfd_inode: Some(u64::MAX - 1) };
    let container = Contained {
        engine: Engine::Podman,
        id: ContainerId("ab".repeat(32)),
        name: "llamacpp-model-a".to_owned(),
    };
    let receipt = Receipt {
        boot_id: "a boot".to_owned(),
        container: Some(container),
        process: Some(Main { key, exe: Some("/bin/server".into()), uid: Some(0) }),
        unit: Some("a.service".to_owned()),
        instance_id: registry.instance_id().unwrap(),
    };
    let other = like_us(|one| one.start_ticks = 1);
    let error = registry.put_receipt(&name("a"), &other, &receipt).unwrap_err();
    assert!(matches!(error, RegistryError::TakenOver(_, State::Starting)), "{error}");
    registry.put_receipt(&name("a"), &us(), &receipt).unwrap();
    registry.settle(&name("a"), &us(), State::come_up, "").unwrap();
    assert_eq!(registry.get(&name("a")).unwrap().worker, None);
    assert_eq!(registry.receipts().unwrap(), [(name("a"), receipt)]);
    registry.begin(&name("a"), State::begin_stop, "", &us()).unwrap();
    let error = registry.settle(&name("a"), &other, |state| Ok(state.fail()), "").unwrap_err();
    assert!(matches!(error, RegistryError::TakenOver(_, State::Stopping)), "{error}");
    registry.settle(&name("a"), &us(), |state| Ok(state.come_down()), "").unwrap();
    assert_eq!(registry.receipt(&name("a")).unwrap(), None);
}

#[test]
fn of_what_failed_the_receipt_is_kept_until_it_is_seen_that_nothing_is_left() {
    use crate::models::receipt::Receipt;
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    registry.register(&name("a"), &llama()).unwrap();
    registry.begin(&name("a"), State::begin_start, "", &us()).unwrap();
    let receipt = Receipt {
        boot_id: "a boot".to_owned(),
        container: None,
        process: None,
        unit: None,
        instance_id: String::new(),
    };
    registry.put_receipt(&name("a"), &us(), &receipt).unwrap();
    registry.settle(&name("a"), &us(), |state| Ok(state.fail()), "").unwrap();
    assert_eq!(registry.receipt(&name("a")).unwrap(), Some(receipt));
    assert!(registry.drop_receipt(&name("a"), &us()).is_err(), "nobody leads it any more");
    registry.begin(&name("a"), State::begin_stop, "", &us()).unwrap();
    registry.drop_receipt(&name("a"), &us()).unwrap();
    assert_eq!(registry.receipt(&name("a")).unwrap(), None);
}

#[test]
fn what_has_changed_since_it_was_looked_at_is_left_as_it_is() {
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    registry.register(&name("a"), &llama()).unwrap();
    registry.begin(&name("a"), State::begin_start, "", &us()).unwrap();
    let seen = registry.get(&name("a")).unwrap();
    Registry::open(&path).unwrap().settle(&name("a"), &us(), State::come_up, "").unwrap();
    assert!(!registry.settle_if(&seen, State::Failed, "its start was cut off").unwrap());
    assert_eq!(registry.get(&name("a")).unwrap().state, State::Running);
    let seen = registry.get(&name("a")).unwrap();
    assert!(registry.settle_if(&seen, State::Failed, "it is gone").unwrap());
    assert_eq!(registry.get(&name("a")).unwrap().why, "it is gone");
}

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date() {
    let (_folder, path) = place();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let old = Connection::open(&path).unwrap();
    old.execute_batch(MIGRATIONS[0]).unwrap();
    old.execute_batch("INSERT INTO models (name, since_ms) VALUES ('a', 1)").unwrap();
    old.pragma_update(None, "application_id", APPLICATION).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    drop(old);
    let registry = Registry::open(&path).unwrap();
    assert_eq!(registry.get(&name("a")).unwrap().worker, None);
    assert_eq!(registry.version().unwrap(), (APPLICATION, NEWEST));
}

#[test]
fn who_leads_a_model_is_known_to_live_and_to_be_gone() {
    let host = Host::live();
    assert!(us().is_alive(&host));
    let another = like_us(|one| one.boot_id = "another".to_owned());
    assert!(!another.is_alive(&host));
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let key = crate::models::receipt::key_of(Pid(child.id())).unwrap();
    let worker = like_us(|one| {
        (one.pid, one.start_ticks, one.pidfd_inode) = (key.pid.0, key.start_ticks, key.pidfd_inode);
    });
    assert!(worker.is_alive(&host));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!worker.is_alive(&host));
}

#[test]
fn a_command_and_a_run_of_a_unit_are_told_apart_as_they_are_written() {
    let run = Worker::Run(Run {
        boot_id: "a boot".to_owned(),
        unit: "portreeve-model-a.service".to_owned(),
        invocation_id: "0f85db646b664430a95e708d0d42eaa3".to_owned(),
    });
    for worker in [us(), run] {
        let text = serde_json::to_string(&worker).unwrap();
        assert_eq!(serde_json::from_str::<Worker>(&text).unwrap(), worker);
    }
    // As it was written before there were units.
    let old = r#"{"boot_id":"b","pid":7,"start_ticks":9,"pidfd_inode":null}"#;
    assert!(matches!(serde_json::from_str(old).unwrap(), Worker::Process(Command { pid: 7, .. })));
}

#[test]
fn a_name_is_given_once_and_an_unknown_one_is_answered_with_those_that_are_known() {
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    let error = registry.get(&name("a")).unwrap_err().to_string();
    assert!(error.starts_with("no model 'a'\nhint: none is registered yet"), "{error}");
    registry.register(&name("a"), &llama()).unwrap();
    let error = registry.register(&name("a"), &llama()).unwrap_err().to_string();
    assert!(error.starts_with("there is a model 'a' already"), "{error}");
    assert_eq!(
        registry.get(&name("b")).unwrap_err().to_string(),
        "no model 'b'\nhint: there are a"
    );
    registry.unregister(&name("a")).unwrap();
    assert!(registry.all().unwrap().is_empty());
    // Its history stays.
    assert_eq!(kinds(&registry, &name("a")), ["registered", "unregistered"]);
}

#[test]
fn a_port_that_another_model_wants_is_refused_and_a_gpu_is_told() {
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    let on_gpu = Spec { gpus: vec![crate::ident::GpuName::Index(0)], ..llama() };
    assert_eq!(registry.register(&name("a"), &on_gpu).unwrap(), []);
    let error = registry.register(&name("b"), &llama()).unwrap_err().to_string();
    assert!(error.contains("8000") && error.contains("hint: '--port'"), "{error}");
    assert_eq!(registry.all().unwrap().len(), 1);
    let elsewhere = Spec { port: crate::ident::Port::new(8001), ..on_gpu };
    assert_eq!(registry.register(&name("b"), &elsewhere).unwrap().len(), 1);
}

#[test]
fn a_folder_whose_name_is_no_text_is_refused_and_nothing_is_written() {
    use std::os::unix::ffi::OsStringExt;
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    let models_dir = Some(PathBuf::from(std::ffi::OsString::from_vec(b"/m\xff".to_vec())));
    let error = registry.register(&name("a"), &Spec { models_dir, ..llama() }).unwrap_err();
    assert!(error.to_string().contains("hint: give its folder"), "{error}");
    assert!(registry.all().unwrap().is_empty());
}

#[test]
fn many_who_open_and_write_at_once_lose_nothing() {
    let (_folder, path) = place();
    thread::scope(|scope| {
        for writer in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let mut registry = Registry::open(path).unwrap();
                for n in 0..10 {
                    let port = crate::ident::Port::new(10_000 + writer * 10 + n);
                    let own = Spec { port, ..llama() };
                    registry.register(&name(&format!("m-{writer}-{n}")), &own).unwrap();
                }
            });
        }
    });
    let registry = Registry::open(&path).unwrap();
    assert_eq!(registry.all().unwrap().len(), 80);
    assert_eq!(registry.events(None, 1000).unwrap().len(), 80);
}

#[test]
fn many_who_make_it_at_once_are_all_let_in() {
    for _ in 0..20 {
        let (_folder, path) = place();
        let barrier = std::sync::Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    Registry::open(&path).unwrap();
                });
            }
        });
    }
}

#[test]
fn a_registry_of_a_newer_portreeve_and_somebody_elses_database_are_refused_and_left_as_they_are() {
    let (_folder, path) = place();
    drop(Registry::open(&path).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Registry::open(&path).unwrap_err().to_string();
    assert!(error.contains("is of version 99, and this portreeve knows up to 2"), "{error}");
    let (_folder, other) = place();
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    let connection = Connection::open(&other).unwrap();
    connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(connection);
    let error = Registry::open(&other).unwrap_err().to_string();
    assert!(error.contains("no registry of portreeve's"), "{error}");
    let connection = Connection::open(&other).unwrap();
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);
}

#[test]
fn what_others_may_write_or_lead_elsewhere_is_not_used() {
    let (_folder, path) = place();
    drop(Registry::open(&path).unwrap());
    let folder = path.parent().unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Registry::open(&path).unwrap_err().to_string();
    assert!(error.contains("others may write to it"), "{error}");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let link = folder.join("link.db");
    symlink(&path, &link).unwrap();
    let error = Registry::open(&link).unwrap_err().to_string();
    assert!(error.contains("it is a symbolic link"), "{error}");
}

#[test]
fn a_file_that_is_no_database_is_told_with_its_path_and_left_as_it_is() {
    let (_folder, path) = place();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "not a database, but long enough to look at".repeat(40)).unwrap();
    let error = Registry::open(&path).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("not a database"), "{error}");
    assert!(fs::read(&path).unwrap().starts_with(b"not a database"));
}

#[test]
fn a_row_that_says_nothing_known_is_damage_and_no_default() {
    let (_folder, path) = place();
    let mut registry = Registry::open(&path).unwrap();
    registry.register(&name("a"), &llama()).unwrap();
    for sql in ["UPDATE models SET state = 'dreaming'", "UPDATE models SET spec = '{}'"] {
        registry.connection.execute_batch(sql).unwrap();
        let error = registry.get(&name("a")).unwrap_err().to_string();
        assert!(error.contains("model 'a'") && error.contains("hint:"), "{error}");
        registry.connection.execute_batch("UPDATE models SET state = 'stopped'").unwrap();
    }
}

#[test]
fn a_receipt_of_a_container_that_is_not_understood_names_no_process() {
    let connection = Connection::open_in_memory().unwrap();
    let mut registry = Registry { connection, path: PathBuf::from("models.db") };
    registry.migrate().unwrap();
    registry.register(&name("a"), &llama()).unwrap();
    let receipt = |engine: &str| {
        let sql = "INSERT OR REPLACE INTO receipts VALUES ('a', 'boot', 7, 99, NULL, '/x', 0, ?1, 'id', 'c', 'a.service', 'i', 1)";
        registry.connection.execute(sql, [engine]).unwrap();
        registry.receipt(&name("a")).unwrap().unwrap()
    };
    let known = receipt("docker");
    assert!(known.container.is_some() && known.process.is_some());
    let unknown = receipt("a newer one");
    assert!(unknown.container.is_none() && unknown.process.is_none());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, cases: 32, ..Default::default() })]

    #[test]
    fn whatever_is_registered_and_started_is_read_as_it_was_written(
        spec in crate::backend::spec::any::spec(),
        texts in proptest::collection::vec("\\PC{0,12}|[\\x00-\\x1f\"'\\\\]{0,8}", 8),
        (pid, start_ticks, inode, uid) in proptest::prelude::any::<(u32, u64, Option<u64>, Option<u32>)>(),
        (has_process, has_container) in proptest::prelude::any::<(bool, bool)>(),
    ) {
        use crate::{backend::spec::Engine, ident::{ContainerId, ProcessKey}, models::receipt::{Contained, Main, Receipt}};
        let connection = Connection::open_in_memory().unwrap();
        let mut registry = Registry { connection, path: PathBuf::from("models.db") };
        registry.migrate().unwrap();
        let of = |at: usize| texts[at].clone();
        let called = name(&format!("m{}", of(0)));
        registry.register(&called, &spec).unwrap();
        let worker = Worker::Run(Run { boot_id: of(1), unit: of(2), invocation_id: of(3) });
        registry.begin(&called, State::begin_start, &of(4), &worker).unwrap();
        let key = ProcessKey { pid: Pid(pid), start_ticks, pidfd_inode: inode };
        let receipt = Receipt {
            boot_id: of(5),
            container: has_container.then(|| Contained { engine: Engine::Podman, id: ContainerId(of(6)), name: of(7) }),
            process: has_process.then(|| Main { key, exe: Some(of(6).into()), uid }),
            unit: Some(of(2)),
            instance_id: of(1),
        };
        registry.put_receipt(&called, &worker, &receipt).unwrap();
        let record = registry.get(&called).unwrap();
        proptest::prop_assert_eq!(record.spec.as_ref(), Some(&spec));
        proptest::prop_assert_eq!(record.worker.as_ref(), Some(&worker));
        proptest::prop_assert_eq!(&record.why, &texts[4]);
        proptest::prop_assert_eq!(registry.receipt(&called).unwrap(), Some(receipt));
    }
}
