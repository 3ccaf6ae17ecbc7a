//! Which rules of the kernel's packet filter send the packets of guarded ports elsewhere: those of nftables (`nft`, with
//! what iptables-nft keeps there) and of the older tables (`xt`), read as the kernel tells them and walked as the kernel
//! walks them, with a packet to each guarded port. What the walk cannot know of a packet, a sender or an interface, makes
//! a rule take some of them; a condition that it does not know makes it unclear, never harmless.

#[cfg(any(test, fuzzing))]
pub(super) mod hostile;
mod nft;
#[cfg(test)]
mod tests;
mod xt;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    netlink::Netlink,
    wire::{Attributes, cut_short},
};
use crate::{
    host::{Host, seen},
    ident::{Endpoint, Proto},
    snapshot::{Detour, RuleNumber, RulePlace, Seen, Share},
};

/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT` (linux/netfilter.h): where a packet's destination may be changed.
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
/// `NFT_JUMP_STACK_SIZE` (net/netfilter/nf_tables.h).
const MOST_JUMPS: usize = 16;
/// A host with so many rules and addresses is left unknown: some seconds.
const MOST_VISITS: usize = 20_000_000;

/// Rules that take packets of these endpoints. Denied: without CAP_NET_ADMIN the kernel tells none.
pub fn observe(host: &Host, endpoints: &[Endpoint]) -> Seen<Vec<Detour>> {
    if !host.is_live() {
        return Seen::Unreadable("this host's kernel does not run here".to_owned());
    }
    seen(tables(host).and_then(|tables| {
        if tables.is_empty() { Ok(Vec::new()) } else { detours(&tables, endpoints, &addresses()?) }
    }))
}

fn tables(host: &Host) -> io::Result<Vec<Table>> {
    let mut tables = nft::tables()?;
    tables.extend(xt::tables(host)?);
    Ok(tables)
}

/// A table with its chains; only such as may change a destination.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    family: Family,
    name: String,
    /// Chains that the kernel enters by itself, with where it does.
    bases: Vec<(u32, String)>,
    chains: BTreeMap<String, Vec<Rule>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Ip,
    Ip6,
    Inet,
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        }
    }

    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Ip => address.is_ipv4(),
            Self::Ip6 => address.is_ipv6(),
            Self::Inet => true,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    number: RuleNumber,
    comment: Option<String>,
    steps: Vec<Step>,
}

/// What a rule does, one after the other, as long as its tests hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Test(Test),
    /// The first that fits says where to go on.
    Cases(Vec<(Test, Verdict)>),
    Go(Verdict),
    /// To another address.
    Detour(Option<String>),
    /// To another port of this host; 0 where the rule computes it.
    Redirect(Option<u16>),
}

impl Step {
    /// What it costs beside a visit: maps and sets may have thousands of elements.
    fn weight(&self) -> usize {
        match self {
            Self::Cases(cases) => cases.len(),
            Self::Test(test) => test.weight(),
            Self::Go(_) | Self::Detour(_) | Self::Redirect(_) => 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// The packet goes its way: accepted, dropped.
    Stop,
    Return,
    Jump(String),
    Goto(String),
    Continue,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Proto(u8, u8),
    /// Destination port.
    Port(u16, u16),
    /// Destination address, from here to there.
    To(IpAddr, IpAddr),
    IsIpv6,
    Known(bool),
    /// Some packets meet it: a sender, an interface, a mark that a rule has set.
    Some,
    /// A condition that is not known to us.
    Unclear,
    Any(Vec<Test>),
    All(Vec<Test>),
    Not(Box<Test>),
}

/// Whether packets to a guarded port meet a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meets {
    None,
    These(Share),
}

/// A first packet to a guarded port.
#[derive(Debug, Clone, Copy)]
struct Packet {
    proto: u8,
    port: u16,
    to: IpAddr,
}

impl Test {
    fn weight(&self) -> usize {
        match self {
            Self::Any(tests) | Self::All(tests) => tests.len(),
            Self::Not(test) => test.weight(),
            Self::Proto(..)
            | Self::Port(..)
            | Self::To(..)
            | Self::IsIpv6
            | Self::Known(_)
            | Self::Some
            | Self::Unclear => 0,
        }
    }

    fn eval(&self, packet: &Packet) -> Meets {
        use Meets::{None, These};
        let of = |holds: bool| if holds { These(Share::All) } else { None };
        match self {
            Self::Proto(low, high) => of((low..=high).contains(&&packet.proto)),
            Self::Port(low, high) => of((low..=high).contains(&&packet.port)),
            Self::To(low, high) => {
                of(low.is_ipv4() == packet.to.is_ipv4() && (low..=high).contains(&&packet.to))
            }
            Self::IsIpv6 => of(packet.to.is_ipv6()),
            Self::Known(holds) => of(*holds),
            Self::Some => These(Share::Some),
            Self::Unclear => These(Share::Unclear),
            Self::Any(tests) => {
                let met = tests.iter().map(|test| test.eval(packet));
                met.fold(None, |best, met| match (best, met) {
                    (None, met) => met,
                    (best, None) => best,
                    (These(a), These(b)) => These(a.min(b)),
                })
            }
            Self::All(tests) => {
                let met = tests.iter().map(|test| test.eval(packet));
                met.fold(These(Share::All), |worst, met| match (worst, met) {
                    (None, _) | (_, None) => None,
                    (These(a), These(b)) => These(a.max(b)),
                })
            }
            Self::Not(test) => match test.eval(packet) {
                None | These(Share::Some) => These(Share::All),
                These(Share::All) => None,
                These(Share::Unclear) => These(Share::Unclear),
            },
        }
    }
}

/// Where a packet is after a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// With the next rule of who called.
    Caller,
    /// Nowhere: a rule has decided.
    Decided,
}

/// One packet on its way through a table.
struct Walk<'a> {
    table: &'a Table,
    packet: Packet,
    found: BTreeMap<RulePlace, (Share, Option<String>, Option<String>)>,
    visits: &'a mut usize,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, path: Share, comment: Option<&str>, jumps: usize) -> After {
        let Some(rules) = self.table.chains.get(name).filter(|_| jumps <= MOST_JUMPS) else {
            return After::Caller;
        };
        for rule in rules {
            *self.visits += 1 + rule.steps.iter().map(Step::weight).sum::<usize>();
            // Chains that call others over and over outgrow any time; who called learns of it from the count.
            if *self.visits > MOST_VISITS {
                return After::Decided;
            }
            let comment = rule.comment.as_deref().or(comment);
            if let Some(after) = self.rule(name, rule, path, comment, jumps) {
                return after;
            }
        }
        After::Caller
    }

    /// None = the next rule.
    fn rule(
        &mut self,
        chain: &str,
        rule: &Rule,
        path: Share,
        comment: Option<&str>,
        jumps: usize,
    ) -> Option<After> {
        let mut own = Share::All;
        for step in &rule.steps {
            match step {
                Step::Test(test) => match test.eval(&self.packet) {
                    Meets::None => return None,
                    Meets::These(share) => own = own.max(share),
                },
                Step::Cases(cases) => {
                    for (test, verdict) in cases {
                        let Meets::These(share) = test.eval(&self.packet) else { continue };
                        let share = own.max(share);
                        let after = self.go(verdict, path.max(share), comment, jumps);
                        if share == Share::All {
                            return after;
                        }
                    }
                    return None;
                }
                Step::Go(verdict) => {
                    let after = self.go(verdict, path.max(own), comment, jumps);
                    // Who may not have met the tests goes on.
                    return after.filter(|_| own == Share::All);
                }
                Step::Redirect(port) if port.is_none_or(|port| port == self.packet.port) => {
                    return (own == Share::All).then_some(After::Decided);
                }
                Step::Detour(_) | Step::Redirect(_) => {
                    let to = match step {
                        Step::Detour(to) => to.clone(),
                        Step::Redirect(port) => {
                            port.filter(|port| *port != 0).map(|port| format!("port {port}"))
                        }
                        Step::Test(_) | Step::Cases(_) | Step::Go(_) => None,
                    };
                    let place = RulePlace {
                        family: self.table.family.word(),
                        table: self.table.name.clone(),
                        chain: chain.to_owned(),
                        number: rule.number,
                    };
                    let (share, comment) = (path.max(own), comment.map(str::to_owned));
                    let known = self.found.entry(place).or_insert((share, to, comment));
                    known.0 = known.0.min(share);
                    return (own == Share::All).then_some(After::Decided);
                }
            }
        }
        None
    }

    fn go(
        &mut self,
        verdict: &Verdict,
        path: Share,
        comment: Option<&str>,
        jumps: usize,
    ) -> Option<After> {
        match verdict {
            Verdict::Stop => Some(After::Decided),
            Verdict::Return => Some(After::Caller),
            Verdict::Continue => None,
            Verdict::Jump(chain) => {
                let after = self.chain(chain, path, comment, jumps + 1);
                Some(after).filter(|after| *after == After::Decided)
            }
            Verdict::Goto(chain) => Some(self.chain(chain, path, comment, jumps + 1)),
        }
    }
}

fn detours(
    tables: &[Table],
    endpoints: &[Endpoint],
    addresses: &BTreeSet<IpAddr>,
) -> io::Result<Vec<Detour>> {
    let mut visits = 0;
    let mut all: BTreeMap<(Endpoint, RulePlace), Detour> = BTreeMap::new();
    for endpoint in endpoints {
        for to in destinations(endpoint, addresses) {
            let proto = match endpoint.proto {
                Proto::Tcp => 6,
                Proto::Udp => 17,
            };
            let packet = Packet { proto, port: endpoint.port.number(), to };
            for table in tables.iter().filter(|table| table.family.has(to)) {
                for (hook, chain) in &table.bases {
                    // What goes to a loopback address comes from here, and its way was chosen when it left.
                    if to.is_loopback() && *hook != OUTPUT {
                        continue;
                    }
                    let mut walk =
                        Walk { table, packet, found: BTreeMap::new(), visits: &mut visits };
                    walk.chain(chain, Share::All, None, 0);
                    for (place, (share, to, comment)) in walk.found {
                        let key = (*endpoint, place.clone());
                        let new = Detour { endpoint: *endpoint, place, share, to, comment };
                        let detour = all.entry(key).or_insert(new);
                        detour.share = detour.share.min(share);
                    }
                }
                if visits > MOST_VISITS {
                    return Err(io::Error::other("there are too many rules to follow"));
                }
            }
        }
    }
    Ok(all.into_values().collect())
}

/// Addresses to which clients of a server on this endpoint may send.
fn destinations(endpoint: &Endpoint, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let of = |is_it: fn(&IpAddr) -> bool| addresses.iter().copied().filter(is_it).collect();
    match endpoint.address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => of(IpAddr::is_ipv4),
        None | Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => of(|_| true),
        Some(address) => vec![address],
    }
}

/// Every address of this network namespace (rtnetlink(7), RTM_GETADDR).
fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    const RTM_GETADDR: u16 = 22;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let mut netlink = Netlink::open(None)?;
    let mut all = BTreeSet::new();
    // struct ifaddrmsg
    for reply in again(|| netlink.dump(RTM_GETADDR, &[0; 8]))? {
        let attributes = reply.get(8..).ok_or_else(cut_short)?;
        let (mut address, mut local) = (None, None);
        for attribute in Attributes::of(attributes) {
            match attribute? {
                (IFA_ADDRESS, value) => address = ip(value),
                (IFA_LOCAL, value) => local = ip(value),
                _ => {}
            }
        }
        all.extend(local.or(address));
    }
    Ok(all)
}

/// An address in network order, by its length.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Asks again, a few times, what changed while it was read.
fn again<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 4;
    let mut tries = 0;
    loop {
        tries += 1;
        match ask() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < TRIES => {}
            answer => return answer,
        }
    }
}

/// Those of an address whose bits under this mask are these; unclear where the mask has holes.
fn under_mask(value: &[u8], mask: &[u8]) -> Test {
    let bits = mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
    let leading = mask.iter().take_while(|byte| **byte == 0xff).count() * 8
        + mask.iter().find(|byte| **byte != 0xff).map_or(0, |byte| byte.leading_ones() as usize);
    if value.len() != mask.len() || leading != bits as usize {
        return Test::Unclear;
    }
    let low: Vec<u8> = value.iter().zip(mask).map(|(v, m)| v & m).collect();
    let high: Vec<u8> = value.iter().zip(mask).map(|(v, m)| (v & m) | !m).collect();
    match (ip(&low), ip(&high)) {
        (Some(low), Some(high)) => Test::To(low, high),
        (_, _) => Test::Unclear,
    }
}

/// Packets of senders' ports from here to there: "1024-65535" are nearly all.
fn of_senders(low: u16, high: u16) -> Test {
    if low == high { Test::Some } else { Test::Unclear }
}

fn not(test: Test, is_negated: bool) -> Test {
    if is_negated { Test::Not(Box::new(test)) } else { test }
}

/// An address and a port as people write them.
fn target(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}
