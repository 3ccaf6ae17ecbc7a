//! Runs a command and kills it with SIGKILL at a chosen moment: before or behind one of its system calls, or after a time.
//!
//! ```text
//! killer --word FILE [--before N | --behind N] [--deeds] [--after MICROSECONDS] -- COMMAND…
//! ```
//!
//! | option | effect |
//! |---|---|
//! | `--before N`, `--behind N` | before its N-th system call is carried out, or once it is; all of its threads are counted together |
//! | `--deeds` | only those are counted that change something outside of it: files, sockets, signals, processes |
//! | `--after MICROSECONDS` | at that time, untraced |
//! | `--with CGROUP` | every portreeve of this control group is killed with it |
//! | `--word FILE` | what became of it, as JSON: its end, what was counted, and who of its children outlived it |
//!
//! With none of them it counts, and kills nobody. A command that becomes another (execve(2)) is let go. Its children are never
//! traced; those it leaves behind are adopted, and waited for.

#![allow(unsafe_code)] // ptrace(2)

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    fs, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open, set_child_subreaper},
};

/// So long a child may outlive the command: it ends by itself when its pipes are closed.
const AFTERLIFE: Duration = Duration::from_secs(5);

/// System calls that change something outside of the process, or are about to.
const DEEDS: &[(libc::c_long, &str)] = &[
    (libc::SYS_openat, "openat"),
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_kill, "kill"),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_execve, "execve"),
    (libc::SYS_exit_group, "exit_group"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, "vfork"),
];

#[derive(Default)]
struct Wish {
    word: String,
    /// The number of the call, and whether it is carried out first.
    call: Option<(u64, bool)>,
    only_deeds: bool,
    after: Option<Duration>,
    with: Option<String>,
}

/// What became of it.
#[derive(Default)]
struct Word {
    end: String,
    calls: u64,
    deeds: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut wish = Wish::default();
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("'{word}' wants a value"));
        match word.as_str() {
            "--word" => wish.word = value()?,
            "--before" => wish.call = Some((value()?.parse()?, false)),
            "--behind" => wish.call = Some((value()?.parse()?, true)),
            "--deeds" => wish.only_deeds = true,
            "--after" => wish.after = Some(Duration::from_micros(value()?.parse()?)),
            "--with" => wish.with = Some(value()?),
            "--" => break,
            other => return Err(format!("what is '{other}'?").into()),
        }
    }
    let mut command = Command::new(words.next().ok_or("which command?")?);
    command.args(words);
    set_child_subreaper(Pid::from_raw(std::process::id().cast_signed()))?;
    let began = Instant::now();
    let word = match wish.after {
        Some(after) => at_time(&mut command, after, &wish)?,
        None => at_call(&mut command, &wish)?,
    };
    let took = began.elapsed();
    let left: Vec<String> = left_behind();
    let text = format!(
        "{{\"end\": {:?}, \"calls\": {}, \"deeds\": {}, \"micros\": {}, \"left\": {left:?}}}\n",
        word.end,
        word.calls,
        word.deeds,
        took.as_micros()
    );
    // In one step: who reads it finds all of it.
    let beside = format!("{}.new", wish.word);
    fs::write(&beside, text)?;
    fs::rename(beside, wish.word)?;
    Ok(())
}

/// Lives as long as it likes, at most so long.
fn at_time(command: &mut Command, after: Duration, wish: &Wish) -> Result<Word, Box<dyn Error>> {
    let mut child = command.spawn()?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    if poll(&mut fds, Some(&Timespec::try_from(after)?))? == 0 {
        kill(&mut child, wish)?;
    }
    let end = end_of(&mut child)?;
    Ok(Word {
        end: if end == "killed" { "killed at a time".to_owned() } else { end },
        ..Word::default()
    })
}

fn kill(child: &mut Child, wish: &Wish) -> io::Result<()> {
    child.kill()?;
    let Some(group) = &wish.with else { return Ok(()) };
    let all = fs::read_to_string(format!("{group}/cgroup.procs")).unwrap_or_default();
    for pid in all.lines() {
        let is_ours =
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "portreeve\n");
        if let (true, Some(pid)) = (is_ours, pid.parse().ok().and_then(Pid::from_raw)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    Ok(())
}

fn end_of(child: &mut Child) -> io::Result<String> {
    let status = child.wait()?;
    Ok(match (status.signal(), status.code()) {
        (Some(libc::SIGKILL), _) => "killed".to_owned(),
        (Some(signal), _) => format!("signal {signal}"),
        (None, code) => format!("exit {}", code.unwrap_or(-1)),
    })
}

fn trace(request: libc::c_uint, pid: libc::pid_t, data: usize) -> io::Result<()> {
    // SAFETY: the requests of this program take two integers here; none writes to our memory.
    let answer = unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<libc::c_void>(), data) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The call that this thread is about to make; none where it has just made one.
fn call_of(pid: libc::pid_t) -> Option<(libc::c_long, [u64; 6])> {
    // SAFETY: all zeros are a value of this struct of integers.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most as many bytes as it is told, to `info`, which is alive for the call.
    let answer = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            pid,
            size_of::<libc::ptrace_syscall_info>(),
            std::ptr::from_mut(&mut info),
        )
    };
    (answer > 0 && info.op == libc::PTRACE_SYSCALL_INFO_ENTRY).then(|| {
        // SAFETY: `op` says which of the union's parts the kernel has written.
        let entry = unsafe { info.u.entry };
        (entry.nr.cast_signed(), entry.args)
    })
}

/// Its name, where it is a deed. Of opened files those are that may be made or cut by it.
fn deed(number: libc::c_long, args: &[u64; 6]) -> Option<&'static str> {
    let writes =
        |flags: u64| flags & u64::from((libc::O_CREAT | libc::O_TRUNC).cast_unsigned()) != 0;
    let (_, name) = DEEDS.iter().find(|(deed, _)| *deed == number)?;
    let is_one = match *name {
        "openat" => writes(args[2]),
        "open" => writes(args[1]),
        "fcntl" => [libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_SETLK]
            .iter()
            .any(|lock| u64::try_from(*lock) == Ok(args[1])),
        _ => true,
    };
    is_one.then_some(*name)
}

/// Counts its calls, and kills it at the chosen one.
fn at_call(command: &mut Command, wish: &Wish) -> Result<Word, Box<dyn Error>> {
    let ask = || trace(libc::PTRACE_TRACEME, 0, 0);
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(ask) };
    let mut child = command.spawn()?;
    let leader = child.id().cast_signed();
    let mut word = Word::default();
    let mut known = BTreeSet::new();
    // Who is in the middle of the chosen call.
    let mut chosen: Option<(libc::pid_t, String)> = None;
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one integer to `status`.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        if pid < 0 {
            return Err(io::Error::last_os_error().into());
        }
        if !libc::WIFSTOPPED(status) {
            if pid == leader {
                word.end = if libc::WIFSIGNALED(status) {
                    format!("signal {}", libc::WTERMSIG(status))
                } else {
                    format!("exit {}", libc::WEXITSTATUS(status))
                };
                return Ok(word);
            }
            // A thread, or somebody whom we adopted.
            continue;
        }
        let is_new = known.insert(pid);
        let signal = libc::WSTOPSIG(status);
        if is_new && pid == leader {
            let options = libc::PTRACE_O_TRACESYSGOOD
                | libc::PTRACE_O_TRACECLONE
                | libc::PTRACE_O_TRACEEXEC
                | libc::PTRACE_O_EXITKILL;
            trace(libc::PTRACE_SETOPTIONS, pid, usize::try_from(options)?)?;
            let _ = trace(libc::PTRACE_SYSCALL, pid, 0);
            continue;
        }
        if status >> 16 == libc::PTRACE_EVENT_EXEC {
            trace(libc::PTRACE_DETACH, pid, 0)?;
            word.end = format!("became another: {}", end_of(&mut child)?);
            return Ok(word);
        }
        if signal == libc::SIGTRAP | 0x80 {
            let mut now = None;
            if let Some((number, args)) = call_of(pid) {
                let name = deed(number, &args);
                word.calls += 1;
                word.deeds += u64::from(name.is_some());
                let counted = if wish.only_deeds { word.deeds } else { word.calls };
                let is_counted = name.is_some() || !wish.only_deeds;
                if let Some((at, is_behind)) = wish.call
                    && is_counted
                    && counted == at
                {
                    let name = name.map_or_else(|| format!("call {number}"), str::to_owned);
                    if is_behind && number != libc::SYS_exit_group {
                        chosen = Some((pid, name));
                    } else {
                        now = Some(format!("killed before {name}"));
                    }
                }
            } else if let Some((_, name)) = chosen.take_if(|(who, _)| *who == pid) {
                now = Some(format!("killed behind {name}"));
            }
            if let Some(end) = now {
                kill(&mut child, wish)?;
                // Every thread's end is ours to take, since we trace it.
                while {
                    // SAFETY: the kernel writes one integer to `status`.
                    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
                    pid >= 0 && (pid != leader || libc::WIFSTOPPED(status))
                } {}
                word.end = end;
                return Ok(word);
            }
        }
        let is_ours = signal == libc::SIGTRAP | 0x80
            || status >> 16 != 0
            || (is_new && signal == libc::SIGSTOP);
        let signal = if is_ours { 0 } else { usize::try_from(signal)? };
        // It may be gone already.
        let _ = trace(libc::PTRACE_SYSCALL, pid, signal);
    }
}

/// Who of its children still runs in the end, by command line. They are killed then.
fn left_behind() -> Vec<String> {
    let until = Instant::now() + AFTERLIFE;
    loop {
        // SAFETY: no status is asked for.
        let pid = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
        if pid < 0 {
            return Vec::new();
        }
        if pid == 0 && Instant::now() > until {
            break;
        }
        if pid == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    let own = format!("/proc/self/task/{}/children", std::process::id());
    let all = fs::read_to_string(own).unwrap_or_default();
    let mut left = Vec::new();
    for pid in all.split_whitespace() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        left.push(String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned());
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    left
}
