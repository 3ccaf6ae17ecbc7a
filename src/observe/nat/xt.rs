//! Rules in the form of x_tables (linux/netfilter/x_tables.h): the older tables themselves, by getsockopt(2), and the
//! matches and targets that iptables-nft carries in nftables rules.

use std::{collections::BTreeMap, io, os::fd::AsFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{
    Family, OUTPUT, PREROUTING, Rule, Step, Table, Test, Verdict, again, not, of_senders,
    under_mask,
};
use crate::{
    host::Host,
    observe::wire::{cut_short, u16_at, u16_be_at, u32_at},
    snapshot::{RuleNumber, Seen},
    sys::{self, TableQuestion},
};

/// struct ipt_getinfo.
const INFO_BYTES: usize = 84;
const NAME_BYTES: usize = 32;
/// Tens of thousands of rules.
const MOST_BYTES: usize = 64 << 20;

/// The older `nat` tables, where this network namespace has them: to ask for one that is not there makes the kernel set it
/// up.
pub(super) fn tables(host: &Host) -> io::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for (family, file) in
        [(Family::Ip, "proc/net/ip_tables_names"), (Family::Ip6, "proc/net/ip6_tables_names")]
    {
        match host.read_text(file) {
            Seen::Known(names) if names.lines().any(|name| name == "nat") => {
                tables.push(again(|| table(family))?);
            }
            Seen::Known(_) | Seen::Gone => {}
            Seen::Denied => return Err(io::Error::from_raw_os_error(libc::EACCES)),
            Seen::Unreadable(why) => return Err(io::Error::other(why)),
        }
    }
    Ok(tables)
}

fn table(family: Family) -> io::Result<Table> {
    let (info, entries) = dump(family)?;
    read(family, &info, &entries).ok_or_else(cut_short)
}

/// A recording of what `read` reads.
#[cfg(test)]
pub(super) fn record(family: Family, hex: fn(&[u8]) -> String) -> Option<String> {
    let (info, entries) = dump(family).ok()?;
    Some(format!("{} {} {}", family.word(), hex(&info), hex(&entries)))
}

/// What the kernel tells about the table, and its entries.
fn dump(family: Family) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (domain, is_ipv6) = match family {
        Family::Ip | Family::Inet => (AddressFamily::INET, false),
        Family::Ip6 => (AddressFamily::INET6, true),
    };
    let socket = socket_with(domain, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut info = vec![0; INFO_BYTES];
    info.splice(..3, *b"nat");
    sys::ask_table(socket.as_fd(), is_ipv6, TableQuestion::Info, &mut info)?;
    let size = u32_at(&info, 80).ok_or_else(cut_short)?;
    // struct ipt_get_entries: the entries stand where 64 bits may.
    let head = (NAME_BYTES + 4).next_multiple_of(align_of::<u64>());
    let length = head + size as usize;
    if length > MOST_BYTES {
        return Err(io::Error::other("there are too many of them"));
    }
    let mut entries = vec![0; length];
    entries.splice(..3, *b"nat");
    entries.splice(NAME_BYTES..NAME_BYTES + 4, size.to_ne_bytes());
    match sys::ask_table(socket.as_fd(), is_ipv6, TableQuestion::Entries, &mut entries) {
        // The table has another size by now.
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Err(cut_short()),
        answer => answer?,
    };
    Ok((info, entries.split_off(head)))
}

/// Where things stand in an entry: struct ipt_entry, struct ip6t_entry.
struct Layout {
    address_bytes: usize,
    proto: usize,
    flags: usize,
    /// Of the flags, what makes a jump one without return.
    goto: u8,
    inverted: usize,
    target_offset: usize,
    matches: usize,
}

const IPV4: Layout = Layout {
    address_bytes: 4,
    proto: 80,
    flags: 82,
    goto: 2,
    inverted: 83,
    target_offset: 88,
    matches: 112,
};
const IPV6: Layout = Layout {
    address_bytes: 16,
    proto: 128,
    flags: 131,
    goto: 4,
    inverted: 132,
    target_offset: 140,
    matches: 168,
};

/// One entry, before its jump has a chain to go to.
struct Entry {
    at: usize,
    next: usize,
    steps: Vec<Step>,
    comment: Option<String>,
    is_goto: bool,
    target: Target,
}

enum Target {
    /// A chain of this name begins behind it.
    Head(String),
    Verdict(i32),
    Steps(Option<Step>),
}

/// None where it is not what the kernel writes.
pub(super) fn read(family: Family, info: &[u8], bytes: &[u8]) -> Option<Table> {
    const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let layout = if family == Family::Ip6 { &IPV6 } else { &IPV4 };
    if u32_at(info, 80)? as usize != bytes.len() {
        return None;
    }
    let valid = u32_at(info, NAME_BYTES)?;
    let mut begins: BTreeMap<usize, String> = BTreeMap::new();
    let mut bases = Vec::new();
    for (hook, name) in (0_u32..).zip(HOOKS).filter(|(hook, _)| valid & (1 << hook) != 0) {
        let at = u32_at(info, NAME_BYTES + 4 + 4 * hook as usize)? as usize;
        begins.insert(at, name.to_owned());
        if hook == PREROUTING || hook == OUTPUT {
            bases.push((hook, name.to_owned()));
        }
    }
    let mut entries = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let entry = read_entry(layout, bytes.get(at..)?, at)?;
        if let Target::Head(name) = &entry.target {
            begins.insert(entry.next, name.clone());
        }
        at = entry.next;
        entries.push(entry);
    }
    Some(Table { family, name: "nat".to_owned(), bases, chains: chains(entries, &begins)? })
}

fn read_entry(layout: &Layout, bytes: &[u8], at: usize) -> Option<Entry> {
    let target = usize::from(u16_at(bytes, layout.target_offset)?);
    let length = usize::from(u16_at(bytes, layout.target_offset + 2)?);
    if length <= target || target < layout.matches {
        return None;
    }
    let bytes = bytes.get(..length)?;
    let mut steps: Vec<Step> = header(layout, bytes)?.into_iter().map(Step::Test).collect();
    let mut comment = None;
    let mut rest = bytes.get(layout.matches..target)?;
    while !rest.is_empty() {
        let size = usize::from(u16_at(rest, 0)?);
        let (name, revision, data) = extension(rest.get(..size)?)?;
        comment = comment.or_else(|| comment_of(&name, data));
        steps.push(Step::Test(test(&name, revision, data)));
        rest = rest.get(size..)?;
    }
    let (name, revision, data) = extension(bytes.get(target..)?)?;
    let target = match name.as_str() {
        "ERROR" => Target::Head(text(data.get(..30)?)),
        "" => Target::Verdict(u32_at(data, 0)?.cast_signed()),
        _ => Target::Steps(deed(&name, revision, data)),
    };
    let is_goto = bytes.get(layout.flags)? & layout.goto != 0;
    Some(Entry { at, next: at + length, steps, comment, is_goto, target })
}

/// Name, revision and own bytes of a match or target (struct xt_entry_match).
fn extension(bytes: &[u8]) -> Option<(String, u8, &[u8])> {
    Some((text(bytes.get(2..31)?), *bytes.get(31)?, bytes.get(32..)?))
}

/// The rules chain by chain; `begins` has where chains begin.
fn chains(
    entries: Vec<Entry>,
    begins: &BTreeMap<usize, String>,
) -> Option<BTreeMap<String, Vec<Rule>>> {
    let mut chains: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    let mut chain = String::new();
    for Entry { at, next, mut steps, comment, is_goto, target } in entries {
        if let Some(name) = begins.get(&at) {
            chain.clone_from(name);
        }
        match target {
            Target::Head(_) => continue,
            Target::Steps(deed) => steps.extend(deed),
            Target::Verdict(verdict) => steps.push(Step::Go(match usize::try_from(verdict) {
                Ok(to) if to == next => Verdict::Continue,
                Ok(to) if is_goto => Verdict::Goto(begins.get(&to)?.clone()),
                Ok(to) => Verdict::Jump(begins.get(&to)?.clone()),
                // XT_RETURN is -NF_REPEAT - 1; accepted and dropped are -NF_ACCEPT - 1 and -NF_DROP - 1.
                Err(_) if verdict == -5 => Verdict::Return,
                Err(_) => Verdict::Stop,
            })),
        }
        let rules = chains.entry(chain.clone()).or_default();
        rules.push(Rule { number: RuleNumber::Place(rules.len() + 1), comment, steps });
    }
    Some(chains)
}

/// The conditions that stand in the entry itself.
fn header(layout: &Layout, entry: &[u8]) -> Option<Vec<Test>> {
    let bytes = layout.address_bytes;
    let address = |nth: usize| entry.get(nth * bytes..(nth + 1) * bytes);
    let interfaces = entry.get(4 * bytes..)?;
    let inverted = *entry.get(layout.inverted)?;
    let is_inverted = |bit: u8| inverted & bit != 0;
    let mut tests = Vec::new();
    let is_set = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
    if is_set(interfaces.get(32..48)?) {
        tests.push(not(Test::Some, is_inverted(1)));
    }
    if is_set(interfaces.get(48..64)?) {
        tests.push(not(Test::Some, is_inverted(2)));
    }
    if is_set(address(2)?) {
        tests.push(not(Test::Some, is_inverted(8)));
    }
    if is_set(address(3)?) {
        tests.push(not(under_mask(address(1)?, address(3)?), is_inverted(0x10)));
    }
    let proto = u16_at(entry, layout.proto)?;
    if proto != 0 {
        let proto = u8::try_from(proto).ok()?;
        tests.push(not(Test::Proto(proto, proto), is_inverted(0x40)));
    }
    Some(tests)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// What a rule's author wrote (struct xt_comment_info).
pub(super) fn comment_of(name: &str, data: &[u8]) -> Option<String> {
    (name == "comment").then(|| text(data)).filter(|text| !text.is_empty())
}

/// A match, by its name in the kernel.
pub(super) fn test(name: &str, revision: u8, data: &[u8]) -> Test {
    let read = match (name, revision) {
        ("comment", _) => Some(Test::Known(true)),
        ("tcp", _) => ports(data, 11),
        ("udp", _) => ports(data, 8),
        ("multiport", 1) => multiport(data),
        ("addrtype", 1) => address_type(data, |at| u32_at(data, 4).map(|flags| flags & at != 0)),
        ("addrtype", 0) => {
            address_type(data, |at| u32_at(data, 4 * at as usize).map(|is_set| is_set != 0))
        }
        // struct xt_mark_mtinfo1, struct xt_connmark_mtinfo1.
        ("mark" | "connmark", 1) => mark(data),
        // struct xt_mac_info, struct xt_physdev_info.
        ("mac", 0) => u32_at(data, 8).map(|inverted| not(Test::Some, inverted != 0)),
        ("physdev", 0) => data.get(64).map(|inverted| not(Test::Some, *inverted != 0)),
        // Of this host's own processes.
        ("owner", _) => Some(Test::Some),
        (_, _) => None,
    };
    read.unwrap_or(Test::Unclear)
}

/// A mark is 0 unless a rule set another: whether all packets meet it or few.
fn mark(data: &[u8]) -> Option<Test> {
    let (value, is_inverted) = (u32_at(data, 0)?, *data.get(8)? != 0);
    Some(if (value == 0) == is_inverted { Test::Some } else { Test::Unclear })
}

/// struct xt_tcp, struct xt_udp.
fn ports(data: &[u8], inverted_at: usize) -> Option<Test> {
    let inverted = *data.get(inverted_at)?;
    let (source, port) =
        ((u16_at(data, 0)?, u16_at(data, 2)?), (u16_at(data, 4)?, u16_at(data, 6)?));
    let mut tests = vec![not(Test::Port(port.0, port.1), inverted & 2 != 0)];
    if source != (0, u16::MAX) {
        tests.push(not(of_senders(source.0, source.1), inverted & 1 != 0));
    }
    // Flags or an option of TCP, between the ports and what is inverted.
    if data.get(8..inverted_at)?.iter().any(|byte| *byte != 0) {
        tests.push(Test::Unclear);
    }
    Some(Test::All(tests))
}

/// struct xt_multiport_v1: single ports, and pairs of which the first is marked.
fn multiport(data: &[u8]) -> Option<Test> {
    let (which, count) = (*data.first()?, usize::from(*data.get(1)?));
    let mut tests = Vec::new();
    let mut at = 0;
    while at < count {
        let port = |nth: usize| u16_at(data, 2 + 2 * nth);
        let is_range = *data.get(32 + at)? != 0;
        let last = if is_range { at + 1 } else { at };
        let (low, high) = (port(at)?, port(last)?);
        // enum xt_multiport_flags: the sender's port, the destination's, either.
        if which != 0 {
            tests.push(Test::Port(low, high));
        }
        if which != 1 {
            tests.push(of_senders(low, high));
        }
        at = last + 1;
    }
    Some(not(Test::Any(tests), *data.get(47)? != 0))
}

/// struct xt_addrtype_info{,_v1}: whose address it is. A server's is local.
fn address_type(data: &[u8], is_inverted: impl Fn(u32) -> Option<bool>) -> Option<Test> {
    const LOCAL: u16 = 1 << 2;
    let (source, to) = (u16_at(data, 0)?, u16_at(data, 2)?);
    let mut tests = Vec::new();
    if to != 0 {
        tests.push(not(Test::Known(to & LOCAL != 0), is_inverted(2)?));
    }
    if source != 0 {
        tests.push(not(Test::Some, is_inverted(1)?));
    }
    Some(Test::All(tests))
}

/// A target, by its name in the kernel; none where it only marks or counts.
pub(super) fn deed(name: &str, revision: u8, data: &[u8]) -> Option<Step> {
    match name {
        "DNAT" => Some(Step::Detour(destination(revision, data))),
        // struct nf_nat_ipv4_multi_range_compat; for IPv6 struct nf_nat_range.
        "REDIRECT" => {
            let (flags, port) = if data.len() >= 40 { (0, 36) } else { (4, 16) };
            let has_port = u32_at(data, flags).is_some_and(|flags| flags & 2 != 0);
            Some(Step::Redirect(u16_be_at(data, port).filter(|_| has_port)))
        }
        "NETMAP" => Some(Step::Detour(None)),
        _ => None,
    }
}

/// Of struct nf_nat_ipv4_multi_range_compat (revision 0), struct nf_nat_range and its successor.
fn destination(revision: u8, data: &[u8]) -> Option<String> {
    let (flags, address, bytes, port) =
        if revision == 0 && data.len() < 40 { (4, 8, 4, 16) } else { (0, 4, 16, 36) };
    let has_port = u32_at(data, flags)? & 2 != 0;
    let bytes = data.get(address..address + bytes)?;
    // An IPv4 address stands in the first of sixteen bytes.
    let is_short = bytes.len() == 16 && bytes.get(4..)?.iter().all(|byte| *byte == 0);
    let address = super::ip(if is_short { bytes.get(..4)? } else { bytes })?;
    // A range of ports is not one.
    let (first, last) = (u16_be_at(data, port), u16_be_at(data, port + 2));
    Some(super::target(address, first.filter(|_| has_port && first == last)))
}
