//! `runwal output`

use crate::args::{ChannelName, Global, OutputArgs};
use crate::{Done, Failure, show};
use runwal::engine::Log;
use runwal::error::Error;
use runwal::position::{Seq, Time};
use runwal::record::{Body, Channel};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// One of our two descriptors, with what it may be sent.
struct Sink {
    channel: Channel,
    wanted: bool,
    filter: Option<Harmless>,
    times: bool,
    at_line_start: bool,
}

impl Sink {
    fn new(args: &OutputArgs, channel: Channel, terminal: bool) -> Self {
        let wanted = match args.channel {
            None => true,
            Some(ChannelName::Stdout) => channel == Channel::Stdout,
            Some(ChannelName::Stderr) => channel == Channel::Stderr,
        };
        let filter = (terminal && !args.raw).then(Harmless::default);
        Self { channel, wanted, filter, times: args.times, at_line_start: true }
    }

    fn write(&mut self, bytes: &[u8], time: Time) -> std::io::Result<()> {
        if !self.wanted {
            return Ok(());
        }
        let mut shown = match &mut self.filter {
            Some(filter) => filter.pass(bytes),
            None => bytes.to_vec(),
        };
        if self.times {
            shown = self.stamp(&shown, time);
        }
        match self.channel {
            Channel::Stdout => std::io::stdout().lock().write_all(&shown),
            Channel::Stderr => std::io::stderr().lock().write_all(&shown),
        }
    }

    fn stamp(&mut self, bytes: &[u8], time: Time) -> Vec<u8> {
        let stamp = format!("{} ", time.to_millis_string());
        let mut out = Vec::with_capacity(bytes.len() + stamp.len());
        for byte in bytes {
            if std::mem::take(&mut self.at_line_start) {
                out.extend_from_slice(stamp.as_bytes());
            }
            out.push(*byte);
            self.at_line_start = *byte == b'\n';
        }
        out
    }
}

/// Lets colours and text through to a terminal, and nothing that could change its title, clipboard
/// or modes.
#[derive(Debug, Default)]
struct Harmless {
    state: Escape,
    sequence: Vec<u8>,
    /// Bytes of a UTF-8 character that are still to come, and the ones there are.
    to_come: u8,
    character: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    Text,
    Begun,
    Control,
    Text7,
    Text7End,
}

impl Harmless {
    /// The longest colour sequence that is passed on.
    const MAX_SEQUENCE: usize = 64;

    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.byte(byte, &mut out);
        }
        out
    }

    /// Bytes of 0x80 and above are passed on as whole UTF-8 characters only, and not those that are
    /// control characters: terminals take them for the beginning of a command.
    fn text(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.to_come > 0 && (0x80..=0xbf).contains(&byte) {
            self.character.push(byte);
            self.to_come -= 1;
            if self.to_come == 0 {
                let control = matches!(self.character[..], [0xc2, 0x80..=0x9f]);
                if !control && std::str::from_utf8(&self.character).is_ok() {
                    out.extend_from_slice(&self.character);
                }
            }
            return;
        }
        self.to_come = 0;
        match byte {
            0x1b => self.state = Escape::Begun,
            b'\n' | b'\t' | b'\r' | 0x08 | 0x20..=0x7e => out.push(byte),
            0xc2..=0xf4 => {
                self.to_come = if byte < 0xe0 {
                    1
                } else if byte < 0xf0 {
                    2
                } else {
                    3
                };
                self.character.clear();
                self.character.push(byte);
            }
            _ => {}
        }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        match self.state {
            Escape::Text => self.text(byte, out),
            Escape::Begun => {
                self.sequence.clear();
                self.state = match byte {
                    b'[' => Escape::Control,
                    // Operating system commands, device control and the like: text up to BEL or ST.
                    b']' | b'P' | b'X' | b'^' | b'_' => Escape::Text7,
                    _ => Escape::Text,
                };
            }
            Escape::Control => {
                self.sequence.push(byte);
                if (0x40..=0x7e).contains(&byte) {
                    let plain = self.sequence.iter().all(|b| b.is_ascii_digit() || b";:m".contains(b));
                    if byte == b'm' && plain && self.sequence.len() <= Self::MAX_SEQUENCE {
                        out.extend_from_slice(b"\x1b[");
                        out.extend_from_slice(&self.sequence);
                    }
                    self.state = Escape::Text;
                } else if self.sequence.len() > Self::MAX_SEQUENCE {
                    self.state = Escape::Text;
                }
            }
            Escape::Text7 => match byte {
                0x07 => self.state = Escape::Text,
                0x1b => self.state = Escape::Text7End,
                _ => {}
            },
            Escape::Text7End => {
                self.state = if byte == b'\\' { Escape::Text } else { Escape::Text7 };
            }
        }
    }
}

pub(crate) fn output(global: &Global, args: &OutputArgs) -> Done {
    let Some(mut log) = global.log()? else {
        return Err(Failure::Engine(Error::not_found("nothing is recorded yet", "Record something first.")));
    };
    let run = log.resolve(&args.run)?;
    let mut stdout = Sink::new(args, Channel::Stdout, std::io::stdout().is_terminal());
    let mut stderr = Sink::new(args, Channel::Stderr, std::io::stderr().is_terminal());
    let mut next = Seq(1);
    let mut damaged = false;
    loop {
        let (ended, damage) = pass_on(&mut log, run.stream, &mut next, &mut stdout, &mut stderr)?;
        for found in &damage {
            show::damage(found, global.json());
            damaged = true;
        }
        std::io::stdout().lock().flush()?;
        if !args.follow || ended || damaged {
            return Ok(if damaged { 3 } else { 0 });
        }
        while !log.wait(Duration::from_secs(1))? {}
    }
}

/// Passes on everything from a sequence on; answers whether the run has ended.
fn pass_on(
    log: &mut Log,
    stream: runwal::position::StreamId,
    next: &mut Seq,
    stdout: &mut Sink,
    stderr: &mut Sink,
) -> Result<(bool, Vec<runwal::Damage>), Failure> {
    let mut failed = None;
    let mut ended = false;
    let damage = log.stream(stream, *next, &mut |record| {
        *next = Seq(record.seq.0 + 1);
        ended |= record.ends;
        if let Body::Chunk(channel, bytes) = &record.body {
            let sink = if *channel == Channel::Stdout { &mut *stdout } else { &mut *stderr };
            if let Err(error) = sink.write(bytes, record.created_at) {
                failed = Some(error);
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok((ended, damage)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_colours_and_no_commands() {
        let mut filter = Harmless::default();
        let sent = b"\x1b[31mred\x1b[0m \x1b]0;title\x07a\x1b]52;c;AAAA\x1b\\b\x1b[?1049hc\x1b[2Jd\x1bce\r\n";
        assert_eq!(filter.pass(sent), b"\x1b[31mred\x1b[0m abcde\r\n");
        let mut split = Harmless::default();
        let halves = [split.pass(&sent[..20]), split.pass(&sent[20..])].concat();
        let mut wide = Harmless::default();
        let text = "a\u{9b}5mb\u{9d}0;title\u{9c}c ä€😀".as_bytes();
        assert_eq!(wide.pass(text), "a5mb0;titlec ä€😀".as_bytes(), "no control characters of two bytes");
        assert_eq!(wide.pass(b"\x9b2Jx\xffy"), b"2Jxy", "nor of one");
        assert_eq!(halves, b"\x1b[31mred\x1b[0m abcde\r\n", "also when a sequence is cut in two");
    }
}
