//! Which sockets stand on the guarded ports: by socket diagnostics, else from the text of `/proc/net`.

use std::{collections::BTreeSet, io};

use procfs_core::{
    FromBufReadSI,
    net::{TcpNetEntries, TcpState, UdpNetEntries},
};

use crate::{
    host::{Host, seen},
    ident::{Port, Proto},
    observe::diag::{Diag, states},
    snapshot::{Seen, Socket, SocketState, Sockets},
};

/// Sockets whose local port is one of these, without their holders. Connections are listed only for ports
/// on which nothing listens or is bound: elsewhere they are the server's own.
pub fn observe(host: &Host, tcp: &BTreeSet<Port>, udp: &BTreeSet<Port>) -> Seen<Sockets> {
    if host.is_live() {
        match from_diagnostics(tcp, udp) {
            Ok(all) => {
                return Seen::Known(Sockets {
                    all,
                    sees_bound: sees_bound(host),
                    ..Sockets::default()
                });
            }
            // Refused altogether: a seccomp filter (RestrictAddressFamilies=) or a kernel without it.
            Err(error) if is_refusal(&error) => {}
            Err(error) => return seen(Err(error)),
        }
    }
    from_text(host, tcp, udp)
}

/// Whether socket diagnostics are refused altogether, not only this time.
pub fn is_refusal(error: &io::Error) -> bool {
    let refusals = [
        libc::EPERM,
        libc::EACCES,
        libc::EAFNOSUPPORT,
        libc::EPROTONOSUPPORT,
        libc::ENOENT,
        libc::EOPNOTSUPP,
    ];
    error.raw_os_error().is_some_and(|errno| refusals.contains(&errno))
}

/// Whether dumps show sockets that are bound and do not listen: TCP_BOUND_INACTIVE came with Linux 6.8.
pub fn sees_bound(host: &Host) -> bool {
    let release = host.read_text("proc/sys/kernel/osrelease");
    let mut numbers = release.known().map(String::as_str).unwrap_or_default().split(['.', '-']);
    let mut number = || numbers.next().and_then(|n| n.parse::<u32>().ok()).unwrap_or_default();
    (number(), number()) >= (6, 8)
}

/// By socket diagnostics. Errors: see [`Diag::sockets`].
pub fn from_diagnostics(tcp: &BTreeSet<Port>, udp: &BTreeSet<Port>) -> io::Result<Vec<Socket>> {
    let mut diag = Diag::open()?;
    let mut all = diag.sockets(Proto::Tcp, states::LISTEN | states::BOUND, tcp)?;
    all.extend(diag.sockets(Proto::Udp, states::UNCONNECTED, udp)?);
    let unheld = |proto, ports: &BTreeSet<Port>| -> BTreeSet<Port> {
        let is_held = |p: &&Port| all.iter().any(|s: &Socket| s.proto == proto && s.port == **p);
        ports.iter().filter(|p| !is_held(p)).copied().collect()
    };
    let (tcp, udp) = (unheld(Proto::Tcp, tcp), unheld(Proto::Udp, udp));
    all.extend(diag.sockets(Proto::Tcp, states::CONNECTED, &tcp)?);
    all.extend(diag.sockets(Proto::Udp, states::ESTABLISHED, &udp)?);
    Ok(all)
}

/// From `/proc/net/{tcp,tcp6,udp,udp6}` (proc_pid_net(5)): no cookies, no creating cgroup, and no sockets
/// that are bound without listening.
pub fn from_text(host: &Host, tcp: &BTreeSet<Port>, udp: &BTreeSet<Port>) -> Seen<Sockets> {
    let mut all = Vec::new();
    for file in ["tcp", "tcp6", "udp", "udp6"] {
        let (proto, ports) =
            if file.starts_with("tcp") { (Proto::Tcp, tcp) } else { (Proto::Udp, udp) };
        if ports.is_empty() {
            continue;
        }
        match read_table(host, file, proto) {
            Seen::Known(sockets) => {
                all.extend(sockets.into_iter().filter(|s| ports.contains(&s.port)));
            }
            Seen::Gone if file.ends_with('6') => {} // IPv6 switched off
            Seen::Gone => return Seen::Unreadable(format!("'/proc/net/{file}' is missing")),
            Seen::Denied => return Seen::Denied,
            Seen::Unreadable(why) => return Seen::Unreadable(why),
        }
    }
    let served: BTreeSet<(Proto, Port)> = all
        .iter()
        .filter(|s| s.state == SocketState::Listening)
        .map(|s| (s.proto, s.port))
        .collect();
    all.retain(|s| s.state == SocketState::Listening || !served.contains(&(s.proto, s.port)));
    Seen::Known(Sockets { all, ..Sockets::default() })
}

fn read_table(host: &Host, file: &str, proto: Proto) -> Seen<Vec<Socket>> {
    let text = host.read(&format!("proc/net/{file}"));
    text.parse(|bytes| {
        let system = procfs_core::ExplicitSystemInfo {
            boot_time_secs: 0,
            ticks_per_second: 100,
            page_size: 4096,
            is_little_endian: cfg!(target_endian = "little"),
        };
        // A table whose last line is cut short is not a table.
        bytes.ends_with(b"\n").then_some(())?;
        let socket = |local: std::net::SocketAddr, state, uid, inode| {
            Some(Socket {
                proto,
                address: local.ip().to_canonical(),
                port: Port::new(local.port())?,
                state,
                inode,
                cookie: None,
                uid,
                creator_cgroup: None,
                v6only: None,
            })
        };
        let sockets = if proto == Proto::Tcp {
            let entries = TcpNetEntries::from_buf_read(bytes.as_slice(), &system).ok()?;
            let read = |e: procfs_core::net::TcpNetEntry| {
                let state = if e.state == TcpState::Listen {
                    SocketState::Listening
                } else if e.inode == 0 {
                    SocketState::Lingering
                } else {
                    SocketState::Connected(e.remote_address)
                };
                socket(e.local_address, state, e.uid, e.inode)
            };
            entries.0.into_iter().filter_map(read).collect()
        } else {
            let entries = UdpNetEntries::from_buf_read(bytes.as_slice(), &system).ok()?;
            let read = |e: procfs_core::net::UdpNetEntry| {
                let state = match e.state {
                    procfs_core::net::UdpState::Established => {
                        SocketState::Connected(e.remote_address)
                    }
                    procfs_core::net::UdpState::Close => SocketState::Listening,
                };
                socket(e.local_address, state, e.uid, e.inode)
            };
            entries.0.into_iter().filter_map(read).collect()
        };
        Some(sockets)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_of(address: std::io::Result<std::net::SocketAddr>) -> Port {
        Port::new(address.unwrap().port()).unwrap()
    }

    #[test]
    fn the_dump_and_the_text_tell_the_same_of_listeners_and_connections() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = std::net::TcpListener::bind("[::1]:0").unwrap();
        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let client = std::net::TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let tcp: BTreeSet<Port> = [v4.local_addr(), v6.local_addr(), client.local_addr()]
            .into_iter()
            .map(port_of)
            .collect();
        let udp = BTreeSet::from([port_of(udp.local_addr())]);
        let plain = |mut sockets: Vec<Socket>| {
            for socket in &mut sockets {
                (socket.cookie, socket.creator_cgroup, socket.v6only) = (None, None, None);
            }
            sockets.sort_by_key(|s| (s.proto, s.port, s.inode));
            sockets
        };
        let dumped = plain(from_diagnostics(&tcp, &udp).unwrap());
        let text = from_text(&Host::live(), &tcp, &udp);
        assert_eq!(dumped, plain(text.known().unwrap().all.clone()));
        assert_eq!(dumped.len(), 4);
    }

    #[test]
    fn a_socket_that_is_bound_and_does_not_listen_is_seen() {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&fd, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap()).unwrap();
        let address: std::net::SocketAddr = getsockname(&fd).unwrap().try_into().unwrap();
        let ports = BTreeSet::from([Port::new(address.port()).unwrap()]);
        let found = from_diagnostics(&ports, &BTreeSet::new()).unwrap();
        if sees_bound(&Host::live()) {
            assert!(
                matches!(found.as_slice(), [s] if s.state == SocketState::Bound && s.inode != 0)
            );
        } else {
            println!("skipped: this kernel is older than 6.8 and shows no bound-only sockets");
        }
    }

    #[test]
    fn a_table_whose_last_line_is_cut_is_unreadable_and_not_empty() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/net")).unwrap();
        let text = std::fs::read("/proc/net/tcp").unwrap();
        std::fs::write(folder.path().join("proc/net/tcp"), &text[..text.len() - 20]).unwrap();
        let ports = BTreeSet::from([Port::new(1).unwrap()]);
        let seen = from_text(&Host::fixture(folder.path()), &ports, &BTreeSet::new());
        assert!(matches!(seen, Seen::Unreadable(_)), "{seen:?}");
    }
}
