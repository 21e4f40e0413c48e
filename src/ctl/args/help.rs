//! The help of fdpassctl.

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
