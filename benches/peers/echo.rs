//! The simplest servers, which show the cost of the kernel and of the protocol.
//!
//! The raw echo sends bytes back as they come: no frames, no JSON. With frames, the same loop answers
//! each `ping` with its `pong`. One process with one level-triggered epoll, or several, each with a
//! listener of its own on the same port.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrIn, sockopt,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::common::failure::{Context, Result};
use crate::common::launch;

/// The listener's token; a client's is its descriptor.
const LISTENER: u64 = u64::MAX;

/// Options of the echo server.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    port: u16,
    /// Answer frames of JSON instead of echoing bytes.
    #[arg(long)]
    frames: bool,
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// Share the port, as those with several processes do.
    #[arg(long)]
    share: bool,
}

struct Client {
    stream: TcpStream,
    /// The beginning of a frame that is not complete.
    rest: Vec<u8>,
}

/// Serves for ever.
pub(crate) fn serve(options: Options) -> Result<()> {
    let Options {
        port,
        frames,
        processes,
        share,
    } = options;
    let listener =
        listen(port, share || processes > 1).context(format!("cannot listen on port {port}"))?;
    for _ in 1..processes {
        let port = port.to_string();
        let mut words = vec!["echo", "--share", "--port", &port];
        words.extend(frames.then_some("--frames"));
        // Ends with this process, which never waits for it.
        launch::itself(&words)?.spawn().context("cannot spawn")?;
    }
    run(&listener, frames)
}

fn listen(port: u16, share: bool) -> nix::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&fd, sockopt::ReusePort, &share)?;
    socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    socket::bind(
        fd.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)),
    )?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(TcpListener::from(fd))
}

fn run(listener: &TcpListener, frames: bool) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
    epoll
        .add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
        .context("cannot watch the listener")?;
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = vec![0; 128 << 10];
    let mut replies = Vec::new();
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("cannot wait")?,
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                accept(listener, &epoll, &mut clients)?;
                continue;
            }
            let place = &mut clients[event.data() as usize];
            let Some(client) = place else { continue };
            let goes_on = match receive(&client.stream, &mut buffer) {
                Ok(bytes) if frames => {
                    replies.clear();
                    client.answer(bytes, &mut replies).is_some()
                        && send(&client.stream, &replies).is_ok()
                }
                Ok(bytes) => send(&client.stream, bytes).is_ok(),
                Err(errno) => errno == Errno::EAGAIN,
            };
            if !goes_on {
                *place = None;
            }
        }
    }
}

fn accept(listener: &TcpListener, epoll: &Epoll, clients: &mut Vec<Option<Client>>) -> Result<()> {
    while let Ok((stream, _)) = listener.accept() {
        let place = stream.as_raw_fd().cast_unsigned() as usize;
        epoll
            .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))
            .context("cannot watch a client")?;
        if place >= clients.len() {
            clients.resize_with(place + 1, || None);
        }
        clients[place] = Some(Client {
            stream,
            rest: Vec::new(),
        });
    }
    Ok(())
}

/// The sockets are blocking, the calls are not: that saves a call for each connection.
fn flags() -> MsgFlags {
    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL
}

/// Reads once; the end of the stream is an error as well.
fn receive<'a>(stream: &TcpStream, buffer: &'a mut [u8]) -> nix::Result<&'a [u8]> {
    match socket::recv(stream.as_raw_fd(), buffer, flags())? {
        0 => Err(Errno::ENOTCONN),
        n => Ok(&buffer[..n]),
    }
}

fn send(stream: &TcpStream, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match socket::send(stream.as_raw_fd(), bytes, flags()) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EAGAIN) => {
                poll(
                    &mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)],
                    PollTimeout::from(1000u16),
                )?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(rename = "in")]
    method: &'a str,
    #[serde(borrow)]
    params: &'a RawValue,
}

impl Client {
    /// Answers every frame that `bytes` completes, and keeps the rest; `None` at anything unexpected.
    fn answer(&mut self, bytes: &[u8], replies: &mut Vec<u8>) -> Option<()> {
        if self.rest.is_empty() {
            let used = answer_frames(bytes, replies)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            self.rest.extend_from_slice(bytes);
            let used = answer_frames(&self.rest, replies)?;
            self.rest.drain(..used);
        }
        Some(())
    }
}

/// The number of bytes that were complete frames.
fn answer_frames(bytes: &[u8], replies: &mut Vec<u8>) -> Option<usize> {
    const HEAD: &[u8] = br#"{"out":"pong","result":"#;
    let mut used = 0;
    while let Some((prefix, rest)) = bytes[used..].split_first_chunk() {
        let Some(body) = rest.get(..u32::from_le_bytes(*prefix) as usize) else {
            break;
        };
        let request: Request = serde_json::from_slice(body)
            .ok()
            .filter(|request: &Request| request.method == "ping")?;
        let params = request.params.get().as_bytes();
        let length = u32::try_from(HEAD.len() + params.len() + 1).ok()?;
        replies.extend_from_slice(&length.to_le_bytes());
        replies.extend_from_slice(HEAD);
        replies.extend_from_slice(params);
        replies.push(b'}');
        used += prefix.len() + body.len();
    }
    Some(used)
}
