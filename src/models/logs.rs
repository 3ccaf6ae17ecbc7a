//! What a model's container wrote, for as long as there is one.

use std::ops::ControlFlow;

use super::{Registry, launch, lifecycle::Keeper, trouble::Trouble};
use crate::{
    backend::Spec,
    engine::{self, Engine, Listed},
    ident::ModelName,
};

/// The last lines that it wrote.
pub fn last(
    keeper: &Keeper<'_>,
    registry: &Registry,
    (name, spec): (&ModelName, &Spec),
    lines: usize,
) -> Result<Vec<String>, Trouble> {
    let (engine, one) = find(keeper, registry, name, spec)?;
    Ok(engine::logs(&engine, &one.id, lines, keeper.settings.engines.timeout)?)
}

/// The same, then each line as it is written, until it ends, `each` breaks or `should_end`.
pub fn follow(
    keeper: &Keeper<'_>,
    registry: &Registry,
    (name, spec): (&ModelName, &Spec),
    lines: usize,
    each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    should_end: &dyn Fn() -> bool,
) -> Result<(), Trouble> {
    let (engine, one) = find(keeper, registry, name, spec)?;
    let timeout = keeper.settings.engines.timeout;
    Ok(engine::follow_logs(&engine, &one.id, lines, timeout, each, should_end)?)
}

fn find(
    keeper: &Keeper<'_>,
    registry: &Registry,
    name: &ModelName,
    spec: &Spec,
) -> Result<(Engine, Listed), Trouble> {
    let receipt = registry.receipt(name)?;
    let wanted = receipt.and_then(|receipt| receipt.container).map(|container| container.engine);
    let found = launch::engine_of(keeper.host, keeper.settings, wanted.or(spec.engine));
    let (engine, _) = found
        .map_err(|why| Trouble::from(why).hint("'portreeve doctor' says which engines answer"))?;
    let instance = registry.instance_id()?;
    let all = engine::list(&engine, keeper.settings.engines.timeout)?;
    if let Some(one) = all.into_iter().find(|one| launch::is_of(one, &instance, name)) {
        return Ok((engine, one));
    }
    let why = format!("model '{name}' has no container now, and with it went what it wrote");
    Err(Trouble::new(why).hint(format!("'portreeve model events {name}' says what happened")))
}
