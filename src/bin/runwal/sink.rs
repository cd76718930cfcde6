//! Where a worker's output goes when it is printed again: each channel to its own descriptor, byte
//! for byte, and to a terminal only what is harmless there.

use crate::args::ChannelName;
use runwal::position::Time;
use runwal::record::Channel;
use std::io::{IsTerminal, Write};

/// What is to be printed, and how.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Wanted {
    /// Only this channel.
    pub(crate) channel: Option<ChannelName>,
    /// The time of each line before it.
    pub(crate) times: bool,
    /// Everything also to a terminal.
    pub(crate) raw: bool,
}

/// Our two descriptors.
#[derive(Debug)]
pub(crate) struct Sinks {
    stdout: Sink,
    stderr: Sink,
}

impl Sinks {
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self {
            stdout: Sink::new(wanted, Channel::Stdout, std::io::stdout().is_terminal()),
            stderr: Sink::new(wanted, Channel::Stderr, std::io::stderr().is_terminal()),
        }
    }

    /// Prints bytes of a channel, which may wait for a [`flush`].
    pub(crate) fn write(&mut self, channel: Channel, bytes: &[u8], time: Time) -> std::io::Result<()> {
        match channel {
            Channel::Stdout => {
                let shown = self.stdout.shown(bytes, time);
                std::io::stdout().lock().write_all(&shown)
            }
            Channel::Stderr => {
                let shown = self.stderr.shown(bytes, time);
                if !shown.is_empty() {
                    // The two may be one file or terminal, where their order shows.
                    flush()?;
                }
                std::io::stderr().lock().write_all(&shown)
            }
        }
    }

    /// The end: a terminal gets its own colours back.
    pub(crate) fn finish(&mut self) -> std::io::Result<()> {
        if self.stdout.is_coloured() {
            std::io::stdout().lock().write_all(RESET)?;
        }
        flush()?;
        if self.stderr.is_coloured() {
            std::io::stderr().lock().write_all(RESET)?;
        }
        Ok(())
    }
}

/// Lets nothing wait any longer.
pub(crate) fn flush() -> std::io::Result<()> {
    std::io::stdout().lock().flush()
}

const RESET: &[u8] = b"\x1b[0m";

/// One of them, with what it may be sent.
#[derive(Debug)]
struct Sink {
    wanted: bool,
    filter: Option<Harmless>,
    times: bool,
    at_line_start: bool,
}

impl Sink {
    fn new(wanted: Wanted, channel: Channel, terminal: bool) -> Self {
        let filter = (terminal && !wanted.raw).then(Harmless::default);
        let only = wanted.channel.map(|name| match name {
            ChannelName::Stdout => Channel::Stdout,
            ChannelName::Stderr => Channel::Stderr,
        });
        let wanted_here = only.is_none_or(|only| only == channel);
        Self { wanted: wanted_here, filter, times: wanted.times, at_line_start: true }
    }

    /// What is to be sent of some bytes.
    fn shown(&mut self, bytes: &[u8], time: Time) -> Vec<u8> {
        if !self.wanted {
            return Vec::new();
        }
        let shown = match &mut self.filter {
            Some(filter) => filter.pass(bytes),
            None => bytes.to_vec(),
        };
        if self.times { self.stamp(&shown, time) } else { shown }
    }

    /// Whether a colour was passed on and not taken back.
    fn is_coloured(&self) -> bool {
        self.filter.as_ref().is_some_and(|filter| filter.coloured)
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
    /// Whether the last colour that was passed on is still in force.
    coloured: bool,
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
                    // The middle of a short sequence, as the choice of a character set.
                    0x20..=0x2f => Escape::Begun,
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
                        self.coloured = !matches!(self.sequence[..], [b'm'] | [b'0', b'm']);
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
        assert_eq!(
            wide.pass(b"\x1b(B\x1b[mplain\x1b#8"),
            b"\x1b[mplain",
            "sequences of three bytes leave none"
        );
        assert_eq!(halves, b"\x1b[31mred\x1b[0m abcde\r\n", "also when a sequence is cut in two");
    }

    #[test]
    fn a_colour_that_is_left_on_is_known() {
        let mut filter = Harmless::default();
        for (sent, left_on) in [
            ("plain", false),
            ("\x1b[1;31mred", true),
            ("\x1b[0m", false),
            ("\x1b[4m", true),
            ("\x1b[m", false),
        ] {
            filter.pass(sent.as_bytes());
            assert_eq!(filter.coloured, left_on, "{sent:?}");
        }
    }
}
