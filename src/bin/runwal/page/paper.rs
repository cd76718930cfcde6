//! A page of headings, fields and lists, at most so wide that it can be read on any terminal.

use crate::show::shortened;

/// The width of a terminal nobody has widened. A wider one is not used: long lines are hard to read.
const WIDTH: usize = 80;
const INDENT: usize = 2;
/// Where the values of fields begin.
const VALUE: usize = 15;

/// What a colour stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Strong,
    Faint,
    Good,
    Odd,
    Bad,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "1;32",
            Self::Odd => "33",
            Self::Bad => "1;31",
        }
    }
}

/// What is written must be escaped already.
#[derive(Debug)]
pub(super) struct Paper {
    text: String,
    colored: bool,
}

impl Paper {
    pub(super) fn new(colored: bool) -> Self {
        Self { text: String::new(), colored }
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn paint(&self, text: &str, paint: Paint) -> String {
        if self.colored && paint != Paint::Plain {
            format!("\x1b[{}m{text}\x1b[0m", paint.code())
        } else {
            text.to_owned()
        }
    }

    fn line(&mut self, indent: usize, text: &str, paint: Paint) {
        let painted = self.paint(text, paint);
        self.text.push_str(format!("{:indent$}{painted}", "").trim_end());
        self.text.push('\n');
    }

    pub(super) fn title(&mut self, name: &str, word: &str, paint: Paint) {
        let (name, word) = (self.paint(name, Paint::Strong), self.paint(word, paint));
        self.line(0, &format!("{name}  {word}"), Paint::Plain);
    }

    pub(super) fn heading(&mut self, text: &str) {
        self.text.push('\n');
        self.line(0, text, Paint::Strong);
    }

    /// Text that flows.
    pub(super) fn paragraph(&mut self, text: &str) {
        self.painted(text, Paint::Plain);
    }

    pub(super) fn painted(&mut self, text: &str, paint: Paint) {
        wrapped(text, WIDTH).iter().for_each(|line| self.line(0, line, paint));
    }

    pub(super) fn field(&mut self, name: &str, value: &str) {
        for (i, line) in wrapped(value, WIDTH - VALUE).iter().enumerate() {
            let name = if i == 0 { name } else { "" };
            let name = self.paint(&format!("{name:<width$}", width = VALUE - INDENT), Paint::Faint);
            self.line(INDENT, &format!("{name}{line}"), Paint::Plain);
        }
    }

    /// A command line: cut between its words alone, and so that a shell reads it as one.
    pub(super) fn command(&mut self, name: &str, words: &[String]) {
        let mut lines: Vec<String> = Vec::new();
        for word in words {
            match lines.last_mut() {
                Some(line) if (line.chars().count() + word.chars().count() + 3) <= WIDTH - VALUE => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.clone()),
            }
        }
        let last = lines.len().saturating_sub(1);
        for (i, line) in lines.iter().enumerate() {
            let name =
                self.paint(&format!("{:<1$}", if i == 0 { name } else { "" }, VALUE - INDENT), Paint::Faint);
            let goes_on = if i < last { " \\" } else { "" };
            self.line(INDENT, &format!("{name}{line}{goes_on}"), Paint::Plain);
        }
    }

    pub(super) fn field_if(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.field(name, &value);
        }
    }

    /// An entry of a list, whose text goes on under itself.
    pub(super) fn item(&mut self, head: &str, text: &str, paint: Paint) {
        let indent = INDENT + 4;
        let room = WIDTH - INDENT - head.chars().count().min(WIDTH / 2);
        let mut lines = wrapped(text, room);
        let first = if lines.is_empty() { String::new() } else { lines.remove(0) };
        self.line(INDENT, &format!("{head}{first}"), paint);
        let rest = lines.join(" ");
        let rest = if rest.is_empty() { Vec::new() } else { wrapped(&rest, WIDTH - indent) };
        rest.iter().for_each(|line| self.line(indent, line, paint));
    }

    /// Something under an entry, or between entries.
    pub(super) fn note(&mut self, text: &str) {
        wrapped(text, WIDTH - INDENT - 3).iter().for_each(|line| self.line(INDENT + 3, line, Paint::Faint));
    }

    /// A few words before what comes next.
    pub(super) fn lead(&mut self, text: &str) {
        self.line(INDENT, text, Paint::Faint);
    }

    /// What is to be copied, and so is never wrapped.
    pub(super) fn plain(&mut self, text: &str) {
        self.line(INDENT, text, Paint::Plain);
    }

    /// A line of somebody else's.
    pub(super) fn quote(&mut self, text: &str) {
        self.line(INDENT, &shortened(&format!("| {text}"), WIDTH - INDENT), Paint::Plain);
    }

    /// Commands, each with what it does.
    pub(super) fn hints(&mut self, hints: &[(String, &str)]) {
        let width = hints.iter().map(|(command, _)| command.chars().count()).max().unwrap_or(0);
        for (command, does) in hints {
            let does = self.paint(does, Paint::Faint);
            self.line(INDENT, &format!("{command:<width$}  {does}"), Paint::Plain);
        }
    }
}

/// Lines of at most so many characters, cut at blanks. A word that is longer stays whole: paths and
/// digests are copied.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut len = 0;
    for word in text.split(' ') {
        let more = word.chars().count();
        match lines.last_mut() {
            Some(line) if len + 1 + more <= width => {
                line.push(' ');
                line.push_str(word);
                len += 1 + more;
            }
            _ => {
                lines.push(word.to_owned());
                len = more;
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_blanks_and_loses_nothing() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("a bc def", 5), ["a bc", "def"]);
        assert_eq!(wrapped("unbreakable a b", 5), ["unbreakable", "a b"]);
        let text = "two  blanks   stay ";
        assert_eq!(wrapped(text, 8).join(" "), text);
    }
}
