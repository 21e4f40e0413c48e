//! HTTP clients that are slow or many, and the others that they must not delay.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::http::{HttpClient, exporter, get, metrics_address, request};
use crate::common::{kernel, start};

use super::{TCP, assert_below, soon, tasks};

#[test]
fn a_trickling_http_client_times_out_and_delays_no_other() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let soon = soon(&address);
    let began = Instant::now();
    let mut slow = HttpClient::connect(&address);
    let mut silent = HttpClient::connect(&address);
    let late = thread::scope(|threads| {
        let late = threads.spawn(|| {
            // Too slow to be ready in time, and never quite silent.
            for byte in request("/healthz").bytes().cycle().take(1000) {
                let told = slow.send([byte]).is_err() || began.elapsed() > Duration::from_secs(6);
                if told {
                    break;
                }
                crate::common::let_pass(Duration::from_millis(300));
            }
            slow.answer()
        });
        let mut times = Vec::new();
        while !late.is_finished() {
            let asked = Instant::now();
            assert_eq!(get(&address, "/healthz").status_and_body(), (200, "ok\n"));
            times.push(asked.elapsed());
            crate::common::let_pass(Duration::from_millis(100));
        }
        // A pause of the machine makes few of them long, the slow client would make most of them long.
        times.sort_unstable();
        assert!(
            times.get(times.len() / 2) < Some(&soon),
            "it took {times:?}"
        );
        late.join().expect("it is answered")
    });
    assert_eq!(
        late.status_and_body(),
        (408, "the request did not arrive within 5s\n")
    );
    assert!(began.elapsed() > Duration::from_secs(5));
    assert_eq!(silent.answer().status, 408);
}

/// Three kinds of them: silent, halfway, and those who have asked and do not go.
#[test]
fn fifty_slow_http_clients_keep_no_other_out() {
    let daemon = start(TCP);
    let address = metrics_address(&daemon);
    let (exporter, soon) = (exporter(&daemon), soon(&address));
    for words in [
        "",
        "GET /metrics HTTP/1.1\r\nHost: loc",
        &request("/metrics"),
    ] {
        assert_below(soon, || {
            let mut hostile: Vec<HttpClient> =
                (0..50).map(|_| HttpClient::connect(&address)).collect();
            // Some are disconnected before they have sent it.
            hostile
                .iter_mut()
                .for_each(|http_client| drop(http_client.send(words)));
            let times = ["/metrics", "/healthz", "/readyz"].map(|path| {
                let asked = Instant::now();
                assert_eq!(get(&address, path).status, 200, "{words:?}");
                asked.elapsed()
            });
            assert!(tasks(exporter) <= 1 + 16, "{} threads", tasks(exporter));
            assert_eq!(daemon.call("ping", 1).expect("a result"), 1);
            times.into_iter().max().expect("there are three")
        });
    }
}

#[test]
fn sixty_requests_at_once_are_answered_at_a_limited_rate() {
    let daemon = start(TCP);
    let (address, exporter) = (metrics_address(&daemon), exporter(&daemon));
    // It would close a client that has connected and not asked for 200 ms, as it does not have a thread for each.
    kernel::stop(exporter);
    let mut http_clients: Vec<HttpClient> =
        (0..60).map(|_| HttpClient::connect(&address)).collect();
    http_clients
        .iter_mut()
        .for_each(|http_client| http_client.send(request("/healthz")).expect("it is taken"));
    let began = Instant::now();
    kernel::send(exporter, Signal::SIGCONT);
    for mut http_client in http_clients {
        assert_eq!(http_client.answer().status_and_body(), (200, "ok\n"));
    }
    // A hundred a second, so that the master has time for others.
    assert!(
        began.elapsed() >= Duration::from_millis(590),
        "it took {:?}",
        began.elapsed()
    );
}
