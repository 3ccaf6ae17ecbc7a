//! The rules of nftables over netlink (linux/netfilter/nf_tables.h): chains that may change a destination, and the rules of
//! their tables, each expression read for what it says of a packet. iptables-nft keeps its rules there too.

use std::{cell::RefCell, collections::BTreeMap, io};

use rustix::net::netlink;

use super::{
    Family, OUTPUT, PREROUTING, Rule, Step, Table, Test, Verdict, again, not, of_senders, target,
    under_mask, xt,
};
use crate::{
    observe::{
        netlink::Netlink,
        wire::{Attributes, cut_short, u16_be_at},
    },
    snapshot::RuleNumber,
};

/// NFNL_SUBSYS_NFTABLES (linux/netfilter/nfnetlink.h), before the kind of a message.
const NFTABLES: u16 = 10 << 8;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSET: u16 = 10;
const GETSETELEM: u16 = 13;
/// NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE.
const TABLE: u16 = 1;
/// More elements of a set than we follow.
const MOST_ELEMENTS: usize = 65_536;

/// The tables that have such chains; none where the kernel has no nftables.
pub(super) fn tables() -> io::Result<Vec<Table>> {
    let mut netlink = match Netlink::open(Some(netlink::NETFILTER)) {
        Ok(netlink) => netlink,
        Err(error) => match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
            // What a seccomp filter says of a family that it forbids (RestrictAddressFamilies=).
            Some(libc::EAFNOSUPPORT) => return Err(io::Error::from_raw_os_error(libc::EACCES)),
            Some(_) | None => return Err(error),
        },
    };
    again(|| {
        let mut ask = |kind: u16, body: &[u8]| netlink.dump(kind, body);
        read(&mut ask)
    })
}

/// The same of whoever answers.
pub(super) fn read(ask: &mut Dump<'_>) -> io::Result<Vec<Table>> {
    Reader { ask, generation: None }.tables()
}

/// Puts a question of this kind and body, and has the bodies of the whole answer.
pub(super) type Dump<'a> = dyn FnMut(u16, &[u8]) -> io::Result<Vec<Vec<u8>>> + 'a;

struct Reader<'a> {
    ask: &'a mut Dump<'a>,
    /// Of the rule set, as every message says it: several dumps must speak of one.
    generation: Option<u16>,
}

/// Attributes of one level, by kind.
fn attributes(bytes: &[u8]) -> io::Result<BTreeMap<u16, &[u8]>> {
    /// NLA_TYPE_MASK (linux/netlink.h).
    const KIND: u16 = 0x3fff;
    Attributes::of(bytes).map(|one| one.map(|(kind, value)| (kind & KIND, value))).collect()
}

/// Those of a list, in their order.
fn list(bytes: &[u8]) -> io::Result<Vec<&[u8]>> {
    Attributes::of(bytes).map(|one| one.map(|(_, value)| value)).collect()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn family(number: u8) -> Option<Family> {
    match number {
        1 => Some(Family::Inet),
        2 => Some(Family::Ip),
        10 => Some(Family::Ip6),
        _ => None,
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

impl Reader<'_> {
    fn tables(&mut self) -> io::Result<Vec<Table>> {
        let chains = match self.dump(GETCHAIN, 0, &[]) {
            // No nftables in this kernel (nfnetlink_rcv_msg).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
            chains => chains?,
        };
        let mut tables: Vec<Table> = Vec::new();
        for reply in &chains {
            let Some((family, name, hook, chain)) = base_chain(reply)? else { continue };
            let known = tables.iter_mut().find(|t| (t.family, &t.name) == (family, &name));
            match known {
                Some(table) => table.bases.push((hook, chain)),
                None => tables.push(Table {
                    family,
                    name,
                    bases: vec![(hook, chain)],
                    chains: BTreeMap::new(),
                }),
            }
        }
        for table in &mut tables {
            self.read_rules(table)?;
        }
        Ok(tables)
    }

    fn dump(&mut self, kind: u16, family: u8, names: &[(u16, &str)]) -> io::Result<Vec<Vec<u8>>> {
        // struct nfgenmsg
        let mut body = vec![family, 0, 0, 0];
        for (kind, name) in names {
            let length = u16::try_from(4 + name.len() + 1).map_err(io::Error::other)?;
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(name.as_bytes());
            body.push(0);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let replies = (self.ask)(NFTABLES | kind, &body)?;
        for reply in &replies {
            let generation = u16_be_at(reply, 2).ok_or_else(cut_short)?;
            if *self.generation.get_or_insert(generation) != generation {
                let why = "the rules changed while they were read";
                return Err(io::Error::new(io::ErrorKind::Interrupted, why));
            }
        }
        Ok(replies)
    }

    fn read_rules(&mut self, table: &mut Table) -> io::Result<()> {
        let family = family_number(table.family);
        let name = table.name.clone();
        let replies = self.dump(GETRULE, family, &[(TABLE, &name)])?;
        let sets = RefCell::new(Sets { reader: self, family, table: &name, flags: None });
        for reply in &replies {
            let rule = attributes(reply.get(4..).ok_or_else(cut_short)?)?;
            let (Some(of), Some(chain), Some(handle), expressions) =
                (rule.get(&1), rule.get(&2), rule.get(&3), rule.get(&4))
            else {
                return Err(cut_short());
            };
            // A kernel that knows no such filter sends the rules of every table.
            if text(of) != name || reply.first() != Some(&family) {
                continue;
            }
            let handle = handle.get(..8).and_then(|h| h.try_into().ok()).ok_or_else(cut_short)?;
            let mut decoder = Decoder::new(table.family, &sets);
            for expression in list(expressions.copied().unwrap_or_default())? {
                decoder.take(expression)?;
            }
            let comment = decoder.comment.or_else(|| rule.get(&7).and_then(|data| user_data(data)));
            table.chains.entry(text(chain)).or_default().push(Rule {
                number: RuleNumber::Handle(u64::from_be_bytes(handle)),
                comment,
                steps: decoder.steps,
            });
        }
        Ok(())
    }
}

/// What a message says of a chain: none where the kernel does not enter it before a destination is settled.
fn base_chain(reply: &[u8]) -> io::Result<Option<(Family, String, u32, String)>> {
    let of = *reply.first().ok_or_else(cut_short)?;
    let chain = attributes(reply.get(4..).ok_or_else(cut_short)?)?;
    let (Some(table), Some(name)) = (chain.get(&1), chain.get(&3)) else { return Err(cut_short()) };
    let (Some(hook), Some(family)) = (chain.get(&4), family(of)) else { return Ok(None) };
    if chain.get(&7).map(|kind| text(kind)).as_deref() != Some("nat") {
        return Ok(None);
    }
    let hook = attributes(hook)?.get(&1).and_then(|hook| number(hook)).ok_or_else(cut_short)?;
    let is_early = hook == PREROUTING || hook == OUTPUT;
    Ok(is_early.then(|| (family, text(table), hook, text(name))))
}

/// The comment that `nft` wrote: kind 0, length, text (libnftnl/udata.h).
fn user_data(mut bytes: &[u8]) -> Option<String> {
    loop {
        let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let value = bytes.get(2..2 + length)?;
        if kind == 0 {
            return Some(text(value)).filter(|text| !text.is_empty());
        }
        bytes = bytes.get(2 + length..)?;
    }
}

/// An element of a set or a map.
#[derive(Debug, Default)]
struct Element {
    key: Vec<u8>,
    /// The last that it takes in, where the set has ranges in each part of its key.
    last: Option<Vec<u8>>,
    /// The first that the range before it does not take in.
    is_end: bool,
    /// Takes in what no other does.
    is_rest: bool,
    verdict: Option<Verdict>,
}

/// The sets of a table, read where a rule asks for one.
struct Sets<'a, 'r> {
    reader: &'a mut Reader<'r>,
    family: u8,
    table: &'a str,
    /// By name, whether a set has ranges.
    flags: Option<BTreeMap<String, bool>>,
}

impl Sets<'_, '_> {
    /// Its elements, and whether they are the ends of ranges; none where there are too many.
    fn elements(&mut self, set: &str) -> io::Result<Option<(Vec<Element>, bool)>> {
        let has_ranges = self.flags()?.get(set).copied().unwrap_or_default();
        let names = [(TABLE, self.table), (2, set)];
        let mut elements = Vec::new();
        for reply in self.reader.dump(GETSETELEM, self.family, &names)? {
            let answer = attributes(reply.get(4..).ok_or_else(cut_short)?)?;
            for one in list(answer.get(&3).copied().unwrap_or_default())? {
                elements.push(element(one)?);
            }
            if elements.len() > MOST_ELEMENTS {
                return Ok(None);
            }
        }
        Ok(Some((elements, has_ranges)))
    }

    fn flags(&mut self) -> io::Result<&BTreeMap<String, bool>> {
        const INTERVAL: u32 = 4;
        if self.flags.is_none() {
            let mut all = BTreeMap::new();
            for reply in self.reader.dump(GETSET, self.family, &[(TABLE, self.table)])? {
                let set = attributes(reply.get(4..).ok_or_else(cut_short)?)?;
                if set.get(&1).map(|of| text(of)).as_deref() != Some(self.table) {
                    continue;
                }
                let flags = set.get(&3).and_then(|flags| number(flags)).unwrap_or_default();
                let name = set.get(&2).map(|name| text(name)).ok_or_else(cut_short)?;
                all.insert(name, flags & INTERVAL != 0);
            }
            self.flags = Some(all);
        }
        Ok(self.flags.get_or_insert_default())
    }
}

fn element(bytes: &[u8]) -> io::Result<Element> {
    let one = attributes(bytes)?;
    let value = |kind: u16| -> io::Result<Option<Vec<u8>>> {
        let Some(data) = one.get(&kind) else { return Ok(None) };
        Ok(attributes(data)?.get(&1).map(|value| value.to_vec()))
    };
    let flags = one.get(&3).and_then(|flags| number(flags)).unwrap_or_default();
    let verdict = match one.get(&2) {
        Some(data) => verdict_in(data)?,
        None => None,
    };
    Ok(Element {
        key: value(1)?.unwrap_or_default(),
        last: value(10)?,
        is_end: flags & 1 != 0,
        is_rest: flags & 2 != 0,
        verdict,
    })
}

/// Of NFTA_DATA_*: a verdict, where it is one.
fn verdict_in(data: &[u8]) -> io::Result<Option<Verdict>> {
    let data = attributes(data)?;
    let Some(verdict) = data.get(&2) else { return Ok(None) };
    let verdict = attributes(verdict)?;
    let code = verdict.get(&1).and_then(|code| number(code)).ok_or_else(cut_short)?;
    let chain = || verdict.get(&2).map(|chain| text(chain)).ok_or_else(cut_short);
    // enum nft_verdicts; what is not negative accepts, drops or queues.
    Ok(Some(match code.cast_signed() {
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => Verdict::Stop,
    }))
}

/// What a register holds of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    /// NFPROTO_*, one byte.
    Family,
    /// Ethernet's type, two.
    EtherType,
    Proto,
    Port,
    /// Source port, destination port.
    Ports,
    /// The destination's first bytes; with a mask, those bits of it.
    To {
        is_ipv6: bool,
        mask: Option<Vec<u8>>,
    },
    /// Whose address the destination is (RTN_*).
    AddressType,
    /// A sender, an interface.
    Sender,
    SenderPort,
    /// 0, unless a rule set another.
    Mark,
    /// Not of the packet: bytes of the rule.
    Value(Vec<u8>),
    Unclear,
}

/// The attributes of an expression.
struct Data<'a>(BTreeMap<u16, &'a [u8]>);

impl Data<'_> {
    fn number(&self, kind: u16) -> Option<u32> {
        self.0.get(&kind).and_then(|value| number(value))
    }

    fn register(&self, kind: u16) -> Option<usize> {
        self.number(kind).and_then(slot)
    }

    fn bytes(&self, kind: u16) -> io::Result<Option<Vec<u8>>> {
        let Some(value) = self.0.get(&kind) else { return Ok(None) };
        Ok(attributes(value)?.get(&1).map(|value| value.to_vec()))
    }
}

/// Reads the expressions of one rule, one after the other.
struct Decoder<'a, 'b, 'r> {
    family: Family,
    sets: &'a RefCell<Sets<'b, 'r>>,
    /// By the number of their first 32 bits, with the length of what they hold.
    registers: BTreeMap<usize, (Field, usize)>,
    steps: Vec<Step>,
    comment: Option<String>,
}

/// The first 32 bits of a register: 1 to 4 have 16 bytes each, those from 8 on four (enum nft_registers).
fn slot(register: u32) -> Option<usize> {
    match register {
        1..=4 => Some((register as usize - 1) * 4),
        8.. => Some(register as usize - 8),
        0 | 5..=7 => None,
    }
}

impl<'a, 'b, 'r> Decoder<'a, 'b, 'r> {
    fn new(family: Family, sets: &'a RefCell<Sets<'b, 'r>>) -> Self {
        Self { family, sets, registers: BTreeMap::new(), steps: Vec::new(), comment: None }
    }

    fn take(&mut self, expression: &[u8]) -> io::Result<()> {
        let expression = attributes(expression)?;
        let name = expression.get(&1).map(|name| text(name)).ok_or_else(cut_short)?;
        let data = Data(attributes(expression.get(&2).copied().unwrap_or_default())?);
        if self.expression(&name, &data)?.is_none() {
            self.steps.push(Step::Test(Test::Unclear));
        }
        Ok(())
    }

    /// None where it is not known what the expression does.
    fn expression(&mut self, name: &str, data: &Data<'_>) -> io::Result<Option<()>> {
        match name {
            "counter" | "log" | "notrack" | "last" | "objref" => Ok(Some(())),
            "meta" | "payload" | "fib" | "ct" | "socket" | "rt" | "hash" | "numgen" | "osf"
            | "xfrm" | "tunnel" | "exthdr" => Ok(self.load(name, data)),
            "bitwise" => self.bitwise(data),
            "cmp" | "range" => self.compare(name, data),
            "lookup" => self.lookup(data),
            "immediate" => self.immediate(data),
            "nat" | "redir" | "masq" => {
                self.translate(name, data);
                Ok(Some(()))
            }
            "match" | "target" => Ok(self.compat(name == "match", data)),
            _ => Ok(None),
        }
    }

    /// What the register that an attribute names holds.
    fn field(&self, data: &Data<'_>, kind: u16) -> Option<Field> {
        self.registers.get(&data.register(kind)?).map(|(field, _)| field.clone())
    }

    /// A part of the packet into a register.
    fn load(&mut self, name: &str, data: &Data<'_>) -> Option<()> {
        const ADDRESS_TYPE: u32 = 3;
        const OF_DESTINATION: u32 = 2;
        let Some(to) = data.register(1) else {
            // With a source instead, it sets something.
            return data.number(3).filter(|_| name == "meta").map(drop);
        };
        let loaded = match name {
            "meta" => meta(data.number(2)?),
            "payload" => {
                let (base, offset, length) = (data.number(2)?, data.number(3)?, data.number(4)?);
                (payload(self.family, base, offset, length), length as usize)
            }
            "fib" => {
                let is_type = data.number(2) == Some(ADDRESS_TYPE);
                let is_of_it = data.number(3).is_some_and(|flags| flags & OF_DESTINATION != 0);
                let field = if is_type && is_of_it { Field::AddressType } else { Field::Unclear };
                (field, 4)
            }
            _ => (Field::Unclear, 4),
        };
        self.registers.insert(to, loaded);
        Some(())
    }

    fn bitwise(&mut self, data: &Data<'_>) -> io::Result<Option<()>> {
        let (Some(to), Some(from)) = (data.register(2), self.field(data, 1)) else {
            return Ok(None);
        };
        let (mask, flip) = (data.bytes(4)?, data.bytes(5)?);
        let length = mask.as_ref().map_or(4, Vec::len);
        let is_plain = flip.is_none_or(|flip| flip.iter().all(|byte| *byte == 0));
        let field = match (from, mask) {
            (Field::To { is_ipv6, mask: None }, Some(mask)) if is_plain => {
                Field::To { is_ipv6, mask: Some(mask) }
            }
            (Field::Sender, _) => Field::Sender,
            (Field::Mark, Some(_)) if is_plain => Field::Mark,
            (_, _) => Field::Unclear,
        };
        self.registers.insert(to, (field, length));
        Ok(Some(()))
    }

    fn compare(&mut self, name: &str, data: &Data<'_>) -> io::Result<Option<()>> {
        let (field, op) = (self.field(data, 1), data.number(2));
        let (Some(field), Some(op), Some(value)) = (field, op, data.bytes(3)?) else {
            return Ok(None);
        };
        let test = if name == "cmp" {
            compare(&field, op, &value)
        } else {
            let Some(last) = data.bytes(4)? else { return Ok(None) };
            not(between(&field, &value, &last), op == 1)
        };
        self.steps.push(Step::Test(test));
        Ok(Some(()))
    }

    /// A verdict, or bytes for a later expression.
    fn immediate(&mut self, data: &Data<'_>) -> io::Result<Option<()>> {
        let Some(value) = data.0.get(&2) else { return Ok(None) };
        if let Some(verdict) = verdict_in(value)? {
            self.steps.push(Step::Go(verdict));
        } else if let (Some(to), Some(value)) = (data.register(1), data.bytes(2)?) {
            let length = value.len();
            self.registers.insert(to, (Field::Value(value), length));
        }
        Ok(Some(()))
    }

    /// What changes an address or a port.
    fn translate(&mut self, name: &str, data: &Data<'_>) {
        const DNAT: u32 = 1;
        if name == "redir" {
            let port = self.field(data, 1);
            let port = port.map(|port| port_in(&port).unwrap_or_default());
            self.steps.push(Step::Redirect(port));
            return;
        }
        if name == "masq" || data.number(1) != Some(DNAT) {
            self.steps.push(Step::Go(Verdict::Stop));
            return;
        }
        // In a table of both families it passes by packets of the other one (nft_nat_inet_eval).
        let of = data.number(2).and_then(|number| u8::try_from(number).ok()).and_then(family);
        match of {
            Some(Family::Ip) => self.steps.push(Step::Test(not(Test::IsIpv6, true))),
            Some(Family::Ip6) => self.steps.push(Step::Test(Test::IsIpv6)),
            Some(Family::Inet) | None => {}
        }
        // A range of ports is not one.
        let is_range = data.number(6).is_some_and(|last| data.number(5) != Some(last));
        let port = self.field(data, 5).filter(|_| !is_range);
        self.steps.push(Step::Detour(destination(self.field(data, 3), port)));
    }

    /// What iptables-nft carries over: name, revision, and the bytes of x_tables.
    fn compat(&mut self, is_match: bool, data: &Data<'_>) -> Option<()> {
        let name = text(data.0.get(&1)?);
        let revision = u8::try_from(data.number(2)?).ok()?;
        let bytes = data.0.get(&3)?;
        if is_match {
            self.comment = self.comment.take().or_else(|| xt::comment_of(&name, bytes));
            self.steps.push(Step::Test(xt::test(&name, revision, bytes)));
        } else {
            self.steps.extend(xt::deed(&name, revision, bytes));
        }
        Some(())
    }

    fn lookup(&mut self, data: &Data<'_>) -> io::Result<Option<()>> {
        const INVERTED: u32 = 1;
        let (Some(set), Some(from)) = (data.0.get(&1), data.register(2)) else {
            return Ok(None);
        };
        let Some((elements, has_ranges)) = self.sets.borrow_mut().elements(&text(set))? else {
            return Ok(None);
        };
        let cases = self.cases(from, elements, has_ranges);
        let is_inverted = data.number(5).is_some_and(|flags| flags & INVERTED != 0);
        match data.number(3) {
            // Register 0 takes a verdict.
            Some(0) => {
                let with = |(test, verdict): (Test, Option<Verdict>)| Some((test, verdict?));
                self.steps.push(Step::Cases(cases.into_iter().filter_map(with).collect()));
            }
            to => {
                let tests = cases.into_iter().map(|(test, _)| test).collect();
                self.steps.push(Step::Test(not(Test::Any(tests), is_inverted)));
                if let Some(to) = to.and_then(slot) {
                    self.registers.insert(to, (Field::Unclear, 4));
                }
            }
        }
        Ok(Some(()))
    }

    /// For each element the test that it stands for; what takes the rest comes last.
    fn cases(
        &self,
        from: usize,
        mut elements: Vec<Element>,
        has_ranges: bool,
    ) -> Vec<(Test, Option<Verdict>)> {
        elements.sort_by(|a, b| (a.is_rest, &a.key).cmp(&(b.is_rest, &b.key)));
        let ends: Vec<Vec<u8>> =
            elements.iter().filter(|e| e.is_end).map(|e| e.key.clone()).collect();
        let cases = elements.into_iter().filter(|element| !element.is_end);
        let case = |element: Element| {
            let Element { key, last, is_rest, verdict, .. } = element;
            if is_rest {
                return (Test::Known(true), verdict);
            }
            let high = match last {
                Some(last) => last,
                None if has_ranges => ends
                    .iter()
                    .find(|end| **end > key)
                    .map_or_else(|| vec![0xff; key.len()], |end| before(end)),
                None => key.clone(),
            };
            (self.key_test(from, &key, &high), verdict)
        };
        cases.map(case).collect()
    }

    /// A key may have several parts, each in registers of its own.
    fn key_test(&self, from: usize, low: &[u8], high: &[u8]) -> Test {
        let mut tests = Vec::new();
        let mut at = 0;
        while at < low.len() {
            let Some((field, length)) = self.registers.get(&(from + at / 4)) else {
                return Test::Unclear;
            };
            let parts = (low.get(at..at + length), high.get(at..at + length));
            let (Some(first), Some(last)) = parts else { return Test::Unclear };
            tests.push(between(field, first, last));
            at += length.next_multiple_of(4).max(4);
        }
        Test::All(tests)
    }
}

/// The number before this one, as long.
fn before(end: &[u8]) -> Vec<u8> {
    let mut bytes = end.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    bytes
}

/// NFT_META_* keys.
fn meta(key: u32) -> (Field, usize) {
    match key {
        1 => (Field::EtherType, 2),
        15 => (Field::Family, 1),
        16 => (Field::Proto, 1),
        // Interfaces by name.
        6 | 7 | 17 | 18 => (Field::Sender, 16),
        3 => (Field::Mark, 4),
        // Interfaces by number, the sender's user and group.
        4 | 5 | 10 | 11 => (Field::Sender, 4),
        _ => (Field::Unclear, 4),
    }
}

/// Bytes of the network's header or the transport's.
fn payload(family: Family, base: u32, offset: u32, length: u32) -> Field {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let is_ipv4 = family != Family::Ip6;
    let is_ipv6 = family != Family::Ip;
    match (base, offset, length) {
        (NETWORK, 9, 1) if is_ipv4 => Field::Proto,
        (NETWORK, 6, 1) if is_ipv6 => Field::Proto,
        (NETWORK, 12, 1..=4) if is_ipv4 => Field::Sender,
        (NETWORK, 16, 1..=4) if is_ipv4 => Field::To { is_ipv6: false, mask: None },
        (NETWORK, 8, 1..=16) if is_ipv6 => Field::Sender,
        (NETWORK, 24, 1..=16) if is_ipv6 => Field::To { is_ipv6: true, mask: None },
        (TRANSPORT, 0, 2) => Field::SenderPort,
        (TRANSPORT, 2, 2) => Field::Port,
        (TRANSPORT, 0, 4) => Field::Ports,
        (_, _, _) => Field::Unclear,
    }
}

fn compare(field: &Field, op: u32, value: &[u8]) -> Test {
    // enum nft_cmp_ops
    match (op, field) {
        (0, _) => between(field, value, value),
        (1, _) => not(between(field, value, value), true),
        (_, Field::Sender) => Test::Some,
        (2..=5, Field::Port) => match (op, u16_be_at(value, 0)) {
            (2, Some(port)) => port.checked_sub(1).map_or(Test::Known(false), |p| Test::Port(0, p)),
            (3, Some(port)) => Test::Port(0, port),
            (4, Some(port)) => {
                port.checked_add(1).map_or(Test::Known(false), |p| Test::Port(p, u16::MAX))
            }
            (5, Some(port)) => Test::Port(port, u16::MAX),
            (_, _) => Test::Unclear,
        },
        (_, _) => Test::Unclear,
    }
}

/// Whether what the field holds lies between these, both in it.
fn between(field: &Field, low: &[u8], high: &[u8]) -> Test {
    let test = || match field {
        Field::Sender => Some(Test::Some),
        Field::SenderPort => Some(of_senders(u16_be_at(low, 0)?, u16_be_at(high, 0)?)),
        Field::Mark => {
            Some(if low.iter().all(|byte| *byte == 0) { Test::Unclear } else { Test::Some })
        }
        Field::Family if low == high => match low.first()? {
            2 => Some(not(Test::IsIpv6, true)),
            10 => Some(Test::IsIpv6),
            _ => Some(Test::Known(false)),
        },
        Field::EtherType if low == high => match u16_be_at(low, 0)? {
            0x0800 => Some(not(Test::IsIpv6, true)),
            0x86dd => Some(Test::IsIpv6),
            _ => Some(Test::Known(false)),
        },
        Field::Proto => Some(Test::Proto(*low.first()?, *high.first()?)),
        Field::Port => Some(Test::Port(u16_be_at(low, 0)?, u16_be_at(high, 0)?)),
        Field::Ports if low == high => {
            let port = u16_be_at(low, 2)?;
            Some(Test::All(vec![Test::Port(port, port), Test::Unclear]))
        }
        Field::To { is_ipv6, mask: None } => {
            let low = super::ip(&filled(low, *is_ipv6, 0))?;
            Some(Test::To(low, super::ip(&filled(high, *is_ipv6, 0xff))?))
        }
        Field::To { is_ipv6, mask: Some(mask) } if low == high => {
            Some(under_mask(&filled(low, *is_ipv6, 0), &filled(mask, *is_ipv6, 0)))
        }
        Field::AddressType if low == high => {
            // RTN_LOCAL (linux/rtnetlink.h); a number of this machine's own order.
            let kind = u32::from_ne_bytes(low.get(..4)?.try_into().ok()?);
            Some(Test::Known(kind == 2))
        }
        Field::Family
        | Field::EtherType
        | Field::Ports
        | Field::To { .. }
        | Field::AddressType
        | Field::Value(_)
        | Field::Unclear => None,
    };
    test().unwrap_or(Test::Unclear)
}

/// The first bytes of an address, and the rest of it.
fn filled(bytes: &[u8], is_ipv6: bool, filler: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(if is_ipv6 { 16 } else { 4 }, filler);
    bytes
}

/// Where a `nat` expression sends what it takes, as far as the rule says it by itself.
fn destination(address: Option<Field>, port: Option<Field>) -> Option<String> {
    let port = match port {
        Some(port) => Some(port_in(&port)?),
        None => None,
    };
    match address {
        Some(Field::Value(bytes)) => Some(target(super::ip(&bytes)?, port)),
        Some(_) => None,
        None => port.map(|port| format!("port {port}")),
    }
}

fn port_in(field: &Field) -> Option<u16> {
    match field {
        Field::Value(bytes) => u16_be_at(bytes, 0),
        Field::Family
        | Field::EtherType
        | Field::Proto
        | Field::Port
        | Field::Ports
        | Field::To { .. }
        | Field::AddressType
        | Field::Sender
        | Field::SenderPort
        | Field::Mark
        | Field::Unclear => None,
    }
}
