//! Until something on a blocked port changes: a socket on it ends, who stands in the way ends, or enough time has passed for
//! what nobody tells of.

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{PidfdFlags, pidfd_open},
};

use crate::{
    act::interrupt::{Interrupt, timespec},
    host::Host,
    ident::{Endpoint, EngineKind, Pid},
    judge::{
        gate::{Answer, Passage},
        port::PortState,
    },
    observe::{
        Reach, listeners,
        watch::{Watch, Woken},
    },
    snapshot::{Seen, Sockets},
};

use super::Found;

/// A whole look, whatever the sockets say: an address may have come, a holder grown old enough to be judged, an engine
/// answered.
const LOOK: Duration = Duration::from_secs(1);
/// The same where no socket is seen that could change: only another bind tells.
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// The same where Docker counts it as a container's: of one that is being stopped, it does so for a moment longer.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// The same where a GPU's memory is coming back: no driver tells.
const SETTLING: Duration = Duration::from_millis(100);

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Something on a blocked port is not as it was.
    Changed,
    /// It was time for a whole look.
    Over,
    /// A signal to ourselves.
    Interrupted,
}

/// Waits until a look is worth it, at most so long. The watch was made before the look.
pub(super) fn for_change(
    host: &Host,
    watch: &mut Watch,
    found: &Found,
    interrupt: &mut Interrupt,
    most: Duration,
) -> Wait {
    let shut: Vec<&Passage> =
        found.ports.iter().filter(|port| !matches!(port.answer, Answer::Open(_))).collect();
    let endpoints: Vec<Endpoint> = shut.iter().map(|port| port.port.endpoint).collect();
    let before = marks(&found.snapshot.sockets, &endpoints);
    let in_the_way = before.as_ref().filter(|seen| !seen.is_empty());
    let pace = shut.iter().map(|port| pace(port, before.is_some())).min();
    let pace = if in_the_way.is_some() { LOOK } else { pace.unwrap_or(LOOK) };
    // What settles is waited for beyond the timeout.
    let most = if found.is_settling() { SETTLING } else { most };
    let end = Instant::now() + most.min(pace);
    // Where sockets were seen and none is in the way, of none: our own binds are on the ports, too, and would wake us for ever.
    watch.follow(before.as_ref().map(|seen| seen.iter().map(|(cookie, _)| *cookie).collect()));
    watch.forget_holders();
    for holder in living(found) {
        watch.add_holder(holder);
    }
    loop {
        match watch.wait(end, Some(interrupt.as_fd())) {
            Woken::Released(_) | Woken::HolderEnded => return Wait::Changed,
            Woken::Deadline => return Wait::Over,
            Woken::Signal if interrupt.count() > 0 => return Wait::Interrupted,
            Woken::Signal => {}
            // A dump costs a tenth of a look.
            Woken::LookAgain => {
                let now = listeners::observe(host, &endpoints, Reach::Narrow);
                if marks(&now, &endpoints) != before {
                    return Wait::Changed;
                }
            }
        }
    }
}

/// How soon a whole look is worth it again at a shut port on which no socket is to be seen.
fn pace(port: &Passage, sees_sockets: bool) -> Duration {
    match &port.port.state {
        PortState::Allocated(container) => match container.engine.kind {
            EngineKind::Docker => ASK_AGAIN,
            EngineKind::Podman => LOOK,
        },
        PortState::Detoured(_) => LOOK,
        // An engine or the rules could not be asked.
        PortState::Unknown(_) if sees_sockets => LOOK,
        PortState::Unknown(_)
        | PortState::Free
        | PortState::NoListener
        | PortState::Held(_)
        | PortState::BoundOnly(_)
        | PortState::Ephemeral { .. }
        | PortState::Connected { .. }
        | PortState::Lingering
        | PortState::KernelOwned
        | PortState::HolderNotVisible => BIND_AGAIN,
    }
}

/// What names the sockets on these ports; none where they were not seen.
fn marks(sockets: &Seen<Sockets>, endpoints: &[Endpoint]) -> Option<BTreeSet<(u64, u64)>> {
    let all = &sockets.known()?.all;
    let on_them = all.iter().filter(|socket| endpoints.iter().any(|e| socket.is_on(e)));
    Some(on_them.map(|socket| (socket.cookie.unwrap_or_default(), socket.inode)).collect())
}

/// Who stands in the way and has not ended. A pid that was reused meanwhile wakes us later than it might: the sockets do then.
fn living(found: &Found) -> Vec<OwnedFd> {
    let pids: BTreeSet<Pid> = found
        .answers()
        .flat_map(|answer| match answer {
            Answer::Blocked(block) => block.by.iter().map(|blocker| blocker.pid).collect(),
            Answer::Open(_) | Answer::Unknown(_) => Vec::new(),
        })
        .collect();
    let open = |pid: &Pid| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid.0).ok()?)?;
        pidfd_open(pid, PidfdFlags::empty()).ok()
    };
    let has_ended = |holder: &OwnedFd| {
        let mut fds = [PollFd::new(holder, PollFlags::IN)];
        poll(&mut fds, Some(&timespec(Duration::ZERO))).is_ok_and(|ready| ready > 0)
    };
    // One that has ended and still holds the port (a thread outlives it) would wake us at once, for ever.
    pids.iter().filter_map(open).filter(|holder| !has_ended(holder)).collect()
}
