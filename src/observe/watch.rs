//! Being woken when a port may have become free: by the kernel's notifications of sockets that end, by the ends of
//! processes, by a deadline, by whatever else the caller wants to hear of. Knows no more than that: whatever wakes says
//! "look again" and never "free". A close may leave TIME_WAIT behind, and another socket may hold the same port.
//!
//! Notifications (`SKNLGRP_INET{,6}_{TCP,UDP}_DESTROY`, sock_diag(7)) come when a socket's last descriptor is gone, whoever
//! had it and however: bound-only sockets, MPTCP listeners, what io_uring held. They do not tell of the end of TIME_WAIT, of
//! what an engine holds, nor of anything in another network namespace: so no wait is longer than a beat.
//!
//! As long as anybody listens to them, every close of a socket in this network namespace takes about a microsecond longer
//! (20,000 closes: 58 ms without, 72 to 85 ms with): a watch is for waiting, not for keeping.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with,
        sockopt,
    },
};

use super::{
    diag::ranges,
    wire::{Message, SOCK_DIAG_BY_FAMILY, SocketMessage},
};
use crate::{
    ident::{Endpoint, Port, Proto},
    sys,
};

/// `INET_DIAG_PROTOCOL`, include/uapi/linux/inet_diag.h.
const INET_DIAG_PROTOCOL: u16 = 10;
/// Groups of `enum sknetlink_groups` (include/uapi/linux/sock_diag.h) as a mask: IPv4 and IPv6.
const TCP_DESTROY: u32 = 1 << 0 | 1 << 2;
const UDP_DESTROY: u32 = 1 << 1 | 1 << 3;

/// How long a wait lasts at most where the kernel wakes us: the bound on what it does not tell.
const BEAT: Duration = Duration::from_millis(500);
/// The same where it does not, or where it told more than we could take.
const SHORT_BEAT: Duration = Duration::from_millis(20);
/// How long the kernel has for its first notification. It takes some 20 µs; a module that it has to load takes longer.
const PROOF_DEADLINE: Duration = Duration::from_millis(100);
/// Memory for notifications that come while the caller looks, some 1.2 KiB each; used only as they come.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// A notification has some 400 bytes, of which we read the first 100.
const MESSAGE_BYTES: usize = 4096;
/// So many are read in one go, and so many told of at most.
const BATCH: usize = 4096;
const TOLD: usize = 256;

/// Waits for ports to be released. To miss nothing: make it, then look, then [`follow`](Self::follow) what the look has
/// seen, then wait. Sees the network namespace in which it was made.
#[derive(Debug)]
pub struct Watch {
    wanted: BTreeSet<(Proto, Port)>,
    followed: Option<BTreeSet<u64>>,
    holders: Vec<OwnedFd>,
    source: Source,
    /// Notifications were lost, and the caller does not know it yet.
    has_lost: bool,
}

#[derive(Debug)]
enum Source {
    Notifications(OwnedFd),
    Polling(io::Error),
}

/// Why a wait is over. Whatever it says: look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Woken {
    /// These sockets are gone, some of them at least: not more than a few hundred are told of.
    Released(Vec<Ended>),
    /// A holder has ended.
    HolderEnded,
    /// It is time to look: nothing was heard for a while, or too much at once.
    LookAgain,
    /// The caller's own descriptor is readable; nothing else was read.
    Signal,
    /// The time is up.
    Deadline,
}

/// A socket that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ended {
    /// Its protocol.
    pub proto: Proto,
    /// Its local port.
    pub port: Port,
    /// The kernel's name for it, as a dump showed it.
    pub cookie: u64,
}

impl Watch {
    /// A watch over these ports. Where the kernel does not tell of sockets that end it polls: [`Self::polls_since`].
    pub fn new(endpoints: &[Endpoint]) -> Self {
        let wanted = endpoints.iter().map(|e| (e.proto, e.port)).collect();
        let source = match prove(&wanted).and_then(|()| join_for(&wanted)) {
            Ok(socket) => Source::Notifications(socket),
            Err(why) => Source::Polling(why),
        };
        Self { wanted, followed: None, holders: Vec::new(), source, has_lost: false }
    }

    /// Why the kernel does not tell us of sockets that end, and short polling stands for it; none where it does.
    pub fn polls_since(&self) -> Option<&io::Error> {
        match &self.source {
            Source::Notifications(_) => None,
            Source::Polling(why) => Some(why),
        }
    }

    /// From now on only the end of these sockets is told of: what the last look found in the way. None, as in the beginning:
    /// of every socket on the wanted ports, also of each connection that a server on one of them ends. That is for a look
    /// that could not see what is in the way.
    pub fn follow(&mut self, cookies: Option<BTreeSet<u64>>) {
        self.followed = cookies;
    }

    /// Tells of the end of this process, too. Any descriptor will do that becomes readable once.
    pub fn add_holder(&mut self, pidfd: OwnedFd) {
        self.holders.push(pidfd);
    }

    /// Forgets all holders; for a new look with new ones.
    pub fn forget_holders(&mut self) {
        self.holders.clear();
    }

    /// Waits until something happens or `until` has come; what came before the call counts. `wake` is a descriptor that the
    /// caller reads.
    pub fn wait(&mut self, until: Instant, wake: Option<BorrowedFd<'_>>) -> Woken {
        let woken = self.wait_for_any(until, wake);
        // Whoever is told of a signal may wait on without a look.
        self.has_lost &= woken == Woken::Signal;
        woken
    }

    fn wait_for_any(&mut self, until: Instant, wake: Option<BorrowedFd<'_>>) -> Woken {
        let began = Instant::now();
        loop {
            // Who is told more than there is room for looks as often as one who polls, not more often.
            let beat = match self.source {
                Source::Notifications(_) if !self.has_lost => began + BEAT,
                Source::Notifications(_) | Source::Polling(_) => began + SHORT_BEAT,
            };
            let left = until.min(beat).saturating_duration_since(Instant::now());
            let Ok(ready) = self.poll(left, wake) else {
                // No memory, or too many descriptors for our limits: whoever cannot be woken sleeps shortly.
                thread::sleep(left.min(SHORT_BEAT));
                return if Instant::now() < until { Woken::LookAgain } else { Woken::Deadline };
            };
            if ready.wake {
                return Woken::Signal;
            }
            let has_holder_ended = self.drop_ended(&ready.holders);
            let ended = if ready.notifications { self.hear() } else { Vec::new() };
            if !ended.is_empty() {
                return Woken::Released(ended);
            }
            if has_holder_ended {
                return Woken::HolderEnded;
            }
            let now = Instant::now();
            if now >= beat || now >= until && self.has_lost {
                return Woken::LookAgain;
            }
            if now >= until {
                return Woken::Deadline;
            }
        }
    }

    fn poll(&self, time: Duration, wake: Option<BorrowedFd<'_>>) -> io::Result<Ready> {
        let socket = match &self.source {
            Source::Notifications(socket) if !self.has_lost => Some(socket.as_fd()),
            Source::Notifications(_) | Source::Polling(_) => None,
        };
        let others = [wake, socket].map(|fd| fd.is_some());
        let all = wake.into_iter().chain(socket).chain(self.holders.iter().map(AsFd::as_fd));
        let mut fds: Vec<_> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timespec(time))) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        // An error on a descriptor is an event, too: it would end every later poll at once.
        let mut is_ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let [wake, notifications] =
            others.map(|is_there| is_there && is_ready.next() == Some(true));
        Ok(Ready { wake, notifications, holders: is_ready.collect() })
    }

    /// Whoever has ended stays readable and would end every later wait.
    fn drop_ended(&mut self, has_ended: &[bool]) -> bool {
        let before = self.holders.len();
        let mut has_ended = has_ended.iter();
        self.holders.retain(|_| has_ended.next() != Some(&true));
        self.holders.len() < before
    }

    /// Reads what the kernel has told so far.
    fn hear(&mut self) -> Vec<Ended> {
        let mut ended = BTreeSet::new();
        let Source::Notifications(socket) = &self.source else { return Vec::new() };
        let mut buffer = [0; MESSAGE_BYTES];
        for _ in 0..BATCH {
            match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    let room = TOLD - ended.len();
                    ended.extend(read_ended(bytes).filter(|e| self.is_wanted(e)).take(room));
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // ENOBUFS: the queue was full. Anything else is a loss as well: nothing must be missed silently.
                Err(_) => {
                    self.rejoin();
                    break;
                }
            }
        }
        ended.into_iter().collect()
    }

    /// A new socket after a loss. On the old one the kernel drops whatever comes until its queue has been read empty, without
    /// another error (NETLINK_S_CONGESTED, net/netlink/af_netlink.c); and that may take as long as the storm lasts.
    fn rejoin(&mut self) {
        self.has_lost = true;
        self.source = match join_for(&self.wanted) {
            Ok(socket) => Source::Notifications(socket),
            Err(why) => Source::Polling(why),
        };
    }

    fn is_wanted(&self, ended: &Ended) -> bool {
        self.wanted.contains(&(ended.proto, ended.port))
            && self.followed.as_ref().is_none_or(|cookies| cookies.contains(&ended.cookie))
    }
}

#[derive(Debug, Default)]
struct Ready {
    wake: bool,
    notifications: bool,
    holders: Vec<bool>,
}

/// A socket that is told of the ends of all that is wanted, and of little else.
fn join_for(wanted: &BTreeSet<(Proto, Port)>) -> io::Result<OwnedFd> {
    let ports = wanted.iter().map(|&(_, port)| port).collect();
    join(wanted.iter().map(|&(proto, _)| proto), &ranges(&ports))
}

/// A socket that is told of the ends of sockets with one of these protocols and a local port in one of these ranges.
/// CAP_NET_ADMIN is not needed (tried on Linux 6.18, where an ordinary user may join).
fn join(protos: impl Iterator<Item = Proto>, ranges: &[(u16, u16)]) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::SOCK_DIAG),
    )?;
    // Neither is needed to be right: without the right to more memory, or without a filter, losses come sooner.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES);
    let _ = sys::attach_filter(socket.as_fd(), &mut filter(ranges));
    let groups = protos.fold(0, |groups, proto| {
        groups
            | match proto {
                Proto::Tcp => TCP_DESTROY,
                Proto::Udp => UDP_DESTROY,
            }
    });
    bind(&socket, &netlink::SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// The filter in the kernel: local ports in one of these ranges, ascending. Thus a host that closes thousands of connections a
/// second neither wakes us nor fills our queue: of 20,000 foreign closes while nobody read, 166 fitted into a queue of the
/// usual size and the wanted one was lost; with the filter it was the only one that came.
fn filter(ranges: &[(u16, u16)]) -> Vec<libc::sock_filter> {
    // `idiag_sport` of `struct inet_diag_msg` behind `struct nlmsghdr`; the load makes it a number.
    const LOCAL_PORT: u32 = 16 + 4;
    let op = |code: u32, jt: usize, jf: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt: u8::try_from(jt).unwrap_or_default(),
        jf: u8::try_from(jf).unwrap_or_default(),
        k,
    };
    let jump = libc::BPF_JMP | libc::BPF_K;
    let mut program = vec![op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, LOCAL_PORT)];
    for (i, &(low, high)) in ranges.iter().enumerate() {
        let left = ranges.len() - i;
        program.push(op(jump | libc::BPF_JGE, 0, 1, low.into()));
        program.push(op(jump | libc::BPF_JGT, 0, 2 * left - 1, high.into()));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX));
    program
}

/// Makes sure that we are told: one may join the groups of a kernel without inet_diag or udp_diag and never hear a word.
fn prove(wanted: &BTreeSet<(Proto, Port)>) -> io::Result<()> {
    let until = Instant::now() + PROOF_DEADLINE;
    let protos: BTreeSet<Proto> = wanted.iter().map(|&(proto, _)| proto).collect();
    for proto in protos {
        prove_on(&join([proto].into_iter(), &[(0, 0)])?, proto, until)?;
    }
    Ok(())
}

/// Ends a socket that is bound to nothing, and waits for the news.
fn prove_on(socket: &OwnedFd, proto: Proto, until: Instant) -> io::Result<()> {
    let kind = match proto {
        Proto::Tcp => SocketType::STREAM,
        Proto::Udp => SocketType::DGRAM,
    };
    let probe = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)
        .or_else(|_| socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, None))?;
    let cookie = sockopt::socket_cookie(&probe)?;
    drop(probe);
    while !is_told(socket, cookie)? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = format!("the kernel tells of no {proto} socket that ends");
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A duration as poll takes it.
fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 })
}

/// Whether what has come so far tells of this socket, or is too much to be told.
fn is_told(socket: &OwnedFd, cookie: u64) -> io::Result<bool> {
    let mut buffer = [0; MESSAGE_BYTES];
    loop {
        match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                if socket_messages(bytes).any(|message| message.cookie == cookie) {
                    return Ok(true);
                }
            }
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::NOBUFS) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The sockets that a datagram tells of. What is cut short ends it: only the first bytes of a message are of use to us.
fn socket_messages(mut bytes: &[u8]) -> impl Iterator<Item = SocketMessage<'_>> {
    std::iter::from_fn(move || Message::take(&mut bytes).ok())
        .filter(|message| message.kind == SOCK_DIAG_BY_FAMILY)
        .filter_map(|message| SocketMessage::read(message.body))
}

pub(super) fn read_ended(bytes: &[u8]) -> impl Iterator<Item = Ended> {
    socket_messages(bytes).flat_map(|message| {
        let mut attributes = message.attributes.clone().flatten();
        let told = attributes.find(|(kind, _)| *kind == INET_DIAG_PROTOCOL);
        let protos: &[Proto] = match told.and_then(|(_, value)| value.first()) {
            Some(&6) => &[Proto::Tcp],
            Some(&17) => &[Proto::Udp],
            // Better one look too many.
            Some(_) | None => &[Proto::Tcp, Proto::Udp],
        };
        let all = message.port.into_iter().flat_map(|port| protos.iter().map(move |&p| (p, port)));
        all.map(move |(proto, port)| Ended { proto, port, cookie: message.cookie })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_takes_no_loss_with_it() {
        use std::{io::Write, os::unix::net::UnixStream};

        let mut watch = Watch::new(&[]);
        watch.has_lost = true;
        let (wake, mut ring) = UnixStream::pair().unwrap();
        ring.write_all(b"x").unwrap();
        let now = Instant::now();
        assert_eq!(watch.wait(now, Some(wake.as_fd())), Woken::Signal);
        assert_eq!(watch.wait(now, None), Woken::LookAgain);
        assert_eq!(watch.wait(now, None), Woken::Deadline);
    }

    #[test]
    fn a_kernel_that_never_tells_is_found_out() {
        let deaf = join([].into_iter(), &[(0, 0)]).unwrap();
        let began = Instant::now();
        let answer = prove_on(&deaf, Proto::Tcp, began + Duration::from_millis(20));
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    /// The end of a socket on port 8091, as the kernel tells of it.
    fn message(protocol: u8) -> Vec<u8> {
        let mut message = 96_u32.to_ne_bytes().to_vec();
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.resize(16, 0);
        message.extend([2, 7, 0, 0]);
        message.extend(8091_u16.to_be_bytes());
        message.resize(16 + 44, 0);
        message.extend(42_u64.to_ne_bytes());
        message.resize(16 + 72, 0);
        message.extend(5_u16.to_ne_bytes());
        message.extend(INET_DIAG_PROTOCOL.to_ne_bytes());
        message.extend([protocol, 0, 0, 0]);
        message
    }

    fn protos(bytes: &[u8]) -> Vec<Proto> {
        read_ended(bytes).map(|ended| ended.proto).collect()
    }

    #[test]
    fn a_notification_names_protocol_port_and_cookie() {
        let expected = Ended { proto: Proto::Udp, port: Port::new(8091).unwrap(), cookie: 42 };
        assert_eq!(read_ended(&message(17)).collect::<Vec<_>>(), [expected]);
        assert_eq!(protos(&message(6)), [Proto::Tcp]);
    }

    #[test]
    fn a_socket_of_an_unknown_protocol_may_be_any_that_is_wanted() {
        assert_eq!(protos(&message(132)), [Proto::Tcp, Proto::Udp]);
        let mut without = message(17);
        without.truncate(16 + 72);
        without.splice(..4, 88_u32.to_ne_bytes());
        assert_eq!(protos(&without), [Proto::Tcp, Proto::Udp]);
    }

    #[test]
    fn a_notification_cut_short_at_any_byte_is_read_no_further() {
        let whole = message(6);
        for length in 0..whole.len() {
            assert_eq!(protos(&whole[..length]), [], "cut at {length}");
        }
    }

    #[test]
    fn however_many_ports_are_wanted_the_filters_jumps_stay_within_it() {
        let ports: BTreeSet<Port> = (1..800).step_by(2).filter_map(Port::new).collect();
        let program = filter(&ranges(&ports));
        for (at, step) in program.iter().enumerate() {
            let furthest = at + 1 + usize::from(step.jt.max(step.jf));
            assert!(furthest < program.len() || at + 2 >= program.len(), "at {at}");
        }
    }
}
