//! The circumstances and the results of a method: [`Call`], [`Fault`], [`Reply`].

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::proto::frame::{ByteOrder, PREFIX};
use crate::proto::names::{ClientId, Peer};
use crate::proto::rpc::{self, Code, GoawayReason, NULL};
use crate::shm::CloseReason;
use crate::sys::{fork, poll};

/// The circumstances of one request.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The client: the same for all requests of a connection, in every worker, and never reused.
    pub client: ClientId,
    /// The client's address, as the kernel reported it when the client connected, or as a load balancer has reported it
    /// by the PROXY protocol.
    pub peer: Peer,
    /// The address of the load balancer that has reported `peer`; none without one.
    pub via: Option<Peer>,
    /// 1; 2 if the request is executed once more, because its worker or app died.
    pub attempt: u32,
    /// When the process may be killed during this call; none while no deadline applies.
    pub deadline: Option<Instant>,
    /// None in a unit test.
    pub(crate) socket: Option<BorrowedFd<'a>>,
}

impl Call<'_> {
    /// Returns whether the client could still receive the reply, for a method that takes long. Each call is one
    /// poll(2).
    ///
    /// A client has left if its connection is closed on both sides or broken. A Unix client that closes its socket has
    /// left at once. A TCP client that closes its socket cannot be distinguished from one that has shut down its
    /// sending side and waits for the reply, until something is sent to it: see [`Call::is_half_closed`].
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let has_left = |socket| poll::has_ended(socket).unwrap_or(false);
        !self.socket.is_some_and(has_left)
    }

    /// Returns whether the client sends nothing more: it has shut down its sending side, or has left. If the clients of
    /// a daemon never do the former, this is the sign by which a method ends early. Each call is one poll(2).
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        let is_half_closed = |socket| poll::has_stopped_sending(socket).unwrap_or(false);
        self.socket.is_some_and(is_half_closed)
    }
}

/// The reason why there is no result: the error reply `{"code": …, "message": …}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    code: Cow<'static, str>,
    message: String,
}

impl Fault {
    /// Returns a fault with a code of the method's own, for programs, and a sentence for people.
    ///
    /// A code is `[a-z][a-z0-9_]{0,63}`. Codes by which the daemon itself answers, such as `timeout`, would mislead
    /// clients. If a method returns one of them, or an invalid code, its caller gets `internal`, and the log names the
    /// code; only `bad_params` and `internal` are the method's as well.
    ///
    /// ```
    /// let fault = fdpassd::Fault::new("no_such_image", "there is no image of that name");
    /// assert_eq!(fault.to_string(), "no_such_image: there is no image of that name");
    /// ```
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Fault {
        Fault {
            code: code.into(),
            message: message.into(),
        }
    }

    /// Returns the fault for `params` that the method does not accept.
    pub fn bad_params(message: impl Into<String>) -> Fault {
        Fault::from_code(Code::BadParams, message)
    }

    pub(crate) fn from_code(code: Code, message: impl Into<String>) -> Fault {
        Fault::new(code.as_str(), message)
    }

    /// Returns the code, for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Returns why a client is closed whose last reply this is. Any other code is that of a frame within which the
    /// client has left.
    pub(super) fn close_reason(&self) -> CloseReason {
        [
            (Code::Timeout, CloseReason::FrameTimeout),
            (Code::TooLarge, CloseReason::TooLarge),
            (Code::Overloaded, CloseReason::Overloaded),
            (Code::ShuttingDown, CloseReason::Stopping),
        ]
        .into_iter()
        .find(|(code, _)| code.as_str() == self.code)
        .map_or(CloseReason::Left, |(_, reason)| reason)
    }

    /// Returns the sentence, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Fault {}

/// The reply of a raw method, which is written into the buffer that is sent.
#[derive(Debug)]
pub struct Reply<'a> {
    out: Frame<'a>,
    call: Call<'a>,
    name: &'a str,
    has_result: bool,
    /// The result is written whole.
    is_complete: bool,
}

impl<'a> Reply<'a> {
    pub(crate) fn new(buffer: &'a mut [u8], name: &'a str, call: Call<'a>) -> Reply<'a> {
        Reply {
            out: Frame::new(buffer),
            call,
            name,
            has_result: false,
            is_complete: false,
        }
    }

    /// Returns the circumstances of this request.
    #[must_use]
    pub fn call(&self) -> &Call<'a> {
        &self.call
    }

    /// Sets the result to this JSON, byte for byte.
    ///
    /// # Errors
    /// `internal` if the reply would be too long, or has a result already.
    pub fn raw(&mut self, result: &RawValue) -> Result<(), Fault> {
        self.begin()?;
        self.write(&[result.get().as_bytes(), rpc::CLOSE])?;
        self.is_complete = true;
        Ok(())
    }

    /// Sets the result to a value. NaN and infinities become `null`, as JSON has none.
    ///
    /// # Errors
    /// `internal` if the reply would be too long, has a result already, or the value cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(&mut self, result: &T) -> Result<(), Fault> {
        self.begin()?;
        serde_json::to_writer(&mut self.out, result).map_err(|e| match e.is_io() {
            true => self.too_long(),
            false => internal(format!("the result cannot be written as JSON: {e}")),
        })?;
        self.write(&[rpc::CLOSE])?;
        self.is_complete = true;
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Fault> {
        // Every child that a method forks shares the buffer: one that returned would overwrite what its parent sends.
        fork::end_child();
        if self.has_result {
            return Err(internal("the method gave two results"));
        }
        self.has_result = true;
        self.write(&rpc::opening(self.name))
    }

    #[inline]
    fn write(&mut self, parts: &[&[u8]]) -> Result<(), Fault> {
        self.out.write_parts(parts).map_err(|_| self.too_long())
    }

    #[cold]
    fn too_long(&self) -> Fault {
        let most = self.out.buffer.len() - PREFIX;
        internal(format!(
            "the reply is longer than the limit of {most} bytes"
        ))
    }

    /// Completes the frame in the buffer and returns its length. Without a result it is `null`.
    ///
    /// # Errors
    /// `internal` if the reply would be too long, or a result was not written whole.
    pub(crate) fn seal(mut self, order: ByteOrder) -> Result<usize, Fault> {
        if !self.has_result {
            self.begin()?;
            self.write(&[NULL.as_bytes(), rpc::CLOSE])?;
        } else if !self.is_complete {
            return Err(internal(
                "the result could not be written, and the method has not returned that error",
            ));
        }
        Ok(self.out.seal(order))
    }
}

fn internal(message: impl Into<String>) -> Fault {
    Fault::from_code(Code::Internal, message)
}

/// Writes an error reply as a complete frame and returns its length. A message that does not fit is left out.
pub(crate) fn write_fault(buffer: &mut [u8], order: ByteOrder, fault: &Fault) -> usize {
    for message in [fault.message(), ""] {
        let mut frame = Frame::new(buffer);
        if rpc::write_error(&mut frame, fault.code(), message).is_ok() {
            return frame.seal(order);
        }
    }
    // The method's code has more than 4 KiB.
    write_fault(buffer, order, &internal("the error's code is too long"))
}

/// Writes a goaway as a complete frame and returns its length. The buffer has space for any reply.
pub(crate) fn write_goaway_frame(
    buffer: &mut [u8],
    order: ByteOrder,
    read: u64,
    reason: GoawayReason,
) -> usize {
    let mut frame = Frame::new(buffer);
    rpc::write_goaway(&mut frame, read, reason)
        .expect("a reply buffer has space for a short frame");
    frame.seal(order)
}

/// A frame that is written into a buffer, with space for the prefix.
#[derive(Debug)]
struct Frame<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Frame<'a> {
    fn new(buffer: &'a mut [u8]) -> Frame<'a> {
        Frame {
            buffer,
            length: PREFIX,
        }
    }

    fn seal(self, order: ByteOrder) -> usize {
        // A reply buffer is a frame of at most 256 MiB and some KiB.
        let body =
            u32::try_from(self.length - PREFIX).expect("a reply's length fits into its prefix");
        self.buffer[..PREFIX].copy_from_slice(&order.prefix(body));
        self.length
    }

    /// Writes these parts one after the other, or none of them if they do not fit.
    #[inline]
    fn write_parts(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let end = parts.iter().fold(self.length, |end, part| end + part.len());
        let mut rest = self
            .buffer
            .get_mut(self.length..end)
            .ok_or(io::ErrorKind::WriteZero)?;
        for part in parts {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
        self.length = end;
        Ok(())
    }
}

impl Write for Frame<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    // The default one asks whether all was written.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_parts(&[bytes])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn call() -> Call<'static> {
        Call {
            client: ClientId(1),
            peer: Peer::from(SocketAddr::from(([127, 0, 0, 1], 1))),
            via: None,
            attempt: 1,
            deadline: None,
            socket: None,
        }
    }

    #[test]
    fn a_reply_is_a_frame_in_the_byte_order_of_the_client() {
        let mut buffer = [0; 64];
        let mut reply = Reply::new(&mut buffer, "sum_r", call());
        reply.json(&[1, 2]).expect("fits");
        let length = reply.seal(ByteOrder::Big).expect("fits");
        assert_eq!(
            &buffer[..length],
            b"\0\0\0\x1e{\"out\":\"sum_r\",\"result\":[1,2]}"
        );
    }

    #[test]
    fn a_raw_result_is_copied_byte_for_byte_up_to_the_limit() {
        let result: &RawValue = serde_json::from_str("[1e400, {}]").expect("JSON");
        let expected = b"\0\0\0\x22{\"out\":\"a_r\",\"result\":[1e400, {}]}";
        let mut buffer = [0; 64];
        for size in 0..buffer.len() - PREFIX {
            let buffer = &mut buffer[..PREFIX + size];
            let mut reply = Reply::new(buffer, "a_r", call());
            let length = reply.raw(result).and_then(|()| reply.seal(ByteOrder::Big));
            let fits = PREFIX + size >= expected.len();
            assert_eq!(length.is_ok(), fits, "{size}");
            match length {
                Ok(length) => assert_eq!(&buffer[..length], expected, "{size}"),
                Err(fault) => assert!(fault.message().contains("longer than"), "{fault}"),
            }
        }
    }

    #[test]
    fn no_result_is_null_and_two_results_are_a_fault() {
        let mut buffer = [0; 64];
        let length = Reply::new(&mut buffer, "a_r", call())
            .seal(ByteOrder::Little)
            .expect("fits");
        assert_eq!(&buffer[4..length], b"{\"out\":\"a_r\",\"result\":null}");
        let mut reply = Reply::new(&mut buffer, "a_r", call());
        reply.json(&1).expect("fits");
        let fault = reply.json(&2).expect_err("the second");
        assert!(fault.message().contains("two results"));
    }

    #[test]
    fn a_long_result_is_a_fault_and_a_fault_always_fits() {
        let mut buffer = [0; 100];
        let mut reply = Reply::new(&mut buffer, "a_r", call());
        let fault = reply.json(&"x".repeat(100)).expect_err("too long");
        assert_eq!(fault.code(), "internal");
        // The method ignores that.
        let fault = reply.seal(ByteOrder::Little).expect_err("half a result");
        assert!(fault.message().contains("not returned"), "{fault}");
        let long = Fault::new("x".repeat(200), "y");
        let length = write_fault(&mut buffer, ByteOrder::Little, &long);
        let reply = std::str::from_utf8(&buffer[4..length]).expect("text");
        assert!(reply.contains("internal"));
    }
}
