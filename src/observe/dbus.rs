//! As much of D-Bus (D-Bus Specification 0.43) as asking systemd and logind takes: connect, authenticate, call a method with
//! strings or a number, read the reply. Everything has one deadline and a size limit: a user's manager is
//! run by that user, who may put anything in its place.
//!
//! Why not a library: docs/dependencies.md.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Larger than any answer of a manager about one unit (some 30 KiB).
const MOST_BYTES: usize = 1 << 20;
/// Containers within containers that the specification allows (32 arrays and 32 structs).
const MOST_DEPTH: usize = 64;

/// A connection to one peer, usable until its deadline.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    deadline: Instant,
    serial: u32,
}

/// Why a call brought no answer.
#[derive(Debug)]
pub enum CallError {
    /// The peer answered with this error, `org.freedesktop.systemd1.NoSuchUnit`.
    Refused(String),
    /// No answer at all.
    Failed(io::Error),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A value of a reply, as far as anybody asks for its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`.
    Bool(bool),
    /// `u`.
    U32(u32),
    /// `t`.
    U64(u64),
    /// `s`, `o` or `g`.
    Text(String),
    /// `ay`.
    Bytes(Vec<u8>),
    /// `a{sv}` and the like with text keys.
    Table(HashMap<String, Value>),
    /// Anything else.
    Other,
}

/// What is called on which object.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Bus name; none where the peer is the manager itself.
    pub destination: Option<&'a str>,
    /// Object.
    pub path: &'a str,
    /// Interface.
    pub interface: &'a str,
    /// Method.
    pub member: &'a str,
}

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// `s`.
    Text(&'a str),
    /// `u`.
    U32(u32),
}

impl Value {
    /// The text of `s`, `o` and `g`.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The truth of `b`.
    pub fn flag(&self) -> Option<bool> {
        if let Self::Bool(flag) = self { Some(*flag) } else { None }
    }

    /// The number of `u` or `t`.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::U32(number) => Some(u64::from(*number)),
            Self::U64(number) => Some(*number),
            Self::Bool(_) | Self::Text(_) | Self::Bytes(_) | Self::Table(_) | Self::Other => None,
        }
    }

    /// The bytes of `ay` as hexadecimal digits; none where all are zero.
    pub fn hex(&self) -> Option<String> {
        let Self::Bytes(bytes) = self else { return None };
        let digit = |nibble: u8| char::from_digit(nibble.into(), 16);
        let is_set = bytes.iter().any(|&b| b != 0);
        is_set
            .then(|| bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).flatten().collect())
    }
}

impl Connection {
    /// Connects to a peer that is no bus: a manager's private socket.
    pub fn to_peer(socket: &Path, limit: Duration) -> io::Result<Self> {
        let address = SocketAddrUnix::new(socket)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A full backlog answers EAGAIN here, where a blocking connect would wait for ever.
        connect(&fd, &address)?;
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false)?;
        let mut connection = Self { stream, deadline: Instant::now() + limit, serial: 0 };
        connection.authenticate()?;
        Ok(connection)
    }

    /// Connects to a bus.
    pub fn to_bus(socket: &Path, limit: Duration) -> Result<Self, CallError> {
        let mut connection = Self::to_peer(socket, limit)?;
        let hello = Call {
            destination: Some("org.freedesktop.DBus"),
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
        };
        connection.call(hello, &[])?;
        Ok(connection)
    }

    fn authenticate(&mut self) -> io::Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        // The uid as text, its bytes as hexadecimal digits: every digit is 0x30 and itself.
        let hex = uid
            .chars()
            .fold(String::new(), |hex, digit| hex + "3" + digit.encode_utf8(&mut [0; 4]));
        self.send(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 512 {
                return Err(invalid("its greeting has no end"));
            }
            line.extend(self.receive(1)?);
        }
        if line.starts_with(b"OK ") {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "it refused to talk to us"))
        }
    }

    /// Calls a method and waits for its reply: the first value of the body, `Other` where there is none.
    pub fn call(&mut self, call: Call<'_>, arguments: &[Argument<'_>]) -> Result<Value, CallError> {
        self.serial += 1;
        let message = encode(call, arguments, self.serial);
        self.send(&message)?;
        loop {
            let head = self.receive(16)?;
            let sizes = Sizes::read(&head).ok_or_else(|| invalid("its message has no header"))?;
            let rest = self.receive(sizes.rest()?)?;
            let message = Message::read(sizes, &rest)
                .ok_or_else(|| invalid("its message does not follow the protocol"))?;
            if message.reply_to == Some(self.serial) {
                return message.answer();
            }
        }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes).map_err(timed_out)
    }

    fn receive(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while let Some(space) = bytes.get_mut(filled..).filter(|s| !s.is_empty()) {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(space) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                // By a stop, for one (SIGSTOP and SIGCONT), which interrupts what has a timeout (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
            }
        }
        Ok(bytes)
    }
}

/// A socket's own timeout answers EAGAIN (socket(7)).
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A method call, little-endian. NO_AUTO_START: a question starts no service.
fn encode(call: Call<'_>, arguments: &[Argument<'_>], serial: u32) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    const NO_AUTO_START: u8 = 2;
    let mut body = Vec::new();
    let mut signature = String::new();
    for argument in arguments {
        match argument {
            Argument::Text(text) => {
                signature.push('s');
                push_text(&mut body, text);
            }
            Argument::U32(number) => {
                signature.push('u');
                pad(&mut body, 4);
                body.extend(number.to_le_bytes());
            }
        }
    }
    let mut fields = Vec::new();
    let texts = [
        (1, 'o', Some(call.path)),
        (2, 's', Some(call.interface)),
        (3, 's', Some(call.member)),
        (6, 's', call.destination),
    ];
    for (code, kind, text) in texts {
        if let Some(text) = text {
            pad(&mut fields, 8);
            fields.extend([code, 1, kind as u8, 0]);
            push_text(&mut fields, text);
        }
    }
    if !signature.is_empty() {
        pad(&mut fields, 8);
        fields.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap_or_default()]);
        fields.extend(signature.bytes());
        fields.push(0);
    }
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or_default().to_le_bytes();
    let mut message = vec![b'l', METHOD_CALL, NO_AUTO_START, 1];
    message.extend(length(&body));
    message.extend(serial.to_le_bytes());
    message.extend(length(&fields));
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(u32::try_from(text.len()).unwrap_or_default().to_le_bytes());
    bytes.extend(text.bytes());
    bytes.push(0);
}

/// The fixed part of a message's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    is_little: bool,
    kind: u8,
    body: usize,
    fields: usize,
}

impl Sizes {
    pub(super) fn read(head: &[u8]) -> Option<Self> {
        let is_little = match head.first()? {
            b'l' => true,
            b'B' => false,
            _ => return None,
        };
        let mut reader = Reader { bytes: head, at: 4, is_little };
        let body = reader.u32()? as usize;
        reader.u32()?; // its own serial
        Some(Self { is_little, kind: *head.get(1)?, body, fields: reader.u32()? as usize })
    }

    pub(super) fn rest(self) -> io::Result<usize> {
        let rest = self.fields.next_multiple_of(8).saturating_add(self.body);
        if rest > MOST_BYTES { Err(invalid("its message is too large")) } else { Ok(rest) }
    }
}

pub(super) struct Message<'a> {
    kind: u8,
    reply_to: Option<u32>,
    error: Option<String>,
    signature: String,
    body: Reader<'a>,
}

impl<'a> Message<'a> {
    /// Reads what follows the fixed header; the fields begin at its multiple of eight, as in the message.
    pub(super) fn read(sizes: Sizes, rest: &'a [u8]) -> Option<Self> {
        let is_little = sizes.is_little;
        let (mut reply_to, mut error, mut signature) = (None, None, String::new());
        let mut fields = Reader { bytes: rest.get(..sizes.fields)?, at: 0, is_little };
        while fields.at < sizes.fields {
            fields.align(8)?;
            let code = fields.u8()?;
            match (code, fields.variant(0)?) {
                (4, Value::Text(name)) => error = Some(name),
                (5, Value::U32(serial)) => reply_to = Some(serial),
                (8, Value::Text(text)) => signature = text,
                _ => {}
            }
        }
        let body = rest.get(sizes.fields.next_multiple_of(8)..)?;
        let body = Reader { bytes: body, at: 0, is_little };
        Some(Self { kind: sizes.kind, reply_to, error, signature, body })
    }

    pub(super) fn answer(mut self) -> Result<Value, CallError> {
        const METHOD_RETURN: u8 = 2;
        if self.kind != METHOD_RETURN {
            return Err(CallError::Refused(
                self.error.unwrap_or_else(|| "no error's name".to_owned()),
            ));
        }
        if self.signature.is_empty() {
            return Ok(Value::Other);
        }
        let value = self.body.value(&mut self.signature.bytes().peekable(), 0);
        Ok(value.ok_or_else(|| invalid("its reply does not fit its signature"))?)
    }
}

type Signature<'a> = std::iter::Peekable<std::str::Bytes<'a>>;

/// Reads marshalled values; none where they do not fit.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    is_little: bool,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.next_multiple_of(to);
        (self.at <= self.bytes.len()).then_some(())
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        Some(if self.is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn u64(&mut self) -> Option<u64> {
        self.align(8)?;
        let bytes: [u8; 8] = self.take(8)?.try_into().ok()?;
        Some(if self.is_little { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) })
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let bytes = self.take(length)?;
        self.take(1)?; // its NUL
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    fn variant(&mut self, depth: usize) -> Option<Value> {
        let length = usize::from(self.u8()?);
        let signature = self.text(length)?;
        self.value(&mut signature.bytes().peekable(), depth + 1)
    }

    /// One value of the next complete type of the signature.
    fn value(&mut self, signature: &mut Signature<'_>, depth: usize) -> Option<Value> {
        if depth > MOST_DEPTH {
            return None;
        }
        Some(match signature.next()? {
            b'y' => {
                self.u8()?;
                Value::Other
            }
            b'b' => Value::Bool(self.u32()? != 0),
            b'u' => Value::U32(self.u32()?),
            b'i' | b'h' => {
                self.u32()?;
                Value::Other
            }
            b'n' | b'q' => {
                self.align(2)?;
                self.take(2)?;
                Value::Other
            }
            b't' => Value::U64(self.u64()?),
            b'x' | b'd' => {
                self.u64()?;
                Value::Other
            }
            b's' | b'o' => {
                let length = self.u32()? as usize;
                Value::Text(self.text(length)?)
            }
            b'g' => {
                let length = usize::from(self.u8()?);
                Value::Text(self.text(length)?)
            }
            b'v' => self.variant(depth)?,
            b'a' => self.array(signature, depth)?,
            b'(' => {
                self.align(8)?;
                while *signature.peek()? != b')' {
                    self.value(signature, depth + 1)?;
                }
                signature.next();
                Value::Other
            }
            _ => return None,
        })
    }

    fn array(&mut self, signature: &mut Signature<'_>, depth: usize) -> Option<Value> {
        let length = self.u32()? as usize;
        let element = *signature.peek()?;
        let alignment = match element {
            b'y' | b'g' | b'v' => 1,
            b'n' | b'q' => 2,
            b'x' | b't' | b'd' | b'(' | b'{' => 8,
            _ => 4,
        };
        self.align(alignment)?;
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len())?;
        let elements = complete_type(signature)?;
        if element == b'y' {
            return Some(Value::Bytes(self.take(length)?.to_vec()));
        }
        let mut table = HashMap::new();
        while self.at < end {
            let mut inner = elements.bytes().peekable();
            if element == b'{' {
                self.align(8)?;
                inner.next();
                let key = self.value(&mut inner, depth + 1)?;
                let value = self.value(&mut inner, depth + 1)?;
                if let Value::Text(key) = key {
                    table.insert(key, value);
                }
            } else {
                let before = self.at;
                self.value(&mut inner, depth + 1)?;
                if self.at == before {
                    return None; // a struct of nothing would go on for ever
                }
            }
        }
        (self.at == end).then_some(if element == b'{' { Value::Table(table) } else { Value::Other })
    }
}

/// Takes one complete type off the signature.
fn complete_type(signature: &mut Signature<'_>) -> Option<String> {
    let mut taken = String::new();
    let mut open = 0_usize;
    loop {
        let kind = signature.next()?;
        taken.push(char::from(kind));
        match kind {
            b'(' | b'{' => open += 1,
            b')' | b'}' => open = open.checked_sub(1)?,
            b'a' => continue,
            _ => {}
        }
        if open == 0 {
            return Some(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `{"a": <true>, "b": <[1, 2]>, "c": <(u8, "x")>}` as `a{sv}`.
    fn table() -> Vec<u8> {
        let mut body = Vec::new();
        let entry = |body: &mut Vec<u8>, key: &str, signature: &str| {
            pad(body, 8);
            push_text(body, key);
            body.push(u8::try_from(signature.len()).unwrap());
            body.extend(signature.bytes());
            body.push(0);
        };
        entry(&mut body, "a", "b");
        pad(&mut body, 4);
        body.extend(1_u32.to_le_bytes());
        entry(&mut body, "b", "ay");
        pad(&mut body, 4);
        body.extend(2_u32.to_le_bytes());
        body.extend([1, 2]);
        entry(&mut body, "c", "(ys)");
        pad(&mut body, 8);
        body.push(7);
        push_text(&mut body, "x");
        let mut whole = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        whole.extend([0; 4]); // the length counts from the first entry, at a multiple of eight
        whole.extend(body);
        whole
    }

    fn read(bytes: &[u8], signature: &str) -> Option<Value> {
        let mut reader = Reader { bytes, at: 0, is_little: true };
        reader.value(&mut signature.bytes().peekable(), 0)
    }

    #[test]
    fn a_table_of_properties_is_read_and_what_nobody_asks_for_is_stepped_over() {
        let Some(Value::Table(table)) = read(&table(), "a{sv}") else { panic!("no table") };
        assert_eq!(table["a"], Value::Bool(true));
        assert_eq!(table["b"], Value::Bytes(vec![1, 2]));
        assert_eq!(table["c"], Value::Other);
    }

    #[test]
    fn a_table_that_is_cut_anywhere_is_no_table() {
        let whole = table();
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length], "a{sv}"), None, "cut at {length}");
        }
    }

    /// Else a user's manager could use up the stack of who asks it.
    #[test]
    fn variants_within_variants_are_read_to_a_depth() {
        let nested = |levels: usize| [b"\x01v\0".repeat(levels), b"\x01y\0\x07".to_vec()].concat();
        assert_eq!(read(&nested(20), "v"), Some(Value::Other));
        assert_eq!(read(&nested(200), "v"), None);
        assert_eq!(read(&nested(300_000), "v"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_and_no_signature_make_the_reader_panic_or_hang(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            signature in "[ybnqiuxtdsogvah(){}]{0,40}",
        ) {
            let _ = read(&bytes, &signature);
        }
    }
}
