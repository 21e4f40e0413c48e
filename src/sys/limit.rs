//! Limits of this process.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Raises the limit on open files to the highest that this process may set. Returns it.
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_descriptors() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Adds the limit that causes an error to its text, unless it is unlimited. EFBIG comes from the limit on the size of
/// files, including those of memfd_create(2), EMFILE from that on descriptors, EAGAIN of fork(2) from that on
/// processes; ENOMEM may come from that on address space (getrlimit(2)).
#[must_use]
pub fn named(error: io::Error) -> io::Error {
    let (resource, what) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EFBIG) => (
            Resource::RLIMIT_FSIZE,
            "the size of files (ulimit -f, LimitFSIZE=)",
        ),
        Some(Errno::ENOMEM) => (Resource::RLIMIT_AS, "address space (ulimit -v, LimitAS=)"),
        Some(Errno::EMFILE) => (
            Resource::RLIMIT_NOFILE,
            "open files (ulimit -n, LimitNOFILE=)",
        ),
        Some(Errno::EAGAIN) => (
            Resource::RLIMIT_NPROC,
            "processes of its user (ulimit -u, LimitNPROC=)",
        ),
        _ => return error,
    };
    match getrlimit(resource) {
        Ok((soft, _)) if soft != RLIM_INFINITY => io::Error::new(
            error.kind(),
            format!("{error}; the limit on {what} is {soft}"),
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_limit_that_causes_it() {
        let limited = named(Errno::EMFILE.into());
        assert!(
            limited
                .to_string()
                .contains("; the limit on open files (ulimit -n, LimitNOFILE=) is "),
            "{limited}"
        );
        let other = named(Errno::EACCES.into());
        assert_eq!(other.raw_os_error(), Some(Errno::EACCES as i32));
    }
}
