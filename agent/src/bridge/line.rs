//! The lines that a server writes, each of them one message. A line that is too long is skipped, and what it would have
//! answered is told, so that whoever asked need not wait.

use anyhow::Result;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Longest line that is taken, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Room that is kept for the next line; one large answer should not cost its memory for ever.
const ROOM_BYTES: usize = 256 * 1024;

/// A line, or what became of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Whole(&'a [u8]),
    /// It was longer than it may be; with the id of the message, where that is a number.
    TooLong {
        id: Option<u64>,
    },
}

/// Reads lines, each into the room of the one before.
pub(super) struct Lines<R> {
    from: R,
    line: Vec<u8>,
    bytes_max: usize,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(super) fn new(from: R, bytes_max: usize) -> Self {
        Self { from, line: Vec::new(), bytes_max }
    }

    /// The next line, without its end; `None` at the end of all.
    pub(super) async fn next(&mut self) -> Result<Option<Line<'_>>> {
        self.line.clear();
        self.line.shrink_to(ROOM_BYTES);
        let mut skipped: Option<IdScanner> = None;
        loop {
            let available = self.from.fill_buf().await?;
            if available.is_empty() {
                return Ok(match skipped {
                    Some(scanner) => Some(Line::TooLong { id: scanner.id }),
                    None => (!self.line.is_empty()).then_some(Line::Whole(&self.line)),
                });
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            match &mut skipped {
                Some(scanner) => scanner.take(part),
                None if self.line.len() + part.len() > self.bytes_max => {
                    let mut scanner = IdScanner::default();
                    scanner.take(&self.line);
                    scanner.take(part);
                    self.line = Vec::new();
                    skipped = Some(scanner);
                }
                None => self.line.extend_from_slice(part),
            }
            let taken = end.map_or(available.len(), |end| end + 1);
            self.from.consume(taken);
            if end.is_some() {
                return Ok(Some(match skipped {
                    Some(scanner) => Line::TooLong { id: scanner.id },
                    None => Line::Whole(&self.line),
                }));
            }
        }
    }
}

/// The id of a message that is no JSON as a whole, where it is a number.
pub(super) fn id_of(line: &[u8]) -> Option<u64> {
    let mut scanner = IdScanner::default();
    scanner.take(line);
    scanner.id
}

/// Finds the field `id` of the outermost object while its text goes by.
#[derive(Debug, Default)]
struct IdScanner {
    id: Option<u64>,
    depth: u32,
    state: Scan,
    /// The text that is being read, as far as it may matter.
    word: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scan {
    #[default]
    Between,
    /// In a text; whether the character before takes the meaning of this one away.
    Text { escaped: bool },
    /// After a text of the outermost object.
    Named,
    /// In the value of the field.
    Value,
}

/// Most bytes of a name or number that can matter.
const WORD_BYTES_MAX: usize = 24;

impl IdScanner {
    fn take(&mut self, part: &[u8]) {
        for byte in part {
            self.step(*byte);
        }
    }

    fn step(&mut self, byte: u8) {
        self.state = match self.state {
            Scan::Text { escaped: true } => self.keep(byte, Scan::Text { escaped: false }),
            Scan::Text { .. } if byte == b'\\' => self.keep(byte, Scan::Text { escaped: true }),
            Scan::Text { .. } if byte == b'"' => Scan::Named,
            Scan::Text { .. } => self.keep(byte, Scan::Text { escaped: false }),
            Scan::Value if byte.is_ascii_digit() => self.keep(byte, Scan::Value),
            Scan::Value if byte.is_ascii_whitespace() && self.word.is_empty() => Scan::Value,
            Scan::Value => {
                self.id = std::str::from_utf8(&self.word).ok().and_then(|word| word.parse().ok());
                self.between(byte)
            }
            Scan::Named if byte.is_ascii_whitespace() => Scan::Named,
            Scan::Named if byte == b':' && self.depth == 1 && self.word == b"id" => {
                self.word.clear();
                Scan::Value
            }
            Scan::Named | Scan::Between => self.between(byte),
        };
    }

    fn between(&mut self, byte: u8) -> Scan {
        match byte {
            b'"' => {
                self.word.clear();
                return Scan::Text { escaped: false };
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Scan::Between
    }

    fn keep(&mut self, byte: u8, state: Scan) -> Scan {
        if self.word.len() < WORD_BYTES_MAX {
            self.word.push(byte);
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn read(text: &str, bytes_max: usize) -> Vec<String> {
        // A small buffer, so that lines come in parts.
        let mut lines = Lines::new(BufReader::with_capacity(7, text.as_bytes()), bytes_max);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.expect("read") {
            all.push(match line {
                Line::Whole(line) => String::from_utf8_lossy(line).into_owned(),
                Line::TooLong { id } => format!("too long: {id:?}"),
            });
        }
        all
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_read() {
        let long = format!(r#"{{"jsonrpc":"2.0","id":7,"result":"{}"}}"#, "x".repeat(100));
        let all = read(&format!("{{\"a\":1}}\n{long}\n\nlast"), 40).await;
        assert_eq!(all, [r#"{"a":1}"#, "too long: Some(7)", "", "last"]);
    }

    #[tokio::test]
    async fn the_id_is_that_of_the_message_wherever_it_stands() {
        let long = "y".repeat(60);
        for (line, id) in [
            (format!(r#"{{"result":{{"id":1,"x":"{long}","\"id\"":2}},"jsonrpc":"2.0","id" : 42}}"#), "Some(42)"),
            (format!(r#"{{"result":["id",3,"\\",{{"id":4}},"{long}"],"id":5}}"#), "Some(5)"),
            (format!(r#"{{"id":"text","result":"{long}"}}"#), "None"),
            (format!(r#"{{"method":"x","params":{{"id":9,"x":"{long}"}}}}"#), "None"),
            (format!(r#"{{"x":"\",\"id\":8","y":"{long}","id":6}}"#), "Some(6)"),
        ] {
            assert_eq!(read(&format!("{line}\n"), 20).await, [format!("too long: {id}")], "{line}");
        }
    }
}
