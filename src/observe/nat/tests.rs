//! Rules as kernels told them (recorded/, written by `PORTREEVE_RECORD=FOLDER cargo test recorded` in a network that has
//! them), and the walk by itself.

use std::{fmt::Write as _, fs, path::PathBuf};

use proptest::prelude::*;

use super::{super::netlink::Netlink, *};
use crate::ident::Port;

fn recorded(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/observe/nat/recorded").join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
    digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
}

/// A dump that is told from a recording: a line for each question, `KIND QUESTION ANSWER…`.
fn told(name: &str) -> Vec<Table> {
    let text = fs::read_to_string(recorded(name)).unwrap();
    let mut ask = |kind: u16, body: &[u8]| {
        let question = format!("{kind} {}", hex(body));
        let line = text.lines().find(|line| line.starts_with(&question)).expect(&question);
        Ok(line[question.len()..].split_whitespace().map(bytes).collect())
    };
    nft::read(&mut ask).unwrap()
}

/// Writes anew what `told` tells, of the network that this runs in.
#[test]
fn rules_are_recorded_where_that_is_asked_for() {
    let Some(folder) = std::env::var_os("PORTREEVE_RECORD").map(PathBuf::from) else { return };
    let mut text = String::new();
    let mut netlink = Netlink::open(Some(rustix::net::netlink::NETFILTER)).unwrap();
    let mut ask = |kind: u16, body: &[u8]| {
        let answer = netlink.dump(kind, body)?;
        let answer_hex: Vec<String> = answer.iter().map(|reply| hex(reply)).collect();
        writeln!(text, "{kind} {} {}", hex(body), answer_hex.join(" ")).unwrap();
        Ok(answer)
    };
    nft::read(&mut ask).unwrap();
    fs::write(folder.join("nft.txt"), text).unwrap();
    let legacy: Vec<String> =
        [Family::Ip, Family::Ip6].into_iter().filter_map(|f| xt::record(f, hex)).collect();
    fs::write(folder.join("xt.txt"), legacy.join("\n")).unwrap();
}

const HERE: &str = "127.0.0.1 ::1 192.168.7.7 fd00:7::7";

fn addresses(text: &str) -> BTreeSet<IpAddr> {
    text.split(' ').map(|address| address.parse().unwrap()).collect()
}

/// Where the packets of a port go, in short.
fn way(tables: &[Table], endpoint: &str) -> Vec<String> {
    let endpoints = [endpoint.parse().unwrap()];
    let found = detours(tables, &endpoints, &addresses(HERE)).unwrap();
    let to = |d: Detour| format!("{:?} {} {}", d.share, d.place.chain, d.to.unwrap_or_default());
    found.into_iter().map(to).collect()
}

#[test]
fn what_docker_20_and_netavark_1_4_write_through_iptables_is_read() {
    let tables = told("engines-iptables-nft.txt");
    assert_eq!(way(&tables, "8201"), ["All DOCKER 172.17.0.2:8091"]);
    assert_eq!(way(&tables, "8202"), ["All NETAVARK-DN-1D8721804F16F 10.88.0.4:8091"]);
    assert_eq!(way(&tables, "8204"), ["All NETAVARK-DN-1D8721804F16F 10.88.0.5:8091"]);
    assert_eq!(way(&tables, "8205/udp"), ["All DOCKER 172.17.0.3:8091"]);
    for free in ["8201/udp", "8205", "8091", "192.168.7.7:8204", "[::1]:8201", "127.0.0.1:8201"] {
        assert_eq!(way(&tables, free), Vec::<String>::new(), "{free}");
    }
    let endpoints = ["8202".parse().unwrap()];
    let found = detours(&tables, &endpoints, &addresses(HERE)).unwrap();
    assert!(found[0].comment.as_ref().unwrap().starts_with("dnat name: podman id: "), "{found:?}");
}

#[test]
fn rules_that_newer_engines_write_to_nftables_themselves_are_read() {
    let tables = told("nftables.txt");
    assert_eq!(way(&tables, "8301"), ["All nat-prerouting-and-output 172.17.0.2:80"]);
    assert_eq!(way(&tables, "127.0.0.1:8301"), ["All nat-prerouting-and-output 172.17.0.2:80"]);
    let netavark = ["All nv_2f259bab_10_88_0_0_nm16_dnat 10.88.0.5:80"];
    assert_eq!(way(&tables, "8302"), netavark);
    assert_eq!(way(&tables, "8305"), ["All nv_2f259bab_10_88_0_0_nm16_dnat 10.88.0.6"]);
    assert_eq!(way(&tables, "8303"), Vec::<String>::new());
    assert_eq!(way(&tables, "[::1]:8302"), Vec::<String>::new());
}

#[test]
fn the_older_tables_are_read() {
    let text = fs::read_to_string(recorded("older.txt")).unwrap();
    let tables: Vec<Table> = text
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let mut next = || words.next().unwrap();
            let family = if next() == "ip6" { Family::Ip6 } else { Family::Ip };
            let (info, entries) = (bytes(next()), bytes(next()));
            for length in 0..entries.len() {
                let cut = xt::read(family, &info, &entries[..length]);
                assert!(cut.is_none() || length == 0, "cut at {length}");
            }
            xt::read(family, &info, &entries).unwrap()
        })
        .collect();
    assert_eq!(way(&tables, "7401"), ["All MINE 10.9.9.1:80"]);
    assert_eq!(way(&tables, "7405"), ["All MINE 10.9.9.2"]);
    assert_eq!(way(&tables, "7407"), ["All MINE port 80"]);
    assert_eq!(way(&tables, "7408"), ["Some MINE 10.9.9.3"]);
    assert_eq!(way(&tables, "7410"), ["All PREROUTING [fd00::1]:80"]);
    for free in ["7403", "7409", "7411", "127.0.0.1:7401", "7401/udp"] {
        assert_eq!(way(&tables, free), Vec::<String>::new(), "{free}");
    }
}

#[test]
fn a_rule_set_that_changed_between_two_questions_is_asked_for_again() {
    let text = fs::read_to_string(recorded("nftables.txt")).unwrap();
    let mut ask = |kind: u16, body: &[u8]| {
        let question = format!("{kind} {}", hex(body));
        let line = text.lines().find(|line| line.starts_with(&question)).unwrap();
        let mut answer: Vec<Vec<u8>> =
            line[question.len()..].split_whitespace().map(bytes).collect();
        if kind & 0xff != 4 {
            answer[0][3] ^= 1;
        }
        Ok(answer)
    };
    let error = nft::read(&mut ask).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
}

fn rule(steps: Vec<Step>) -> Rule {
    Rule { number: RuleNumber::Handle(1), comment: None, steps }
}

fn table(rules: Vec<Rule>, more: Vec<(&str, Vec<Rule>)>) -> Table {
    let base = [("base", rules)];
    let chains = base.into_iter().chain(more).map(|(name, rules)| (name.to_owned(), rules));
    Table {
        family: Family::Inet,
        name: "t".to_owned(),
        bases: vec![(PREROUTING, "base".to_owned())],
        chains: chains.collect(),
    }
}

fn shares(table: Table) -> Vec<Share> {
    let endpoints = ["192.168.7.7:80".parse().unwrap()];
    let found = detours(&[table], &endpoints, &addresses(HERE)).unwrap();
    found.into_iter().map(|detour| detour.share).collect()
}

#[test]
fn a_rule_behind_one_that_decides_takes_nothing_and_behind_one_that_may_takes_all_the_same() {
    let detour = || rule(vec![Step::Detour(None)]);
    let stop = |test: Test| rule(vec![Step::Test(test), Step::Go(Verdict::Stop)]);
    assert_eq!(shares(table(vec![stop(Test::Known(true)), detour()], vec![])), []);
    for test in [Test::Some, Test::Unclear, Test::Known(false)] {
        assert_eq!(shares(table(vec![stop(test), detour()], vec![])), [Share::All]);
    }
    let jump = |test: Test| rule(vec![Step::Test(test), Step::Go(Verdict::Jump("on".to_owned()))]);
    let on = || vec![("on", vec![detour()])];
    assert_eq!(shares(table(vec![jump(Test::Known(true))], on())), [Share::All]);
    assert_eq!(shares(table(vec![jump(Test::Some)], on())), [Share::Some]);
    assert_eq!(shares(table(vec![jump(Test::Unclear)], on())), [Share::Unclear]);
    let away = || rule(vec![Step::Go(Verdict::Goto("on".to_owned()))]);
    assert_eq!(shares(table(vec![away(), detour()], vec![("on", vec![])])), []);
}

#[test]
fn chains_that_call_each_other_end() {
    let call = |name: &str| rule(vec![Step::Go(Verdict::Jump(name.to_owned()))]);
    let looped = table(vec![call("a")], vec![("a", vec![call("a"), call("base")])]);
    assert_eq!(shares(looped), []);
}

#[test]
fn chains_that_call_others_over_and_over_are_given_up_and_not_walked_to_their_end() {
    let call = |name: String| rule(vec![Step::Go(Verdict::Jump(name))]);
    let names: Vec<String> = (0..MOST_JUMPS).map(|depth| format!("c{depth}")).collect();
    // Sixty calls a chain, sixteen chains deep: no kernel refuses that, and nobody could count them.
    let calls = |to: &String| (0..60).map(|_| call(to.clone())).collect::<Vec<Rule>>();
    let mut chains: Vec<(&str, Vec<Rule>)> = Vec::new();
    for pair in names.windows(2) {
        chains.push((&pair[0], calls(&pair[1])));
    }
    chains.push((&names[MOST_JUMPS - 1], vec![rule(vec![Step::Test(Test::Known(false))])]));
    let table = table(calls(&names[0]), chains);
    let endpoints = ["192.168.7.7:80".parse().unwrap()];
    let error = detours(&[table], &endpoints, &addresses(HERE)).unwrap_err();
    assert_eq!(error.to_string(), "there are too many rules to follow");
}

proptest! {
    #[test]
    fn what_is_known_of_a_condition_and_of_its_opposite_agrees(
        low in 0_u16..200, high in 0_u16..200, port in 1_u16..200,
    ) {
        let packet = Packet { proto: 6, port, to: "127.0.0.1".parse().unwrap() };
        let test = Test::Port(low, high);
        let holds = (low..=high).contains(&port);
        prop_assert!((test.eval(&packet) == Meets::None) != holds);
        let opposite = not(test, true);
        prop_assert!((opposite.eval(&packet) == Meets::None) == holds);
        prop_assert!(Port::new(port).is_some());
    }

    #[test]
    fn an_address_under_a_mask_is_a_range_or_unclear(value: [u8; 4], mask: [u8; 4], other: [u8; 4]) {
        let is_under = value.iter().zip(mask).map(|(v, m)| v & m)
            .eq(other.iter().zip(mask).map(|(o, m)| o & m));
        let test = under_mask(&value, &mask);
        if let Test::To(low, high) = test {
            prop_assert_eq!((low..=high).contains(&IpAddr::from(other)), is_under);
        } else {
            prop_assert_eq!(test, Test::Unclear);
        }
    }
}
