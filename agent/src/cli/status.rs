//! In: the address of the running agent's health server. Out: its `/status`, as a table or as it came.
//! Never: waits for ever, or believes more than [`ANSWER_BYTES_MAX`].

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Failure, harmless, print};

/// For the whole question.
const TIME: Duration = Duration::from_secs(5);

const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Asks the agent that listens at `listen`. An unhealthy agent is an answer, too.
pub fn ask(listen: SocketAddr, json: bool) -> Result<(), Failure> {
    let peer = SocketAddr::new(reachable(listen.ip()), listen.port());
    let failed = |cause: String| Failure::Failed(format!("cannot ask the agent at {peer}: {cause}"));
    let answer = get(peer).map_err(|cause| failed(format!("{cause}; is it running, and is health.listen this address?")))?;
    let body = body(&answer).map_err(|cause| failed(format!("{cause}; does another program listen there?")))?;
    let status: Value = serde_json::from_slice(body).map_err(|cause| failed(format!("its answer is not JSON: {cause}")))?;
    let text = if json { serde_json::to_string_pretty(&status).map_err(Failure::of)? + "\n" } else { table(&status) };
    print(&text)
}

/// Who listens everywhere is asked on loopback.
fn reachable(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

/// HTTP/1.0, so that the answer comes in one piece and ends with the connection (RFC 1945 7.2.2).
fn get(peer: SocketAddr) -> std::io::Result<Vec<u8>> {
    let until = Instant::now() + TIME;
    let mut stream = TcpStream::connect_timeout(&peer, TIME)?;
    stream.set_write_timeout(Some(TIME))?;
    stream.write_all(format!("GET /status HTTP/1.0\r\nHost: {peer}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::other(format!("no whole answer within {} s", TIME.as_secs())));
        }
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(read) => read,
            Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(cause) => return Err(cause),
        };
        answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(std::io::Error::other(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes")));
        }
    }
}

fn body(answer: &[u8]) -> Result<&[u8], String> {
    const END: &[u8] = b"\r\n\r\n";
    let head_bytes = answer.windows(END.len()).position(|window| window == END).ok_or("its answer is not HTTP")?;
    let (head, rest) = answer.split_at(head_bytes);
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split(' ');
    match (words.next(), words.next()) {
        (Some(version), Some("200")) if version.starts_with("HTTP/1.") => Ok(rest.get(END.len()..).unwrap_or_default()),
        _ => Err(format!("it answered '{}'", harmless(&line.chars().take(80).collect::<String>()))),
    }
}

fn table(status: &Value) -> String {
    let text = |name: &str| status.get(name).map_or_else(|| "?".into(), shown);
    let healthy = status.get("healthy").and_then(Value::as_bool).unwrap_or(false);
    let mut out = format!(
        "tapfleetd {} on {}, since {} ({} s): {}\n",
        text("version"),
        text("instance"),
        text("since"),
        text("up_seconds"),
        if healthy { "healthy" } else { "NOT HEALTHY" }
    );
    for reason in status.get("reasons").and_then(Value::as_array).into_iter().flatten() {
        let _ = writeln!(out, "  {}", reason.get("detail").map_or_else(|| shown(reason), shown));
    }
    for (name, value) in status.get("counters").and_then(Value::as_object).into_iter().flatten() {
        match value.as_object() {
            Some(reasons) => {
                for (reason, n) in reasons {
                    let _ = writeln!(out, "{:32} {:>20}", harmless(&format!("{name}: {reason}")), shown(n));
                }
            }
            None => drop(writeln!(out, "{:32} {:>20}", harmless(name), shown(value))),
        }
    }
    out
}

fn shown(value: &Value) -> String {
    harmless(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_is_http_and_fine_has_a_body() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\na: b\r\n\r\n{}"), Ok(b"{}".as_slice()));
        assert!(body(b"HTTP/1.1 404 Not Found\r\n\r\n{}").is_err_and(|cause| cause.contains("404")));
        for foreign in [b"SSH-2.0-OpenSSH\r\n".as_slice(), b"", b"\r\n\r\n", b"SMTP 200\r\n\r\n"] {
            assert!(body(foreign).is_err());
        }
    }

    #[test]
    fn what_an_answer_holds_cannot_steer_the_terminal() {
        let status =
            serde_json::json!({ "instance": "i\u{1b}[2J", "counters": { "a\u{7}": { "b\u{9b}": 1 } }, "healthy": 5, "reasons": [3] });
        let text = table(&status);
        assert!(text.contains("NOT HEALTHY"));
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}
