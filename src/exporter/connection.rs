//! A connection from accept to close: an HTTP request and its reply, which may be a stream, or the line for an agent
//! check.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::answers::{Answers, HttpAnswer};
use super::http::{self, HeadParse, HttpReply, HttpRequest, HttpStatus, MAX_HEAD};
use super::live::LiveStream;
use crate::proto::exporter::ExporterService;
use crate::sys::passed::{ClientSocket, Passed};
use crate::sys::poll::{Interest, wait_for};
use crate::sys::socket::{self, Transfer};

/// The time for the request's head since accept, and again for the client to take the reply, or a part of a stream.
const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// The age from which a connection counts as slow: a request sent along with the connect may not have been read before.
const SLOW_AFTER: Duration = Duration::from_millis(200);

/// The time and the bytes for which the connection is still read after the reply.
const LINGER_LIMITS: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// The bytes that wait in the kernel for a client that does not read its stream, and the longest part of a stream.
const STREAM_BUFFER: usize = 64 * 1024;

/// A connection. Its own thread serves it, and the server may shut it down at any time.
#[derive(Debug)]
pub(super) struct ExporterConnection {
    pub(super) service: ExporterService,
    socket: ClientSocket,
    passed: Passed,
    since: Instant,
    /// Whether the daemon was queried and has not answered yet.
    is_querying: AtomicBool,
    /// Whether the reply is a stream. Then it takes no place of other requests.
    is_stream: AtomicBool,
}

impl ExporterConnection {
    /// Returns a connection that was just accepted; its socket does not block.
    pub(super) fn new(service: ExporterService, socket: OwnedFd) -> ExporterConnection {
        ExporterConnection {
            service,
            socket: ClientSocket::own(socket),
            passed: Passed::default(),
            since: Instant::now(),
            is_querying: AtomicBool::new(false),
            is_stream: AtomicBool::new(false),
        }
    }

    /// Sends the reply, to a request if the service has requests, and closes.
    pub(super) fn serve(&self, answers: &Answers) {
        match self.service {
            ExporterService::Metrics => self.serve_http(answers),
            ExporterService::Agent => self.serve_agent_check(answers),
        }
    }

    /// Sends the line for an agent check. Bytes from the balancer (`agent-send`) are ignored.
    fn serve_agent_check(&self, answers: &Answers) {
        let line = self.query(|| answers.agent_line());
        let sent = line.map_or(Ok(()), |line| self.send(line.as_bytes()));
        if sent.is_ok() {
            self.linger();
        }
    }

    /// Runs a query, during which the connection is not slow.
    fn query<T>(&self, run: impl FnOnce() -> T) -> T {
        self.is_querying.store(true, Ordering::Relaxed);
        let answer = run();
        self.is_querying.store(false, Ordering::Relaxed);
        answer
    }

    fn serve_http(&self, answers: &Answers) {
        let request = match self.read_request() {
            Some(Ok(request)) => request,
            Some(Err(refusal)) => return self.send_reply(&refusal, false),
            None => return,
        };
        match self.query(|| answers.answer(&request)) {
            HttpAnswer::Reply(reply) => {
                self.send_reply(&reply, request.method == "HEAD");
                if request.path == "/metrics" && reply.status == HttpStatus::Ok {
                    self.query(|| answers.sample());
                }
            }
            // The client does not read any more, or not fast enough.
            HttpAnswer::Stream(stream) => drop(self.send_stream(stream, answers)),
        }
    }

    fn send_reply(&self, reply: &HttpReply, is_to_head: bool) {
        if self.send(&reply.encode(is_to_head)).is_ok() {
            self.linger();
        }
    }

    /// Sends updates until the client is gone, or too slow. Each stream has its own thread, so no other one waits.
    fn send_stream(&self, mut stream: LiveStream<'_>, answers: &Answers) -> io::Result<()> {
        self.is_stream.store(true, Ordering::Relaxed);
        socket::set_send_buffer(&self.socket, STREAM_BUFFER)?;
        self.send(&HttpReply::event_stream().encode(false))?;
        self.send_event(&stream.history())?;
        loop {
            self.send_event(&stream.next(&answers.daemon))?;
        }
    }

    /// Sends an event. A part of it has the time of a reply, so that a slow link may take longer for a long event.
    fn send_event(&self, event: &str) -> io::Result<()> {
        let mut parts = event.as_bytes().chunks(STREAM_BUFFER);
        parts.try_for_each(|part| self.send(part))
    }

    /// Returns whether the reply is a stream.
    pub(super) fn is_stream(&self) -> bool {
        self.is_stream.load(Ordering::Relaxed)
    }

    /// Returns whether the client, not the daemon, keeps the connection open.
    pub(super) fn is_slow(&self) -> bool {
        !self.is_querying.load(Ordering::Relaxed) && self.since.elapsed() >= SLOW_AFTER
    }

    /// Makes [`ExporterConnection::serve`] end.
    pub(super) fn shut_down(&self) {
        socket::end(&self.socket);
    }

    /// Reads a request, or returns the reply to an invalid one; `None` if the client closed without a byte.
    fn read_request(&self) -> Option<Result<HttpRequest, HttpReply>> {
        let mut timeout = TimeBudget(IO_TIMEOUT);
        let mut head = [0; MAX_HEAD];
        let mut length = 0;
        loop {
            match self.receive(&mut head[length..], &mut timeout) {
                Ok(0) if length == 0 => return None,
                Ok(0) => {
                    return Some(Err(HttpReply::bad_request(
                        "the request ends within its head",
                    )));
                }
                Ok(more) => length += more,
                Err(e) if e.kind() == ErrorKind::TimedOut => {
                    let sentence = format!("the request did not arrive within {IO_TIMEOUT:?}");
                    return Some(Err(HttpReply::sentence(
                        HttpStatus::RequestTimeout,
                        &sentence,
                    )));
                }
                Err(_) => return None,
            }
            // A head as long as the buffer is never partial.
            match http::parse(&head[..length]) {
                HeadParse::Partial => {}
                HeadParse::Whole(request) => return Some(Ok(request)),
                HeadParse::Refused(reply) => return Some(Err(reply)),
            }
        }
    }

    fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut timeout = TimeBudget(IO_TIMEOUT);
        while !bytes.is_empty() {
            match socket::transmit(&self.socket, bytes)? {
                Transfer::Bytes(sent) => bytes = &bytes[sent..],
                Transfer::Nothing => timeout.wait_for(&self.socket, Interest::Write)?,
                Transfer::Shortage => timeout.wait()?,
                Transfer::End => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(())
    }

    /// Reads until the client closes: closing with unread bytes would send a reset, which can destroy the reply.
    fn linger(&self) {
        socket::finish_writing(&self.socket);
        let (within, mut most) = LINGER_LIMITS;
        let mut timeout = TimeBudget(within);
        let mut leftovers = [0; 4096];
        while let Ok(more @ 1..) = self.receive(&mut leftovers, &mut timeout) {
            most = most.saturating_sub(more);
            if most == 0 {
                return;
            }
        }
    }

    /// Waits for at least one byte; 0 is the end of the stream.
    fn receive(&self, buffer: &mut [u8], timeout: &mut TimeBudget) -> io::Result<usize> {
        loop {
            match self.passed.receive(&self.socket, buffer)? {
                Transfer::Bytes(count) => return Ok(count),
                Transfer::Nothing => timeout.wait_for(&self.socket, Interest::Read)?,
                Transfer::Shortage => timeout.wait()?,
                Transfer::End => return Ok(0),
            }
        }
    }
}

/// The remaining time to wait for a client. Only time in which this process could run counts: a wait that took longer
/// than requested, because the process was stopped, counts with the requested time.
struct TimeBudget(Duration);

/// The longest single wait, so that little counts of one during which the process was stopped.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// The wait for memory of the kernel, whose end nothing reports.
const SHORTAGE_WAIT: Duration = Duration::from_millis(20);

impl TimeBudget {
    /// Waits for `interest`, at most [`MAX_WAIT`]. The caller then tries again in either case.
    fn wait_for(&mut self, socket: &ClientSocket, interest: Interest) -> io::Result<()> {
        if self.0.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let (asked, began) = (self.0.min(MAX_WAIT), Instant::now());
        wait_for(socket, interest, asked)?;
        self.0 -= began.elapsed().min(asked);
        Ok(())
    }

    /// Waits until the kernel may have memory again.
    fn wait(&mut self) -> io::Result<()> {
        if self.0.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let wait = self.0.min(SHORTAGE_WAIT);
        crate::sys::poll::pause(wait);
        self.0 -= wait;
        Ok(())
    }
}
