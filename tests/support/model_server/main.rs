//! A server that plays each backend: it takes the same arguments, says in the same form whether it is ready and what it
//! serves, and ends at SIGTERM. It serves nothing.
//!
//! Which backend it plays it is told by its name and the words behind it, as the images and PATH have it:
//!
//! ```text
//! vllm serve MODEL …
//! llama-server --model FILE …
//! ollama serve
//! text-generation-launcher --model-id MODEL …
//! python3 -m sglang.launch_server --model-path MODEL …
//! ```
//!
//! An argument that its backend is never told is refused, and so is a path where there is nothing. What follows is its own; it
//! may also stand in `MODEL_SERVER_ARGS`, split at spaces, for Ollama takes no arguments. WHEN is in seconds since its start,
//! or `usr1`: as soon as it gets SIGUSR1.
//!
//! | option | effect |
//! |---|---|
//! | `--load-for WHEN` | is not ready until then |
//! | `--never-listen` | never is |
//! | `--allocate MIB` | takes so much memory while it loads, and writes to it |
//! | `--serve-id ID` | serves another model; for Ollama: what is in its store |
//! | `--child` | starts a child in a session of its own, titled as vLLM's engine, which holds nothing; an end in order ends it, too |
//! | `--crash-at-start TEXT` | says so and ends with 3 |
//! | `--crash-after WHEN`, `--crash-code N` | ends with N, or 1 |
//! | `--health-fails-after WHEN` | its health is 500 from then on |
//! | `--hang-health-after WHEN` | its health gets no answer from then on |
//! | `--ignore-term` | survives SIGTERM |
//! | `--slow-stop SECONDS` | takes so long to end |

mod backend;
mod behaviour;

use std::{
    env,
    error::Error,
    ffi::CString,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{self, Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use backend::{Backend, Loading};
use behaviour::Behaviour;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// As vLLM titles the process that has the GPU (vllm/v1/engine/core.py).
const CHILD: &str = "VLLM::EngineCore";

/// SIGUSR1 came.
static TOLD: OnceLock<()> = OnceLock::new();
static READY: OnceLock<()> = OnceLock::new();
static SICK: AtomicBool = AtomicBool::new(false);
static HUNG: AtomicBool = AtomicBool::new(false);

fn main() -> Outcome {
    let mut words: Vec<String> = env::args().collect();
    if words.first().is_some_and(|name| name == CHILD) {
        return be_child();
    }
    let own = env::var("MODEL_SERVER_ARGS").unwrap_or_default();
    words.extend(own.split_whitespace().map(str::to_owned));
    Server::parse(&words)?.play()
}

/// What it was told.
struct Server {
    backend: &'static Backend,
    behaviour: Behaviour,
    address: SocketAddr,
    id: String,
}

impl Server {
    fn parse(words: &[String]) -> Outcome<Self> {
        let (backend, words) = backend::called(words)?;
        let mut behaviour = Behaviour::default();
        let (mut model, mut name) = (None, None);
        let (mut host, mut port) = backend::from_environment(backend)?;
        let mut rest = words.iter().cloned();
        while let Some(word) = rest.next() {
            let (flag, mut inline) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with('-') => (flag, Some(value.to_owned())),
                Some(_) | None => (word.as_str(), None),
            };
            let mut value =
                || inline.take().or_else(|| rest.next()).ok_or(format!("'{flag}' wants a value"));
            match flag {
                _ if behaviour.take(flag, &mut value)? => {}
                _ if flag == backend.host => host = Some(value()?.parse::<IpAddr>()?),
                _ if flag == backend.port => port = Some(value()?.parse::<u16>()?),
                _ if backend.name.contains(&flag) => name = Some(value()?),
                _ if backend.model.contains(&flag) => model = Some(value()?),
                _ if backend.others.contains(&flag) => drop(value()?),
                _ if backend.takes_bare_model && !flag.starts_with('-') && model.is_none() => {
                    model = Some(word.clone());
                }
                _ => return Err(format!("unrecognized argument '{word}'").into()),
            }
        }
        if let Some(model) = model.as_ref().filter(|model| model.starts_with('/')) {
            fs::metadata(model).map_err(|error| format!("'{model}': {error}"))?;
        }
        let (host, port) = (host.ok_or("it is told no address")?, port.ok_or("nor a port")?);
        let id = behaviour.serve_id.take().or(name).or(model).unwrap_or_default();
        Ok(Self { backend, behaviour, address: SocketAddr::new(host, port), id })
    }

    fn play(self) -> Outcome {
        // Threads look at it until the process ends.
        let server: &'static Self = Box::leak(Box::new(self));
        let Behaviour { crash_at_start, has_child, .. } = &server.behaviour;
        if let Some(text) = crash_at_start {
            writeln!(io::stderr(), "{text}")?;
            end(3);
        }
        let mut child = has_child.then(start_child).transpose()?;
        if let Some(child) = &child {
            server.say(&format!("its child is {}", child.id()));
        }
        on(SIGUSR1, || _ = TOLD.set(()))?;
        on(SIGTERM, move || server.stop(child.as_mut()))?;
        on(SIGINT, || end(130))?;
        server.behaviour.begin(|text| server.say(text));
        match server.backend.loading {
            Loading::Unbound => {
                server.load();
                server.serve(server.bind()?)?;
            }
            Loading::Bound => {
                let socket = server.bind()?;
                server.load();
                server.serve(socket)?;
            }
            Loading::Silent => {
                let listener = server.listen(server.bind()?)?;
                server.load();
                server.accept(listener);
            }
            Loading::Unhealthy | Loading::Busy => {
                server.serve(server.bind()?)?;
                server.load();
            }
        }
        let _ = READY.set(());
        server.say(&format!("ready at {} with '{}'", server.address, server.id));
        stay()
    }

    fn say(&self, text: &str) {
        let name = self.backend.command.first().copied().unwrap_or_default();
        // Whoever read it may be gone.
        let _ = writeln!(io::stdout(), "{name}: {text}");
    }

    fn load(&self) {
        self.say("loading");
        let bytes = self.behaviour.allocates_mib << 20;
        Box::leak(vec![1_u8; bytes].into_boxed_slice());
        if let Some(when) = self.behaviour.load_for {
            when.wait();
        }
    }

    fn stop(&self, child: Option<&mut Child>) {
        self.say("got SIGTERM");
        if self.behaviour.ignores_term {
            return;
        }
        thread::sleep(self.behaviour.slow_stop);
        if let Some(child) = child {
            let _ = child.kill().and_then(|()| child.wait());
        }
        self.say("ends");
        end(0);
    }

    fn bind(&self) -> Outcome<OwnedFd> {
        let family =
            if self.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &self.address)?;
        Ok(socket)
    }

    fn listen(&self, socket: OwnedFd) -> Outcome<TcpListener> {
        if self.behaviour.never_listens {
            self.say("never listens");
            stay();
        }
        rustix::net::listen(&socket, 128)?;
        Ok(socket.into())
    }

    fn serve(&'static self, socket: OwnedFd) -> Outcome {
        let listener = self.listen(socket)?;
        self.accept(listener);
        Ok(())
    }

    fn accept(&'static self, listener: TcpListener) {
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || self.converse(&stream));
            }
        });
    }

    /// One question, one answer.
    fn converse(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut lines = BufReader::new(stream).lines();
        let question = lines.next().transpose()?.unwrap_or_default();
        // To its end, lest closing reset the connection.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let (status, body) = self.answer(&question);
        let head = "Content-Type: application/json\r\nConnection: close";
        write!(stream, "HTTP/1.1 {status} So\r\n{head}\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(body.as_bytes())
    }

    fn answer(&self, question: &str) -> (u16, String) {
        let backend = self.backend;
        let path = question.strip_prefix("GET ").and_then(|rest| rest.split(' ').next());
        let (asks_health, asks_list) = (path == Some(backend.health), path == Some(backend.list));
        if asks_health && HUNG.load(Ordering::Relaxed) {
            stay();
        }
        let is_loading = READY.get().is_none()
            && match backend.loading {
                Loading::Busy => true,
                Loading::Unhealthy => asks_health,
                Loading::Unbound | Loading::Bound | Loading::Silent => false,
            };
        match path {
            _ if is_loading => (503, backend::LOADING.to_owned()),
            Some(_) if asks_health && SICK.load(Ordering::Relaxed) => (500, String::new()),
            Some(_) if asks_list => (200, (backend.serves)(&self.id).to_string()),
            Some(_) if asks_health => (200, String::new()),
            Some(_) | None => (404, String::new()),
        }
    }
}

/// Does it, in a thread of its own, each time that the signal comes. A first process of a pid namespace gets only the signals
/// that it handles (pid_namespaces(7)).
fn on(signal: i32, mut act: impl FnMut() + Send + 'static) -> Outcome {
    let (mut bell, ring) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal, ring)?;
    thread::spawn(move || {
        while bell.read_exact(&mut [0]).is_ok() {
            act();
        }
    });
    Ok(())
}

fn start_child() -> io::Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.arg0(CHILD).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}

fn be_child() -> Outcome {
    rustix::process::setsid()?;
    // The kernel names a process after its file, and cuts it to 15 bytes.
    rustix::thread::set_name(&CString::new(CHILD)?)?;
    stay()
}

fn stay() -> ! {
    loop {
        thread::park();
    }
}

#[allow(clippy::exit, reason = "the whole process is to end, whatever its other threads do")]
fn end(code: i32) -> ! {
    process::exit(code)
}
