//! Whether a service may start on its GPUs.

use std::collections::BTreeSet;

use super::{
    super::{
        Judgement, Terms,
        gpu::{GpuState, GpuVerdict, has_enough},
        verdict::{Unknown, Verdict},
    },
    Accepts, Advice, Answer, Binds, Block, Look, are_settled,
};
use crate::{
    config::settings::{Service, Settings},
    snapshot::{Seen, Snapshot},
};

/// The judge's word on one GPU that a service is to start on.
#[derive(Debug, Clone)]
pub struct GpuPassage {
    /// What the GPU is.
    pub gpu: GpuVerdict,
    /// Whether its service may have it.
    pub answer: Answer,
    /// Its memory may still be on its way back from a process that ended.
    pub is_settling: bool,
}

/// The same of a GPU: of its holders, of memory that nobody has and of what is not there. What settles may change.
pub fn gpu_stays(passage: &GpuPassage, verdicts: &[Verdict]) -> bool {
    match (&passage.gpu.state, &passage.answer) {
        (GpuState::Held(_), Answer::Blocked(block)) => {
            !passage.is_settling && are_settled(&block.by, verdicts)
        }
        (GpuState::Residual | GpuState::Absent, Answer::Blocked(_)) => !passage.is_settling,
        (
            GpuState::Free
            | GpuState::Held(_)
            | GpuState::Residual
            | GpuState::Absent
            | GpuState::Unknown(_),
            Answer::Open(_) | Answer::Blocked(_) | Answer::Unknown(_),
        ) => false,
    }
}

/// Judges every GPU of a look; `settling` are those whose missing memory may still come back, by label.
pub fn judge_gpus(
    snapshot: &Snapshot,
    settings: &Settings,
    terms: &Terms,
    judgement: &Judgement,
    settling: &BTreeSet<String>,
    accepts: Accepts,
) -> Vec<GpuPassage> {
    let (binds, passed) = (&Binds::new(), &[][..]);
    let look = Look { snapshot, settings, terms, judgement, binds, passed, accepts };
    let passage = |gpu: &GpuVerdict| {
        let is_settling = settling.contains(&gpu.label);
        GpuPassage { gpu: gpu.clone(), answer: look.gpu_answer(gpu, is_settling), is_settling }
    };
    judgement.gpus.iter().map(passage).collect()
}

impl Look<'_> {
    fn gpu_answer(&self, gpu: &GpuVerdict, is_settling: bool) -> Answer {
        let advice = |title| {
            let (sentence, next_step) = (gpu.sentence.clone(), gpu.next_step.clone());
            Advice { title, sentence, next_step }
        };
        let blocked = |title, by| Answer::Blocked(Block { by, why: advice(title) });
        match &gpu.state {
            GpuState::Free => Answer::Open(Vec::new()),
            GpuState::Held(holders) => {
                let services: Vec<&Service> =
                    gpu.services.iter().filter_map(|name| self.settings.service(name)).collect();
                let others = self.others(&services, holders);
                let unseen = gpu.may_miss.as_ref().map(|_| Unknown {
                    fact: format!("who else holds {}", gpu.label),
                    why: gpu.sentence.clone(),
                    remedy: gpu.next_step.clone(),
                });
                // Where the driver counts no memory, a holder may have all of it.
                let counted = gpu.gpu.as_ref().filter(|seen| seen.memory != Seen::Known(None));
                match (counted.map(|seen| has_enough(seen, gpu.need)), unseen) {
                    (_, None) if others.is_empty() => {
                        Answer::Open(vec![advice("held by the service itself")])
                    }
                    (_, Some(unseen)) if others.is_empty() => Answer::Unknown(unseen),
                    (Some(Ok(true)), Some(unseen)) => Answer::Unknown(unseen),
                    (Some(Ok(true)), None) => Answer::Open(vec![advice("shared")]),
                    (Some(Err(unknown)), _) => {
                        let why = format!("{}; {}", unknown.why, gpu.sentence);
                        Answer::Unknown(Unknown { why, ..unknown })
                    }
                    (Some(Ok(false)) | None, _) => blocked("held", self.blockers(None, &others)),
                }
            }
            GpuState::Residual if is_settling => blocked("settling", Vec::new()),
            GpuState::Residual => blocked("memory taken", Vec::new()),
            GpuState::Absent => blocked("no such GPU", Vec::new()),
            GpuState::Unknown(unknown) => {
                let remedy = unknown.remedy.clone().or_else(|| gpu.next_step.clone());
                Answer::Unknown(Unknown { remedy, ..unknown.clone() })
            }
        }
    }
}
