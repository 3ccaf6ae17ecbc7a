//! Where a report goes: standard output, or a file that is replaced in one step; and the files of a GitHub workflow's step.

use std::{
    ffi::{CStr, OsString},
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, fchmod, flock, fstat,
        openat, renameat, statat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use super::Failure;
use crate::report::{Style, github};

/// How and where to report.
#[derive(Debug, Clone, Args)]
pub(super) struct Output {
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
    /// Write the report to this file instead, replacing it in one step
    #[arg(long = "output", value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Write the JSON document to this file as well, replacing it in one step
    #[arg(long, value_name = "FILE")]
    pub(super) json_file: Option<PathBuf>,
    /// Write nothing to standard output when all is clear
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// Use no colour
    #[arg(long)]
    pub(super) no_color: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For a person
    Table,
    /// For a program: docs/schema/report-v1.json, of 'doctor' doctor-v1.json, of 'gate' gate-v1.json
    Json,
    /// For a step of a GitHub workflow: annotations, and the tables for its job summary
    Github,
    /// For node-problem-detector and others that keep little: one line of at most 80 bytes
    Line,
    /// For Prometheus: text for node_exporter's textfile collector
    Prometheus,
}

impl Output {
    /// How a person's table looks where this report goes.
    pub(super) fn style(&self, shows_evidence: bool) -> Style {
        let style = Style { shows_evidence, ..Style::of_stdout() };
        if self.file.is_some() { Style { width: None, is_coloured: false, ..style } } else { style }
    }

    /// Writes the document beside the report, where it is wanted.
    pub(super) fn put_document(
        &self,
        render: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let Some(path) = &self.json_file else { return Ok(()) };
        let mut text = Vec::new();
        render(&mut text)?;
        Ok(Destination::open(path)?.replace(&text)?)
    }
}

/// Where a report cannot go, or did not.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    #[error("'{}' names no file", .0.display())]
    NoName(PathBuf),
    #[error("the folder '{}' cannot be written to: {cause}", .0.display(), cause = .1)]
    Folder(PathBuf, #[source] io::Error),
    #[error("the folder '{}' is a symbolic link, which is not followed\nhint: name the folder itself", .0.display())]
    LinkedFolder(PathBuf),
    #[error("'{}' is a symbolic link, which is not followed\nhint: name the file itself", .0.display())]
    Link(PathBuf),
    #[error("'{}' is no regular file\nhint: for a pipe or a device use '>'", .0.display())]
    NotRegular(PathBuf),
    #[error("'{}' was left behind by another run\nhint: remove it", .0.display())]
    Leftover(PathBuf),
    #[error("the report cannot be written to '{}': {cause}", .0.display(), cause = .1)]
    Write(PathBuf, #[source] io::Error),
}

/// How the name of a file ends that is still being written.
const SUFFIX: &str = ".tmp";

/// A file that is to be replaced, checked before anything else is done.
#[derive(Debug)]
pub(super) struct Destination {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Destination {
    /// Opens the folder and looks at what the file is now: absent or a regular file, else it is refused. Whoever may write to the
    /// folder could otherwise have us, as root, write anywhere.
    pub(super) fn open(path: &Path) -> Result<Self, OutputError> {
        let name = path.file_name().ok_or_else(|| OutputError::NoName(path.to_owned()))?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(CWD, folder, flags, Mode::empty()).map_err(|errno| {
            // A link gives ELOOP, and with O_DIRECTORY ENOTDIR (open(2)).
            if matches!(errno, Errno::LOOP | Errno::NOTDIR) && folder.is_symlink() {
                OutputError::LinkedFolder(folder.to_owned())
            } else {
                OutputError::Folder(folder.to_owned(), errno.into())
            }
        })?;
        match statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(OutputError::Write(path.to_owned(), errno.into())),
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {}
                FileType::Symlink => return Err(OutputError::Link(path.to_owned())),
                FileType::Directory
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => return Err(OutputError::NotRegular(path.to_owned())),
            },
        }
        Ok(Self { folder: opened, name: name.to_owned(), path: path.to_owned() })
    }

    /// Writes beside the file, then puts the new one in its place: a reader sees the old one or the new one. Where that fails the
    /// old one stays.
    pub(super) fn replace(&self, text: &[u8]) -> Result<(), OutputError> {
        self.sweep();
        let mode = Mode::from_raw_mode(0o644);
        let (beside, file) = self.create(mode)?;
        let written = fill(&file, mode, text)
            .and_then(|()| Ok(renameat(&self.folder, &beside, &self.folder, &self.name)?));
        if let Err(cause) = written {
            let _ = unlinkat(&self.folder, &beside, AtFlags::empty());
            return Err(OutputError::Write(self.path.clone(), cause));
        }
        // The new name outlives a crash, too, as far as the file system keeps its word.
        let _ = rustix::fs::fsync(&self.folder);
        Ok(())
    }

    /// A new file beside it, locked as long as it is open. Where no lock can be had nobody else gets one, and none is swept away.
    fn create(&self, mode: Mode) -> Result<(OsString, File), OutputError> {
        let mut name = self.prefix();
        name.push(format!("{}{SUFFIX}", std::process::id()));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let file = match openat(&self.folder, &name, flags, mode) {
                Ok(file) => File::from(file),
                // It may be that of a run in another pid namespace, which is still writing it.
                Err(Errno::EXIST) => {
                    return Err(OutputError::Leftover(self.path.with_file_name(&name)));
                }
                Err(errno) => return Err(OutputError::Write(self.path.clone(), errno.into())),
            };
            let lock = flock(&file, FlockOperation::NonBlockingLockExclusive);
            // Another run may have taken it for a dead one's before it was locked.
            let is_swept =
                lock == Err(Errno::WOULDBLOCK) || fstat(&file).is_ok_and(|stat| stat.st_nlink == 0);
            if !is_swept {
                return Ok((name, file));
            }
        }
    }

    fn prefix(&self) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(&self.name);
        prefix.push(".");
        prefix
    }

    /// Takes away what runs that were killed had begun to write: where that happens again and again the folder would fill up, and
    /// one day a pid comes back.
    fn sweep(&self) {
        let Ok(entries) = Dir::read_from(&self.folder) else { return };
        let prefix = self.prefix();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let rest = name.to_bytes().strip_prefix(prefix.as_bytes());
            let pid = rest.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
            if pid.is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit)) {
                let _ = self.remove_if_dead(name);
            }
        }
    }

    /// A file of ours that nobody has locked: its writer is dead, or about to lock it, and then makes another. What is opened is
    /// not written to.
    fn remove_if_dead(&self, name: &CStr) -> rustix::io::Result<()> {
        let is_ours = |stat: &Stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_uid == geteuid().as_raw()
        };
        let seen = statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_ours(&seen) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.folder, name, flags, Mode::empty())?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let now = statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let opened = fstat(&file)?;
        if (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino) {
            unlinkat(&self.folder, name, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn fill(mut file: &File, mode: Mode, text: &[u8]) -> io::Result<()> {
    // Whatever the umask is: the reader is another user.
    fchmod(file, mode)?;
    file.write_all(text)?;
    file.sync_all()
}

/// Appends to the job summary of a GitHub step, where there is one. `text` is asked for as much as there is room for. Beyond 1 MiB
/// the platform shows nothing of the step's summary at all.
pub(super) fn append_summary(text: impl FnOnce(usize) -> String) {
    append_to("GITHUB_STEP_SUMMARY", "the job summary", github::MOST_SUMMARY_BYTES, text);
}

/// Appends to the outputs of a GitHub step, where there are some: `NAME=NUMBER` a line. The platform takes 1 MiB of a job's.
pub(super) fn append_outputs(outputs: &[github::StepOutput]) {
    append_to("GITHUB_OUTPUT", "the step's outputs", 1 << 20, |_| {
        let lines: Vec<String> = outputs.iter().map(|(name, n)| format!("{name}={n}\n")).collect();
        lines.concat()
    });
}

fn append_to(variable: &str, what: &str, most: usize, text: impl FnOnce(usize) -> String) {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) else {
        return;
    };
    if let Err(cause) = append(Path::new(&path), most, text) {
        let path = Path::new(&path).display();
        // The report itself is whole: what it says still counts.
        super::warn(&format!("{what} '{path}' cannot be written: {cause}"));
    }
}

fn append(path: &Path, most: usize, text: impl FnOnce(usize) -> String) -> io::Result<()> {
    // A FIFO without a reader would have us wait.
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::APPEND
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::from_raw_mode(0o644))?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no regular file"));
    }
    let taken = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    let room = most.saturating_sub(taken);
    let text = text(room);
    if text.len() > room {
        return Err(io::Error::other("it is full"));
    }
    File::from(file).write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs};

    #[test]
    fn what_a_killed_run_began_to_write_is_removed_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let own = format!(".report.{}.tmp", std::process::id());
        let others =
            [".report.2.tmp", ".report.x.tmp", ".report..tmp", ".reporter.1.tmp", ".report.1"];
        for name in others.into_iter().chain([".report.1.tmp", &own]) {
            fs::write(path(name), "half").unwrap();
        }
        std::os::unix::fs::symlink(path(".report.1"), path(".report.3.tmp")).unwrap();
        let living = File::open(path(".report.2.tmp")).unwrap();
        flock(&living, FlockOperation::NonBlockingLockExclusive).unwrap();

        Destination::open(&path("report")).unwrap().replace(b"whole").unwrap();
        let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: BTreeSet<String> = left.map(|name| name.into_string().unwrap()).collect();
        let expected = others.into_iter().chain([".report.3.tmp", "report"]).map(str::to_owned);
        assert_eq!(left, expected.collect());
        assert_eq!(fs::read(path("report")).unwrap(), b"whole");
    }
}
