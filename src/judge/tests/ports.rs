//! What a guarded port is said to be.

use super::super::port::PortState;
use super::scene::{Blindness, Fact, Scene};
use crate::{
    config::settings::ForeignHolder,
    ident::Pid,
    snapshot::{Seen, SocketState},
};

fn holder() -> Scene {
    Scene::new().process(6, 1, "sh").process(7, 6, "nc -l")
}

fn client(local: &str) -> Scene {
    holder().socket(&[7], local, SocketState::Connected("10.0.0.1:443".parse().unwrap()))
}

#[test]
fn a_port_without_sockets_is_free_only_where_a_silent_one_would_show() {
    let port = Scene::new().port("8091");
    assert_eq!((port.state, port.sentence.as_str()), (PortState::Free, "nothing has it"));
    let blind = Scene::new().edit_sockets(|s| s.sees_bound = false).port("8091");
    assert_eq!(blind.state, PortState::NoListener);
    assert!(blind.sentence.contains("bound and silent would not be seen"), "{}", blind.sentence);
}

#[test]
fn sockets_that_could_not_be_read_are_no_free_ports() {
    for blindness in [Blindness::Gone, Blindness::Denied, Blindness::Unreadable] {
        let scene = Scene::mess().without(&Fact::Sockets, blindness);
        for port in scene.judge().ports {
            assert!(matches!(port.state, PortState::Unknown(_)), "{blindness:?}");
        }
        assert_eq!(scene.judge().unknowns[0].fact, "the sockets on the guarded ports");
    }
}

#[test]
fn a_listener_holds_its_port_and_all_holders_are_named() {
    let port = holder().listens(7, 8091).port("8091");
    assert_eq!(port.state, PortState::Held(vec![Pid(7)]));
    assert_eq!(port.sentence, "held by pid 7 (foreign)");
    let shared =
        holder().process(8, 7, "worker").socket(&[7, 8], "0.0.0.0:8091", SocketState::Listening);
    assert_eq!(shared.port("8091").sentence, "held by pid 7 (foreign), pid 8 (foreign)");
}

#[test]
fn two_unrelated_holders_are_a_finding() {
    let scene = holder().listens(7, 8091).process(8, 1, "other").listens(8, 8091);
    let said = scene.port("8091").sentence;
    assert!(said.starts_with("held by 2 unrelated processes: "), "{said}");
    let one_session = scene.edit(8, |p| p.session = Pid(7)).port("8091");
    assert!(one_session.sentence.starts_with("held by pid 7"));
}

#[test]
fn bound_without_listening_is_held_by_a_server_that_loads() {
    let scene = holder().socket(&[7], "0.0.0.0:8091", SocketState::Bound);
    assert_eq!(scene.port("8091").state, PortState::BoundOnly(vec![Pid(7)]));
    assert_eq!(scene.says(7).1, "foreign");
}

#[test]
fn an_outgoing_connections_client_is_never_a_candidate() {
    let scene = client("10.0.0.2:47334").named_port("47334").ask(|t| t.also.foreign = true);
    let PortState::Ephemeral { holders, peer } = scene.port("47334").state else {
        panic!("{}", scene.port("47334").sentence);
    };
    assert_eq!((holders, peer.to_string()), (vec![Pid(7)], "10.0.0.1:443".to_owned()));
    assert!(scene.judge().verdicts.is_empty());
    // nor where the range is not known
    let unsure = scene.without(&Fact::EphemeralPorts, Blindness::Unreadable);
    assert!(matches!(unsure.port("47334").state, PortState::Unknown(_)));
    assert!(!unsure.convicts(7));
}

#[test]
fn the_sysctl_line_keeps_what_is_reserved_already() {
    let step = |reserved: Seen<String>| {
        let scene = client("10.0.0.2:47334").see(|s| s.reserved_ports = reserved);
        scene.port("47334").next_step.unwrap()
    };
    let line = "sysctl -w net.ipv4.ip_local_reserved_ports=";
    assert!(step(Seen::Known(String::new())).contains(&format!("{line}47334;")));
    let more = step(Seen::Known("8080,9000-9100".to_owned()));
    assert!(more.contains(&format!("{line}8080,9000-9100,47334;")), "{more}");
    for reserved in ["47334", "8080,47000-48000"] {
        let step = step(Seen::Known(reserved.to_owned()));
        assert!(step.starts_with("the kernel keeps off it already"), "{step}");
    }
    for unseen in [Seen::Gone, Seen::Denied, Seen::Unreadable("x".to_owned())] {
        let step = step(unseen);
        assert!(!step.contains("sysctl -w") && step.contains("add 47334"), "{step}");
    }
}

#[test]
fn whoever_only_has_a_connection_is_no_candidate_outside_the_range_either() {
    let scene = client("10.0.0.2:8091").named_port("8091").ask(|t| t.also.foreign = true);
    let PortState::Connected { holders, .. } = scene.port("8091").state else {
        panic!("{}", scene.port("8091").sentence);
    };
    assert_eq!(holders, vec![Pid(7)]);
    assert!(!scene.is_candidate(7));
    let reaping = scene.set(|s| s.services[0].foreign_holder = ForeignHolder::Reap);
    assert!(!reaping.convicts(7));
}

#[test]
fn closing_connections_linger_and_a_listener_beside_them_counts() {
    let scene = holder().socket(&[], "0.0.0.0:8091", SocketState::Lingering);
    assert_eq!(scene.port("8091").state, PortState::Lingering);
    assert_eq!(scene.listens(7, 8091).port("8091").state, PortState::Held(vec![Pid(7)]));
}

#[test]
fn a_socket_without_a_holder_is_the_kernels_only_to_eyes_that_see_all() {
    let unheld = || Scene::new().socket(&[], "0.0.0.0:8091", SocketState::Listening);
    assert_eq!(unheld().port("8091").state, PortState::KernelOwned);
    for scene in [
        unheld().see(|s| s.sight.may_see_all = false),
        unheld().see(|s| s.sight.is_first_pid_namespace = false),
        unheld().edit_sockets(|s| s.refused = 1),
        unheld().see(|s| s.unread.push((Pid::OUTSIDE, "'/proc' cannot be listed".to_owned()))),
    ] {
        assert_eq!(scene.port("8091").state, PortState::HolderNotVisible);
    }
    // what helps without rights stands among the unknowns, once
    let unprivileged = unheld().see(|s| s.sight.may_see_all = false);
    assert_eq!(unprivileged.port("8091").next_step, None);
    let blind = unprivileged.edit_sockets(|s| s.refused = 3).judge().unknowns;
    assert!(blind[0].remedy.as_ref().unwrap().contains("sudo"), "{blind:?}");
    let nested = unheld().see(|s| s.sight.is_first_pid_namespace = false).port("8091");
    assert!(nested.next_step.unwrap().contains("outside the container"));
}

/// Tried on Linux 6.18: which pairs of a listening and a wanted address cannot both be bound.
#[test]
fn a_port_is_taken_by_the_addresses_that_a_bind_would_meet() {
    let v4_any = "0.0.0.0";
    let v4 = "127.0.0.1";
    let v6_any = "[::]";
    let v6_only = "[::] v6only";
    let v6 = "[::1]";
    let mapped = "[::ffff:127.0.0.1]";
    for (wanted, taken_by, free_beside) in [
        (v4_any, vec![v4_any, v4, v6_any, mapped], vec![v6_only, v6]),
        (v4, vec![v4_any, v4, v6_any, mapped], vec![v6_only, v6]),
        (v6_any, vec![v4_any, v4, v6_any, v6_only, v6, mapped], vec![]),
        (v6, vec![v6_any, v6_only, v6], vec![v4_any, v4, mapped]),
        (mapped, vec![v4_any, v4, v6_any, mapped], vec![v6_only, v6]),
    ] {
        let beside = |address: &str| {
            let bare = address.trim_end_matches(" v6only");
            holder()
                .socket(&[7], &format!("{bare}:9000"), SocketState::Listening)
                .edit_sockets(|s| {
                    s.all[0].v6only = bare.starts_with('[').then_some(address != bare);
                })
                .named_port(&format!("{wanted}:9000"))
        };
        for address in taken_by {
            let scene = beside(address);
            let state = scene.port(&format!("{wanted}:9000")).state;
            assert_eq!(state, PortState::Held(vec![Pid(7)]), "{wanted} beside {address}");
            assert_eq!(scene.judge().verdicts.len(), 1, "{wanted} beside {address}");
        }
        for address in free_beside {
            let scene = beside(address);
            let state = scene.port(&format!("{wanted}:9000")).state;
            assert_eq!(state, PortState::Free, "{wanted} beside {address}");
            assert!(scene.judge().verdicts.is_empty(), "{wanted} beside {address}");
        }
    }
    let udp = holder().listens(7, 9000).named_port("9000/udp");
    assert_eq!(udp.port("9000/udp").state, PortState::Free);
}

#[test]
fn an_ipv6_socket_that_may_take_ipv4_too_blocks_and_convicts_nobody() {
    let scene = holder()
        .socket(&[7], "[::]:9000", SocketState::Listening)
        .edit_sockets(|s| s.all[0].v6only = None)
        .named_port("127.0.0.1:9000")
        .ask(|t| t.also.foreign = true);
    assert_eq!(scene.port("127.0.0.1:9000").state, PortState::Held(vec![Pid(7)]));
    assert_eq!(scene.says(7).1, "undecided");
    assert!(!scene.convicts(7));
}
