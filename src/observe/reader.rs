//! Reading one file of many processes, where any of them may be sick: a read of `cmdline` or `environ` takes the
//! target's memory lock and may block (proc_pid_cmdline(5)); each has a deadline.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use crate::{
    host::{Host, seen},
    ident::Pid,
    snapshot::Seen,
};

/// Reads of a sick process's memory block on its lock; a healthy one takes microseconds.
const READ_DEADLINE: Duration = Duration::from_millis(100);
/// What is read of a file at most: of arguments and environment the kernel allows at all is 6 MiB (`MAX_ARG_STRLEN`, execve(2)).
const MOST_BYTES: u64 = 8 << 20;
const MOST_READERS: usize = 2;

/// Who reads what.
struct Queue {
    next: usize,
    /// What each reader has in hand; those that were written off are missing.
    in_hand: BTreeMap<usize, Option<Pid>>,
}
/// What the readers share.
struct Work<F> {
    host: Host,
    pids: Vec<Pid>,
    file: &'static str,
    read: F,
    queue: Mutex<Queue>,
}
impl<F> Work<F> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next process for this reader; none when all are taken, or when it was written off.
    fn take(&self, reader: usize) -> Option<Pid> {
        let mut queue = self.queue();
        let pid = self.pids.get(queue.next).copied();
        let in_hand = queue.in_hand.get_mut(&reader)?;
        *in_hand = pid;
        queue.next += usize::from(pid.is_some());
        pid
    }

    /// Writes a reader off, unless it has gone on to another process meanwhile.
    fn give_up(&self, reader: usize, pid: Pid) -> bool {
        let mut queue = self.queue();
        let is_stuck = queue.in_hand.get(&reader) == Some(&Some(pid));
        if is_stuck {
            queue.in_hand.remove(&reader);
        }
        is_stuck
    }
}
/// What a reader tells.
enum News<T> {
    Began(usize, Pid),
    Read(usize, Pid, Seen<T>),
    Finished(usize),
}

/// Reads `/proc/PID/file` of many processes on a few threads. A thread that hangs in one read longer than
/// [`READ_DEADLINE`] is written off with that process, and two others take its place: a thousand sick
/// processes cost ten deadlines, not a thousand.
pub(super) fn read_with_deadline<T: Send + 'static>(
    host: &Host,
    pids: &[Pid],
    file: &'static str,
    read: impl Fn(Vec<u8>) -> T + Send + Sync + 'static,
) -> BTreeMap<Pid, Seen<T>> {
    let queue = Mutex::new(Queue { next: 0, in_hand: BTreeMap::new() });
    let work = Arc::new(Work { host: host.clone(), pids: pids.to_vec(), file, read, queue });
    let (send, receive) = mpsc::channel();
    let start = |reader: usize| {
        work.queue().in_hand.insert(reader, None);
        let (work, send) = (Arc::clone(&work), send.clone());
        let run = move || {
            while let Some(pid) = work.take(reader) {
                if send.send(News::Began(reader, pid)).is_err() {
                    return; // nobody waits any more
                }
                let bytes = seen(read_limited(&work.host.of_process(pid, work.file)));
                let _ = send.send(News::Read(reader, pid, bytes.map(&work.read)));
            }
            let _ = send.send(News::Finished(reader));
        };
        std::thread::Builder::new().name("portreeve-read".to_owned()).spawn(run).is_ok()
    };
    let mut answers = BTreeMap::new();
    let mut busy: BTreeMap<usize, Option<(Pid, Instant)>> = BTreeMap::new();
    let mut readers = 0;
    let mut add_reader = |busy: &mut BTreeMap<usize, _>| {
        if start(readers) {
            busy.insert(readers, None);
        }
        readers += 1;
    };
    for _ in 0..MOST_READERS.min(pids.len().div_ceil(64)) {
        add_reader(&mut busy);
    }
    while !busy.is_empty() {
        match receive.recv_timeout(READ_DEADLINE) {
            Ok(News::Began(reader, pid)) => {
                if let Some(doing) = busy.get_mut(&reader) {
                    *doing = Some((pid, Instant::now()));
                }
            }
            Ok(News::Read(reader, pid, answer)) => {
                // Late is better than never, as long as we wait for others anyway.
                answers.insert(pid, answer);
                if let Some(doing) = busy.get_mut(&reader) {
                    *doing = None;
                }
            }
            Ok(News::Finished(reader)) => {
                busy.remove(&reader);
            }
            Err(_) => {
                let late: Vec<(usize, Pid)> = busy
                    .iter()
                    .filter_map(|(&reader, doing)| Some((reader, (*doing)?)))
                    .filter(|(_, (_, since))| since.elapsed() >= READ_DEADLINE)
                    .map(|(reader, (pid, _))| (reader, pid))
                    .collect();
                for (reader, pid) in late {
                    if !work.give_up(reader, pid) {
                        continue;
                    }
                    busy.remove(&reader);
                    let why =
                        format!("the process did not let it be read within {READ_DEADLINE:?}");
                    answers.insert(pid, Seen::Unreadable(why));
                    add_reader(&mut busy);
                    add_reader(&mut busy);
                }
            }
        }
    }
    for &pid in pids {
        let lost = || Seen::Unreadable("no thread could be started to read it".to_owned());
        answers.entry(pid).or_insert_with(lost);
    }
    answers
}

fn read_limited(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}
