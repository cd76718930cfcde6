//! The format text and the code say the same.

use runwal::clock::{ManualClock, SeededEntropy};
use runwal::disk::sim::SimWorld;
use runwal::engine::{Conditions, Engine, Options, World};
use runwal::position::Time;
use runwal::record::{Body, Id, Level, Lifecycle, RunName, RunPrepared};
use std::fmt::Write as _;
use std::sync::Arc;

const FORMAT: &str = include_str!("../../src/format/FORMAT.md");
const SEGMENT: &str = "journal/0000000001.seg";

pub(crate) fn request() -> RunPrepared {
    RunPrepared {
        name: RunName { task: Id::new("t").unwrap(), run: Id::new("r").unwrap() },
        step: Id::new("s").unwrap(),
        attempt: 1,
        step_kind: None,
        worker_kind: None,
        command: vec![b"true".to_vec()],
        working_tree: None,
        environment: Vec::new(),
        timeout_ms: None,
        grace_ms: 5_000,
        checkpoints: false,
        recorder: [7; 16],
        boot: [8; 16],
        controller: None,
        host: "h".to_owned(),
        labels: Vec::new(),
        parent: None,
        renderer: 1,
    }
}

/// The example's segment: one batch with two records.
fn example() -> Vec<u8> {
    let sim = SimWorld::new();
    let world = World {
        disk: Arc::new(sim.process(1)),
        clock: Arc::new(ManualClock::new(Time(1_774_138_420_123_456_789))),
        entropy: Arc::new(SeededEntropy::new(1)),
    };
    let options = Options { publish: false, ..Options::default() };
    let (engine, _) = Engine::open_in(world, options).unwrap();
    let event = Lifecycle::new("run_prepared", Level::Info, "Prepared.");
    engine.begin_run(&request(), None, Conditions::none().term(3), &[Body::Lifecycle(event).into()]).unwrap();
    engine.close().unwrap();
    sim.read_file(SEGMENT).unwrap()
}

/// The bytes with what they are: offset, hex, field.
fn annotated(bytes: &[u8]) -> String {
    let header: &[(usize, &str)] = &[
        (8, "magic"),
        (2, "version"),
        (2, "incompatible flags"),
        (4, "compatible flags"),
        (16, "journal id"),
        (8, "segment"),
        (8, "epoch"),
        (8, "salt"),
        (8, "predecessor's salt"),
        (8, "first position"),
        (8, "predecessor's end"),
        (8, "predecessor's footer"),
        (32, "chain hash"),
        (8, "born up to"),
        (8, "capacity"),
        (8, "made at"),
        (8, "given up from"),
        (8, "given up to"),
        (348, "zeros"),
        (4, "CRC"),
    ];
    let batch: &[(usize, &str)] = &[
        (4, "batch: magic"),
        (1, "codec"),
        (1, "durability"),
        (2, "flags"),
        (4, "body, stored"),
        (4, "body, decoded"),
        (4, "records"),
        (4, "body CRC"),
        (8, "first position"),
        (8, "time"),
        (8, "durable up to"),
        (32, "body BLAKE3"),
        (32, "chain hash"),
        (4, "header CRC"),
        (1, "record 1: payload length"),
        (1, "kind"),
        (1, "version"),
        (1, "flags: opens, term, CRC"),
        (1, "stream: opened here"),
        (1, "sequence"),
        (1, "time"),
        (1, "length of the name"),
        (3, "name: t/r"),
        (1, "term"),
        (4, "CRC"),
        (125, "payload"),
        (1, "record 2: payload length"),
        (1, "kind"),
        (1, "version"),
        (1, "flags: term, CRC"),
        (1, "stream: opened last"),
        (1, "sequence"),
        (1, "time"),
        (1, "term"),
        (4, "CRC"),
        (8, "length of the type"),
        (12, "type"),
        (1, "level"),
        (8, "length of the message"),
        (9, "message"),
        (8, "length of the data"),
        (2, "data"),
    ];
    let mut out = String::new();
    let mut at = 0;
    let mut put = |len: usize, label: &str, at: &mut usize| {
        let field = &bytes[*at..*at + len];
        if field.iter().all(|b| *b == 0) && len > 32 {
            let _ = writeln!(out, "{at:04x}  00 × {len}  # {label}");
        } else {
            for (i, row) in field.chunks(32).enumerate() {
                let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
                let label = if i == 0 { format!("  # {label}") } else { String::new() };
                let _ = writeln!(out, "{:04x}  {}{label}", *at + 32 * i, hex.join(" "));
            }
        }
        *at += len;
    };
    for (len, label) in header.iter().chain(header).chain(batch) {
        put(*len, label, &mut at);
    }
    assert_eq!(at, bytes.len(), "every byte of the example is named");
    out
}

/// The bytes of an annotated block.
fn bytes_of(block: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in block.lines() {
        let (offset, rest) = line.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset, 16).unwrap(), bytes.len(), "{line}");
        let hex = rest.split('#').next().unwrap().trim();
        match hex.split_once(" × ") {
            Some((byte, count)) => {
                let byte = u8::from_str_radix(byte, 16).unwrap();
                bytes.extend(std::iter::repeat_n(byte, count.parse().unwrap()));
            }
            None => bytes.extend(hex.split(' ').map(|b| u8::from_str_radix(b, 16).unwrap())),
        }
    }
    bytes
}

fn documented() -> &'static str {
    let start = FORMAT.find("```hex\n").unwrap() + "```hex\n".len();
    let end = FORMAT[start..].find("```").unwrap();
    &FORMAT[start..start + end]
}

#[test]
fn the_example_in_the_format_text_is_what_is_written() {
    let made = annotated(&example());
    if std::env::var_os("UPDATE_EXAMPLE").is_some() {
        let text = FORMAT.replace(documented(), &made);
        let world = World::existing(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/format")));
        let file = world.unwrap().disk.open("FORMAT.md", runwal::disk::Open::Write).unwrap();
        file.set_len(0).unwrap();
        file.write_at(text.as_bytes(), 0).unwrap();
        return;
    }
    assert_eq!(documented(), made, "rerun with UPDATE_EXAMPLE=1 if the format was meant to change");
}

#[test]
fn the_example_in_the_format_text_can_be_read() {
    let sim = SimWorld::new();
    let world = World {
        disk: Arc::new(sim.process(1)),
        clock: Arc::new(ManualClock::new(Time(0))),
        entropy: Arc::new(SeededEntropy::new(2)),
    };
    runwal::disk::Disk::create_dir(&*world.disk, "journal").unwrap();
    sim.write_file(SEGMENT, &bytes_of(documented())).unwrap();
    let mut log = runwal::engine::Log::open_in(&world).unwrap();
    assert_eq!(log.durable().0, 2);
    let run = log.resolve("t/r").unwrap();
    let (fold, damage) = log.fold(run.stream).unwrap();
    assert!(damage.is_empty());
    assert_eq!(fold.request(), Some(&request()));
    assert_eq!(fold.term(), Some(3));
    assert_eq!(fold.counts().events, [0, 1, 0, 0]);
}
