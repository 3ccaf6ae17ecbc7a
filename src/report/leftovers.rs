//! What is left over of models: the list, what was done about it, the document of `model clean`, the rows of `scan`.

use std::io::{self, Write};

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Style,
    escape::{escape, width},
    exit, json,
    models::tell,
    table::{DOUBT, Detail, GAP, INDENT, ORPHAN, PLAIN, Page, SPARED, counted},
};
use crate::{
    judge::verdict,
    models::{
        leftovers::{Cleaned, Freed, Leftover, Restarting, Tenancy},
        trouble::Trouble,
    },
    pipeline::OrphanedContainer,
};

/// What `model clean` found, and what it did about it.
#[derive(Debug, Default)]
pub struct Cleaning {
    /// Leftovers that were asked about.
    pub found: Vec<Found>,
    /// How many containers of other installations there are.
    pub others: usize,
    /// Named things that are no leftovers, in words; whether that leaves something undone.
    pub named: Vec<(String, bool)>,
    /// Ours that their engine starts again by itself, each with whether it was there to be set to `no`.
    pub restarting: Vec<(Restarting, Option<Result<bool, Trouble>>)>,
    /// Networks, where they were asked about, each with what was done.
    pub networks: Vec<(Tenancy, Option<Freed>)>,
    /// What could not be seen.
    pub unseen: Vec<verdict::Unknown>,
}

/// A leftover, and what was done about it.
#[derive(Debug)]
pub struct Found {
    /// Which.
    pub leftover: Leftover,
    /// Somebody named it, or said that it is to go.
    pub is_wanted: bool,
    /// What became of it; none = it was left alone.
    pub became: Option<Result<Cleaned, Trouble>>,
}

impl Cleaning {
    /// 1 where something remains that was to go, 2 where something is not known.
    pub fn exit_code(&self) -> u8 {
        let of_trouble = |trouble: &Trouble| {
            if trouble.is_unknown { exit::COULD_NOT_TELL } else { exit::NOT_CLEAR }
        };
        let found = self.found.iter().map(|one| match &one.became {
            Some(Err(trouble)) => of_trouble(trouble),
            None if one.is_wanted || one.leftover.is_orphan() => exit::NOT_CLEAR,
            Some(Ok(_)) | None => exit::CLEAR,
        });
        let named = self.named.iter().map(|(_, is_undone)| u8::from(*is_undone));
        let restarting = self.restarting.iter().map(|(_, became)| match became {
            Some(Err(trouble)) => of_trouble(trouble),
            Some(Ok(_)) | None => exit::CLEAR,
        });
        let freed = self.networks.iter().filter_map(|(_, freed)| freed.as_ref());
        let networks = freed.flat_map(|freed| &freed.troubles).map(of_trouble);
        let unseen = self.unseen.iter().map(|_| exit::COULD_NOT_TELL);
        exit::worst(found.chain(named).chain(restarting).chain(networks).chain(unseen))
    }

    fn removed(&self) -> usize {
        self.found.iter().filter(|one| matches!(one.became, Some(Ok(_)))).count()
    }
}

/// Writes what was found.
pub fn render_found(cleaning: &Cleaning, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    let (orphans, lookalikes): (Vec<&Leftover>, Vec<&Leftover>) =
        cleaning.found.iter().map(|one| &one.leftover).partition(|one| one.is_orphan());
    rows(&mut page, &orphans.iter().map(|one| row_of(one)).collect::<Vec<_>>());
    if !lookalikes.is_empty() {
        page.blank();
        page.line("", DOUBT, "removed only where they are named, or somebody says so:");
        rows(&mut page, &lookalikes.iter().map(|one| row_of(one)).collect::<Vec<_>>());
    }
    page.blank();
    for (one, _) in &cleaning.restarting {
        let Restarting { engine, name, policy, .. } = one;
        let text = format!(
            "container '{name}' has the restart policy '{policy}': {} starts it by itself ('--restart-policy' sets it to 'no')",
            engine.name
        );
        page.line("", PLAIN, &text);
    }
    for (tenancy, _) in &cleaning.networks {
        page.line("", PLAIN, &tenants(tenancy));
    }
    if cleaning.found.is_empty() {
        let text = if cleaning.unseen.is_empty() {
            "no container of a model is left over"
        } else {
            "no container of a model is left over, as far as could be seen"
        };
        page.line("", PLAIN, text);
    }
    for (text, _) in &cleaning.named {
        page.line("", PLAIN, text);
    }
    if cleaning.others > 0 {
        let count = counted(cleaning.others, "container", "containers");
        page.line("", SPARED, &format!("{count} of another installation left alone"));
    }
    for verdict::Unknown { fact, why, remedy } in &cleaning.unseen {
        page.line("not seen: ", DOUBT, &format!("{fact}: {why}"));
        if let Some(remedy) = remedy {
            page.line("      next: ", PLAIN, remedy);
        }
    }
    out.write_all(page.text.as_bytes())
}

fn tenants(tenancy: &Tenancy) -> String {
    let Tenancy { engine, name, left_over, others, .. } = tenancy;
    let names = |all: &[(_, String)]| {
        all.iter().map(|(_, name): &(_, String)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let rest = match left_over.as_slice() {
        [] => String::new(),
        all => format!("; left over of containers that are gone: {}", names(all)),
    };
    match others.as_slice() {
        [] if left_over.is_empty() => is_free(tenancy),
        [] => format!("network '{name}' of {}: nobody is attached{rest}", engine.name),
        others => format!("network '{name}' of {}: in use by {}{rest}", engine.name, names(others)),
    }
}

fn is_free(Tenancy { engine, name, .. }: &Tenancy) -> String {
    let kind = engine.name.kind;
    format!("network '{name}' of {kind} is free: '{kind} network rm {name}' removes it")
}

/// Writes what was done; on standard error, what could not be.
pub fn render_done(cleaning: &Cleaning, out: &mut dyn Write) -> io::Result<()> {
    for Found { leftover: one, became, .. } in &cleaning.found {
        let name = escape(&one.name, None);
        match became {
            Some(Ok(Cleaned::Removed(down))) => {
                writeln!(out, "container '{name}' is removed: {down}")?;
            }
            Some(Ok(Cleaned::WasGone)) => {
                writeln!(out, "container '{name}' was removed by somebody else")?;
            }
            Some(Err(trouble)) => tell(&format!("container '{}'", one.name), trouble),
            None => {}
        }
    }
    for (one, became) in &cleaning.restarting {
        match became {
            Some(Ok(true)) => {
                let Restarting { name, policy, .. } = one;
                let text = format!("container '{name}': restart policy '{policy}' is now 'no'");
                writeln!(out, "{}", escape(text, None))?;
            }
            Some(Err(trouble)) => tell(&format!("container '{}'", one.name), trouble),
            Some(Ok(false)) | None => {}
        }
    }
    for (tenancy, freed) in &cleaning.networks {
        if let Some(freed) = freed {
            writeln!(out, "{}", escape(free_or_not(tenancy, freed), None))?;
            for trouble in &freed.troubles {
                tell(&format!("network '{}'", tenancy.name), trouble);
            }
        }
    }
    if cleaning.found.iter().any(|one| one.became.is_some()) {
        let removed = cleaning.removed();
        let left = match cleaning.found.len() - removed {
            0 => "none is left".to_owned(),
            left => format!("{left} left alone"),
        };
        writeln!(out, "Containers removed: {removed}; {left}")?;
    }
    Ok(())
}

fn free_or_not(tenancy: &Tenancy, freed: &Freed) -> String {
    let name = format!("network '{}' of {}", tenancy.name, tenancy.engine.name);
    let off = match freed.freed.as_slice() {
        [] => String::new(),
        all => format!("; taken off: {}", all.join(", ")),
    };
    if !freed.others.is_empty() {
        return format!("{name}: in use by {}{off}", freed.others.join(", "));
    }
    if freed.troubles.is_empty() {
        return format!("{}{off}", is_free(tenancy));
    }
    format!("{name} may be in use{off}")
}

/// One container, as a row.
pub(super) struct Row<'a> {
    cells: [String; 4],
    colour: anstyle::Style,
    below: Vec<Detail<'a>>,
}

const HEAD: [&str; 4] = ["MODEL CONTAINER", "MODEL", "ENGINE", "STATE"];

fn row_of(one: &Leftover) -> Row<'_> {
    let model = one.model.as_ref().map_or("-", |model| &model.0);
    let why = format!("{}{}", if one.is_orphan() { "orphan: " } else { "" }, one.kind);
    Row {
        cells: [&one.name, model, &one.engine.name.to_string(), &one.state.to_string()]
            .map(ToString::to_string),
        colour: if one.is_up() { ORPHAN } else { SPARED },
        below: vec![Detail::Why(why.into())],
    }
}

/// The rows of `scan`.
pub(super) fn orphans(all: &[OrphanedContainer]) -> Vec<Row<'_>> {
    all.iter().map(row_of_orphan).collect()
}

fn row_of_orphan(one: &OrphanedContainer) -> Row<'_> {
    let OrphanedContainer { name, engine, model, state, why, restarts, next_step, .. } = one;
    let again = restarts.as_ref().map(|policy| format!("; its restart policy is '{policy}'"));
    let why = format!("orphan: {why}{}", again.unwrap_or_default());
    let model = model.as_ref().map_or("-", |model| &model.0);
    Row {
        cells: [name.clone(), model.to_owned(), engine.to_string(), state.clone()],
        colour: ORPHAN,
        below: vec![Detail::Why(why.into()), Detail::Next(next_step)],
    }
}

/// Writes them under a head; where there are few columns, without one and without columns.
pub(super) fn rows(page: &mut Page, rows: &[Row<'_>]) {
    if rows.is_empty() {
        return;
    }
    let shown = |cells: &[String; 4]| cells.clone().map(|cell| escape(cell, None));
    let head = HEAD.map(str::to_owned);
    let all: Vec<[String; 4]> = rows.iter().map(|row| shown(&row.cells)).collect();
    let widest = |n: usize| {
        let cells = all.iter().chain([&head]).filter_map(|cells| cells.get(n));
        cells.map(|cell| width(cell)).max().unwrap_or_default()
    };
    let widths: [usize; 4] = std::array::from_fn(widest);
    let all_columns = widths.iter().sum::<usize>() + GAP * (widths.len() - 1);
    let has_room = page.style.width.is_none_or(|columns| all_columns <= columns);
    let (widths, indent) =
        if has_room && !page.is_narrow() { (widths, INDENT) } else { ([0; 4], GAP) };
    if indent == INDENT {
        page.cells(&head, &widths, anstyle::Style::new().bold());
    }
    for (row, cells) in rows.iter().zip(&all) {
        page.cells(cells, &widths, row.colour);
        page.details(&row.below, indent);
    }
}

/// What is left over of models, as a document.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Leftovers {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// The command's exit code: 0 nothing is left over, 1 something is, 2 something is not known.
    exit_code: u8,
    /// Containers that are left over.
    containers: Vec<LeftoverContainer>,
    /// How many containers of other installations were left alone.
    others: usize,
    /// Ours that their engine starts again by itself.
    restarting: Vec<RestartingContainer>,
    /// Networks; only with '--network'.
    networks: Vec<StackNetwork>,
    /// What could not be seen.
    unknowns: Vec<json::Unknown>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct LeftoverContainer {
    /// Its name.
    container: String,
    /// 64 hexadecimal digits.
    id: String,
    /// Its engine: `docker`, `podman`.
    engine: String,
    /// Its model.
    model: Option<String>,
    /// What it does: `running`, `exited`, `created`, …
    state: String,
    /// `orphan`; `unlabelled` and `renamed`, which may be somebody's and are removed only where they are named.
    kind: &'static str,
    /// Why it is left over, in a sentence.
    why: String,
    /// When its engine starts it again by itself: `no`, `always`, …; null = not known.
    restart_policy: Option<String>,
    /// The networks that it is attached to.
    networks: Vec<String>,
    /// Whether it is removed; null = it was not to be.
    removed: Option<bool>,
    /// How it came down, or why it did not.
    detail: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RestartingContainer {
    /// Its name.
    container: String,
    /// Its engine: `docker`, `podman`.
    engine: String,
    /// Its model.
    model: Option<String>,
    /// `always`, `on-failure`, `unless-stopped`.
    restart_policy: String,
    /// Whether it was set to `no`; null = it was not to be.
    forbidden: Option<bool>,
    /// Why it was not.
    detail: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct StackNetwork {
    /// Its name.
    network: String,
    /// Its engine: `docker`, `podman`.
    engine: String,
    /// Names of models' containers that are gone and of which an endpoint was left over, before anything was done.
    left_over: Vec<String>,
    /// Names of the containers that are attached.
    attached: Vec<String>,
    /// Names of what was taken off; null = nothing was to be.
    freed: Option<Vec<String>>,
}

/// Writes what was found and done, as a document.
pub fn render_clean_json(cleaning: &Cleaning, out: &mut dyn Write) -> io::Result<()> {
    let leftover = |Found { leftover: one, became, .. }: &Found| {
        let (removed, detail) = match became {
            None => (None, None),
            Some(Ok(Cleaned::Removed(down))) => (Some(true), Some(down.to_string())),
            Some(Ok(Cleaned::WasGone)) => (Some(true), None),
            Some(Err(trouble)) => (Some(false), Some(trouble.why.clone())),
        };
        LeftoverContainer {
            container: one.name.clone(),
            id: one.id.0.clone(),
            engine: one.engine.name.kind.to_string(),
            model: one.model.as_ref().map(ToString::to_string),
            state: one.state.to_string(),
            kind: one.kind.word(),
            why: one.kind.to_string(),
            restart_policy: one.restart_policy.clone(),
            networks: one.networks.clone(),
            removed,
            detail,
        }
    };
    let restarting = |(one, became): &(Restarting, Option<Result<bool, Trouble>>)| {
        let detail = became.as_ref().and_then(|became| became.as_ref().err());
        RestartingContainer {
            container: one.name.clone(),
            engine: one.engine.name.kind.to_string(),
            model: one.model.clone(),
            restart_policy: one.policy.clone(),
            forbidden: became.as_ref().map(Result::is_ok),
            detail: detail.map(|trouble| trouble.why.clone()),
        }
    };
    let names =
        |all: &[(_, String)]| all.iter().map(|(_, name): &(_, String)| name.clone()).collect();
    let network = |(tenancy, freed): &(Tenancy, Option<Freed>)| StackNetwork {
        network: tenancy.name.clone(),
        engine: tenancy.engine.name.kind.to_string(),
        left_over: names(&tenancy.left_over),
        attached: match freed {
            Some(freed) => freed.others.clone(),
            None => names(&tenancy.others),
        },
        freed: freed.as_ref().map(|freed| freed.freed.clone()),
    };
    let document = Leftovers {
        version: 1,
        exit_code: cleaning.exit_code(),
        containers: cleaning.found.iter().map(leftover).collect(),
        others: cleaning.others,
        restarting: cleaning.restarting.iter().map(restarting).collect(),
        networks: cleaning.networks.iter().map(network).collect(),
        unknowns: cleaning.unseen.iter().map(json::unknown).collect(),
    };
    json::write(&document, out)
}

/// A model's container that runs and that nothing needs, in the document of `scan`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelContainer {
    /// Its name.
    container: String,
    /// 64 hexadecimal digits.
    id: String,
    /// Its engine: `docker`, `podman`.
    engine: String,
    /// Its model.
    model: Option<String>,
    /// What it does: `running`, `paused`, `restarting`, …
    state: String,
    /// Why nothing needs it, in a sentence.
    why: String,
    /// The policy by which its engine starts it again by itself.
    restart_policy: Option<String>,
    /// The command that removes it.
    next_step: String,
}

pub(super) fn model_container(one: &OrphanedContainer) -> ModelContainer {
    let OrphanedContainer { name, id, engine, model, state, why, restarts, next_step } =
        one.clone();
    ModelContainer {
        container: name,
        id: id.0,
        engine: engine.kind.to_string(),
        model: model.map(|model| model.0),
        state,
        why,
        restart_policy: restarts,
        next_step,
    }
}
