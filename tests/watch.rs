//! Being woken when a port is released, on real sockets: whatever ends is told, whatever is lost is looked for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]
#![allow(unsafe_code, reason = "a seccomp filter is put on a thread")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
    time::{Duration, Instant},
};

use portreeve::{
    ident::{Endpoint, Pid, Port, Proto},
    observe::{
        diag::{Diag, states},
        processes::open_pidfd,
        watch::{Ended, Watch, Woken},
    },
    snapshot::Seen,
};
use rustix::{
    net::{AddressFamily, SocketType, bind, ipproto, listen, socket, sockopt},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use support::{
    DEADLINE, skip,
    stage::{Planted, Stage},
    wait_until,
};

/// Long enough for every notification that is under way.
const A_WHILE: Duration = Duration::from_millis(100);

fn stage() -> Option<Stage> {
    Stage::set().map_err(|reason| skip(&reason)).ok()
}

fn watch(endpoints: &[&str]) -> Watch {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| text.parse().unwrap()).collect();
    let watch = Watch::new(&endpoints);
    assert!(watch.polls_since().is_none(), "{:?}", watch.polls_since());
    watch
}

fn in_a_while() -> Instant {
    Instant::now() + A_WHILE
}

/// The next release that is told of.
fn released(watch: &mut Watch) -> Vec<Ended> {
    let until = Instant::now() + DEADLINE;
    loop {
        match watch.wait(until, None) {
            Woken::Released(ended) => return ended,
            Woken::LookAgain => {}
            other @ (Woken::HolderEnded | Woken::Signal | Woken::Deadline) => {
                panic!("no release was told of, but {other:?}")
            }
        }
    }
}

/// What the kernel tells of a socket's end.
fn ended(proto: Proto, port: u16, socket: impl AsFd) -> Ended {
    let cookie = sockopt::socket_cookie(socket).unwrap();
    Ended { proto, port: Port::new(port).unwrap(), cookie }
}

/// A socket that is bound and no more.
fn bound(family: AddressFamily, kind: SocketType, place: &str) -> OwnedFd {
    let socket = socket(family, kind, None).unwrap();
    bind(&socket, &place.parse::<SocketAddr>().unwrap()).unwrap();
    socket
}

/// The cookies of all that listens on this TCP port, as a fresh dump shows them.
fn listening(port: u16) -> BTreeSet<u64> {
    let ports = BTreeSet::from([Port::new(port).unwrap()]);
    let found = Diag::open().unwrap().sockets(Proto::Tcp, states::LISTEN, &ports).unwrap();
    found.iter().filter_map(|socket| socket.cookie).collect()
}

fn pidfd(planted: &Planted) -> OwnedFd {
    match open_pidfd(Pid(planted.pid())) {
        Seen::Known(pidfd) => pidfd,
        other @ (Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => panic!("{other:?}"),
    }
}

// ---- what is told

#[test]
fn the_close_of_any_socket_on_a_wanted_port_wakes_us_and_names_it() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let (tcp, udp) = (SocketType::STREAM, SocketType::DGRAM);
        let (v4, v6) = (AddressFamily::INET, AddressFamily::INET6);
        for (family, kind, place, is_listening) in [
            (v4, tcp, "127.0.0.1:7400", true),
            (v6, tcp, "[::1]:7400", true),
            (v6, tcp, "[::]:7400", true),
            (v4, tcp, "0.0.0.0:7400", false),
            (v6, tcp, "[::]:7400", false),
            (v4, udp, "127.0.0.1:7400", false),
            (v6, udp, "[::1]:7400", false),
        ] {
            let mut watch = watch(&["7400", "7400/udp"]);
            let socket = bound(family, kind, place);
            if is_listening {
                listen(&socket, 1).unwrap();
            }
            let proto = if kind == tcp { Proto::Tcp } else { Proto::Udp };
            let expected = ended(proto, 7400, &socket);
            assert_eq!(watch.wait(in_a_while(), None), Woken::Deadline, "{place} is open");
            drop(socket);
            assert_eq!(released(&mut watch), [expected], "{place}, {proto}");
        }
    });
}

#[test]
fn a_close_between_the_look_and_the_wait_is_told() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut watch = watch(&["7400"]);
        let listener = TcpListener::bind("127.0.0.1:7400").unwrap();
        watch.follow(Some(listening(7400)));
        let expected = ended(Proto::Tcp, 7400, &listener);
        drop(listener);
        let told = Woken::Released(vec![expected]);
        wait_until(DEADLINE, "it is told", || watch.wait(Instant::now(), None) == told);
        assert_eq!(watch.wait(Instant::now(), None), Woken::Deadline, "and once only");
    });
}

#[test]
fn other_ports_and_the_other_protocol_do_not_wake_us() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut watch = watch(&["7400", "7402/udp"]);
        drop(TcpListener::bind("127.0.0.1:7401").unwrap());
        drop(TcpListener::bind("127.0.0.1:7402").unwrap());
        drop(UdpSocket::bind("127.0.0.1:7400").unwrap());
        assert_eq!(watch.wait(in_a_while(), None), Woken::Deadline);
    });
}

#[test]
fn every_port_of_many_is_told_and_none_between_them() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        // More than the filter has ranges for: some unwanted ports come through it, and are sorted out here.
        let wanted: Vec<u16> = (0..200).map(|i| 10_000 + i * 10 + i % 3).collect();
        let texts: Vec<String> = wanted.iter().map(u16::to_string).collect();
        let mut watch = watch(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        for port in 9_990..12_010 {
            drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        }
        let mut told = BTreeSet::new();
        while told.len() < wanted.len() {
            told.extend(released(&mut watch).iter().map(|e| e.port.number()));
        }
        assert!(told.iter().copied().eq(wanted));
    });
}

#[test]
fn a_followed_listener_is_told_of_and_the_connections_that_it_had_are_not() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut watch = watch(&["7400"]);
        let listener = TcpListener::bind("127.0.0.1:7400").unwrap();
        watch.follow(Some(listening(7400)));
        for _ in 0..100 {
            let client = TcpStream::connect("127.0.0.1:7400").unwrap();
            drop(listener.accept().unwrap());
            drop(client);
        }
        assert_eq!(watch.wait(in_a_while(), None), Woken::Deadline);
        let expected = ended(Proto::Tcp, 7400, &listener);
        drop(listener);
        assert_eq!(released(&mut watch), [expected]);
    });
}

#[test]
fn a_multipath_listener_is_told_of_by_the_cookie_that_the_dump_shows() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut watch = watch(&["7400"]);
        // What a Go program has from 1.24 on.
        let listener = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP));
        let Ok(listener) = listener else { return skip("this kernel has no MPTCP") };
        bind(&listener, &"127.0.0.1:7400".parse::<SocketAddr>().unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        let seen = listening(7400);
        watch.follow(Some(seen.clone()));
        drop(listener);
        let told: BTreeSet<u64> = released(&mut watch).iter().map(|e| e.cookie).collect();
        assert_eq!(told, seen);
    });
}

// ---- processes

#[test]
fn a_killed_holder_wakes_us_and_nothing_listens_any_more() {
    let Some(stage) = stage() else { return };
    let mut server = stage.plant(&["--listen", "7400"]);
    let mut watch = stage.within(|| watch(&["7400"]));
    watch.add_holder(pidfd(&server));
    assert_eq!(watch.wait(in_a_while(), None), Woken::Deadline);
    server.end();
    let until = Instant::now() + DEADLINE;
    let woken = watch.wait(until, None);
    assert!(matches!(woken, Woken::Released(_) | Woken::HolderEnded), "{woken:?}");
    assert_eq!(stage.within(|| listening(7400)), BTreeSet::new());
    // The other word may come as well; then it is quiet: who has ended stays readable, and wakes once.
    while watch.wait(in_a_while(), None) != Woken::Deadline {
        assert!(Instant::now() < until);
    }
}

#[test]
fn a_socket_that_several_share_is_told_of_when_the_last_lets_go() {
    let Some(stage) = stage() else { return };
    let (ready, leash) = (stage.path("ready"), stage.path("leash"));
    let (ready, leash) = (ready.to_str().unwrap(), leash.to_str().unwrap());
    let words = ["--listen", "7400", "--inherit", "--child", "--ready", ready, "--leash", leash];
    let mut first = stage.plant(&words);
    let mut pid = None;
    wait_until(DEADLINE, "the child is in place", || {
        pid = fs::read_to_string(ready).ok().and_then(|text| text.parse().ok());
        pid.is_some()
    });
    let mut second = Planted::adopt(pid.unwrap());
    let mut watch = stage.within(|| watch(&["7400"]));
    watch.add_holder(pidfd(&first));
    first.end();
    assert_eq!(watch.wait(in_a_while(), None), Woken::HolderEnded, "a holder, not the last");
    assert_eq!(watch.wait(in_a_while(), None), Woken::Deadline);
    second.end();
    assert_eq!(released(&mut watch).len(), 1);
}

#[test]
fn a_socket_is_told_of_however_it_was_held() {
    let Some(stage) = stage() else { return };
    for way in ["outlived", "own-table", "ring", "in-flight"] {
        let Ok(mut server) = stage.try_plant(&[], &["--how", way, "--listen", "7400"]) else {
            skip(&format!("a socket cannot be held by way of '{way}' here"));
            continue;
        };
        let mut watch = stage.within(|| {
            let mut watch = watch(&["7400"]);
            watch.follow(Some(listening(7400)));
            watch
        });
        server.end();
        assert_eq!(released(&mut watch).len(), 1, "{way}");
        assert_eq!(stage.within(|| listening(7400)), BTreeSet::new(), "{way}");
    }
}

// ---- what a release is not

#[test]
fn a_release_that_leaves_time_wait_behind_says_look_again_and_looks_go_on() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut watch = watch(&["7400"]);
        let listener = TcpListener::bind("127.0.0.1:7400").unwrap();
        let mut client = TcpStream::connect("127.0.0.1:7400").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"x").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
        drop(client);
        drop(server);
        drop(listener);
        assert!(!released(&mut watch).is_empty());
        let plain = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let place: SocketAddr = "127.0.0.1:7400".parse().unwrap();
        assert_eq!(bind(&plain, &place), Err(rustix::io::Errno::ADDRINUSE));
        drop(plain);
        // Nobody tells of its end: the beat has us look.
        let began = Instant::now();
        while watch.wait(began + DEADLINE, None) != Woken::LookAgain {}
        assert!(began.elapsed() < Duration::from_secs(5));
    });
}

// ---- storms

#[test]
fn one_wanted_close_among_forty_thousand_others_is_told_though_nobody_reads_meanwhile() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let (mut last, mut watch) = (watch(&["7401"]), watch(&["7400", "7400/udp"]));
        let listener = TcpListener::bind("127.0.0.1:7400").unwrap();
        let expected = ended(Proto::Tcp, 7400, &listener);
        let storm = || {
            for _ in 0..20_000 {
                drop(UdpSocket::bind("127.0.0.1:0").unwrap());
            }
        };
        storm();
        drop(listener);
        storm();
        // The kernel tells in the background: by then most of it has been told.
        drop(TcpListener::bind("127.0.0.1:7401").unwrap());
        released(&mut last);
        assert_eq!(released(&mut watch), [expected]);
    });
}

/// A UDP socket on port 7400. Each at an address of its own: while a test beside this one starts a process, that has what
/// we have just closed, until it runs its program.
fn open_and_close(nth: u16) {
    let [high, low] = nth.to_be_bytes();
    drop(UdpSocket::bind((Ipv4Addr::new(127, 9, high, low), 7400)).unwrap());
}

#[test]
fn more_closes_on_the_wanted_port_than_there_is_room_for_make_us_look_and_hear_on() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let (mut last, mut watch) = (watch(&["7401"]), watch(&["7400/udp"]));
        // Some 10,000 fit in.
        (0..40_000).for_each(open_and_close);
        drop(TcpListener::bind("127.0.0.1:7401").unwrap());
        released(&mut last);
        let began = Instant::now();
        let (wake, mut ring) = UnixStream::pair().unwrap();
        ring.write_all(b"x").unwrap();
        assert_eq!(watch.wait(began + DEADLINE, Some(wake.as_fd())), Woken::Signal);
        assert_eq!(watch.wait(began + DEADLINE, None), Woken::LookAgain, "the loss is told");
        assert!(began.elapsed() < Duration::from_millis(400), "sooner than any beat");
        while watch.wait(in_a_while(), None) != Woken::Deadline {}
        let socket = UdpSocket::bind("127.0.0.1:7400").unwrap();
        let expected = ended(Proto::Udp, 7400, &socket);
        drop(socket);
        assert_eq!(released(&mut watch), [expected], "heard again after the loss");
    });
}

#[test]
fn in_a_storm_on_the_wanted_port_itself_the_end_of_what_is_followed_leads_to_a_look() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut watch = watch(&["7400/udp"]);
        let socket = UdpSocket::bind("127.0.0.1:7400").unwrap();
        let expected = ended(Proto::Udp, 7400, &socket);
        watch.follow(Some(BTreeSet::from([expected.cookie])));
        thread::scope(|scope| {
            scope.spawn(move || {
                (0..20_000).for_each(open_and_close);
                drop(socket);
            });
            let until = Instant::now() + DEADLINE;
            loop {
                match watch.wait(until, None) {
                    Woken::Released(ended) => break assert_eq!(ended, [expected]),
                    // What the gate would do: the socket is gone, or it is not and will be told of.
                    Woken::LookAgain if !is_bound(expected.cookie) => break,
                    Woken::LookAgain => {}
                    other @ (Woken::HolderEnded | Woken::Signal | Woken::Deadline) => {
                        panic!("{other:?}")
                    }
                }
            }
        });
    });
}

fn is_bound(cookie: u64) -> bool {
    let ports = BTreeSet::from([Port::new(7400).unwrap()]);
    let found = Diag::open().unwrap().sockets(Proto::Udp, states::UNCONNECTED, &ports).unwrap();
    found.iter().any(|socket| socket.cookie == Some(cookie))
}

// ---- the caller's own descriptor

#[test]
fn a_signal_ends_the_wait_at_once_and_takes_no_news_with_it() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut watch = watch(&["7400"]);
        let (mut wake, mut ring) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:7400").unwrap();
        ring.write_all(b"x").unwrap();
        drop(listener);
        let until = Instant::now() + DEADLINE;
        assert_eq!(watch.wait(until, Some(wake.as_fd())), Woken::Signal);
        assert_eq!(wake.read(&mut [0; 8]).unwrap(), 1);
        assert!(matches!(watch.wait(until, Some(wake.as_fd())), Woken::Released(_)));
        assert_eq!(watch.wait(in_a_while(), Some(wake.as_fd())), Woken::Deadline);
        drop(ring);
        assert_eq!(watch.wait(until, Some(wake.as_fd())), Woken::Signal, "its other end is gone");
    });
}

// ---- without the right, without the kernel's help

#[test]
fn without_cap_net_admin_it_hears_or_says_that_it_polls_and_sees_the_release_either_way() {
    let Some(stage) = stage() else { return };
    stage.within(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        sets.permitted.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        let listener = TcpListener::bind("127.0.0.1:7400").unwrap();
        let mut watch = Watch::new(&["7400".parse().unwrap()]);
        println!("without the right it polls: {:?}", watch.polls_since());
        drop(listener);
        let woken = watch.wait(Instant::now() + DEADLINE, None);
        assert!(matches!(woken, Woken::Released(_) | Woken::LookAgain), "{woken:?}");
        assert_eq!(listening(7400), BTreeSet::new());
    });
}

/// Every netlink socket of this thread is refused from now on, as RestrictAddressFamilies= refuses it.
fn refuse_netlink() {
    let op = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    };
    let load = |offset| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset);
    let unless = |skip, value| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skip, value);
    let answer = |what| op(libc::BPF_RET | libc::BPF_K, 0, what);
    let mut program = [
        load(0),
        unless(3, u32::try_from(libc::SYS_socket).unwrap()),
        // The lower half of the first argument, on little-endian machines.
        load(16),
        unless(1, u32::try_from(libc::AF_NETLINK).unwrap()),
        answer(libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EAFNOSUPPORT).unwrap()),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 6, filter: program.as_mut_ptr() };
    let (yes, nothing): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: it takes five integers.
    let alone = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, nothing, nothing, nothing) };
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the kernel only reads the filter, which lives through the call.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) };
    assert_eq!([alone, filtered], [0, 0], "{}", std::io::Error::last_os_error());
}

#[test]
fn where_netlink_is_refused_it_polls_says_why_and_still_hears_of_holders() {
    let Some(stage) = stage() else { return };
    let mut server = stage.plant(&["--listen", "7400"]);
    let mut watch = stage.within(|| {
        refuse_netlink();
        Watch::new(&["7400".parse().unwrap()])
    });
    let why = watch.polls_since().expect("it polls").raw_os_error();
    assert_eq!(why, Some(libc::EAFNOSUPPORT));
    let began = Instant::now();
    assert_eq!(watch.wait(began + DEADLINE, None), Woken::LookAgain);
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    watch.add_holder(pidfd(&server));
    server.end();
    assert_eq!(watch.wait(Instant::now() + DEADLINE, None), Woken::HolderEnded);
    assert_eq!(watch.wait(Instant::now() + DEADLINE, None), Woken::LookAgain);
}
