//! The operator changes the workers while it runs, and no client notices.

mod drain;
mod hold;
mod scale;

use fdpassd::testing::Running;

use crate::common::load::Load;

const BOTH: &str = r#"listen = ["127.0.0.1:0", "unix:{dir}/rpc.sock"]
"#;

/// Ends the load: no client had an error, and none was closed except on request.
#[track_caller]
fn end(daemon: &Running, load: Load, others: u64) {
    let answered = load.finish();
    assert!(answered.iter().all(|count| *count > 0), "{answered:?}");
    let status = daemon.wait_until("the load has left", |status| status.clients <= others);
    assert_eq!(status.clients, others);
    assert_eq!(
        (status.errors_total, status.lost_total, status.deaths_total),
        (0, 0, 0)
    );
}
