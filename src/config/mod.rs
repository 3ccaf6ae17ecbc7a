//! Configuration in three types: as typed (`fragment`), merged over the layers (`merge`), valid (`settings`).
//!
//! ```text
//! source ─► yaml ─► read ──► merge ─────────► validate ─► settings
//! files     nodes   fragment  one of all layers
//!                     └► compose: one more fragment, right below the one that names it
//! models: `models` reads, lays over and checks what is declared of them
//! ```

mod compose;
pub mod fragment;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod merge;
mod models;
mod problem;
mod read;
mod reader;
pub mod settings;
mod source;
mod validate;
mod values;
mod yaml;

pub use compose::Composed;
use fragment::Fragment;
pub use merge::Takeover;
pub use problem::ConfigErrors;
use problem::Problem;
pub(crate) use problem::is_plain;
use settings::Settings;
pub use source::{Layer, Origin, Programs, Sources};

use crate::ident::{ModelName, ServiceName};

/// The configuration as it is in effect.
#[derive(Debug)]
pub struct Loaded {
    /// What is set.
    pub settings: Settings,
    /// The layers, from the lowest (the default inside the binary) to the highest.
    pub layers: Vec<Layer>,
    /// Ports that a higher layer took over.
    pub takeovers: Vec<Takeover>,
    /// The layers laid over each other, each value with its place: where the settings come from.
    pub merged: Fragment,
    /// What compose said, by entry of `compose:`.
    pub composed: Vec<Composed>,
}

/// Reads, merges and validates all layers. On an error, tells all that is wrong with all files.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let (files, problems) = source::read_layers(sources);
    lay(files, problems, sources)
}

/// The same of what stands in the files.
fn lay(
    files: Vec<Layer>,
    mut problems: Vec<Problem>,
    sources: &Sources,
) -> Result<Loaded, ConfigErrors> {
    let (mut layers, mut composed) = (Vec::new(), Vec::new());
    let mut merged = Fragment::default();
    for layer in files {
        let read = |rank| read::read(rank, &layer.origin.to_string(), &layer.text);
        let (mut fragment, mut wrong) = read(layers.len());
        if !fragment.compose.is_empty() {
            let below = compose::derive(layers.len(), &layer, &fragment.compose, sources);
            problems.extend(below.problems);
            composed.extend(below.composed);
            merge::overlay(&mut merged, below.fragment);
            layers.push(layer.below());
            // Its own rank is one higher now.
            (fragment, wrong) = read(layers.len());
        }
        problems.extend(wrong);
        problems.extend(merge::check_owners(&fragment, &layer));
        // What was wrong is left out of the fragments, and what is left may look emptier than it was meant.
        if problems.is_empty() {
            problems.extend(merge::check_dropped(&fragment, &merged, &layer));
            problems.extend(models::check_dropped(&fragment, &merged, &layer));
        }
        merge::overlay(&mut merged, fragment);
        layers.push(layer);
    }
    let (takeovers, two_owners) = merge::take_over(&mut merged, &layers);
    let (models, refused) = models::specs(&merged, &layers);
    if problems.is_empty() {
        problems = two_owners;
        problems.extend(refused);
    }
    let settings = validate::settings(&merged, models);
    let is_default_alone = layers.len() == 1;
    if problems.is_empty() && !is_default_alone && settings::any_of(settings.patterns()).is_err() {
        problems.push(Problem {
            layer: layers.len(),
            file: layers.last().map(|layer: &Layer| layer.origin.to_string()).unwrap_or_default(),
            excerpt: None,
            message: "all patterns together take too much memory".to_owned(),
            hint: Some("use fewer or simpler patterns".to_owned()),
        });
    }
    if problems.is_empty() {
        Ok(Loaded { settings, layers, takeovers, merged, composed })
    } else {
        Err(ConfigErrors::new(problems))
    }
}

/// The settings where no file has any: for who is not to read them.
pub fn embedded() -> Settings {
    let text = include_str!("../../config/default.yaml");
    let (fragment, _) = read::read(source::DEFAULT_LAYER, "default", text);
    validate::settings(&fragment, Vec::new())
}

/// The names of services and models that the files have, as far as they can be read. Quick, and silent: for a shell that
/// completes one. Compose is not asked.
pub fn names(sources: &Sources) -> (Vec<ServiceName>, Vec<ModelName>) {
    let (files, _) = source::read_layers(sources);
    let mut merged = Fragment::default();
    for (rank, layer) in files.iter().enumerate() {
        let (fragment, _) = read::read(rank, &layer.origin.to_string(), &layer.text);
        merge::overlay(&mut merged, fragment);
    }
    let services = merged.services.iter().filter(|(_, at)| merge::is_enabled(&at.value));
    let models = merged.models.iter().filter(|(_, at)| models::is_enabled(&at.value));
    (
        services.map(|(name, _)| name.clone()).collect(),
        models.map(|(name, _)| name.clone()).collect(),
    )
}

/// A duration as the configuration writes it, for flags: `5s`, `500ms`.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    values::parse_duration(text)
        .ok_or_else(|| "expected a duration such as 5s, 500ms, 2m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_stands_the_scrutiny_that_other_layers_are_read_with() {
        let text = include_str!("../../config/default.yaml");
        let (fragment, problems) = read::read(source::DEFAULT_LAYER + 1, "default", text);
        assert!(problems.is_empty(), "{}", ConfigErrors::new(problems));
        let settings = validate::settings(&fragment, Vec::new());
        assert!(settings.patterns().count() > 10);
        assert!(settings::any_of(settings.patterns()).is_ok());
    }
}
