//! Bytes from outside, read as this module reads them, and what must be true whatever they are. Built for the fuzzer and for the
//! tests that read its corpora again (`crate::fuzzing`).

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use std::collections::HashMap;

use super::{
    cgroup,
    dbus::{CallError, Message, Sizes, Value},
    diag::Dump,
    gpus, holders,
    listeners::parse_table,
    netlink, processes, units, users, watch,
};
pub use super::{
    gpus::hostile::nvidia,
    nat::hostile::{nftables, xtables},
};
use crate::{
    ident::Proto,
    snapshot::{Seen, SocketState},
};

/// `/proc/PID/stat`: no name moves the fields behind it, and a text that is cut tells no other start.
pub fn stat(bytes: &[u8]) {
    let read = processes::parse_stat;
    let whole = read(bytes).map(|stat| (stat.pid, stat.starttime));
    // No name is long enough to hold the fields behind another parenthesis.
    let has_one_name = bytes.split(|byte| *byte == b')').count() == 2;
    for cut in [bytes.len() / 2, bytes.len().saturating_sub(1), bytes.len().saturating_sub(20)] {
        let part = read(bytes.get(..cut).unwrap_or_default());
        let part = part.map(|stat| (stat.pid, stat.starttime));
        // Behind a text that nobody can read may begin one that somebody can, not the other way round.
        assert!(
            !has_one_name || part.is_none() || whole.is_none() || part == whole,
            "{part:?} of {whole:?}"
        );
    }
    // What a process calls itself: 15 bytes of its choice (TASK_COMM_LEN).
    let name: Vec<u8> = bytes.iter().copied().filter(|b| *b != 0).take(15).collect();
    let mut line = b"4711 (".to_vec();
    line.extend(&name);
    line.extend(b") S 1 4711 4711 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
    // A name that is no UTF-8 may make it unreadable, and nothing else.
    if let Some(stat) = read(&line) {
        assert_eq!((stat.pid, stat.ppid, stat.starttime), (4711, 1, 987_654), "{name:?}");
    } else {
        assert!(std::str::from_utf8(&name).is_err(), "{name:?} hides a process");
    }
}

/// `/proc/PID/status`, `cmdline`, `environ`, `/proc/uptime` and `/etc/passwd`.
pub fn process(bytes: &[u8]) {
    for key in [&b"Uid:"[..], b"TracerPid:", b"NSpid:", b"Pid:"] {
        let numbers = processes::numbers(bytes, key);
        assert!(numbers.is_empty() || bytes.windows(key.len()).any(|part| part == key));
        // As the kernel writes them they are read again.
        let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
        let mut line = key.to_vec();
        line.extend(format!("\t{}\n", words.join("\t")).bytes());
        assert_eq!(processes::numbers(&line, key), numbers);
    }
    let mut command = bytes.to_vec();
    processes::join(&mut command);
    assert!(command.len() <= bytes.len() && !command.contains(&0) && command.last() != Some(&b' '));
    let mut again = command.clone();
    processes::join(&mut again);
    assert_eq!(again, command);
    if let Some(Some(id)) = processes::invocation_id(bytes) {
        assert!(!id.contains('\0') && bytes.contains(&b'='));
    }
    let text = String::from_utf8_lossy(bytes);
    if let Some(ticks) = super::ticks(&text, 100) {
        assert_eq!(
            super::ticks(&format!("{}.{:02} 1.0", ticks / 100, ticks % 100), 100),
            Some(ticks)
        );
    }
    for name in users::names_in(&text).values() {
        assert!(!name.contains([':', '\n']));
    }
}

/// `/proc/PID/cgroup`: nothing is claimed that does not stand there, and no claim where the text is refused.
pub fn cgroup(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Some(cgroup) = cgroup::parse(&text) else { return };
    assert!(text.contains(&cgroup.path));
    if let Some(claim) = &cgroup.claim {
        assert!(!claim.id.0.is_empty() && !claim.id.0.contains('/') && text.contains(&claim.id.0));
    }
    if let Some(unit) = &cgroup.unit {
        let name = &unit.name.0;
        assert!([".service", ".scope"].iter().any(|kind| name.ends_with(kind)), "{name}");
        assert!(cgroup.path.split('/').any(|part| part == name));
        assert!(!cgroup.path.split('/').any(|part| part == ".."));
    }
    assert!(cgroup.session.is_none() || cgroup.unit.is_some());
    assert_eq!(cgroup.session.is_some(), cgroup.session_user.is_some());
    // What was read of it is read of its path alone.
    if cgroup.claim.is_none() {
        let again = cgroup::parse(&format!("0::{}\n", cgroup.path));
        let again = again.map(|again| (again.unit, again.session, again.session_user));
        assert_eq!(again, Some((cgroup.unit, cgroup.session, cgroup.session_user)));
    }
}

/// `/proc/PID/mountinfo`: a layer's path is what the kernel escaped.
pub fn mountinfo(bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let read = processes::layer(bytes);
    if let Some(Some(path)) = &read {
        assert!(bytes.windows(9).any(|part| part == b"upperdir="), "{}", path.display());
    }
    let escape = |path: &[u8]| -> Vec<u8> {
        let special = |b: u8| matches!(b, b' ' | b'\t' | b'\n' | b'\\');
        let written = |&b: &u8| if special(b) { format!("\\{b:03o}").into() } else { vec![b] };
        path.iter().flat_map(written).collect()
    };
    // A comma ends an option, and overlayfs escapes it in a way of its own.
    let path: Vec<u8> = bytes.iter().copied().filter(|b| !matches!(b, 0 | b',')).take(64).collect();
    let mut line = b"3 2 0:50 / / rw - overlay o rw,upperdir=".to_vec();
    line.extend(escape(&path));
    line.extend(b",workdir=/w\n");
    let found = processes::layer(&line).flatten();
    assert_eq!(found.as_ref().map(|p| p.as_os_str().as_bytes()), Some(path.as_slice()));
}

/// `/proc/PID/fdinfo/FD` of a GPU's client, a pidfd and an io_uring.
pub fn fdinfo(bytes: &[u8]) {
    gpus::hostile::client(&String::from_utf8_lossy(bytes));
    let _ = processes::numbers(bytes, b"Pid:");
    for word in bytes.split(u8::is_ascii_whitespace) {
        if let Some(inode) = holders::socket_inode(word) {
            let text = String::from_utf8_lossy(word);
            assert!(
                text.contains(&inode.to_string()) || text.contains("[0") || text.contains("[+")
            );
        }
    }
}

/// A dump of socket diagnostics, and a notification: no part of a dump is a whole one, and none ends before its end.
pub fn sock_diag(bytes: &[u8]) {
    const SEQUENCE: u32 = 7;
    let proto = if bytes.len().is_multiple_of(2) { Proto::Tcp } else { Proto::Udp };
    let read = |bytes: &[u8]| {
        let mut dump = Dump::default();
        let read = dump.read_messages(bytes, SEQUENCE, proto);
        read.map(|()| (dump.is_done && !dump.was_interrupted, dump.sockets))
    };
    if let Ok((is_whole, sockets)) = read(bytes) {
        for socket in &sockets {
            assert!(
                socket.inode != 0 || socket.state != SocketState::Connected(([0; 4], 0).into())
            );
            assert_eq!(socket.address, socket.address.to_canonical());
        }
        // A cut never adds a socket, and what it leaves out it does not call complete.
        let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
        if let Ok((half_is_whole, some)) = read(half) {
            assert!(sockets.starts_with(&some));
            assert!(!half_is_whole || (is_whole && some == sockets));
        }
    }
    let mut replies = Vec::new();
    let done = netlink::read(bytes, SEQUENCE, &mut replies);
    assert!(replies.iter().map(Vec::len).sum::<usize>() <= bytes.len());
    assert!(!matches!(done, Ok(true)) || bytes.len() >= 20);
    let ended: Vec<_> = watch::read_ended(bytes).collect();
    assert!(ended.len() <= bytes.len() / 16 * 2);
}

/// `/proc/net/{tcp,udp}{,6}`: a table that is cut is none.
pub fn proc_net(bytes: &[u8]) {
    for proto in [Proto::Tcp, Proto::Udp] {
        let Some(sockets) = parse_table(bytes, proto) else { continue };
        let lines = bytes.split(|b| *b == b'\n').count() - 1;
        assert!(bytes.ends_with(b"\n") && sockets.len() < lines.max(1));
        let cut = bytes.len().saturating_sub(1);
        let cut = bytes.get(..cut).unwrap_or_default();
        assert!(cut.ends_with(b"\n") || parse_table(cut, proto).is_none());
    }
}

/// A reply over D-Bus: a unit is told whole or not at all, and only a manager's own word makes one gone.
pub fn dbus(bytes: &[u8]) {
    let Some(answer) = reply(bytes) else { return };
    match &answer {
        Ok(Value::Table(properties)) => {
            if let Some(unit) = units::read_unit(properties) {
                assert!(!unit.active_state.is_empty() && !unit.sub_state.is_empty());
                let is_service = properties.get("Id").and_then(Value::text);
                let is_service = is_service.is_some_and(|id| id.ends_with(".service"));
                let has_pids =
                    ["MainPID", "ControlPID"].iter().all(|k| properties.contains_key(*k));
                assert!(
                    has_pids || !(is_service && unit.is_loaded),
                    "a service without its processes"
                );
                assert!(["Id", "LoadState"].iter().all(|key| properties.contains_key(*key)));
                assert!(unit.invocation_id.is_none_or(|id| !id.is_empty()));
            }
        }
        Ok(_) => {}
        Err(error) => {
            let seen: Seen<()> = units::refusal(error, "it");
            let is_known = matches!(error, CallError::Refused(name) if name.contains(".NoSuch"));
            assert!(seen != Seen::Gone || is_known);
            assert!(seen.known().is_none());
        }
    }
}

/// The properties in a reply, where it has any.
pub fn properties(bytes: &[u8]) -> Option<HashMap<String, Value>> {
    match reply(bytes)?.ok()? {
        Value::Table(properties) => Some(properties),
        Value::Bool(_)
        | Value::U32(_)
        | Value::U64(_)
        | Value::Text(_)
        | Value::Bytes(_)
        | Value::Other => None,
    }
}

fn reply(bytes: &[u8]) -> Option<Result<Value, CallError>> {
    let (head, rest) = bytes.split_at_checked(16)?;
    let sizes = Sizes::read(head)?;
    let length = sizes.rest().ok()?;
    // The bytes that follow are those of the next message.
    Some(Message::read(sizes, rest.get(..length)?)?.answer())
}
