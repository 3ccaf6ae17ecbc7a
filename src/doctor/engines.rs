//! Sockets of container engines, and who answers `GET /version` there. An engine that systemd starts at the first
//! connection is left asleep.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{Area, Check, State, off};
use crate::{
    engine::{self, Engine, NoAnswer, Version},
    host::Host,
    ident::EngineKind,
    observe::containers,
    snapshot::Seen,
};

/// From the connection to the end of the answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// More users' sockets than these are not asked.
const MOST_SOCKETS: usize = 32;

/// What is there.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// systemd would start it.
    Asleep,
    /// Whether systemd would start it is not known.
    NotAsked(String),
    /// It says what it is.
    Works(Version),
    /// It does not.
    Mute(NoAnswer),
}

#[derive(Debug)]
pub(super) struct Engines(Vec<(Engine, Answer)>);

pub(super) fn look(host: &Host) -> Engines {
    let places = places(host);
    let (send, receive) = mpsc::channel();
    let mut asked = 0;
    // The way to a user's socket leads through folders of that user's: a thread that hangs in it is left to itself.
    for (index, place) in places.iter().cloned().enumerate() {
        let (host, send) = (host.clone(), send.clone());
        let name = "portreeve-ask".to_owned();
        let run = move || drop(send.send((index, ask(&host, &place))));
        asked += usize::from(std::thread::Builder::new().name(name).spawn(run).is_ok());
    }
    let late = || Answer::NotAsked("the way to it took too long".to_owned());
    let mut found: Vec<(Engine, Answer)> = places.into_iter().map(|p| (p, late())).collect();
    // A manager's own deadline comes first, three seconds for each of its ways.
    let end = Instant::now() + ANSWER_DEADLINE + Duration::from_secs(9);
    for _ in 0..asked {
        let left = end.saturating_duration_since(Instant::now());
        let Ok((index, answer)) = receive.recv_timeout(left) else { break };
        if let Some(place) = found.get_mut(index) {
            place.1 = answer;
        }
    }
    Engines(found)
}

fn places(host: &Host) -> Vec<Engine> {
    let usual = "run/docker.sock";
    let mut places = vec![engine::at(host, EngineKind::Docker, usual)];
    // On most hosts the same by another name.
    let other = "var/run/docker.sock";
    let identity = |path: &str| fs::metadata(host.path(path)).map(|m| (m.dev(), m.ino())).ok();
    if identity(other).is_some() && identity(other) != identity(usual) {
        places.push(engine::at(host, EngineKind::Docker, other));
    }
    places.push(engine::at(host, EngineKind::Podman, "run/podman/podman.sock"));
    let users = fs::read_dir(host.path("run/user")).into_iter().flatten().flatten();
    let users: BTreeSet<u32> =
        users.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let users = users.into_iter().filter(|uid| *uid != 0).take(MOST_SOCKETS);
    places.extend(users.map(|uid| engine::of_user(host, EngineKind::Podman, uid)));
    places
}

fn ask(host: &Host, place: &Engine) -> Answer {
    if let Err(why) = place.look() {
        return Answer::Mute(why);
    }
    match containers::is_asleep(host, place.name) {
        Seen::Known(true) => Answer::Asleep,
        Seen::Known(false) | Seen::Gone => match engine::version(place, ANSWER_DEADLINE) {
            Ok(version) => Answer::Works(version),
            Err(why) => Answer::Mute(why),
        },
        Seen::Denied => Answer::NotAsked(wakes("its manager does not answer us")),
        Seen::Unreadable(why) => Answer::NotAsked(wakes(&why)),
    }
}

fn wakes(why: &str) -> String {
    format!("whether that would start it is not known, for {why}")
}

pub(super) fn checks(Engines(found): &Engines) -> Vec<Check> {
    // Users without an engine of their own are not worth a line.
    let found = found.iter().filter(|(place, answer)| {
        place.name.owner == 0 || *answer != Answer::Mute(NoAnswer::Absent)
    });
    found.map(|(place, answer)| check(place, answer)).collect()
}

fn check(place: &Engine, answer: &Answer) -> Check {
    let (path, engine) = (place.path().display(), place.name.kind);
    let user = match place.name.owner {
        0 => String::new(),
        uid => format!(", as user {uid} with --user"),
    };
    let (state, detail) = match answer {
        Answer::Asleep => {
            (State::Good, format!("{engine} starts at the first connection; not woken"))
        }
        Answer::NotAsked(why) | Answer::Mute(NoAnswer::NoWay(why)) => {
            (State::Unknown { fix: None }, format!("{engine} was not asked: {why}"))
        }
        Answer::Works(Version { kind, version }) => {
            (State::Good, format!("answers: {kind} {version}"))
        }
        Answer::Mute(NoAnswer::Absent) => (State::Absent, format!("no {engine} here")),
        Answer::Mute(NoAnswer::Denied) => (
            State::Unknown { fix: Some("run as root".to_owned()) },
            format!("{engine}'s socket: permission denied"),
        ),
        Answer::Mute(NoAnswer::Refused) => (
            off(format!("start it: systemctl start {engine}{user}; or remove the socket")),
            format!("{engine}'s socket is left over: nobody listens there"),
        ),
        Answer::Mute(NoAnswer::Late) => (
            off(format!("see why: systemctl status {engine}{user}")),
            format!("{engine} did not answer within {} s", ANSWER_DEADLINE.as_secs()),
        ),
        Answer::Mute(NoAnswer::Strange(what)) => (
            off(format!("see who listens there: ss -xlp src /{path}")),
            format!("not an engine's answer: {what}"),
        ),
    };
    Check::new(Area::Engines, &format!("/{path}"), state, detail)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_user_without_an_engine_gets_no_line_but_the_systems_places_do() {
        let (host, podman) = (Host::fixture("/nowhere"), EngineKind::Podman);
        let absent = || Answer::Mute(NoAnswer::Absent);
        let found = Engines(vec![
            (engine::at(&host, podman, "run/podman/podman.sock"), absent()),
            (engine::of_user(&host, podman, 1000), absent()),
        ]);
        assert_eq!(checks(&found).len(), 1);
    }

    #[test]
    fn one_socket_by_two_names_is_one_place() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("run")).unwrap();
        fs::create_dir_all(folder.path().join("var")).unwrap();
        let _docker = UnixListener::bind(folder.path().join("run/docker.sock")).unwrap();
        let host = Host::live_below(folder.path());
        std::os::unix::fs::symlink("../run", folder.path().join("var/run")).unwrap();
        assert_eq!(places(&host).len(), 2);
        fs::remove_file(folder.path().join("var/run")).unwrap();
        fs::create_dir(folder.path().join("var/run")).unwrap();
        let _other = UnixListener::bind(folder.path().join("var/run/docker.sock")).unwrap();
        assert_eq!(places(&host).len(), 3);
    }
}
