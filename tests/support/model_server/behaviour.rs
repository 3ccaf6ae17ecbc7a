//! What it is to do that no server ought to.

use std::{sync::atomic::Ordering, thread, time::Duration};

use super::{HUNG, Outcome, SICK, TOLD, end};

/// When something is to be.
#[derive(Clone, Copy)]
pub(super) enum When {
    /// So long after its start.
    After(Duration),
    /// At SIGUSR1.
    Told,
}

impl When {
    fn parse(text: &str) -> Outcome<Self> {
        if text == "usr1" { Ok(Self::Told) } else { Ok(Self::After(seconds(text)?)) }
    }

    pub(super) fn wait(self) {
        match self {
            Self::After(time) => thread::sleep(time),
            Self::Told => () = *TOLD.wait(),
        }
    }
}

fn seconds(text: &str) -> Outcome<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// As the options say.
#[derive(Default)]
pub(super) struct Behaviour {
    pub(super) load_for: Option<When>,
    pub(super) never_listens: bool,
    pub(super) allocates_mib: usize,
    pub(super) serve_id: Option<String>,
    pub(super) has_child: bool,
    pub(super) crash_at_start: Option<String>,
    crash_after: Option<When>,
    crash_code: Option<i32>,
    health_fails_after: Option<When>,
    hang_health_after: Option<When>,
    pub(super) ignores_term: bool,
    pub(super) slow_stop: Duration,
}

impl Behaviour {
    /// Whether this is an option of ours.
    pub(super) fn take(
        &mut self,
        flag: &str,
        value: &mut dyn FnMut() -> Result<String, String>,
    ) -> Outcome<bool> {
        match flag {
            "--load-for" => self.load_for = Some(When::parse(&value()?)?),
            "--never-listen" => self.never_listens = true,
            "--allocate" => self.allocates_mib = value()?.parse()?,
            "--serve-id" => self.serve_id = Some(value()?),
            "--child" => self.has_child = true,
            "--crash-at-start" => self.crash_at_start = Some(value()?),
            "--crash-after" => self.crash_after = Some(When::parse(&value()?)?),
            "--crash-code" => self.crash_code = Some(value()?.parse()?),
            "--health-fails-after" => self.health_fails_after = Some(When::parse(&value()?)?),
            "--hang-health-after" => self.hang_health_after = Some(When::parse(&value()?)?),
            "--ignore-term" => self.ignores_term = true,
            "--slow-stop" => self.slow_stop = seconds(&value()?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What will happen to it by itself.
    pub(super) fn begin(&self, say: impl Fn(&str) + Send + Copy + 'static) {
        let code = self.crash_code.unwrap_or(1);
        at(self.crash_after, move || {
            say("crashes");
            end(code);
        });
        at(self.health_fails_after, move || {
            SICK.store(true, Ordering::Relaxed);
            say("is sick");
        });
        at(self.hang_health_after, move || {
            HUNG.store(true, Ordering::Relaxed);
            say("hangs");
        });
    }
}

fn at(when: Option<When>, act: impl FnOnce() + Send + 'static) {
    if let Some(when) = when {
        thread::spawn(move || {
            when.wait();
            act();
        });
    }
}
