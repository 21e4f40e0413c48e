//! Zones of IPv6 addresses: the interface that a link-local address is on.

use std::borrow::Cow;

use nix::net::if_::if_nametoindex;

/// Replaces the name of an interface in an address such as `[fe80::1%eth0]:8080` by its number (zones of RFC 4007,
/// section 11; if_nametoindex(3)). Returns any other text unchanged.
///
/// # Errors
/// A sentence for the operator when there is no such interface.
pub fn numbered(text: &str) -> Result<Cow<'_, str>, String> {
    let zone = text
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .and_then(|(host, port)| {
            let (address, zone) = host.split_once('%')?;
            Some((address, zone, port))
        });
    let Some((address, zone, port)) = zone.filter(|(_, zone, _)| zone.parse::<u32>().is_err())
    else {
        return Ok(Cow::Borrowed(text));
    };
    let index =
        if_nametoindex(zone).map_err(|_| format!("there is no network interface {zone:?}"))?;
    Ok(Cow::Owned(format!("[{address}%{index}]{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_interface_becomes_its_number() {
        let index = if_nametoindex("lo").expect("every system has it");
        assert_eq!(
            numbered("[fe80::1%lo]:80").expect("it is there"),
            format!("[fe80::1%{index}]:80")
        );
        for text in [
            "[fe80::1%7]:80",
            "[::1]:80",
            "127.0.0.1:80",
            "unix:/x%lo]",
            "[fe80::1%lo",
            "",
        ] {
            assert_eq!(numbered(text).expect("nothing to look up"), text);
        }
        let error = numbered("[fe80::1%no-such0]:80").expect_err("no interface is called so");
        assert_eq!(error, "there is no network interface \"no-such0\"");
    }
}
