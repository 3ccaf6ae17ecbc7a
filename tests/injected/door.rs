//! A kernel that errs: the calls by which a thread reads files are handed to us (seccomp_unotify(2)) and answered as the plan
//! says, the rest goes on to the kernel. What errs so is the code as it ships; no seam in it knows of this.

#![allow(unsafe_code, reason = "it plays the kernel")]

use std::{
    mem, ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

/// What comes of the call that is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails.
    Errno(i32),
    /// A read gives some bytes only; the rest comes with the next, as read(2) may do.
    Short,
    /// A file ends after some bytes, a listing where it begins.
    Cut(u64),
}

/// Which call errs: the nth, or all from there on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) fault: Fault,
    pub(super) first: usize,
    pub(super) stays: bool,
}

/// What happened since the plan was made.
#[derive(Debug, Default, Clone)]
pub(super) struct Told {
    /// Calls that were made.
    pub(super) calls: usize,
    /// Of these, what was done to which.
    pub(super) struck: Vec<String>,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    told: Told,
    /// A file that has ended.
    ended: Option<u64>,
}

/// How the filtered thread orders its next run.
#[derive(Clone)]
pub(super) struct Door(Arc<Mutex<State>>);

impl Door {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs this with calls that err by this plan; none = as they are.
    pub(super) fn run<T>(&self, plan: Option<Plan>, run: impl FnOnce() -> T) -> (T, Told) {
        *self.state() = State { plan, ..State::default() };
        let done = run();
        (done, mem::take(&mut *self.state()).told)
    }
}

const LISTENER: libc::c_ulong = 1 << 3;
const CONTINUE: u32 = 1;
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): without it each call costs three times as much.
const SYNC_WAKE_UP: libc::c_ulong = 1;
const SET_FLAGS: libc::c_ulong = 0x4008_2104;
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// The calls that read files: by path, by descriptor. Not statx(2), by which std only guesses how long a file is.
fn calls() -> Vec<libc::c_long> {
    let mut calls = vec![
        libc::SYS_openat,
        libc::SYS_read,
        libc::SYS_readlinkat,
        libc::SYS_getdents64,
        libc::SYS_newfstatat,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_open, libc::SYS_readlink, libc::SYS_stat, libc::SYS_lstat]);
    calls
}

/// Runs this on a thread whose reads go through a door; says why none can be had here.
pub(super) fn through<T: Send + 'static>(
    run: impl FnOnce(&Door) -> T + Send + 'static,
) -> Result<T, String> {
    let door = Door(Arc::default());
    let (send, receive) = std::sync::mpsc::channel();
    let inner = door.clone();
    let filtered = thread::spawn(move || {
        let listener = filter();
        let has_one = listener.is_ok();
        // Nobody answers yet: until the first run nothing of this thread may read a file.
        send.send(listener).expect("the other end waits");
        has_one.then(|| run(&inner))
    });
    let listener = receive.recv().expect("the thread lives")?;
    let answering = thread::spawn(move || answer(listener, &door));
    let done = filtered.join().map_err(|why| {
        let text = why.downcast_ref::<String>().cloned();
        text.unwrap_or_else(|| "it panicked".to_owned())
    });
    answering.join().expect("it ends with its last thread");
    match done {
        Ok(done) => done.ok_or_else(|| "no filter".to_owned()),
        Err(why) => panic!("{why}"),
    }
}

/// Puts this thread, and those that it starts, behind the door.
fn filter() -> Result<i32, String> {
    let jump = |call: libc::c_long, to: u8| libc::sock_filter {
        code: u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K).unwrap(),
        jt: to,
        jf: 0,
        k: u32::try_from(call).unwrap(),
    };
    let give = |value: u32| libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap(),
        jt: 0,
        jf: 0,
        k: value,
    };
    let load = u16::try_from(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS).unwrap();
    // The number of the call stands first in `struct seccomp_data`.
    let mut code = vec![libc::sock_filter { code: load, jt: 0, jf: 0, k: 0 }];
    let calls = calls();
    for (n, &call) in calls.iter().enumerate() {
        code.push(jump(call, u8::try_from(calls.len() - n).unwrap()));
    }
    code.push(give(libc::SECCOMP_RET_ALLOW));
    code.push(give(libc::SECCOMP_RET_USER_NOTIF));
    let program =
        libc::sock_fprog { len: code.len().try_into().unwrap(), filter: code.as_mut_ptr() };
    // SAFETY: five integers, and nothing is written.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program lives until the call returns, which copies it.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            LISTENER,
            &raw const program,
        )
    };
    if listener < 0 {
        return Err(format!("no reads can be intercepted: {}", std::io::Error::last_os_error()));
    }
    Ok(i32::try_from(listener).unwrap())
}

/// Answers until the last thread behind the door has ended.
fn answer(listener: i32, door: &Door) {
    // SAFETY: two integers; the listener stays open until the end of this function.
    unsafe { libc::ioctl(listener, SET_FLAGS, SYNC_WAKE_UP) };
    loop {
        let mut ready = libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 };
        // SAFETY: one `pollfd`, alive for the call.
        unsafe { libc::poll(&raw mut ready, 1, -1) };
        if ready.revents & libc::POLLIN == 0 {
            break;
        }
        // SAFETY: all zeros are a value of this struct of integers.
        let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one such struct, alive for the call.
        if unsafe { libc::ioctl(listener, RECEIVE, &raw mut call) } != 0 {
            continue;
        }
        // SAFETY: all zeros are a value of this struct of integers.
        let mut reply: libc::seccomp_notif_resp = unsafe { mem::zeroed() };
        reply.id = call.id;
        match reply_to(&call.data, door) {
            Reply::GoOn => reply.flags = CONTINUE,
            Reply::Fail(errno) => reply.error = -errno,
            Reply::Give(value) => reply.val = value,
        }
        // SAFETY: the kernel reads one such struct, alive for the call.
        unsafe { libc::ioctl(listener, SEND, &raw mut reply) };
    }
    // SAFETY: nobody else has this descriptor.
    unsafe { libc::close(listener) };
}

enum Reply {
    GoOn,
    Fail(i32),
    Give(i64),
}

fn reply_to(call: &libc::seccomp_data, door: &Door) -> Reply {
    let number = libc::c_long::from(call.nr);
    let mut state = door.state();
    state.told.calls += 1;
    // Once: who was told of the end reads no further, and the next file may have the same number.
    if number == libc::SYS_read && state.ended.take_if(|ended| *ended == call.args[0]).is_some() {
        return Reply::Give(0);
    }
    let now = state.told.calls;
    let Some(Plan { fault, first, stays }) = state.plan else { return Reply::GoOn };
    if now != first && !(stays && now > first) {
        return Reply::GoOn;
    }
    let is_read = number == libc::SYS_read;
    let reply = match fault {
        Fault::Errno(errno) => Reply::Fail(errno),
        Fault::Short if is_read => Reply::Give(some_bytes(call, 7)),
        Fault::Cut(most) if is_read => {
            state.ended = Some(call.args[0]);
            Reply::Give(some_bytes(call, most))
        }
        Fault::Cut(_) if number == libc::SYS_getdents64 => Reply::Give(0),
        Fault::Short | Fault::Cut(_) => return Reply::GoOn,
    };
    // SAFETY: the caller waits for our answer, and its memory is ours: the path is a string of its.
    let what = unsafe { named(number, call) };
    state.told.struck.push(what);
    reply
}

/// The first bytes of what a file has next.
fn some_bytes(call: &libc::seccomp_data, most: u64) -> i64 {
    let (descriptor, most) = (i32::try_from(call.args[0]).unwrap(), call.args[2].min(most));
    let into = ptr::with_exposed_provenance_mut(usize::try_from(call.args[1]).unwrap());
    // SAFETY: descriptors and memory are shared by all threads, and whoever asked has room for this.
    let length = unsafe { libc::read(descriptor, into, usize::try_from(most).unwrap()) };
    i64::try_from(length).unwrap()
}

/// What a call was about, for a person.
// SAFETY: whoever calls promises that the path of this call is a string that is alive.
unsafe fn named(number: libc::c_long, call: &libc::seccomp_data) -> String {
    let by_descriptor = [libc::SYS_read, libc::SYS_getdents64];
    if by_descriptor.contains(&number) {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", call.args[0]));
        return format!("{number} {}", path.unwrap_or_default().display());
    }
    let has_folder = [libc::SYS_openat, libc::SYS_readlinkat, libc::SYS_newfstatat];
    let path = call.args[usize::from(has_folder.contains(&number))];
    let path: *const libc::c_char = ptr::with_exposed_provenance(usize::try_from(path).unwrap());
    // SAFETY: as the caller says.
    let path = unsafe { std::ffi::CStr::from_ptr(path) };
    format!("{number} {}", path.to_string_lossy())
}
