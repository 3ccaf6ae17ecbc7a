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
    ident::{Endpoint, Pid},
    judge::gate::{Answer, Passage},
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
/// The same where a GPU's memory is coming back: no driver tells.
const SETTLING: Duration = Duration::from_millis(100);

/// Waits until a look is worth it, at most so long; returns whether a signal to ourselves ended the waiting. The watch was
/// made before the look.
pub(super) fn for_change(
    host: &Host,
    watch: &mut Watch,
    found: &Found,
    interrupt: &mut Interrupt,
    most: Duration,
) -> bool {
    let shut: Vec<&Passage> =
        found.ports.iter().filter(|port| !matches!(port.answer, Answer::Open(_))).collect();
    let endpoints: Vec<Endpoint> = shut.iter().map(|port| port.port.endpoint).collect();
    let before = marks(&found.snapshot.sockets, &endpoints);
    let in_the_way = before.as_ref().filter(|seen| !seen.is_empty());
    let beat = match (found.is_settling(), in_the_way.is_some() || shut.is_empty()) {
        (true, _) => SETTLING,
        (false, true) => LOOK,
        (false, false) => BIND_AGAIN,
    };
    // What settles is waited for beyond the timeout.
    let end = Instant::now() + if found.is_settling() { beat } else { most.min(beat) };
    watch.follow(in_the_way.map(|seen| seen.iter().map(|(cookie, _)| *cookie).collect()));
    watch.forget_holders();
    for holder in living(found) {
        watch.add_holder(holder);
    }
    loop {
        match watch.wait(end, Some(interrupt.as_fd())) {
            Woken::Released(_) | Woken::HolderEnded | Woken::Deadline => return false,
            Woken::Signal if interrupt.count() > 0 => return true,
            Woken::Signal => {}
            // A dump costs a tenth of a look.
            Woken::LookAgain => {
                let now = listeners::observe(host, &endpoints, Reach::Narrow);
                if marks(&now, &endpoints) != before {
                    return false;
                }
            }
        }
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
