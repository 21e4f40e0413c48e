//! The nameservers that are asked: those of the options, or those of resolv.conf(5).

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use resolv_conf::{Config, ScopedIp};

use super::super::ResolveError;
use super::super::options::ClientOptions;
use crate::sys::zone;

/// The file of the system.
const PATH: &str = "/etc/resolv.conf";

/// The port of nameservers.
const PORT: u16 = 53;

/// The bounds of the options in the file, and how many nameservers are used, as the C library has them.
const MAX_TIMEOUT: u32 = 30;
const MAX_ATTEMPTS: u32 = 5;
const MAX_NAMESERVERS: usize = 3;

/// Nameservers, and how often and how long each is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nameservers {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) attempts: u32,
    pub(super) timeout: Duration,
}

impl Nameservers {
    /// Returns those of the options, else of the system as it is now.
    pub(super) fn of(options: &ClientOptions) -> Result<Nameservers, ResolveError> {
        let Some(addresses) = &options.nameservers else {
            return Nameservers::of_file(Path::new(PATH));
        };
        if addresses.is_empty() {
            let why = "the option has none".to_owned();
            return Err(ResolveError::NoNameserver(why));
        }
        let defaults = Config::new();
        Ok(Nameservers {
            addresses: addresses.clone(),
            attempts: defaults.attempts,
            timeout: Duration::from_secs(defaults.timeout.into()),
        })
    }

    /// Reads a file. Lines that are not valid are ignored, as the C library ignores them.
    fn of_file(path: &Path) -> Result<Nameservers, ResolveError> {
        let none = |why: &str| ResolveError::NoNameserver(format!("{}: {why}", path.display()));
        let text = fs::read(path).map_err(|error| none(&error.to_string()))?;
        let (config, _) = Config::parse_with_errors(&text);
        let listed = config.nameservers.iter().filter_map(address);
        let addresses: Vec<SocketAddr> = listed.take(MAX_NAMESERVERS).collect();
        if addresses.is_empty() {
            return Err(none("it has no line \"nameserver ADDRESS\""));
        }
        Ok(Nameservers {
            addresses,
            attempts: config.attempts.clamp(1, MAX_ATTEMPTS),
            timeout: Duration::from_secs(config.timeout.clamp(1, MAX_TIMEOUT).into()),
        })
    }
}

/// Returns the address of a nameserver; `None` if there is no such network interface.
fn address(listed: &ScopedIp) -> Option<SocketAddr> {
    match listed {
        ScopedIp::V4(ip) => Some(SocketAddrV4::new(*ip, PORT).into()),
        ScopedIp::V6(ip, None) => Some(SocketAddr::from((*ip, PORT))),
        ScopedIp::V6(ip, Some(name)) => {
            let text = format!("[{ip}%{name}]:{PORT}");
            zone::numbered(&text).ok()?.parse().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn the_nameservers_are_those_of_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        let of = |text: &[u8]| {
            fs::write(&path, text).expect("it is our directory");
            Nameservers::of_file(&path)
        };
        let text = b"# \xff\nsearch example.net\nnameserver 192.0.2.53\n nameserver ::1 # here\nfuture line\n\
            nameserver nonsense\nnameserver fe80::1%lo\nnameserver 192.0.2.54\noptions timeout:7 attempts:99 x:y\n";
        let found = of(text).expect("there are nameservers");
        let zone = zone::numbered("[fe80::1%lo]:53").expect("every system has it");
        let expected = Nameservers {
            addresses: vec![
                ([192, 0, 2, 53], 53).into(),
                (Ipv6Addr::LOCALHOST, 53).into(),
                zone.parse().expect("an address"),
            ],
            attempts: 5,
            timeout: Duration::from_secs(7),
        };
        assert_eq!(found, expected);
        let found =
            of(b"nameserver 127.0.0.53\noptions timeout:0 attempts:0").expect("there is one");
        assert_eq!((found.attempts, found.timeout), (1, Duration::from_secs(1)));
    }

    #[test]
    fn a_file_without_nameservers_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        let why = || {
            let error = Nameservers::of_file(&path).expect_err("there is none");
            error.to_string()
        };
        let begin = format!("there is no nameserver: {}: ", path.display());
        assert_eq!(
            why(),
            begin.clone() + "No such file or directory (os error 2)"
        );
        for text in ["", "search example.net\nnameserver fe80::1%no-such0\n"] {
            fs::write(&path, text).expect("it is our directory");
            assert_eq!(
                why(),
                begin.clone() + "it has no line \"nameserver ADDRESS\""
            );
        }
        let none: [SocketAddr; 0] = [];
        let error = Nameservers::of(&ClientOptions::new().nameservers(none)).expect_err("none");
        assert_eq!(
            error.to_string(),
            "there is no nameserver: the option has none"
        );
    }
}
