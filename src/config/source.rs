//! The layers of the configuration as files: which there are, who may write them, what they say.
//!
//! A privileged run ends processes on the word of these files, so it takes that word from root only. Every directory and link
//! on the way is opened and judged by its own descriptor, the file is read from the descriptor that was judged: nothing can
//! be exchanged between the look and the reading.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat},
    io::Errno,
};

use super::{
    fragment::Place,
    problem::{Excerpt, Problem, shown},
};

/// Rank of the default inside the binary.
pub(super) const DEFAULT_LAYER: usize = 0;
/// Larger than any configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Where distributions, Docker's own packages and administrators put programs; the last two are NixOS's.
const FOLDERS: [&str; 8] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/run/wrappers/bin",
    "/run/current-system/sw/bin",
];

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The directory of `config.yaml` and `conf.d`, usually `/etc/portreeve`.
    pub etc: PathBuf,
    /// `--config FILE`.
    pub explicit: Option<PathBuf>,
    /// Whether this run has rights that others have not (euid 0).
    pub is_privileged: bool,
    /// How compose is asked, where a file names one.
    pub programs: Programs,
}

/// Other programs that a configuration asks.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Where they are looked for, in this order.
    pub folders: Vec<PathBuf>,
    /// How long one may take from its start to its exit.
    pub timeout: Duration,
}

impl Default for Programs {
    fn default() -> Self {
        // Compose takes some 25 to 300 ms.
        let timeout = Duration::from_secs(10);
        Self { folders: FOLDERS.map(PathBuf::from).to_vec(), timeout }
    }
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            etc: PathBuf::from("/etc/portreeve"),
            explicit: None,
            is_privileged: rustix::process::geteuid().is_root(),
            programs: Programs::default(),
        }
    }
}

/// Who said something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The default inside the binary.
    Default,
    /// This file.
    File(PathBuf),
    /// The compose files that this file names.
    Compose(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => f.write_str(&shown(path)),
            Self::Compose(path) => write!(f, "compose of {}", shown(path)),
        }
    }
}

/// One layer in effect.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Who said it.
    pub origin: Origin,
    /// What was said.
    pub text: String,
}

impl Layer {
    /// The layer of the compose files that this one names; its places are those of the `compose:` entries.
    pub(super) fn below(&self) -> Self {
        let origin = match &self.origin {
            Origin::Default => Origin::Default,
            Origin::File(path) | Origin::Compose(path) => Origin::Compose(path.clone()),
        };
        Self { origin, text: self.text.clone() }
    }

    pub(super) fn problem(&self, place: Place, message: String, hint: Option<String>) -> Problem {
        let excerpt = Some(Excerpt::new(&self.text, place.line, place.start, place.end));
        let file = match &self.origin {
            Origin::Default => self.origin.to_string(),
            Origin::File(path) | Origin::Compose(path) => shown(path),
        };
        Problem { layer: place.layer, file, excerpt, message, hint }
    }
}

/// The layers from the lowest to the highest, and every file that could not be read.
pub(super) fn read_layers(sources: &Sources) -> (Vec<Layer>, Vec<Problem>) {
    let mut layers = vec![Layer {
        origin: Origin::Default,
        text: include_str!("../../config/default.yaml").to_owned(),
    }];
    let mut problems = Vec::new();
    let base = sources.etc.join("config.yaml");
    let mut paths = if is_missing(&base) { Vec::new() } else { vec![base] };
    list_conf_d(&sources.etc.join("conf.d"), &mut paths, &mut problems);
    paths.extend(sources.explicit.clone());
    for path in paths {
        match read_file(&path, sources.is_privileged) {
            Ok(text) => layers.push(Layer { origin: Origin::File(path), text }),
            Err(refusal) => problems.push(refusal.about(layers.len(), &path)),
        }
    }
    (layers, problems)
}

/// Why a file is not read.
enum Refusal {
    /// The reason, and what to do.
    File(String, Option<String>),
    /// The reason, and where in the file it stands.
    Content(String, Excerpt),
}

impl Refusal {
    fn about(self, layer: usize, path: &Path) -> Problem {
        let (message, hint, excerpt) = match self {
            Self::File(message, hint) => (message, hint, None),
            Self::Content(message, excerpt) => (message, None, Some(excerpt)),
        };
        Problem { layer, file: shown(path), excerpt, message, hint }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let text = error.to_string();
        let reason = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        Self::File(format!("cannot be read: {reason}"), None)
    }
}

/// Whether nothing is there, not even a link that leads nowhere: that one somebody meant to be read.
pub(super) fn is_missing(path: &Path) -> bool {
    let looked = fs::symlink_metadata(path).map_err(|error| error.kind());
    matches!(looked, Err(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}

/// Adds the files of `conf.d` in the order of their names.
fn list_conf_d(directory: &Path, paths: &mut Vec<PathBuf>, problems: &mut Vec<Problem>) {
    let listed = fs::read_dir(directory)
        .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect());
    let mut names: Vec<OsString> = match listed {
        Ok(names) => names,
        Err(_) if is_missing(directory) => return,
        Err(error) => return problems.push(Refusal::from(error).about(paths.len(), directory)),
    };
    // Editors keep their own files beside the one that they edit.
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort();
    for path in names.into_iter().map(|name| directory.join(name)) {
        match path.extension().and_then(OsStr::to_str) {
            Some("yaml") => paths.push(path),
            Some("yml") => {
                let hint = format!("rename it to '{}'", shown(&path.with_extension("yaml")));
                let refusal =
                    Refusal::File("is not read here, only *.yaml is".to_owned(), Some(hint));
                problems.push(refusal.about(paths.len(), &path));
            }
            Some(_) | None => {}
        }
    }
}

/// Whether a file that another program is to read would be read here; else why not, and what to do. Where nobody but root
/// can change the way to it, that program finds the same file.
pub(super) fn check(path: &Path, is_privileged: bool) -> Result<(), (String, Option<String>)> {
    open(path, is_privileged).map(drop).map_err(|refusal| match refusal {
        Refusal::File(reason, hint) => (reason, hint),
        Refusal::Content(reason, _) => (reason, None),
    })
}

fn open(path: &Path, is_privileged: bool) -> Result<OwnedFd, Refusal> {
    let descriptor =
        if is_privileged { open_trusted(path)? } else { openat(CWD, path, READ, Mode::empty())? };
    let stat = fstat(&descriptor)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Refusal::File("is no regular file".to_owned(), None));
    }
    Ok(descriptor)
}

fn read_file(path: &Path, is_privileged: bool) -> Result<String, Refusal> {
    let descriptor = open(path, is_privileged)?;
    let mut bytes = Vec::new();
    let mut file = fs::File::from(descriptor).take(MAX_FILE_BYTES + 1);
    file.read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Refusal::File(
            "is larger than 1 MiB, which no configuration is".to_owned(),
            None,
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let bytes = error.into_bytes();
        let mut text = String::from_utf8_lossy(bytes.get(..valid).unwrap_or_default()).into_owned();
        text.push(char::REPLACEMENT_CHARACTER);
        let line = text.lines().count();
        let bad = bytes.get(valid).copied().unwrap_or_default();
        Refusal::Content(
            format!("not UTF-8: byte 0x{bad:02x}"),
            Excerpt::new(&text, line, valid, text.len()),
        )
    })?;
    // A byte order mark is no text (YAML 1.2 §5.2).
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Without waiting for the writer of a pipe.
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Opens a file that nobody but root can change, by none of the directories and links that lead to it.
fn open_trusted(path: &Path) -> Result<OwnedFd, Refusal> {
    let absolute = std::path::absolute(path)?;
    let mut ahead: Vec<OsString> = Vec::new();
    push_reversed(&mut ahead, &absolute);
    let mut at = PathBuf::from("/");
    let mut directory = openat(CWD, "/", LOOK, Mode::empty())?;
    trust(&fstat(&directory)?, &at)?;
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        let here = at.join(&name);
        let next = openat(&directory, &name, LOOK, Mode::empty())?;
        let stat = fstat(&next)?;
        trust(&stat, &here)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&next, "", Vec::new())?;
                let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    directory = openat(CWD, "/", LOOK, Mode::empty())?;
                    at = PathBuf::from("/");
                }
                push_reversed(&mut ahead, &target);
            }
            FileType::Directory => {
                directory = next;
                if name == ".." {
                    at.pop();
                } else {
                    at = here;
                }
            }
            FileType::RegularFile if ahead.is_empty() => {
                let file = openat(&directory, &name, READ | OFlags::NOFOLLOW, Mode::empty())?;
                trust(&fstat(&file)?, &here)?;
                return Ok(file);
            }
            FileType::RegularFile
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                if !ahead.is_empty() {
                    return Err(Errno::NOTDIR.into());
                }
                break;
            }
        }
    }
    Err(Refusal::File("is no regular file".to_owned(), None))
}

fn push_reversed(ahead: &mut Vec<OsString>, path: &Path) {
    ahead.extend(path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
}

/// Whether nobody but root can change what is at this path. In a sticky directory others can add entries, but neither
/// replace nor remove root's.
fn trust(stat: &Stat, path: &Path) -> Result<(), Refusal> {
    let mode = stat.st_mode & 0o7777;
    let path = shown(path);
    if stat.st_uid != 0 {
        let reason = format!(
            "refused, since root runs this and '{path}' belongs to uid {} (mode {mode:04o})",
            stat.st_uid
        );
        return Err(Refusal::File(reason, Some(format!("chown -h root '{path}'"))));
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_sticky_directory = kind == FileType::Directory && mode & 0o1000 != 0;
    if mode & 0o022 == 0 || is_sticky_directory || kind == FileType::Symlink {
        return Ok(());
    }
    let reason = format!(
        "refused, since root runs this and others than root may write '{path}' (mode {mode:04o}, owner {}:{})",
        stat.st_uid, stat.st_gid
    );
    Err(Refusal::File(reason, Some(format!("chmod go-w '{path}'"))))
}
