//! Sockets of container engines, and who answers `GET /_ping` there (Docker Engine API; Podman answers the same). An
//! engine that systemd starts at the first connection is left asleep.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use super::{Area, Check, State, off};
use crate::{
    host::{Host, seen},
    ident::{Manager, UnitName, UnitRef},
    observe::{self, units},
    snapshot::Seen,
};

/// From the connection to the end of the headers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// Larger than the headers of any engine.
const MOST_BYTES: usize = 8 << 10;
/// More users' sockets than these are not asked.
const MOST_SOCKETS: usize = 32;

/// A place where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// From the host's root.
    path: String,
    /// `docker` or `podman`, as its units are called.
    engine: &'static str,
    manager: Manager,
}

/// What is there.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// No such socket.
    Absent,
    /// We may not connect.
    Denied,
    /// Nobody has it open.
    Refused,
    /// systemd would start it.
    Asleep,
    /// Whether systemd would start it is not known.
    NotAsked(String),
    /// Somebody took the connection and said nothing in time.
    Silent,
    /// It said something else than an engine says.
    Strange(String),
    /// An engine; its `Server:` header.
    Works(Option<String>),
}

#[derive(Debug)]
pub(super) struct Engines(Vec<(Place, Answer)>);

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
    let mut found: Vec<(Place, Answer)> = places.into_iter().map(|p| (p, late())).collect();
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

fn places(host: &Host) -> Vec<Place> {
    let of_system =
        |path: &str, engine| Place { path: path.to_owned(), engine, manager: Manager::System };
    let mut places = vec![of_system("run/docker.sock", "docker")];
    // On most hosts the same by another name.
    let other = "var/run/docker.sock";
    let identity = |path: &str| fs::metadata(host.path(path)).map(|m| (m.dev(), m.ino())).ok();
    if identity(other).is_some() && identity(other) != identity("run/docker.sock") {
        places.push(of_system(other, "docker"));
    }
    places.push(of_system("run/podman/podman.sock", "podman"));
    let users = fs::read_dir(host.path("run/user")).into_iter().flatten().flatten();
    let users: BTreeSet<u32> =
        users.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    places.extend(users.into_iter().take(MOST_SOCKETS).map(|uid| Place {
        path: format!("run/user/{uid}/podman/podman.sock"),
        engine: "podman",
        manager: Manager::User(uid),
    }));
    places
}

fn ask(host: &Host, place: &Place) -> Answer {
    let socket = match seen(open(host, place)) {
        Seen::Known(socket) => socket,
        Seen::Gone => return Answer::Absent,
        Seen::Denied => return Answer::Denied,
        Seen::Unreadable(why) => return Answer::NotAsked(why),
    };
    match is_asleep(host, place) {
        Seen::Known(true) => Answer::Asleep,
        Seen::Known(false) | Seen::Gone => ping(&socket),
        Seen::Denied => Answer::NotAsked(wakes("its manager does not answer us")),
        Seen::Unreadable(why) => Answer::NotAsked(wakes(&why)),
    }
}

fn wakes(why: &str) -> String {
    format!("whether that would start it is not known, for {why}")
}

/// The socket itself, without touching it. A user's is taken from that user's folder alone: a link in it might lead root to
/// anybody's socket.
fn open(host: &Host, place: &Place) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Manager::User(uid) = place.manager else {
        return Ok(openat(CWD, host.path(&place.path), flags, Mode::empty())?);
    };
    let folder = openat(CWD, host.path(format!("run/user/{uid}")), flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(&folder, "podman/podman.sock", flags, Mode::empty(), resolve)?)
}

/// Whether systemd listens in the engine's stead and would start it for us.
fn is_asleep(host: &Host, place: &Place) -> Seen<bool> {
    if observe::has_systemd(host, &std::collections::BTreeMap::new()) != Seen::Known(true) {
        return Seen::Known(false);
    }
    let unit = |suffix: &str| UnitRef {
        manager: place.manager,
        name: UnitName(format!("{}.{suffix}", place.engine)),
    };
    let (socket, service) = (unit("socket"), unit("service"));
    let questions = units::Questions {
        units: [socket.clone(), service.clone()].into(),
        ..units::Questions::default()
    };
    let mut answers = units::observe(host, &questions).units;
    let mut is_dead = |unit: &UnitRef| match answers.remove(unit) {
        Some(Seen::Known(unit)) => Seen::Known(unit.is_dead()),
        Some(Seen::Gone) | None => Seen::Known(true),
        Some(Seen::Denied) => Seen::Denied,
        Some(Seen::Unreadable(why)) => Seen::Unreadable(why),
    };
    match (is_dead(&socket), is_dead(&service)) {
        (Seen::Known(socket), Seen::Known(service)) => Seen::Known(!socket && service),
        (Seen::Known(_), unseen) | (unseen, _) => unseen,
    }
}

fn ping(socket: &OwnedFd) -> Answer {
    match converse(socket) {
        Ok(headers) => read(&headers),
        Err(error) => match error.raw_os_error() {
            // It is open: what is missing is our own folder in /proc, by which we name it.
            Some(libc::ENOENT) => Answer::NotAsked("'/proc' is not this run's own".to_owned()),
            Some(libc::EACCES | libc::EPERM) => Answer::Denied,
            Some(libc::ECONNREFUSED) => Answer::Refused,
            // A socket's own timeout and a full backlog answer EAGAIN; our deadline has no number.
            Some(libc::EAGAIN) | None => Answer::Silent,
            Some(_) => Answer::Strange(error.to_string()),
        },
    }
}

/// Asks, and reads until the headers end, the peer stops, or there is more than any engine says.
fn converse(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + ANSWER_DEADLINE;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A full backlog answers EAGAIN here, where a blocking connect would wait for ever.
    connect(&fd, &address)?;
    let mut stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut headers = Vec::new();
    let mut part = [0; 1024];
    while headers.len() < MOST_BYTES && !headers.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            length => headers.extend(part.get(..length).unwrap_or_default()),
        }
    }
    Ok(headers)
}

fn read(headers: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(headers);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let shown = |text: &str| text.chars().take(60).collect::<String>();
    let mut words = status.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    if !is_http || words.next() != Some("200") || !text.contains("\r\n\r\n") {
        return Answer::Strange(format!("it answered '{}'", shown(status)));
    }
    let server = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("server").then(|| shown(value.trim()))
    });
    Answer::Works(server)
}

pub(super) fn checks(Engines(found): &Engines) -> Vec<Check> {
    // Users without an engine of their own are not worth a line.
    let found = found
        .iter()
        .filter(|(place, answer)| place.manager == Manager::System || *answer != Answer::Absent);
    found.map(|(place, answer)| check(place, answer)).collect()
}

fn check(place: &Place, answer: &Answer) -> Check {
    let Place { path, engine, manager } = place;
    let user = match manager {
        Manager::System => String::new(),
        Manager::User(uid) => format!(", as user {uid} with --user"),
    };
    let (state, detail) = match answer {
        Answer::Absent => (State::Absent, format!("no {engine} here")),
        Answer::Denied => (
            State::Unknown { fix: Some("run as root".to_owned()) },
            format!("{engine}'s socket: permission denied"),
        ),
        Answer::Refused => (
            off(format!("start it: systemctl start {engine}{user}; or remove the socket")),
            format!("{engine}'s socket is left over: nobody listens there"),
        ),
        Answer::Asleep => {
            (State::Good, format!("{engine} starts at the first connection; not woken"))
        }
        Answer::NotAsked(why) => {
            (State::Unknown { fix: None }, format!("{engine} was not asked: {why}"))
        }
        Answer::Silent => (
            off(format!("see why: systemctl status {engine}{user}")),
            format!("{engine} did not answer within {} s", ANSWER_DEADLINE.as_secs()),
        ),
        Answer::Strange(what) => (
            off(format!("see who listens there: ss -xlp src /{path}")),
            format!("not an engine's answer: {what}"),
        ),
        Answer::Works(Some(server)) => (State::Good, format!("answers: {server}")),
        Answer::Works(None) => (State::Good, "answers".to_owned()),
    };
    Check::new(Area::Engines, &format!("/{path}"), state, detail)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_engines_headers_are_read_and_nothing_else_passes_for_them() {
        let docker =
            b"HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nserver: Docker/24.0 (linux)\r\n\r\nOK";
        assert_eq!(read(docker), Answer::Works(Some("Docker/24.0 (linux)".to_owned())));
        assert_eq!(read(b"HTTP/1.0 200 OK\r\n\r\n"), Answer::Works(None));
        for strange in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nServer: cut",
            b"HTTP/1.1 503 no\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"\xff\xfe\r\n\r\n",
            b"HTTP/1.1  200\r\n\r\n",
        ] {
            assert!(matches!(read(strange), Answer::Strange(_)), "{strange:?}");
        }
    }

    #[test]
    fn a_user_without_an_engine_gets_no_line_but_the_systems_places_do() {
        let place = |manager| Place { path: "run/x".to_owned(), engine: "podman", manager };
        let found = Engines(vec![
            (place(Manager::System), Answer::Absent),
            (place(Manager::User(1000)), Answer::Absent),
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
