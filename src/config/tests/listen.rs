//! The addresses to listen on, and the keys of each.

use super::*;

#[test]
fn an_invalid_address_is_refused_alone_and_in_a_table() {
    let message = "\"localhost:80\" is not a valid address: names are not resolved; expected an IP address and a port (\"127.0.0.1:8080\", \
                   \"[::1]:8080\") or a Unix socket (\"unix:/run/fdpassd/rpc.sock\"), or a socket of \
                   systemd's (\"systemd:rpc\")";
    refused("listen = [\n  «\"localhost:80\",\n]", message);
    refused("[[listen]]\naddress = «\"localhost:80\"", message);
    refused(
        "listen = [«\"unix:x\"]",
        "the path \"x\" of a Unix socket must be absolute",
    );
    for name in ["", "a:b", "ä", "a\tb"] {
        let message =
            format!("{name:?} is not a valid descriptor name: 1 to 255 ASCII characters but \":\"");
        refused(
            &format!(
                "listen = [«{}]",
                serde_json::json!(format!("systemd:{name}"))
            ),
            &message,
        );
    }
    for (length, fits) in [(255, true), (256, false)] {
        assert_eq!(
            format!("systemd:{}", "x".repeat(length))
                .parse::<Source>()
                .is_ok(),
            fits
        );
    }
    refused(
        "listen = [{ address = «5 }]",
        "invalid value: integer `5`, expected an address in quotes, such as \"127.0.0.1:8080\"",
    );
}

#[test]
fn a_table_of_listen_is_checked_like_any_other() {
    refused("listen = [«{ backlog = 5 }]", "missing key `address`");
    refused(
        "[[listen]]\naddress = \"[::]:1\"\n«[[listen]]\nbacklog = 5",
        "missing key `address`",
    );
    let error = refused(
        "listen = [\"[::]:1\", { «adress = \"[::]:2\" }]",
        "unknown key `adress`, expected one of `address`, `byte-order`, `backlog`, `mode`, `owner`, `group`, `freebind`, `proxy`, `proxy-from`",
    );
    assert_eq!(error.help(), Some("did you mean `address`?"));
    refused(
        "listen = [{ address = \"[::]:1\", «address = \"[::]:2\" }]",
        "`address` is given twice, the first time at /etc/fdpassd.toml:1:13",
    );
}

#[test]
fn an_unknown_owner_or_group_is_refused() {
    refused(
        "listen = [{ address = \"unix:/x\", owner = «\"no one\" }]",
        "there is no user \"no one\"",
    );
    refused(
        "listen = [{ address = \"unix:/x\", group = «\"no one\" }]",
        "there is no group \"no one\"",
    );
    let message = "invalid value: integer `0`, expected the name or the number of a user in quotes";
    refused("listen = [{ address = \"unix:/x\", owner = «0 }]", message);
}

#[test]
fn keys_of_unix_sockets_are_refused_for_tcp() {
    let message = "mode, owner and group are for Unix sockets, [::]:1 is a TCP address";
    for key in ["mode = \"0660\"", "owner = \"0\"", "group = \"0\""] {
        refused(
            &format!("listen = [{{ «{key}, address = \"[::]:1\" }}]"),
            message,
        );
        refused(
            &format!("[[listen]]\naddress = \"[::]:1\"\n«{key}"),
            message,
        );
        let message = "mode, owner and group are for Unix sockets, systemd:rpc is made by systemd (SocketMode=, \
                       SocketUser=, SocketGroup=)";
        refused(
            &format!("listen = [{{ address = \"systemd:rpc\", «{key} }}]"),
            message,
        );
    }
}

#[test]
fn proxy_needs_the_balancers_over_tcp_and_only_there() {
    let needs = "proxy needs the key `proxy-from` with the addresses of the load balancers: any other client could \
                 claim any address";
    refused(
        "listen = [{ address = \"[::]:1\", «proxy = \"v2\" }]",
        needs,
    );
    refused(
        "[[listen]]\naddress = \"[::]:1\"\nproxy-from = []\n«proxy = \"v2\"",
        needs,
    );
    refused(
        "listen = [{ address = \"[::]:1\", «proxy-from = [\"10.0.0.0/8\"] }]",
        "proxy-from needs the key `proxy`",
    );
    refused(
        "listen = [{ address = \"unix:/x\", proxy = \"v1\", «proxy-from = [\"::1\"] }]",
        "proxy-from is for TCP addresses, unix:/x is a Unix socket: its mode decides who connects",
    );
    for listen in [
        "{ address = \"[::]:1\", proxy = \"any\", proxy-from = [\"10.0.0.0/8\", \"2001:db8::/32\", \"192.0.2.1\"] }",
        "{ address = \"unix:/x\", proxy = \"v1\" }",
        "{ address = \"systemd:x\", proxy = \"v2\" }",
        "{ address = \"systemd:x\", proxy = \"v2\", proxy-from = [\"::1\"] }",
    ] {
        let config = parse(&format!("listen = [{listen}]"));
        assert!(config.listen[0].proxy.is_some(), "{listen}");
        assert_eq!(parse(&config.to_toml()).listen, config.listen);
    }
}

#[test]
fn an_invalid_version_or_network_is_refused_with_its_place() {
    let error = refused(
        "listen = [{ address = \"unix:/x\", proxy = «\"v3\" }]",
        r#"invalid value: string "v3", expected one of "v1", "v2", "any""#,
    );
    assert_eq!(error.help(), None);
    let tcp = "listen = [{ address = \"[::]:1\", proxy = \"v2\", proxy-from = [\"::1\", «";
    for (network, why) in [
        (
            "\"10.0.0.1/8\"",
            "\"10.0.0.1/8\": the address has bits after the first 8",
        ),
        (
            "\"10.0.0.0/33\"",
            "\"10.0.0.0/33\": an address of this kind has 32 bits",
        ),
        (
            "8",
            "invalid value: integer `8`, expected a network in quotes, such as \"10.0.0.0/8\"",
        ),
    ] {
        refused(&format!("{tcp}{network}] }}]"), why);
    }
    // Each network has a line of its own: an error shows a part of a long line only.
    let networks = "\"::1\",\n".repeat(64);
    refused(
        &format!(
            "[[listen]]\naddress = \"[::]:1\"\nproxy = \"v2\"\nproxy-from = [\n{networks}«\"::2\"]"
        ),
        "there can be at most 64 networks, these are 65",
    );
}

#[test]
fn listen_needs_one_address_and_each_only_once() {
    let text = "listen = [\"[::1]:1\", \"[::1]:2\", \"[0::1]:1\"]";
    let error = Config::parse(text, ORIGIN).expect_err("it is there twice");
    let message = format!(
        "{ORIGIN}:1:33: [::1]:1 is already listened on by an earlier entry, at {ORIGIN}:1:11"
    );
    assert_eq!(error.in_one_line(), message);
    refused(
        "\n«listen = []",
        "there must be at least one address to listen on",
    );
    refused(
        "listen = [\"[::1]:1\", «\"[0::1]:1\"]",
        "[::1]:1 is already listened on by an earlier entry",
    );
    refused(
        "listen = [\"unix:/x/y\", { backlog = 1, «address = \"unix:/x//y\" }]",
        "unix:/x//y is already listened on by an earlier entry",
    );
    refused(
        "[[listen]]\naddress = \"0.0.0.0:1\"\n[[listen]]\n«address = \"0.0.0.0:1\"",
        "0.0.0.0:1 is already listened on by an earlier entry",
    );
    refused(
        "listen = [\"systemd:rpc\", «\"systemd:rpc\"]",
        "systemd:rpc is already listened on by an earlier entry",
    );
    assert_eq!(
        parse("listen = [\"[::1]:0\", \"[::1]:0\", \"systemd:a\", \"systemd:b\"]")
            .listen
            .len(),
        4
    );
}

#[test]
fn more_than_64_listeners_are_refused() {
    let entries = |count: u16| {
        (1..=count)
            .map(|port| format!("\"[::]:{port}\",\n"))
            .collect::<String>()
    };
    assert_eq!(
        parse(&format!("listen = [{}]", entries(64))).listen.len(),
        64
    );
    let marked = format!("listen = [{}«\"[::]:65\", \"[::]:66\"]", entries(64));
    refused(
        &marked,
        "at most 64 addresses can be listened on, these are 66",
    );
}

#[test]
fn automatic_byte_order_is_refused_for_long_frames() {
    let message = "byte-order \"auto\" needs a max-frame below 16MiB: with longer frames, \
                   the length of a short big-endian one is valid in little-endian order too";
    let listen = "listen = [\"[::]:1\", { address = \"[::]:2\", «byte-order = \"auto\" }]";
    refused(
        &format!("{listen}\n[limits]\nmax-frame = \"16MiB\""),
        message,
    );
    parse(&format!("{listen}\n[limits]\nmax-frame = 16777215").replace('«', ""));
}
