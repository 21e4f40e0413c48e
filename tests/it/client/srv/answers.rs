//! Answers of each kind, also those that no nameserver should send.

use std::iter;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use fdpassd::client::{Client, ClientOptions, ConnectionError, Error, ResolveError};
use fdpassd::testing::TIMEOUT;

use super::nameserver::{A, Asked, CNAME, Nameserver, SRV, name};
use super::{LOCALHOST, LONG, SERVICE, called, client_of, options_of, port, zone};
use crate::client::options;
use crate::common::port::Reserved;
use crate::common::random::Random;
use crate::common::start;

/// A timeout that a test waits for.
const SHORT: Duration = Duration::from_secs(3);

/// Answers without an answer.
type Silence = fn(&Asked) -> Vec<Vec<u8>>;

/// Calls once, and each target once. Returns why the name has no target.
#[track_caller]
fn why(options: ClientOptions) -> ResolveError {
    let service = [format!("srv:{SERVICE}")];
    let client = Client::with_options(service, options.fail_fast()).expect("valid");
    let error = client.call::<u32>("ping", 1).expect_err("no target");
    assert!(!error.may_have_run(), "{error}");
    let Error::Unavailable { mut causes, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(causes.len(), 1, "{causes:?}");
    let (address, cause) = causes.remove(0);
    match cause {
        ConnectionError::Resolve(why) => {
            assert_eq!(address, format!("srv:{SERVICE}"));
            why
        }
        other => panic!("{address}: {other}"),
    }
}

#[track_caller]
fn why_of(answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + 'static) -> (ResolveError, Vec<Asked>) {
    let nameserver = Nameserver::start(answer);
    let why = why(options_of(&nameserver));
    (why, nameserver.asked())
}

#[test]
fn a_name_without_records_is_a_final_error() {
    let (why, asked) = why_of(|asked| asked.reply().code(3).once());
    assert!(matches!(why, ResolveError::NoSuchName), "{why:?}");
    assert_eq!((asked.len(), asked[0].name.as_str()), (1, SERVICE));
    let (why, asked) = why_of(|asked| asked.reply().once());
    assert!(
        matches!(why, ResolveError::NoRecords { kind: "SRV" }),
        "{why:?}"
    );
    assert_eq!(asked.len(), 1);
    // Records of other names and types.
    let (why, _) = why_of(|asked| {
        let data = [&[0, 1, 0, 1, 0, 80][..], &name("a.example.net")].concat();
        let reply = asked.reply().a(Ipv4Addr::LOCALHOST);
        reply
            .answer(&name("_x._tcp.example.net"), SRV, 60, &data)
            .once()
    });
    assert!(matches!(why, ResolveError::NoRecords { .. }), "{why:?}");
}

#[test]
fn a_target_of_a_dot_means_that_there_is_no_service() {
    let (why, _) = why_of(|asked| asked.reply().srv(60, [0, 0, 0], ".").once());
    assert!(matches!(why, ResolveError::NotAvailable), "{why:?}");
    // With another target it is ignored.
    let daemon = start("");
    let port = port(&daemon);
    let nameserver = Nameserver::start(move |asked| {
        let reply = asked.reply().srv(60, [0, 0, 0], ".");
        let reply = reply.srv(60, [1, 0, port], "a.example.net");
        reply.with_address("a.example.net", 60, LOCALHOST).once()
    });
    assert_eq!(
        called(&client_of(&nameserver)),
        format!("a.example.net:{port}")
    );
}

#[test]
fn the_code_of_a_nameserver_that_fails_is_in_the_error() {
    for (code, text) in [
        (1, "FORMERR"),
        (2, "SERVFAIL"),
        (4, "NOTIMP"),
        (5, "REFUSED"),
    ] {
        let nameserver = Nameserver::start(move |asked| asked.reply().code(code).once());
        let why = why(options_of(&nameserver));
        let expected = format!(
            "the nameserver {} has answered {text}",
            nameserver.address()
        );
        assert_eq!(why.to_string(), expected);
        // Each is asked twice.
        assert_eq!(nameserver.asked().len(), 2);
    }
}

#[test]
fn a_message_that_is_not_valid_is_an_error() {
    let messages: [fn(&Asked) -> Vec<u8>; 5] = [
        // Nothing but the header.
        |asked| asked.reply().bytes()[..12].to_vec(),
        // A record that is not there.
        |asked| {
            let mut bytes = asked.reply().bytes();
            bytes[7] = 1;
            bytes
        },
        // A name that points to itself.
        |asked| {
            let end = u8::try_from(asked.reply().bytes().len()).expect("it is short");
            asked.reply().answer(&[0xC0, end], SRV, 60, &[0; 8]).bytes()
        },
        // A record that ends before its target.
        |asked| {
            asked
                .reply()
                .answer(&[0xC0, 12], SRV, 60, &[0, 1, 0, 1, 0, 80, 9])
                .bytes()
        },
        // More answers than there are bytes.
        |asked| {
            let mut bytes = asked.reply().bytes();
            bytes[4..12].fill(0xFF);
            bytes
        },
    ];
    for message in messages {
        let (why, _) = why_of(move |asked| vec![message(asked)]);
        assert!(matches!(why, ResolveError::BadAnswer { .. }), "{why:?}");
    }
}

#[test]
fn targets_that_are_no_hosts_are_an_error() {
    let (why, _) = why_of(|asked| {
        let reply = asked.reply().srv(60, [1, 0, 0], "a.example.net");
        let reply = reply.srv(60, [1, 0, 80], "a b.example.net");
        reply.srv(60, [1, 0, 80], "\u{1b}[2J.example.net").once()
    });
    let expected = "is not valid: no target has the name of a host and a port";
    assert!(why.to_string().ends_with(expected), "{why}");
}

#[test]
fn aliases_are_followed_and_a_loop_of_them_is_an_error() {
    let daemon = start("");
    let port = port(&daemon);
    let nameserver = Nameserver::start(move |asked| {
        let other = name("_RPC._tcp.example.org");
        let data = [
            &[0, 1, 0, 1][..],
            &port.to_be_bytes(),
            &name("a.example.net"),
        ]
        .concat();
        let reply = asked.reply().answer(&[0xC0, 12], CNAME, 60, &other);
        let reply = reply.answer(&name("_rpc._tcp.Example.org"), SRV, 60, &data);
        reply.with_address("a.example.net", 60, LOCALHOST).once()
    });
    called(&client_of(&nameserver));
    let (why, _) = why_of(|asked| {
        let other = name("_rpc._tcp.example.org");
        let reply = asked.reply().answer(&[0xC0, 12], CNAME, 60, &other);
        reply.answer(&other, CNAME, 60, &name(SERVICE)).once()
    });
    assert!(why.to_string().contains("or of itself"), "{why}");
    // The end of the aliases has no records.
    let (why, _) = why_of(|asked| {
        let other = name("_rpc._tcp.example.org");
        asked.reply().answer(&[0xC0, 12], CNAME, 60, &other).once()
    });
    assert!(matches!(why, ResolveError::NoRecords { .. }), "{why:?}");
}

#[test]
fn answers_to_other_questions_are_ignored() {
    let (daemon, reserved) = (start(""), Reserved::new());
    let (port, wrong) = (port(&daemon), reserved.address.port());
    let nameserver = Nameserver::start(move |asked| {
        let reply = |port| {
            let reply = asked.reply().srv(60, [1, 0, port], "a.example.net");
            reply.with_address("a.example.net", 60, LOCALHOST)
        };
        let [mut other_id, mut other_question] = [0, 1].map(|_| reply(wrong));
        let mut no_question = asked.reply();
        other_id.id = other_id.id.wrapping_add(1);
        let last = other_question.question.len() - 5;
        other_question.question[last - 1] ^= 1;
        no_question.question.clear();
        let mut query = reply(wrong).bytes();
        query[2] &= 0x7F;
        let messages = [other_id, other_question, no_question].map(|message| message.bytes());
        let messages = messages.into_iter().chain([query, Vec::new(), vec![0; 3]]);
        messages.chain(reply(port).once()).collect()
    });
    assert_eq!(
        called(&client_of(&nameserver)),
        format!("a.example.net:{port}")
    );
    assert_eq!(nameserver.asked().len(), 1);
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    let daemon = start("");
    let port = port(&daemon);
    // Of the hosts, the nameserver knows the addresses when it is asked for them.
    let nameserver = Nameserver::start(move |asked| {
        let reply = asked.reply();
        if asked.kind != SRV {
            let is_a = asked.kind == A && asked.name.ends_with(".example.net");
            return if is_a {
                reply.a(Ipv4Addr::LOCALHOST).once()
            } else {
                reply.once()
            };
        }
        if !asked.is_tcp {
            return reply.truncated().once();
        }
        let all = (0..1000).map(|n| format!("host-{n}.example.net"));
        let reply = all.fold(reply, |reply, host| reply.srv(60, [1, 1, port], &host));
        assert!(reply.bytes().len() > 30_000);
        reply.once()
    });
    let daemon = called(&client_of(&nameserver));
    assert!(
        daemon.ends_with(&format!(".example.net:{port}")),
        "{daemon}"
    );
    let asked = nameserver.asked();
    assert_eq!((asked[0].is_tcp, asked[1].is_tcp), (false, true));
    assert!(
        asked[2..]
            .iter()
            .all(|asked| format!("{}:{port}", asked.name) == daemon)
    );
}

#[test]
fn a_long_list_of_dead_targets_ends_at_the_deadline() {
    let reserved = Reserved::new();
    let port = reserved.address.port();
    let nameserver = Nameserver::start(move |asked| {
        let reply = asked.reply();
        if !asked.is_tcp {
            return reply.truncated().once();
        }
        let hosts = (0..700).map(|n| format!("host-{n}.example.net"));
        let reply = hosts.fold(reply, |reply, host| {
            let reply = reply.srv(LONG, [1, 1, port], &host);
            reply.with_address(&host, LONG, LOCALHOST)
        });
        reply.once()
    });
    let client = client_of(&nameserver).with_timeout(SHORT);
    let error = client.call::<u32>("ping", 1).expect_err("nothing listens");
    let Error::Unavailable { causes, .. } = error else {
        panic!("{error}");
    };
    // Not one for each target.
    assert!((1..=16).contains(&causes.len()), "{}", causes.len());
}

#[test]
fn a_nameserver_that_is_silent_costs_no_more_than_the_deadline() {
    let silent: [Silence; 3] = [
        |_| Vec::new(),
        // Nothing after the length of the message.
        |asked| match asked.is_tcp {
            true => vec![Vec::new()],
            false => asked.reply().truncated().once(),
        },
        // Answers to other questions only.
        |asked| {
            let mut reply = asked.reply();
            reply.id = reply.id.wrapping_add(1);
            iter::repeat_n(reply.bytes(), 20).collect()
        },
    ];
    thread::scope(|threads| {
        for answer in silent {
            threads.spawn(move || {
                let nameserver = Nameserver::start(answer);
                let options = options_of(&nameserver).connect_timeout(TIMEOUT);
                let client =
                    Client::with_options([format!("srv:{SERVICE}")], options).expect("valid");
                let begin = Instant::now();
                let error = client
                    .with_timeout(SHORT)
                    .call::<u32>("ping", 1)
                    .expect_err("no answer");
                let took = begin.elapsed();
                assert!((SHORT..TIMEOUT).contains(&took), "{took:?}");
                let text = error.to_string();
                let expected =
                    format!("ping was not executed within 3s: srv:{SERVICE}: no nameserver has ");
                assert!(text.starts_with(&expected), "{text}");
            });
        }
    });
}

#[test]
fn the_next_nameserver_is_asked_if_one_fails() {
    let daemon = start("");
    let port = port(&daemon);
    let good = Nameserver::start(zone(LONG, &[("a.example.net", 1, 0, port)]));
    let silent = Nameserver::start(|_| Vec::new());
    let failing = Nameserver::start(|asked| asked.reply().code(2).once());
    let absent = Reserved::new();
    for first in [silent.address(), failing.address(), absent.address] {
        let options = options().nameservers([first, good.address()]);
        let service = [format!("srv:{SERVICE}")];
        let client = Client::with_options(service, options).expect("valid");
        assert_eq!(called(&client), format!("a.example.net:{port}"));
    }
    // A nameserver that nothing is at, and none at all.
    let why_absent = why(options().nameservers([absent.address]));
    let expected = format!("the nameserver {} cannot be reached: ", absent.address);
    assert!(
        why_absent.to_string().starts_with(&expected),
        "{why_absent}"
    );
    let none: [SocketAddr; 0] = [];
    let why_none = why(options().nameservers(none));
    assert!(
        matches!(why_none, ResolveError::NoNameserver(_)),
        "{why_none:?}"
    );
}

#[test]
fn each_address_of_a_target_is_tried() {
    let daemon = start("");
    let port = port(&daemon);
    let nameserver = Nameserver::start(move |asked| {
        let reply = asked.reply().srv(60, [1, 0, port], "a.example.net");
        let reply = reply.with_address("other.example.net", 60, Ipv4Addr::new(127, 0, 0, 9).into());
        let reply = reply.with_address("a.example.net", 60, Ipv4Addr::new(127, 0, 0, 2).into());
        let reply = reply.with_address("a.example.net", 60, Ipv6Addr::LOCALHOST.into());
        reply.with_address("a.example.net", 60, LOCALHOST).once()
    });
    called(&client_of(&nameserver));
    // Without an address, this target has failed; the error names it.
    let nameserver = Nameserver::start(move |asked| match asked.kind {
        SRV => asked.reply().srv(60, [1, 0, port], "a.example.net").once(),
        _ => asked.reply().code(3).once(),
    });
    let options = options_of(&nameserver).fail_fast();
    let client = Client::with_options([format!("srv:{SERVICE}")], options).expect("valid");
    let error = client
        .call::<u32>("ping", 1)
        .expect_err("it has no address");
    let expected = format!("ping was not executed: a.example.net:{port}: the name does not exist");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn no_answer_ends_the_client() {
    let daemon = start("");
    let port = port(&daemon);
    let mut random = Random::new("SRV_SEED");
    let mutated = move |asked: &Asked, random: &mut Random| {
        let reply = asked.reply().srv(0, [1, 0, port], "a.example.net");
        let reply = reply.answer(&[0xC0, 12], CNAME, 0, &name("x.example.net"));
        let mut bytes = reply.with_address("a.example.net", 0, LOCALHOST).bytes();
        for _ in 0..=random.below(6) {
            // Not the number, so that the message is looked at.
            let at = 2 + random.below(bytes.len() as u64 - 2) as usize;
            match random.below(4) {
                0 => bytes.truncate(at.max(12)),
                1 => bytes[at] = 0xC0,
                _ => bytes[at] = random.next() as u8,
            }
        }
        vec![bytes]
    };
    let nameserver = Nameserver::start(|_| Vec::new());
    for round in 0..200 {
        let part = std::sync::Mutex::new(random.part(round));
        nameserver.set(move |asked| mutated(asked, &mut part.lock().expect("no panic")));
        let options = options_of(&nameserver).timeout(Duration::from_millis(100));
        let client = Client::with_options([format!("srv:{SERVICE}")], options.fail_fast());
        // Each outcome is right.
        let _ = client.expect("valid").call::<u32>("ping", random.below(9));
    }
    nameserver.set(zone(LONG, &[("a.example.net", 1, 0, port)]));
    called(&client_of(&nameserver));
}
