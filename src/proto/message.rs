//! Messages between the daemon's own processes: one datagram each, of which the first byte is the kind.

use serde::{Deserialize, Serialize};

/// The reason why a datagram is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed message: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A message of one direction of a channel.
pub trait Message: Sized {
    /// Replaces the contents of `out` by the datagram.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads a datagram, which is untrusted: no content causes a panic.
    ///
    /// # Errors
    /// [`Malformed`] for all bytes that [`Message::encode`] does not write.
    fn decode(datagram: &[u8]) -> Result<Self, Malformed>;

    /// Returns how many descriptors the message carries.
    fn descriptors(&self) -> usize;
}

pub(super) fn json(kind: u8, body: &impl Serialize, out: &mut Vec<u8>) {
    out.push(kind);
    // Writing to a Vec does not fail, and these types have no paths and no maps with keys other than strings. The other
    // end would reject what could not be written.
    let _ = serde_json::to_writer(out, body);
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(body).map_err(|_| Malformed("not the JSON expected"))
}

/// The rest of a record whose numbers are little-endian.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.bytes().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fmt::Debug;

    use super::Message;

    /// Checks that a message is decoded as it was encoded, and that no part of its datagram and no longer one is
    /// decoded as the same. Returns the length of the datagram.
    #[track_caller]
    pub(in crate::proto) fn assert_round_trip<M: Message + PartialEq + Debug>(
        message: &M,
    ) -> usize {
        // Its earlier contents are replaced.
        let mut datagram = vec![9; 3];
        message.encode(&mut datagram);
        assert_eq!(M::decode(&datagram).as_ref(), Ok(message));
        for cut in 0..datagram.len() {
            let decoded = M::decode(&datagram[..cut]);
            assert_ne!(decoded.as_ref(), Ok(message), "cut at {cut}");
        }
        let longer = [&datagram[..], b"x"].concat();
        assert!(M::decode(&longer).is_err(), "one byte more");
        datagram.len()
    }
}
