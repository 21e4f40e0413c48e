//! The help of fdpassctl.

use clap::Command;

use super::PROGRAM;

/// The help, on one screen. It is not generated because clap has no groups of verbs; a test shows that it is complete.
pub(super) const HELP: &str = "\
Usage: fdpassctl [OPTIONS] <VERB>; \"fdpassctl help VERB\" describes a verb

Look     status, top      the daemon, its listeners and its workers; live
         clients          the connected clients and their requests
         events           recent events; with --follow also new ones
         config           show what is in force, or check the file
         metrics          all metrics, in the Prometheus text format
Clients  drain, undrain   stop accepting clients; accept them again
         rebalance        spread busy clients over the workers
         kick             close a client, or all of an address or idle ones
         call, bench      send a request as a client; send many, measure them
Workers  scale, recycle   set their number; replace one or all
         hold, release    move all clients off one; undo that or a quarantine
Daemon   reload, upgrade  apply the configuration file; run the new program
         stop             shut down gracefully
         log-level, reopen-log   show or change the log level; reopen the file
         version, completions    versions; a script for bash, zsh or fish
Apps     app              check whether a program can be an app
Options  -n, --name <NAME>, -i, --instance <NAME>, -s, --socket <PATH>  daemon
         --timeout <TIME>, --json, -q, --quiet   10s or 1m; JSON; no progress
         --hosts <LIST>, --one-at-a-time, --color <WHEN>   over ssh; colours
Exit     0 done, 1 refused or failed, 3 not running, 4 no valid reply in time,
         64 usage, 75 still in progress, 77 forbidden
";

/// Adds to the help of each verb what is below its options, and hides there the options that all verbs have: the help of
/// the program has these.
pub(super) fn complete(command: Command, program: &str) -> Command {
    let command = command.mut_args(|argument| match argument.is_global_set() {
        true => argument.hide_short_help(true).hide_long_help(true),
        false => argument,
    });
    with_text(command, program, "")
}

fn with_text(command: Command, program: &str, above: &str) -> Command {
    command.mut_subcommands(|verb| {
        let words = format!("{above}{} ", verb.get_name());
        let about = VERBS.iter().find(|about| about.verb == words.trim_end());
        let text = about.map_or_else(|| FOOTER.to_owned(), AboutVerb::text);
        let verb = verb.after_help(text.replace(PROGRAM, program));
        with_text(verb, program, &words)
    })
}

/// The texts below the options in the help of a verb.
struct AboutVerb {
    verb: &'static str,
    examples: &'static [&'static str],
    /// Lines about the columns of its tables.
    columns: &'static [&'static str],
}

impl AboutVerb {
    fn text(&self) -> String {
        let mut text = String::new();
        for (title, lines) in [("Examples", self.examples), ("Columns", self.columns)] {
            if !lines.is_empty() {
                text.push_str(title);
                text.push_str(":\n");
            }
            for line in lines {
                text.push_str("  ");
                text.push_str(line);
                text.push('\n');
            }
            if !lines.is_empty() {
                text.push('\n');
            }
        }
        text + FOOTER
    }
}

const FOOTER: &str = "Options of all verbs, such as --json and --timeout: fdpassctl --help";

const VERBS: &[AboutVerb] = &[
    AboutVerb {
        verb: "status",
        examples: &["fdpassctl status", "fdpassctl status --watch=5s"],
        columns: &[
            "ID, PID      the worker and its process; \"seat 2\" waits for a worker",
            "GEN          generation of its configuration",
            "STATE        starting, ready, stalled, unhealthy, held, draining, waiting",
            "CLIENTS      clients that it has",
            "EXEC         requests that it is executing",
            "REQUESTS     requests answered in this seat",
            "REQ/S        requests a second, over the last 10 seconds at most",
            "P50, P99     50 % and 99 % of these took at most this time",
            "UPTIME       how long it has been running; \"in 3s\": its next start",
            "RESTARTS     workers in this seat after the first",
            "RSS          resident memory, in MiB",
        ],
    },
    AboutVerb {
        verb: "top",
        examples: &[
            "fdpassctl top",
            "fdpassctl top --interval 250ms -n counterd",
        ],
        columns: &[],
    },
    AboutVerb {
        verb: "clients",
        examples: &[
            "fdpassctl clients --sort requests --most 20",
            "fdpassctl clients --worker 17 --json",
        ],
        columns: &[
            "ID           number of the client, for \"kick\"",
            "PEER         its address; \"via\" that of a load balancer",
            "LISTENER     the address that it has connected to",
            "WORKER       the worker that has it; blank while it waits",
            "AGE, IDLE    time since it connected, and since its last byte",
            "REQUESTS     requests answered",
            "MOVES        how often it went to another worker",
            "BYTES        buffered requests and unsent replies",
            "METHOD       the method that executes its request in an app",
        ],
    },
    AboutVerb {
        verb: "events",
        examples: &[
            "fdpassctl events --follow",
            "fdpassctl events --after 4711 --json",
        ],
        columns: &[
            "number, for --after; time; level; kind of event; what happened",
            "On a terminal, a line above the first event of a day has the date.",
        ],
    },
    AboutVerb {
        verb: "config",
        examples: &["fdpassctl config show", "fdpassctl config check"],
        columns: &[],
    },
    AboutVerb {
        verb: "config show",
        examples: &["fdpassctl config show"],
        columns: &["key = value, and its origin"],
    },
    AboutVerb {
        verb: "config check",
        examples: &["fdpassctl config check && fdpassctl reload"],
        columns: &[],
    },
    AboutVerb {
        verb: "log-level",
        examples: &["fdpassctl log-level", "fdpassctl log-level debug"],
        columns: &[],
    },
    AboutVerb {
        verb: "metrics",
        examples: &["fdpassctl metrics | grep clients"],
        columns: &[],
    },
    AboutVerb {
        verb: "call",
        examples: &[
            "fdpassctl call ping '{\"n\":1}'",
            "fdpassctl call resize @params.json --to unix:/run/fdpassd/rpc.sock",
            "echo '[1,2]' | fdpassctl call sum -",
        ],
        columns: &[],
    },
    AboutVerb {
        verb: "bench",
        examples: &[
            "fdpassctl bench",
            "fdpassctl bench -c 64 -d 8 --duration 30s",
            "fdpassctl bench resize '{\"width\":64}' --rate 500",
        ],
        columns: &[
            "BELOW        requests with a latency below this, at least half of it",
            "REQUESTS     how many, and PART, their share",
        ],
    },
    AboutVerb {
        verb: "version",
        examples: &["fdpassctl version"],
        columns: &[],
    },
    AboutVerb {
        verb: "app",
        examples: &["fdpassctl app check -- python3 app.py"],
        columns: &[],
    },
    AboutVerb {
        verb: "app check",
        examples: &[
            "fdpassctl app check -- python3 app.py",
            "fdpassctl app check --only cancel -- ./app",
        ],
        columns: &[],
    },
    AboutVerb {
        verb: "completions",
        examples: &[
            "source <(fdpassctl completions bash)",
            "fdpassctl completions fish | source",
        ],
        columns: &[],
    },
    AboutVerb {
        verb: "reload",
        examples: &["fdpassctl config check && fdpassctl reload"],
        columns: &[],
    },
    AboutVerb {
        verb: "scale",
        examples: &["fdpassctl scale 8"],
        columns: &[],
    },
    AboutVerb {
        verb: "recycle",
        examples: &["fdpassctl recycle 17", "fdpassctl recycle all"],
        columns: &[],
    },
    AboutVerb {
        verb: "hold",
        examples: &["fdpassctl hold 17"],
        columns: &[],
    },
    AboutVerb {
        verb: "release",
        examples: &["fdpassctl release 17", "fdpassctl release resize"],
        columns: &[],
    },
    AboutVerb {
        verb: "drain",
        examples: &[
            "fdpassctl drain --notice 10s --wait",
            "fdpassctl drain --move 1m",
        ],
        columns: &[],
    },
    AboutVerb {
        verb: "undrain",
        examples: &["fdpassctl undrain"],
        columns: &[],
    },
    AboutVerb {
        verb: "rebalance",
        examples: &["fdpassctl rebalance --dry-run"],
        columns: &[],
    },
    AboutVerb {
        verb: "upgrade",
        examples: &[
            "fdpassctl upgrade",
            "fdpassctl upgrade --binary /opt/fdpassd",
        ],
        columns: &[],
    },
    AboutVerb {
        verb: "kick",
        examples: &[
            "fdpassctl kick 4711",
            "fdpassctl kick --address 192.0.2.10",
            "fdpassctl kick --idle 1h",
        ],
        columns: &[],
    },
    AboutVerb {
        verb: "reopen-log",
        examples: &["mv /var/log/fdpassd.log{,.1} && fdpassctl reopen-log"],
        columns: &[],
    },
    AboutVerb {
        verb: "stop",
        examples: &["fdpassctl stop", "fdpassctl stop --timeout 5m"],
        columns: &[],
    },
];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::ctl::args::{Arguments, command};

    #[test]
    fn every_verb_has_examples_that_are_valid() {
        fn verbs(command: &Command, above: &str) -> Vec<String> {
            let mut all = Vec::new();
            for verb in command.get_subcommands() {
                let words = format!("{above}{}", verb.get_name());
                all.extend(verbs(verb, &format!("{words} ")));
                all.push(words);
            }
            all
        }
        let mut all = verbs(&command(PROGRAM), "");
        let mut about: Vec<&str> = VERBS.iter().map(|about| about.verb).collect();
        all.sort_unstable();
        about.sort_unstable();
        assert_eq!(about, all);
        for about in VERBS {
            assert!(!about.examples.is_empty(), "{}", about.verb);
            for example in about.examples {
                let (_, line) = example.rsplit_once("fdpassctl ").expect(example);
                let line = line.split(" | ").next().unwrap_or_default();
                let words = line.trim_end_matches(')').split(' ');
                let words = words.map(|word| word.trim_matches('\''));
                let parsed = Arguments::try_parse_from(std::iter::once(PROGRAM).chain(words));
                assert!(parsed.is_ok(), "{example}: {parsed:?}");
            }
        }
    }

    #[test]
    fn the_help_of_a_verb_has_its_own_options_only() {
        let mut root = command("counterctl");
        root.build();
        let kick = root.find_subcommand_mut("kick").expect("a verb");
        for help in [kick.render_help(), kick.render_long_help()] {
            let help = help.to_string();
            for part in [
                "--idle <TIME>",
                "counterctl kick --idle 1h\n",
                "counterctl --help",
            ] {
                assert!(help.contains(part), "{part:?} is not in {help}");
            }
            assert!(
                !help.contains("--one-at-a-time") && !help.contains(PROGRAM),
                "{help}"
            );
        }
    }
}
