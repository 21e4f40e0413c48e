//! The local time of this process, tzset(3).

use std::mem::MaybeUninit;

use nix::libc;

/// Returns by how many seconds the local time is ahead of UTC at this instant, in seconds since the Unix epoch; 0 if the
/// system does not know. `TZ`, or else /etc/localtime, names the time zone.
#[must_use]
pub fn ahead_of_utc(at: i64) -> i64 {
    let mut broken = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, which writes a `tm` to the second or returns null.
    let found = unsafe { libc::localtime_r(&raw const at, broken.as_mut_ptr()) };
    if found.is_null() {
        return 0;
    }
    // SAFETY: the call has written it.
    let broken = unsafe { broken.assume_init() };
    broken.tm_gmtoff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_differs_from_utc_by_less_than_a_day() {
        for at in [0, 1_795_521_601, -1, i64::MAX, i64::MIN] {
            assert!(ahead_of_utc(at).abs() < 86_400, "{at}");
        }
    }
}
