//! Socket diagnostics over netlink (sock_diag(7)): one dump, filtered by local port in the kernel and then
//! exactly here. Knows nothing of services. A dump that is cut short, interrupted
//! or refused is an error, never an empty answer.

use std::{collections::BTreeSet, io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with, sockopt,
};

use super::netlink::persist;
use super::wire::{Message, SOCK_DIAG_BY_FAMILY, SocketMessage, cut_short, refusal, u32_at};
use crate::{
    ident::{Port, Proto},
    snapshot::{Socket, SocketState},
};

/// States of include/net/tcp_states.h as bits of `idiag_states`.
pub mod states {
    /// LISTEN.
    pub const LISTEN: u32 = 1 << 10;
    /// Bound, neither listening nor connected: TCP_BOUND_INACTIVE, Linux ≥ 6.8; older kernels ignore the bit.
    pub const BOUND: u32 = 1 << 13;
    /// UDP sockets without a peer stand in TCP_CLOSE.
    pub const UNCONNECTED: u32 = 1 << 7;
    /// ESTABLISHED, for UDP: with a peer.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// Every other state in which a TCP socket has a local port.
    pub const CONNECTED: u32 = 0x1fff & !LISTEN & !UNCONNECTED;
}

/// The older question, for TCP alone: its dumps tell of both families, so the kernel walks its tables once and
/// not twice (`inet_diag_dump_compat`, net/ipv4/inet_diag.c). Sockets come in the same form.
const TCPDIAG_GETSOCK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;
const BC_JMP: u8 = 1;
const BC_S_GE: u8 = 2;
const BC_S_LE: u8 = 3;

/// More ranges than this make the kernel's filter slower than none.
const MOST_RANGES: usize = 32;
/// The kernel sends at most 32 KiB a message (`NLMSG_GOODSIZE`, net/netlink/af_netlink.c).
const BUFFER_BYTES: usize = 64 * 1024;
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
const TRIES: usize = 4;

/// A netlink socket for socket diagnostics; sees the network namespace in which it was made.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Diag {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_DEADLINE))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES], sequence: 0 })
    }

    /// Every socket of this protocol whose local port is one of `ports` and whose state is one of
    /// `wanted`, IPv4 and IPv6. An interrupted dump is asked for again, a few times.
    pub fn sockets(
        &mut self,
        proto: Proto,
        wanted: u32,
        ports: &BTreeSet<Port>,
    ) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        if ports.is_empty() {
            return Ok(sockets);
        }
        let families: &[_] = match proto {
            Proto::Tcp => &[AddressFamily::UNSPEC],
            Proto::Udp => &[AddressFamily::INET, AddressFamily::INET6],
        };
        for &family in families {
            let mut tries = 0;
            loop {
                tries += 1;
                match self.dump(family, proto, wanted, ports) {
                    Ok(found) => {
                        sockets.extend(found);
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < TRIES => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(sockets)
    }

    fn dump(
        &mut self,
        family: AddressFamily,
        proto: Proto,
        wanted: u32,
        ports: &BTreeSet<Port>,
    ) -> io::Result<Vec<Socket>> {
        self.sequence += 1;
        let request = request(family, proto, wanted, &ranges(ports), self.sequence);
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        persist(|| sendto(&self.socket, &request, SendFlags::empty(), &kernel))?;
        let mut dump = Dump::default();
        while !dump.is_done {
            let buffer: &mut [u8] = &mut self.buffer;
            let (kept, length) = persist(|| recv(&self.socket, &mut *buffer, RecvFlags::TRUNC))?;
            if length > kept || length == 0 {
                return Err(cut_short());
            }
            let bytes = self.buffer.get(..length).unwrap_or_default();
            dump.read_messages(bytes, self.sequence, proto)?;
        }
        if dump.was_interrupted {
            let why = "the socket table changed under the dump";
            return Err(io::Error::new(io::ErrorKind::Interrupted, why));
        }
        dump.sockets.retain(|s| ports.contains(&s.port));
        Ok(dump.sockets)
    }
}

/// Ranges that cover the ports, adjacent ones joined; the nearest are joined further until the kernel's
/// filter is short enough.
pub(super) fn ranges(ports: &BTreeSet<Port>) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports.iter().map(|p| p.number()) {
        match ranges.last_mut() {
            Some((_, high)) if *high + 1 == port => *high = port,
            Some(_) | None => ranges.push((port, port)),
        }
    }
    while ranges.len() > MOST_RANGES {
        let gap = |i: usize| Some(ranges.get(i + 1)?.0 - ranges.get(i)?.1);
        let Some(nearest) = (0..ranges.len() - 1).min_by_key(|&i| gap(i)) else { break };
        let (_, high) = ranges.remove(nearest + 1);
        if let Some(range) = ranges.get_mut(nearest) {
            range.1 = high;
        }
    }
    ranges
}

/// The filter program: accepts where one of the ranges holds. A jump by exactly the rest of the program
/// accepts, one by four bytes more refuses (net/ipv4/inet_diag.c, `inet_diag_bc_run`).
fn bytecode(ranges: &[(u16, u16)]) -> Vec<u8> {
    let mut code = Vec::new();
    let op = |code: &mut Vec<u8>, kind: u8, yes: u8, no: usize| {
        code.extend([kind, yes]);
        code.extend(u16::try_from(no).unwrap_or(u16::MAX).to_ne_bytes());
    };
    for (i, &(low, high)) in ranges.iter().enumerate() {
        let rest = (ranges.len() - i) * 20 - 4;
        let is_last = i + 1 == ranges.len();
        op(&mut code, BC_S_GE, 8, if is_last { rest + 4 } else { 20 });
        op(&mut code, 0, 0, usize::from(low));
        op(&mut code, BC_S_LE, 8, if is_last { rest - 8 + 4 } else { 12 });
        op(&mut code, 0, 0, usize::from(high));
        if !is_last {
            op(&mut code, BC_JMP, 4, rest - 16);
        }
    }
    code
}

fn request(
    family: AddressFamily,
    proto: Proto,
    wanted: u32,
    ranges: &[(u16, u16)],
    sequence: u32,
) -> Vec<u8> {
    let code = bytecode(ranges);
    let (kind, body) = match proto {
        Proto::Tcp => (TCPDIAG_GETSOCK, 60),
        Proto::Udp => (SOCK_DIAG_BY_FAMILY, 56),
    };
    let length = 16 + body + 4 + code.len();
    let mut message = Vec::with_capacity(length);
    // struct nlmsghdr
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    // The socket id of 48 bytes is all zero in both.
    let family = u8::try_from(family.as_raw()).unwrap_or_default();
    match proto {
        // struct inet_diag_req
        Proto::Tcp => {
            message.extend([family, 0, 0, 0]);
            message.extend([0; 48]);
            message.extend(wanted.to_ne_bytes());
            message.extend([0; 4]);
        }
        // struct inet_diag_req_v2
        Proto::Udp => {
            message.extend([family, 17, 0, 0]);
            message.extend(wanted.to_ne_bytes());
            message.extend([0; 48]);
        }
    }
    // struct rtattr
    message.extend(u16::try_from(4 + code.len()).unwrap_or_default().to_ne_bytes());
    message.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    message.extend(code);
    message
}

/// What has come of a dump so far.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) sockets: Vec<Socket>,
    pub(super) was_interrupted: bool,
    pub(super) is_done: bool,
}

impl Dump {
    pub(super) fn read_messages(
        &mut self,
        mut bytes: &[u8],
        sequence: u32,
        proto: Proto,
    ) -> io::Result<()> {
        while !bytes.is_empty() && !self.is_done {
            let message = Message::take(&mut bytes)?;
            if message.sequence != sequence {
                continue; // the rest of a dump that we gave up
            }
            self.was_interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE => {
                    self.is_done = true;
                    // A dump that failed half-way says so in its last message.
                    match u32_at(message.body, 0).unwrap_or_default().cast_signed() {
                        errno if errno < 0 => return Err(refusal(errno)),
                        _ => {}
                    }
                }
                NLMSG_ERROR => {
                    let errno = u32_at(message.body, 0).ok_or_else(cut_short)?.cast_signed();
                    return Err(refusal(errno));
                }
                SOCK_DIAG_BY_FAMILY | TCPDIAG_GETSOCK => {
                    let found = SocketMessage::read(message.body).ok_or_else(cut_short)?;
                    self.sockets.extend(socket(&found, proto)?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The socket that a message of a dump is about; none without a local port.
fn socket(found: &SocketMessage<'_>, proto: Proto) -> io::Result<Option<Socket>> {
    let Some(port) = found.port else { return Ok(None) };
    let state = match (proto, found.state) {
        (Proto::Tcp, 10) | (Proto::Udp, 7) => SocketState::Listening,
        // A bound-only socket is reported in state CLOSE (7), though 13 asked for it.
        (Proto::Tcp, 7 | 13) => SocketState::Bound,
        _ if found.inode == 0 => SocketState::Lingering,
        _ => SocketState::Connected(found.peer),
    };
    let mut socket = Socket {
        proto,
        // An IPv4 address in IPv6 clothes (::ffff:127.0.0.1) is in the way of the plain one.
        address: found.address.to_canonical(),
        port,
        state,
        inode: found.inode,
        cookie: Some(found.cookie),
        uid: found.uid,
        creator_cgroup: None,
        v6only: None,
    };
    for attribute in found.attributes.clone() {
        let (kind, value) = attribute?;
        match kind {
            INET_DIAG_CGROUP_ID => {
                let id = value.get(..8).ok_or_else(cut_short)?;
                socket.creator_cgroup = id.try_into().ok().map(u64::from_ne_bytes);
            }
            INET_DIAG_SKV6ONLY => socket.v6only = value.first().map(|&v| v != 0),
            _ => {}
        }
    }
    Ok(Some(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(numbers: &[u16]) -> BTreeSet<Port> {
        numbers.iter().filter_map(|&n| Port::new(n)).collect()
    }

    #[test]
    fn adjacent_ports_become_one_range() {
        assert_eq!(ranges(&ports(&[80, 81, 82, 90])), [(80, 82), (90, 90)]);
    }

    #[test]
    fn the_filter_stays_within_its_limit_and_covers_every_port() {
        let wanted: Vec<u16> = (1..200).map(|i| i * 300 + i % 7).collect();
        let found = ranges(&ports(&wanted));
        assert_eq!(found.len(), MOST_RANGES);
        for port in wanted {
            assert!(found.iter().any(|&(low, high)| (low..=high).contains(&port)));
        }
    }

    #[test]
    fn the_kernel_finds_our_own_listeners_through_the_filter_and_no_others() {
        let listeners: Vec<_> =
            (0..40).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let numbers: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        let mut diag = Diag::open().unwrap();
        for wanted in [&numbers[..1], &numbers[..5], &numbers[..]] {
            let found = diag.sockets(Proto::Tcp, states::LISTEN, &ports(wanted)).unwrap();
            let found: BTreeSet<u16> = found.iter().map(|s| s.port.number()).collect();
            assert_eq!(found, wanted.iter().copied().collect());
        }
    }

    #[test]
    fn a_message_cut_short_at_any_byte_is_an_error_and_never_an_empty_answer() {
        let mut body = vec![2, 10, 0, 0];
        body.extend(8091_u16.to_be_bytes());
        body.resize(72, 0);
        let mut message = Vec::new();
        message.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend([0, 0]);
        message.extend(7_u32.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        let mut whole = Dump::default();
        whole.read_messages(&message, 7, Proto::Tcp).unwrap();
        assert_eq!(whole.sockets.len(), 1);
        assert!(!whole.is_done, "a dump ends with NLMSG_DONE only");
        for length in 1..message.len() {
            let cut = Dump::default().read_messages(&message[..length], 7, Proto::Tcp);
            assert!(cut.is_err(), "cut at {length}");
        }
    }

    #[test]
    fn an_error_of_any_number_is_an_error() {
        for errno in [i32::MIN, -libc::EPERM, 0, i32::MAX] {
            let mut message = Vec::new();
            message.extend(20_u32.to_ne_bytes());
            message.extend(NLMSG_ERROR.to_ne_bytes());
            message.extend([0, 0]);
            message.extend(7_u32.to_ne_bytes());
            message.extend([0; 4]);
            message.extend(errno.to_ne_bytes());
            assert!(Dump::default().read_messages(&message, 7, Proto::Tcp).is_err(), "{errno}");
        }
    }

    #[test]
    fn an_interrupted_dump_is_noticed() {
        let mut message = Vec::new();
        message.extend(20_u32.to_ne_bytes());
        message.extend(NLMSG_DONE.to_ne_bytes());
        message.extend(NLM_F_DUMP_INTR.to_ne_bytes());
        message.extend(7_u32.to_ne_bytes());
        message.extend([0; 8]);
        let mut dump = Dump::default();
        dump.read_messages(&message, 7, Proto::Tcp).unwrap();
        assert!(dump.is_done && dump.was_interrupted);
    }
}
