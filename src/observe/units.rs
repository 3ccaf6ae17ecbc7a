//! systemd's units and logind's sessions, asked over D-Bus: managers at their private sockets (no bus daemon
//! needed, and root may ask a user's manager there), else over the bus. Every manager has a deadline; no
//! answer is no answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    host::Host,
    ident::{Manager, Pid, UnitRef},
    observe::dbus::{Argument, Call, CallError, Connection, Value},
    snapshot::{KillMode, Seen, Unit},
};

/// One manager, all its questions together.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
const SYSTEMD: &str = "org.freedesktop.systemd1";
const LOGIND: &str = "org.freedesktop.login1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    /// Units.
    pub units: BTreeSet<UnitRef>,
    /// Sessions by id.
    pub sessions: BTreeSet<String>,
    /// Users who may linger.
    pub users: BTreeSet<u32>,
}

/// What was answered: as many answers as questions.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// Units.
    pub units: BTreeMap<UnitRef, Seen<Unit>>,
    /// logind's word on each session's state.
    pub sessions: BTreeMap<String, Seen<String>>,
    /// Whether each user lingers.
    pub lingering: BTreeMap<u32, Seen<bool>>,
}

/// Asks each manager once for all that is asked of it, side by side.
pub fn observe(host: &Host, questions: &Questions) -> Answers {
    let mut of_manager: BTreeMap<Manager, Vec<UnitRef>> = BTreeMap::new();
    for unit in &questions.units {
        of_manager.entry(unit.manager).or_default().push(unit.clone());
    }
    let mut answers = Answers::default();
    if of_manager.is_empty() && questions.sessions.is_empty() && questions.users.is_empty() {
        return answers;
    }
    if !host.is_live() {
        return unanswered(questions, "a fixture host has no managers to ask");
    }
    // The way to a user's socket leads through folders of that user's, who may have mounted anything there: a
    // thread that hangs in it is left to itself.
    let (send, receive) = mpsc::channel();
    let mut asked = 0;
    let mut ask = |question: Box<dyn FnOnce(&Host) -> Answers + Send>| {
        let (host, send) = (host.clone(), send.clone());
        let name = "portreeve-ask".to_owned();
        let run = move || drop(send.send(question(&host)));
        asked += usize::from(std::thread::Builder::new().name(name).spawn(run).is_ok());
    };
    for (manager, units) in of_manager {
        ask(Box::new(move |host| Answers {
            units: ask_manager(host, manager, units),
            ..Answers::default()
        }));
    }
    let (sessions, users) = (questions.sessions.clone(), questions.users.clone());
    ask(Box::new(move |host| ask_logind(host, &sessions, &users)));
    let end = Instant::now() + ANSWER_DEADLINE * 3;
    for _ in 0..asked {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(answer) = receive.recv_timeout(left) else { break };
        answers.units.extend(answer.units);
        answers.sessions.extend(answer.sessions);
        answers.lingering.extend(answer.lingering);
    }
    let mut whole = unanswered(questions, "its manager could not be reached in time");
    whole.units.extend(answers.units);
    whole.sessions.extend(answers.sessions);
    whole.lingering.extend(answers.lingering);
    whole
}

fn unanswered(questions: &Questions, why: &str) -> Answers {
    let no = || why.to_owned();
    Answers {
        units: questions.units.iter().map(|u| (u.clone(), Seen::Unreadable(no()))).collect(),
        sessions: questions.sessions.iter().map(|s| (s.clone(), Seen::Unreadable(no()))).collect(),
        lingering: questions.users.iter().map(|u| (*u, Seen::Unreadable(no()))).collect(),
    }
}

/// All that a manager tells of one unit, by the names of systemd's properties (org.freedesktop.systemd1(5)).
pub fn properties(host: &Host, unit: &UnitRef) -> Seen<HashMap<String, Value>> {
    let (connection, name) = connect(host, unit.manager);
    match connection {
        Ok((mut connection, destination)) => ask_unit(&mut connection, destination, unit, &name),
        Err(error) => refusal(&error, &name),
    }
}

type Connected = Result<(Connection, Option<&'static str>), CallError>;

/// A manager at its private socket or over the bus, and what it is called.
fn connect(host: &Host, manager: Manager) -> (Connected, String) {
    let (run, bus, name) = match manager {
        Manager::System => {
            ("run".to_owned(), "run/dbus/system_bus_socket".to_owned(), "systemd".to_owned())
        }
        Manager::User(uid) => (
            format!("run/user/{uid}"),
            format!("run/user/{uid}/bus"),
            format!("the user manager of uid {uid}"),
        ),
    };
    let private = host.path(format!("{run}/systemd/private"));
    let connection = match Connection::to_peer(&private, ANSWER_DEADLINE) {
        Ok(connection) => Ok((connection, None)),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(CallError::Failed(error)),
        Err(error) => match Connection::to_bus(&host.path(bus), ANSWER_DEADLINE) {
            Ok(connection) => Ok((connection, Some(SYSTEMD))),
            // A user's bus hangs up on others without a word; why not the manager itself is what helps.
            Err(_) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(CallError::Failed(error))
            }
            Err(error) => Err(error),
        },
    };
    (connection, name)
}

fn ask_unit(
    connection: &mut Connection,
    destination: Option<&str>,
    unit: &UnitRef,
    name: &str,
) -> Seen<HashMap<String, Value>> {
    let path = format!("/org/freedesktop/systemd1/unit/{}", escaped(&unit.name.0));
    let call = Call { destination, path: &path, interface: PROPERTIES, member: "GetAll" };
    // An empty interface's name asks for the properties of all of them.
    match connection.call(call, &[Argument::Text("")]) {
        Ok(Value::Table(properties)) => Seen::Known(properties),
        Ok(_) => Seen::Unreadable(format!("{name} answered something else")),
        Err(error) => refusal(&error, name),
    }
}

/// One answer per unit, whatever happens on the way.
fn ask_manager(
    host: &Host,
    manager: Manager,
    units: Vec<UnitRef>,
) -> BTreeMap<UnitRef, Seen<Unit>> {
    let (connection, name) = connect(host, manager);
    let mut answers = BTreeMap::new();
    match connection {
        Ok((mut connection, destination)) => {
            for unit in units {
                let seen = match ask_unit(&mut connection, destination, &unit, &name) {
                    Seen::Known(properties) => read_unit(&properties).map_or_else(
                        || Seen::Unreadable(format!("{name} left a property out")),
                        Seen::Known,
                    ),
                    Seen::Gone => Seen::Gone,
                    Seen::Denied => Seen::Denied,
                    Seen::Unreadable(why) => Seen::Unreadable(why),
                };
                answers.insert(unit, seen);
            }
        }
        Err(error) => {
            answers.extend(units.into_iter().map(|unit| (unit, refusal(&error, &name))));
        }
    }
    answers
}

fn ask_logind(host: &Host, sessions: &BTreeSet<String>, users: &BTreeSet<u32>) -> Answers {
    let mut answers = Answers::default();
    if sessions.is_empty() && users.is_empty() {
        return answers;
    }
    let mut bus = Connection::to_bus(&host.path("run/dbus/system_bus_socket"), ANSWER_DEADLINE);
    let mut ask =
        |find: &str, argument: Argument<'_>, interface: &str, property: &str| match &mut bus {
            Ok(bus) => logind_property(bus, find, argument, interface, property)
                .map_or_else(|error| refusal(&error, "logind"), Seen::Known),
            Err(error) => refusal(error, "logind"),
        };
    for id in sessions {
        let state = ask("GetSession", Argument::Text(id), "Session", "State");
        let state = state.parse(|value| value.text().map(str::to_owned));
        answers.sessions.insert(id.clone(), state);
    }
    for &uid in users {
        let linger = ask("GetUser", Argument::U32(uid), "User", "Linger");
        let linger = match linger {
            // A user whom logind does not know neither is logged in nor lingers.
            Seen::Gone => Seen::Known(false),
            seen @ (Seen::Known(_) | Seen::Denied | Seen::Unreadable(_)) => {
                seen.parse(|value| value.flag())
            }
        };
        answers.lingering.insert(uid, linger);
    }
    answers
}

/// A manager's "no such thing" is an answer; all else is none.
pub(super) fn refusal<T>(error: &CallError, who: &str) -> Seen<T> {
    match error {
        CallError::Refused(name) => match name.as_str() {
            "org.freedesktop.systemd1.NoSuchUnit"
            | "org.freedesktop.login1.NoSuchSession"
            | "org.freedesktop.login1.NoSuchUser" => Seen::Gone,
            "org.freedesktop.DBus.Error.AccessDenied" => Seen::Denied,
            other => Seen::Unreadable(format!("{who} answered {other}")),
        },
        CallError::Failed(error) if error.kind() == io::ErrorKind::PermissionDenied => Seen::Denied,
        CallError::Failed(error) if error.kind() == io::ErrorKind::TimedOut => {
            Seen::Unreadable(format!("{who} did not answer within {} s", ANSWER_DEADLINE.as_secs()))
        }
        CallError::Failed(error) => Seen::Unreadable(format!("{who} cannot be asked: {error}")),
    }
}

fn logind_property(
    bus: &mut Connection,
    find: &str,
    argument: Argument<'_>,
    interface: &str,
    property: &str,
) -> Result<Value, CallError> {
    let call =
        |path, interface, member| Call { destination: Some(LOGIND), path, interface, member };
    let manager = format!("{LOGIND}.Manager");
    let found = bus.call(call("/org/freedesktop/login1", &manager, find), &[argument])?;
    let Value::Text(path) = found else {
        return Err(CallError::Failed(io::ErrorKind::InvalidData.into()));
    };
    let interface = format!("{LOGIND}.{interface}");
    let arguments = [Argument::Text(&interface), Argument::Text(property)];
    bus.call(call(&path, PROPERTIES, "Get"), &arguments)
}

/// A unit's name as an object path's element: all but ASCII letters and digits as `_xx`, a leading digit
/// too (`bus_label_escape`, systemd src/basic/bus-label.c).
fn escaped(name: &str) -> String {
    let escape = |(i, byte): (usize, u8)| {
        if byte.is_ascii_alphabetic() || (i > 0 && byte.is_ascii_digit()) {
            char::from(byte).to_string()
        } else {
            format!("_{byte:02x}")
        }
    };
    name.bytes().enumerate().map(escape).collect()
}

/// None where a property is missing that every unit, or every service, has.
pub(super) fn read_unit(properties: &HashMap<String, Value>) -> Option<Unit> {
    let text = |key: &str| properties.get(key)?.text().filter(|t| !t.is_empty()).map(str::to_owned);
    let flag = |key: &str| properties.get(key)?.flag();
    let number = |key: &str| properties.get(key)?.number();
    let time = |key: &str| number(key).filter(|&t| t != 0).map(Duration::from_micros);
    let is_service = text("Id")?.ends_with(".service");
    let is_loaded = text("LoadState")? == "loaded";
    let pid = |key: &str| match number(key) {
        Some(0) => Some(None),
        Some(pid) => Some(Some(Pid(u32::try_from(pid).ok()?))),
        None if is_service && is_loaded => None,
        None => Some(None),
    };
    let kill_mode = text("KillMode").map(|mode| match mode.as_str() {
        "control-group" => KillMode::ControlGroup,
        "mixed" => KillMode::Mixed,
        "process" => KillMode::Process,
        "none" => KillMode::None,
        _ => KillMode::Other(mode),
    });
    Some(Unit {
        is_loaded,
        active_state: text("ActiveState")?,
        sub_state: text("SubState")?,
        kill_mode,
        sends_sigkill: flag("SendSIGKILL").unwrap_or_default(),
        is_delegated: flag("Delegate").unwrap_or(true),
        main_pid: pid("MainPID")?,
        control_pid: pid("ControlPID")?,
        invocation_id: properties.get("InvocationID").and_then(Value::hex),
        started: time("InactiveExitTimestampMonotonic"),
        restart: text("Restart"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::UnitName;

    #[test]
    fn a_units_name_becomes_a_path_element_as_systemd_writes_it() {
        assert_eq!(escaped("dbus.service"), "dbus_2eservice");
        assert_eq!(escaped("user@1000.service"), "user_401000_2eservice");
        assert_eq!(escaped("1.service"), "_31_2eservice");
    }

    #[test]
    fn a_manager_that_never_answers_is_no_answer_and_takes_no_longer_than_its_deadline() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("run/systemd")).unwrap();
        // Accepts by its backlog and says nothing.
        let socket = folder.path().join("run/systemd/private");
        let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let unit = UnitRef { manager: Manager::System, name: UnitName::from("a.service") };
        let host = Host::live_below(folder.path());
        let questions = Questions { units: [unit.clone()].into(), ..Questions::default() };
        let answers = observe(&host, &questions);
        let Seen::Unreadable(why) = &answers.units[&unit] else { panic!("{answers:?}") };
        assert_eq!(why, "systemd did not answer within 3 s");
    }
}
