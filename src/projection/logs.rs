//! `worker.log`, and the last lines of all logs together.

use super::LogFile;
use crate::position::Time;
use crate::record::{Lifecycle, escape_line};
use std::collections::VecDeque;

/// A line of `worker.log`: `<createdAt> <LEVEL> <type> <message> <data>`, newline included. No
/// message and no data can make it look like two.
pub fn worker_line(created: Time, event: &Lifecycle) -> Vec<u8> {
    format!(
        "{} {} {} {} {}\n",
        created.to_millis_string(),
        event.level.word().to_uppercase(),
        event.event,
        escape_line(&event.message),
        crate::record::escape_json(event.data.as_str()),
    )
    .into_bytes()
}

/// The last lines of `worker.log`, stdout and stderr, in the order in which they were ended.
#[derive(Debug, Clone)]
pub struct LogTail {
    lines: VecDeque<Vec<u8>>,
    len: usize,
    partial: [Vec<u8>; 3],
    max_lines: usize,
    max_bytes: usize,
}

impl LogTail {
    /// Lines kept unless said otherwise.
    pub const LINES: usize = 200;
    /// Bytes kept unless said otherwise.
    pub const BYTES: usize = 64 << 10;

    /// Keeps at most so many lines and bytes.
    pub fn new(max_lines: usize, max_bytes: usize) -> Self {
        Self { lines: VecDeque::new(), len: 0, partial: Default::default(), max_lines, max_bytes }
    }

    /// Takes bytes of one log in.
    pub fn push(&mut self, log: LogFile, bytes: &[u8]) {
        let mut rest = self.last_part(log, bytes);
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let mut line = std::mem::take(&mut self.partial[log as usize]);
            line.extend_from_slice(&rest[..=end]);
            self.keep(line);
            rest = &rest[end + 1..];
        }
        let partial = &mut self.partial[log as usize];
        let rest = &rest[rest.len().saturating_sub(self.max_bytes)..];
        let over = (partial.len() + rest.len()).saturating_sub(self.max_bytes);
        partial.drain(..over);
        partial.extend_from_slice(rest);
    }

    /// The last lines of `bytes`, where they are as many as are kept at all: a flood is not taken
    /// apart line by line.
    fn last_part<'b>(&mut self, log: LogFile, bytes: &'b [u8]) -> &'b [u8] {
        match memchr::memrchr_iter(b'\n', bytes).nth(self.max_lines) {
            Some(before) => {
                self.partial[log as usize].clear();
                &bytes[before + 1..]
            }
            None => bytes,
        }
    }

    fn keep(&mut self, mut line: Vec<u8>) {
        let over = line.len().saturating_sub(self.max_bytes);
        line.drain(..over);
        self.len += line.len();
        self.lines.push_back(line);
        while self.lines.len() > self.max_lines || self.len > self.max_bytes {
            self.len -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    /// All that is kept, lines that have not ended last, each with a newline.
    pub fn render(&self) -> Vec<u8> {
        let mut all = self.clone();
        for partial in &mut std::mem::take(&mut all.partial) {
            if !partial.is_empty() {
                partial.push(b'\n');
                all.keep(std::mem::take(partial));
            }
        }
        all.lines.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// However the bytes are cut into chunks, the last lines are the same.
        #[test]
        fn a_flood_leaves_what_its_lines_one_by_one_would(
            bytes in proptest::collection::vec(proptest::sample::select(b"ab\n".to_vec()), 0..400),
        ) {
            let mut whole = LogTail::new(5, 16);
            whole.push(LogFile::Stdout, &bytes);
            let mut single = LogTail::new(5, 16);
            bytes.iter().for_each(|b| single.push(LogFile::Stdout, &[*b]));
            proptest::prop_assert_eq!(whole.render(), single.render());
        }
    }

    #[test]
    fn lines_stand_in_the_order_in_which_they_end() {
        let mut tail = LogTail::new(3, 64);
        tail.push(LogFile::Stdout, b"out ");
        tail.push(LogFile::Stderr, b"err\n");
        tail.push(LogFile::Stdout, b"put\nx");
        assert_eq!(tail.render(), b"err\nout put\nx\n");
        tail.push(LogFile::Worker, b"w\n");
        assert_eq!(tail.render(), b"out put\nw\nx\n", "three lines at most");
        tail.push(LogFile::Stderr, &[b'y'; 200]);
        assert!(tail.render().len() <= 64, "and so many bytes");
    }
}
