//! Rules from outside, read and walked: what is not understood makes a rule unclear, and nothing makes the walk endless.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use std::{collections::BTreeSet, io};

use super::{Family, Table, detours, nft, xt};
use crate::{ident::Endpoint, snapshot::Share};

/// Answers of nftables, one after the other: the kind of its question, its length in two bytes, itself.
pub fn nftables(bytes: &[u8]) {
    let mut ask = |kind: u16, _: &[u8]| {
        let mut rest = bytes;
        let mut replies = Vec::new();
        while let Some(([of, low, high], behind)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
            let (reply, behind) = behind.split_at(length);
            if u16::from(*of) == kind & 0xff {
                replies.push(reply.to_vec());
            }
            rest = behind;
        }
        Ok(replies)
    };
    if let Ok(tables) = nft::read(&mut ask) {
        walk(&tables);
    }
}

/// The older table: 4 or 6, 84 bytes about it, its entries.
pub fn xtables(bytes: &[u8]) {
    let Some((family, rest)) = bytes.split_first() else { return };
    let Some((info, entries)) = rest.split_at_checked(84) else { return };
    let family = if family % 2 == 0 { Family::Ip6 } else { Family::Ip };
    let read = xt::read(family, info, entries);
    let cut = entries.get(..entries.len().saturating_sub(1)).unwrap_or_default();
    if let Some(table) = read {
        assert!(entries.is_empty() || xt::read(family, info, cut).is_none(), "a part is a table");
        let rules: usize = table.chains.values().map(Vec::len).sum();
        // The shortest entry has a head and a target.
        assert!(rules <= entries.len() / 112);
        walk(&[table]);
    }
}

fn walk(tables: &[Table]) {
    let endpoints: Vec<Endpoint> =
        ["8091", "80/udp", "[::1]:443"].iter().filter_map(|port| port.parse().ok()).collect();
    let addresses: BTreeSet<_> =
        ["127.0.0.1", "192.168.7.7", "fd00:7::7"].iter().filter_map(|a| a.parse().ok()).collect();
    let found: io::Result<Vec<_>> = detours(tables, &endpoints, &addresses);
    for detour in found.into_iter().flatten() {
        assert!(endpoints.contains(&detour.endpoint));
        assert!(tables.iter().any(|table| table.name == detour.place.table
            && table.chains.contains_key(&detour.place.chain)));
        assert!(matches!(detour.share, Share::All | Share::Some | Share::Unclear));
    }
}
