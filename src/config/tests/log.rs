//! The keys of `[log]`.

use crate::proto::log::LogFormat;

use super::*;

#[test]
fn a_log_file_and_its_target_need_each_other() {
    refused(
        "[log]\n«target = \"file\"",
        "target \"file\" needs the key `file`",
    );
    for target in ["auto", "stderr", "syslog"] {
        let marked = format!("[log]\ntarget = \"{target}\"\n«file = \"/x\"");
        refused(&marked, "`file` is only for target \"file\"");
    }
    refused(
        "log = { «file = \"/x\" }",
        "`file` is only for target \"file\"",
    );
    for wrong in ["x", ""] {
        let message =
            format!("invalid value: string \"{wrong}\", expected an absolute path in quotes");
        refused(
            &format!("[log]\ntarget = \"file\"\nfile = «\"{wrong}\""),
            &message,
        );
    }
}

#[test]
fn json_is_refused_for_syslog() {
    let message =
        "format \"json\" is for standard error and files: lines of syslog have a form of their own";
    refused("[log]\ntarget = \"syslog\"\n«format = \"json\"", message);
    for target in [
        "target = \"auto\"",
        "target = \"stderr\"",
        "target = \"file\"\nfile = \"/x\"",
    ] {
        assert_eq!(
            parse(&format!("[log]\nformat = \"json\"\n{target}"))
                .log
                .format,
            LogFormat::Json
        );
    }
}
