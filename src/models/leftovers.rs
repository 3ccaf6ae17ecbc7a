//! Containers of models that nothing needs any more. A container is judged by its label, by its name and by what the registry has;
//! it is judged again right before it is removed. Another installation's is never touched, and what only looks like ours is kept
//! apart.

mod clean;
mod look;
mod networks;
mod policies;
mod scan;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

pub use clean::Cleaned;
pub use look::{InUse, Open, Sibling, Sight, look};
pub use networks::{Freed, Tenancy, free, tenancies};
pub use policies::{Restarting, forbid, restarting};
pub use scan::scan;

use super::{
    State,
    plan::{BACKEND_LABEL, INSTANCE_LABEL, MODEL_LABEL, container_name},
};
use crate::{
    backend::BackendName,
    engine::{Engine, Phase},
    ident::{ContainerId, ModelName},
};

/// A container that is left over.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// Whose.
    pub engine: Engine,
    /// Which.
    pub id: ContainerId,
    /// What it is called.
    pub name: String,
    /// Of which model, as far as that can be read.
    pub model: Option<ModelName>,
    /// Its server, likewise.
    pub backend: Option<BackendName>,
    /// What it does.
    pub state: Phase,
    /// What makes it one.
    pub kind: Kind,
    /// When its engine starts it again by itself: `no`, `always`, …; none where its engine does not say.
    pub restart_policy: Option<String>,
    /// Networks that it is attached to.
    pub networks: Vec<String>,
}

/// What makes a container a leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is ours, and nothing needs it.
    Orphan(Why),
    /// It looks like one, and may be somebody's: removed only where it is named, or somebody says so.
    Lookalike(Doubt),
}

/// Why nothing needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The registry knows no such model.
    Unknown,
    /// Its model is down, by the registry.
    RecordedAs(State),
    /// Whoever led its model to the next state is gone.
    CutOff(State),
    /// Its model is up in another container.
    AnotherIncarnation,
}

/// Why it may be somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// It is named like a model's, and nothing says who made it: a predecessor of portreeve, or a person.
    Unlabelled,
    /// It has our labels, and another name than we give: labels come along with an image that was made of a container.
    Renamed,
}

/// What a container is to this installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// No model's, as far as can be seen.
    Foreign,
    /// Of another installation, of this id.
    Sibling(String),
    /// Of a model that is up, or on its way up or down.
    InUse(ModelName, State),
    /// Left over; of this model, as far as that can be read.
    Leftover(Option<ModelName>, Kind),
}

/// What the registry has of the models, as far as it bears on their containers.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Our installation; none where there is no registry, and so nothing of ours.
    instance: Option<String>,
    models: BTreeMap<ModelName, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    state: State,
    /// Whoever leads it to the next state lives.
    is_led: bool,
    /// The container that was written down for it.
    container: Option<ContainerId>,
}

impl Entry {
    /// Why this container of the model is needed by nothing; none where it may be.
    fn why_left_over(&self, id: &ContainerId) -> Option<Why> {
        match self.state {
            State::Stopped | State::Failed => Some(Why::RecordedAs(self.state)),
            State::Starting | State::Stopping if self.is_led => None,
            State::Starting | State::Stopping => Some(Why::CutOff(self.state)),
            // Without a receipt nobody knows which one is its own.
            State::Running => {
                let is_another = self.container.as_ref().is_some_and(|own| own != id);
                is_another.then_some(Why::AnotherIncarnation)
            }
        }
    }
}

/// What a container of this name and id, with these labels, is to us.
pub fn judge(
    name: &str,
    id: &ContainerId,
    labels: &BTreeMap<String, String>,
    ledger: &Ledger,
) -> Standing {
    let Some(instance) = labels.get(INSTANCE_LABEL) else {
        return match named_like(name) {
            Some((_, model)) => Standing::Leftover(Some(model), Kind::Lookalike(Doubt::Unlabelled)),
            None => Standing::Foreign,
        };
    };
    if ledger.instance.as_ref() != Some(instance) {
        return Standing::Sibling(instance.clone());
    }
    let model: Option<ModelName> = labels.get(MODEL_LABEL).and_then(|name| name.parse().ok());
    let why = match model.as_ref().and_then(|model| Some((model, ledger.models.get(model)?))) {
        Some((model, entry)) => match entry.why_left_over(id) {
            Some(why) => why,
            None => return Standing::InUse(model.clone(), entry.state),
        },
        None => Why::Unknown,
    };
    let given = model.as_ref().zip(backend_of(labels));
    let is_renamed = given.is_none_or(|(model, backend)| container_name(model, backend) != name);
    let kind = if is_renamed { Kind::Lookalike(Doubt::Renamed) } else { Kind::Orphan(why) };
    Standing::Leftover(model, kind)
}

/// The backend and the model of a name that we would give, `vllm-model-llama`.
fn named_like(name: &str) -> Option<(BackendName, ModelName)> {
    BackendName::ALL.into_iter().find_map(|backend| {
        let model = name.strip_prefix(backend.word())?.strip_prefix("-model-")?;
        Some((backend, model.parse().ok()?))
    })
}

fn backend_of(labels: &BTreeMap<String, String>) -> Option<BackendName> {
    let word = labels.get(BACKEND_LABEL)?;
    BackendName::ALL.into_iter().find(|backend| backend.word() == word)
}

/// What Docker waits where nobody says.
const GRACE: Duration = Duration::from_secs(10);

impl Leftover {
    /// Whether it runs, or may at any moment: what is down holds no port and no GPU.
    pub fn is_up(&self) -> bool {
        match self.state {
            // A word that we do not know rules nothing out.
            Phase::Running
            | Phase::Paused
            | Phase::Restarting
            | Phase::Stopping
            | Phase::Other(_) => true,
            Phase::Created | Phase::Exited | Phase::Dead | Phase::Removing => false,
        }
    }

    /// Whether it is ours, and nothing needs it.
    pub fn is_orphan(&self) -> bool {
        matches!(self.kind, Kind::Orphan(_))
    }

    /// Whether a name that somebody typed means it: its own, or its model's where that stands in it.
    pub fn is_called(&self, name: &str) -> bool {
        let is_renamed = self.kind == Kind::Lookalike(Doubt::Renamed);
        let is_models = |model: &ModelName| !is_renamed && model.0 == name;
        self.name == name || self.model.as_ref().is_some_and(is_models)
    }

    /// The policy by which its engine starts it again by itself.
    pub fn restarts(&self) -> Option<&str> {
        self.restart_policy.as_deref().filter(|policy| *policy != "no")
    }

    fn grace(&self) -> Duration {
        self.backend.map_or(GRACE, |backend| backend.backend().grace)
    }
}

impl Kind {
    /// In a word, for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Orphan(_) => "orphan",
            Self::Lookalike(Doubt::Unlabelled) => "unlabelled",
            Self::Lookalike(Doubt::Renamed) => "renamed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Orphan(Why::Unknown) => f.write_str("the registry knows no such model"),
            Self::Orphan(Why::RecordedAs(state)) => write!(f, "its model is recorded as {state}"),
            Self::Orphan(Why::CutOff(state)) => {
                write!(f, "its model is recorded as {state}, and whoever led it is gone")
            }
            Self::Orphan(Why::AnotherIncarnation) => {
                f.write_str("its model runs in another container")
            }
            Self::Lookalike(Doubt::Unlabelled) => {
                f.write_str("it is named like a model's, and nothing says that portreeve made it")
            }
            Self::Lookalike(Doubt::Renamed) => {
                f.write_str("it has portreeve's labels, and a name that portreeve did not give")
            }
        }
    }
}
