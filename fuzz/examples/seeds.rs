//! Makes `seeds/` anew: what is written out here, and of the inputs that fuzzing has collected in
//! `corpus/` as many small ones as are kept.
//!
//! ```text
//! cargo run --example seeds
//! ```

#![expect(clippy::disallowed_methods, reason = "inputs, not files of a journal")]

use runwal::format::{Busy, Footer, Mark, Phase, SegmentHeader};
use runwal::position::{Position, Session, Time};
use runwal_fuzz::TARGETS;
use runwal_fuzz::journals::{MARK, Node, ORIGINALS};
use std::fs;
use std::path::Path;

/// Of the inputs collected so many are kept for a target.
const KEPT: usize = 24;
/// None that is longer.
const LONGEST: usize = 400;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in TARGETS {
        let folder = root.join("seeds").join(name);
        let collected = collected(&root.join("corpus").join(name))?;
        // Without a corpus those of before stay.
        if !collected.is_empty() && folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        for (n, bytes) in made(name).iter().enumerate() {
            fs::write(folder.join(format!("made-{n:02}")), bytes)?;
        }
        for (n, bytes) in collected.iter().enumerate() {
            fs::write(folder.join(format!("found-{n:02}")), bytes)?;
        }
        println!("{name}: {} seeds", fs::read_dir(&folder)?.count());
    }
    Ok(())
}

/// Some of a corpus, of all lengths.
fn collected(corpus: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let Ok(entries) = fs::read_dir(corpus) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in entries {
        let bytes = fs::read(entry?.path())?;
        if bytes.len() <= LONGEST {
            all.push(bytes);
        }
    }
    all.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    let step = all.len().div_ceil(KEPT).max(1);
    // From the long end, as the short ones do little.
    let mut kept: Vec<_> = all.into_iter().rev().step_by(step).collect();
    kept.reverse();
    Ok(kept)
}

/// Inputs made of what the decoders read in earnest.
fn made(target: &str) -> Vec<Vec<u8>> {
    match target {
        "frames" => frames(),
        "arguments" => texts(&[
            "T-016",
            "t/r-1",
            "@last",
            "../etc",
            "r",
            "2026-03-22T01:13:40.5+01:00",
            "lifecycle",
            "needs_human",
            "00000000000000000000000000000000:0",
            "\u{202e}",
            "1677-09-21T00:12:43.145224192Z",
        ]),
        "escaping" => {
            texts(&["0123456789\\u{202e}\n\t{\"ts\":1,\"ts\":2}", "01234567\"\u{7f}\u{feff}[1e400]\\\\"])
        }
        _ => vec![vec![0]],
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn frames() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add = |what: u8, right: u8, bytes: &[u8]| seeds.push([&[what, right], bytes].concat());
    for (name, node) in &ORIGINALS.files {
        let Node::File(bytes) = node else { continue };
        if name.ends_with(".seg") {
            add(0, 0, &bytes[..1024]);
            add(0, 1, &bytes[12..160]);
            add(1, 1, &bytes[1028..1136]);
            add(5, 0, &[&[0, 0], &bytes[1140..1300]].concat());
        } else if name == MARK {
            add(3, 0, &bytes[..Mark::LEN]);
            add(3, 1, &bytes[8..Mark::LEN - 4]);
        } else if name.ends_with(".idx") {
            add(2, 1, bytes);
        }
    }
    let busy = Busy { boot: [7; 16], pid: 9, since: Time(-1), phase: Phase::Rolling };
    add(4, 0, &busy.encode());
    add(2, 1, &Footer { last_position: Position(4), ..Footer::default() }.encode_body());
    let header = SegmentHeader {
        journal: [1; 16],
        segment: 2,
        epoch: 1,
        salt: 3,
        prev_salt: 4,
        first_position: Position(5),
        prev_end: 2_000,
        prev_footer_len: 300,
        chain: [6; 32],
        born_upto: Position(4),
        capacity: 1 << 20,
        created: Time(7),
        lost: (Position(3), Position(4)),
    };
    add(0, 0, &header.encode());
    let session = Session { boot: [2; 16], device: 3, mount: 4 };
    let mark = Mark {
        counter: 1,
        session,
        inode: 5,
        journal: [1; 16],
        segment: 2,
        end: 2_000,
        position: Position(9),
        chain: [6; 32],
    };
    add(3, 0, &mark.encode());
    seeds
}
