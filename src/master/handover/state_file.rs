//! The state file: the state of a master for the next one, without its clients, which are in the handoff queues.
//!
//! The service manager keeps this memory file. It must be valid at any time, as SIGKILL gives no warning: after an
//! event the inactive half is written, then one word makes that half the active one. Figures that change with every
//! client are words of their own.
//!
//! ```text
//! word 0   magic and version                 3  refused clients
//!      1   active half, its length           4  number of clients plus 1; 0 if it is not known
//!      2   number of the next client         5  the oldest version that can read it
//!      6   connections of balancers that have not become clients
//! from one page on: two halves of JSON, see [`SavedState`]
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{GivenKeys, Identities, Keys, MAX_SAVED_LEN};
use crate::master::clients::figures::ClientFigures;
use crate::master::listeners::drain::state::{DrainState, SavedDrain};
use crate::master::listeners::record::ListenerRecord;
use crate::master::telemetry::counters::{Counts, Tally};
use crate::master::workers::SeatTotals;
use crate::proto::control::{DrainMode, LastReload};
use crate::proto::log::LogLevel;
use crate::proto::names::WorkerId;
use crate::proto::paths::exact;
use crate::sys::memory::{PAGE, Words, is_sealed, sealed_file};

/// "fdpassd" and the version of the state file and of the snapshot.
///
/// ```text
/// 1   version 0.1.0
/// 2   words 4 and 5 of the state file; `oldest` and `layout` of the snapshot
/// ```
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"fdpassd\x02");

/// The oldest version that can read what this one writes. It ignores unknown members, and uses defaults for missing
/// ones.
pub(crate) const OLDEST: u64 = u64::from_le_bytes(*b"fdpassd\x02");

/// Checks that this program can read what a program of this version has written for this oldest version.
///
/// # Errors
/// The reason why it cannot.
pub(crate) fn check_version(version: u64, oldest: u64) -> Result<(), String> {
    let (name, number) = (|word: u64| word << 8, |word: u64| word >> 56);
    if name(version) != name(MAGIC) {
        return Err("it has no version of fdpassd".to_owned());
    }
    let is_not_newer = number(version) <= number(MAGIC);
    let is_readable = name(oldest) == name(MAGIC) && number(oldest) <= number(MAGIC);
    if number(version) > 0 && (is_not_newer || is_readable) {
        return Ok(());
    }
    Err(format!(
        "it is of version {}, and this is {}",
        number(version),
        number(MAGIC)
    ))
}

const VERSION_WORD: usize = 0;
const ACTIVE_WORD: usize = 1;
const OLDEST_WORD: usize = 5;

/// Number of words in use.
const WORDS: usize = 7;

/// Bytes of a half. A few KiB are usual; 256 seats and as many methods with long names need a fifth of it.
const HALF_LEN: u64 = 1 << 20;

const _: () = assert!(2 * MAX_SAVED_LEN as u64 <= HALF_LEN);

const FILE_LEN: u64 = PAGE + 2 * HALF_LEN;

/// Names in the store of the service manager. Those of version 0.1.0 stay.
pub(crate) const STATE_FILE_NAME: &str = "fdpassd-book";
pub(crate) const QUEUE_NAME: &str = "fdpassd-boat";
pub(crate) const LISTENER_NAME: &str = "fdpassd-listener";
pub(crate) const CANARY_NAME: &str = "fdpassd-canary";

/// Returns the names of both ends of a handoff queue.
pub(crate) fn queue_names(number: usize) -> [String; 2] {
    ["into", "out"].map(|end| format!("{QUEUE_NAME}.{number}-{end}"))
}

/// The state for the next master.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedState {
    /// The configuration that was applied last, its file, and the keys of the file.
    pub(crate) config: String,
    #[serde(with = "exact")]
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) config_keys: Keys,
    /// The keys of the environment that were in force with it.
    pub(crate) config_variables: Keys,
    /// All files of the configuration.
    pub(crate) config_files: Vec<PathBuf>,
    /// The configuration that the daemon was given as arguments, if it was.
    pub(crate) command_line: Option<String>,
    /// Whether `fdpassd dev` has started the daemon.
    pub(crate) is_dev: bool,
    /// The numbers of the users and groups in the configuration; `None` before version 2.
    pub(crate) identities: Option<Identities>,
    /// Name and number of the daemon's user.
    pub(crate) user: Option<(String, u32)>,
    pub(crate) last_generation: u64,
    pub(crate) next_worker: WorkerId,
    pub(crate) listener_number: u32,
    pub(crate) listeners: Vec<ListenerRecord>,
    /// The number of handoff queues.
    #[serde(rename = "boats")]
    pub(crate) handoff_queues: usize,
    /// Changes at run time.
    pub(crate) count: Option<u32>,
    pub(crate) log_level: Option<LogLevel>,
    pub(crate) is_drained: bool,
    /// The drain that is under way; version 0.1.0 wrote `is_drained` alone.
    pub(crate) drain: Option<SavedDrain>,
    pub(crate) quarantined: Vec<String>,
    pub(crate) last_reload: Option<LastReload>,
    pub(crate) counts: Counts,
    pub(crate) tally: Tally,
    pub(crate) seats: Vec<SeatTotals>,
    /// The number of the last event.
    pub(crate) events: u64,
}

impl SavedState {
    /// Returns the keys of the configuration that are not the default.
    pub(crate) fn given(&self) -> GivenKeys {
        GivenKeys {
            files: self.config_keys.clone(),
            variables: self.config_variables.clone(),
        }
    }

    /// Returns the state without the last deaths of the workers, which only the status shows: if each of many seats has
    /// a long one, the state is too long.
    fn without_deaths(&self) -> SavedState {
        let mut shorter = self.clone();
        for seat in &mut shorter.seats {
            seat.last_death = None;
        }
        shorter
    }

    /// Returns the drain that was under way. Version 0.1.0 knew only one mode, without a notice.
    pub(crate) fn drain(&self, now: Instant) -> Option<DrainState> {
        let drained = || {
            self.is_drained
                .then(|| DrainState::without_notice(DrainMode::Queue))
        };
        let saved = self.drain.map(|drain| drain.restored(now));
        saved.or_else(drained)
    }

    /// Reads the state of any version. A member that cannot be read is ignored.
    fn from_json(text: &[u8]) -> Result<SavedState, String> {
        let mut members: Map<String, Value> =
            serde_json::from_slice(text).map_err(|e| e.to_string())?;
        members.retain(|name, value| {
            let alone = Map::from_iter([(name.clone(), value.clone())]);
            serde_json::from_value::<SavedState>(alone.into()).is_ok()
        });
        serde_json::from_value(members.into()).map_err(|e| e.to_string())
    }
}

/// The state file.
#[derive(Debug)]
pub(crate) struct StateFile {
    words: Rc<Words>,
    figures: ClientFigures,
    file: File,
}

impl StateFile {
    pub(crate) fn new() -> io::Result<StateFile> {
        let state_file = StateFile::from_file(sealed_file(c"state-file", FILE_LEN)?)?;
        state_file.mark();
        Ok(state_file)
    }

    fn from_file(file: File) -> io::Result<StateFile> {
        let words = Rc::new(Words::map(&file, WORDS)?);
        Ok(StateFile {
            figures: ClientFigures::new(words.clone()),
            words,
            file,
        })
    }

    /// Marks the file as one of this version.
    fn mark(&self) {
        self.words[OLDEST_WORD].store(OLDEST, Ordering::Release);
        self.words[VERSION_WORD].store(MAGIC, Ordering::Release);
    }

    /// Opens the state file of another master, which stays unchanged until the first write.
    ///
    /// # Errors
    /// The reason why it cannot be read.
    pub(crate) fn open(file: File) -> Result<StateFile, String> {
        if !is_sealed(&file, FILE_LEN).map_err(|e| e.to_string())? {
            return Err("it is not a state file of this version".to_owned());
        }
        let state_file = StateFile::from_file(file).map_err(|e| e.to_string())?;
        let word = |index: usize| state_file.words[index].load(Ordering::Acquire);
        check_version(word(VERSION_WORD), word(OLDEST_WORD)).map(|()| state_file)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the words that change with every client.
    pub(crate) fn figures(&self) -> &ClientFigures {
        &self.figures
    }

    /// Writes the state.
    ///
    /// # Errors
    /// Those of pwrite(2); `FileTooLarge` if it is longer than a half. The previous state stays valid then.
    pub(crate) fn write(&self, saved_state: &SavedState) -> io::Result<()> {
        let mut text = serde_json::to_vec(saved_state)?;
        if text.len() as u64 > HALF_LEN {
            text = serde_json::to_vec(&saved_state.without_deaths())?;
        }
        if text.len() as u64 > HALF_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.mark();
        let inactive = 1 - (self.words[ACTIVE_WORD].load(Ordering::Relaxed) & 1);
        self.file.write_all_at(&text, PAGE + inactive * HALF_LEN)?;
        self.words[ACTIVE_WORD].store((text.len() as u64) << 1 | inactive, Ordering::Release);
        Ok(())
    }

    /// Reads the state that was written last.
    ///
    /// # Errors
    /// The reason why it cannot be read.
    pub(crate) fn read(&self) -> Result<SavedState, String> {
        let active = self.words[ACTIVE_WORD].load(Ordering::Acquire);
        let (index, length) = (active & 1, active >> 1);
        if length > HALF_LEN {
            return Err("its length is not valid".to_owned());
        }
        let mut text = vec![0; length as usize];
        self.file
            .read_exact_at(&mut text, PAGE + index * HALF_LEN)
            .map_err(|e| e.to_string())?;
        SavedState::from_json(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::text::MAX_REASON_LEN;

    #[test]
    fn the_last_written_state_is_read_and_invalid_ones_rejected() {
        let state_file = StateFile::new().expect("memfd");
        let written = |events| SavedState {
            events,
            last_generation: 7,
            ..SavedState::default()
        };
        for events in 1..5 {
            state_file.write(&written(events)).expect("there is room");
            state_file.figures.set(events * 10, events, events + 1);
            let again =
                StateFile::open(state_file.file().try_clone().expect("dup")).expect("it is one");
            assert_eq!(again.read().expect("it is whole").events, events);
            let figures = (
                again.figures.next_client(),
                again.figures.refused(),
                again.figures.clients(),
            );
            assert_eq!(figures, (events * 10, events, Some(events + 1)));
        }
        let seat = || SeatTotals {
            spawned: 3,
            last_death: Some("\n".repeat(MAX_REASON_LEN)),
            ..SeatTotals::default()
        };
        let with_deaths = SavedState {
            seats: (0..256).map(|_| seat()).collect(),
            ..written(4)
        };
        state_file.write(&with_deaths).expect("the rest has space");
        let seats = state_file.read().expect("it is whole").seats;
        assert_eq!((seats.len(), seats[0].spawned), (256, 3));
        assert_eq!(seats[0].last_death, None);
        let too_long = SavedState {
            config: "x".repeat(HALF_LEN as usize),
            ..written(9)
        };
        assert!(state_file.write(&too_long).is_err());
        assert_eq!(state_file.read().expect("it is as it was").events, 4);

        state_file.words[ACTIVE_WORD].store(u64::MAX, Ordering::Relaxed);
        assert!(state_file.read().is_err());
        state_file.words[ACTIVE_WORD].store(9 << 1, Ordering::Relaxed);
        assert!(state_file.read().is_err(), "cut short");
        let found = |version: u8, oldest: u8| {
            let word =
                |number| u64::from_le_bytes([b'f', b'd', b'p', b'a', b's', b's', b'd', number]);
            state_file.words[VERSION_WORD].store(word(version), Ordering::Relaxed);
            state_file.words[OLDEST_WORD].store(word(oldest), Ordering::Relaxed);
            StateFile::open(state_file.file().try_clone().expect("dup")).map(drop)
        };
        for (version, oldest) in [(1, 0), (2, 2), (3, 2), (200, 1)] {
            found(version, oldest).expect("it can be read");
        }
        for (version, oldest) in [(3, 3), (200, 199), (0, 0)] {
            let error = found(version, oldest).expect_err("it cannot be read");
            assert!(
                error.contains(&format!("it is of version {version}, and this is 2")),
                "{error}"
            );
        }
        state_file.words[VERSION_WORD].store(7, Ordering::Relaxed);
        assert!(
            StateFile::open(state_file.file().try_clone().expect("dup")).is_err(),
            "it is nothing of fdpassd"
        );
        assert!(StateFile::open(sealed_file(c"x", 4096).expect("memfd")).is_err());
        assert!(StateFile::open(File::open("/dev/null").expect("open")).is_err());
    }

    #[test]
    fn a_drained_daemon_of_0_1_0_leaves_clients_in_the_queue() {
        let now = Instant::now();
        let drain = |text: &[u8]| SavedState::from_json(text).expect("JSON").drain(now);
        let queue = DrainState::without_notice(DrainMode::Queue);
        assert_eq!(drain(br#"{"is_drained":true}"#), Some(queue));
        assert_eq!(drain(br#"{"is_drained":false}"#), None);
        let refuse = br#"{"is_drained":true,"drain":{"mode":"refuse"}}"#;
        assert!(drain(refuse).is_some_and(DrainState::refuses));
        // A mode that is not known yet.
        assert_eq!(
            drain(br#"{"is_drained":true,"drain":{"mode":"x"}}"#),
            Some(queue)
        );
    }

    #[test]
    fn only_unreadable_members_are_ignored() {
        let text =
            br#"{"events":7,"log_level":"shout","new":{"a":[1]},"seats":[{"spawned":3}],"count":[],"tally":{"sum":5}}"#;
        let read = SavedState::from_json(text).expect("it is JSON");
        assert_eq!((read.events, read.log_level, read.count), (7, None, None));
        assert_eq!((read.seats[0].spawned, read.tally.sum), (3, 5));
        assert!(SavedState::from_json(b"[]").is_err());
    }
}
