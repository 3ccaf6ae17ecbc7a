//! The registry: which models there are, what each is doing, what was started, what happened. One SQLite database for the
//! system's models (root's), one for each user's.
//!
//! Every change is one transaction that is on the disk when it returns (WAL with `synchronous=FULL`), and that holds the event
//! which tells of it: whoever is killed in between has changed nothing.

#[cfg(any(test, fuzzing))]
pub(super) mod hostile;
mod migrations;
mod receipts;

use std::{
    fmt, fs,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior,
    params,
};

use super::{
    receipt::Worker,
    state::{Forbidden, State},
};
use crate::{
    backend::{Conflict, Spec, conflicts},
    host::Host,
    ident::ModelName,
};
use migrations::{APPLICATION, MIGRATIONS, NEWEST};

/// How long another process may write before we give up: each of its changes takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries where SQLite itself does not wait.
const RETRY: Duration = Duration::from_millis(10);

/// The registry, open.
#[derive(Debug)]
pub struct Registry {
    connection: Connection,
    path: PathBuf,
}

/// A model as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub name: ModelName,
    /// What is wanted of it; none where it is declared elsewhere and only its state is kept here.
    pub spec: Option<Spec>,
    /// What it is doing.
    pub state: State,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// Why it is in that state; empty where that goes without saying.
    pub why: String,
    /// Who is leading it to the next.
    pub worker: Option<Worker>,
    /// What is wanted of it stands in the settings; the registry has its state alone.
    pub is_declared: bool,
}

/// Something that happened to a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number, rising.
    pub id: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// To which model.
    pub model: ModelName,
    /// What, in a word: `registered`, `starting`, `failed`.
    pub kind: String,
    /// What, in a sentence.
    pub detail: String,
}

/// Why the registry did not do what it was asked.
#[derive(Debug)]
pub enum RegistryError {
    /// There is no folder for it: neither root nor a home.
    NoPlace,
    /// Others may write to it.
    NotTrusted(PathBuf, String),
    /// A newer portreeve wrote it: its version.
    TooNew(PathBuf, i64),
    /// It is a database, and not ours.
    Foreign(PathBuf),
    /// No such model; the names that there are.
    NoModel(ModelName, Vec<ModelName>),
    /// There is one of that name.
    Exists(ModelName),
    /// Another wants the same port.
    Conflicts(Vec<Conflict>),
    /// What is wanted of it cannot be written down: a path that is no UTF-8.
    NoText(ModelName, String),
    /// Its state forbids the step.
    Forbidden(ModelName, Forbidden),
    /// Another command leads it now; to this state.
    TakenOver(ModelName, State),
    /// What it holds cannot be read: where, what.
    Damaged(PathBuf, String),
    /// The database, or the file below it, failed.
    Failed(PathBuf, rusqlite::Error),
    /// The file's folder cannot be made or looked at.
    Io(PathBuf, std::io::Error),
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace => f.write_str(
                "there is no place for the registry of models\nhint: run it as root, or set HOME or XDG_STATE_HOME",
            ),
            Self::NotTrusted(path, why) => write!(
                f,
                "the registry '{}' is not used: {why}\nhint: it decides what is started and ended, so nobody else may write to it",
                path.display()
            ),
            Self::TooNew(path, found) => write!(
                f,
                "the registry '{}' is of version {found}, and this portreeve knows up to {NEWEST}\nhint: a newer portreeve wrote it: use that one",
                path.display()
            ),
            Self::Foreign(path) => write!(
                f,
                "'{}' is a database, but no registry of portreeve's\nhint: move it away",
                path.display()
            ),
            Self::NoModel(name, known) => {
                write!(f, "no model '{name}'")?;
                let known: Vec<&str> = known.iter().map(|name| name.0.as_str()).collect();
                match known.as_slice() {
                    [] => f.write_str("\nhint: none is registered yet: 'portreeve model register'"),
                    known => write!(f, "\nhint: there are {}", known.join(", ")),
                }
            }
            Self::Exists(name) => write!(
                f,
                "there is a model '{name}' already\nhint: 'portreeve model unregister {name}' first"
            ),
            Self::Conflicts(all) => {
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                write!(f, "{}\nhint: '--port' gives it another", all.join("; "))
            }
            Self::NoText(name, why) => write!(
                f,
                "model '{name}' cannot be written down: {why}\nhint: give its folder a name in UTF-8"
            ),
            Self::Forbidden(name, step) => write!(f, "model '{name}': {step}"),
            Self::TakenOver(name, state) => write!(
                f,
                "another command took model '{name}' over meanwhile, and it is {state}\nhint: 'portreeve model events {name}' says what happened"
            ),
            Self::Damaged(path, what) => write!(
                f,
                "the registry '{}' cannot be read: {what}\nhint: 'portreeve doctor' checks it; restore it from a backup, or move it away and register the models anew",
                path.display()
            ),
            Self::Failed(path, error) => {
                write!(f, "the registry '{}' failed: {error}", path.display())?;
                match error.sqlite_error_code() {
                    Some(ErrorCode::DiskFull) => {
                        f.write_str("\nhint: the disk is full; nothing was changed")
                    }
                    Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                        f.write_str("\nhint: its folder must be there and writable; nothing was changed")
                    }
                    Some(ErrorCode::SystemIoFailure) => f.write_str(
                        "\nhint: look at its disk ('df', 'dmesg'): it may be full; nothing was changed",
                    ),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => f.write_str(
                        "\nhint: another portreeve has been writing for seconds; nothing was changed, try again",
                    ),
                    Some(_) | None => Ok(()),
                }
            }
            Self::Io(path, error) => write!(f, "'{}': {error}", path.display()),
        }
    }
}

impl std::error::Error for RegistryError {}

type Result<T> = std::result::Result<T, RegistryError>;

/// Where the registry of whoever runs this is: root's is the system's.
pub fn path(host: &Host) -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(host.path("var/lib/portreeve/models.db"));
    }
    let absolute = |name: &str, below: &str| {
        let folder = PathBuf::from(std::env::var_os(name)?).join(below);
        folder.is_absolute().then_some(folder)
    };
    let state = absolute("XDG_STATE_HOME", "").or_else(|| absolute("HOME", ".local/state"));
    Ok(state.ok_or(RegistryError::NoPlace)?.join("portreeve/models.db"))
}

/// Two who turn a new file into a WAL would wait for each other: SQLite refuses one of them without waiting
/// (sqlite3_busy_handler's documentation, on deadlock), and lets it in once the other is done.
fn keep_wal(connection: &Connection) -> rusqlite::Result<()> {
    let began = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && began.elapsed() < PATIENCE =>
            {
                thread::sleep(RETRY);
            }
            done => return done,
        }
    }
}

impl Registry {
    /// Opens it, makes it where there is none, and brings its tables up to date.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.map_err(|error| RegistryError::Io(folder.to_owned(), error))?;
            trust(folder)?;
        }
        trust(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let failed = |error| RegistryError::Failed(path.to_owned(), error);
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        let mut registry = Self { connection, path: path.to_owned() };
        registry.prepare()?;
        Ok(registry)
    }

    /// The same for who only reads: none where there is no registry yet.
    pub fn open_if_there(path: &Path) -> Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(_) => Self::open(path).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RegistryError::Io(path.to_owned(), error)),
        }
    }

    /// For who only looks: nothing is written or made. A database of an older version is brought up to date all the same, since it
    /// cannot be read otherwise.
    pub fn look(path: &Path) -> Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RegistryError::Io(path.to_owned(), error)),
        }
        path.parent().map_or(Ok(()), trust)?;
        trust(path)?;
        let failed = |error| RegistryError::Failed(path.to_owned(), error);
        let Some(uri) = uri(path) else { return Self::open(path).map(Some) };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(uri, flags).map_err(failed)?;
        connection.busy_timeout(PATIENCE).map_err(failed)?;
        connection.pragma_update(None, "trusted_schema", false).map_err(failed)?;
        let registry = Self { connection, path: path.to_owned() };
        if registry.version()? == (APPLICATION, NEWEST) {
            return Ok(Some(registry));
        }
        drop(registry);
        Self::open(path).map(Some)
    }

    fn prepare(&mut self) -> Result<()> {
        let only_ours = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&self.path, only_ours)
            .map_err(|error| RegistryError::Io(self.path.clone(), error))?;
        self.sql(|connection| {
            connection.busy_timeout(PATIENCE)?;
            keep_wal(connection)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            // What stands in the file is data; no trigger or view of somebody else's runs.
            connection.pragma_update(None, "trusted_schema", false)
        })?;
        self.migrate()
    }

    /// All missing steps or none, with every other process shut out.
    fn migrate(&mut self) -> Result<()> {
        let path = self.path.clone();
        if self.version()? == (APPLICATION, NEWEST) {
            return Ok(());
        }
        let failed = |error| RegistryError::Failed(path.clone(), error);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Exclusive)
            .map_err(failed)?;
        let (application, done) = version(&transaction).map_err(failed)?;
        let is_empty = is_empty(&transaction).map_err(failed)?;
        if application != APPLICATION && !is_empty {
            return Err(RegistryError::Foreign(path));
        }
        let missing = usize::try_from(done).ok().and_then(|done| MIGRATIONS.get(done..));
        let Some(missing) = missing else {
            return Err(RegistryError::TooNew(path, done));
        };
        for step in missing {
            transaction.execute_batch(step).map_err(failed)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
        transaction.pragma_update(None, "user_version", NEWEST).map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    fn version(&self) -> Result<(i64, i64)> {
        self.sql(version)
    }

    fn sql<T>(&self, run: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        run(&self.connection).map_err(|error| RegistryError::Failed(self.path.clone(), error))
    }

    /// One change with the event that tells of it: both or neither.
    fn change<T>(&mut self, run: impl FnOnce(&Transaction<'_>, &Path) -> Result<T>) -> Result<T> {
        let path = self.path.clone();
        let failed = |error| RegistryError::Failed(path.clone(), error);
        // At once, so that nobody writes between our reading and our writing.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let value = run(&transaction, &path)?;
        transaction.commit().map_err(failed)?;
        Ok(value)
    }

    /// Which installation this is: what we start is labelled with it, so that no sibling's is taken for ours.
    pub fn instance_id(&self) -> Result<String> {
        self.sql(|connection| {
            let question = "SELECT value FROM meta WHERE key = 'instance_id'";
            connection.query_row(question, [], |row| row.get(0))
        })
    }

    /// Adds a model, where no other wants one of its ports. Answers with what else both want: GPUs, which may be shared.
    pub fn register(&mut self, name: &ModelName, spec: &Spec) -> Result<Vec<Conflict>> {
        let text = serde_json::to_string(spec)
            .map_err(|error| RegistryError::NoText(name.clone(), error.to_string()))?;
        let summary = format!("{} {} in the registry", spec.backend, spec.model);
        self.change(|transaction, path| {
            if record(transaction, path, name)?.is_some_and(|record| record.spec.is_some()) {
                return Err(RegistryError::Exists(name.clone()));
            }
            let all = records(transaction, path)?;
            let others = all.iter().filter_map(|r| Some((r.name.clone(), r.spec.as_ref()?)));
            let (refused, shared): (Vec<Conflict>, Vec<Conflict>) =
                conflicts(&others.collect::<Vec<_>>(), name, spec)
                    .into_iter()
                    .partition(Conflict::is_error);
            if !refused.is_empty() {
                return Err(RegistryError::Conflicts(refused));
            }
            let sql = "INSERT INTO models (name, spec, since_ms) VALUES (?1, ?2, ?3)
                       ON CONFLICT (name) DO UPDATE SET spec = excluded.spec";
            let failed = |error| RegistryError::Failed(path.to_owned(), error);
            transaction.execute(sql, params![name.0, text, now_ms()]).map_err(failed)?;
            tell(transaction, path, name, "registered", &summary)?;
            Ok(shared)
        })
    }

    /// Takes a model out; what is up is not to be forgotten.
    pub fn unregister(&mut self, name: &ModelName) -> Result<()> {
        self.change(|transaction, path| {
            let record = found(transaction, path, name)?;
            if record.state.is_up() {
                let step = Forbidden { from: record.state, to: State::Stopped };
                return Err(RegistryError::Forbidden(name.clone(), step));
            }
            let failed = |error| RegistryError::Failed(path.to_owned(), error);
            transaction.execute("DELETE FROM models WHERE name = ?1", [&name.0]).map_err(failed)?;
            tell(transaction, path, name, "unregistered", "taken out of the registry")
        })
    }

    /// Begins to lead a model to another state, if the present one allows it: nobody else may meanwhile. One that is only
    /// declared gets its row now.
    pub fn begin(
        &mut self,
        name: &ModelName,
        step: impl FnOnce(State) -> std::result::Result<State, Forbidden>,
        why: &str,
        worker: &Worker,
    ) -> Result<State> {
        self.change(|transaction, path| {
            let sql = "INSERT INTO models (name, since_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
            let failed = |error| RegistryError::Failed(path.to_owned(), error);
            transaction.execute(sql, params![name.0, now_ms()]).map_err(failed)?;
            lead(transaction, path, name, step, why, Some(worker))
        })
    }

    /// Ends what this worker began: the state in which it came to rest. Where it is stopped, its receipt goes with it: its
    /// container's name and its port are nobody's again. Of what failed something may be left, and the receipt says on which
    /// engine. Nothing is changed where somebody else has taken it over meanwhile.
    pub fn settle(
        &mut self,
        name: &ModelName,
        worker: &Worker,
        step: impl FnOnce(State) -> std::result::Result<State, Forbidden>,
        why: &str,
    ) -> Result<State> {
        self.change(|transaction, path| {
            led(transaction, path, name, worker)?;
            rest(transaction, path, name, step, why)
        })
    }

    /// The same, of a model that was looked at before and is still as it was then; whether it was.
    pub fn settle_if(&mut self, seen: &Record, to: State, why: &str) -> Result<bool> {
        self.change(|transaction, path| {
            let now = found(transaction, path, &seen.name)?;
            let is_same =
                (now.state, now.since_ms, &now.worker) == (seen.state, seen.since_ms, &seen.worker);
            if is_same {
                rest(transaction, path, &seen.name, |_| Ok(to), why)?;
            }
            Ok(is_same)
        })
    }

    /// Puts something on record that changes no state.
    pub fn record(&mut self, name: &ModelName, kind: &str, detail: &str) -> Result<()> {
        self.change(|transaction, path| tell(transaction, path, name, kind, detail))
    }

    /// A model by its name.
    pub fn get(&self, name: &ModelName) -> Result<Record> {
        found(&self.connection, &self.path, name)
    }

    /// Every model, by name.
    pub fn all(&self) -> Result<Vec<Record>> {
        records(&self.connection, &self.path)
    }

    /// The last events, the newest last; of one model, or of all.
    pub fn events(&self, of: Option<&ModelName>, most: usize) -> Result<Vec<Event>> {
        let question = "SELECT id, at_ms, model, kind, detail FROM events
                        WHERE ?1 IS NULL OR model = ?1 ORDER BY id DESC LIMIT ?2";
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut events = self.sql(|connection| {
            let mut statement = connection.prepare(question)?;
            let event = |row: &Row<'_>| {
                Ok(Event {
                    id: row.get(0)?,
                    at_ms: row.get(1)?,
                    model: ModelName(row.get(2)?),
                    kind: row.get(3)?,
                    detail: row.get(4)?,
                })
            };
            let rows = statement.query_map(params![of.map(|name| &name.0), most], event)?;
            rows.collect::<rusqlite::Result<Vec<Event>>>()
        })?;
        events.reverse();
        Ok(events)
    }

    /// What is wrong with the file; none where all is sound (`PRAGMA integrity_check`).
    pub fn damage(&self) -> Result<Option<String>> {
        let said: String = self.sql(|connection| {
            connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        })?;
        Ok((said != "ok").then_some(said))
    }
}

/// To read a database and make nothing beside it: in WAL mode its reader makes two files, unless it takes the database for one that
/// nobody writes (<https://www.sqlite.org/wal.html#read_only_databases>), as it is where these files are not there. None = its name
/// is no UTF-8.
pub(super) fn uri(path: &Path) -> Option<String> {
    let is_written = fs::symlink_metadata(path.with_extension("db-wal")).is_ok();
    let immutable = if is_written { "" } else { "&immutable=1" };
    Some(format!("file:{}?mode=ro{immutable}", escaped(path.to_str()?)))
}

/// As a URI has it (<https://www.sqlite.org/uri.html>).
fn escaped(path: &str) -> String {
    let may_stand = |b: u8| b.is_ascii_alphanumeric() || b"/._-~".contains(&b);
    let escape = |b: u8| if may_stand(b) { char::from(b).into() } else { format!("%{b:02X}") };
    path.bytes().map(escape).collect()
}

/// What others may write, or lead elsewhere, decides nothing here.
fn trust(path: &Path) -> Result<()> {
    let refused = |why: &str| Err(RegistryError::NotTrusted(path.to_owned(), why.to_owned()));
    match fs::symlink_metadata(path) {
        Ok(data) if data.file_type().is_symlink() => refused("it is a symbolic link"),
        Ok(data) if data.uid() != rustix::process::geteuid().as_raw() => {
            refused("it belongs to another user")
        }
        Ok(data) if data.mode() & 0o022 != 0 => refused("others may write to it"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RegistryError::Io(path.to_owned(), error)),
    }
}

fn version(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let of = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
    Ok((of("application_id")?, of("user_version")?))
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn rest(
    transaction: &Transaction<'_>,
    path: &Path,
    name: &ModelName,
    step: impl FnOnce(State) -> std::result::Result<State, Forbidden>,
    why: &str,
) -> Result<State> {
    let state = lead(transaction, path, name, step, why, None)?;
    if state == State::Stopped {
        receipts::drop_of(transaction, path, name)?;
    }
    Ok(state)
}

/// That this worker still leads it.
fn led(
    transaction: &Transaction<'_>,
    path: &Path,
    name: &ModelName,
    worker: &Worker,
) -> Result<()> {
    let record = found(transaction, path, name)?;
    if record.worker.as_ref() == Some(worker) {
        Ok(())
    } else {
        Err(RegistryError::TakenOver(name.clone(), record.state))
    }
}

fn lead(
    transaction: &Transaction<'_>,
    path: &Path,
    name: &ModelName,
    step: impl FnOnce(State) -> std::result::Result<State, Forbidden>,
    why: &str,
    worker: Option<&Worker>,
) -> Result<State> {
    let state = step(found(transaction, path, name)?.state)
        .map_err(|forbidden| RegistryError::Forbidden(name.clone(), forbidden))?;
    let worker = worker.map(serde_json::to_string).transpose();
    let worker = worker.map_err(|error| RegistryError::NoText(name.clone(), error.to_string()))?;
    let sql = "UPDATE models SET state = ?2, since_ms = ?3, why = ?4, worker = ?5 WHERE name = ?1";
    let failed = |error| RegistryError::Failed(path.to_owned(), error);
    transaction
        .execute(sql, params![name.0, state.word(), now_ms(), why, worker])
        .map_err(failed)?;
    tell(transaction, path, name, state.word(), why)?;
    Ok(state)
}

fn tell(
    transaction: &Transaction<'_>,
    path: &Path,
    name: &ModelName,
    kind: &str,
    detail: &str,
) -> Result<()> {
    let sql = "INSERT INTO events (at_ms, model, kind, detail) VALUES (?1, ?2, ?3, ?4)";
    let told = transaction.execute(sql, params![now_ms(), name.0, kind, detail]);
    told.map(|_| ()).map_err(|error| RegistryError::Failed(path.to_owned(), error))
}

/// A row as it stands.
struct Raw {
    name: String,
    spec: Option<String>,
    state: String,
    since_ms: i64,
    why: String,
    worker: Option<String>,
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw {
        name: row.get(0)?,
        spec: row.get(1)?,
        state: row.get(2)?,
        since_ms: row.get(3)?,
        why: row.get(4)?,
        worker: row.get(5)?,
    })
}

impl Raw {
    fn read(self, path: &Path) -> Result<Record> {
        let damaged = |what: String| RegistryError::Damaged(path.to_owned(), what);
        let Self { name, spec, state, since_ms, why, worker } = self;
        let spec = spec.map(|text| serde_json::from_str(&text)).transpose();
        let spec = spec.map_err(|error| damaged(format!("model '{name}': {error}")))?;
        let state = State::of_word(&state)
            .ok_or_else(|| damaged(format!("model '{name}' is in no known state, '{state}'")))?;
        let worker = worker.map(|text| serde_json::from_str(&text)).transpose();
        let worker = worker.map_err(|error| damaged(format!("model '{name}': {error}")))?;
        Ok(Record { name: ModelName(name), spec, state, since_ms, why, worker, is_declared: false })
    }
}

fn records(connection: &Connection, path: &Path) -> Result<Vec<Record>> {
    let question = "SELECT name, spec, state, since_ms, why, worker FROM models ORDER BY name";
    let rows = || {
        let mut statement = connection.prepare(question)?;
        statement.query_map([], raw)?.collect::<rusqlite::Result<Vec<Raw>>>()
    };
    let rows = rows().map_err(|error| RegistryError::Failed(path.to_owned(), error))?;
    rows.into_iter().map(|row| row.read(path)).collect()
}

fn record(connection: &Connection, path: &Path, name: &ModelName) -> Result<Option<Record>> {
    let question = "SELECT name, spec, state, since_ms, why, worker FROM models WHERE name = ?1";
    let row = connection.query_row(question, [&name.0], raw).optional();
    let row = row.map_err(|error| RegistryError::Failed(path.to_owned(), error))?;
    row.map(|row| row.read(path)).transpose()
}

fn found(connection: &Connection, path: &Path, name: &ModelName) -> Result<Record> {
    if let Some(record) = record(connection, path, name)? {
        return Ok(record);
    }
    let names = || -> rusqlite::Result<Vec<ModelName>> {
        let mut statement = connection.prepare("SELECT name FROM models ORDER BY name LIMIT 20")?;
        statement.query_map([], |row| row.get(0).map(ModelName))?.collect()
    };
    let names = names().map_err(|error| RegistryError::Failed(path.to_owned(), error))?;
    Err(RegistryError::NoModel(name.clone(), names))
}

#[cfg(test)]
mod tests;
