//! The least that a process between a client and an app costs: bytes are passed on and back, and no more.
//!
//! A worker of fdpassd that has an app wakes it and is woken by it for each lone request. This server does the same
//! with bytes that it does not look at, so the difference to it is what fdpassd and its package for the language add,
//! and what it costs itself no server with two processes can avoid on this machine.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd;

use crate::common::failure::{Context, Result};
use crate::common::launch;

/// The tokens of the listener and of the app; that of a client is its index.
const LISTENER: u64 = u64::MAX;
const APP: u64 = u64::MAX - 1;

/// The bytes that are passed on at a time.
const PART: usize = 64 << 10;

/// Where to serve, and what echoes the bytes.
#[derive(clap::Args)]
pub(crate) struct Options {
    port: u16,

    /// A program that sends back the bytes that it receives on standard input, which is a socket; without one, a process
    /// of this program
    #[arg(last = true)]
    words: Vec<OsString>,
}

struct Relay {
    epoll: Epoll,
    app: UnixStream,
    clients: Vec<Option<TcpStream>>,
    /// The clients whose bytes are with the app, and the number of their bytes, in order.
    away: VecDeque<(usize, usize)>,
}

/// Serves for ever.
pub(crate) fn serve(options: &Options) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port));
    let listener = listener.context(format!("cannot listen on port {}", options.port))?;
    listener.set_nonblocking(true).context("the listener")?;
    let (app, other) = UnixStream::pair().context("a pair of sockets")?;
    let mut command = match options.words.split_first() {
        Some((program, arguments)) => launch::program(program, arguments)?,
        None => launch::itself(&["reflect"])?,
    };
    // It ends with this process, which never waits for it.
    command.stdin(OwnedFd::from(other));
    command.spawn().context("cannot start what echoes")?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("an epoll")?;
    watch(&epoll, &listener, LISTENER)?;
    watch(&epoll, &app, APP)?;
    let relay = Relay {
        epoll,
        app,
        clients: Vec::new(),
        away: VecDeque::new(),
    };
    relay.run(&listener)
}

/// Sends back the bytes that arrive on standard input, a socket.
pub(crate) fn reflect() -> Result<()> {
    let socket = std::io::stdin();
    let mut bytes = vec![0; PART];
    loop {
        match unistd::read(&socket, &mut bytes) {
            Ok(0) => return Ok(()),
            Ok(n) => write_all(socket.as_fd(), &bytes[..n])?,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("standard input"),
        }
    }
}

impl Relay {
    fn run(mut self, listener: &TcpListener) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let mut bytes = vec![0; PART];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.context("cannot wait")?,
            };
            for event in &events[..ready] {
                match event.data() {
                    LISTENER => self.accept(listener)?,
                    APP => self.pass_back(&mut bytes)?,
                    client => self.pass_on(client as usize, &mut bytes)?,
                }
            }
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        while let Ok((client, _)) = listener.accept() {
            client.set_nodelay(true).context("a client")?;
            watch(&self.epoll, &client, self.clients.len() as u64)?;
            self.clients.push(Some(client));
        }
        Ok(())
    }

    fn pass_on(&mut self, index: usize, bytes: &mut [u8]) -> Result<()> {
        let Some(client) = &self.clients[index] else {
            return Ok(());
        };
        match unistd::read(client, bytes) {
            Ok(0) | Err(_) => {
                // The bytes that come back for it are dropped.
                self.clients[index] = None;
                Ok(())
            }
            Ok(n) => {
                self.away.push_back((index, n));
                write_all(self.app.as_fd(), &bytes[..n])
            }
        }
    }

    fn pass_back(&mut self, bytes: &mut [u8]) -> Result<()> {
        let received = unistd::read(&self.app, bytes).context("the program that echoes")?;
        let mut rest = &bytes[..received];
        if rest.is_empty() {
            return Err("the program that echoes has ended".into());
        }
        while !rest.is_empty() {
            let (index, length) = self.away.front_mut().context("more bytes than were sent")?;
            let (part, others) = rest.split_at(rest.len().min(*length));
            if let Some(client) = &self.clients[*index] {
                // A client that has left is found by the next read.
                let _ = write_all(client.as_fd(), part);
            }
            *length -= part.len();
            if *length == 0 {
                self.away.pop_front();
            }
            rest = others;
        }
        Ok(())
    }
}

fn watch(epoll: &Epoll, file: &impl AsFd, token: u64) -> Result<()> {
    epoll
        .add(file, EpollEvent::new(EpollFlags::EPOLLIN, token))
        .context("cannot watch a socket")
}

fn write_all(file: std::os::fd::BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match unistd::write(file, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EAGAIN) => {
                let mut socket = [PollFd::new(file, PollFlags::POLLOUT)];
                poll(&mut socket, PollTimeout::from(1000u16)).context("cannot wait")?;
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot write"),
        }
    }
    Ok(())
}
