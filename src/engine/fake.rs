//! Fakes at the wire: whoever listens at an engine's socket.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// What the fake does about a request.
pub(crate) enum Act {
    /// Answers, and keeps the connection.
    Answer(u16, Value),
    /// Sends these bytes and closes.
    Raw(Vec<u8>),
    /// Sends these bytes and says nothing more until the peer goes.
    Begin(Vec<u8>),
    /// Says nothing until the peer goes.
    Hang,
    /// Promises a long body and sends a byte of it now and then.
    Dribble,
    /// A body without end.
    Flood,
    /// Waits for this long, then answers.
    Late(Duration, Value),
}

/// An engine's socket below a folder that is a host.
pub(crate) struct Fake {
    pub(crate) folder: TempDir,
    connections: Arc<AtomicUsize>,
}

impl Fake {
    /// A host without an engine.
    pub(crate) fn nowhere() -> Self {
        Self { folder: folder(), connections: Arc::default() }
    }

    pub(crate) fn docker(act: impl Fn(&str) -> Act + Send + Sync + 'static) -> Self {
        Self::at("run/docker.sock", move |path| match path {
            "GET /version" => Act::Answer(200, docker_version()),
            path => act(path),
        })
    }

    pub(crate) fn podman(act: impl Fn(&str) -> Act + Send + Sync + 'static) -> Self {
        Self::at("run/podman/podman.sock", move |path| match path {
            "GET /version" => Act::Answer(200, podman_version()),
            path => act(path),
        })
    }

    pub(crate) fn at(socket: &str, act: impl Fn(&str) -> Act + Send + Sync + 'static) -> Self {
        let fake = Self::nowhere();
        fake.listen(socket, act);
        fake
    }

    pub(crate) fn listen(&self, socket: &str, act: impl Fn(&str) -> Act + Send + Sync + 'static) {
        let path = self.folder.path().join(socket);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let (connections, act) = (Arc::clone(&self.connections), Arc::new(act));
        thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let act = Arc::clone(&act);
                // A peer that goes is the end of a connection, here too.
                thread::spawn(move || drop(serve(stream.unwrap(), &*act)));
            }
        });
    }

    pub(crate) fn host(&self) -> Host {
        Host::live_below(self.folder.path())
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn engine(&self, kind: EngineKind, owner: u32) -> Engine {
        let which = Which { docker: true, docker_socket: None, podman: true };
        let places = places(&self.host(), &which, &[owner].into());
        places.into_iter().find(|e| e.name == EngineRef { kind, owner }).unwrap()
    }

    /// The engine whose socket is there.
    pub(crate) fn only(&self) -> Engine {
        let has = |path| self.folder.path().join(path).exists();
        let kind = if has("run/docker.sock") { EngineKind::Docker } else { EngineKind::Podman };
        self.engine(kind, 0)
    }

    pub(crate) fn inspect(&self, timeout: Duration) -> Seen<Container> {
        self.answer(timeout).containers.remove(&id(1)).unwrap()
    }

    pub(crate) fn answer(&self, timeout: Duration) -> Answer {
        ask(&[Question::about(self.only(), [id(1)])], timeout).remove(0)
    }
}

pub(crate) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    // Users get in, as they do at the root of a host.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), everybody).unwrap();
    folder
}

pub(crate) fn serve(stream: UnixStream, act: &dyn Fn(&str) -> Act) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line)? > 2 {
            let lower = line.to_lowercase();
            if let Some(bytes) = lower.strip_prefix("content-length:") {
                length = bytes.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let answer = |out: &mut UnixStream, status: u16, body: &Value| {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let bare = matches!(status, 204 | 304);
            let length =
                if bare { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            write!(out, "HTTP/1.1 {status} Word\r\n{length}\r\n{body}")
        };
        let request = request.trim_end().strip_suffix(" HTTP/1.1").unwrap();
        // What is sent with a request stands behind it.
        let request = format!("{request} {}", String::from_utf8(body).unwrap());
        match act(request.trim_end()) {
            Act::Answer(status, body) => answer(&mut out, status, &body)?,
            Act::Late(time, body) => {
                thread::sleep(time);
                answer(&mut out, 200, &body)?;
            }
            Act::Raw(bytes) => return out.write_all(&bytes),
            Act::Begin(bytes) => {
                out.write_all(&bytes)?;
                let mut rest = String::new();
                reader.read_line(&mut rest)?;
                return Ok(());
            }
            Act::Hang => {
                let mut rest = String::new();
                reader.read_line(&mut rest)?;
                return Ok(());
            }
            Act::Dribble => {
                write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")?;
                loop {
                    out.write_all(b"{")?;
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Act::Flood => {
                write!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
                loop {
                    out.write_all(&chunk)?;
                }
            }
        }
    }
}

pub(crate) fn id(number: u8) -> ContainerId {
    ContainerId(format!("{number:064x}"))
}

pub(crate) fn docker_version() -> Value {
    json!({
        "Platform": { "Name": "" },
        "Components": [
            { "Name": "Engine", "Version": "20.10.24+dfsg1", "Details": { "ApiVersion": "1.41", "MinAPIVersion": "1.12" } },
            { "Name": "containerd", "Version": "1.6.20", "Details": { "GitCommit": "x" } }
        ],
        "Version": "20.10.24+dfsg1", "ApiVersion": "1.41", "MinAPIVersion": "1.12", "Os": "linux"
    })
}

pub(crate) fn podman_version() -> Value {
    json!({
        "Platform": { "Name": "linux/amd64/debian-12" },
        "Components": [
            { "Name": "Podman Engine", "Version": "4.3.1", "Details": { "APIVersion": "4.3.1", "MinAPIVersion": "4.0.0" } },
            { "Name": "Conmon", "Version": "conmon version 2.1.6", "Details": { "Package": "x" } }
        ],
        "Version": "4.3.1", "ApiVersion": "1.41", "MinAPIVersion": "1.24", "Os": "linux"
    })
}

pub(crate) fn container_json(number: u8, state: &Value) -> Value {
    json!({
        "Id": id(number).0, "Name": "/local-ai-aidb", "State": state, "RestartCount": 7,
        "HostConfig": {
            "NetworkMode": "stack", "PidMode": "", "RestartPolicy": { "Name": "always", "MaximumRetryCount": 0 },
            "PortBindings": { "8091/tcp": [{ "HostIp": "", "HostPort": "8091" }], "9/udp": [{ "HostIp": "", "HostPort": "" }] }
        },
        "NetworkSettings": { "Ports": {
            "8091/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8091" }, { "HostIp": "::", "HostPort": "8091" }],
            "9/udp": [{ "HostIp": "127.0.0.1", "HostPort": "32768" }], "22/tcp": null, "5/sctp": [{ "HostIp": "", "HostPort": "5" }]
        } },
        "GraphDriver": { "Name": "overlay2", "Data": { "UpperDir": "/var/lib/docker/overlay2/x/diff", "WorkDir": "/w" } },
        "Config": { "Labels": { "stack": "ai" } }
    })
}

pub(crate) fn running() -> Value {
    json!({ "Status": "running", "Running": true, "Paused": false, "Restarting": false, "Pid": 4242,
        "Health": { "Status": "healthy" } })
}

pub(crate) fn a_running_container() -> Value {
    container_json(1, &running())
}
