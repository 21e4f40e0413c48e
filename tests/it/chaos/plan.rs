//! The common part and the differences of all configurations of a run.

use fdpassd::proto::frame::ByteOrder;

use crate::common::random::Random;

/// The order of the clients of each listener, whatever its rule is at the moment; both if it is found out.
pub const ORDERS: [&[ByteOrder]; 5] = [
    &[ByteOrder::Little],
    &[ByteOrder::Big],
    &[ByteOrder::Little, ByteOrder::Big],
    &[ByteOrder::Little],
    &[ByteOrder::Big],
];

/// Values for a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Every frame up to this length is served, whichever configuration is in force.
    pub max_frame: u64,
    /// No frame of this length ever is.
    pub too_large: u64,
}

impl Plan {
    pub fn new(random: &mut Random) -> Plan {
        let max_frame = random.pick(&[65_535, 400_000, 1 << 20]);
        Plan {
            max_frame,
            too_large: 2 * max_frame + 1,
        }
    }

    /// A configuration under which the clients of each listener are served.
    pub fn config(self, random: &mut Random) -> String {
        let [little, unix_little] = [(); 2].map(|()| random.pick(&["little", "auto"]));
        let [big, unix_big] = [(); 2].map(|()| random.pick(&["big", "auto"]));
        format!(
            r#"
            listen = [
                {{ address = "127.0.0.1:0", byte-order = "{little}" }},
                {{ address = "127.0.0.2:0", byte-order = "{big}" }},
                {{ address = "127.0.0.3:0", byte-order = "auto", backlog = {backlog} }},
                {{ address = "unix:{{dir}}/little.sock", byte-order = "{unix_little}" }},
                {{ address = "unix:{{dir}}/big.sock", byte-order = "{unix_big}" }},{more}
            ]
            [workers]
            count = {count}
            dispatch = "{dispatch}"
            max-requests = {most}
            max-lifetime = "{lifetime}"
            [limits]
            max-clients = {clients}
            max-frame = {max_frame}
            stall-timeout = "{stall}"
            request-timeout = "{request}"
            drain-timeout = "{drain}"
            frame-timeout = "{frame}"
            send-timeout = "none"
            [log]
            target = "file"
            file = "{{dir}}/log"
            "#,
            backlog = 100 + random.below(1000),
            more = random.pick(&["", "\"127.0.0.4:0\", \"unix:{dir}/more.sock\""]),
            count = 1 + random.below(4),
            dispatch = random.pick(&["round-robin", "least-loaded"]),
            most = random.pick(&["\"none\"", "\"none\"", "\"none\"", "100", "5000"]),
            lifetime = random.pick(&["none", "none", "none", "700ms"]),
            clients = 200 + random.below(100),
            max_frame = random.pick(&[self.max_frame, self.max_frame * 2]),
            stall = random.pick(&["50ms", "50ms", "200ms", "1s"]),
            request = random.pick(&["none", "30s", "1s", "1s"]),
            drain = random.pick(&["5s", "5s", "100ms"]),
            frame = random.pick(&["none", "60s"]),
        )
    }
}
