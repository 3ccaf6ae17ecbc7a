//! A model, asked over HTTP whether it serves, and what. Whoever answers may be anybody: each question has a deadline and no more
//! of an answer is read than agreed, no redirect is followed, and that it answers proves nothing of who it is.

use std::{fmt, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, runtime, time::timeout};

use super::plan::Reach;
use crate::backend::{Readiness, Spec, Told};

/// More than the headers of any server.
const MOST_HEADER_BYTES: usize = 64 << 10;
/// A list of models; vLLM's entries take some 1 kB each.
const MOST_BODY_BYTES: usize = 1 << 20;

/// What came of asking whether it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It answered, with this status of its health endpoint.
    Answered(Readiness),
    /// It did not; says how.
    Silent(String),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(Readiness::Ready) => f.write_str("healthy"),
            Self::Answered(Readiness::Loading) => f.write_str("loading (503)"),
            Self::Answered(Readiness::Sick(status)) => write!(f, "unhealthy: it answers {status}"),
            Self::Silent(why) => write!(f, "unhealthy: {why}"),
        }
    }
}

impl Health {
    /// The same of one that is still on its way up: that it does not answer yet is no illness.
    pub fn while_loading(&self) -> String {
        match self {
            Self::Silent(why) => format!("no answer yet ({why})"),
            Self::Answered(_) => self.to_string(),
        }
    }
}

/// What it serves, held against what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// The model is among it.
    Fits,
    /// It serves these instead.
    Other(Vec<String>),
    /// It did not say; says why.
    Unsaid(String),
}

/// Asks its health endpoint once. None where it is not to be asked.
pub fn ask(reach: &Reach, most: Duration) -> Option<Health> {
    let path = reach.health?.path;
    let health = reach.health?;
    Some(match get(reach.address, path, most) {
        Ok((status, _)) => Health::Answered(health.read(status)),
        Err(why) => Health::Silent(why),
    })
}

/// Asks what it serves.
pub fn served(reach: &Reach, spec: &Spec, told: &Told, most: Duration) -> Served {
    let body = match get(reach.address, reach.served.path, most) {
        Ok((200, body)) => body,
        Ok((status, _)) => {
            return Served::Unsaid(format!("'{}' answers {status}", reach.served.path));
        }
        Err(why) => return Served::Unsaid(format!("'{}': {why}", reach.served.path)),
    };
    held(reach, spec, told, &body)
}

/// What an answer says, held against what it should.
fn held(reach: &Reach, spec: &Spec, told: &Told, body: &[u8]) -> Served {
    let ids = serde_json::from_slice(body).ok().and_then(|value| (reach.served.read)(&value));
    match ids {
        Some(ids) if ids.iter().any(|id| (reach.served.fits)(spec, told, id)) => Served::Fits,
        Some(ids) => Served::Other(ids),
        None => {
            let (backend, path) = (spec.backend, reach.served.path);
            Served::Unsaid(format!("'{path}' answers in no form of {backend}'s"))
        }
    }
}

/// A GET: status and body.
fn get(address: SocketAddr, path: &str, most: Duration) -> Result<(u16, Bytes), String> {
    let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let call = async {
        let stream = TcpStream::connect(address).await.map_err(|error| refused(&error))?;
        let (mut sender, connection): (SendRequest<Empty<Bytes>>, _) = Builder::new()
            .max_buf_size(MOST_HEADER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| with_causes(&error))?;
        // What it has to say, the sender says too.
        tokio::spawn(async { drop(connection.await) });
        let request = Request::get(path).header("Host", address.to_string()).body(Empty::new());
        let request = request.map_err(|error| with_causes(&error))?;
        let response = sender.send_request(request).await.map_err(|error| with_causes(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MOST_BODY_BYTES).collect().await;
        let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => format!("its answer is longer than {MOST_BODY_BYTES} bytes"),
            None => with_causes(error.as_ref()),
        })?;
        Ok((status, body.to_bytes()))
    };
    let late = || format!("no answer within {:.0} s", most.as_secs_f64().max(1.0));
    let answer = runtime.block_on(async { timeout(most, call).await });
    runtime.shutdown_background();
    answer.unwrap_or_else(|_| Err(late()))
}

fn refused(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::ConnectionRefused {
        return "nobody listens".to_owned();
    }
    error.to_string()
}

/// hyper's own words are "connection error" and the like.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpListener},
        thread,
        time::Instant,
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Somebody who takes one connection, reads its question and goes on as he likes.
    fn asked(
        answers: impl FnOnce(&mut dyn Write) + Send + 'static,
        most: Duration,
    ) -> Result<u16, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            answers(&mut stream);
            // He hangs up only when we do.
            let _ = stream.read(&mut [0]);
        });
        let answer = get(address, "/health", most).map(|(status, _)| status);
        server.join().unwrap();
        answer
    }

    /// Writes until nobody reads any more.
    fn without_end(stream: &mut dyn Write, head: &[u8]) {
        let mut alive = stream.write_all(head).is_ok();
        while alive {
            alive = stream.write_all(&[b'a'; 4096]).is_ok();
        }
    }

    #[test]
    fn an_answer_without_end_is_left_at_its_limit() {
        let body = |s: &mut dyn Write| without_end(s, b"HTTP/1.1 200 OK\r\n\r\n");
        let why = asked(body, DEADLINE).unwrap_err();
        assert!(why.contains("longer than"), "{why}");
        let header = |s: &mut dyn Write| without_end(s, b"HTTP/1.1 200 OK\r\nX: ");
        let why = asked(header, DEADLINE).unwrap_err();
        assert!(!why.starts_with("no answer within"), "{why}");
    }

    #[test]
    fn half_an_answer_is_left_at_the_deadline() {
        let half = |s: &mut dyn Write| s.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap();
        let began = Instant::now();
        let why = asked(half, Duration::from_millis(300)).unwrap_err();
        assert!(why.starts_with("no answer within"), "{why}");
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    }

    #[test]
    fn a_redirect_leads_us_nowhere() {
        let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let to = elsewhere.local_addr().unwrap();
        let head =
            format!("HTTP/1.1 302 Found\r\nLocation: http://{to}/\r\nContent-Length: 0\r\n\r\n");
        let redirect = move |s: &mut dyn Write| s.write_all(head.as_bytes()).unwrap();
        assert_eq!(asked(redirect, DEADLINE), Ok(302));
        assert!(elsewhere.accept().is_err(), "nobody came");
    }
}
