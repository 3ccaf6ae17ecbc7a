//! What a model's server answers, asked from this machine or within a box.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::TestBox;

/// Long enough for an answer of a few bytes.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Of a question over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Nobody is there, or whoever is there hung up.
    Nothing,
    /// Somebody is there, and says nothing.
    Silence,
    /// Status and body; null where that is no JSON.
    Said(u16, Value),
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = serde_json::from_str(body).unwrap_or_default();
        status.map_or(Self::Nothing, |status| Self::Said(status, body))
    }

    /// The status that was answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Said(status, _) => Some(*status),
            Self::Nothing | Self::Silence => None,
        }
    }
}

/// The program that plays the servers (tests/support/model_server).
pub fn program() -> PathBuf {
    let build = Path::new(env!("CARGO_BIN_EXE_portreeve")).parent().expect("a build folder");
    let program = build.join("examples/model-server");
    assert!(program.exists(), "no 'model-server' beside the tests\nhint: cargo build --examples");
    program
}

/// Asks from here.
pub fn ask(address: SocketAddr, path: &str) -> Answer {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, TIMEOUT) else {
        return Answer::Nothing;
    };
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut text = String::new();
    let asked = write!(stream, "GET {path} HTTP/1.1\r\nHost: model\r\n\r\n");
    match asked.and_then(|()| stream.read_to_string(&mut text)) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Answer::Silence,
        Ok(_) | Err(_) => Answer::read(&text),
    }
}

/// Asks within a box.
pub fn ask_in(test_box: &TestBox, address: SocketAddr, path: &str) -> Answer {
    let script = format!(
        "exec 3<>/dev/tcp/{}/{} || exit 1
         printf 'GET {path} HTTP/1.1\\r\\nHost: model\\r\\n\\r\\n' >&3; exec cat <&3",
        address.ip(),
        address.port()
    );
    let output = test_box.run(&["timeout", "0.5", "bash", "-c", &script]);
    match output.status.code() {
        Some(124) => Answer::Silence,
        Some(_) | None => Answer::read(&String::from_utf8_lossy(&output.stdout)),
    }
}
