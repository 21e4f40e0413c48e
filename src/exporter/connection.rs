//! Who asks over HTTP, from accept to close: one request, one reply.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::answers::Answers;
use super::http::{self, HeadParse, HttpReply, HttpRequest, HttpStatus, MAX_HEAD};
use crate::sys::passed::{ClientSocket, Passed};
use crate::sys::poll::{Interest, wait_for};
use crate::sys::socket::{self, Moved};

/// From accept to the end of the request's head, and again for all of the reply to be taken.
const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// Who has been there for less is not called slow: what was sent along may not have been looked at.
const SLOW_AFTER: Duration = Duration::from_millis(200);

/// For how long and how much it is read on after the reply.
const LINGER_LIMITS: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// A connection. Its own thread serves it; the server may end it meanwhile.
#[derive(Debug)]
pub(super) struct HttpConnection {
    socket: ClientSocket,
    passed: Passed,
    since: Instant,
    /// It has said what it wants, and waits for the daemon.
    is_asking: AtomicBool,
}

impl HttpConnection {
    /// One that was accepted just now; its socket does not block.
    pub(super) fn new(socket: OwnedFd) -> HttpConnection {
        HttpConnection {
            socket: ClientSocket::own(socket),
            passed: Passed::default(),
            since: Instant::now(),
            is_asking: AtomicBool::new(false),
        }
    }

    /// Takes a request, and sees to it that the reply arrives.
    pub(super) fn serve(&self, answers: &Answers) {
        let (reply, is_to_head) = match self.request() {
            Some(Ok(request)) => {
                self.is_asking.store(true, Ordering::Relaxed);
                let reply = answers.reply_to(&request);
                self.is_asking.store(false, Ordering::Relaxed);
                (reply, request.method == "HEAD")
            }
            Some(Err(refusal)) => (refusal, false),
            None => return,
        };
        if self.send(&reply.encode(is_to_head)).is_ok() {
            self.linger();
        }
    }

    /// Whether it is itself that has been waited for for a while, and not the daemon.
    pub(super) fn is_slow(&self) -> bool {
        !self.is_asking.load(Ordering::Relaxed) && self.since.elapsed() >= SLOW_AFTER
    }

    /// Has [`HttpConnection::serve`] come to its end.
    pub(super) fn cut(&self) {
        socket::end(&self.socket);
    }

    /// A request, or the reply to what is none. Nothing from one who leaves without a word.
    fn request(&self) -> Option<Result<HttpRequest, HttpReply>> {
        let mut timeout = TimeBudget(IO_TIMEOUT);
        let mut head = [0; MAX_HEAD];
        let mut length = 0;
        loop {
            match self.receive(&mut head[length..], &mut timeout) {
                Ok(0) if length == 0 => return None,
                Ok(0) => {
                    return Some(Err(HttpReply::sentence(
                        HttpStatus::BadRequest,
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
            // One as long as the buffer is never partial.
            match http::next(&head[..length]) {
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
                Moved::Bytes(sent) => bytes = &bytes[sent..],
                Moved::Nothing => timeout.wait_for(&self.socket, Interest::Write)?,
                Moved::End => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(())
    }

    /// Waits for the end of what was not asked for: to close with bytes unread would be a reset, and destroy the reply on
    /// its way.
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

    /// Waits for bytes, at least one; 0 is the end.
    fn receive(&self, buffer: &mut [u8], timeout: &mut TimeBudget) -> io::Result<usize> {
        loop {
            match self.passed.receive(&self.socket, buffer)? {
                Moved::Bytes(count) => return Ok(count),
                Moved::Nothing => timeout.wait_for(&self.socket, Interest::Read)?,
                Moved::End => return Ok(0),
            }
        }
    }
}

/// How long an HTTP connection is waited for yet. Only the time counts in which this process could run: of a wait that was longer than
/// it was asked to be, because the process was stopped meanwhile, no more than that.
struct TimeBudget(Duration);

/// The longest wait at a time, so that not much counts of one in which the process was stopped.
const MAX_WAIT: Duration = Duration::from_millis(250);

impl TimeBudget {
    /// Waits for this, or for a while. Whoever calls looks then, whatever it was.
    fn wait_for(&mut self, socket: &ClientSocket, interest: Interest) -> io::Result<()> {
        if self.0.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let (asked, began) = (self.0.min(MAX_WAIT), Instant::now());
        wait_for(socket, interest, asked)?;
        self.0 -= began.elapsed().min(asked);
        Ok(())
    }
}
