//! Reading files of many processes, where any of them may be sick: a read of `cmdline` or `environ` takes the
//! target's memory lock and may block (proc_pid_cmdline(5)); each has a deadline.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
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
/// What a reader's buffer begins with.
const USUAL_BYTES: usize = 4096;
const MOST_READERS: usize = 2;

/// Who reads what, and what was read.
struct Queue<T> {
    next: usize,
    /// What each reader has in hand, and since when; those that were written off or have finished are missing.
    in_hand: BTreeMap<usize, Option<(Pid, Instant)>>,
    answers: BTreeMap<Pid, Seen<T>>,
}
/// What the readers share.
struct Work<F, T> {
    pids: Vec<Pid>,
    read: F,
    queue: Mutex<Queue<T>>,
    /// Told when a reader finishes, not at each answer: thousands would wake whoever waits.
    finished: Condvar,
}
impl<F: Fn(Pid, &mut Vec<u8>) -> Seen<T>, T> Work<F, T> {
    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one process after the other, until all are taken or this reader was written off.
    fn run(&self, reader: usize) {
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        let mut next = self.take(reader, None);
        while let Some(pid) = next {
            let answer = (self.read)(pid, &mut bytes);
            next = self.take(reader, Some((pid, answer)));
        }
    }

    /// Hands an answer in and takes the next process.
    fn take(&self, reader: usize, answer: Option<(Pid, Seen<T>)>) -> Option<Pid> {
        let mut queue = self.queue();
        // Late is better than never, as long as others are waited for anyway.
        queue.answers.extend(answer);
        let pid = self.pids.get(queue.next).copied();
        let in_hand = queue.in_hand.get_mut(&reader)?;
        *in_hand = pid.map(|pid| (pid, Instant::now()));
        queue.next += usize::from(pid.is_some());
        if pid.is_none() {
            queue.in_hand.remove(&reader);
            self.finished.notify_one();
        }
        pid
    }
}

/// Reads `/proc/PID/file` of many processes, each within the deadline.
pub(super) fn read_with_deadline<T: Send + 'static>(
    host: &Host,
    pids: &[Pid],
    file: &'static str,
    read: impl Fn(&mut Vec<u8>) -> T + Send + Sync + 'static,
) -> BTreeMap<Pid, Seen<T>> {
    let host = host.clone();
    look_with_deadline(pids, move |pid, bytes| {
        let done = read_limited(&host.of_process(pid, file), bytes);
        seen(done).map(|()| read(bytes))
    })
}

/// Looks at many processes on a few threads, each of which has a buffer for what it reads. A thread that hangs in one look
/// longer than [`READ_DEADLINE`] is written off with that process, and two others take its place: a thousand sick processes
/// cost ten deadlines, not a thousand.
pub(super) fn look_with_deadline<T: Send + 'static>(
    pids: &[Pid],
    read: impl Fn(Pid, &mut Vec<u8>) -> Seen<T> + Send + Sync + 'static,
) -> BTreeMap<Pid, Seen<T>> {
    let queue = Queue { next: 0, in_hand: BTreeMap::new(), answers: BTreeMap::new() };
    let work = Arc::new(Work {
        pids: pids.to_vec(),
        read,
        queue: Mutex::new(queue),
        finished: Condvar::new(),
    });
    let mut readers = 0;
    let mut add_reader = |queue: &mut Queue<T>| {
        let (shared, reader) = (Arc::clone(&work), readers);
        let run = move || shared.run(reader);
        readers += 1;
        if std::thread::Builder::new().name("portreeve-read".to_owned()).spawn(run).is_ok() {
            queue.in_hand.insert(reader, None);
        }
    };
    let mut queue = work.queue();
    for _ in 0..MOST_READERS.min(pids.len().div_ceil(64)) {
        add_reader(&mut queue);
    }
    while !queue.in_hand.is_empty() {
        // As long as one of them gets on, the others are waited for.
        let left = |(_, since): &(Pid, Instant)| READ_DEADLINE.saturating_sub(since.elapsed());
        let wait = queue.in_hand.values().flatten().map(left).max().unwrap_or(READ_DEADLINE);
        let woken = work.finished.wait_timeout(queue, wait);
        (queue, _) = woken.unwrap_or_else(PoisonError::into_inner);
        if queue.in_hand.values().flatten().any(|doing| !left(doing).is_zero()) {
            continue;
        }
        let in_hand = queue.in_hand.iter();
        let late: Vec<(usize, Pid)> =
            in_hand.filter_map(|(&reader, doing)| Some((reader, (*doing)?.0))).collect();
        for (reader, pid) in late {
            queue.in_hand.remove(&reader);
            let why = format!("the process did not let it be read within {READ_DEADLINE:?}");
            queue.answers.insert(pid, Seen::Unreadable(why));
            add_reader(&mut queue);
            add_reader(&mut queue);
        }
    }
    let mut answers = std::mem::take(&mut queue.answers);
    for &pid in pids {
        let lost = || Seen::Unreadable("no thread could be started to read it".to_owned());
        answers.entry(pid).or_insert_with(lost);
    }
    answers
}

/// Reads a file into the buffer, from its beginning.
pub(super) fn read_limited(path: &std::path::Path, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    bytes.clear();
    fs::File::open(path)?.take(MOST_BYTES).read_to_end(bytes)?;
    Ok(())
}
