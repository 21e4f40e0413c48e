//! WORDS: what processes and people say to each other. Plain data, no I/O.
//!
//! | vocabulary | who speaks it | form |
//! |---|---|---|
//! | [`rpc`] | client and worker | [`frame`]s of JSON over TCP or a Unix stream |
//! | [`control`] | fdpassctl and master | the same frames, always little-endian |
//! | [`channel`] | master and worker | datagrams over one `SOCK_SEQPACKET` pair, descriptors ride along |
//! | [`exporter`] | the master to the exporter | the same |
//! | [`handoff queue`] | a master or worker that is going, and the next master | datagrams that wait in such a pair |
//!
//! Each vocabulary is one file that both ends import; its module doc is the specification.

pub mod channel;
pub mod control;
pub mod exporter;
pub mod frame;
pub mod handoff;
pub mod lease;
pub mod message;
pub mod names;
pub mod paths;
pub mod rpc;
pub mod text;
