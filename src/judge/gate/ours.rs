//! Who holds a port or a GPU and surely is the service itself (`--allow-ours`).

use super::{
    super::{
        port::PortVerdict,
        verdict::{ContainerRef, Finding, Spare, Verdict},
    },
    Accepts, Look, service_of,
};
use crate::{
    config::settings::{RunsIn, Service},
    ident::{Manager, Pid},
    snapshot::Process,
};

impl Look<'_> {
    /// Those of the holders who are surely not one of the services itself.
    pub(super) fn others(&self, services: &[&Service], holders: &[Pid]) -> Vec<Pid> {
        let is_ours = |pid: &Pid| {
            let verdict = self.verdict_on(*pid);
            let is_its = |v: &Verdict| match self.accepts {
                Accepts::Nobody => false,
                Accepts::Declared => services.iter().any(|s| self.is_of(s, v)),
                Accepts::Ours => {
                    self.is_in_our_place(v) || services.iter().any(|s| self.is_of(s, v))
                }
            };
            verdict.is_some_and(is_its)
        };
        holders.iter().filter(|pid| !is_ours(pid)).copied().collect()
    }

    /// The container in which the port's service runs by declaration, where that is accepted.
    pub(super) fn is_our_container(&self, port: &PortVerdict, container: &ContainerRef) -> bool {
        let runs_in = service_of(port, self.settings).and_then(|service| service.runs_in.as_ref());
        let is_named = match runs_in {
            Some(RunsIn::Container(Some(name))) => *name == container.name,
            Some(RunsIn::Container(None) | RunsIn::Unit(_)) | None => false,
        };
        self.accepts != Accepts::Nobody && is_named && self.is_trusted(container.engine.owner)
    }

    /// Spared, and in the unit that we were started in.
    pub(super) fn is_in_our_place(&self, verdict: &Verdict) -> bool {
        matches!(verdict.finding, Finding::Spare(_)) && self.is_in_our_unit(&verdict.process)
    }

    /// Spared, and beyond doubt where the service is declared to run.
    pub(super) fn is_of(&self, service: &Service, verdict: &Verdict) -> bool {
        let Finding::Spare(spare) = &verdict.finding else { return false };
        if self.is_in_own_unit(service, spare) {
            return true;
        }
        match service.runs_in.as_ref() {
            Some(RunsIn::Unit(name)) => match spare {
                Spare::ManagedBy(unit) | Spare::InUnit(unit) => {
                    unit.manager == Manager::System && unit.name == *name
                }
                Spare::Protected(_)
                | Spare::LiveContainer(..)
                | Spare::Forwarder(_)
                | Spare::Session(_)
                | Spare::ParentLives(..) => false,
            },
            Some(RunsIn::Container(Some(name))) => match spare {
                Spare::LiveContainer(..) => self.is_in_container(&verdict.process, name),
                Spare::Forwarder(ContainerRef { engine, name: forwarded, .. }) => {
                    forwarded == name && self.is_trusted(engine.owner)
                }
                Spare::Protected(_)
                | Spare::ManagedBy(_)
                | Spare::InUnit(_)
                | Spare::Session(_)
                | Spare::ParentLives(..) => false,
            },
            Some(RunsIn::Container(None)) | None => false,
        }
    }

    /// A start of what runs already asks as well, and so does a second one of what still loads.
    fn is_in_own_unit(&self, service: &Service, spare: &Spare) -> bool {
        let (Spare::ManagedBy(unit) | Spare::InUnit(unit)) = spare else { return false };
        let is_trusted = match unit.manager {
            Manager::System => true,
            Manager::User(uid) => self.is_trusted(uid),
        };
        is_trusted && service.own_unit.as_ref() == Some(&unit.name)
    }

    fn ourselves(&self) -> Option<&Process> {
        self.snapshot.processes.get(self.snapshot.ourselves.first()?)
    }

    /// A login session's scope, or no unit at all, holds other people's processes as well as the service's.
    fn is_in_our_unit(&self, process: &Process) -> bool {
        let own = self.ourselves().and_then(|own| own.cgroup.known());
        let own = own.filter(|cgroup| cgroup.unit.is_some() && cgroup.session.is_none());
        own.is_some_and(|own| process.cgroup.known().is_some_and(|c| c.path == own.path))
    }

    fn is_in_container(&self, process: &Process, name: &str) -> bool {
        let claim = process.cgroup.known().and_then(|cgroup| cgroup.claim.as_ref());
        let layer = process.enclosure.as_ref().and_then(|enclosure| enclosure.layer.known());
        let mut known = self.snapshot.containers.known();
        known.any(|container| {
            let has_layer = container.upper_dir.is_some() && layer == Some(&container.upper_dir);
            let is_its = claim.map_or(has_layer, |claim| claim.id == container.id);
            is_its && container.name == name && self.is_trusted(container.engine.owner)
        })
    }

    /// Any user may give a container of theirs any name.
    fn is_trusted(&self, owner: u32) -> bool {
        let uid = self.ourselves().and_then(|own| own.uid.known().copied());
        owner == 0 || uid == Some(owner)
    }
}
