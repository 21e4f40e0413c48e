//! A client of fdpassd that blocks, for one daemon or for several that have the same methods.
//!
//! ```no_run
//! use fdpassd::client::Client;
//!
//! let client = Client::new(["192.0.2.31:8080", "192.0.2.32:8080"])?;
//! let pi: f64 = client.call("pi", 1000)?;
//! println!("{pi}");
//! # Ok::<(), fdpassd::client::Error>(())
//! ```
//!
//! **One connection.** A client has one connection at a time, to one of its addresses in random order, and opens it
//! with the first call. When a connection is refused or ends, it tries the next address; after each round, and after
//! each connection that has ended, it waits for a random time up to a bound that doubles (full jitter).
//!
//! **SRV records.** With the Cargo feature `srv`, an address may be `srv:_SERVICE._PROTOCOL.NAME`, such as
//! `srv:_fdpassd._tcp.example.net`: a name whose SRV records have the hosts and ports of the daemons (RFC 2782). The name
//! is a complete one; the search list of the system is not used. The client connects to a target of the lowest priority
//! that accepts. Among targets of the same priority it chooses at random, by their weights. A target whose connection
//! was refused or has ended is tried again after all others. The records are used until their time to live is over, and
//! a connection until it ends; [`Client::address`] and the errors name the target. When all targets have failed, the
//! client asks for the records again; while no nameserver answers, it uses the records that it has, if they still hold.
//! The nameservers are those of `/etc/resolv.conf`, or of the option `ClientOptions::nameservers`. The addresses of a
//! target are those that the nameserver has added to its answer. If there are none, the client asks the nameservers of
//! the option, or without that option the resolver of the system.
//! [`ResolveError`] is the reason why the targets are not known. Nothing checks signatures (DNSSEC): a client trusts its
//! nameservers and the network to them.
//!
//! **Threads.** Threads may share a client. Their requests are sent at once, up to 64 before the reply to the first of
//! them, and the daemon executes them one after the other, in the order in which it receives them. So a slow method
//! delays the calls of other threads; a client for each thread performs them at the same time. A client has no thread
//! of its own: the threads that wait for replies do its work.
//!
//! **Repeats.** A request whose connection ends before the reply may have run or not. The client sends it once more
//! only
//!
//! * if it surely was not executed: no connection accepted it, or not all of it was sent, or the reply was `overloaded`
//!   or `shutting_down`, or the daemon has ended the connection politely and its last frame, the goaway, excludes the
//!   request. The client asks for that frame in a first request of each connection. This is repeated until the timeout;
//! * if its method is idempotent, at most [`retries`](ClientOptions::retries) times. The first run may still be under
//!   way then. The client asks the daemon by `methods` which methods are idempotent, unless
//!   [`ClientOptions::idempotent`] or [`ClientRequest::idempotent`] states it.
//!
//! Otherwise the call fails with [`Error::UnknownOutcome`]. [`Error::may_have_run`] is `false` only if the method
//! surely was not executed:
//!
//! ```no_run
//! use fdpassd::client::{Client, Error};
//!
//! let client = Client::new(["192.0.2.31:8080", "unix:/run/counterd/rpc.sock"])?;
//! match client.call::<u64>("add", 5) {
//!     Ok(total) => println!("{total}"),
//!     Err(error) if !error.may_have_run() => println!("nothing was added: {error}"),
//!     Err(Error::UnknownOutcome { address, .. }) => println!("ask {address} whether it was added"),
//!     Err(error) => println!("{error}"),
//! }
//! # Ok::<(), fdpassd::client::Error>(())
//! ```
//!
//! **Time.** The [timeout](ClientOptions::timeout) is for a call with all its attempts and waits, whatever the server
//! or the resolver do. When it is over, the call ends without its reply. The client then sends nothing more on that
//! connection until the reply has arrived, and closes the connection once no thread waits for another reply on it. The
//! client notices a host that has disappeared from the network after [`silence`](ClientOptions::silence), also while a
//! method takes long.
//!
//! The protocol is fdpassd-rpc(7).

mod address;
mod connect;
mod connection;
mod error;
mod options;
mod plan;
mod queue;
mod request;
mod resolve_error;
mod shared;
#[cfg(feature = "srv")]
mod srv;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use self::address::Destination;
pub(crate) use self::address::srv_name;
pub(crate) use self::connect::explain_unix;
pub use self::error::{ConnectionError, Error};
pub use self::options::ClientOptions;
pub use self::request::ClientRequest;
pub use self::resolve_error::ResolveError;
use self::shared::Hub;
use crate::proto::names::Address;

/// Checks whether a text is an address of a daemon or of several.
pub(crate) fn check_address(text: &str) -> Result<(), String> {
    Destination::parse(text).map(drop)
}

/// A client; see the [module](self).
///
/// A clone shares the connection. The connection is closed when the last of them is dropped.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::TcpListener;
/// use std::thread;
///
/// use fdpassd::client::Client;
///
/// // This server stands in for a daemon, and answers one request.
/// let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
/// let address = listener.local_addr().expect("it is bound").to_string();
/// let server = thread::spawn(move || {
///     let (mut stream, _) = listener.accept().expect("a client");
///     let mut length = [0; 4];
///     stream.read_exact(&mut length).expect("a length");
///     let mut request = vec![0; u32::from_le_bytes(length) as usize];
///     stream.read_exact(&mut request).expect("a request");
///     assert!(request.starts_with(b"{\"in\":\"ping\",\"params\":[1]"));
///     stream.write_all(b"\x1b\0\0\0{\"out\":\"pong\",\"result\":[1]}").expect("it is read");
/// });
///
/// let client = Client::new([address]).expect("the address is valid");
/// let result: Vec<u8> = client.call("ping", [1]).expect("a reply");
/// assert_eq!(result, [1]);
/// server.join().expect("no panic");
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    hub: Arc<Hub>,
    timeout: Duration,
}

impl Client {
    /// Returns a client with the default options. An address is `HOST:PORT`, `[IPV6]:PORT` or `unix:/PATH`, and with the
    /// Cargo feature `srv` also `srv:_SERVICE._PROTOCOL.NAME`. No connection is made before the first call.
    ///
    /// # Errors
    /// [`Error::Usage`]: an address is not valid, or there is none.
    pub fn new<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> Result<Client, Error> {
        Client::with_options(addresses, ClientOptions::new())
    }

    /// Returns a client with these options.
    ///
    /// # Errors
    /// [`Error::Usage`]: an address or an option is not valid, or there is no address.
    pub fn with_options<A: AsRef<str>>(
        addresses: impl IntoIterator<Item = A>,
        options: ClientOptions,
    ) -> Result<Client, Error> {
        let destinations: Result<Vec<_>, String> = addresses
            .into_iter()
            .map(|address| Destination::parse(address.as_ref()))
            .collect();
        Client::from_destinations(destinations.map_err(Error::Usage)?, options)
    }

    /// Returns a client of one listener.
    pub(crate) fn of_listener(address: Address, options: ClientOptions) -> Result<Client, Error> {
        Client::from_destinations(vec![Destination::Socket(address)], options)
    }

    fn from_destinations(
        destinations: Vec<Destination>,
        options: ClientOptions,
    ) -> Result<Client, Error> {
        let timeout = options.timeout;
        let hub = Arc::new(Hub::new(destinations, options)?);
        Ok(Client { hub, timeout })
    }

    /// Returns a client that shares the connection of this one, with another timeout for its calls.
    ///
    /// ```no_run
    /// # let client = fdpassd::client::Client::new(["127.0.0.1:8080"])?;
    /// let hasty = client.with_timeout(std::time::Duration::from_millis(100));
    /// hasty.call::<()>("ping", ())?;
    /// # Ok::<(), fdpassd::client::Error>(())
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client {
            hub: Arc::clone(&self.hub),
            timeout,
        }
    }

    /// Sends a request, and returns the result. Params are any type that implements `Serialize`, results any that
    /// implements `Deserialize`; [`RawValue`] has the result byte for byte.
    ///
    /// # Errors
    /// The reason why there is no result, and whether the method may have run.
    pub fn call<R: DeserializeOwned>(
        &self,
        method: &str,
        params: impl Serialize,
    ) -> Result<R, Error> {
        self.send(ClientRequest::new(method, params))
    }

    /// Sends a request, and returns the result, as [`Client::call`].
    ///
    /// ```no_run
    /// # let client = fdpassd::client::Client::new(["127.0.0.1:8080"])?;
    /// use fdpassd::client::ClientRequest;
    ///
    /// let price: f64 = client.send(ClientRequest::new("price", "tea").idempotent(true))?;
    /// # Ok::<(), fdpassd::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// The reason why there is no result, and whether the method may have run.
    pub fn send<R: DeserializeOwned>(&self, request: ClientRequest) -> Result<R, Error> {
        let result = self.send_raw(request)?;
        serde_json::from_str(result.get()).map_err(Error::Result)
    }

    /// Sends requests without waiting for the replies in between, and returns the outcomes in the same order. The
    /// timeout is for all of them together.
    ///
    /// On one connection the daemon executes them one after the other, also after an error. They should not depend on
    /// each other: if the connection ends, those that are sent once more run later, perhaps on another host.
    ///
    /// ```no_run
    /// # let client = fdpassd::client::Client::new(["127.0.0.1:8080"])?;
    /// use fdpassd::client::ClientRequest;
    ///
    /// let requests = (1..=100).map(|terms| ClientRequest::new("pi", terms));
    /// for outcome in client.call_all(requests) {
    ///     println!("{}", outcome?);
    /// }
    /// # Ok::<(), fdpassd::client::Error>(())
    /// ```
    #[must_use = "each outcome may be an error"]
    pub fn call_all(
        &self,
        requests: impl IntoIterator<Item = ClientRequest>,
    ) -> Vec<Result<Box<RawValue>, Error>> {
        let requests = requests.into_iter().collect();
        self.hub.perform(requests, self.timeout)
    }

    /// Returns the address to which the client is connected, as far as it knows.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        self.hub.address()
    }

    /// Sends a request, and returns the result byte for byte.
    pub(crate) fn send_raw(&self, request: ClientRequest) -> Result<Box<RawValue>, Error> {
        let outcome = self.hub.perform(vec![request], self.timeout).pop();
        // There is one outcome for each request.
        outcome.unwrap_or_else(|| Err(Error::Usage("there is no request".to_owned())))
    }
}
