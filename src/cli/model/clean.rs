//! `portreeve model clean`: what is left over of models is shown, asked about, removed.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
};

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use super::{Stack, run::interrupts};
use crate::{
    cli::{Failure, complete},
    ident::ContainerId,
    models::{
        Registry,
        leftovers::{self, Leftover, Sight},
        lifecycle::Keeper,
    },
    report::{
        Style,
        escape::escape,
        exit,
        leftovers::{Cleaning, Found, render_clean_json, render_done, render_found},
        models::Voice,
    },
};

/// What is to be cleaned.
#[derive(Debug, Args)]
pub(in crate::cli) struct Wish {
    /// Only what is left over of these models, or these containers
    #[arg(value_name = "MODEL|CONTAINER", add = ArgValueCandidates::new(complete::models))]
    names: Vec<String>,
    /// Do not ask. What portreeve may not have made is removed only where it is named
    #[arg(long)]
    yes: bool,
    /// Also take leftovers off the stack's networks, and say who else is attached to them
    #[arg(long)]
    network: bool,
    /// Also set the restart policy of containers of ours to 'no'
    #[arg(long)]
    restart_policy: bool,
}

/// Looks, shows, asks, removes.
pub(super) fn clean(
    stack: &Stack,
    wish: &Wish,
    is_json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    // Whatever died since is recorded as down.
    stack.reconcile(None)?;
    let keeper = stack.keeper(None);
    let sight = leftovers::look(&keeper, Registry::open_if_there)?;
    let mut cleaning = wish.asked_about(&keeper, &sight);
    if is_json {
        if wish.yes {
            let consent = wish.without_asking(&cleaning);
            wish.carry_out(&keeper, &consent, &mut cleaning)?;
        }
        render_clean_json(&cleaning, out)?;
        return Ok(cleaning.exit_code());
    }
    let has_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    if wish.yes || !has_terminal {
        render_found(&cleaning, Style::of_stdout(), out)?;
        let consent = wish.without_asking(&cleaning);
        if consent.is_something() && !wish.yes {
            crate::cli::complain(
                "nothing was removed: there is no terminal to ask on\nhint: '--yes' does it without asking",
            );
            return Ok(exit::COULD_NOT_TELL);
        }
        wish.carry_out(&keeper, &consent, &mut cleaning)?;
        render_done(&cleaning, out)?;
        return Ok(cleaning.exit_code());
    }
    let mut stdout = anstream::stdout();
    render_found(&cleaning, Style::of_stdout(), &mut stdout)?;
    stdout.flush()?;
    let consent = wish.ask(&cleaning)?;
    wish.carry_out(&keeper, &consent, &mut cleaning)?;
    render_done(&cleaning, out)?;
    Ok(cleaning.exit_code())
}

/// What somebody has agreed to.
#[derive(Debug, Default)]
struct Consent {
    /// Which of the leftovers are removed, by their place.
    removed: BTreeSet<usize>,
    /// Endpoints that are left over are taken off networks.
    freed: bool,
    /// Restart policies are set to `no`.
    forbidden: bool,
}

impl Consent {
    fn is_something(&self) -> bool {
        !self.removed.is_empty() || self.freed || self.forbidden
    }
}

impl Wish {
    fn is_named(&self, is_called: impl Fn(&str) -> bool) -> bool {
        self.names.iter().any(|name| is_called(name))
    }

    fn is_asked_about(&self, is_called: impl Fn(&str) -> bool) -> bool {
        self.names.is_empty() || self.is_named(is_called)
    }

    /// The part of what was seen that this is about.
    fn asked_about(&self, keeper: &Keeper<'_>, sight: &Sight) -> Cleaning {
        let leftovers = sight.leftovers.iter();
        let found: Vec<Found> = leftovers
            .filter(|one| self.is_asked_about(|name| one.is_called(name)))
            .map(|one| Found {
                leftover: one.clone(),
                is_wanted: self.is_named(|name| one.is_called(name)),
                became: None,
            })
            .collect();
        let (restarting, unread) = leftovers::restarting(keeper, sight);
        let restarting =
            restarting.into_iter().filter(|one| self.is_asked_about(|name| one.is_called(name)));
        let mut unseen = sight.unseen.clone();
        // Without the flag it is a remark, of which nothing is missed.
        unseen.extend(unread.into_iter().filter(|_| self.restart_policy));
        let mut networks = Vec::new();
        if self.network {
            let own: Vec<&Leftover> = found.iter().map(|one| &one.leftover).collect();
            let (tenancies, unknowns) = leftovers::tenancies(keeper, sight, &own);
            networks = tenancies;
            unseen.extend(unknowns);
        }
        Cleaning {
            named: self.names.iter().filter_map(|name| no_leftover(name, &found, sight)).collect(),
            found,
            others: if self.names.is_empty() { sight.siblings.len() } else { 0 },
            restarting: restarting.map(|one| (one, None)).collect(),
            networks: networks.into_iter().map(|one| (one, None)).collect(),
            unseen,
        }
    }

    /// What is done by '--yes': of what portreeve may not have made, only what is named.
    fn without_asking(&self, cleaning: &Cleaning) -> Consent {
        let found = cleaning.found.iter().enumerate();
        let removed = found
            .filter(|(_, one)| one.is_wanted || one.leftover.is_orphan())
            .map(|(n, _)| n)
            .collect();
        Consent {
            removed,
            freed: cleaning.networks.iter().any(|(network, _)| !network.left_over.is_empty()),
            forbidden: self.restart_policy && !cleaning.restarting.is_empty(),
        }
    }

    /// Asks on the terminal, one question for each kind of thing.
    fn ask(&self, cleaning: &Cleaning) -> io::Result<Consent> {
        let all = cleaning.found.iter().enumerate();
        let (orphans, others): (Vec<_>, Vec<_>) =
            all.partition(|(_, one)| one.leftover.is_orphan());
        let mut consent = Consent::default();
        let question = match orphans.as_slice() {
            [_] => "Remove this container?".to_owned(),
            many => format!("Remove these {} containers?", many.len()),
        };
        if !orphans.is_empty() && says_yes(&question)? {
            consent.removed.extend(orphans.iter().map(|(n, _)| n));
        }
        let names: Vec<&str> = others.iter().map(|(_, one)| one.leftover.name.as_str()).collect();
        let question =
            format!("Remove {}, which portreeve may not have made?", names.join(" and "));
        if !others.is_empty() && says_yes(&question)? {
            consent.removed.extend(others.iter().map(|(n, _)| n));
        }
        let names = cleaning.networks.iter().flat_map(|(network, _)| &network.left_over);
        let names: Vec<&str> = names.map(|(_, name)| name.as_str()).collect();
        let question =
            format!("Take what is left over of {} off its network?", names.join(" and "));
        consent.freed = !names.is_empty() && says_yes(&question)?;
        let is_kept = |id: &ContainerId| {
            let mut removed = consent.removed.iter().filter_map(|n| cleaning.found.get(*n));
            !removed.any(|one| one.leftover.id == *id)
        };
        let kept = cleaning.restarting.iter().filter(|(one, _)| is_kept(&one.id));
        let names: Vec<&str> = kept.map(|(one, _)| one.name.as_str()).collect();
        let question = format!("Set the restart policy of {} to 'no'?", names.join(" and "));
        consent.forbidden = self.restart_policy && !names.is_empty() && says_yes(&question)?;
        Ok(consent)
    }

    fn carry_out(
        &self,
        keeper: &Keeper<'_>,
        consent: &Consent,
        cleaning: &mut Cleaning,
    ) -> Result<(), Failure> {
        let mut doomed: Vec<&mut Found> = { cleaning.found.iter_mut().enumerate() }
            .filter(|(n, _)| consent.removed.contains(n))
            .map(|(_, one)| one)
            .collect();
        let leftovers: Vec<Leftover> = doomed.iter().map(|one| one.leftover.clone()).collect();
        let voice = Voice::new();
        let say = |name: &str, text: &str| voice.say(name, text);
        let results = keeper.clean(&leftovers, interrupts(leftovers.len())?, &say);
        drop(voice);
        for (one, result) in doomed.iter_mut().zip(results) {
            one.became = Some(result);
            one.is_wanted = true;
        }
        let is_removed = |one: &&Found| matches!(one.became, Some(Ok(_)));
        let removed: BTreeSet<ContainerId> =
            cleaning.found.iter().filter(is_removed).map(|one| one.leftover.id.clone()).collect();
        cleaning.restarting.retain(|(one, _)| !removed.contains(&one.id));
        if consent.forbidden {
            for (one, became) in &mut cleaning.restarting {
                *became = Some(leftovers::forbid(keeper, one));
            }
        }
        if self.network && (consent.freed || !removed.is_empty()) {
            for (network, freed) in &mut cleaning.networks {
                if !consent.freed {
                    network.left_over.clear();
                }
                *freed = Some(leftovers::free(keeper, network, &removed));
            }
        }
        Ok(())
    }
}

/// What a name means that is no leftover's; whether that leaves something undone.
fn no_leftover(name: &str, found: &[Found], sight: &Sight) -> Option<(String, bool)> {
    if found.iter().any(|one| one.leftover.is_called(name)) {
        return None;
    }
    let is_it = |container: &str, model: &str| container == name || model == name;
    if let Some(one) = sight.in_use.iter().find(|one| is_it(&one.name, &one.model.0)) {
        let text = format!("container '{}' is needed: its model is {}", one.name, one.state);
        return Some((text, false));
    }
    if let Some(one) = sight.siblings.iter().find(|one| one.name == name) {
        let text = format!(
            "container '{name}' is another portreeve installation's ({}), and left alone",
            one.instance
        );
        return Some((text, true));
    }
    Some((format!("nothing is left over of '{name}'"), false))
}

/// Only a plain yes is one.
fn says_yes(question: &str) -> io::Result<bool> {
    let mut stderr = anstream::stderr();
    write!(stderr, "{} [y/N] ", escape(question, None))?;
    stderr.flush()?;
    let mut answer = String::new();
    if io::stdin().read_line(&mut answer)? == 0 {
        writeln!(stderr)?;
    }
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
