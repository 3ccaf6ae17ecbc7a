//! Removes leftovers, each judged once more right before.

use super::{Kind, Ledger, Leftover, Standing, judge};
use crate::{
    act::interrupt::Interrupt,
    engine::{self, Listed, Made},
    models::{
        Registry, launch,
        lifecycle::{Down, Keeper, left, side_by_side},
        trouble::Trouble,
    },
};

/// What became of a leftover that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cleaned {
    /// It is removed; how it came down.
    Removed(Down),
    /// Somebody else has removed it.
    WasGone,
}

impl Keeper<'_> {
    /// Ends them side by side, by the ladder, and removes them; each is answered for in its place. `interrupts`: one for each.
    pub fn clean(
        &self,
        all: &[Leftover],
        interrupts: Vec<Interrupt>,
        say: &(dyn Fn(&str, &str) + Sync),
    ) -> Vec<Result<Cleaned, Trouble>> {
        side_by_side(all, interrupts, |one, interrupt| {
            self.clean_one(one, interrupt, &mut |text| say(&one.name, text))
        })
    }

    fn clean_one(
        &self,
        one: &Leftover,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Cleaned, Trouble> {
        let Leftover { engine, id, .. } = one;
        let timeout = self.settings.engines.timeout;
        let Some(made) = engine::find(engine, &id.0, timeout)? else {
            return Ok(Cleaned::WasGone);
        };
        is_still_left_over(one, &made, &Ledger::read(self, Registry::open_if_there)?)?;
        if !made.stays_down() {
            // Between two runs it would be back before the order reaches it. Where its engine cannot, its stop still counts.
            drop(engine::forbid_restarts(engine, id, timeout));
        }
        let Made { name, labels, state, image, .. } = made;
        let listed = Listed { id: id.clone(), name, labels, state, image, networks: Vec::new() };
        let all = std::slice::from_ref(&listed);
        let stopped =
            launch::end(self.settings, self.until, engine, all, one.grace(), interrupt, say)?;
        let names = std::iter::once(one.name.clone());
        let down = Down { stopped: names.zip(stopped).collect(), run: None };
        if let Some((name, stopped)) = down.stopped.iter().find(|(_, one)| !one.is_removed) {
            let kind = engine.name.kind;
            let hint = format!("'{kind} rm -f {name}'; 'portreeve model clean' tries again");
            return Err(left("it", stopped).hint(hint));
        }
        self.put_on_record(one, &down)?;
        let spec = self.models.iter().find(|(name, _)| Some(name) == one.model.as_ref());
        if let Some((_, spec)) = spec.filter(|(_, spec)| spec.is_container) {
            self.prove(spec, all)?;
        }
        Ok(Cleaned::Removed(down))
    }

    fn put_on_record(&self, one: &Leftover, down: &Down) -> Result<(), Trouble> {
        let Some(model) = &one.model else { return Ok(()) };
        let detail = format!("container '{}' is removed ({}): {down}", one.name, one.kind);
        let written = Registry::open(self.registry)
            .and_then(|mut registry| registry.record(model, "cleaned", &detail));
        written.map_err(|error| {
            let trouble = Trouble::from(error);
            let why = format!("it is removed, and that could not be put on record: {trouble}");
            Trouble { why, ..trouble }
        })
    }
}

/// Whoever began to need it since has saved it.
fn is_still_left_over(one: &Leftover, made: &Made, ledger: &Ledger) -> Result<(), Trouble> {
    let why = match judge(&made.name, &made.id, &made.labels, ledger) {
        Standing::Leftover(_, Kind::Orphan(_)) => return Ok(()),
        Standing::Leftover(_, kind) if kind == one.kind => return Ok(()),
        Standing::Leftover(_, kind) => kind.to_string(),
        Standing::InUse(model, state) => format!("model '{model}' is {state} by now"),
        Standing::Sibling(instance) => format!("it is another installation's ({instance})"),
        Standing::Foreign => "it is no model's any more".to_owned(),
    };
    Err(Trouble::new(format!("it was left alone: {why}")))
}
