//! Which files are in effect, and what is wrong with them.

use super::{Area, Check, State};
use crate::config::{ConfigErrors, Loaded, Origin};

pub(super) fn checks(config: Result<&Loaded, &ConfigErrors>) -> Vec<Check> {
    let new = |name: &str, state, detail: String| Check::new(Area::Config, name, state, detail);
    let loaded = match config {
        Ok(loaded) => loaded,
        Err(errors) => {
            let fix = "mend it; until then no verb looks at anything".to_owned();
            let state = State::Unknown { fix: Some(fix) };
            return vec![new("configuration", state, errors.to_string())];
        }
    };
    let services = loaded.settings.services.len();
    let ports: usize = loaded.settings.services.iter().map(|service| service.ports.len()).sum();
    let sum = format!("is sound: {services} services, {ports} guarded ports");
    let mut checks = vec![new("configuration", State::Good, sum)];
    for layer in &loaded.layers {
        let what = match layer.origin {
            Origin::Default => "the default inside the binary",
            Origin::File(_) | Origin::Compose(_) => "in effect, over those above",
        };
        checks.push(new(&layer.origin.to_string(), State::Good, what.to_owned()));
    }
    for composed in &loaded.composed {
        let files: Vec<String> =
            composed.files.iter().map(|file| file.display().to_string()).collect();
        let read = format!("is read by {}", composed.by);
        let said: Vec<String> = [read].into_iter().chain(composed.remarks.clone()).collect();
        checks.push(new(&files.join(", "), State::Good, said.join("; ")));
    }
    for takeover in &loaded.takeovers {
        let place = loaded.layers.get(takeover.to.place.layer);
        let by = place.map(|layer| layer.origin.to_string()).unwrap_or_default();
        let detail = format!(
            "taken over from {} by {} ({by}:{})",
            takeover.from.value, takeover.to.value, takeover.to.place.line
        );
        checks.push(new(&takeover.endpoint.to_string(), State::Good, detail));
    }
    checks
}
