//! The settings of a client.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
#[cfg(feature = "srv")]
use std::net::SocketAddr;
use std::time::Duration;

use super::Error;
use crate::proto::frame::ByteOrder;

/// How many bytes the body of a reply may be longer than that of a request.
const REPLY_ROOM: u32 = 4096;

/// The highest `max-frame` of a daemon, in bytes.
const MAX_FRAME: u32 = 256 << 20;

/// The settings of a [`Client`](super::Client).
///
/// ```
/// use std::time::Duration;
/// use fdpassd::client::{Client, ClientOptions};
///
/// let options = ClientOptions::new()
///     .timeout(Duration::from_secs(5))
///     .idempotent(["price", "stock"]);
/// let client = Client::with_options(["192.0.2.31:8080", "rpc.example:8080"], options)?;
/// # Ok::<(), fdpassd::client::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ClientOptions {
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    /// `None`: only the daemon knows.
    pub(super) idempotent: Option<BTreeSet<String>>,
    pub(super) retries: u32,
    /// The bounds of the first wait and of the longest.
    pub(super) backoff: (Duration, Duration),
    pub(super) silence: Duration,
    pub(super) shuffles: bool,
    pub(super) fails_fast: bool,
    pub(super) byte_order: ByteOrder,
    /// The longest body of a request, and of a reply, in bytes.
    pub(super) max_request: u32,
    pub(super) max_reply: u32,
    /// `None`: those of resolv.conf(5).
    #[cfg(feature = "srv")]
    pub(super) nameservers: Option<Vec<SocketAddr>>,
    /// Returns a random time up to this bound.
    pub(super) jitter: fn(Duration) -> Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            idempotent: None,
            retries: 2,
            backoff: (Duration::from_millis(50), Duration::from_secs(2)),
            silence: Duration::from_secs(10),
            shuffles: true,
            fails_fast: false,
            byte_order: ByteOrder::Little,
            max_request: 1 << 20,
            max_reply: (1 << 20) + REPLY_ROOM,
            #[cfg(feature = "srv")]
            nameservers: None,
            jitter: up_to,
        }
    }
}

impl ClientOptions {
    /// Returns the defaults.
    pub fn new() -> ClientOptions {
        ClientOptions::default()
    }

    /// Sets the time for a call, all its attempts included: 60 s. If it is longer than the daemon's `request-timeout`,
    /// the daemon's own reply comes first.
    pub fn timeout(self, timeout: Duration) -> ClientOptions {
        ClientOptions { timeout, ..self }
    }

    /// Sets the time for each attempt to connect, and for each lookup of a name or of its SRV records: 5 s.
    pub fn connect_timeout(self, connect_timeout: Duration) -> ClientOptions {
        ClientOptions {
            connect_timeout,
            ..self
        }
    }

    /// Sets the methods that may run more than once; all others may not. By default the daemon is asked, by `methods`,
    /// before a request is sent once more.
    pub fn idempotent<M: Into<String>>(
        self,
        methods: impl IntoIterator<Item = M>,
    ) -> ClientOptions {
        let idempotent = Some(methods.into_iter().map(Into::into).collect());
        ClientOptions { idempotent, ..self }
    }

    /// Sets how often a request is sent once more although it may have run: 2 times.
    pub fn retries(self, retries: u32) -> ClientOptions {
        ClientOptions { retries, ..self }
    }

    /// Sets the bounds of the first wait before another connection, and of the longest one: 50 ms and 2 s. The bound
    /// doubles with each wait; the time is random, from 0 to the bound.
    pub fn backoff(self, first: Duration, longest: Duration) -> ClientOptions {
        ClientOptions {
            backoff: (first, longest),
            ..self
        }
    }

    /// Sets the time without an acknowledgement after which the host of a TCP connection counts as gone: 10 s.
    pub fn silence(self, silence: Duration) -> ClientOptions {
        ClientOptions { silence, ..self }
    }

    /// Sets whether the order of the addresses is random, so that many clients spread over them: yes.
    pub fn shuffle(self, shuffles: bool) -> ClientOptions {
        ClientOptions { shuffles, ..self }
    }

    /// Has a request fail as soon as each address was tried once, or a connection has ended before the reply, instead
    /// of trying again until the timeout.
    pub fn fail_fast(self) -> ClientOptions {
        ClientOptions {
            fails_fast: true,
            ..self
        }
    }

    /// Sets the daemon's `max-frame`, from 1 byte to 256 MiB, which is 1 MiB by default: the longest request in bytes.
    /// A reply may have 4 KiB more.
    pub fn max_frame(self, bytes: u32) -> ClientOptions {
        ClientOptions {
            max_request: bytes,
            max_reply: bytes.saturating_add(REPLY_ROOM),
            ..self
        }
    }

    /// Sets the `byte-order` of the listener. Little-endian, the default, also fits `auto`.
    pub fn byte_order(self, byte_order: ByteOrder) -> ClientOptions {
        ClientOptions { byte_order, ..self }
    }

    /// Sets the nameservers that are asked for SRV records and for the addresses of their targets, in this order, instead
    /// of those of `/etc/resolv.conf`. The port is 53 as a rule.
    ///
    /// ```
    /// use fdpassd::client::{Client, ClientOptions};
    ///
    /// let options = ClientOptions::new().nameservers([([192, 0, 2, 53], 53)]);
    /// let client = Client::with_options(["srv:_fdpassd._tcp.example.net"], options)?;
    /// # Ok::<(), fdpassd::client::Error>(())
    /// ```
    #[cfg(feature = "srv")]
    pub fn nameservers<N: Into<SocketAddr>>(
        self,
        nameservers: impl IntoIterator<Item = N>,
    ) -> ClientOptions {
        ClientOptions {
            nameservers: Some(nameservers.into_iter().map(Into::into).collect()),
            ..self
        }
    }

    /// Sets the longest requests and replies beyond what a daemon accepts, in bytes.
    pub(crate) fn limits(self, max_request: u32, max_reply: u32) -> ClientOptions {
        ClientOptions {
            max_request,
            max_reply,
            ..self
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let times = [
            ("timeout", self.timeout),
            ("connect_timeout", self.connect_timeout),
            ("silence", self.silence),
        ];
        if let Some((name, _)) = times.iter().find(|(_, time)| time.is_zero()) {
            return Err(Error::Usage(format!("{name} is a time above 0")));
        }
        let is_beyond = self.max_reply > MAX_FRAME + REPLY_ROOM && self.max_request != u32::MAX;
        if self.max_request == 0 || is_beyond {
            return Err(Error::Usage("max_frame is from 1 to 256 MiB".to_owned()));
        }
        Ok(())
    }

    /// Returns whether a method may run more than once; `None` if only the daemon knows.
    pub(super) fn is_idempotent(&self, method: &str) -> Option<bool> {
        // Every daemon has these.
        if method == "ping" || method == "methods" {
            return Some(true);
        }
        self.idempotent
            .as_ref()
            .map(|methods| methods.contains(method))
    }
}

/// Returns a random time up to this one.
fn up_to(bound: Duration) -> Duration {
    bound.mul_f64(f64::from(random()) / f64::from(u32::MAX))
}

/// Returns a random number. The keys of std's hash tables are random, and each is used once here.
pub(super) fn random() -> u32 {
    (RandomState::new().hash_one(0) >> 32) as u32
}
