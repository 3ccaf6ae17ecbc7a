mod wire;

use super::*;
use crate::backend::BackendName;

fn id(number: u8) -> ContainerId {
    ContainerId(format!("{number:064x}"))
}

/// The labels that a launch gives.
fn labels(instance: &str, model: &str) -> BTreeMap<String, String> {
    let all = [(INSTANCE_LABEL, instance), (MODEL_LABEL, model), (BACKEND_LABEL, "vllm")];
    all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A registry with one model, `llama`.
fn ledger(state: State, is_led: bool, container: Option<u8>) -> Ledger {
    let entry = Entry { state, is_led, container: container.map(id) };
    Ledger { instance: Some("5f2c".to_owned()), models: [("llama".into(), entry)].into() }
}

/// What container 1 is, ours, of this model, as we would name it.
fn ours(model: &str, ledger: &Ledger) -> Standing {
    judge(&format!("vllm-model-{model}"), &id(1), &labels("5f2c", model), ledger)
}

fn orphan(model: &str, why: Why) -> Standing {
    Standing::Leftover(Some(model.into()), Kind::Orphan(why))
}

#[test]
fn ours_are_left_over_where_no_model_needs_them() {
    use State::{Failed, Running, Starting, Stopped, Stopping};
    let in_use = |state| Standing::InUse("llama".into(), state);
    let down = |state| orphan("llama", Why::RecordedAs(state));
    let cut_off = |state| orphan("llama", Why::CutOff(state));
    for (state, is_led, receipt, expected) in [
        (Stopped, false, None, down(Stopped)),
        (Failed, false, None, down(Failed)),
        // A receipt of a model that is down says nothing for it.
        (Failed, false, Some(1), down(Failed)),
        (Starting, true, None, in_use(Starting)),
        (Starting, true, Some(1), in_use(Starting)),
        // The one that a start is about to replace is that start's matter.
        (Starting, true, Some(2), in_use(Starting)),
        (Stopping, true, Some(1), in_use(Stopping)),
        (Starting, false, Some(1), cut_off(Starting)),
        (Stopping, false, None, cut_off(Stopping)),
        (Running, false, Some(1), in_use(Running)),
        (Running, false, Some(2), orphan("llama", Why::AnotherIncarnation)),
        (Running, false, None, in_use(Running)),
    ] {
        let ledger = ledger(state, is_led, receipt);
        assert_eq!(ours("llama", &ledger), expected, "{state} {is_led} {receipt:?}");
        assert_eq!(ours("qwen", &ledger), orphan("qwen", Why::Unknown), "{state}");
    }
}

#[test]
fn another_installations_is_never_ours_whatever_it_is_called_and_whatever_the_registry_says() {
    let sibling = Standing::Sibling("77aa".to_owned());
    let no_registry = Ledger::default();
    for state in State::ALL {
        for ledger in [ledger(state, false, Some(1)), no_registry.clone()] {
            for name in ["vllm-model-llama", "web"] {
                let judged = judge(name, &id(1), &labels("77aa", "llama"), &ledger);
                assert_eq!(judged, sibling, "{state} {name}");
            }
        }
    }
    // Without a registry nothing is ours: an installation has its id from there.
    assert_eq!(ours("llama", &no_registry), Standing::Sibling("5f2c".to_owned()));
    let nameless = judge("vllm-model-llama", &id(1), &labels("", "llama"), &no_registry);
    assert_eq!(nameless, Standing::Sibling(String::new()));
}

#[test]
fn what_is_only_named_like_ours_is_kept_apart() {
    let ledger = ledger(State::Running, false, Some(1));
    let judged = |name: &str| judge(name, &id(2), &BTreeMap::new(), &ledger);
    for (name, model) in [
        ("vllm-model-llama", "llama"),
        ("llamacpp-model-a.b_c-1", "a.b_c-1"),
        ("ollama-model-x-model-y", "x-model-y"),
    ] {
        let unlabelled = Kind::Lookalike(Doubt::Unlabelled);
        assert_eq!(judged(name), Standing::Leftover(Some(model.into()), unlabelled), "{name}");
    }
    for name in ["web", "vllm", "vllm-model-", "vllm-models-x", "my-vllm-model-x", "gpt-model-x"] {
        assert_eq!(judged(name), Standing::Foreign, "{name}");
    }
    // The labels of other programs are nothing to us.
    let labels = BTreeMap::from([("com.docker.compose.project".to_owned(), "ai".to_owned())]);
    assert_eq!(judge("web", &id(2), &labels, &ledger), Standing::Foreign);
}

#[test]
fn ours_by_another_name_are_kept_apart_for_labels_come_along_with_an_image() {
    let renamed = |model: Option<&str>| {
        Standing::Leftover(model.map(Into::into), Kind::Lookalike(Doubt::Renamed))
    };
    let down = ledger(State::Stopped, false, None);
    let judged = |labels: &BTreeMap<String, String>, name: &str| judge(name, &id(1), labels, &down);
    assert_eq!(judged(&labels("5f2c", "llama"), "debug"), renamed(Some("llama")));
    assert_eq!(judged(&labels("5f2c", "llama"), "vllm-model-qwen"), renamed(Some("llama")));
    assert_eq!(judged(&labels("5f2c", "../x"), "vllm-model-x"), renamed(None));
    let mut bare = labels("5f2c", "llama");
    bare.remove(BACKEND_LABEL);
    assert_eq!(judged(&bare, "vllm-model-llama"), renamed(Some("llama")));
    // One that is needed is needed under any name.
    let running = ledger(State::Running, false, Some(1));
    let judged = judge("debug", &id(1), &labels("5f2c", "llama"), &running);
    assert_eq!(judged, Standing::InUse("llama".into(), State::Running));
}

#[test]
fn every_name_that_a_launch_gives_is_read_back() {
    for backend in BackendName::ALL {
        for model in ["llama", "a", "x-model-y", "vllm-model-z", "0.b_c"] {
            let model = ModelName::from(model);
            let name = container_name(&model, backend);
            assert_eq!(named_like(&name), Some((backend, model)), "{name}");
        }
    }
}
