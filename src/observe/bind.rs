//! Whether a port can be bound, by binding it exactly as its service will: address, family, IPV6_V6ONLY, SO_REUSEADDR. The
//! sockets are closed at once and never listen, but while one is open a service that starts that very moment would be
//! refused: asked about only where no socket is seen, and once a look.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt},
};

use crate::{
    host::{Host, seen},
    ident::{Endpoint, Proto},
    snapshot::{Bind, Seen},
};

/// Binds the endpoint plainly; where that is busy and `may_reuse`, with SO_REUSEADDR. `may_reuse` says that the service
/// sets it and that a full dump showed nothing on the port but TIME_WAIT and FIN_WAIT: beside a bound socket a reusing bind
/// succeeds and the service's listen(2) fails (`inet_csk_get_port`, net/ipv4/inet_connection_sock.c).
///
/// A port without an address stands for `0.0.0.0` and `[::]` in both families, as most servers bind it; without IPv6 for the
/// first alone. Denied: a port below `ip_unprivileged_port_start` without CAP_NET_BIND_SERVICE (ip(7)), which says nothing about
/// who has it.
pub fn observe(host: &Host, endpoint: &Endpoint, may_reuse: bool) -> Seen<Bind> {
    if !host.is_live() {
        return Seen::Unreadable("this host's kernel does not run here".to_owned());
    }
    let plain = probe(endpoint, false);
    // UDP has no TIME_WAIT; there SO_REUSEADDR shares the port with whoever set it, too (socket(7)).
    let reuses = may_reuse && endpoint.proto == Proto::Tcp;
    if !reuses || plain != Seen::Known(Bind::Busy) {
        return plain;
    }
    probe(endpoint, true).map(|bind| if bind == Bind::Bound { Bind::BoundReusing } else { bind })
}

fn probe(endpoint: &Endpoint, reuse_addr: bool) -> Seen<Bind> {
    let port = endpoint.port.number();
    let try_at = |address: IpAddr| {
        of_result(bind_once(endpoint, SocketAddr::new(address, port), reuse_addr))
    };
    if let Some(address) = endpoint.address {
        return try_at(address);
    }
    let first = try_at(Ipv4Addr::UNSPECIFIED.into());
    if first != Seen::Known(Bind::Bound) {
        return first;
    }
    let both = try_at(Ipv6Addr::UNSPECIFIED.into());
    let has_no_ipv6 = matches!(both, Seen::Known(Bind::NoSuchAddress | Bind::NoSuchFamily));
    if has_no_ipv6 { first } else { both }
}

fn bind_once(endpoint: &Endpoint, at: SocketAddr, reuse_addr: bool) -> io::Result<()> {
    let kind = match endpoint.proto {
        Proto::Tcp => SocketType::STREAM,
        Proto::Udp => SocketType::DGRAM,
    };
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if at.is_ipv6() {
        // Whatever net.ipv6.bindv6only says: who takes both families meets the holders of both.
        sockopt::set_ipv6_v6only(&socket, endpoint.is_v6only)?;
    }
    sockopt::set_socket_reuseaddr(&socket, reuse_addr)?;
    bind(&socket, &at)?;
    Ok(())
}

fn of_result(result: io::Result<()>) -> Seen<Bind> {
    let errno = result.as_ref().err().and_then(Errno::from_io_error);
    match errno {
        Some(Errno::ADDRINUSE) => Seen::Known(Bind::Busy),
        Some(Errno::ADDRNOTAVAIL) => Seen::Known(Bind::NoSuchAddress),
        Some(Errno::AFNOSUPPORT) => Seen::Known(Bind::NoSuchFamily),
        _ => seen(result.map(|()| Bind::Bound)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    fn of(text: &str) -> Seen<Bind> {
        observe(&Host::live(), &endpoint(text), true)
    }

    #[test]
    fn what_listens_is_busy_at_its_address_and_at_all() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (at, proto) in [(tcp.local_addr().unwrap(), "tcp"), (udp.local_addr().unwrap(), "udp")]
        {
            for text in [format!("{at}/{proto}"), format!("{}/{proto}", at.port())] {
                assert_eq!(of(&text), Seen::Known(Bind::Busy), "{text}");
            }
        }
    }

    #[test]
    fn an_address_that_no_interface_has_is_not_busy() {
        // TEST-NET-1 and the documentation prefix (RFC 5737, RFC 3849).
        for text in ["192.0.2.77:18091", "192.0.2.77:18091/udp", "[2001:db8::77]:18091"] {
            let answer = of(text);
            assert!(
                matches!(answer, Seen::Known(Bind::NoSuchAddress | Bind::NoSuchFamily)),
                "{text}: {answer:?}"
            );
        }
    }

    #[test]
    fn an_errno_that_is_no_answer_about_the_port_is_none() {
        let of = |errno: Errno| of_result(Err(errno.into()));
        assert_eq!(of(Errno::AFNOSUPPORT), Seen::Known(Bind::NoSuchFamily));
        assert_eq!(of(Errno::ACCESS), Seen::Denied);
        assert!(matches!(of(Errno::NOBUFS), Seen::Unreadable(_)));
    }

    #[test]
    fn a_fixture_host_is_never_called_free() {
        let seen = observe(&Host::fixture("/nowhere"), &endpoint("18092"), true);
        assert!(matches!(seen, Seen::Unreadable(_)), "{seen:?}");
    }
}
