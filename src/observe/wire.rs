//! The wire format of socket diagnostics (sock_diag(7) over netlink(7)): messages, attributes, and which socket one is
//! about. Knows neither who asked nor why.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::net::AddressFamily;

use crate::ident::Port;

/// What every answer and notification about a socket is of kind.
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// One netlink message (`struct nlmsghdr`).
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Takes the first message off these bytes; one that is cut short is an error.
    pub(super) fn take(bytes: &mut &'a [u8]) -> io::Result<Self> {
        let length = u32_at(bytes, 0).ok_or_else(cut_short)? as usize;
        let message = bytes.get(..length).filter(|m| m.len() >= 16).ok_or_else(cut_short)?;
        *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Ok(Self {
            kind: u16_at(message, 4).ok_or_else(cut_short)?,
            flags: u16_at(message, 6).ok_or_else(cut_short)?,
            sequence: u32_at(message, 8).ok_or_else(cut_short)?,
            body: message.get(16..).unwrap_or_default(),
        })
    }
}

/// What the kernel says went wrong: a negative number (netlink(7)).
pub(super) fn refusal(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno.saturating_neg())
}

/// What a message that does not hold what it says is told as: ask again.
pub(super) fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "a message was cut short")
}

/// `struct inet_diag_msg`, in part.
#[derive(Debug)]
pub(super) struct SocketMessage<'a> {
    pub(super) state: u8,
    /// None for a socket without a local port.
    pub(super) port: Option<Port>,
    pub(super) address: IpAddr,
    pub(super) peer: SocketAddr,
    pub(super) cookie: u64,
    pub(super) uid: u32,
    pub(super) inode: u64,
    pub(super) attributes: Attributes<'a>,
}

impl<'a> SocketMessage<'a> {
    /// Reads it; none where it is too short.
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        let family = *body.first()?;
        Some(Self {
            state: *body.get(1)?,
            port: Port::new(u16_be_at(body, 4)?),
            address: address_at(body, family, 8)?,
            peer: SocketAddr::new(address_at(body, family, 24)?, u16_be_at(body, 6)?),
            cookie: u64::from(u32_at(body, 44)?) | u64::from(u32_at(body, 48)?) << 32,
            uid: u32_at(body, 64)?,
            inode: u64::from(u32_at(body, 68)?),
            attributes: Attributes(body.get(72..)?),
        })
    }
}

/// `struct rtattr` after `struct rtattr`: kind and value.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those in these bytes.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    /// An error where one is cut short.
    type Item = io::Result<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = u16_at(self.0, 0).map(usize::from).filter(|&l| l >= 4)?;
        let (kind, value) = (u16_at(self.0, 2), self.0.get(4..length));
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(kind.zip(value).ok_or_else(cut_short))
    }
}

fn address_at(bytes: &[u8], family: u8, at: usize) -> Option<IpAddr> {
    if u16::from(family) == AddressFamily::INET6.as_raw() {
        let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    } else {
        let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u16_be_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
