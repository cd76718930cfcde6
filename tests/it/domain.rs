//! What a run leaves, rule by rule: the files to the byte, the state after each record, the order of
//! what happens in a step, and what opening makes of a run that lost its recorder.
//!
//! [`INDEX`] names every rule and the tests that hold it, here and elsewhere; a test holds the index.

#![expect(clippy::disallowed_methods, reason = "looks at the disk behind the library's back")]

use crate::cli::{Place, processes_of, text, wait_until};
use runwal::clock::{Clock, ManualClock, SeededEntropy};
use runwal::disk::{Disk, File, Kind, Open, Session, Stat};
use runwal::engine::{Engine, Log, NewRecord, Options, Report, World};
use runwal::error::{Error, Result};
use runwal::position::{Seq, Time};
use runwal::projection::LogFile;
use runwal::record::{
    Body, Channel, Checkpoint, FileFormat, Id, JsonText, Level, Lifecycle, ParentRun, Record, Replay,
    RunName, StatePatch, Status, Tick,
};
use runwal::run::{
    Answer, Cancel, Checkpoints, Deferred, Discard, End, Executor, ExecutorError, Outcome, Output,
    ProcessOptions, Recorder, RunRequest, Step, record_process, run_step,
};
use runwal::{ErrorKind, JournalOptions, Verdict};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Every rule about runs, in groups, and the tests that hold it: those of this folder as
/// `file::name`, those beside the code as `src/path::name`.
pub(crate) type Rules = &'static [(&'static str, &'static [&'static str])];

const INDEX: &[(&str, Rules)] = &[
    (
        "the data directory",
        &[
            (
                "files follow from the journal alone, and come back from it to the byte",
                &[
                    "domain::whatever_but_the_journal_is_deleted_comes_back_to_the_byte_save_what_was_the_workers",
                    "cli::what_becomes_of_projected_files_is_noticed_and_mended",
                    "decoder::what_was_published_is_what_the_journal_says",
                ],
            ),
            (
                "every folder and file has its name and place",
                &["domain::each_thing_in_the_data_directory_has_its_place"],
            ),
            (
                "the cache can be lost",
                &[
                    "cli::what_becomes_of_projected_files_is_noticed_and_mended",
                    "surroundings::what_cannot_be_noted_in_the_cache_stops_no_recording",
                ],
            ),
            (
                "the cache notes up to where files are projected",
                &["domain::opening_looks_only_at_runs_behind_what_is_noted_as_projected"],
            ),
            (
                "what the worker leaves for itself is listed and is no projection",
                &[
                    "domain::whatever_but_the_journal_is_deleted_comes_back_to_the_byte_save_what_was_the_workers",
                    "word::artifacts_are_listed_with_size_and_digest_and_hostile_ones_are_not",
                ],
            ),
            (
                "a tick's line stands in the file of the UTC day it was created",
                &[
                    "engine::ticks_stand_in_the_file_of_their_day_in_the_order_of_the_calls",
                    "domain::times_in_files_are_cut_to_milliseconds",
                ],
            ),
            (
                "JSON files: UTF-8, indent of two, camelCase keys in a fixed order, a newline at the end",
                &[
                    "domain::the_state_has_its_keys_in_order_and_null_for_what_is_not_known",
                    "domain::the_request_has_its_keys_in_order_and_stays_as_it_was_prepared",
                    "domain::a_summary_holds_the_request_and_the_state_in_front_of_itself",
                ],
            ),
            (
                "JSONL lines: compact, snake_case keys, the fixed ones first",
                &[
                    "domain::a_line_of_the_timed_jobs_is_compact_with_its_details_behind_the_seven_keys",
                    "src/projection/ticks::a_detail_replaces_nothing_and_is_not_lost",
                ],
            ),
            (
                "times: UTC, milliseconds, cut",
                &[
                    "domain::times_in_files_are_cut_to_milliseconds",
                    "src/position::times_are_cut_not_rounded_also_before_1970",
                ],
            ),
            (
                "files are replaced whole or grow at a known end",
                &[
                    "domain::projected_files_are_replaced_whole_or_grow_at_their_end",
                    "disk::the_operating_system_conforms",
                ],
            ),
            (
                "lines and checkpoints are there before the state that counts them",
                &["domain::no_state_tells_of_a_line_or_checkpoint_that_is_not_there_yet"],
            ),
            (
                "the state: keys, order, null for what is not known",
                &["domain::the_state_has_its_keys_in_order_and_null_for_what_is_not_known"],
            ),
            (
                "the state counts the last event by its sequence and the last checkpoint by its number",
                &["domain::updated_at_is_when_the_last_record_of_any_kind_was_created"],
            ),
            (
                "a summary does not count itself",
                &["domain::a_summary_holds_the_request_and_the_state_in_front_of_itself"],
            ),
            (
                "a run begins when it was asked for, else when it is prepared; it never lasts less than nothing",
                &["domain::a_run_lasts_from_when_it_was_asked_for_and_never_less_than_nothing"],
            ),
            (
                "the worker log: one event, one line, whatever stands in it",
                &[
                    "domain::a_line_of_the_worker_log_is_one_line_whatever_stands_in_its_event",
                    "src/record/json::a_line_stays_one_line_and_can_be_told_apart",
                    "src/record/json::escaped_json_is_the_same_json",
                ],
            ),
        ],
    ),
    (
        "records",
        &[
            (
                "a record has stream, sequence, position, two times, kind and version",
                &[
                    "domain::a_record_knows_its_stream_its_places_and_both_its_times",
                    "decoder::both_decoders_read_a_rich_journal_alike",
                    "crash::every_crash_keeps_the_promises",
                    "format::the_example_in_the_format_text_is_what_is_written",
                ],
            ),
            (
                "a time of creation may be given, else it is that of appending; order is the journal's",
                &[
                    "domain::a_record_knows_its_stream_its_places_and_both_its_times",
                    "domain::updated_at_is_when_the_last_record_of_any_kind_was_created",
                ],
            ),
            (
                "the request has everything that was asked for, and does not change",
                &[
                    "domain::the_request_has_its_keys_in_order_and_stays_as_it_was_prepared",
                    "hostile::the_environment_is_recorded_by_name_only",
                    "hostile::arguments_that_are_no_text_are_recorded_as_they_are",
                ],
            ),
            (
                "an event has one of four levels and any JSON",
                &[
                    "domain::a_line_of_the_worker_log_is_one_line_whatever_stands_in_its_event",
                    "decoder::both_decoders_read_a_rich_journal_alike",
                ],
            ),
            (
                "output is kept byte for byte",
                &[
                    "domain::bytes_of_the_channels_are_kept_as_they_came",
                    "workers::workers_are_recorded_as_they_are",
                    "cli::output_and_exit_code_are_those_of_the_command",
                ],
            ),
            (
                "a patch: absent stays, null clears",
                &["domain::a_patch_changes_what_it_names_and_null_takes_it_back"],
            ),
            (
                "updatedAt is that of the last record, or a patch's own",
                &["domain::updated_at_is_when_the_last_record_of_any_kind_was_created"],
            ),
            (
                "a tick has its fields, and becomes a line",
                &[
                    "domain::a_line_of_the_timed_jobs_is_compact_with_its_details_behind_the_seven_keys",
                    "engine::ticks_stand_in_the_file_of_their_day_in_the_order_of_the_calls",
                ],
            ),
            (
                "events of a step come in their order, others may come between them",
                &[
                    "steps::lifecycle_events_come_in_their_order",
                    "steps::an_executor_records_what_it_does_and_leaves_files",
                    "domain::behind_the_exit_stand_git_diff_test_output_and_the_end_in_this_order",
                ],
            ),
        ],
    ),
    (
        "how a run ends",
        &[
            (
                "each outcome has its terminal event, level and status",
                &[
                    "steps::each_outcome_has_its_terminal_event_level_and_status",
                    "word::the_file_decides_and_without_it_the_exit_code_does",
                    "domain::a_run_without_an_end_gets_what_is_missing_in_one_batch",
                ],
            ),
            (
                "each way to fail is a failed run: code, signal, time, no start, error, panic",
                &[
                    "workers::workers_are_recorded_as_they_are",
                    "workers::what_cannot_be_started_is_a_failed_run",
                    "workers::a_worker_that_does_not_hear_is_ended_after_its_grace_with_all_it_started",
                    "steps::an_error_or_a_panic_of_an_executor_is_a_failed_step",
                    "cli::every_way_to_end_has_its_exit_code",
                ],
            ),
            ("from prepared over running to an end", &["cli::state_of_any_moment_is_what_it_was_then"]),
            (
                "a deferred run is prepared again, and over; there is one terminal event",
                &[
                    "domain::a_run_that_was_put_off_is_over_and_its_state_stays",
                    "crash::every_crash_keeps_the_promises",
                ],
            ),
            (
                "a patch behind the end is refused with a typed error",
                &[
                    "domain::what_follows_the_end_moves_updated_at_past_it_and_nothing_else",
                    "engine::a_run_exists_once_and_its_state_ends_with_it",
                ],
            ),
            (
                "checkpoints may follow the end, and move updatedAt past it",
                &["domain::what_follows_the_end_moves_updated_at_past_it_and_nothing_else"],
            ),
            (
                "the next attempt is another run",
                &["domain::the_next_attempt_is_another_run_and_the_first_stays_as_it_was"],
            ),
            (
                "a run id that exists cannot be prepared again",
                &[
                    "domain::the_next_attempt_is_another_run_and_the_first_stays_as_it_was",
                    "engine::a_run_exists_once_and_its_state_ends_with_it",
                    "steps::a_second_preparation_of_a_run_executes_nothing",
                ],
            ),
        ],
    ),
    (
        "checkpoints",
        &[
            (
                "names: four digits at least, dashes, any type",
                &["domain::names_of_checkpoint_files_have_dashes_and_as_many_digits_as_they_need"],
            ),
            (
                "three formats, two ways back; text ends in a newline; nothing is an empty file",
                &["domain::text_ends_in_a_newline_a_patch_stays_and_nothing_is_an_empty_file"],
            ),
            (
                "long content spans records and appears whole",
                &[
                    "engine::content_above_the_record_limit_appears_whole",
                    "commands::a_checkpoint_in_parts_is_one_and_one_without_its_end_is_none",
                    "domain::the_file_of_a_checkpoint_in_parts_appears_with_its_last",
                ],
            ),
            ("a summary", &["domain::a_summary_holds_the_request_and_the_state_in_front_of_itself"]),
            (
                "a log tail: which lines, in which order, how many",
                &[
                    "domain::a_log_tail_has_the_last_lines_of_all_logs_as_the_journal_has_them",
                    "domain::a_log_tail_has_two_hundred_lines_and_64_kib_at_most",
                    "domain::a_log_tail_is_as_long_as_it_is_asked_to_be",
                    "src/projection/logs::a_flood_leaves_what_its_lines_one_by_one_would",
                    "src/projection/logs::lines_stand_in_the_order_in_which_they_end",
                ],
            ),
            (
                "a git diff: all of the working tree, and the way back",
                &[
                    "src/run/git/tests/mod::whatever_happened_comes_back_and_the_repository_stays_as_it_is",
                    "git::the_command_restores_the_last_diff_and_any_checkpoint",
                    "git::whatever_is_not_a_clean_checkout_of_the_base_is_refused_untouched",
                ],
            ),
            (
                "test output",
                &[
                    "word::the_tests_own_output_becomes_a_checkpoint",
                    "domain::behind_the_exit_stand_git_diff_test_output_and_the_end_in_this_order",
                ],
            ),
        ],
    ),
    (
        "running a step",
        &[
            (
                "preparing: its records, their order, the files; without checkpoints neither they nor their slot",
                &[
                    "domain::preparing_records_four_things_at_once_and_makes_every_file",
                    "domain::a_run_lasts_from_when_it_was_asked_for_and_never_less_than_nothing",
                    "steps::lifecycle_events_come_in_their_order",
                ],
            ),
            (
                "worker_started tells what was started, and the run is running",
                &[
                    "domain::the_events_of_a_worker_tell_what_it_was_and_how_it_ended",
                    "domain::the_events_of_an_executor_are_those_of_a_worker_without_a_process",
                ],
            ),
            (
                "output is journaled as it comes, in the order it was read",
                &[
                    "cli::output_is_followed_while_it_comes_and_ends_with_the_run",
                    "commands::the_two_channels_keep_their_order_where_they_meet_again",
                ],
            ),
            (
                "a timeout asks the whole group, then ends it",
                &[
                    "workers::a_worker_that_does_not_hear_is_ended_after_its_grace_with_all_it_started",
                    "cli::a_timeout_ends_the_worker_also_while_nobody_reads_our_output",
                ],
            ),
            (
                "whether a step is cancelled or its future dropped, nothing of it runs on",
                &[
                    "steps::a_dropped_process_leaves_no_process_behind",
                    "steps::a_dropped_step_is_ended_as_cancelled",
                    "workers::a_signal_to_the_recorder_is_handed_on_and_the_run_is_cancelled",
                ],
            ),
            (
                "worker_exited: code or signal, what it took, what it left; info for 0, else error",
                &[
                    "domain::the_events_of_a_worker_tell_what_it_was_and_how_it_ended",
                    "domain::the_events_of_an_executor_are_those_of_a_worker_without_a_process",
                    "workers::how_long_and_how_much_it_took_is_recorded",
                ],
            ),
            (
                "then the git diff, then the test output, then the end",
                &["domain::behind_the_exit_stand_git_diff_test_output_and_the_end_in_this_order"],
            ),
            (
                "terminal event, patch and log tail are one batch, of one time",
                &[
                    "domain::terminal_event_patch_and_log_tail_are_one_batch_of_one_time",
                    "crash::every_crash_keeps_the_promises",
                ],
            ),
            (
                "what the terminal event tells, and in which order",
                &[
                    "domain::terminal_event_patch_and_log_tail_are_one_batch_of_one_time",
                    "steps::what_an_answer_says_wins_over_what_follows",
                    "domain::the_result_of_a_step_tells_all_that_came_of_it",
                ],
            ),
            (
                "a checkpoint can be taken at any moment",
                &[
                    "steps::an_executor_records_what_it_does_and_leaves_files",
                    "domain::what_follows_the_end_moves_updated_at_past_it_and_nothing_else",
                ],
            ),
            (
                "the result, and in which order it lists files",
                &[
                    "domain::the_result_of_a_step_tells_all_that_came_of_it",
                    "steps::an_executor_records_what_it_does_and_leaves_files",
                ],
            ),
        ],
    ),
    (
        "the git diff",
        &[
            (
                "neither the data directory nor ignored files",
                &[
                    "src/run/git/tests/places::the_data_directory_never_appears",
                    "src/run/git/tests/mod::whatever_happened_comes_back_and_the_repository_stays_as_it_is",
                ],
            ),
            (
                "the user's repository is not touched",
                &[
                    "src/run/git/tests/mod::whatever_happened_comes_back_and_the_repository_stays_as_it_is",
                    "src/run/git/tests/mod::settings_change_no_patch_and_run_nothing",
                ],
            ),
            (
                "above a limit of one's choice it is skipped with a word",
                &[
                    "src/run/git/tests/places::what_is_too_much_or_takes_too_long_is_skipped_with_a_word",
                    "domain::behind_the_exit_stand_git_diff_test_output_and_the_end_in_this_order",
                ],
            ),
        ],
    ),
    (
        "executors and workers",
        &[
            (
                "what an answer leaves out follows from the outcome; disagreement is an error",
                &[
                    "steps::each_outcome_has_its_terminal_event_level_and_status",
                    "steps::what_an_answer_says_wins_over_what_follows",
                ],
            ),
            (
                "returned lines are a chunk each, stdout first; a process's bytes stay",
                &[
                    "steps::returned_lines_become_a_chunk_each_stdout_first",
                    "workers::workers_are_recorded_as_they_are",
                ],
            ),
            (
                "the deferred executor puts a step off",
                &[
                    "steps::lifecycle_events_come_in_their_order",
                    "domain::a_run_that_was_put_off_is_over_and_its_state_stays",
                ],
            ),
            (
                "a journal that fails: the worker is stopped, or goes on from the command line",
                &[
                    "domain::a_journal_that_fails_stops_the_worker_and_is_the_error_of_the_step",
                    "cli::when_the_journal_fails_the_worker_goes_on_and_the_end_says_so",
                ],
            ),
            (
                "what a worker finds in its environment",
                &["word::a_worker_finds_its_run_its_artifacts_and_where_to_tell_its_outcome"],
            ),
            (
                "the file of its outcome decides, else the exit code",
                &[
                    "word::the_file_decides_and_without_it_the_exit_code_does",
                    "word::hostile_outcome_files_are_refused_with_a_word",
                    "word::a_worker_that_was_ended_does_not_decide",
                ],
            ),
            (
                "who ends well may leave processes running: they are let be, and told",
                &["workers::what_a_worker_leaves_running_stays_and_is_named"],
            ),
            (
                "processes of a recorder that was killed are found and ended",
                &[
                    "domain::what_a_killed_recorder_leaves_is_found_by_group_and_by_environment_and_ended",
                    "domain::what_killed_recorders_leave_is_asked_to_end_before_anything_is_waited_for",
                    "cli::a_recorder_killed_at_any_moment_loses_nothing_it_promised",
                ],
            ),
        ],
    ),
    (
        "after a crash",
        &[
            (
                "a torn tail is set aside, and nothing that was promised with it",
                &[
                    "cli::a_torn_tail_is_told_and_set_aside_and_reading_changes_nothing",
                    "crash::every_crash_keeps_the_promises",
                    "cli::lost_records_are_refused_until_they_are_given_up",
                ],
            ),
            (
                "a run of a dead recorder gets what is missing, in one batch",
                &["domain::a_run_without_an_end_gets_what_is_missing_in_one_batch"],
            ),
            (
                "one whose recorder is alive is left",
                &["engine::a_recorder_dropped_without_an_end_is_ended_by_the_next_engine"],
            ),
            ("only if it is as it was seen", &["domain::a_run_is_ended_only_as_it_was_seen"]),
            (
                "files behind the noted position are mended by opening, the others by a rebuild",
                &[
                    "domain::opening_looks_only_at_runs_behind_what_is_noted_as_projected",
                    "domain::files_that_are_ahead_of_their_journal_are_brought_back_to_it",
                ],
            ),
            (
                "whoever opens is told what was found and done",
                &[
                    "domain::a_run_without_an_end_gets_what_is_missing_in_one_batch",
                    "cli::a_torn_tail_is_told_and_set_aside_and_reading_changes_nothing",
                ],
            ),
            (
                "a second time changes nothing",
                &[
                    "domain::a_run_without_an_end_gets_what_is_missing_in_one_batch",
                    "cli::a_recorder_killed_at_any_moment_loses_nothing_it_promised",
                    "crash::every_crash_keeps_the_promises",
                ],
            ),
            (
                "the next attempt goes on from the last checkpoint",
                &[
                    "domain::a_conductor_goes_on_where_an_interrupted_run_was",
                    "attempt::a_run_whose_recorder_was_killed_is_gone_on_with_where_its_last_diff_was",
                    "attempt::attempts_follow_one_another_each_from_what_the_last_one_left",
                    "attempt::the_command_finds_what_an_attempt_goes_on_from",
                ],
            ),
        ],
    ),
];

#[test]
fn the_index_names_tests_that_there_are() {
    check_index(INDEX, "domain", "the_index_names_tests_that_there_are");
}

/// Every test that an index names exists, and every test of the index's own file is named, but for
/// the one that looks.
pub(crate) fn check_index(index: &[(&str, Rules)], own: &str, looks: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = |file: &str| -> BTreeSet<String> {
        let path = if file.starts_with("src/") { root.join(file) } else { root.join("tests/it").join(file) };
        let text = fs::read_to_string(path.with_extension("rs")).unwrap_or_default();
        let mut found = BTreeSet::new();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            if let Some((_, rest)) =
                line.split_once("fn ").filter(|(before, _)| ["", "async "].contains(before))
            {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.extend(is_test.then_some(name));
                is_test = false;
            }
        }
        found
    };
    let mut known: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut missing = Vec::new();
    let mut unnamed = tests(own);
    assert!(unnamed.remove(looks));
    for (rule, held_by) in index.iter().flat_map(|(_, rules)| *rules) {
        assert!(!held_by.is_empty(), "nothing holds: {rule}");
        for test in *held_by {
            let (file, name) = test.split_once("::").unwrap();
            if !known.entry(file).or_insert_with(|| tests(file)).contains(name) {
                missing.push(format!("{test}, for: {rule}"));
            }
            if file == own {
                unnamed.remove(name);
            }
        }
    }
    assert_eq!((missing, unnamed), (Vec::new(), BTreeSet::new()), "missing, and without a rule");
}

/// 2026-03-22T00:13:40.123456789Z.
const START: i64 = 1_774_138_420_123_456_789;
/// How a file shows it.
const SHOWN: &str = "2026-03-22T00:13:40.123Z";

/// A data directory whose time is the test's.
struct Bench {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    opened: Cell<u64>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, clock: Arc::new(ManualClock::new(Time(START))), opened: Cell::new(0) }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn world(&self) -> World {
        self.opened.set(self.opened.get() + 1);
        let entropy = Arc::new(SeededEntropy::new(self.opened.get()));
        World { clock: self.clock.clone(), entropy, ..World::create(&self.data()).unwrap() }
    }

    fn reopen(&self) -> (Engine, Report) {
        Engine::open_in(self.world(), Options::default()).unwrap()
    }

    fn open(&self) -> Engine {
        self.reopen().0
    }

    /// An engine on a disk that is watched.
    fn open_watched(&self) -> (Engine, Arc<Watch>) {
        self.open_watched_in(self.world())
    }

    fn open_watched_in(&self, world: World) -> (Engine, Arc<Watch>) {
        let watch = Arc::new(Watch { root: self.data(), ..Watch::default() });
        let disk = Arc::new(Watched { disk: Arc::clone(&world.disk), watch: Arc::clone(&watch) });
        (Engine::open_in(World { disk, ..world }, Options::default()).unwrap().0, watch)
    }

    /// Lets so many milliseconds pass.
    fn pass(&self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.data().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn file(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.data().join(name).exists()
    }

    fn state(&self, run: &str) -> Value {
        serde_json::from_slice(&self.bytes(&format!("runs/t/{run}/state.json"))).unwrap()
    }

    fn records(&self, run: &str) -> Vec<Record> {
        let mut log = Log::open(self.data()).unwrap();
        let info = log.resolve(&format!("t/{run}")).unwrap();
        let mut found = Vec::new();
        let mut keep = |record: &Record| {
            found.push(record.clone());
            Ok(true)
        };
        assert_eq!(log.stream(info.stream, Seq(1), &mut keep).unwrap(), []);
        found
    }

    fn batches(&self) -> u64 {
        Log::open(self.data()).unwrap().info().unwrap().batches
    }

    /// Everything a projection feeds, by name.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for part in ["runs", "timed-jobs"] {
            collect(&self.data(), &self.data().join(part), &mut found);
        }
        found
    }
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
}

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

fn request(run: &str) -> RunRequest {
    RunRequest::new(id("t"), id(run), id("s"))
}

fn prepare(engine: &Engine, run: &str) -> Recorder {
    Recorder::prepare(engine, request(run)).unwrap()
}

fn note(message: &str) -> Lifecycle {
    Lifecycle::new("note", Level::Info, message)
}

fn done() -> End {
    End::new(Outcome::Completed, "Done.").exit_code(0)
}

fn published(engine: &Engine, run: &Recorder) {
    engine.wait_published(&run.last_receipt()).unwrap();
}

/// A record in a word: its kind, or the type of its event.
fn word(record: &Record) -> String {
    match &record.body {
        Body::Lifecycle(event) => event.event.clone(),
        Body::Checkpoint(checkpoint) => format!("checkpoint {}", checkpoint.kind),
        other => other.kind_name().to_owned(),
    }
}

fn words(records: &[Record]) -> Vec<String> {
    records.iter().map(word).collect()
}

fn event<'r>(records: &'r [Record], kind: &str) -> &'r Lifecycle {
    let events = records.iter().filter_map(|record| match &record.body {
        Body::Lifecycle(event) => Some(event),
        _ => None,
    });
    events.into_iter().find(|event| event.event == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

fn keys(data: &JsonText) -> Vec<String> {
    data.members().unwrap().into_iter().map(|(key, _)| key).collect()
}

fn part(number: u32, kind: &str, total_len: u64, content: &[u8], more: bool) -> NewRecord {
    let body = Body::Checkpoint(Checkpoint {
        number,
        kind: kind.to_owned(),
        format: FileFormat::Json,
        replay: Replay::None,
        summary: "One.".to_owned(),
        total_len,
        content: content.to_vec(),
    });
    NewRecord { more, ..body.into() }
}

fn tick(stage: &str, details: &str) -> Tick {
    Tick {
        batch_id: "timed-jobs-1-1".to_owned(),
        runner: "health".to_owned(),
        stage: stage.to_owned(),
        result: None,
        error: None,
        duration_ms: Some(12),
        details: JsonText::parse(details).unwrap(),
    }
}

/// An executor that is a function.
struct By<F>(F);

impl<F> Executor for By<F>
where
    F: Fn(&mut Step<'_>) -> Result<Answer, ExecutorError> + Send + Sync,
{
    fn execute(&self, step: &mut Step<'_>) -> Result<Answer, ExecutorError> {
        (self.0)(step)
    }
}

// --- A disk that tells what is done on it ---

/// What a reader would have found at the moment a `state.json` appeared.
#[derive(Debug)]
struct Moment {
    state: Value,
    worker_lines: usize,
    checkpoints: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Watch {
    root: PathBuf,
    /// One for each `state.json` of the run `t/r` that took its place.
    moments: Mutex<Vec<Moment>>,
    /// What no reader may see happen to a file under its own name.
    wrong: Mutex<Vec<String>>,
    /// Whether the journal's syncs fail from now on.
    failing: AtomicBool,
}

impl Watch {
    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    fn look(&self, from: &str) {
        let run = self.root.join("runs/t/r");
        let state = serde_json::from_slice(&fs::read(self.root.join(from)).unwrap()).unwrap();
        let log = fs::read(run.join("worker.log")).unwrap_or_default();
        let taken = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
        let checkpoints = taken.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let worker_lines = log.iter().filter(|b| **b == b'\n').count();
        self.moments.lock().unwrap().push(Moment { state, worker_lines, checkpoints });
    }
}

#[derive(Debug)]
struct Watched {
    disk: Arc<dyn Disk>,
    watch: Arc<Watch>,
}

/// Whether a name is that of a projected file, not of one that is being made.
fn is_projected(name: &str) -> bool {
    (name.starts_with("runs/") || name.starts_with("timed-jobs/"))
        && !name.contains("/.tmp-")
        && !name.contains("/artifacts/")
}

impl Disk for Watched {
    fn open(&self, name: &str, how: Open) -> Result<Arc<dyn File>> {
        if is_projected(name) {
            let makes = matches!(how, Open::CreateNew | Open::WriteOrCreate);
            let writes =
                how == Open::Write && !LogFile::ALL.iter().any(|log| name.ends_with(log.file_name()));
            if makes || writes {
                self.watch.complain(format!("{name} is opened for {how:?}"));
            }
        }
        let file = self.disk.open(name, how)?;
        Ok(Arc::new(WatchedFile { name: name.to_owned(), file, watch: Arc::clone(&self.watch) }))
    }
    fn create_dir(&self, name: &str) -> Result<bool> {
        self.disk.create_dir(name)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> Result<bool> {
        if to == "runs/t/r/state.json" {
            self.watch.look(from);
        }
        self.disk.rename(from, to, replace)
    }
    fn remove(&self, name: &str) -> Result<()> {
        if is_projected(name) {
            self.watch.complain(format!("{name} is removed"));
        }
        self.disk.remove(name)
    }
    fn list(&self, name: &str, visit: &mut dyn FnMut(&str, Kind)) -> Result<()> {
        self.disk.list(name, visit)
    }
    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        self.disk.stat(name)
    }
    fn sync_dir(&self, name: &str) -> Result<()> {
        self.disk.sync_dir(name)
    }
    fn sync_all(&self) -> Result<()> {
        self.disk.sync_all()
    }
    fn path(&self) -> Option<PathBuf> {
        self.disk.path()
    }
    fn session(&self) -> Result<Session> {
        self.disk.session()
    }
    fn unreliable(&self) -> Result<Option<&'static str>> {
        self.disk.unreliable()
    }
}

#[derive(Debug)]
struct WatchedFile {
    name: String,
    file: Arc<dyn File>,
    watch: Arc<Watch>,
}

impl File for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if is_projected(&self.name) && self.file.stat()?.len != offset {
            self.watch.complain(format!("{} is written to at {offset}", self.name));
        }
        self.file.write_at(bytes, offset)
    }
    fn sync(&self) -> Result<()> {
        if self.name.starts_with("journal/") && self.watch.failing.load(Ordering::SeqCst) {
            return Err(Error::io("syncing", std::io::Error::from_raw_os_error(5)));
        }
        self.file.sync()
    }
    fn set_len(&self, len: u64) -> Result<()> {
        if is_projected(&self.name) {
            self.watch.complain(format!("{} is cut", self.name));
        }
        self.file.set_len(len)
    }
    fn stat(&self) -> Result<Stat> {
        self.file.stat()
    }
    fn try_lock(&self) -> Result<bool> {
        self.file.try_lock()
    }
    fn unlock(&self) -> Result<()> {
        self.file.unlock()
    }
    fn drop_cache(&self) -> Result<()> {
        self.file.drop_cache()
    }
}

// --- The data directory ---

#[test]
fn each_thing_in_the_data_directory_has_its_place() {
    let bench = Bench::new();
    let engine = bench.open();
    let leaves = By(|step: &mut Step<'_>| {
        fs::write(step.artifacts().unwrap().join("report"), "abc")?;
        Ok(Answer::new(Outcome::Completed, "Done."))
    });
    run_step(&engine, request("r"), &leaves, &Checkpoints::default(), &Cancel::new().unwrap()).unwrap();
    engine.append_tick(tick("started", "{}"), None).unwrap();
    assert!(fs::read_dir(bench.data().join("journal/live")).unwrap().count() == 1, "a recorder is alive");
    engine.close().unwrap();
    bench.open().close().unwrap();
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(bench.data().join(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with("spare-"));
        names.sort();
        names
    };
    assert_eq!(names("."), ["cache", "journal", "runs", "timed-jobs"]);
    assert_eq!(names("journal"), ["0000000001.seg", "live", "lock", "mark"]);
    assert!(names("journal/live").is_empty(), "nobody is left alive");
    assert_eq!(names("timed-jobs"), ["2026-03-22.jsonl"]);
    let run =
        ["artifacts", "checkpoints", "meta.json", "state.json", "stderr.log", "stdout.log", "worker.log"];
    assert_eq!(names("runs/t/r"), run);
    assert_eq!(names("runs/t/r/checkpoints"), ["0001-summary.json", "0002-log-tail.txt"]);
    assert_eq!(names("runs/t/r/artifacts"), ["report"]);
}

/// Runs and ticks alike; what the worker left for itself is nobody's projection.
#[test]
fn whatever_but_the_journal_is_deleted_comes_back_to_the_byte_save_what_was_the_workers() {
    let bench = Bench::new();
    let engine = bench.open();
    let leaves = By(|step: &mut Step<'_>| {
        step.chunk(Channel::Stdout, b"\xff\0out")?;
        fs::write(step.artifacts().unwrap().join("report"), "abc")?;
        Ok(Answer::new(Outcome::Completed, "Done."))
    });
    for run in ["r", "r2"] {
        run_step(&engine, request(run), &leaves, &Checkpoints::default(), &Cancel::new().unwrap()).unwrap();
    }
    engine.append_tick(tick("started", r#"{"a":1}"#), None).unwrap();
    engine.close().unwrap();
    bench.open().close().unwrap();
    let mut wanted = bench.files();
    assert!(wanted.contains_key(Path::new("timed-jobs/2026-03-22.jsonl")), "{wanted:?}");
    // The worker's own file may be anything.
    fs::write(bench.data().join("runs/t/r2/artifacts/report"), "edited").unwrap();
    wanted.insert("runs/t/r2/artifacts/report".into(), b"edited".to_vec());
    let (engine, report) = bench.reopen();
    engine.close().unwrap();
    assert_eq!(report.rewritten_files, 0, "what the worker left is not looked at");
    for what in ["runs/t/r", "timed-jobs", "cache"] {
        fs::remove_dir_all(bench.data().join(what)).unwrap();
    }
    wanted.remove(Path::new("runs/t/r/artifacts/report"));
    bench.open().close().unwrap();
    assert!(bench.files() == wanted, "{:?}", bench.files().keys());
    assert!(bench.has("runs/t/r/artifacts"), "its folder is there all the same");
}

const PREPARED: &str = r#"{
  "taskId": "t",
  "stepId": "s",
  "runId": "r",
  "attempt": 1,
  "status": "prepared",
  "startedAt": "2026-03-22T00:13:40.123Z",
  "updatedAt": "2026-03-22T00:13:40.123Z",
  "finishedAt": null,
  "summary": null,
  "exitCode": null,
  "signal": null,
  "pid": null,
  "lastEventSeq": 4,
  "lastCheckpointSeq": 1
}
"#;

const COMPLETED: &str = r#"{
  "taskId": "t",
  "stepId": "s",
  "runId": "r",
  "attempt": 1,
  "status": "completed",
  "startedAt": "2026-03-22T00:13:40.123Z",
  "updatedAt": "2026-03-22T00:13:41.623Z",
  "finishedAt": "2026-03-22T00:13:41.623Z",
  "summary": "Done \"é\".",
  "exitCode": 0,
  "signal": null,
  "pid": null,
  "lastEventSeq": 5,
  "lastCheckpointSeq": 2
}
"#;

#[test]
fn the_state_has_its_keys_in_order_and_null_for_what_is_not_known() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    assert_eq!(bench.file("runs/t/r/state.json"), PREPARED);
    bench.pass(1_500);
    run.finish(End::new(Outcome::Completed, "Done \"é\".").exit_code(0)).unwrap();
    assert_eq!(bench.file("runs/t/r/state.json"), COMPLETED);
    engine.close().unwrap();
}

/// The request of a run, with `with` filled in.
fn meta(bench: &Bench, engine: &Engine, with: &[(&str, &str)]) -> String {
    let hex = |bytes: [u8; 16]| format!("{:032x}", u128::from_be_bytes(bytes));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(hex(engine.boot_id()), boot.trim().replace('-', ""));
    assert!(bench.has("journal"));
    let (recorder, boot) = (hex(engine.recorder_id()), hex(engine.boot_id()));
    let mut values: Vec<(String, String)> = [
        ("taskId", "\"t\""),
        ("stepId", "\"s\""),
        ("runId", "\"r\""),
        ("attempt", "1"),
        ("stepKind", "null"),
        ("workerKind", "null"),
        ("command", "[]"),
        ("workingTree", "null"),
        ("environment", "{}"),
        ("timeoutMs", "null"),
        ("graceMs", "5000"),
        ("checkpoints", "true"),
        ("recorderId", &format!("\"{recorder}\"")),
        ("bootId", &format!("\"{boot}\"")),
        ("controller", "null"),
        ("host", &json!(host.trim()).to_string()),
        ("term", "null"),
        ("labels", "{}"),
        ("parent", "null"),
        ("renderer", "1"),
        ("createdAt", &format!("\"{SHOWN}\"")),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec();
    for (key, value) in with {
        (*value).clone_into(&mut values.iter_mut().find(|(name, _)| name == key).unwrap().1);
    }
    let lines: Vec<_> = values.iter().map(|(key, value)| format!("  \"{key}\": {value}")).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

#[test]
fn the_request_has_its_keys_in_order_and_stays_as_it_was_prepared() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    assert_eq!(bench.file("runs/t/r/meta.json"), meta(&bench, &engine, &[]));
    run.patch(StatePatch { started_at: Some(None), ..StatePatch::default() }).unwrap();
    run.event(note("more")).unwrap();
    run.finish(done()).unwrap();
    assert_eq!(bench.file("runs/t/r/meta.json"), meta(&bench, &engine, &[]));
    engine.close().unwrap();

    let bench = Bench::new();
    let engine = bench.open();
    let full = RunRequest {
        attempt: 2,
        step_kind: Some("build".to_owned()),
        worker_kind: Some("cargo \"é\"".to_owned()),
        command: vec![b"cargo".to_vec(), b"\xff\xfe".to_vec()],
        working_tree: Some(b"/src".to_vec()),
        environment: vec![(b"Z".to_vec(), b"1".to_vec()), (b"A".to_vec(), b"\n".to_vec())],
        timeout_ms: Some(600_000),
        grace_ms: 0,
        checkpoints: false,
        controller: Some("c".to_owned()),
        term: Some(7),
        labels: vec![("ci".to_owned(), "yes".to_owned())],
        parent: Some(ParentRun { name: RunName { task: id("t"), run: id("r0") }, checkpoint: Some(3) }),
        created_at: Some(Time(START - 1_000_000_000)),
        ..request("r")
    };
    Recorder::prepare(&engine, full).unwrap();
    let wanted = [
        ("attempt", "2"),
        ("stepKind", "\"build\""),
        ("workerKind", r#""cargo \"é\"""#),
        ("command", "[\n    \"cargo\",\n    {\n      \"base64\": \"//4=\"\n    }\n  ]"),
        ("workingTree", "\"/src\""),
        ("environment", "{\n    \"Z\": \"1\",\n    \"A\": \"\\n\"\n  }"),
        ("timeoutMs", "600000"),
        ("graceMs", "0"),
        ("checkpoints", "false"),
        ("controller", "\"c\""),
        ("term", "7"),
        ("labels", "{\n    \"ci\": \"yes\"\n  }"),
        ("parent", "{\n    \"taskId\": \"t\",\n    \"runId\": \"r0\",\n    \"checkpoint\": 3\n  }"),
        ("createdAt", "\"2026-03-22T00:13:39.123Z\""),
    ];
    assert_eq!(bench.file("runs/t/r/meta.json"), meta(&bench, &engine, &wanted));
    engine.close().unwrap();
}

/// The state in a summary is the one in front of it: it counts neither itself nor what follows.
#[test]
fn a_summary_holds_the_request_and_the_state_in_front_of_itself() {
    let bench = Bench::new();
    let engine = bench.open();
    prepare(&engine, "r");
    let state = PREPARED
        .replace("\"lastEventSeq\": 4", "\"lastEventSeq\": null")
        .replace("\"lastCheckpointSeq\": 1", "\"lastCheckpointSeq\": null");
    let inner = |text: &str| text.trim_end().replace('\n', "\n  ");
    let request = meta(&bench, &engine, &[]);
    let wanted = format!("{{\n  \"request\": {},\n  \"state\": {}\n}}\n", inner(&request), inner(&state));
    assert_eq!(bench.file("runs/t/r/checkpoints/0001-summary.json"), wanted);
    let records = bench.records("r");
    let Body::Checkpoint(summary) = &records[1].body else { panic!("{records:?}") };
    assert_eq!((summary.number, summary.format, summary.replay), (1, FileFormat::Json, Replay::None));
    engine.close().unwrap();
}

#[test]
fn a_line_of_the_worker_log_is_one_line_whatever_stands_in_its_event() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    bench.pass(7);
    let forged = format!("a\\b\r\n{SHOWN} INFO step_completed Done. {{}}\t\0\u{1b}[31m\u{7f}\u{85}\u{202e}é");
    let data =
        [" { \"b\" : 1.50 , \"a\" : [ null , \"x\\n\u{7f}\u{9b}\" ] } ", "[1e400,-0]", "\"text\"", "null"];
    for (level, data) in Level::ALL.into_iter().zip(data) {
        let message = if level == Level::Debug { forged.clone() } else { format!("{level:?}") };
        run.event(Lifecycle {
            data: JsonText::parse(data).unwrap(),
            ..Lifecycle::new("note", level, message)
        })
        .unwrap();
    }
    published(&engine, &run);
    let at = "2026-03-22T00:13:40.130Z";
    let wanted = [
        format!("{SHOWN} INFO run_prepared Prepared step s of task t. {{\"attempt\":1}}"),
        format!(
            "{SHOWN} DEBUG checkpoint_slot_reserved Reserved a number for the next checkpoint; the last one is 1. \
             {{\"lastCheckpoint\":1}}"
        ),
        format!(
            "{at} DEBUG note a\\\\b\\r\\n{SHOWN} INFO step_completed Done. {{}}\\t\\u{{0}}\\u{{1b}}[31m\\u{{7f}}\\u{{85}}\
             \\u{{202e}}é {{\"b\":1.50,\"a\":[null,\"x\\n\\u007f\\u009b\"]}}"
        ),
        format!("{at} INFO note Info [1e400,-0]"),
        format!("{at} WARN note Warn \"text\""),
        format!("{at} ERROR note Error null"),
    ];
    assert_eq!(bench.file("runs/t/r/worker.log"), wanted.map(|line| line + "\n").concat());
    engine.close().unwrap();
}

/// Half a millisecond before the next second, and before the next day, it is still this one.
#[test]
fn times_in_files_are_cut_to_milliseconds() {
    let bench = Bench::new();
    bench.clock.set_wall(Time::parse("2026-04-01T23:59:59.999999999Z").unwrap());
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    run.finish(done()).unwrap();
    engine.append_tick(tick("started", "{}"), None).unwrap();
    engine.close().unwrap();
    bench.open().close().unwrap();
    let at = "2026-04-01T23:59:59.999Z";
    let state = bench.state("r");
    for key in ["startedAt", "updatedAt", "finishedAt"] {
        assert_eq!(state[key], at, "{key}");
    }
    assert!(bench.file("runs/t/r/worker.log").lines().all(|line| line.starts_with(at)));
    assert!(bench.file("runs/t/r/meta.json").contains(&format!("\"createdAt\": \"{at}\"")));
    assert!(bench.file("timed-jobs/2026-04-01.jsonl").contains(&format!("\"ts\":\"{at}\"")));
}

#[test]
fn a_line_of_the_timed_jobs_is_compact_with_its_details_behind_the_seven_keys() {
    let bench = Bench::new();
    let engine = bench.open();
    engine
        .append_tick(tick("runner_completed", r#" { "checked" : 3, "aSide" : { "x" : [ ] } } "#), None)
        .unwrap();
    let failed =
        Tick { error: Some("no \"way\"\n".to_owned()), duration_ms: None, ..tick("runner_failed", "{}") };
    engine.append_tick(Tick { result: Some("failed".to_owned()), ..failed }, None).unwrap();
    engine.close().unwrap();
    bench.open().close().unwrap();
    let wanted = format!(
        "{{\"batch_id\":\"timed-jobs-1-1\",\"duration_ms\":12,\"error\":null,\"result\":null,\"runner\":\"health\",\
         \"stage\":\"runner_completed\",\"ts\":\"{SHOWN}\",\"checked\":3,\"aSide\":{{\"x\":[]}}}}\n\
         {{\"batch_id\":\"timed-jobs-1-1\",\"duration_ms\":null,\"error\":\"no \\\"way\\\"\\n\",\"result\":\"failed\",\
         \"runner\":\"health\",\"stage\":\"runner_failed\",\"ts\":\"{SHOWN}\"}}\n"
    );
    assert_eq!(bench.file("timed-jobs/2026-03-22.jsonl"), wanted);
}

/// A run with everything that feeds a file, published after each record.
fn busy_run(bench: &Bench, engine: &Engine) {
    let mut run = prepare(engine, "r");
    for n in 0..5_u64 {
        bench.pass(10);
        run.event(note(&format!("{n}"))).unwrap();
        published(engine, &run);
        run.chunk(Channel::Stdout, format!("{n}\n").as_bytes()).unwrap();
        run.chunk(Channel::Stderr, &vec![b'x'; 300_000]).unwrap();
        published(engine, &run);
        let content = vec![b'y'; if n == 3 { 2_500_000 } else { 10 }];
        run.checkpoint("notes", FileFormat::Text, Replay::None, "Notes.", content).unwrap();
        // An event behind a checkpoint, both new to the files.
        run.event(note("behind")).unwrap();
        published(engine, &run);
    }
    run.finish(done()).unwrap();
}

/// Every `state.json` that appeared counted only lines and checkpoints that were there already.
fn assert_reflects_what_is_there(bench: &Bench, watch: &Watch, at_least: usize) {
    let records = bench.records("r");
    let moments = watch.moments.lock().unwrap();
    assert!(moments.len() >= at_least, "{} moments", moments.len());
    for moment in &*moments {
        let upto = moment.state["lastEventSeq"].as_u64().unwrap_or(0);
        let events = records.iter().filter(|r| r.seq.0 <= upto && matches!(r.body, Body::Lifecycle(_)));
        let (told, there) = (events.count(), moment.worker_lines);
        assert!(told <= there, "{there} lines are there, the state tells of {told}: {moment:?}");
        for number in 1..=moment.state["lastCheckpointSeq"].as_u64().unwrap_or(0) {
            let begins = format!("{number:04}-");
            assert!(moment.checkpoints.iter().any(|name| name.starts_with(&begins)), "{begins}: {moment:?}");
        }
    }
    assert_eq!(*watch.wrong.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn no_state_tells_of_a_line_or_checkpoint_that_is_not_there_yet() {
    let bench = Bench::new();
    let (engine, watch) = bench.open_watched();
    busy_run(&bench, &engine);
    engine.close().unwrap();
    assert_reflects_what_is_there(&bench, &watch, 12);
    // The same where all of it is made anew.
    let whole = bench.files();
    for n in 0..2 {
        if n == 0 {
            fs::remove_dir_all(bench.data().join("runs")).unwrap();
        } else {
            for file in bench.files().keys() {
                fs::write(bench.data().join(file), "edited").unwrap();
            }
        }
        let (engine, watch) = bench.open_watched();
        engine.close().unwrap();
        assert_reflects_what_is_there(&bench, &watch, 1);
        assert!(bench.files() == whole);
    }
}

/// As where the journal was put back to what a copy of it had, and the files were not.
#[test]
fn files_that_are_ahead_of_their_journal_are_brought_back_to_it() {
    let bench = Bench::new();
    let (journal, copy) = (bench.data().join("journal"), bench.dir.path().join("copy"));
    let engine = bench.open();
    prepare(&engine, "whole").finish(done()).unwrap();
    let mut ended = prepare(&engine, "ended");
    ended.finish(done()).unwrap();
    let mut left = prepare(&engine, "left");
    left.chunk(Channel::Stdout, b"early\n").unwrap();
    published(&engine, &left);
    let before = bench.files();
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&journal).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    ended.checkpoint("notes", FileFormat::Text, Replay::None, "Notes.", b"late".to_vec()).unwrap();
    left.chunk(Channel::Stdout, b"late\n").unwrap();
    left.finish(done()).unwrap();
    drop((ended, left));
    // So much that what came late stands in sealed segments, and is noted as done.
    let mut more = prepare(&engine, "more");
    for _ in 0..8 {
        more.chunk(Channel::Stdout, &vec![b'x'; 100_000]).unwrap();
    }
    more.finish(done()).unwrap();
    drop(more);
    engine.close().unwrap();
    bench.open().close().unwrap();
    assert_eq!(bench.bytes("runs/t/left/stdout.log"), b"early\nlate\n");
    assert!(bench.has("runs/t/ended/checkpoints/0003-notes.txt"));
    fs::remove_dir_all(&journal).unwrap();
    fs::rename(&copy, &journal).unwrap();
    bench.open().close().unwrap();
    assert_eq!(bench.bytes("runs/t/left/stdout.log"), b"early\n");
    assert_eq!(bench.state("left")["status"], "interrupted");
    for (name, bytes) in before.iter().filter(|(name, _)| !name.starts_with("runs/t/left")) {
        assert!(bench.files().get(name) == Some(bytes), "{} is not what the journal says", name.display());
    }
}

/// Nothing is ever written over, cut or removed under its own name: other bytes come with a new
/// file, and logs grow at their end.
#[test]
fn projected_files_are_replaced_whole_or_grow_at_their_end() {
    let bench = Bench::new();
    let (engine, watch) = bench.open_watched();
    busy_run(&bench, &engine);
    engine.append_tick(tick("started", "{}"), None).unwrap();
    engine.close().unwrap();
    let (engine, again) = bench.open_watched();
    engine.close().unwrap();
    for watch in [watch, again] {
        assert_eq!(*watch.wrong.lock().unwrap(), Vec::<String>::new());
    }
    let left: Vec<_> =
        bench.files().into_keys().filter(|name| name.to_string_lossy().contains(".tmp-")).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "nothing half made is left");
}

// --- Records ---

/// Times in files are those of creation; order is that of the journal.
#[test]
fn a_record_knows_its_stream_its_places_and_both_its_times() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut one = Recorder::prepare(&engine, RunRequest { term: Some(7), ..request("r") }).unwrap();
    let mut two = prepare(&engine, "r2");
    bench.pass(1_000);
    let earlier =
        NewRecord { created_at: Some(Time(START - 1_000_000_000)), ..Body::Lifecycle(note("old")).into() };
    one.append(vec![earlier]).unwrap();
    two.event(note("other")).unwrap();
    one.event(note("new")).unwrap();
    one.finish(done()).unwrap();
    let mut positions = Vec::new();
    for (run, recorder) in [("r", &one), ("r2", &two)] {
        let records = bench.records(run);
        assert!(records.iter().map(|r| r.seq.0).eq(1..=records.len() as u64), "without a gap from 1");
        assert!(records.iter().all(|r| r.stream == recorder.stream()));
        assert_eq!(records[0].term, (run == "r").then_some(7));
        positions.extend(records.iter().map(|r| r.position.0));
    }
    positions.sort_unstable();
    assert!(positions.iter().copied().eq(1..=positions.len() as u64), "one place for each");
    let records = bench.records("r");
    let times: Vec<_> =
        records.iter().map(|r| ((r.time.0 - START) / 1_000_000, r.created_at == r.time)).collect();
    assert_eq!(times[..6], [(0, true), (0, true), (0, true), (0, true), (1_000, false), (1_000, true)]);
    assert_eq!(records[4].created_at, Time(START - 1_000_000_000));
    let log = bench.file("runs/t/r/worker.log");
    let shown: Vec<_> = log.lines().skip(2).take(2).map(|line| &line[17..24]).collect();
    assert_eq!(shown, ["39.123Z", "41.123Z"], "{log}");
    engine.close().unwrap();
}

#[test]
fn bytes_of_the_channels_are_kept_as_they_came() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    let odd: Vec<u8> = (0..=255).chain(*b"\xed\xa0\x80\x1b[31m\r\n\0no newline").collect();
    for piece in odd.chunks(7) {
        run.chunk(Channel::Stdout, piece).unwrap();
    }
    run.chunk(Channel::Stderr, &odd).unwrap();
    run.finish(done()).unwrap();
    engine.close().unwrap();
    assert_eq!(bench.bytes("runs/t/r/stdout.log"), odd);
    assert_eq!(bench.bytes("runs/t/r/stderr.log"), odd);
}

#[test]
fn a_patch_changes_what_it_names_and_null_takes_it_back() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    let at = |ms: i64| Some(Some(Time(START + ms * 1_000_000)));
    let full = StatePatch {
        status: Some(Status::Blocked),
        started_at: at(1),
        updated_at: Some(Time(START + 2_000_000)),
        finished_at: at(3),
        summary: Some(Some("So far.".to_owned())),
        exit_code: Some(Some(-1)),
        signal: Some(Some("SIGKILL".to_owned())),
        pid: Some(Some(4711)),
    };
    let cleared = StatePatch {
        started_at: Some(None),
        finished_at: Some(None),
        summary: Some(None),
        exit_code: Some(None),
        signal: Some(None),
        pid: Some(None),
        ..StatePatch::default()
    };
    let keys = ["status", "startedAt", "finishedAt", "summary", "exitCode", "signal", "pid"];
    let mut after = |patch: StatePatch| {
        run.patch(patch).unwrap();
        published(&engine, &run);
        let state = bench.state("r");
        keys.map(|key| state[key].clone())
    };
    let told = [
        json!("blocked"),
        json!("2026-03-22T00:13:40.124Z"),
        json!("2026-03-22T00:13:40.126Z"),
        json!("So far."),
        json!(-1),
        json!("SIGKILL"),
        json!(4711),
    ];
    assert_eq!(after(full), told);
    assert_eq!(after(StatePatch::default()), told, "what is absent stays");
    let mut none = vec![Value::Null; 7];
    none[0] = json!("blocked");
    assert_eq!(after(cleared).to_vec(), none);
    drop(run);
    engine.close().unwrap();
}

/// Also where that is earlier than what came before it: order is the journal's.
#[test]
fn updated_at_is_when_the_last_record_of_any_kind_was_created() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    let mut after = |records: Vec<NewRecord>| {
        run.append(records).unwrap();
        published(&engine, &run);
        let state = bench.state("r");
        [&state["updatedAt"], &state["lastEventSeq"], &state["lastCheckpointSeq"]].map(Clone::clone)
    };
    let shown = |ms: i64| json!(Time(START + ms * 1_000_000).to_millis_string());
    let chunk = |channel| NewRecord::from(Body::Chunk(channel, b"x".to_vec()));
    bench.pass(1);
    assert_eq!(after(vec![chunk(Channel::Stdout)]), [shown(1), json!(4), json!(1)]);
    bench.pass(1);
    assert_eq!(after(vec![chunk(Channel::Stderr)]), [shown(2), json!(4), json!(1)]);
    bench.pass(1);
    assert_eq!(after(vec![Body::Lifecycle(note("x")).into()]), [shown(3), json!(7), json!(1)]);
    bench.pass(1);
    assert_eq!(after(vec![part(2, "notes", 1, b"x", false)]), [shown(4), json!(7), json!(2)]);
    bench.pass(1);
    assert_eq!(after(vec![Body::StatePatch(StatePatch::default()).into()]), [shown(5), json!(7), json!(2)]);
    let own = StatePatch { updated_at: Some(Time(START + 60_000_000)), ..StatePatch::default() };
    let own = NewRecord { created_at: Some(Time(START)), ..Body::StatePatch(own).into() };
    assert_eq!(after(vec![own]), [shown(60), json!(7), json!(2)], "a patch's own wins");
    let older = NewRecord { created_at: Some(Time(START - 9_000_000)), ..chunk(Channel::Stdout) };
    assert_eq!(after(vec![older]), [shown(-9), json!(7), json!(2)]);
    let both = vec![Body::Lifecycle(note("y")).into(), chunk(Channel::Stdout), chunk(Channel::Stdout)];
    assert_eq!(after(both), [shown(5), json!(12), json!(2)], "the last event, not the last record");
    drop(run);
    engine.close().unwrap();
}

/// From when it was asked for, which may lie behind preparing, or ahead by another machine's clock.
#[test]
fn a_run_lasts_from_when_it_was_asked_for_and_never_less_than_nothing() {
    let bench = Bench::new();
    let engine = bench.open();
    for (run, asked_ms, lasted_ms) in
        [("r", Some(-10_000), 12_500), ("ahead", Some(60_000), 0), ("now", None, 2_500)]
    {
        let prepared = bench.clock.now();
        let created_at = asked_ms.map(|ms: i64| Time(prepared.0 + ms * 1_000_000));
        let mut recorder = Recorder::prepare(&engine, RunRequest { created_at, ..request(run) }).unwrap();
        let began = created_at.unwrap_or(prepared).to_millis_string();
        assert_eq!(bench.state(run)["startedAt"], began);
        let log = bench.file(&format!("runs/t/{run}/worker.log"));
        let mut lines = log.lines();
        assert!(lines.next().unwrap().starts_with(&format!("{began} INFO run_prepared")), "{log}");
        let slot = format!("{} DEBUG checkpoint_slot_reserved", prepared.to_millis_string());
        assert!(lines.next().unwrap().starts_with(&slot), "{log}");
        bench.pass(2_500);
        assert_eq!(recorder.finish(done()).unwrap().duration_ms, lasted_ms, "{run}");
        assert_eq!(bench.state(run)["finishedAt"], bench.clock.now().to_millis_string());
    }
    engine.close().unwrap();
}

/// The word `prepared` alone would say that it is still to come; its terminal event has ended it.
#[test]
fn a_run_that_was_put_off_is_over_and_its_state_stays() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    run.patch(StatePatch { status: Some(Status::Running), ..StatePatch::default() }).unwrap();
    bench.pass(5);
    run.finish(End::new(Outcome::Prepared, "Later.").exit_code(0)).unwrap();
    let over = bench.state("r");
    assert_eq!(
        (&over["status"], &over["finishedAt"]),
        (&json!("prepared"), &json!("2026-03-22T00:13:40.128Z"))
    );
    assert!(run.fold().ended());
    let running = StatePatch { status: Some(Status::Running), ..StatePatch::default() };
    assert_eq!(run.patch(running).unwrap_err().kind(), ErrorKind::Misuse);
    assert_eq!(run.finish(done()).unwrap_err().kind(), ErrorKind::Misuse, "one terminal event and no more");
    drop(run);
    engine.close().unwrap();
    let (engine, report) = bench.reopen();
    assert_eq!((report.interrupted.len(), bench.state("r")), (0, over), "nothing is left to be ended");
    let cancel = Cancel::new().unwrap();
    run_step(&engine, request("r2"), &Deferred, &Checkpoints::default(), &cancel).unwrap();
    let over = bench.state("r2");
    assert_eq!((&over["status"], &over["exitCode"]), (&json!("prepared"), &json!(0)));
    engine.close().unwrap();
}

#[test]
fn what_follows_the_end_moves_updated_at_past_it_and_nothing_else() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    run.finish(done()).unwrap();
    let mut wanted = bench.state("r");
    bench.pass(1_000);
    run.checkpoint("notes", FileFormat::Text, Replay::None, "Notes.", b"late".to_vec()).unwrap();
    published(&engine, &run);
    for (key, value) in [("updatedAt", json!("2026-03-22T00:13:41.123Z")), ("lastCheckpointSeq", json!(3))] {
        wanted[key] = value;
    }
    assert_eq!(bench.state("r"), wanted);
    for patch in [StatePatch::default(), StatePatch { status: Some(Status::Failed), ..StatePatch::default() }]
    {
        assert_eq!(run.patch(patch).unwrap_err().kind(), ErrorKind::Misuse);
    }
    assert_eq!(bench.state("r"), wanted);
    engine.close().unwrap();
}

#[test]
fn the_next_attempt_is_another_run_and_the_first_stays_as_it_was() {
    let bench = Bench::new();
    let engine = bench.open();
    prepare(&engine, "r").finish(End::new(Outcome::Failed, "No.").exit_code(1)).unwrap();
    let first = bench.files();
    let parent = ParentRun { name: RunName { task: id("t"), run: id("r") }, checkpoint: Some(2) };
    let retry = |run: &str| RunRequest { attempt: 2, parent: Some(parent.clone()), ..request(run) };
    let before = bench.batches();
    assert_eq!(Recorder::prepare(&engine, retry("r")).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(bench.batches(), before, "a refusal writes nothing");
    Recorder::prepare(&engine, retry("r2")).unwrap().finish(done()).unwrap();
    assert_eq!(
        (&bench.state("r2")["attempt"], &bench.state("r2")["status"]),
        (&json!(2), &json!("completed"))
    );
    let mut now = bench.files();
    now.retain(|name, _| !name.starts_with("runs/t/r2"));
    assert!(now == first);
    engine.close().unwrap();
}

#[test]
fn names_of_checkpoint_files_have_dashes_and_as_many_digits_as_they_need() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    for (number, kind) in [(9_999, "a_b_c"), (10_000, "my_own_2"), (123_456, "x")] {
        run.append(vec![part(number, kind, 3, b"{}\n", false)]).unwrap();
    }
    let next = run.checkpoint("test_output", FileFormat::Text, Replay::None, "", b"x".to_vec()).unwrap();
    assert_eq!(next, 123_457, "numbers go on from the last one");
    published(&engine, &run);
    let entries = fs::read_dir(bench.data().join("runs/t/r/checkpoints")).unwrap();
    let names: BTreeSet<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let wanted = [
        "0001-summary.json",
        "10000-my-own-2.json",
        "123456-x.json",
        "123457-test-output.txt",
        "9999-a-b-c.json",
    ];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
    drop(run);
    engine.close().unwrap();
}

#[test]
fn text_ends_in_a_newline_a_patch_stays_and_nothing_is_an_empty_file() {
    let bench = Bench::new();
    let engine = bench.open();
    let mut run = prepare(&engine, "r");
    let table: [(FileFormat, Replay, &str, &[u8], &[u8]); 7] = [
        (FileFormat::Text, Replay::None, "txt", b"x", b"x\n"),
        (FileFormat::Text, Replay::None, "txt", b"x\n", b"x\n"),
        (FileFormat::Text, Replay::None, "txt", b"\n\n", b"\n\n"),
        (FileFormat::Text, Replay::None, "txt", b"", b""),
        (FileFormat::Json, Replay::None, "json", b"{}", b"{}\n"),
        (FileFormat::Patch, Replay::GitApplyBinary, "patch", b"\0no newline", b"\0no newline"),
        (FileFormat::Patch, Replay::GitApplyBinary, "patch", b"", b""),
    ];
    for (format, replay, extension, given, wanted) in table {
        let number = run.checkpoint("own", format, replay, "", given.to_vec()).unwrap();
        published(&engine, &run);
        let name = format!("runs/t/r/checkpoints/{number:04}-own.{extension}");
        assert_eq!(bench.bytes(&name), wanted, "{format:?} of {given:?}");
    }
    let formats = [FileFormat::Json, FileFormat::Text, FileFormat::Patch].map(FileFormat::word);
    assert_eq!(formats, ["json", "text", "patch"]);
    assert_eq!([Replay::None, Replay::GitApplyBinary].map(Replay::word), ["none", "git_apply_binary"]);
    drop(run);
    engine.close().unwrap();
}

/// Neither beside a recorder that goes on nor after one that died between two parts.
#[test]
fn the_file_of_a_checkpoint_in_parts_appears_with_its_last() {
    let bench = Bench::new();
    let engine = bench.open();
    let parts = |run: &mut Recorder, upto: usize| {
        for (content, more) in [(&b"{\"a\""[..], true), (b":1}", true), (b"\n", false)].into_iter().take(upto)
        {
            let file = "runs/t/r/checkpoints/0002-big-one.json";
            assert!(!bench.has(file), "in front of its last part");
            run.append(vec![part(2, "big_one", 8, content, more)]).unwrap();
            published(&engine, run);
        }
    };
    let mut whole = prepare(&engine, "r");
    parts(&mut whole, 3);
    assert_eq!(bench.file("runs/t/r/checkpoints/0002-big-one.json"), "{\"a\":1}\n");
    assert_eq!(bench.state("r")["lastCheckpointSeq"], 2);
    let mut half = prepare(&engine, "half");
    parts_of_half(&mut half);
    drop((whole, half));
    engine.close().unwrap();
    bench.open().close().unwrap();
    let entries = fs::read_dir(bench.data().join("runs/t/half/checkpoints")).unwrap();
    let names: BTreeSet<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(
        names.iter().map(String::as_str).collect::<Vec<_>>(),
        ["0001-summary.json", "0002-log-tail.txt"]
    );
}

fn parts_of_half(run: &mut Recorder) {
    run.append(vec![part(2, "big_one", 8, b"{\"a\"", true)]).unwrap();
    run.append(vec![part(2, "big_one", 8, b":1}", true)]).unwrap();
}

/// The log tail of a run that has printed what `print` does.
fn tail_of(run: &str, print: impl Fn(&mut Recorder)) -> (String, Vec<Record>) {
    let bench = Bench::new();
    let engine = bench.open();
    let mut recorder = prepare(&engine, run);
    print(&mut recorder);
    recorder.finish(done()).unwrap();
    engine.close().unwrap();
    (bench.file(&format!("runs/t/{run}/checkpoints/0002-log-tail.txt")), bench.records(run))
}

const END_LINE: &str = "2026-03-22T00:13:40.123Z INFO step_completed Done. \
                        {\"ok\":true,\"blocked\":false,\"needsHuman\":false,\"exitCode\":0,\"artifacts\":[]}\n";

#[test]
fn a_log_tail_has_the_last_lines_of_all_logs_as_the_journal_has_them() {
    let (tail, records) = tail_of("r", |run| {
        run.chunk(Channel::Stdout, b"out 1\nout ").unwrap();
        run.chunk(Channel::Stderr, b"err 1\n").unwrap();
        run.event(note("between")).unwrap();
        run.chunk(Channel::Stdout, b"2\n").unwrap();
    });
    let lines: Vec<_> = tail.lines().skip(2).collect();
    let between = format!("{SHOWN} INFO note between {{}}");
    assert_eq!(lines, ["out 1", "err 1", &between, "out 2", END_LINE.trim_end()]);
    assert!(tail.starts_with(&format!("{SHOWN} INFO run_prepared ")), "{tail}");
    let Body::Checkpoint(taken) = &records.last().unwrap().body else { panic!("{records:?}") };
    assert_eq!(
        (taken.kind.as_str(), taken.format, taken.replay),
        ("log_tail", FileFormat::Text, Replay::None)
    );
}

#[test]
fn a_log_tail_has_two_hundred_lines_and_64_kib_at_most() {
    let (tail, _) = tail_of("r", |run| {
        for n in 0..300 {
            let channel = if n % 2 == 0 { Channel::Stdout } else { Channel::Stderr };
            run.chunk(channel, format!("{n}\n").as_bytes()).unwrap();
        }
    });
    let wanted = (101..300).map(|n| format!("{n}\n")).collect::<Vec<_>>().concat();
    assert_eq!(tail, wanted + END_LINE, "199 and the end");
    let line = |n: u64| format!("{n:0999}\n");
    let (tail, _) = tail_of("r", |run| {
        (0..150).for_each(|n| drop(run.chunk(Channel::Stdout, line(n).as_bytes()).unwrap()));
    });
    let most = (64 * 1024 - END_LINE.len() as u64) / 1000;
    let wanted: String = (150 - most..150).map(line).collect();
    assert!(tail == wanted + END_LINE, "{} bytes", tail.len());
}

/// Whoever ends the run; and never so long that it could not be recorded.
#[test]
fn a_log_tail_is_as_long_as_it_is_asked_to_be() {
    let bench = Bench::new();
    let open = |log_tail_lines, log_tail_bytes| {
        let options = Options { log_tail_lines, log_tail_bytes, ..Options::default() };
        Engine::open_in(bench.world(), options)
    };
    let (engine, _) = open(3, 1 << 10).unwrap();
    let [mut run, mut lost] = ["r", "lost"].map(|run| prepare(&engine, run));
    for n in 0..10 {
        run.chunk(Channel::Stdout, format!("{n}\n").as_bytes()).unwrap();
        lost.chunk(Channel::Stdout, format!("{n}\n").as_bytes()).unwrap();
    }
    run.finish(done()).unwrap();
    drop((run, lost));
    engine.close().unwrap();
    assert_eq!(bench.file("runs/t/r/checkpoints/0002-log-tail.txt"), format!("8\n9\n{END_LINE}"));
    open(2, 1 << 10).unwrap().0.close().unwrap();
    let tail = bench.file("runs/t/lost/checkpoints/0002-log-tail.txt");
    assert!(tail.starts_with("9\n") && tail.lines().count() == 2, "{tail}");
    let (engine, _) = open(200, END_LINE.len() + 2).unwrap();
    let mut run = prepare(&engine, "short");
    run.chunk(Channel::Stdout, b"1\n2\n").unwrap();
    run.finish(done()).unwrap();
    engine.close().unwrap();
    assert_eq!(bench.file("runs/t/short/checkpoints/0002-log-tail.txt"), format!("2\n{END_LINE}"));
    assert_eq!(open(200, (512 << 10) + 1).unwrap_err().kind(), ErrorKind::Misuse);
    let (engine, _) = open(usize::MAX, 512 << 10).unwrap();
    let mut run = prepare(&engine, "long");
    run.chunk(Channel::Stdout, &vec![b'\n'; 1 << 20]).unwrap();
    run.finish(done()).unwrap();
    engine.close().unwrap();
    assert_eq!(bench.bytes("runs/t/long/checkpoints/0002-log-tail.txt").len(), 512 << 10);
}

// --- What running a step does ---

#[test]
fn preparing_records_four_things_at_once_and_makes_every_file() {
    let bench = Bench::new();
    let engine = bench.open();
    let before = bench.batches();
    let run = prepare(&engine, "r");
    assert_eq!(bench.batches(), before + 1, "all or nothing");
    let records = bench.records("r");
    let wanted = ["run", "checkpoint summary", "run_prepared", "checkpoint_slot_reserved"];
    assert_eq!(words(&records), wanted);
    assert_eq!(event(&records, "run_prepared").data.as_str(), r#"{"attempt":1}"#);
    assert_eq!(event(&records, "checkpoint_slot_reserved").data.as_str(), r#"{"lastCheckpoint":1}"#);
    for log in ["stdout.log", "stderr.log"] {
        assert_eq!(bench.bytes(&format!("runs/t/r/{log}")), b"", "{log}");
    }
    for there in ["meta.json", "state.json", "worker.log", "checkpoints/0001-summary.json", "artifacts"] {
        assert!(bench.has(&format!("runs/t/r/{there}")), "{there}");
    }
    drop(run);

    let off = Recorder::prepare(&engine, RunRequest { checkpoints: false, ..request("off") }).unwrap();
    assert_eq!(words(&bench.records("off")), ["run", "run_prepared"]);
    for there in
        ["meta.json", "state.json", "worker.log", "stdout.log", "stderr.log", "checkpoints", "artifacts"]
    {
        assert!(bench.has(&format!("runs/t/off/{there}")), "{there}");
    }
    assert_eq!(bench.state("off")["lastCheckpointSeq"], Value::Null);
    drop(off);
    engine.close().unwrap();
    // Nor are there any for a run without them that is found without an end.
    bench.open().close().unwrap();
    assert_eq!(words(&bench.records("off")), ["run", "run_prepared", "step_interrupted", "state_patch"]);
}

/// Events of a process: what it was started as, how it ended.
#[test]
fn the_events_of_a_worker_tell_what_it_was_and_how_it_ended() {
    let bench = Bench::new();
    let (engine, _) = Engine::open(bench.data(), Options::default()).unwrap();
    let run = |run: &str, script: &str| {
        let asked = RunRequest {
            step_kind: Some("build".to_owned()),
            worker_kind: Some("sh".to_owned()),
            timeout_ms: Some(600_001),
            working_tree: Some(b"/".to_vec()),
            command: ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec(),
            ..request(run)
        };
        let cancel = Cancel::new().unwrap();
        let came = record_process(&engine, asked, &ProcessOptions::default(), &mut Discard, &cancel).unwrap();
        assert!(came.start_error.is_none());
        bench.records(run)
    };
    let records = run("r", "exit 0");
    let started = event(&records, "worker_started");
    let wanted = ["stepKind", "workerKind", "timeoutSec", "worktree", "pid", "startTicks", "host"];
    assert_eq!(keys(&started.data), wanted);
    let data: Value = serde_json::from_str(started.data.as_str()).unwrap();
    let told = ["stepKind", "workerKind", "timeoutSec", "worktree"].map(|key| data[key].clone());
    assert_eq!(
        told,
        [json!("build"), json!("sh"), json!(601), json!("/")],
        "seconds are never cut to too few"
    );
    assert!(data["pid"].as_u64() > Some(1) && data["startTicks"].as_u64() > Some(0), "{data}");
    let at = records.iter().position(|r| word(r) == "worker_started").unwrap();
    let Body::StatePatch(patch) = &records[at + 1].body else { panic!("{records:?}") };
    let pid = patch.pid.flatten().map(u64::from);
    assert_eq!((patch.status, pid), (Some(Status::Running), data["pid"].as_u64()));
    let exited = event(&records, "worker_exited");
    let wanted = [
        "outcome",
        "exitCode",
        "signal",
        "durationMs",
        "maxRssBytes",
        "userMs",
        "systemMs",
        "drained",
        "leftRunning",
        "leftRunningCount",
    ];
    assert_eq!((keys(&exited.data), exited.level), (wanted.map(str::to_owned).to_vec(), Level::Info));
    for (n, (script, exit_code, signal)) in
        [("exit 3", json!(3), json!(null)), ("kill -KILL $$", json!(null), json!("SIGKILL"))]
            .into_iter()
            .enumerate()
    {
        let records = run(&format!("bad{n}"), script);
        let exited = event(&records, "worker_exited");
        let data: Value = serde_json::from_str(exited.data.as_str()).unwrap();
        assert_eq!((&data["exitCode"], &data["signal"]), (&exit_code, &signal), "{script}");
        assert_eq!(exited.level, Level::Error, "{script}");
        let state = bench.state(&format!("bad{n}"));
        assert_eq!((&state["exitCode"], &state["signal"]), (&exit_code, &signal), "{script}");
    }
    // One that was never started has neither.
    let asked = RunRequest { command: vec![b"/nowhere/to/be/found".to_vec()], ..request("none") };
    let cancel = Cancel::new().unwrap();
    record_process(&engine, asked, &ProcessOptions::default(), &mut Discard, &cancel).unwrap();
    let names = words(&bench.records("none"));
    assert!(!names.iter().any(|name| name.starts_with("worker_")), "{names:?}");
    assert_eq!(event(&bench.records("none"), "step_failed").level, Level::Error);
    engine.close().unwrap();
}

/// The same for an executor: it has no process, and its time is the engine's.
#[test]
fn the_events_of_an_executor_are_those_of_a_worker_without_a_process() {
    let bench = Bench::new();
    let engine = bench.open();
    for (run, outcome, exit_code, level) in [
        ("r", Outcome::Completed, None, Level::Info),
        ("bad", Outcome::Failed, None, Level::Error),
        ("odd", Outcome::Completed, Some(3), Level::Error),
        ("zero", Outcome::Blocked, Some(0), Level::Info),
    ] {
        let clock = Arc::clone(&bench.clock);
        let executor = By(move |_: &mut Step<'_>| {
            clock.advance(Duration::from_millis(1_234));
            Ok(Answer { exit_code, ..Answer::new(outcome, "So.") })
        });
        let cancel = Cancel::new().unwrap();
        let asked = RunRequest { timeout_ms: Some(1), ..request(run) };
        run_step(&engine, asked, &executor, &Checkpoints::default(), &cancel).unwrap();
        let records = bench.records(run);
        let data: Value = serde_json::from_str(event(&records, "worker_started").data.as_str()).unwrap();
        assert_eq!(
            (&data["pid"], &data["startTicks"], &data["timeoutSec"]),
            (&json!(null), &json!(null), &json!(1))
        );
        let exited = event(&records, "worker_exited");
        let code = exit_code.unwrap_or(i32::from(outcome != Outcome::Completed));
        assert_eq!(
            exited.data.as_str(),
            format!(r#"{{"outcome":"answered","exitCode":{code},"durationMs":1234}}"#)
        );
        assert_eq!(exited.level, level, "{run}");
    }
    engine.close().unwrap();
}

/// Behind the exit the checkpoints, behind them the end: event, patch and tail in one batch.
#[test]
fn terminal_event_patch_and_log_tail_are_one_batch_of_one_time() {
    let bench = Bench::new();
    // Whoever asked twice would be told two times.
    let moves = Arc::clone(&bench.clock);
    let happens = Box::new(move || moves.advance(Duration::from_millis(1)));
    let clock = Arc::new(Interferes { clock: Arc::clone(&bench.clock), happens });
    let world = World { clock, ..bench.world() };
    let (engine, _) = Engine::open_in(world, Options::default()).unwrap();
    let mut run = prepare(&engine, "r");
    run.chunk(Channel::Stdout, b"x\n").unwrap();
    bench.pass(1_500);
    let before = bench.batches();
    run.finish(End::new(Outcome::NeedsHuman, "Ask.").exit_code(3)).unwrap();
    assert_eq!(bench.batches(), before + 1);
    let records = bench.records("r");
    let end = &records[records.len() - 3..];
    assert_eq!(words(end), ["step_needs_human", "state_patch", "checkpoint log_tail"]);
    assert_eq!(end.iter().map(|r| r.ends).collect::<Vec<_>>(), [true, false, false], "the event ends it");
    assert!(end.iter().all(|r| r.created_at == end[0].created_at), "{end:?}");
    let Body::StatePatch(patch) = &end[1].body else { panic!("{end:?}") };
    let wanted = StatePatch {
        status: Some(Status::NeedsHuman),
        finished_at: Some(Some(end[0].created_at)),
        summary: Some(Some("Ask.".to_owned())),
        exit_code: Some(Some(3)),
        ..StatePatch::default()
    };
    assert_eq!(*patch, wanted, "these four and no more");
    let event = event(&records, "step_needs_human");
    assert_eq!((event.message.as_str(), event.level), ("Ask.", Level::Warn));
    assert_eq!(keys(&event.data), ["ok", "blocked", "needsHuman", "exitCode", "artifacts"]);
    engine.close().unwrap();
}

fn git(dir: &Path, args: &[&str]) -> bool {
    let mut git = Command::new("git");
    git.current_dir(dir).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(args);
    for name in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        git.env_remove(name);
    }
    git.output().is_ok_and(|output| output.status.success())
}

#[test]
fn behind_the_exit_stand_git_diff_test_output_and_the_end_in_this_order() {
    let bench = Bench::new();
    let tree = bench.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    if !git(&tree, &["init", "-q"]) {
        println!("skipped: there is no git");
        return;
    }
    fs::write(tree.join("a"), "1\n").unwrap();
    fs::write(tree.join(".gitignore"), "out.txt\n").unwrap();
    assert!(git(&tree, &["add", "."]) && git(&tree, &["commit", "-qm", "first"]));
    let (engine, _) = Engine::open(bench.data(), Options::default()).unwrap();
    let wanted = [
        "run",
        "checkpoint summary",
        "run_prepared",
        "checkpoint_slot_reserved",
        "worker_started",
        "state_patch",
        "worker_exited",
        "checkpoint git_diff",
        "checkpoint test_output",
        "step_completed",
        "state_patch",
        "checkpoint log_tail",
    ];
    let checkpoints = Checkpoints { test_output: Some("out.txt".into()), ..Checkpoints::default() };
    let asked = |run: &str| RunRequest {
        working_tree: Some(tree.to_str().unwrap().as_bytes().to_vec()),
        command: ["sh", "-c", "echo 2 >> a; echo tested >> out.txt"].map(|w| w.as_bytes().to_vec()).to_vec(),
        ..request(run)
    };
    let options = ProcessOptions { checkpoints: checkpoints.clone(), ..ProcessOptions::default() };
    let cancel = Cancel::new().unwrap();
    record_process(&engine, asked("r"), &options, &mut Discard, &cancel).unwrap();
    let (a, out) = (tree.join("a"), tree.join("out.txt"));
    let works = By(move |_: &mut Step<'_>| {
        fs::write(&a, "1\n2\n3\n")?;
        fs::write(&out, "tested again\n")?;
        Ok(Answer::new(Outcome::Completed, "Done."))
    });
    run_step(&engine, asked("by"), &works, &checkpoints, &cancel).unwrap();
    for (run, line) in [("r", "+2"), ("by", "+3")] {
        let records = bench.records(run);
        assert_eq!(words(&records), wanted, "{run}");
        let taken: Vec<_> = records
            .iter()
            .filter_map(|record| match &record.body {
                Body::Checkpoint(taken) => Some((taken.number, taken.format, taken.replay)),
                _ => None,
            })
            .collect();
        assert_eq!(taken[1], (2, FileFormat::Patch, Replay::GitApplyBinary));
        assert_eq!(taken[2], (3, FileFormat::Text, Replay::None));
        let diff = bench.file(&format!("runs/t/{run}/checkpoints/0002-git-diff.patch"));
        assert!(diff.lines().any(|l| l == line) && !diff.contains("out.txt"), "{diff}");
        assert!(bench.file(&format!("runs/t/{run}/checkpoints/0003-test-output.txt")).starts_with("tested"));
    }
    // Above its limit it is left out, with a word, and the step goes on.
    let tight = Checkpoints { git_diff_limit: 10, test_output: None, ..Checkpoints::default() };
    run_step(
        &engine,
        asked("tight"),
        &By(|_: &mut Step<'_>| Ok(Answer::new(Outcome::Completed, "Done."))),
        &tight,
        &cancel,
    )
    .unwrap();
    let records = bench.records("tight");
    assert!(event(&records, "checkpoint_skipped").message.contains("over the limit of 10 bytes"));
    assert_eq!(bench.state("tight")["status"], "completed");
    // Without checkpoints, none of them.
    run_step(&engine, RunRequest { checkpoints: false, ..asked("off") }, &Deferred, &checkpoints, &cancel)
        .unwrap();
    assert!(!words(&bench.records("off")).iter().any(|word| word.contains("checkpoint")));
    engine.close().unwrap();
}

#[test]
fn the_result_of_a_step_tells_all_that_came_of_it() {
    let bench = Bench::new();
    let engine = bench.open();
    let clock = Arc::clone(&bench.clock);
    let works = By(move |step: &mut Step<'_>| {
        step.chunk(Channel::Stdout, b"one\ntwo")?;
        step.chunk(Channel::Stderr, b"err\n")?;
        step.event(Lifecycle::new("odd", Level::Warn, "Odd."))?;
        fs::write(step.artifacts().unwrap().join("report"), "abc")?;
        clock.advance(Duration::from_millis(2_345));
        Ok(Answer { exit_code: Some(4), ..Answer::new(Outcome::Blocked, "Stuck.") })
    });
    let cancel = Cancel::new().unwrap();
    let result = run_step(&engine, request("r"), &works, &Checkpoints::default(), &cancel).unwrap();
    assert_eq!(
        (result.outcome, result.ok, result.blocked, result.needs_human),
        (Outcome::Blocked, false, true, false)
    );
    assert_eq!((result.exit_code, result.summary.as_str(), result.duration_ms), (Some(4), "Stuck.", 2_345));
    assert_eq!((result.counts.channel_lines, result.counts.channel_bytes), ([1, 1], [7, 4]));
    assert_eq!(result.counts.records, bench.records("r").len() as u64);
    // run_prepared, worker_started; slot reserved; odd, step_blocked; worker_exited.
    assert_eq!(result.counts.events, [1, 2, 2, 1], "debug, info, warn, error");
    let taken: Vec<_> =
        result.checkpoints.iter().map(|c| (c.number, c.kind.as_str(), c.file.as_str())).collect();
    let wanted =
        [(1, "summary", "checkpoints/0001-summary.json"), (2, "log_tail", "checkpoints/0002-log-tail.txt")];
    assert_eq!(taken, wanted);
    let last = result.artifacts.last().unwrap();
    let digest = blake3::hash(b"abc").to_hex().to_string();
    assert_eq!(
        (last.path.as_str(), last.bytes, &last.digest),
        ("artifacts/report", Some(3), &Some(digest.clone()))
    );
    assert!(result.publish_error.is_none());
    let records = bench.records("r");
    let told: Value = serde_json::from_str(event(&records, "step_blocked").data.as_str()).unwrap();
    assert_eq!(told["artifacts"], json!([{"path": "artifacts/report", "bytes": 3, "digest": digest}]));
    engine.close().unwrap();
}

/// Makes the journal fail once the worker has said something.
struct Fails(Arc<Watch>);

impl Output for Fails {
    fn write(&mut self, _: Channel, _: &[u8], _: &dyn Fn() -> bool) -> std::io::Result<()> {
        self.0.failing.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// It would go on for ever; that this test ends is what it tests.
#[test]
fn a_journal_that_fails_stops_the_worker_and_is_the_error_of_the_step() {
    let bench = Bench::new();
    // A process takes time of its own.
    let (engine, watch) = bench.open_watched_in(World::create(&bench.data()).unwrap());
    let asked = RunRequest {
        command: ["sh", "-c", "while :; do echo on; done"].map(|word| word.as_bytes().to_vec()).to_vec(),
        grace_ms: 0,
        ..request("without-journal")
    };
    let mut fails = Fails(Arc::clone(&watch));
    let cancel = Cancel::new().unwrap();
    let failed = record_process(&engine, asked, &ProcessOptions::default(), &mut fails, &cancel).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Reopen);
    assert!(failed.message().contains("syncing"), "{failed}");
    assert!(processes_of("without-journal").is_empty());
    drop(engine);
    watch.failing.store(false, Ordering::SeqCst);
    // The same of an executor's step, whose own error is not the one that counts.
    let (engine, watch) = bench.open_watched();
    assert_eq!(bench.state("without-journal")["status"], "interrupted");
    let failing = Arc::clone(&watch);
    let works = By(move |step: &mut Step<'_>| {
        failing.failing.store(true, Ordering::SeqCst);
        step.chunk(Channel::Stdout, b"lost")?;
        Ok(Answer::new(Outcome::Completed, "Done."))
    });
    let failed = run_step(&engine, request("by"), &works, &Checkpoints::default(), &cancel).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Reopen, "{failed}");
    drop(engine);
    bench.open().close().unwrap();
    assert_eq!(bench.state("by")["status"], "interrupted");
}

// --- After a crash ---

/// What a recorder leaves that dies at some moment, and what opening makes of it.
#[test]
fn a_run_without_an_end_gets_what_is_missing_in_one_batch() {
    let bench = Bench::new();
    let engine = bench.open();
    let started = || Lifecycle::new("worker_started", Level::Info, "a worker");
    for (run, attempt, events) in [
        ("never", 1, vec![]),
        ("out", 3, vec![started()]),
        ("back", 1, vec![started(), Lifecycle::new("worker_exited", Level::Info, "back")]),
    ] {
        let mut recorder = Recorder::prepare(&engine, RunRequest { attempt, ..request(run) }).unwrap();
        for event in events {
            recorder.event(event).unwrap();
        }
        if run == "out" {
            recorder.checkpoint("notes", FileFormat::Text, Replay::None, "", b"x".to_vec()).unwrap();
        }
        drop(recorder);
    }
    prepare(&engine, "whole").finish(done()).unwrap();
    engine.close().unwrap();
    let (before, position) = (bench.batches(), Log::open(bench.data()).unwrap().durable());
    bench.pass(60_000);
    let (engine, report) = bench.reopen();
    let told: Vec<_> =
        report.interrupted.iter().map(|r| (r.name.to_string(), r.attempt, r.ended_processes)).collect();
    assert_eq!(told, [("t/never".to_owned(), 1, 0), ("t/out".to_owned(), 3, 0), ("t/back".to_owned(), 1, 0)]);
    assert_eq!((report.verdict, report.quarantined_bytes, report.problems.len()), (Verdict::Clean, 0, 0));
    assert_eq!(bench.batches(), before + 1, "none waits for a sync of its own");
    assert_eq!(report.position.0, position.0 + 3 + 4 + 3, "the position tells of them too");
    let tail = ["step_interrupted", "state_patch", "checkpoint log_tail"];
    for (run, number) in [("never", 2), ("out", 3), ("back", 2)] {
        let records = bench.records(run);
        let missing: &[&str] = if run == "out" { &["worker_exited"] } else { &[] };
        let added = &records[records.len() - missing.len() - 3..];
        assert_eq!(words(added), [missing, &tail].concat(), "{run}");
        assert!(added.iter().all(|record| record.created_at == bench.clock.now()), "{run}");
        assert_eq!(event(&records, "step_interrupted").level, Level::Error);
        let exits = records.iter().filter(|record| word(record) == "worker_exited").count();
        assert_eq!(exits, usize::from(run != "never"), "{run}");
        let state = bench.state(run);
        let shown = bench.clock.now().to_millis_string();
        assert_eq!((&state["status"], &state["finishedAt"]), (&json!("interrupted"), &json!(shown)), "{run}");
        assert_eq!(state["lastCheckpointSeq"], number, "numbers go on: {run}");
        let tail = bench.file(&format!("runs/t/{run}/checkpoints/{number:04}-log-tail.txt"));
        assert!(tail.lines().last().unwrap().contains(" ERROR step_interrupted "), "{tail}");
        assert!(tail == bench.file(&format!("runs/t/{run}/worker.log")), "{run}");
    }
    let exited = bench.records("out");
    assert_eq!(
        event(&exited, "worker_exited").data.as_str(),
        r#"{"outcome":"interrupted","endedProcesses":0}"#
    );
    engine.close().unwrap();

    // A second time there is nothing to do.
    let (batches, files) = (bench.batches(), bench.files());
    bench.pass(60_000);
    let (engine, report) = bench.reopen();
    assert_eq!((report.interrupted.len(), report.rewritten_files, report.problems.len()), (0, 0, 0));
    engine.close().unwrap();
    assert!(bench.batches() == batches && bench.files() == files, "twice changes nothing");
}

/// A clock on which something happens whenever somebody asks it.
struct Interferes {
    clock: Arc<ManualClock>,
    happens: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Interferes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interferes")
    }
}

impl Clock for Interferes {
    fn now(&self) -> Time {
        (self.happens)();
        self.clock.now()
    }
    fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns()
    }
    fn pause(&self, duration: Duration) {
        self.clock.pause(duration);
    }
}

/// What was read of a run is what its end is made of: one that has gone on meanwhile is left.
#[test]
fn a_run_is_ended_only_as_it_was_seen() {
    let bench = Bench::new();
    let beside = bench.open();
    let engine = bench.open();
    let run = prepare(&engine, "r");
    let stream = run.stream();
    drop(run);
    engine.close().unwrap();
    let world = bench.world();
    let other = beside.clone();
    // While the journal's lock is held by the one that asks, this is refused.
    let happens =
        Box::new(move || drop(other.append(stream, None, &[Body::Lifecycle(note("meanwhile")).into()])));
    let clock = Arc::new(Interferes { clock: Arc::clone(&bench.clock), happens });
    let (engine, report) = Engine::open_in(World { clock, ..world }, Options::default()).unwrap();
    assert_eq!(report.interrupted, Vec::new());
    let records = bench.records("r");
    assert!(words(&records).contains(&"note".to_owned()), "the moment has to have come");
    assert!(!records.iter().any(|record| record.ends));
    engine.close().unwrap();
    beside.close().unwrap();
    let (engine, report) = bench.reopen();
    assert_eq!(report.interrupted.len(), 1, "the next one ends it");
    engine.close().unwrap();
}

/// Behind what `cache/projected` says, files are looked at; up to there only by a rebuild, or in another session.
#[test]
fn opening_looks_only_at_runs_behind_what_is_noted_as_projected() {
    let place = Place::new();
    let small = || {
        let journal =
            JournalOptions { first_capacity: 4 << 10, max_capacity: 4 << 10, ..JournalOptions::default() };
        Engine::open(place.data(), Options { journal, ..Options::default() }).unwrap()
    };
    let (engine, _) = small();
    for n in 0..20 {
        prepare(&engine, &format!("r{n}")).finish(done()).unwrap();
    }
    engine.close().unwrap();
    small().0.close().unwrap();
    let noted: Value =
        serde_json::from_slice(&fs::read(place.data().join("cache/projected")).unwrap()).unwrap();
    assert!(noted["position"].as_u64() > Some(20), "{noted}");
    let (engine, _) = small();
    prepare(&engine, "r20").finish(done()).unwrap();
    engine.close().unwrap();
    let state = |n: u32| place.data().join(format!("runs/t/r{n}/state.json"));
    let whole = fs::read(state(0)).unwrap();
    for n in [0, 20] {
        fs::write(state(n), "edited").unwrap();
    }
    let (engine, report) = small();
    engine.close().unwrap();
    assert_eq!(report.rewritten_files, 1, "that of the last run");
    assert_eq!(
        (fs::read(state(0)).unwrap(), fs::read(state(20)).unwrap().len()),
        (b"edited".to_vec(), whole.len() + 1)
    );
    place.ends(0, &["rebuild"]);
    assert!(fs::read(state(0)).unwrap() == whole);
}

/// One of its processes has left the worker's group, another its environment behind.
#[test]
fn what_a_killed_recorder_leaves_is_found_by_group_and_by_environment_and_ended() {
    let place = Place::new();
    let script = "setsid sh -c 'echo $$; exec sleep 1000' >far & \
                  env -i sh -c 'echo $$; exec sleep 1000' >near & \
                  echo on; exec sleep 1000";
    let mut child = place
        .command(&["-q", "run", "--task", "t", "--run", "orphaned", "--", "bash", "-c", script])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid =
        |name: &str| fs::read_to_string(place.0.path().join(name)).unwrap_or_default().trim().to_owned();
    wait_until("the workers", || {
        let log = text(&place.run(&["log", "t/orphaned"]).stdout);
        log.contains("worker_started") && !pid("far").is_empty() && !pid("near").is_empty()
    });
    let group = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').map(str::to_owned).collect();
        (fields[0] != "Z" && !fields[0].is_empty()).then(|| fields[2].clone())
    };
    let (far, near) = (pid("far"), pid("near"));
    assert_ne!(group(&far), group(&near));
    assert!(!processes_of("orphaned").contains(&near), "it has nothing in its environment");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(group(&far).is_some() && group(&near).is_some(), "they stay until somebody opens the journal");
    let report = &place.json(0, &["-o", "json", "recover"])[0];
    assert_eq!(report["interruptedRuns"], json!(["t/orphaned"]), "{report}");
    assert_eq!((group(&far), group(&near)), (None, None));
    assert!(processes_of("orphaned").is_empty());
    let log = place.json(0, &["log", "t/orphaned", "-o", "json", "--kind", "lifecycle"]);
    let exited = log.iter().find(|line| line["type"] == "worker_exited").unwrap();
    assert_eq!(exited["data"], json!({"outcome": "interrupted", "endedProcesses": 3}));
}

/// Whoever takes his time to end keeps nobody else from hearing of it: here he waits for another to have heard.
#[test]
fn what_killed_recorders_leave_is_asked_to_end_before_anything_is_waited_for() {
    let place = Place::new();
    let mut recorders = Vec::new();
    // What a shell says of its own children goes to nobody any more, and would end it.
    for (run, heard) in [
        ("first", "until [ -e second-heard ]; do sleep 0.01; done; : >first-heard"),
        ("second", ": >second-heard"),
    ] {
        let script = format!(
            "exec 2>/dev/null; trap '{heard}; exit' TERM; : >{run}-listens; while :; do sleep 0.01; done"
        );
        let mut command =
            place.command(&["-q", "run", "--task", "t", "--run", run, "--", "bash", "-c", &script]);
        recorders.push(command.stdout(Stdio::null()).spawn().unwrap());
        wait_until("it", || place.0.path().join(format!("{run}-listens")).exists());
    }
    for mut recorder in recorders {
        recorder.kill().unwrap();
        recorder.wait().unwrap();
    }
    let options = Options { orphan_grace: Duration::from_mins(1), ..Options::default() };
    let (engine, report) = Engine::open(place.data(), options).unwrap();
    engine.close().unwrap();
    let ended: Vec<_> = report.interrupted.iter().map(|run| run.name.to_string()).collect();
    assert_eq!((ended, report.problems), (vec!["t/first".to_owned(), "t/second".to_owned()], Vec::new()));
    assert!(processes_of("first").is_empty() && processes_of("second").is_empty());
    assert!(place.0.path().join("first-heard").exists(), "it was killed while it waited");
}

/// From the list of interrupted runs over the last git diff to the next attempt.
#[test]
fn a_conductor_goes_on_where_an_interrupted_run_was() {
    let place = Place::new();
    let tree = place.0.path().join("tree");
    fs::create_dir(&tree).unwrap();
    if !git(&tree, &["init", "-q"]) {
        println!("skipped: there is no git");
        return;
    }
    fs::write(tree.join("a"), "1\n").unwrap();
    assert!(git(&tree, &["add", "."]) && git(&tree, &["commit", "-qm", "first"]));
    let (engine, _) = Engine::open(place.data(), Options::default()).unwrap();
    prepare(&engine, "fine").finish(done()).unwrap();
    let mut run = prepare(&engine, "lost");
    fs::write(tree.join("a"), "1\n2\n").unwrap();
    let diff = Command::new("git").args(["diff", "--binary"]).current_dir(&tree).output().unwrap().stdout;
    run.checkpoint("git_diff", FileFormat::Patch, Replay::GitApplyBinary, "The tree.", diff).unwrap();
    drop(run);
    engine.close().unwrap();
    assert!(git(&tree, &["checkout", "-q", "."]));
    let report = &place.json(0, &["-o", "json", "recover"])[0];
    assert_eq!(report["interruptedRuns"].as_array().unwrap().len(), 1);
    let found = place.json(0, &["-o", "json", "runs", "--status", "interrupted"]);
    assert_eq!((found.len(), &found[0]["runId"], &found[0]["attempt"]), (1, &json!("lost"), &json!(1)));
    place.ends(0, &["restore", "t/lost", "--into", tree.to_str().unwrap()]);
    assert_eq!(fs::read(tree.join("a")).unwrap(), b"1\n2\n");
    place.ends(0, &["-q", "run", "--task", "t", "--run", "next", "--attempt", "2", "--", "true"]);
    let next = place.json(0, &["-o", "json", "runs", "--status", "completed"]).pop().unwrap();
    assert_eq!((&next["runId"], &next["attempt"]), (&json!("next"), &json!(2)));
}
