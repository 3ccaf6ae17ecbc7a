//! systemd's units and logind's sessions, asked over D-Bus: managers at their private sockets (no bus daemon
//! needed; root may always), else over the bus. Every answer has a deadline; no answer is no answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::Path,
    time::Duration,
};

use zbus::{Connection, ObjectPath, OwnedObjectPath, OwnedVariant, connection, names::BusName};

use crate::{
    host::Host,
    ident::{Manager, Pid, UnitRef},
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match (runtime, host.is_live()) {
        (Ok(runtime), true) => runtime,
        (Ok(_), false) => return unanswered(questions, "a fixture host has no managers to ask"),
        (Err(error), _) => return unanswered(questions, &error.to_string()),
    };
    runtime.block_on(async {
        let mut asking = tokio::task::JoinSet::new();
        for (manager, units) in of_manager {
            let host = host.clone();
            asking.spawn(async move {
                let units = ask_manager(&host, manager, units).await;
                Answers { units, ..Answers::default() }
            });
        }
        let (host, sessions, users) =
            (host.clone(), questions.sessions.clone(), questions.users.clone());
        asking.spawn(async move { ask_logind(&host, &sessions, &users).await });
        for answer in asking.join_all().await {
            answers.units.extend(answer.units);
            answers.sessions.extend(answer.sessions);
            answers.lingering.extend(answer.lingering);
        }
    });
    answers
}

fn unanswered(questions: &Questions, why: &str) -> Answers {
    let no = || why.to_owned();
    Answers {
        units: questions.units.iter().map(|u| (u.clone(), Seen::Unreadable(no()))).collect(),
        sessions: questions.sessions.iter().map(|s| (s.clone(), Seen::Unreadable(no()))).collect(),
        lingering: questions.users.iter().map(|u| (*u, Seen::Unreadable(no()))).collect(),
    }
}

/// One answer per unit, whatever happens on the way.
async fn ask_manager(
    host: &Host,
    manager: Manager,
    units: Vec<UnitRef>,
) -> BTreeMap<UnitRef, Seen<Unit>> {
    let run = match manager {
        Manager::System => "run".to_owned(),
        Manager::User(uid) => format!("run/user/{uid}"),
    };
    let bus = match manager {
        Manager::System => host.path("run/dbus/system_bus_socket"),
        Manager::User(uid) => host.path(format!("run/user/{uid}/bus")),
    };
    let asked = tokio::time::timeout(ANSWER_DEADLINE, async {
        let private = host.path(format!("{run}/systemd/private"));
        let (connection, is_bus) = match connect(&private, false).await {
            Ok(connection) => (connection, false),
            Err(_) => (connect(&bus, true).await?, true),
        };
        let destination = is_bus.then_some(SYSTEMD);
        let mut answers = Vec::new();
        for unit in &units {
            let path = format!("/org/freedesktop/systemd1/unit/{}", escaped(&unit.name.0));
            answers.push(match properties(&connection, destination, &path).await {
                Ok(properties) => Seen::Known(read_unit(&properties)),
                Err(error) => refusal(&error),
            });
        }
        zbus::Result::Ok(answers)
    });
    let name = match manager {
        Manager::System => "systemd".to_owned(),
        Manager::User(uid) => format!("the user manager of uid {uid}"),
    };
    let answers = match asked.await {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => vec![refusal(&error); units.len()],
        Err(_) => vec![Seen::Unreadable(late(&name)); units.len()],
    };
    units.into_iter().zip(answers).collect()
}

fn late(name: &str) -> String {
    format!("{name} did not answer within {} s", ANSWER_DEADLINE.as_secs())
}

async fn ask_logind(host: &Host, sessions: &BTreeSet<String>, users: &BTreeSet<u32>) -> Answers {
    let mut answers = Answers::default();
    if sessions.is_empty() && users.is_empty() {
        return answers;
    }
    let asked = tokio::time::timeout(ANSWER_DEADLINE, async {
        let bus = connect(&host.path("run/dbus/system_bus_socket"), true).await?;
        for id in sessions {
            let state = logind_property(&bus, "GetSession", id.as_str(), "Session", "State").await;
            answers.sessions.insert(id.clone(), answer(state, |v| String::try_from(v).ok()));
        }
        for uid in users {
            let linger = logind_property(&bus, "GetUser", uid, "User", "Linger").await;
            answers.lingering.insert(*uid, answer(linger, |v| bool::try_from(v).ok()));
        }
        zbus::Result::Ok(())
    })
    .await;
    let why = match asked {
        Ok(Ok(())) => String::new(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => late("logind"),
    };
    for id in sessions {
        answers.sessions.entry(id.clone()).or_insert_with(|| Seen::Unreadable(why.clone()));
    }
    for uid in users {
        // A user whom logind does not know neither is logged in nor lingers.
        let unread = || Seen::Unreadable(why.clone());
        let seen = answers.lingering.entry(*uid).or_insert_with(unread);
        if *seen == Seen::Gone {
            *seen = Seen::Known(false);
        }
    }
    answers
}

fn answer<T>(
    reply: zbus::Result<OwnedVariant>,
    read: impl Fn(OwnedVariant) -> Option<T>,
) -> Seen<T> {
    match reply {
        Ok(value) => Seen::Known(value).parse(read),
        Err(error) => refusal(&error),
    }
}

/// A manager's "no such thing" is an answer; all else is none.
fn refusal<T>(error: &zbus::Error) -> Seen<T> {
    match error {
        zbus::Error::MethodError(name, ..) => match name.as_str() {
            "org.freedesktop.systemd1.NoSuchUnit"
            | "org.freedesktop.login1.NoSuchSession"
            | "org.freedesktop.login1.NoSuchUser"
            | "org.freedesktop.DBus.Error.UnknownObject" => Seen::Gone,
            "org.freedesktop.DBus.Error.AccessDenied" => Seen::Denied,
            other => Seen::Unreadable(other.to_owned()),
        },
        zbus::Error::InputOutput(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            Seen::Denied
        }
        other => Seen::Unreadable(other.to_string()),
    }
}

async fn connect(socket: &Path, is_bus: bool) -> zbus::Result<Connection> {
    let failed = |e: io::Error| zbus::Error::InputOutput(e.into());
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(failed)?;
    let stream = stream.into_std().map_err(failed)?;
    let builder = connection::Builder::unix_stream(stream).method_timeout(ANSWER_DEADLINE);
    if is_bus { builder.build().await } else { builder.p2p().build().await }
}

/// Everything a unit says of itself: an empty interface name asks for all of them at once.
async fn properties(
    connection: &Connection,
    destination: Option<&str>,
    path: &str,
) -> zbus::Result<HashMap<String, OwnedVariant>> {
    let destination = destination.map(BusName::try_from).transpose()?;
    let path = ObjectPath::try_from(path)?;
    let reply =
        connection.call_method(destination, path, Some(PROPERTIES), "GetAll", &("",)).await?;
    Ok(reply.body().deserialize()?)
}

async fn logind_property(
    bus: &Connection,
    find: &str,
    argument: impl serde::Serialize + zbus::DynamicType,
    interface: &str,
    property: &str,
) -> zbus::Result<OwnedVariant> {
    let interface = format!("{LOGIND}.{interface}");
    let manager = format!("{LOGIND}.Manager");
    let found = bus
        .call_method(
            Some(LOGIND),
            "/org/freedesktop/login1",
            Some(manager.as_str()),
            find,
            &argument,
        )
        .await?;
    let path: OwnedObjectPath = found.body().deserialize()?;
    let body = (interface.as_str(), property);
    let reply = bus.call_method(Some(LOGIND), path, Some(PROPERTIES), "Get", &body).await?;
    Ok(reply.body().deserialize()?)
}

/// A unit's name as an object path's element: all but ASCII letters and digits as `_xx`, a leading digit
/// too (`bus_label_escape`, systemd src/basic/bus-label.c).
fn escaped(name: &str) -> String {
    let mut path = String::with_capacity(name.len() * 2);
    for (i, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (i > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

fn read_unit(properties: &HashMap<String, OwnedVariant>) -> Unit {
    let text = |key: &str| {
        let value = properties.get(key)?;
        <&str>::try_from(value).ok().filter(|t| !t.is_empty()).map(str::to_owned)
    };
    let flag = |key: &str| properties.get(key).and_then(|v| bool::try_from(v).ok());
    let pid = |key: &str| {
        let number = properties.get(key).and_then(|v| u32::try_from(v).ok())?;
        (number != 0).then_some(Pid(number))
    };
    let invocation = properties.get("InvocationID").and_then(|v| {
        let bytes = Vec::<u8>::try_from(v.try_clone().ok()?).ok()?;
        let is_set = bytes.iter().any(|&b| b != 0);
        is_set.then(|| bytes.iter().map(|b| format!("{b:02x}")).collect())
    });
    let started = properties.get("InactiveExitTimestampMonotonic");
    let started = started.and_then(|v| u64::try_from(v).ok()).filter(|&t| t != 0);
    Unit {
        is_loaded: text("LoadState").as_deref() == Some("loaded"),
        active_state: text("ActiveState").unwrap_or_default(),
        sub_state: text("SubState").unwrap_or_default(),
        kill_mode: text("KillMode").map(|mode| match mode.as_str() {
            "control-group" => KillMode::ControlGroup,
            "mixed" => KillMode::Mixed,
            "process" => KillMode::Process,
            "none" => KillMode::None,
            _ => KillMode::Other(mode),
        }),
        sends_sigkill: flag("SendSIGKILL").unwrap_or_default(),
        is_delegated: flag("Delegate").unwrap_or(true),
        main_pid: pid("MainPID"),
        control_pid: pid("ControlPID"),
        invocation_id: invocation,
        started: started.map(Duration::from_micros),
        restart: text("Restart"),
    }
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
