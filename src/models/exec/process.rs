//! A model that runs as a process below us.

use std::{
    io,
    os::{fd::BorrowedFd, unix::process::ExitStatusExt},
};

use super::{
    super::{
        health::{self, Served},
        native::{Ended, Server},
        plan::{Process, Reach},
        trouble::{Left, Trouble},
    },
    Exit, HEALTH_TIME, Kept, stay,
};
use crate::{
    act::interrupt::Interrupt,
    backend::Spec,
    config::settings::Settings,
    host::Host,
    ident::{Endpoint, Pid, Proto},
    judge::{Also, port::PortState},
    pipeline::{self, Scope},
};

/// A model that is to be kept in the foreground.
pub struct Foreground<'a> {
    /// This host.
    pub host: &'a Host,
    /// The settings.
    pub settings: &'a Settings,
    /// What is wanted of it.
    pub spec: &'a Spec,
    /// How it is launched.
    pub process: &'a Process,
}

/// Starts it and stays with it to its end.
pub fn keep(
    foreground: &Foreground<'_>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> io::Result<Exit> {
    let server = Server::start(foreground.host, foreground.process)?;
    stay(Below { foreground, server }, foreground.spec.watch, interrupt, say)
}

struct Below<'a> {
    foreground: &'a Foreground<'a>,
    server: Server,
}

impl Kept for Below<'_> {
    fn reach(&self) -> Reach {
        self.foreground.process.reach
    }

    fn ends(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.server.as_fd()]
    }

    fn left(&mut self) -> io::Result<Option<Left>> {
        Ok(self.server.exit()?.map(|status| {
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            Left { code: code.and_then(|code| u8::try_from(code).ok()), how: status.to_string() }
        }))
    }

    fn look(&mut self) -> io::Result<Option<Left>> {
        self.left()
    }

    /// Its own sockets it can see without any right.
    fn is_itself(&self, _: &mut Interrupt, _: &mut dyn FnMut(&str)) -> Result<(), Trouble> {
        let Foreground { host, settings, spec, process } = self.foreground;
        let address = Some(spec.host);
        let endpoint = Endpoint { port: spec.port(), proto: Proto::Tcp, address, is_v6only: false };
        let scope = Scope { ports: vec![endpoint], ..Scope::default() };
        let found = pipeline::scan(host, settings, &scope, Also::default());
        let found = found.map_err(|error| Trouble::of(&error))?;
        let Some(port) = found.ports.first() else {
            return Err(Trouble::unknown("its port was not looked at"));
        };
        let ours = self.server.all();
        let is_ours = |pids: &[Pid]| !pids.is_empty() && pids.iter().all(|pid| ours.contains(pid));
        let PortState::Held(pids) = &port.state else {
            let why = format!(
                "it says that it is healthy, and does not hold {endpoint}: {}",
                port.sentence
            );
            return Err(Trouble::new(why));
        };
        if !is_ours(pids) {
            let why =
                format!("somebody else answers on {endpoint} in its place: {}", port.sentence);
            return Err(Trouble::new(why));
        }
        match health::served(&process.reach, spec, &process.told, HEALTH_TIME) {
            Served::Fits => Ok(()),
            Served::Other(ids) => {
                let ids = if ids.is_empty() { "nothing".to_owned() } else { ids.join(", ") };
                Err(Trouble::new(format!("it serves {ids}, not {}", spec.model)))
            }
            Served::Unsaid(why) => {
                Err(Trouble::new(format!("it does not say what it serves: {why}")))
            }
        }
    }

    /// Also where its server ended by itself: its workers may not have.
    fn end(&mut self, interrupt: &mut Interrupt, say: &mut dyn FnMut(&str)) -> Result<(), Trouble> {
        match self.server.end(self.foreground.process.reach.grace, interrupt) {
            Ended::Graceful(_) => Ok(()),
            Ended::Killed(many) => {
                say(&format!("{many} of its processes had to be killed"));
                Ok(())
            }
            Ended::Left(pids) => {
                let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
                let why = format!("stuck in the kernel, though killed: pid {}", pids.join(", "));
                Err(Trouble::new(why))
            }
        }
    }
}
