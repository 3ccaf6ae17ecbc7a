//! Receipts before the judge: whether one is about this very process (row 2), and whether who kept it is gone (row 8).

use std::path::Path;

use crate::{
    config::settings::Service,
    snapshot::{Owner, Process, Receipt, Seen, Snapshot, without_deleted},
};

use super::{
    case::Case,
    truth::{Truth, fact},
    verdict::Unknown,
};

/// The receipt with this process's id: the one that fits it before any that is left of another. Of several that fit, one whose
/// owner is not gone.
pub(super) fn of<'a>(snapshot: &'a Snapshot, process: &Process) -> Option<&'a Receipt> {
    let boot = &snapshot.clock.boot_id;
    let fits = |receipt: &Receipt| {
        let is_this_boot = boot.known().is_none_or(|id| *id == receipt.boot_id);
        is_this_boot && process.key.is_same(&receipt.key)
    };
    let is_gone = |receipt: &Receipt| receipt.is_owner_alive == Seen::Known(false);
    let named = snapshot.receipts.iter().filter(|receipt| receipt.key.pid == process.key.pid);
    named.min_by_key(|receipt| (!fits(receipt), is_gone(receipt)))
}

impl<'a> Case<'a> {
    /// What is to fit in a receipt for it to be about this process, in words, and whether it does.
    pub fn fit(&self, receipt: &Receipt) -> [(&'static str, Truth); 4] {
        let process = self.process;
        let boot = fact(
            &self.snapshot.clock.boot_id,
            || "the boot id".to_owned(),
            |id| Truth::from(*id == receipt.boot_id),
        );
        // The inode of a pidfd settles it; without one, executable and user must fit too.
        let is_settled = receipt.key.pidfd_inode.is_some() && process.key.pidfd_inode.is_some();
        let unrecorded = |what: &str| {
            Truth::Unknown(Unknown {
                fact: format!("{what} of pid {} when its receipt was written", process.key.pid),
                why: "it could not be read then".to_owned(),
                remedy: None,
            })
        };
        let is_exe = |then: &Path| {
            let name = || self.name("the executable");
            fact(&process.exe, name, |exe| (without_deleted(then) == without_deleted(exe)).into())
        };
        let exe = || receipt.exe.as_deref().map_or_else(|| unrecorded("the executable"), is_exe);
        let is_user =
            |uid: u32| fact(&process.uid, || self.name("the user"), |own| Truth::from(*own == uid));
        let of_user = || receipt.uid.map_or_else(|| unrecorded("the user"), is_user);
        [
            ("boot", boot),
            ("start", self.is_start(receipt)),
            ("executable", Truth::from(is_settled).or(exe)),
            ("user", Truth::from(is_settled).or(of_user)),
        ]
    }

    /// Whether it began as the receipt has it. Where that has the inode of a pidfd the kernel gives one to each process: a
    /// process without has it, and it was not read.
    fn is_start(&self, receipt: &Receipt) -> Truth {
        let own = self.process.key;
        let is_same = own.is_same(&receipt.key);
        if is_same && own.pidfd_inode.is_none() && receipt.key.pidfd_inode.is_some() {
            return Truth::Unknown(Unknown {
                fact: self.name("the pidfd"),
                why: "it could not be opened".to_owned(),
                remedy: None,
            });
        }
        is_same.into()
    }

    /// Whether a receipt is about this process.
    pub fn is_of(&self, receipt: &Receipt) -> Truth {
        self.fit(receipt).into_iter().fold(Truth::Yes, |all, (_, one)| all.and(|| one))
    }

    /// Whether who wrote a receipt down may speak for this process: root, or its own user.
    pub fn may_be_told_by(&self, receipt: &Receipt) -> Truth {
        let is_own = |uid: &u32| Truth::from(*uid == receipt.writer);
        Truth::from(receipt.writer == 0)
            .or(|| fact(&self.process.uid, || self.name("the user"), is_own))
    }

    /// Whether who kept the process is gone. What becomes of a container's is for the rows about containers.
    pub fn is_owner_gone(&self, receipt: &Receipt) -> Truth {
        let Receipt { owner, is_owner_alive, .. } = receipt;
        let is_gone =
            || fact(is_owner_alive, || format!("whether {owner} lives"), |alive| (!alive).into());
        match owner {
            Owner::Container(_) => Truth::No,
            Owner::Unit(_) | Owner::Unsaid => is_gone(),
        }
    }

    /// The service of the model for which it was started.
    pub fn service_by_receipt(&self) -> Option<&'a Service> {
        let receipt = self.receipt.filter(|receipt| self.is_of(receipt) == Truth::Yes)?;
        self.settings.services.iter().find(|service| service.name.0 == receipt.model.0)
    }

    /// Who kept it, with what systemd says of that one.
    pub(super) fn owner_in_words(&self, receipt: &Receipt) -> String {
        let state = match &receipt.owner {
            Owner::Unit(unit) => self.snapshot.units.get(unit).and_then(Seen::known),
            Owner::Container(_) | Owner::Unsaid => None,
        };
        let state = state.filter(|_| receipt.is_owner_alive != Seen::Known(true));
        match (state, &receipt.is_owner_alive) {
            (Some(state), _) => format!("{} is {}", receipt.owner, state.state()),
            (None, Seen::Known(true)) => format!("{} lives", receipt.owner),
            (None, Seen::Known(false)) => format!("{} is gone", receipt.owner),
            (None, Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => receipt.owner.to_string(),
        }
    }

    /// What its receipt comes to, for display: whose word it is, and what does not fit.
    pub fn receipt_in_words(&self) -> Option<String> {
        let receipt = self.receipt?;
        let model = &receipt.model;
        let differs = self.fit(receipt).into_iter().find(|(_, truth)| *truth == Truth::No);
        Some(match differs {
            Some((what, _)) => {
                format!("one of model {model} has this process id and another {what}: dropped")
            }
            None => format!("started for model {model}; {}", self.owner_in_words(receipt)),
        })
    }
}
