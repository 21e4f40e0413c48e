//! Generated texts and configurations.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use crate::proto::frame::OrderRule;

use super::*;

proptest! {
    #[test]
    fn no_text_that_looks_like_a_file_panics(text in "([a-z\\[\\]{}=\"'#.,0-9\\\\ \r\nüß\u{feff}-]|listen|limits)*") {
        explained(&text);
    }

    #[test]
    fn no_damage_to_a_file_panics(
        at in any::<prop::sample::Index>(),
        length in 0..40usize,
        put in "\\PC{0,3}|[\"\\[\\]{}\n=]",
    ) {
        let mut text: Vec<char> = everything().to_toml().chars().collect();
        let at = at.index(text.len());
        let end = (at + length).min(text.len());
        text.splice(at..end, put.chars());
        explained(&text.into_iter().collect::<String>());
    }

    #[test]
    fn every_configuration_is_read_back(config in configs()) {
        let text = config.to_toml();
        prop_assert_eq!(Config::parse(&text, ORIGIN), Ok(config), "{}", text);
    }
}

/// Checks that an error displays its place.
fn explained(text: &str) {
    if let Err(error) = Config::parse(text, ORIGIN)
        && let Some((line, column)) = error.line().zip(error.column())
    {
        assert!(
            error
                .to_string()
                .contains(&format!("--> {ORIGIN}:{line}:{column}\n")),
            "{text:?}\n{error}"
        );
    }
}

fn configs() -> impl Strategy<Value = Config> {
    (
        listeners(),
        workers(),
        limits(),
        any::<bool>(),
        0..=0o777u32,
    )
        .prop_map(|(listen, workers, limits, all, mode)| {
            let Config {
                app,
                control,
                metrics,
                agent,
                log,
                ..
            } = if all { everything() } else { Config::default() };
            let app = AppConfig {
                preload: app.preload && workers.start == StartMode::Fork,
                ..app
            };
            let control = ControlConfig {
                mode: all.then_some(Mode(mode)),
                ..control
            };
            Config {
                listen,
                workers,
                app,
                limits,
                control,
                metrics,
                agent,
                log,
                own: None,
            }
        })
}

fn listeners() -> impl Strategy<Value = Vec<Listen>> {
    let orders = prop::sample::select(vec![OrderRule::Little, OrderRule::Big, OrderRule::Auto]);
    let listener = (0..3, orders, 1..=65_535u32, 0..=0o777u32);
    prop::collection::vec(listener, 1..=MAX_LISTENERS).prop_map(|listeners| {
        let networks = ["10.0.0.0/8", "2001:db8::1"].map(|text| text.parse().expect("a network"));
        let networks = networks.to_vec();
        let numbered = listeners.into_iter().enumerate();
        let listen = |(index, (kind, byte_order, backlog, mode))| {
            let source = match kind {
                0 => format!("unix:/run/\"{index}\""),
                1 => format!("systemd:\"{index}\""),
                _ => format!("[::1]:{index}"),
            };
            let access = (kind == 0).then_some(Access {
                mode: Mode(mode),
                owner: None,
                group: None,
            });
            Listen {
                source: source.parse().expect("an address"),
                byte_order,
                backlog,
                access,
                freebind: kind == 2 && backlog % 2 == 0,
                proxy: (backlog % 3 == 0).then_some(ProxyVersion::Any),
                proxy_from: match (backlog % 3, kind) {
                    (0, 1 | 2) => networks.clone(),
                    _ => Vec::new(),
                },
            }
        };
        numbered.map(listen).collect()
    })
}

fn workers() -> impl Strategy<Value = WorkerConfig> {
    let replaced = (any::<u32>(), prop::option::of(durations()));
    (0..=256u32, any::<bool>(), durations(), replaced).prop_map(
        |(count, in_turn, start_timeout, replaced)| WorkerConfig {
            count: NonZeroU32::new(count).map_or(Count::Auto, Count::Exactly),
            dispatch: if in_turn {
                Dispatch::RoundRobin
            } else {
                Dispatch::LeastLoaded
            },
            rebalance: if in_turn {
                RebalanceMode::Manual
            } else {
                RebalanceMode::Auto
            },
            start: if in_turn {
                StartMode::Fork
            } else {
                StartMode::Exec
            },
            start_timeout,
            max_requests: NonZeroU32::new(replaced.0),
            max_lifetime: replaced.1,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let counts = (any::<u32>(), any::<u32>());
    let sizes = (64..1u32 << 24, prop::option::of(0..1u64 << 39));
    let timeouts = prop::array::uniform4(prop::option::of(durations()));
    let stall = durations().prop_map(|duration| duration.max(Duration::from_millis(10)));
    let seconds = prop::option::of(1..=32_767u64);
    (
        counts,
        sizes,
        timeouts,
        stall,
        [durations(), durations(), durations()],
        seconds,
    )
        .prop_map(
            |((all, each), (frame, more), timeouts, stall, [drain, notice, grace], seconds)| {
                let [idle_timeout, frame_timeout, send_timeout, request_timeout] = timeouts;
                Limits {
                    max_clients: NonZeroU32::new(all),
                    max_clients_per_address: NonZeroU32::new(each),
                    ipv6_prefix: NonZeroU32::new(each % 128 + 1).expect("not zero"),
                    max_frame: frame,
                    buffers: more.map(|more| 4 * u64::from(frame) + more),
                    idle_timeout,
                    frame_timeout,
                    send_timeout,
                    request_timeout,
                    stall_timeout: stall,
                    drain_timeout: drain,
                    drain_notice: notice,
                    restart_grace: grace,
                    tcp_keepalive: seconds.map(Duration::from_secs),
                }
            },
        )
}

fn durations() -> impl Strategy<Value = Duration> {
    (1_000_000..=31_557_600_000_000_000u64).prop_map(Duration::from_nanos)
}
