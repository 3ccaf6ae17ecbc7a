//! Which sockets stand on the guarded ports: by socket diagnostics, else from the text of `/proc/net`.

use std::{collections::BTreeSet, io};

use procfs_core::{
    FromBufReadSI,
    net::{TcpNetEntries, TcpState, UdpNetEntries},
};

use crate::{
    host::{Host, seen},
    ident::{Endpoint, Port, Proto},
    observe::{
        diag::{Diag, states},
        holders::Reach,
    },
    snapshot::{Seen, Socket, SocketState, Sockets},
};

/// Sockets on these endpoints, without their holders. Connections are listed only for endpoints on which
/// nothing listens or is bound: elsewhere they are the server's own. By endpoint and not by port: a server on
/// another address does not answer for this one.
///
/// For sockets that are bound and silent the kernel goes through all of its hash buckets (2.5 ms, 65,536 of them),
/// so [`Reach::Narrow`] asks for them only where nothing listens: beside a listener they change no port's state.
pub fn observe(host: &Host, endpoints: &[Endpoint], reach: Reach) -> Seen<Sockets> {
    by_dump(host, endpoints, || from_diagnostics(endpoints, reach))
}

/// The servers among them alone, and not even those that are silent: for whoever binds the ports as well.
pub fn observe_listening(host: &Host, endpoints: &[Endpoint]) -> Seen<Sockets> {
    by_dump(host, endpoints, || {
        let mut all = listening(&mut Diag::open()?, endpoints)?;
        retain(&mut all, endpoints, &[]);
        Ok(all)
    })
}

fn by_dump(
    host: &Host,
    endpoints: &[Endpoint],
    dump: impl FnOnce() -> io::Result<Vec<Socket>>,
) -> Seen<Sockets> {
    if host.is_live() {
        match dump() {
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
    from_text(host, endpoints)
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

fn ports_of<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>, proto: Proto) -> BTreeSet<Port> {
    endpoints.into_iter().filter(|e| e.proto == proto).map(|e| e.port).collect()
}

/// Whether it is a server's: listens, or is about to.
pub fn is_server(socket: &Socket) -> bool {
    matches!(socket.state, SocketState::Listening | SocketState::Bound)
}

/// The endpoints on which nothing listens or is bound.
fn unserved<'a>(endpoints: &'a [Endpoint], all: &[Socket]) -> Vec<&'a Endpoint> {
    let is_served = |e: &&Endpoint| all.iter().any(|s| is_server(s) && s.is_on(e));
    endpoints.iter().filter(|e| !is_served(e)).collect()
}

/// Servers on the endpoints, and whatever else is on those that have none.
fn retain(all: &mut Vec<Socket>, endpoints: &[Endpoint], unserved: &[&Endpoint]) {
    all.retain(|socket| {
        if is_server(socket) {
            endpoints.iter().any(|e| socket.is_on(e))
        } else {
            unserved.iter().any(|e| socket.is_on(e))
        }
    });
}

/// By socket diagnostics, as [`observe`] has it. Errors: see [`Diag::sockets`].
pub fn from_diagnostics(endpoints: &[Endpoint], reach: Reach) -> io::Result<Vec<Socket>> {
    let mut diag = Diag::open()?;
    let mut all = listening(&mut diag, endpoints)?;
    let silent = match reach {
        Reach::Whole => ports_of(endpoints, Proto::Tcp),
        Reach::Narrow => ports_of(unserved(endpoints, &all), Proto::Tcp),
    };
    all.extend(diag.sockets(Proto::Tcp, states::BOUND, &silent)?);
    let unserved = unserved(endpoints, &all);
    let open = |proto| ports_of(unserved.iter().copied(), proto);
    // Servers once more: one that began to listen between the first two questions is in neither answer.
    let (tcp, udp) =
        (states::CONNECTED | states::LISTEN, states::ESTABLISHED | states::UNCONNECTED);
    all.extend(diag.sockets(Proto::Tcp, tcp, &open(Proto::Tcp))?);
    all.extend(diag.sockets(Proto::Udp, udp, &open(Proto::Udp))?);
    retain(&mut all, endpoints, &unserved);
    // The later answer about a socket is the better one.
    all.reverse();
    let mut known = BTreeSet::new();
    all.retain(|socket| known.insert(socket.cookie));
    Ok(all)
}

fn listening(diag: &mut Diag, endpoints: &[Endpoint]) -> io::Result<Vec<Socket>> {
    let mut all = diag.sockets(Proto::Tcp, states::LISTEN, &ports_of(endpoints, Proto::Tcp))?;
    all.extend(diag.sockets(Proto::Udp, states::UNCONNECTED, &ports_of(endpoints, Proto::Udp))?);
    Ok(all)
}

/// From `/proc/net/{tcp,tcp6,udp,udp6}` (proc_pid_net(5)): no cookies, no creating cgroup, and no sockets
/// that are bound without listening.
pub fn from_text(host: &Host, endpoints: &[Endpoint]) -> Seen<Sockets> {
    let mut all = Vec::new();
    for file in ["tcp", "tcp6", "udp", "udp6"] {
        let proto = if file.starts_with("tcp") { Proto::Tcp } else { Proto::Udp };
        let ports = ports_of(endpoints, proto);
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
    let unserved = unserved(endpoints, &all);
    retain(&mut all, endpoints, &unserved);
    Seen::Known(Sockets { all, ..Sockets::default() })
}

fn read_table(host: &Host, file: &str, proto: Proto) -> Seen<Vec<Socket>> {
    host.read(&format!("proc/net/{file}")).parse(|bytes| parse_table(&bytes, proto))
}

/// None where it is no whole table.
pub(super) fn parse_table(bytes: &[u8], proto: Proto) -> Option<Vec<Socket>> {
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
        let entries = TcpNetEntries::from_buf_read(bytes, &system).ok()?;
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
        let entries = UdpNetEntries::from_buf_read(bytes, &system).ok()?;
        let read = |e: procfs_core::net::UdpNetEntry| {
            let state = match e.state {
                procfs_core::net::UdpState::Established => SocketState::Connected(e.remote_address),
                procfs_core::net::UdpState::Close => SocketState::Listening,
            };
            socket(e.local_address, state, e.uid, e.inode)
        };
        entries.0.into_iter().filter_map(read).collect()
    };
    Some(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole port of this address.
    fn on(proto: Proto, address: std::io::Result<std::net::SocketAddr>) -> Endpoint {
        let port = Port::new(address.unwrap().port()).unwrap();
        Endpoint { port, proto, address: None, is_v6only: false }
    }

    #[test]
    fn the_dump_and_the_text_tell_the_same_of_listeners_and_connections() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = std::net::TcpListener::bind("[::1]:0").unwrap();
        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let client = std::net::TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let tcp = [v4.local_addr(), v6.local_addr(), client.local_addr()];
        let mut endpoints = tcp.map(|address| on(Proto::Tcp, address)).to_vec();
        endpoints.push(on(Proto::Udp, udp.local_addr()));
        let plain = |mut sockets: Vec<Socket>| {
            for socket in &mut sockets {
                (socket.cookie, socket.creator_cgroup, socket.v6only) = (None, None, None);
            }
            sockets.sort_by_key(|s| (s.proto, s.port, s.inode));
            sockets
        };
        let dumped = plain(from_diagnostics(&endpoints, Reach::Whole).unwrap());
        let text = from_text(&Host::live(), &endpoints);
        assert_eq!(dumped, plain(text.known().unwrap().all.clone()));
        assert_eq!(dumped.len(), 4);
    }

    #[test]
    fn a_connection_on_one_address_is_seen_beside_a_server_on_another() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let elsewhere = std::net::TcpListener::bind(("127.0.0.2", port)).unwrap();
        let client = std::net::TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
        let accepted = elsewhere.accept().unwrap();
        drop(elsewhere);
        let endpoints = [format!("127.0.0.2:{port}").parse().unwrap()];
        let text = from_text(&Host::live(), &endpoints);
        for all in
            [&from_diagnostics(&endpoints, Reach::Whole).unwrap(), &text.known().unwrap().all]
        {
            let [socket] = all.as_slice() else { panic!("{all:?}") };
            assert_eq!(socket.state, SocketState::Connected(client.local_addr().unwrap()));
        }
        drop(accepted);
    }

    #[test]
    fn a_socket_that_is_bound_and_does_not_listen_is_seen() {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&fd, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap()).unwrap();
        let address: std::net::SocketAddr = getsockname(&fd).unwrap().try_into().unwrap();
        let found = from_diagnostics(&[on(Proto::Tcp, Ok(address))], Reach::Narrow).unwrap();
        if sees_bound(&Host::live()) {
            assert!(
                matches!(found.as_slice(), [s] if s.state == SocketState::Bound && s.inode != 0)
            );
        } else {
            println!("skipped: this kernel is older than 6.8 and shows no bound-only sockets");
        }
    }

    #[test]
    fn a_server_that_begins_to_listen_while_we_look_is_never_missed() {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        if !sees_bound(&Host::live()) {
            println!("skipped: this kernel is older than 6.8 and shows no bound-only sockets");
            return;
        }
        for round in 0..200 {
            let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            bind(&fd, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap()).unwrap();
            let address: std::net::SocketAddr = getsockname(&fd).unwrap().try_into().unwrap();
            let endpoints = [on(Proto::Tcp, Ok(address))];
            let found = std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Somewhere in the some milliseconds that a look takes.
                    std::thread::sleep(std::time::Duration::from_micros(round * 20));
                    listen(&fd, 1).unwrap();
                });
                from_diagnostics(&endpoints, Reach::Narrow).unwrap()
            });
            assert_eq!(found.len(), 1, "round {round}: {found:?}");
        }
    }

    #[test]
    fn a_table_whose_last_line_is_cut_is_unreadable_and_not_empty() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("proc/net")).unwrap();
        let text = std::fs::read("/proc/net/tcp").unwrap();
        std::fs::write(folder.path().join("proc/net/tcp"), &text[..text.len() - 20]).unwrap();
        let seen = from_text(&Host::fixture(folder.path()), &["1".parse().unwrap()]);
        assert!(matches!(seen, Seen::Unreadable(_)), "{seen:?}");
    }
}
