//! What a guarded GPU is, who its holders are, and whether a service may start on it.

use std::collections::BTreeSet;

use super::super::{
    explain::explain,
    gate::{Answer, gpu_stays, judge_gpus},
    gpu::{GpuState, GpuVerdict},
    verdict::Finding,
};
use super::scene::{BLINDNESSES, Scene, system, terminal};
use crate::judge::gate::Accepts;
use crate::{
    config::settings::{GpuNeed, RunsIn},
    ident::{GpuName, Pid},
    snapshot::{Gpu, GpuMemory, GpuSource, GpuTrouble, GpuUse, Seen},
};

const WORKER: &str = "VLLM::EngineCore";

/// A vLLM worker whose server is gone, on the one GPU.
fn left_worker() -> Scene {
    Scene::new().process(7, 1, WORKER).gpu(30, &[(7, GpuUse::Compute)])
}

fn gpus(scene: &Scene) -> Vec<GpuVerdict> {
    scene.obeys_the_law().unwrap();
    scene.judge().gpus
}

fn only(scene: &Scene) -> GpuVerdict {
    let all = gpus(scene);
    assert_eq!(all.len(), 1);
    all.into_iter().next().unwrap()
}

fn answer(scene: &Scene, settling: &[&str], accepts: Accepts) -> Answer {
    let labels: BTreeSet<String> = settling.iter().map(ToString::to_string).collect();
    let (snapshot, settings, terms) = (&scene.snapshot, &scene.settings, &scene.terms);
    let of = |scene: &Scene| {
        let judgement = scene.judge();
        judge_gpus(&scene.snapshot, settings, terms, &judgement, &labels, accepts)
    };
    // No fact that could not be read ever opens one.
    let is_open = |answer: &Answer| matches!(answer, Answer::Open(_));
    let sighted = judge_gpus(snapshot, settings, terms, &scene.judge(), &labels, accepts);
    for fact in scene.facts() {
        for blindness in BLINDNESSES {
            let blinded = of(&scene.clone().without(&fact, blindness));
            assert!(!blinded.is_empty(), "{fact:?} {blindness:?}");
            for after in blinded.iter().filter(|after| is_open(&after.answer)) {
                let before = sighted.iter().find(|before| before.gpu.label == after.gpu.label);
                let was_open = before.is_some_and(|before| is_open(&before.answer));
                assert!(was_open, "{fact:?} {blindness:?} opens {}", after.gpu.label);
            }
        }
    }
    sighted.into_iter().next().unwrap().answer
}

fn title(answer: &Answer) -> &str {
    match answer {
        Answer::Open(advice) => advice.first().map_or("open", |advice| advice.title),
        Answer::Blocked(block) => block.why.title,
        Answer::Unknown(_) => "unknown",
    }
}

#[test]
fn a_gpu_orphan_holds_no_port_and_is_convicted_all_the_same() {
    let scene = left_worker();
    assert_eq!(scene.says(7), (9, "orphan: worker without its server".to_owned()));
    assert!(scene.convicts(7));
    let gpu = only(&scene);
    assert_eq!(gpu.state, GpuState::Held(vec![Pid(7)]));
    assert_eq!(
        gpu.sentence,
        "held by pid 7 (orphan: worker without its server), 1.0 GiB; 30.0 GiB of 80.0 GiB free"
    );
    assert_eq!(scene.verdict(7).gpus[0].to_string(), "GPU 0 (1.0 GiB)");
}

#[test]
fn who_computes_on_a_guarded_gpu_and_matches_nothing_is_foreign_and_never_ended() {
    let scene = Scene::new().process(7, 1, "python3 train.py").gpu(30, &[(7, GpuUse::Mps)]);
    assert_eq!(scene.says(7), (18, "foreign".to_owned()));
    let verdict = scene.verdict(7);
    assert_eq!(
        verdict.reason,
        "it is alive and computes on GPU 0 (1.0 GiB); its parent is python3 (pid 1)"
    );
    let foreign = scene.clone().ask(|terms| terms.also.foreign = true);
    assert!(!foreign.convicts(7));
    assert!(only(&scene).sentence.contains("pid 7 (foreign) through MPS, 1.0 GiB"));
    // Who has no part in a guarded GPU is no candidate.
    assert!(!scene.edit_gpus(|gpus| gpus.all[0].holdings.clear()).is_candidate(7));
}

#[test]
fn the_survivor_of_a_unit_is_found_by_the_gpu_that_it_holds() {
    let unit = system("train.service");
    let dead = |scene: Scene| {
        scene.unit(&unit, |unit| {
            "inactive".clone_into(&mut unit.active_state);
            "dead".clone_into(&mut unit.sub_state);
        })
    };
    let scene = Scene::new().process(7, 1, "python3 train.py").gpu(30, &[(7, GpuUse::Compute)]);
    let scene = dead(scene.inside(7, &unit));
    assert_eq!(scene.says(7), (13, "orphan: survived train.service".to_owned()));
}

#[test]
fn infrastructure_and_what_only_draws_hold_no_gpu_and_are_never_ended() {
    for exe in ["/usr/bin/nvidia-cuda-mps-server", "/usr/bin/dcgm-exporter", "/usr/lib/xorg/Xorg"] {
        let scene = Scene::new().process(7, 1, WORKER).exe(7, exe);
        let scene = scene.gpu(79, &[(7, GpuUse::Compute)]);
        assert_eq!(only(&scene).state, GpuState::Free, "{exe}");
        assert_eq!(scene.says(7), (1, "spare: protected".to_owned()), "{exe}");
    }
    // A name proves something in a system's folder only.
    let disguised = Scene::new().process(7, 1, WORKER).exe(7, "/home/eve/nvtop");
    assert!(disguised.gpu(79, &[(7, GpuUse::Compute)]).convicts(7));
    let drawing = Scene::new().process(7, 1, "game").gpu(79, &[(7, GpuUse::Graphics)]);
    assert_eq!(only(&drawing).state, GpuState::Free);
    assert!(!drawing.is_candidate(7));
}

#[test]
fn memory_that_nobody_has_is_no_free_gpu_and_ends_nobody() {
    let scene = Scene::new().gpu(30, &[]);
    let gpu = only(&scene);
    assert_eq!(gpu.state, GpuState::Residual);
    assert_eq!(
        gpu.sentence,
        "30.0 GiB of 80.0 GiB free, 72.0 GiB needed: the rest is taken, and no process has it"
    );
    assert!(gpu.next_step.unwrap().contains("nvidia-smi --gpu-reset -i 0"));
    let drawn = Scene::new().process(7, 1, "Xorg").gpu(30, &[(7, GpuUse::Graphics)]);
    assert!(only(&drawn).sentence.ends_with("nobody computes on it, but python3 (pid 7), 1.0 GiB"));
}

#[test]
fn a_need_is_met_by_a_share_or_an_amount_and_the_largest_counts() {
    let of = |need| {
        let scene = Scene::new().gpu(40, &[]);
        let scene = scene.ask(|terms| terms.gpus.clear());
        scene.guards_gpu(GpuName::Index(0), Some("aidb"), GpuNeed::Bytes(1 << 30)).guards_gpu(
            GpuName::All,
            Some("web"),
            need,
        )
    };
    for (need, is_free) in [
        (GpuNeed::Share(50), true),
        (GpuNeed::Share(51), false),
        (GpuNeed::Bytes(40 << 30), true),
        (GpuNeed::Bytes(41 << 30), false),
    ] {
        let gpu = only(&of(need));
        assert_eq!(gpu.state == GpuState::Free, is_free, "{need}");
        assert_eq!(gpu.services, ["aidb".into(), "web".into()]);
    }
    let too_much = only(&of(GpuNeed::Bytes(96 << 30)));
    assert_eq!(too_much.sentence, "40.0 GiB of 80.0 GiB free, and 96.0 GiB are asked for");
}

#[test]
fn a_gpu_that_the_command_line_names_is_its_services() {
    let scene = Scene::new().process(7, 1, "x").gpu(40, &[]).gpu(40, &[(7, GpuUse::Compute)]);
    let scene = scene.ask(|terms| terms.gpus.clear());
    let scene = scene
        .guards_gpu(GpuName::Index(0), Some("aidb"), GpuNeed::Bytes(1 << 30))
        .guards_gpu(GpuName::All, Some("web"), GpuNeed::Share(20))
        .guards_gpu(GpuName::Index(0), None, GpuNeed::Share(90))
        .ask(|terms| terms.named_gpus.push(GpuName::Index(0)));
    let gpu = only(&scene);
    assert_eq!(gpu.services, ["aidb".into(), "web".into()]);
    assert_eq!((gpu.need, gpu.state), (GpuNeed::Share(20), GpuState::Free));
    assert!(!scene.is_candidate(7), "another GPU was not asked about");
}

#[test]
fn a_split_gpu_is_held_by_whoever_holds_a_part_of_it() {
    let scene = Scene::new().process(7, 1, WORKER).gpu(79, &[]).gpu(10, &[(7, GpuUse::Compute)]);
    let split = scene.edit_gpus(|gpus| {
        gpus.all[0].is_split = true;
        gpus.all[1].index = 0;
        gpus.all[1].part = Some(1);
        gpus.all[1].uuid = Some("MIG-1".to_owned());
    });
    let whole = only(&split);
    assert_eq!((whole.label.as_str(), whole.state), ("GPU 0", GpuState::Held(vec![Pid(7)])));
    let part = split.ask(|terms| terms.gpus.clear());
    let name = GpuName::Uuid("MIG-1".to_owned());
    let part = only(&part.guards_gpu(name, None, GpuNeed::Share(10)));
    assert_eq!((part.label.as_str(), part.state), ("GPU 0 part 1", GpuState::Held(vec![Pid(7)])));
}

#[test]
fn a_gpu_of_a_name_that_no_gpu_has_is_absent_where_all_were_seen_and_else_unknown() {
    let scene = Scene::new().gpu(79, &[]).ask(|terms| terms.gpus.clear());
    let scene = scene.guards_gpu(GpuName::Index(3), Some("aidb"), GpuNeed::Share(90));
    let gpu = only(&scene);
    assert_eq!((gpu.label.as_str(), gpu.state), ("GPU 3", GpuState::Absent));
    assert_eq!(gpu.next_step.unwrap(), "mend 'gpus:'; there are GPU 0 (NVIDIA H200)");
    assert_eq!(title(&answer(&scene, &[], Accepts::Nobody)), "no such GPU");
    let hidden = scene.clone().edit_gpus(|gpus| gpus.may_miss = Some("NVML hangs".to_owned()));
    assert!(matches!(only(&hidden).state, GpuState::Unknown(_)));
    // Two services that name it ask about one GPU.
    let twice = scene.guards_gpu(GpuName::Index(3), Some("web"), GpuNeed::Share(90));
    assert_eq!(only(&twice).services, ["aidb".into(), "web".into()]);
    // A host without any has none to keep.
    let none = Scene::new().gpu(79, &[]).edit_gpus(|gpus| gpus.all.clear());
    assert!(none.judge().gpus.is_empty());
}

#[test]
fn a_name_that_an_unread_gpu_may_have_is_not_absent() {
    let of = |name: &str, edit: fn(&mut Gpu)| {
        let scene = Scene::new().gpu(79, &[]).edit_gpus(|gpus| edit(&mut gpus.all[0]));
        let scene = scene.ask(|terms| terms.gpus.clear());
        only(&scene.guards_gpu(name.parse().unwrap(), None, GpuNeed::Share(90)))
    };
    let (gpu, part, bus) = (
        "GPU-00000000-1111-2222-3333-444444444444",
        "MIG-00000000-1111-2222-3333-444444444444",
        "0000:01:00.0",
    );
    let named = |gpu: &mut Gpu| {
        gpu.uuid = Some("GPU-0".to_owned());
        gpu.bus = Some("0000:02:00.0".to_owned());
    };
    for name in [gpu, part, bus] {
        assert_eq!(of(name, named).state, GpuState::Absent, "{name}");
    }
    for name in [gpu, bus] {
        assert!(matches!(of(name, |_| ()).state, GpuState::Unknown(_)), "{name}");
    }
    let unsplit = |gpu: &mut Gpu| gpu.may_miss = Some("its parts were not told".to_owned());
    assert!(matches!(of(part, unsplit).state, GpuState::Unknown(_)));
    assert_eq!((of(gpu, named).label.as_str(), of(bus, named).label), (gpu, format!("GPU {bus}")));
}

#[test]
fn a_driver_that_hangs_is_a_finding_though_another_way_led_to_an_answer() {
    let trouble = || GpuTrouble {
        source: GpuSource::Nvml,
        why: "did not answer within 5 s".to_owned(),
        remedy: Some("dmesg shows what the driver waits for".to_owned()),
    };
    let scene = Scene::new().gpu(79, &[]).edit_gpus(|gpus| {
        gpus.trouble.push(trouble());
        gpus.all[0].source = GpuSource::NvidiaSmi;
    });
    assert_eq!(
        only(&scene).sentence,
        "nobody computes on it; 79.0 GiB of 80.0 GiB free; told by nvidia-smi, since NVML did not answer within 5 s"
    );
    let blind = scene.edit_gpus(|gpus| {
        gpus.all[0].source = GpuSource::Devices;
        gpus.all[0].memory = Seen::Unreadable("neither NVML nor nvidia-smi told".to_owned());
    });
    let gpu = only(&blind);
    assert!(matches!(gpu.state, GpuState::Unknown(_)));
    assert_eq!(gpu.next_step.unwrap(), "dmesg shows what the driver waits for");
    assert_eq!(title(&answer(&blind, &[], Accepts::Nobody)), "unknown");
}

#[test]
fn a_service_may_start_beside_others_where_enough_memory_is_free() {
    assert_eq!(title(&answer(&Scene::new().gpu(79, &[]), &[], Accepts::Nobody)), "open");
    let beside = |free| Scene::new().process(7, 1, "x").gpu(free, &[(7, GpuUse::Compute)]);
    assert_eq!(title(&answer(&beside(79), &[], Accepts::Nobody)), "shared");
    let Answer::Blocked(block) = answer(&beside(30), &[], Accepts::Nobody) else { panic!("open") };
    assert_eq!((block.why.title, block.by.len(), block.by[0].pid), ("held", 1, Pid(7)));
    // Where the driver counts no memory, a holder may have all of it.
    let uncounted = beside(79).edit_gpus(|gpus| gpus.all[0].memory = Seen::Known(None));
    assert_eq!(title(&answer(&uncounted, &[], Accepts::Nobody)), "held");
    let nobodys = uncounted.edit_gpus(|gpus| gpus.all[0].holdings.clear());
    assert_eq!(title(&answer(&nobodys, &[], Accepts::Nobody)), "open");
}

#[test]
fn beside_holders_that_are_seen_others_may_be_unseen_and_then_nothing_passes() {
    let unit = system("db.service");
    let scene = Scene::new().process(7, 1, "infer").inside(7, &unit).unit(&unit, |unit| {
        unit.main_pid = Some(Pid(7));
    });
    let scene = scene.gpu(79, &[(7, GpuUse::Compute)]).ask(|terms| terms.gpus.clear());
    let scene = scene.guards_gpu(GpuName::All, Some("db"), GpuNeed::Share(90));
    let unseen = scene.clone().edit_gpus(|gpus| gpus.all[0].may_miss = Some("hidepid".to_owned()));
    for (accepts, title_before) in
        [(Accepts::Ours, "held by the service itself"), (Accepts::Nobody, "shared")]
    {
        assert_eq!(title(&answer(&scene, &[], accepts)), title_before);
        assert_eq!(title(&answer(&unseen, &[], accepts)), "unknown");
    }
    assert!(only(&unseen).sentence.ends_with("; more may hold it: hidepid"));
    // Of how much is free, too.
    let unread = scene.edit_gpus(|gpus| gpus.all[0].memory = Seen::Unreadable("why".to_owned()));
    assert_eq!(title(&answer(&unread, &[], Accepts::Nobody)), "unknown");
    let short = unseen.edit_gpus(|gpus| {
        let memory = GpuMemory { total_bytes: 80 << 30, free_bytes: 1 << 30 };
        gpus.all[0].memory = Seen::Known(Some(memory));
    });
    assert_eq!(title(&answer(&short, &[], Accepts::Nobody)), "held");
}

#[test]
fn who_holds_a_gpu_and_what_nobody_holds_stays_until_somebody_does_something() {
    let stays = |scene: &Scene, settling: &[&str]| {
        let labels = settling.iter().map(ToString::to_string).collect();
        let judgement = scene.judge();
        let (snapshot, settings, terms) = (&scene.snapshot, &scene.settings, &scene.terms);
        let passages = judge_gpus(snapshot, settings, terms, &judgement, &labels, Accepts::Nobody);
        gpu_stays(&passages[0], &judgement.verdicts)
    };
    let held = Scene::new().process(7, 1, "x").gpu(30, &[(7, GpuUse::Compute)]);
    assert!(stays(&held, &[]) && !stays(&held, &["GPU 0"]));
    let residual = Scene::new().gpu(30, &[]);
    assert!(stays(&residual, &[]) && !stays(&residual, &["GPU 0"]));
    let unknown = residual.edit_gpus(|gpus| gpus.all[0].may_miss = Some("hidepid".to_owned()));
    assert!(!stays(&unknown, &[]));
    let unread = held.edit(7, |p| p.command_line = Seen::Unreadable("it hangs".to_owned()));
    assert!(!stays(&unread, &[]), "what is undecided may be decided later");
}

#[test]
fn no_command_is_told_that_ends_a_session_by_its_gpu() {
    let scene = Scene::new().process(7, 1, "python3 discovery_daemon.py");
    let scene = scene.edit(7, |p| p.terminal = terminal()).gpu(30, &[(7, GpuUse::Compute)]);
    let said = explain(&scene.snapshot, &scene.settings, &scene.terms, Pid(7)).unwrap();
    assert_eq!(said.verdict.row.0, 10);
    assert_eq!(said.ending.as_deref(), Some("portreeve reap aidb --also session"));
}

#[test]
fn memory_on_its_way_back_is_called_settling_and_what_stays_taken_is_not() {
    let scene = Scene::new().gpu(30, &[]);
    assert_eq!(title(&answer(&scene, &["GPU 0"], Accepts::Nobody)), "settling");
    assert_eq!(title(&answer(&scene, &[], Accepts::Nobody)), "memory taken");
}

#[test]
fn the_service_itself_on_its_gpu_is_accepted_where_that_is_wished() {
    let unit = system("db.service");
    let scene = Scene::new().process(7, 1, "infer").inside(7, &unit).unit(&unit, |unit| {
        unit.main_pid = Some(Pid(7));
    });
    let scene = scene.gpu(30, &[(7, GpuUse::Compute)]).ask(|terms| terms.gpus.clear());
    let scene = scene.guards_gpu(GpuName::All, Some("db"), GpuNeed::Share(90));
    assert!(matches!(scene.settings.services[1].runs_in, Some(RunsIn::Unit(_))));
    assert_eq!(title(&answer(&scene, &[], Accepts::Ours)), "held by the service itself");
    assert_eq!(title(&answer(&scene, &[], Accepts::Nobody)), "held");
}

#[test]
fn a_named_gpu_is_a_narrow_question() {
    let scene = left_worker().process(8, 1, "python3 server.py --config x").listens(8, 8091);
    let narrow = scene.ask(|terms| terms.named_gpus.push(GpuName::All));
    let judgement = narrow.judge();
    assert_eq!(judgement.verdicts.len(), 1);
    assert!(judgement.ports.is_empty());
    assert!(matches!(judgement.verdicts[0].finding, Finding::Orphan(_)));
}
