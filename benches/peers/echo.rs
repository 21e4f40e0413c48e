//! The raw echo: what the kernel costs. Bytes back as they come, no frames, no JSON; one process with
//! one level-triggered epoll, or several, each with a listener of its own on the same port.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrIn, sockopt};

use crate::failure::{Context, Result};
use crate::launch;

/// The listener's token; a client's is its descriptor.
const LISTENER: u64 = u64::MAX;

/// Serves for ever, in so many processes.
pub(crate) fn serve(port: u16, processes: usize) -> Result<()> {
    let listener = listen(port, processes > 1).context(format!("cannot listen on port {port}"))?;
    for _ in 1..processes {
        // Ends with this process, which never waits for it.
        launch::itself(&["echo", "--port", &port.to_string(), "--one-of-several"])?.spawn().context("cannot spawn")?;
    }
    run(&listener)
}

/// Serves for ever as one process beside others on the same port.
pub(crate) fn serve_beside_others(port: u16) -> Result<()> {
    run(&listen(port, true).context(format!("cannot listen on port {port}"))?)
}

fn listen(port: u16, share: bool) -> nix::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&fd, sockopt::ReusePort, &share)?;
    socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(TcpListener::from(fd))
}

fn run(listener: &TcpListener) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).context("cannot watch the listener")?;
    let mut clients: Vec<Option<TcpStream>> = Vec::new();
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = vec![0; 128 << 10];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("cannot wait")?,
        };
        for event in &events[..ready] {
            let token = event.data();
            if token == LISTENER {
                accept(listener, &epoll, &mut clients)?;
                continue;
            }
            let place = &mut clients[token as usize];
            if place.as_ref().is_some_and(|client| !echo(client, &mut buffer)) {
                *place = None;
            }
        }
    }
}

fn accept(listener: &TcpListener, epoll: &Epoll, clients: &mut Vec<Option<TcpStream>>) -> Result<()> {
    while let Ok((client, _)) = listener.accept() {
        let place = client.as_raw_fd().cast_unsigned() as usize;
        epoll.add(&client, EpollEvent::new(EpollFlags::EPOLLIN, place as u64)).context("cannot watch a client")?;
        if place >= clients.len() {
            clients.resize_with(place + 1, || None);
        }
        clients[place] = Some(client);
    }
    Ok(())
}

/// Sends back what one read gives; false when the client is over.
fn echo(client: &TcpStream, buffer: &mut [u8]) -> bool {
    // The sockets are blocking, the calls are not: that saves a call for each connection.
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let mut rest = match socket::recv(client.as_raw_fd(), buffer, flags) {
        Ok(0) => return false,
        Ok(n) => &buffer[..n],
        Err(errno) => return errno == Errno::EAGAIN,
    };
    while !rest.is_empty() {
        match socket::send(client.as_raw_fd(), rest, flags) {
            Ok(n) => rest = &rest[n..],
            Err(Errno::EAGAIN) => {
                let mut room = [PollFd::new(client.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut room, PollTimeout::from(1000u16)).is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}
