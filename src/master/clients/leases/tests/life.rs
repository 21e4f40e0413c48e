//! A client of the test.

use super::*;
use crate::master::clients::rare::RareFields;

/// The history of a client, as the test records it.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) peer: File,
    /// The streams of its requests and of its replies.
    pub(super) input: u64,
    pub(super) output: u64,
    /// Bytes that it has sent, bytes of them that were read, and bytes that were answered.
    pub(super) sent: u64,
    pub(super) read: u64,
    pub(super) answered: u64,
    /// Bytes of replies that were made, that were written, and that the client has read.
    pub(super) replied: u64,
    pub(super) written: u64,
    pub(super) received: u64,
    pub(super) faults: u8,
    pub(super) requests: u64,
}

impl Life {
    pub(super) fn begin(id: ClientId, is_unix: bool) -> (Client, Life) {
        let (peer, socket, name): (OwnedFd, OwnedFd, _) = if is_unix {
            let (peer, socket) = UnixStream::pair().expect("socketpair");
            byte_counts::arm(&socket).expect("armed");
            peer.set_nonblocking(true)
                .and_then(|()| socket.set_nonblocking(true))
                .expect("set");
            (peer.into(), socket.into(), Peer::UNIX)
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            let address = listener.local_addr().expect("address");
            let peer = TcpStream::connect(address).expect("connect");
            let socket = listener.accept().expect("accept").0;
            peer.set_nonblocking(true)
                .and_then(|()| socket.set_nonblocking(true))
                .expect("set");
            // Otherwise small replies would be held back until the previous one is acknowledged.
            socket.set_nodelay(true).expect("set");
            (peer.into(), socket.into(), Peer::from(address))
        };
        let (peer, input, output) = (peer.into(), id.0 * 2, id.0 * 2 + 1);
        // For every third client the kernel has not counted all bytes.
        let offsets = if id.0 % 3 == 1 {
            Offsets {
                received: (1 << 33) + 5,
                sent: 1 << 40,
            }
        } else {
            Offsets::default()
        };
        let [sent, read, answered] = [offsets.received; 3];
        let ([replied, written, received], requests) = ([offsets.sent; 3], 0);
        let life = Life {
            peer,
            input,
            output,
            sent,
            read,
            answered,
            replied,
            written,
            received,
            faults: 0,
            requests,
        };
        let client = Client::with_socket(id.0, socket, name);
        let rare = RareFields::new(offsets, None);
        (Client { rare, ..client }, life)
    }

    pub(super) fn send(&mut self, count: u64) {
        self.sent += moved(
            self.peer
                .write(&bytes_of(self.input, self.sent..self.sent + count)),
        );
    }

    pub(super) fn receive(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = moved(self.peer.read(&mut buffer));
            if count == 0 {
                return;
            }
            assert!(
                buffer[..count as usize]
                    == bytes_of(self.output, self.received..self.received + count)
            );
            self.received += count;
        }
    }

    /// Checks that a client without a worker is known to the byte.
    pub(super) fn check(
        &self,
        Unleased {
            client,
            bytes,
            flags,
            requests,
            ..
        }: &Unleased,
    ) {
        assert_eq!(
            (bytes.in_base, bytes.out_base),
            (self.answered, self.written),
            "{}",
            client.id
        );
        assert!(
            all(&bytes.unread) == bytes_of(self.input, self.answered..self.read),
            "unread bytes of {}",
            client.id
        );
        assert!(
            all(&bytes.unsent) == bytes_of(self.output, self.written..self.replied),
            "unsent bytes of {}",
            client.id
        );
        assert_eq!(
            (*requests, flags.crash_count),
            (self.requests, self.faults),
            "{}",
            client.id
        );
    }
}
